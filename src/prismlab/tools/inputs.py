"""Sets of texts that a command puts to models: lines, JSON lines, or text that every Python has."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prismlab.data.rows import ROW_SUFFIXES, TEXT_SUFFIXES, encodable, file_rows, has_suffix, read_lines
from prismlab.errors import DataError, SpecError, shown
from prismlab.seeds import derive_seed

LONGEST = 200_000
"""Characters that are kept of a text: far more than any number of tokens that is asked for, and a bound on memory."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The chosen texts of one set, and what was met on the way to them."""

    name: str
    origin: str
    """File, or where the text comes from."""
    texts: Sequence[str]
    """Distinct, in the order in which they stand there."""
    found: int
    """Distinct texts there were to choose from."""
    blank: int
    """Lines or rows without text, passed over."""
    repeated: int
    """Texts that stood there before, passed over."""


def _rank(seed: int, text: str) -> int:
    data = f"{seed}\0{text}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def choose(texts: Iterable[str], n: int, seed: int, name: str, origin: str) -> Texts:
    """``n`` distinct texts: those with the smallest hashes under ``seed``, so that a longer file keeps most of them.

    Memory holds ``n`` texts and a number for each distinct one.
    """
    kept: list[tuple[int, int, str]] = []
    met: set[int] = set()
    blank = total = 0
    for at, text in enumerate(texts):
        if not text.strip():
            blank += 1
            continue
        total += 1
        rank = _rank(seed, text)
        if rank in met:
            continue
        met.add(rank)
        # The heap's smallest is the kept text with the largest hash.
        entry = (-rank, at, text[:LONGEST])
        if len(kept) < n:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    chosen = [text for _, _, text in sorted(kept, key=lambda entry: entry[1])]
    return Texts(name=name, origin=origin, texts=chosen, found=len(met), blank=blank, repeated=total - len(met))


def file_texts(path: Path, field: str) -> Iterator[str]:
    """Texts of a file: every line of a ``.txt``, a field of every row of JSON lines or Parquet; ``.gz`` is unpacked.

    Raises:
        DataError: the file is missing or broken, a row lacks the field, or its ending says none of these.
    """
    if not path.is_file():
        raise DataError(f"{shown(path, 300)}: no such file")
    if has_suffix(path, TEXT_SUFFIXES):
        yield from (line for _, line in read_lines(path))
    elif has_suffix(path, ROW_SUFFIXES):
        yield from (encodable(row.where, row.text(field)) for row in file_rows(path))
    else:
        known = ", ".join((*TEXT_SUFFIXES, *ROW_SUFFIXES))
        raise DataError(f"{shown(path, 300)}: inputs are read from {known} files; rename or convert it")


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of files, all different."""
    names: list[str] = []
    for path in paths:
        bare = re.sub(r"\.(txt|jsonl|parquet)(\.gz|\.zst)?$", "", path.name.lower())
        stem = re.sub(r"[^\w.-]+", "_", bare)[:40] or "set"
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def default_sets(n: int, seed: int) -> list[Texts]:
    """English and Python from the standard library of the Python at hand: sets ``web`` and ``code``.

    Raises:
        DataError: this Python comes without its sources or its reference.
    """
    from prismlab.micro.text import code_documents, web_documents

    return [
        choose(web_documents(), n, seed, "web", "the language reference and docstrings of this Python"),
        choose(code_documents(), n, seed, "code", "source of this Python's standard library"),
    ]


def read_sets(paths: Sequence[Path], field: str, n: int, seed: int, fewest: int) -> list[Texts]:
    """The input sets of a command: one a file, or the shipped defaults where no file is named.

    Args:
        paths: files of texts.
        field: of rows.
        n: texts a set.
        seed: decides which.
        fewest: texts that a set must have.

    Raises:
        DataError: a file cannot be read, or has too few different texts.
        SpecError: a file is named twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise SpecError("--inputs: a file is named twice; each makes a set of its own")
    seed = derive_seed(seed, "inputs")
    sets = (
        [
            choose(file_texts(path, field), n, seed, name, str(path))
            for path, name in zip(paths, _names(paths), strict=True)
        ]
        if paths
        else default_sets(n, seed)
    )
    for one in sets:
        if len(one.texts) < fewest:
            raise DataError(
                f"{shown(one.origin, 300)}: {len(one.texts)} texts ({one.blank} blank, {one.repeated} repeated); "
                f"{fewest} or more are needed"
            )
    return sets
