"""Blocks of datatrove pipelines: rows are read, filtered, made documents, drawn and written; what is lost is logged.

Everything that a block leaves on disk is written aside and renamed at the end, so that a task that was stopped is done
anew as a whole; datatrove's completion markers tell which tasks are done.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from datatrove.data import Document as Passed
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from prismlab.data.document import Document
from prismlab.data.files import whole
from prismlab.data.filters import conditions, length_filter, row_filter
from prismlab.data.lines import Bad
from prismlab.data.recipes import document_maker
from prismlab.data.rows import BadRow, Row, without_nul
from prismlab.data.sources import Counts, entries, micro_documents
from prismlab.data.templates import get_template
from prismlab.errors import DataError, shown

EXAMPLES = 20
"""Examples kept of each reason, the first ones of the source."""
EXCERPT = 500
"""Characters shown of an example."""
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def save_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft:
        draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


class Drops:
    """Counts what a block drops, by reason, and keeps the first examples: the ``exclusion_writer`` of filters.

    Args:
        folder: of the whole work.
        phase: which block, for the file's name.
        reason: for blocks that give none.
        note: more about an example, kept with it.
    """

    def __init__(
        self, folder: Path, phase: str, reason: str = "", note: Callable[[Passed], dict[str, Any]] | None = None
    ) -> None:
        self._folder, self._phase, self._reason, self._note = folder, phase, reason, note
        self._counts: Counter[str] = Counter()
        self._examples: list[dict[str, Any]] = []
        self._rank = 0

    def __enter__(self) -> Drops:
        return self

    def __exit__(self, *failed: object) -> None:
        # A reader that was told to stop early is closed, which is no failure.
        if failed[0] in (None, GeneratorExit):
            found = {"counts": dict(self._counts), "examples": self._examples}
            save_json(self._folder / "dropped" / f"{self._phase}-{self._rank:05d}.json", found)

    def at(self, rank: int) -> None:
        """The task that this copy works for; told at its start, since it may drop nothing."""
        self._rank = rank

    def write(self, document: Passed, rank: int = 0, **_: object) -> None:
        reason = str(document.metadata.get("filter_reason") or self._reason)
        self._rank = rank
        self._counts[reason] += 1
        if self._counts[reason] > EXAMPLES:
            return
        row: Row | None = document.metadata.get("row")
        text = document.text or ("" if row is None else _values(row))
        self._examples.append(
            {
                "reason": reason,
                "where": document.metadata.get("where", ""),
                "id": document.id,
                "excerpt": text[:EXCERPT].encode("utf-8", "backslashreplace").decode(),
                "detail": "",
                "phase": self._phase,
                "rank": rank,
                **(self._note(document) if self._note else {}),
            }
        )


def _values(row: Row) -> str:
    try:
        return json.dumps(row.values, ensure_ascii=False, default=str)
    except RecursionError:
        return "nested too deeply to be shown"


class ReadRows(PipelineStep):
    """What a part of a source holds, row by row; each task reads one part.

    Args:
        spec: JSON of the ``SourceSpec``.
        parts: files of each task, ``[[path, BLAKE2b or ""], ...]``; one empty part for the hub and the micro world.
        micro: ``(name, JSON of MicroSpec, template, seed)`` of a source of the micro world.
        drops: of the blocks that follow.
    """

    type, name = "Reader", "Prism source"

    def __init__(
        self,
        spec: Mapping[str, Any],
        parts: Sequence[Sequence[Sequence[str]]],
        micro: tuple[str, Mapping[str, Any], str, int] | None,
        drops: Sequence[Drops],
    ) -> None:
        super().__init__()
        self.spec, self.parts, self.micro, self.drops = spec, parts, micro, drops

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        for one in self.drops:
            one.at(rank)
        if self.micro is not None:
            name, micro, template, seed = self.micro
            for at, text in enumerate(micro_documents(name, self.spec, micro, template, seed, Counts()), 1):
                where = f"{name}:{at}"
                yield Passed(text, where, metadata={"where": where, "prompt": 0})
            return
        files = [Path(file) for file, _ in self.parts[rank]]
        for file, digest in self.parts[rank]:
            _unchanged(Path(file), digest)
        for found in entries(self.spec, [str(file) for file in files]):
            if isinstance(found, Bad):
                yield Passed("", "", metadata={"bad": found})
            elif isinstance(found, Row):
                yield Passed("", found.where, metadata={"row": found, "where": found.where})
            else:
                yield Passed(found.text, found.id or found.where, metadata={"where": found.where, "prompt": 0})


def _unchanged(path: Path, digest: str) -> None:
    if not digest:
        return
    found = hashlib.blake2b(digest_size=len(digest) // 2)
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(4 * 2**20):
                found.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found.hexdigest() != digest:
        raise DataError(f"{path.name}: the file has changed since the study was planned; run the same command again")


class RecipeFilter(BaseFilter):
    """Rows that the conditions of a source keep; the others are dropped with the condition's reason."""

    name = "Prism recipe"

    def __init__(self, spec: Mapping[str, Any], drops: Drops) -> None:
        super().__init__(cast(Any, drops))
        self.conditions = conditions(spec)

    def filter(self, doc: Passed) -> bool | tuple[bool, str]:
        row = doc.metadata.get("row")
        if row is None or not self.conditions:
            return True
        try:
            reason = row_filter(self.conditions)(row)
        except BadRow as error:
            doc.metadata["bad"] = bad_row(error, row)
            return True
        return True if reason is None else (False, reason)


