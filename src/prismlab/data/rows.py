"""Rows of data files (jsonl, jsonl.gz, parquet) and of hub data sets, and their fields; every bad row is named."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from prismlab.errors import DataError, MissingExtra

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEXT_SUFFIXES = (".txt", ".txt.gz")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
PARQUET_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, for messages and ids."""

    where: str
    """File name and line (from 1), or data set id and row."""
    values: Mapping[str, Any]

    def field(self, name: str) -> Any:
        """The value of a field.

        Raises:
            DataError: the row does not have it; the message names the fields that are there.
        """
        if name not in self.values:
            raise DataError(f"{self.where}: no field {name!r}; the fields are {', '.join(self.values) or 'none'}")
        return self.values[name]

    def text(self, name: str) -> str:
        """The value of a field that must be text, or a number to be shown as text.

        Raises:
            DataError: it is missing or neither.
        """
        value = self.field(name)
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        raise DataError(f"{self.where}: field {name!r} is {_kind(value)}, text is wanted")


def encodable(where: str, text: str) -> str:
    """``text``, which must be Unicode that UTF-8 can hold.

    Raises:
        DataError: it holds half of a surrogate pair, as JSON escapes can.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} is half a surrogate pair, no text; mend the row"
        ) from error
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether the file name ends in one of ``suffixes``, in whichever case."""
    return path.name.lower().endswith(tuple(suffixes))


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content, decompressed where its name ends in ``.gz``.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return cast(IO[bytes], gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, without their ends.

    Raises:
        DataError: the file is missing, is not UTF-8, or its compression is broken.
    """
    number = 0
    with open_bytes(path) as file:
        try:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, line.rstrip("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name}:{number}: not UTF-8 ({error.reason}); convert the file") from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path.name}: broken after line {number}: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name}:{number}: not JSON ({error}); one object a line is wanted") from error
        if not isinstance(values, dict):
            raise DataError(f"{path.name}:{number}: {_kind(values)}, one JSON object a line is wanted")
        yield Row(f"{path.name}:{number}", values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}:{number}", values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: not a readable Parquet file: {error}") from error


def file_rows(path: Path) -> Iterator[Row]:
    """Rows of one file.

    Raises:
        DataError: the suffix is none of ``ROW_SUFFIXES``, or the file is missing or broken.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if has_suffix(path, (".jsonl", ".jsonl.gz")):
        return _jsonl_rows(path)
    if has_suffix(path, (".parquet",)):
        return _parquet_rows(path)
    raise DataError(f"{path}: rows are read from {', '.join(ROW_SUFFIXES)} files")


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
    try:
        stream = datasets.load_dataset(
            hub["id"], hub.get("config"), split=hub["split"], revision=hub["revision"], streaming=True
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

    With choices, they stand as lettered lines under the question; an answer that is an integer is the index of the
    right one (from 0), a letter or the text of a choice is taken as such, and the answer becomes the letter.

    Raises:
        DataError: a field is missing or of the wrong kind, or the answer is not among the choices.
    """
    question = row.text(fields["question"]).strip()
    if fields.get("choices") is None:
        answer = row.text(fields["answer"]).strip()
        if not question or not answer:
            raise DataError(f"{row.where}: the {'answer' if question else 'question'} is empty")
        return question, answer, None
    choices = row.field(fields["choices"])
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{row.where}: field {fields['choices']!r} must be a list of texts")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{row.where}: {len(choices)} choices; 2 to {len(LETTERS)} are wanted")
    letter = _right_letter(row, row.field(fields["answer"]), choices)
    lines = [f"{LETTERS[at]}. {choice.strip()}" for at, choice in enumerate(choices)]
    return "\n".join([question, *lines]), letter, tuple(choices)


def _right_letter(row: Row, answer: Any, choices: Sequence[str]) -> str:
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return LETTERS[answer]
        raise DataError(f"{row.where}: the answer is index {answer} (from 0), there are {len(choices)} choices")
    if isinstance(answer, str):
        if answer in choices:
            return LETTERS[list(choices).index(answer)]
        if len(answer.strip()) == 1 and answer.strip().upper() in LETTERS[: len(choices)]:
            return answer.strip().upper()
    raise DataError(
        f"{row.where}: answer {answer!r} is neither an index, a letter nor one of the {len(choices)} choices"
    )
