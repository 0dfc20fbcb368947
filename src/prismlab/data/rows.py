"""Rows of data files (jsonl, parquet) and of hub data sets, and their fields; every bad row is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prismlab.data.lines import Bad, lines
from prismlab.errors import DataError, MissingExtra, shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PARQUET_BATCH = 1024


class BadRow(DataError):
    """A row that cannot be used.

    Args:
        where: file and line, or data set and row.
        reason: a few words that many rows share.
        detail: the message without ``where``.
    """

    def __init__(self, where: str, reason: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.where, self.reason, self.detail = where, reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel between processes by their arguments, and these are three.
        return BadRow, (self.where, self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, for messages and ids."""

    where: str
    """File name and line (from 1), or data set id and row."""
    values: Mapping[str, Any]

    def field(self, name: str) -> Any:
        """The value of a field; ``a.b.0`` goes into mappings and lists, and into text that holds JSON.

        Raises:
            BadRow: the row does not have it; the message names the fields that are there.
        """
        if name in self.values:
            return self.values[name]
        value: Any = self.values
        for part in name.split("."):
            value = _inner(value, part)
            if value is _MISSING:
                there = ", ".join(shown(key, 40) for key in self.values) or "none"
                raise BadRow(self.where, f"no field {name!r}", f"no field {name!r}; the fields are {there}")
        return value

    def text(self, name: str) -> str:
        """The value of a field that must be text, or a finite number to be shown as text.

        Raises:
            BadRow: it is missing or neither.
        """
        value = self.field(name)
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, float) and math.isfinite(value):
            return str(value)
        kind = "not a finite number" if isinstance(value, float) else _kind(value)
        raise BadRow(self.where, f"field {name!r} is {kind}", f"field {name!r} is {kind}, text is wanted")


_MISSING = object()


def _inner(value: Any, part: str) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _MISSING
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(part, _MISSING)
    if isinstance(value, (list, tuple)) and part.isascii() and part.isdigit() and int(part) < len(value):
        return value[int(part)]
    return _MISSING


def encodable(where: str, text: str) -> str:
    """``text``, which must be Unicode that UTF-8 can hold.

    Raises:
        BadRow: it holds half of a surrogate pair, as JSON escapes can.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"character {error.start + 1} is half a surrogate pair, no text; mend the row"
        raise BadRow(where, "half a surrogate pair", detail) from error
    return text


def without_nul(where: str, text: str) -> str:
    """``text``, which must not hold the character NUL.

    Raises:
        BadRow: it does.
    """
    if "\0" in text:
        detail = f"character {text.index(chr(0)) + 1} is NUL; binary data, or a broken export"
        raise BadRow(where, "a NUL character", detail)
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether the file name ends in one of ``suffixes``, in whichever case."""
    return path.name.lower().endswith(tuple(suffixes))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, without their ends.

    Raises:
        DataError: the file is missing, its compression is broken, or a line is too long or not UTF-8.
    """
    for found in lines(path):
        if isinstance(found, Bad):
            raise found.error()
        yield found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_no_key_twice)


def _json_row(file: str, number: int, line: str) -> Row | Bad:
    reason, detail = "not JSON", ""
    try:
        values = _DECODER.decode(line)
    except KeyError as error:
        key = shown(error.args[0], 40)
        reason, detail = "a key twice", f"the key {key!r} stands there twice; one of them would be lost"
    except (ValueError, RecursionError) as error:
        detail = f"not JSON ({error}); one object a line is wanted"
    else:
        if isinstance(values, dict):
            return Row(f"{file}:{number}", values)
        reason, detail = "not an object", f"{_kind(values)}, one JSON object a line is wanted"
    return Bad(file, number, reason, detail, shown(line, 80))


def _jsonl(path: Path) -> Iterator[Row | Bad]:
    for found in lines(path):
        if isinstance(found, Bad):
            yield found
        elif found[1].strip():
            yield _json_row(path.name, *found)


_NO_VALUE = (ValueError, OverflowError)
"""What Arrow raises for a stored value that Python cannot hold: a date beyond the year 9999, text that is not UTF-8."""


def _batch_rows(file: str, first: int, batch: Any) -> Iterator[Row | Bad]:
    """Rows of a batch of a Parquet file, the first of which is row ``first`` (from 1)."""
    try:
        for number, values in enumerate(batch.to_pylist(), first):
            yield Row(f"{file}:{number}", values)
        return
    except _NO_VALUE:
        pass  # Nothing was given out yet. One of the rows cannot be had, so each is taken by itself.
    for at in range(batch.num_rows):
        try:
            yield Row(f"{file}:{first + at}", batch.slice(at, 1).to_pylist()[0])
        except _NO_VALUE as error:
            yield Bad(file, first + at, "a value that cannot be read", f"a value cannot be read ({shown(error, 200)})")


def _parquet(path: Path) -> Iterator[Row | Bad]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if twice := [name for at, name in enumerate(names) if name in names[:at]]:
                raise DataError(
                    f"{path.name}: the column {shown(twice[0], 40)!r} stands there twice; one of them would be lost"
                )
            for batch in file.iter_batches(PARQUET_BATCH):
                yield from _batch_rows(path.name, number + 1, batch)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        after = f" after row {number}" if number else ""
        raise DataError(f"{path.name}: not a readable Parquet file{after}: {error}") from error


def rows_or_bad(path: Path) -> Iterator[Row | Bad]:
    """Rows of one file, and what is none.

    Raises:
        DataError: the suffix is none of ``ROW_SUFFIXES``, or the file is missing or broken.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if has_suffix(path, (".parquet",)):
        return _parquet(path)
    if has_suffix(path, ROW_SUFFIXES):
        return _jsonl(path)
    raise DataError(f"{path}: rows are read from {', '.join(ROW_SUFFIXES)} files")