def bad_row(error: BadRow, row: Row) -> Bad:
    """A row that is none, with the beginning of what it holds."""
    file, _, line = row.where.rpartition(":")
    excerpt = shown(_values(row)[:200], 80)
    return Bad(file, int(line) if line.isdigit() else 0, error.reason, error.detail, excerpt)


class LengthFilter(BaseFilter):
    """Documents within the source's bounds of length."""

    name = "Prism length"

    def __init__(self, spec: Mapping[str, Any], drops: Drops) -> None:
        super().__init__(cast(Any, drops))
        self.spec = spec

    def filter(self, doc: Passed) -> bool | tuple[bool, str]:
        reason = length_filter(self.spec)(doc.text)
        return True if reason is None else (False, reason)


def settled(where: str, document: Document, counts: Counter[str]) -> Document:
    """The document with one way to write a line break.

    A byte order mark at its beginning goes, CR LF and CR become LF; both are counted. A NUL character makes the row a
    broken one. Marks that change the direction of writing stay, since scripts need them, and are counted, since they
    can hide what code does. Anything else is as it was.

    Raises:
        BadRow: it holds U+0000.
    """
    text = without_nul(where, document.text)
    if not _BIDI.isdisjoint(text):
        counts["bidi_documents"] += 1
    if not text.startswith("\ufeff") and "\r" not in text:
        return document

    def one_way(part: str) -> str:
        return part.replace("\r\n", "\n").replace("\r", "\n")

    counts["settled_documents"] += 1
    head, tail = text[: document.prompt].removeprefix("\ufeff"), text[document.prompt :]
    if not document.prompt:
        tail = tail.removeprefix("\ufeff")
    head = one_way(head)
    return Document(head + one_way(tail), len(head), document.where, document.id)


class First(PipelineStep):
    """Counts documents; once there are ``most``, ``MakeDocuments`` reads no more (None: never)."""

    type, name = "Sampler", "Prism first"

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most, self.reached = most, False

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        for at, passed in enumerate(data, 1):
            self.reached = at == self.most
            yield passed


class MakeDocuments(PipelineStep):
    """Rows to documents; broken rows are set aside with file, line and reason in ``bad/``, and counted.

    Args:
        spec: JSON of the ``SourceSpec``.
        template: name of the study's template.
        folder: of the whole work.
        first: tells when enough were made.
    """

    type, name = "Formatter", "Prism documents"

    def __init__(self, spec: Mapping[str, Any], template: str, folder: Path, first: First) -> None:
        super().__init__()
        self.spec, self.template, self.folder, self.first = spec, template, folder, first

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        make = document_maker(self.spec, get_template(self.template))
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        (self.folder / "bad").mkdir(parents=True, exist_ok=True)
        with (
            whole(self.folder / "bad" / f"{rank:05d}.jsonl") as draft,
            draft.open("w", encoding="utf-8") as bad_rows,
        ):
            for passed in data:
                counts["rows"] += 1
                found = self._one(passed, make, counts)
                if isinstance(found, Bad):
                    reasons[found.reason] += 1
                    line = {name: getattr(found, name) for name in ("file", "line", "reason", "detail", "excerpt")}
                    bad_rows.write(json.dumps(line) + "\n")
                    self._not_all(counts["rows"], reasons, found)
                elif not found.text.strip():
                    counts["empty"] += 1
                else:
                    where = {"where": found.where, "prompt": found.prompt}
                    yield Passed(found.text, found.id or found.where, metadata=where)
                    if self.first.reached:
                        data.close()
                        break
        save_json(self.folder / "read" / f"{rank:05d}.json", {"counts": counts, "bad": reasons})

    def _one(self, passed: Passed, make: Callable[[Row], Document], counts: Counter[str]) -> Document | Bad:
        metadata = passed.metadata
        if "bad" in metadata:
            return metadata["bad"]
        row: Row = metadata.get("row") or Row(metadata["where"], {"text": passed.text})
        try:
            made = make(row) if "row" in metadata else Document(passed.text, 0, row.where, passed.id)
            return settled(row.where, made, counts)
        except BadRow as error:
            return bad_row(error, row)

    def _not_all(self, rows: int, reasons: Counter[str], last: Bad) -> None:
        if rows >= 1000 and reasons.total() > rows / 2:
            raise DataError(
                f"{reasons.total()} of the first {rows} rows are broken, the last at {last.file}:{last.line}: "
                f"{last.detail}; is this the right file, and are its 'fields' named rightly?"
            )
