"""Documents of a source: the micro world, files or the hub; and which of them are kept out of training."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prismlab.data.document import Document
from prismlab.data.rows import (
    TEXT_SUFFIXES,
    Row,
    encodable,
    file_rows,
    has_suffix,
    hub_rows,
    question_and_answer,
    read_lines,
)
from prismlab.data.templates import ThinkTemplate, get_template
from prismlab.errors import DataError
from prismlab.micro import text as micro_text
from prismlab.micro import world
from prismlab.seeds import derive_seed
from prismlab.study.world import MicroSpec

Files = Sequence[str | Path] | None

_MICRO_TEXT = {
    "web": micro_text.web_documents,
    "code-text": micro_text.code_documents,
    "chat": micro_text.chat_documents,
}


@dataclass
class Counts:
    """What was met while documents were read."""

    empty: int = 0
    """Documents with no text, which are skipped."""


def is_heldout(text: str, share: float) -> bool:
    """Whether a document is kept out of training: BLAKE2b of its text, as a fraction of 2**64, is below ``share``."""
    return _rank(text) < share * 2**64


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def _is_title(line: str) -> bool:
    """WikiText's first-level heading, `` = Title = ``; deeper ones have more equals signs."""
    inner = line.strip()
    return inner.startswith("= ") and inner.endswith(" =") and not inner.startswith("= =") and len(inner) > 4


