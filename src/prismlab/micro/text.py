"""Real English and real Python text that comes with every Python: the web, code and chat text of the micro world.

The language reference that ``pydoc`` shows (`pydoc_data.topics`) and the docstrings of the standard library are the
English, its source without docstrings is the code, and the first paragraphs of the docstrings of public functions are
the answers of the chats. No passage is used twice, so that text held out of one kind is not learned from another.
Source is parsed, never imported. The text differs between Python versions; `text_hash` tells which one was used.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from prismlab.errors import DataError

_MODULE_NAMES = """
argparse ast base64 bdb bisect calendar cmd code codecs codeop compileall configparser contextlib copy csv dataclasses
difflib dis doctest enum filecmp fileinput fnmatch fractions ftplib functools getopt gettext glob graphlib gzip heapq
hmac imaplib inspect ipaddress linecache locale mailbox mimetypes numbers operator optparse os pathlib pdb pickle
pickletools platform plistlib poplib pprint profile pstats pyclbr pydoc queue quopri random reprlib sched selectors
shelve shlex shutil smtplib socket socketserver statistics string subprocess symtable tarfile tempfile textwrap
threading timeit tokenize trace traceback types typing uuid warnings weakref webbrowser zipapp zipfile
"""
MODULES = tuple(_MODULE_NAMES.split())
"""Pure Python modules of the standard library. One that a Python version lacks is passed over: the hash tells."""

DOCUMENT_CHARS = 600
"""Small neighbours are joined up to this many characters."""
LONGEST_PIECE = 1500
"""A paragraph or function longer than this is cut at a line break."""
FEWEST_CHARS = 80
"""Shorter documents hold little but a heading."""
SOURCE_BYTES = 1_000_000
"""A standard library with less source than this has been stripped; the micro world would then be another one."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = _Function | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class _Module:
    """What one source file gives. ``functions`` pairs a dotted name with the first paragraph of its docstring."""

    prose: tuple[str, ...]
    code: tuple[str, ...]
    functions: tuple[tuple[str, str], ...]


def _cut(piece: str) -> Iterator[str]:
    """``piece`` in parts of at most ``LONGEST_PIECE`` characters, cut at line breaks where there are any."""
    while len(piece) > LONGEST_PIECE:
        at = piece.rfind("\n", 1, LONGEST_PIECE)
        at = LONGEST_PIECE if at < 0 else at + 1
        yield piece[:at]
        piece = piece[at:]
    yield piece


def _joined(pieces: Iterable[str], separator: str) -> Iterator[str]:
    """Neighbouring pieces joined to documents of about ``DOCUMENT_CHARS`` characters."""
    held: list[str] = []
    size = 0
    for piece in (part for whole in pieces for part in _cut(whole)):
        if held and size + len(piece) > DOCUMENT_CHARS:
            yield separator.join(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece) + len(separator)
    if held:
        yield separator.join(held)


def _documents(pieces: Iterable[str], separator: str) -> list[str]:
    documents = (document.strip("\n").rstrip() for document in _joined(pieces, separator))
    return [document for document in documents if len(document) >= FEWEST_CHARS]