def file_rows(path: Path) -> Iterator[Row]:
    """Rows of one file, each of which must be sound.

    Raises:
        DataError: as ``rows_or_bad``, or a line is no row; the message names file and line.
    """

    def sound(rows: Iterator[Row | Bad]) -> Iterator[Row]:
        for found in rows:
            if isinstance(found, Bad):
                raise found.error()
            yield found

    return sound(rows_or_bad(path))


def hub_rows(hub: Mapping[str, Any], shuffle_seed: int | None = None) -> Iterator[Row]:
    """Rows of a data set on the hub, streamed; with a seed, shuffled within a window of 10,000 rows.

    Raises:
        MissingExtra: the package ``datasets`` is not installed.
        DataError: the data set cannot be reached or does not exist.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtra("datasets", "hub", f"the data set {hub['id']}") from error
    number = 0
    folder = {"data_dir": hub["folder"]} if hub.get("folder") else {}
    try:
        stream = datasets.load_dataset(
            hub["id"], hub.get("config"), split=hub["split"], revision=hub["revision"], streaming=True, **folder
        )
        if shuffle_seed is not None:
            stream = stream.shuffle(seed=shuffle_seed, buffer_size=10_000)
        for number, values in enumerate(stream, 1):
            yield Row(f"{hub['id']}:{number}", values)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        at = f" after row {number}" if number else ""
        raise DataError(
            f"hub data set {hub['id']!r} (revision {hub['revision']}, split {hub['split']}) cannot be read{at}: "
            f"{error}; check the name and the network, or download it and name its 'files'"
        ) from error


def question_and_answer(row: Row, fields: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...] | None]:
    """The question as it is shown, its answer, and its choices.

    With choices (a field with a list of them, or the fields of one each), they stand as lettered lines under the
    question; an answer that is an integer is the index of the right one (from 0), a letter or the text of a choice is
    taken as such, and the answer becomes the letter. An answer that is both (``C`` of ``L, R, 1/C, C``) is a letter.

    Raises:
        BadRow: a field is missing or of the wrong kind, or the answer is not among the choices.
    """
    question = row.text(fields["question"]).strip()
    if fields.get("choices") is None:
        answer = row.text(fields["answer"]).strip()
        if not question or not answer:
            what = "answer" if question else "question"
            raise BadRow(row.where, f"no {what}", f"the {what} is empty")
        return question, answer, None
    names = fields["choices"]
    choices = row.field(names) if isinstance(names, str) else [row.text(name) for name in names]
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise BadRow(row.where, "choices", f"field {names!r} must be a list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadRow(row.where, "choices", f"{len(choices)} choices; 2 to {len(LETTERS)} are wanted")
    letter = _right_letter(row, row.field(fields["answer"]), choices)
    shown_choices = [f"{LETTERS[at]}. {choice.strip()}" for at, choice in enumerate(choices)]
    return "\n".join([question, *shown_choices]), letter, tuple(choices)


def _right_letter(row: Row, answer: Any, choices: Sequence[str]) -> str:
    reason = "no right choice"
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return LETTERS[answer]
        detail = f"the answer is index {answer} (from 0), there are {len(choices)} choices"
        raise BadRow(row.where, reason, detail)
    if isinstance(answer, str):
        # Sets that answer by letter are many, those whose choices are letters few: MMLU has two such questions.
        if len(answer.strip()) == 1 and answer.strip().upper() in LETTERS[: len(choices)]:
            return answer.strip().upper()
        if answer in choices:
            return LETTERS[list(choices).index(answer)]
    detail = f"answer {shown(repr(answer), 80)} is neither an index, a letter nor one of the {len(choices)} choices"
    raise BadRow(row.where, reason, detail)
