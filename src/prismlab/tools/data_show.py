"""``prism data show``: rows of a corpus as text, document by document."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismlab.data.corpus import Corpus
from prismlab.data.inspect import Piece, pieces
from prismlab.errors import DataError, SpecError, shown
from prismlab.model.tokens import tokenizer_hash
from prismlab.report.figures import DOMAIN_COLOURS, colour
from prismlab.tools.data_build import tokenizer_named

MOST_ROWS = 100
"""Rows shown at a time."""


def row_range(text: str, rows: int) -> range:
    """``A:B``, ``A:`` or ``A`` as rows of a corpus that has so many.

    Raises:
        SpecError: it is none of them, or no row is in it.
    """
    match = re.fullmatch(r"(\d{1,12})(:(\d{1,12})?)?", text)
    if match is None:
        raise SpecError(f"--rows {shown(text, 40)!r}: A:B is wanted, from row A up to but not with row B, from 0")
    first = int(match[1])
    stop = first + 1 if match[2] is None else int(match[3]) if match[3] else first + MOST_ROWS
    if not first < min(stop, rows):
        raise SpecError(f"--rows {text}: no row is in it; the corpus has rows 0 to {rows - 1}")
    return range(first, min(stop, rows, first + MOST_ROWS))


def harmless(text: str) -> str:
    """Text whose control characters, but line ends and tabs, are written out: a document must not steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def known_tokenizer(corpus: Corpus, asked: str | None) -> Any:
    """The tokenizer of a corpus: the one that is named, or the one that the corpus was built with.

    Raises:
        SpecError: none is named and none is known.
        DataError: it is not the one that made the tokens.
        CheckpointError: it cannot be loaded.
    """
    name = asked or _noted(corpus.path)
    if name is None:
        raise SpecError(f"{corpus.path}: which tokenizer made it is not noted; name its folder with --tokenizer")
    tokenizer = tokenizer_named(name)
    if tokenizer_hash(tokenizer) != corpus.tokenizer_hash:
        raise DataError(f"{corpus.path}: built with another tokenizer than {shown(name)}; name that one")
    return tokenizer


def _noted(path: Path) -> str | None:
    """What ``prism data build`` noted, or the base of the run that the corpus is an artifact of."""
    for file in (path / "build.json", path / "record.json"):
        if file.is_file():
            try:
                noted = json.loads(file.read_text(encoding="utf-8"))
                if file.name == "build.json":
                    return str(noted["tokenizer"])
                base = noted["inputs"]["tokenizer"]
                return str(path.resolve().parent / f"{base['kind']}-{base['fingerprint']}" / "model")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}: broken at {error}") from error
    return None


def show(path: Path, *, rows: str, tokenizer: str | None, characters: int) -> None:
    """Print rows; coloured by domain on a terminal, plain text elsewhere.

    Args:
        path: the corpus.
        rows: as of ``row_range``.
        tokenizer: name of one, None for that which the corpus notes.
        characters: of each document; 0 for all.

    Raises:
        DataError: it is no corpus, or built with another tokenizer.
        SpecError: ``rows`` is none of its rows.
    """
    from rich.text import Text

    from prismlab.tools.show import console_on

    corpus = Corpus.open(path)
    chosen, known = row_range(rows, corpus.n_rows), known_tokenizer(corpus, tokenizer)
    console = console_on(sys.stdout)
    for row in chosen:
        domain, source = corpus.row_domain(row), corpus.sources[corpus.row_source[row]]
        tint = colour(domain, DOMAIN_COLOURS)
        found = list(pieces(corpus, row))
        head = f"row {row}  {shown(domain, 40)}  {shown(source, 60)}  {_inside(corpus, row, found)}"
        console.print(Text(head, style=f"bold {tint}"))
        for number, piece in enumerate(found):
            console.print(Text(_head(number, piece), style="dim"))
            # The text itself is never markup, and takes its colour from every second document.
            console.print(Text(_body(known, piece, characters), style=tint if number % 2 == 0 else ""), soft_wrap=True)
        console.print()


def _inside(corpus: Corpus, row: int, found: Sequence[Piece]) -> str:
    fill = int(corpus.row_fill[row])
    padding = f", {corpus.seq_len - fill} of padding" if fill < corpus.seq_len else ""
    return f"{len(found)} document{'' if len(found) == 1 else 's'}, {fill} tokens{padding}"


def _head(number: int, piece: Piece) -> str:
    length = len(piece.tokens)
    learned = "" if piece.learned == length else f", loss on {piece.learned}"
    return f"── {number + 1}: tokens {piece.start} to {piece.start + length - 1}{learned}" + (
        ", goes on from an earlier row" if piece.continues else ""
    )


def _body(tokenizer: Any, piece: Piece, characters: int) -> str:
    text = str(tokenizer.decode(piece.tokens.tolist(), skip_special_tokens=False))
    cut = len(text) - characters if characters and len(text) > characters else 0
    return harmless(text[:characters] if cut else text) + (f" … ({cut:,} more characters)" if cut else "")