def _documented(body: Iterable[ast.stmt], prefix: str = "") -> Iterator[tuple[str, _Function | ast.ClassDef]]:
    """Functions and classes of a module and of its classes, with dotted names; what is inside functions is left out."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _documented(node.body, f"{prefix}{node.name}.")


def _docstring_lines(node: _Documented) -> tuple[int, int] | None:
    """First and last line (from 1) of the docstring, if it stands on lines of its own."""
    first = node.body[0] if node.body else None
    if not (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    ):
        return None
    alone = not isinstance(node, ast.Module) and first.lineno == node.lineno
    return None if alone else (first.lineno, first.end_lineno or first.lineno)


def _starts(lines: list[str], nodes: Iterable[_Function | ast.ClassDef]) -> list[int]:
    """Line indices at which a function or class begins, with its decorators and the comment above it."""
    starts = {0, len(lines)}
    for node in nodes:
        start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        while start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        starts.add(start)
    return sorted(starts)


def _code_pieces(source: str, tree: ast.Module, named: list[tuple[str, _Function | ast.ClassDef]]) -> Iterator[str]:
    """The source without docstrings, one piece a function or class head."""
    lines = source.split("\n")
    starts = _starts(lines, (node for _, node in named))
    dropped: set[int] = set()
    for node in (tree, *(node for _, node in named)):
        span = _docstring_lines(node)
        if span and len(node.body) > 1:
            dropped.update(range(span[0] - 1, span[1]))
    for start, stop in pairwise(starts):
        piece = "\n".join(lines[at].rstrip() for at in range(start, stop) if at not in dropped)
        if piece.strip():
            yield piece.strip("\n")


def _first_paragraph(text: str) -> tuple[str, str]:
    """The first paragraph on one line, and the rest."""
    first, *rest = re.split(r"\n\s*\n", text, maxsplit=1)
    return " ".join(first.split()), "".join(rest)


def _read_module(name: str, path: Path) -> _Module:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    named = list(_documented(tree.body))
    prose: list[str] = []
    functions: list[tuple[str, str]] = []
    for label, node in [("", tree), *named]:
        text = ast.get_docstring(node)
        if not text:
            continue
        if isinstance(node, (ast.Module, ast.ClassDef)) or any(part.startswith("_") for part in label.split(".")):
            prose.append(text)
        else:
            first, rest = _first_paragraph(text)
            functions.append((f"{name}.{label}", first))
            prose.append(rest)
    return _Module(tuple(prose), tuple(_code_pieces(source, tree, named)), tuple(functions))


@lru_cache(maxsize=1)
def _modules() -> tuple[_Module, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = {
        name: next((p for p in (root / f"{name}.py", root / name / "__init__.py") if p.is_file()), None)
        for name in MODULES
    }
    found = {name: path for name, path in paths.items() if path is not None}
    size = sum(path.stat().st_size for path in found.values())
    if size < SOURCE_BYTES:
        raise DataError(
            f"{root}: holds only {size} bytes of the standard library's source, at least {SOURCE_BYTES} are needed; "
            "use a Python with its source files, or name 'files' as sources in place of 'micro'"
        )
    return tuple(_read_module(name, path) for name, path in sorted(found.items()))


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python comes without 'pydoc_data', the text of the micro world; install the full standard library "
            "(on Debian and its kin: libpython3-stdlib), or name 'files' as sources in place of 'micro'"
        ) from error
    return topics


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n[ \t]*\n", text.strip("\n")) if part.strip()]


@lru_cache(maxsize=1)
def web_documents() -> tuple[str, ...]:
    """English: the language reference and docstrings, but what is in the chats.

    Returns:
        Documents of 80 to 1,500 characters, the same ones in the same order for one Python version.

    Raises:
        DataError: this Python lacks ``pydoc_data`` or the source of its standard library.
    """
    topics = _topics()
    texts = [topics[name] for name in sorted(topics)] + [text for module in _modules() for text in module.prose]
    return tuple(dict.fromkeys(document for text in texts for document in _documents(_paragraphs(text), "\n\n")))


@lru_cache(maxsize=1)
def code_documents() -> tuple[str, ...]:
    """Python: the source of ``MODULES`` without docstrings, cut where functions and classes begin.

    Returns:
        Documents of 80 to 1,500 characters, the same ones in the same order for one Python version.

    Raises:
        DataError: this Python lacks the source of its standard library.
    """
    return tuple(dict.fromkeys(document for module in _modules() for document in _documents(module.code, "\n\n")))


@lru_cache(maxsize=1)
def chat_documents() -> tuple[str, ...]:
    """Chats of one turn: a question about a public function, answered by the first paragraph of its docstring.

    Raises:
        DataError: this Python lacks the source of its standard library.
    """
    pairs = (pair for module in _modules() for pair in module.functions)
    return tuple(
        dict.fromkeys(f"User: What does {name} do?\nAssistant: {text}" for name, text in pairs if len(text) >= 20)
    )


@lru_cache(maxsize=1)
def text_hash() -> str:
    """BLAKE2b (128 bits, hexadecimal) of all text of the micro world: part of fingerprints of what is built from it."""
    digest = hashlib.blake2b(digest_size=16)
    for documents in (web_documents(), code_documents(), chat_documents()):
        for document in documents:
            digest.update(document.encode("utf-8"))
            digest.update(b"\0")
        digest.update(b"\1")
    return digest.hexdigest()