def text_documents(path: Path) -> Iterator[str]:
    """Documents of a txt or txt.gz file.

    The rule, taken from the whole file: where there are blank lines, they part documents; else, where there are lines
    like `` = Title = `` (WikiText), each starts a document; else every line is a document.

    Raises:
        DataError: the file is missing, broken or not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    lines = [line for _, line in read_lines(path)]
    titles = [at for at, line in enumerate(lines) if _is_title(line)]
    if any(not line.strip() for line in lines):
        yield from _paragraphs(lines)
    elif titles:
        starts = sorted({0, *titles})
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            yield "\n".join(lines[start:stop])
    else:
        yield from lines


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for line in chain(lines, [""]):
        if line.strip():
            held.append(line)
        elif held:
            yield "\n".join(held)
            held = []


def _row_document(row: Row, fields: Mapping[str, Any], template: ThinkTemplate) -> str:
    if fields.get("messages") is not None:
        messages = row.field(fields["messages"])
        if not isinstance(messages, (list, tuple)) or not all(isinstance(one, Mapping) for one in messages):
            raise DataError(f"{row.where}: field {fields['messages']!r} must be a list of {{role, content}}")
        try:
            return template.chat(messages)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
    if fields.get("question") is not None:
        question, answer, _ = question_and_answer(row, fields)
        return template.direct(question, answer)
    return row.text(fields.get("text") or "text")


def _prompt(row: Row, fields: Mapping[str, Any], template: ThinkTemplate) -> int:
    """Characters of a document before its answer."""
    if fields.get("question") is None:
        raise DataError(
            f"{row.where}: 'loss: answer' needs the fields 'question' and 'answer', so that it is known where an "
            "answer begins"
        )
    return len(template.prompt(question_and_answer(row, fields)[0]))


def row_documents(
    name: str, spec_json: Mapping[str, Any], files: Files, template: str, counts: Counts | None = None
) -> Iterator[Document]:
    """Documents of files or of the hub as they come, none kept in memory; held-out ones are among them.

    Args: as of ``documents``.

    Raises:
        DataError: a file or row is missing or broken (with file and line), or there is no file.
        MissingExtra: a hub source without the package ``datasets``.
    """
    shape, counts = get_template(template), counts or Counts()
    fields, most = spec_json.get("fields") or {}, spec_json.get("max_documents")
    asked = spec_json.get("loss") == "answer"
    if spec_json.get("hub") is not None:
        sources: Iterator[Document | Row] = iter(hub_rows(spec_json["hub"]))
    elif files:
        sources = chain.from_iterable(map(_of_file, map(Path, files)))
    else:
        raise DataError(f"source {name!r}: no file was found; check the paths under 'files'")
    given = 0
    for found in sources:
        if most is not None and given >= most:
            return
        if isinstance(found, Row):
            text = encodable(found.where, _row_document(found, fields, shape))
            found = Document(text, _prompt(found, fields, shape) if asked else 0, found.where)
        if found.text.strip():
            given += 1
            yield found
        else:
            counts.empty += 1


def _of_file(path: Path) -> Iterator[Document | Row]:
    if has_suffix(path, TEXT_SUFFIXES):
        return (Document(text, where=path.name) for text in text_documents(path))
    return file_rows(path)


def _file_documents(files: Files, fields: Mapping[str, Any], template: ThinkTemplate) -> Iterator[str]:
    for path in map(Path, files or ()):
        if has_suffix(path, TEXT_SUFFIXES):
            yield from text_documents(path)
        else:
            yield from (encodable(row.where, _row_document(row, fields, template)) for row in file_rows(path))


def _task_documents(domain: str, form: str, seed: int, spec: MicroSpec, template: ThinkTemplate) -> Iterator[str]:
    """At most ``spec.documents`` distinct documents of the training split, generated as they are asked for."""
    if form == "facts":
        if domain != "science":
            raise DataError(f"micro source: the form 'facts' is for science, not for {domain!r}")
        return islice(world.fact_documents(seed, spec), spec.documents)
    asked = islice(world.questions(domain, "train", seed, spec), spec.documents)
    if form == "worked":
        return (template.worked(one.question, one.chain, one.answer) for one in asked)
    return (template.direct(one.question, one.answer) for one in asked)


def _micro_documents(micro: Mapping[str, Any], spec: MicroSpec, seed: int, template: ThinkTemplate) -> Iterator[str]:
    domain, form = micro["domain"], micro.get("form", "direct")
    if domain in _MICRO_TEXT:
        return iter(_shuffled(list(_MICRO_TEXT[domain]()), seed))
    return _task_documents(domain, form, seed, spec, template)


def _shuffled(documents: list[str], seed: int) -> list[str]:
    random.Random(seed).shuffle(documents)
    return documents


def _limited(documents: Iterable[str], most: int | None, counts: Counts) -> Iterator[str]:
    """Documents with text, at most ``most`` of them."""
    given = 0
    for document in documents:
        if most is not None and given >= most:
            return
        if document.strip():
            given += 1
            yield document
        else:
            counts.empty += 1


def documents(
    name: str,
    spec_json: Mapping[str, Any],
    micro_json: Mapping[str, Any],
    files: Files,
    template: str,
    seed: int,
    counts: Counts | None = None,
) -> Iterator[str]:
    """Every document of a source once, in an order that the seed decides; held-out ones are among them.

    Text and files are permuted as a whole (and so held in memory); generated tasks are drawn in random order; a hub
    data set is shuffled within a window of 10,000 rows as it streams. ``max_documents`` takes the first ones of files
    and of the hub before they are permuted, so that the choice does not depend on the seed.

    Args:
        name: name of the source, for messages and seeds.
        spec_json: JSON of its ``SourceSpec``.
        micro_json: JSON of the study's ``MicroSpec``.
        files: paths of a source from files.
        template: name of the study's template.
        seed: decides the order.
        counts: filled in while documents are read.

    Raises:
        DataError: a file or row is missing or broken (with file and line), or there is no file.
        MissingExtra: a hub source without the package ``datasets``.
    """
    shape, counts = get_template(template), counts or Counts()
    fields, most = spec_json.get("fields") or {}, spec_json.get("max_documents")
    seed = derive_seed(seed, "documents", name)
    if spec_json.get("micro") is not None:
        found = _micro_documents(spec_json["micro"], MicroSpec.model_validate(micro_json), seed, shape)
        return _limited(found, most, counts)
    if spec_json.get("hub") is not None:
        window = seed if most is None else None
        rows = (encodable(row.where, _row_document(row, fields, shape)) for row in hub_rows(spec_json["hub"], window))
        found = _limited(rows, most, counts)
        return found if most is None else iter(_shuffled(list(found), seed))
    if not files:
        raise DataError(f"source {name!r}: no file was found; check the paths under 'files'")
    return iter(_shuffled(list(_limited(_file_documents(files, fields, shape), most, counts)), seed))


HUB_SCAN = 50_000
"""At most this many rows of a hub source are looked through for held-out documents."""


def heldout_texts(
    name: str,
    source_json: Mapping[str, Any],
    micro_json: Mapping[str, Any],
    files: Files,
    template: str,
    share: float,
    n: int,
) -> list[str]:
    """Up to ``n`` distinct held-out documents: those with the smallest hashes, whatever the seed and the mixture.

    Of a hub source only the first ``HUB_SCAN`` documents are looked through.

    Raises:
        DataError: none is held out; the message says how many documents the source has.
    """
    found: dict[str, int] = {}
    total = 0
    if source_json.get("hub") is not None and source_json.get("max_documents") is None:
        source_json = {**source_json, "max_documents": HUB_SCAN}
    for document in documents(name, source_json, micro_json, files, template, seed=0):
        total += 1
        if is_heldout(document, share):
            found[document] = _rank(document)
    if not found:
        raise DataError(
            f"source {name!r}: none of its {total} documents is held out at a share of {share:g}; raise 'heldout' or "
            "give the source more, shorter documents"
        )
    return heapq.nsmallest(n, found, key=lambda text: (found[text], text))
