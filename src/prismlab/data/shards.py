"""Writing a corpus: rows in training order, a shard at a time, each shard whole or not there.

``rows-00000.npz``, written last, says that a shard is complete; it stays behind when the shards move to the corpus.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.data.files import CHUNK, hash_array, hash_file, save_arrays, whole
from prismlab.data.packing import Ints
from prismlab.errors import DataError

SCHEMA = 2
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SHARD_BYTES = 64 * 2**20
"""Bytes of tokens a shard, about."""
CONTINUES = np.uint32(1 << 31)
"""Set in a document's place in its row where the document began in an earlier row."""


def token_dtype(vocab: int) -> np.dtype[Any]:
    """The narrowest type of the format that holds every token id below ``vocab``."""
    return DTYPES["uint16" if vocab < 2**16 else "uint32"]


def shard_rows(seq_len: int, dtype: np.dtype[Any]) -> int:
    """Rows a shard; all but the last have as many."""
    return max(1, SHARD_BYTES // (seq_len * dtype.itemsize))


@dataclass(frozen=True)
class Marks:
    """What is known of rows besides their tokens."""

    fill: NDArray[np.integer[Any]]
    """Tokens of each row, padding apart [rows]."""
    counts: NDArray[np.integer[Any]]
    """Documents of each row [rows]."""
    starts: NDArray[np.uint32]
    """Where in its row each of them begins, row after row; ``CONTINUES`` marks what began in an earlier row."""
    learned: NDArray[np.bool_] | None = None
    """Whether a loss is taken on each token [rows, seq_len]; None where it is on all but padding."""


def plain(rows: int, seq_len: int) -> Marks:
    """Full rows of which nothing else is known: each counts as one document."""
    return Marks(np.full(rows, seq_len), np.ones(rows, np.int64), np.zeros(rows, np.uint32))


def interleaved(parts: Mapping[int, tuple[Ints, Marks]], rows: int, seq_len: int, masked: bool) -> Marks:
    """The marks of a shard out of those of its sources.

    Args:
        parts: per source the places of its rows in the shard, and their marks.
        rows: of the shard; the parts' rows are all of them.
        seq_len: tokens a row.
        masked: say of each token whether it is learned, since a source of the corpus leaves some out.
    """
    fill, counts = np.empty(rows, np.int64), np.empty(rows, np.int64)
    learned = np.empty((rows, seq_len), np.bool_) if masked else None
    for at, marks in parts.values():
        fill[at], counts[at] = marks.fill, marks.counts
        if learned is not None:
            learned[at] = np.arange(seq_len) < marks.fill[:, None] if marks.learned is None else marks.learned
    ends = np.cumsum(counts)
    starts = np.empty(int(ends[-1]), np.uint32)
    for at, marks in parts.values():
        own = np.cumsum(marks.counts)
        shift = np.repeat((ends - counts)[at] - (own - marks.counts), marks.counts)
        starts[shift + np.arange(len(marks.starts))] = marks.starts
    return Marks(fill, counts, starts, learned)


def _paths(folder: Path, number: int, masked: bool) -> dict[str, Path]:
    kinds = ("tokens", "starts", "mask") if masked else ("tokens", "starts")
    return {kind: folder / f"{kind}-{number:05d}.bin" for kind in kinds}


def write_shard(folder: Path, number: int, tokens: NDArray[Any], marks: Marks, vocab: int) -> None:
    """Write one shard of a corpus.

    Args:
        folder: where the shards lie.
        number: of the shard, from 0.
        tokens: [rows, seq_len]; behind each row's ``fill`` there is padding.
        marks: of its rows.
        vocab: number of token ids.

    Raises:
        DataError: a token id is not below ``vocab``.
    """
    if tokens.size and int(tokens.max()) >= vocab:
        raise DataError(f"token id {int(tokens.max())}, the vocabulary has {vocab}")
    data = {"tokens": tokens.astype(token_dtype(vocab), copy=False), "starts": marks.starts.astype("<u4")}
    if marks.learned is not None:
        data["mask"] = np.packbits(marks.learned, axis=1)
    for kind, path in _paths(folder, number, marks.learned is not None).items():
        with whole(path) as draft:
            data[kind].tofile(draft)
    hashes = {f"hash_{kind}": hash_array(values) for kind, values in data.items()}
    save_arrays(folder / f"rows-{number:05d}.npz", fill=marks.fill, counts=marks.counts, **hashes)


def shard_done(folder: Path, number: int) -> bool:
    """Whether an earlier build left this shard complete; one whose files have moved on already is not."""
    try:
        with np.load(folder / f"rows-{number:05d}.npz", allow_pickle=False) as index:
            return all(path.is_file() for path in _paths(folder, number, "hash_mask" in index.files).values())
    except (OSError, ValueError, EOFError):
        return False


def finish(
    folder: Path,
    out: Path,
    *,
    row_source: NDArray[np.integer[Any]],
    sources: Sequence[Mapping[str, Any]],
    seq_len: int,
    vocab: int,
    tokenizer_hash: str,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Move complete shards to ``out`` and write what makes them a corpus, the manifest last.

    Args:
        folder: where the shards lie.
        out: an existing folder.
        row_source: source of each row.
        sources: per source at least ``name`` and ``domain``.
        seq_len: tokens a row.
        vocab: number of token ids.
        tokenizer_hash: of the tokenizer that made the tokens.
        more: further keys of the manifest.

    Returns:
        The manifest.

    Raises:
        DataError: a shard is not what was written.
    """
    each = shard_rows(seq_len, token_dtype(vocab))
    moved = _Moved(folder, out)
    for number in range(-(-len(row_source) // each)):
        moved.shard(number)
    tokens = moved.index(row_source)
    manifest = {
        "schema": SCHEMA,
        "rows": len(row_source),
        "seq_len": seq_len,
        "tokens": tokens,
        "padding": len(row_source) * seq_len - tokens,
        "vocab": vocab,
        "dtype": token_dtype(vocab).name,
        "tokenizer": tokenizer_hash,
        "shard_rows": each,
        "masked": moved.masked,
        "stream": moved.stream.hexdigest(),
        **more,
        "sources": [dict(source) for source in sources],
        "files": moved.files,
    }
    with whole(out / "manifest.json") as draft:
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


class _Moved:
    """Shards on their way to their corpus, each compared with its hash.

    Args:
        folder: where they lie.
        out: the corpus.
    """

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder, self._out = folder, out
        self._fill, self._counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        self.stream = hashlib.blake2b(digest_size=16)
        self.files: dict[str, dict[str, Any]] = {}
        self.masked = False

    def shard(self, number: int) -> None:
        """Move one shard; they must come in order.

        Raises:
            DataError: it is not what was written.
        """
        with np.load(self._folder / f"rows-{number:05d}.npz", allow_pickle=False) as index:
            self._fill.append(index["fill"])
            self._counts.append(index["counts"])
            hashes = {name.removeprefix("hash_"): str(index[name]) for name in index.files if name.startswith("hash_")}
        self.masked |= "mask" in hashes
        for kind, path in _paths(self._folder, number, "mask" in hashes).items():
            _check_and_feed(path, hashes[kind], self.stream if kind == "tokens" else None)
            self.files[path.name] = {"bytes": path.stat().st_size, "blake2b": hashes[kind]}
            shutil.move(path, self._out / path.name)

    def index(self, row_source: NDArray[np.integer[Any]]) -> int:
        """Write what is known of all rows; tokens of the corpus, padding apart."""
        fill = np.concatenate(self._fill)
        arrays = {
            "row_source.npy": row_source.astype("<u2"),
            "row_fill.npy": fill.astype("<u4"),
            "row_starts.npy": np.append(0, np.cumsum(np.concatenate(self._counts))).astype("<i8"),
        }
        for name, values in arrays.items():
            np.save(self._out / name, values, allow_pickle=False)
            path = self._out / name
            self.files[name] = {"bytes": path.stat().st_size, "blake2b": hash_file(path)}
        return int(fill.sum())


def _check_and_feed(path: Path, known: str, stream: Any) -> None:
    """Compare a file with its hash, and feed it to the hash of the token stream on the way."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            if stream is not None:
                stream.update(piece)
    if digest.hexdigest() != known:
        raise DataError(f"{path}: not what was written (hash differs); delete its folder and build again")


def write_corpus(
    path: Path,
    *,
    row_source: NDArray[np.integer[Any]],
    blocks: Iterable[tuple[int, Iterable[NDArray[Any]]]],
    sources: Sequence[Mapping[str, Any]],
    seq_len: int,
    vocab: int,
    tokenizer_hash: str,
) -> dict[str, Any]:
    """Write rows made elsewhere, held in memory, as a corpus.

    Args:
        path: an existing folder.
        row_source: source of each row [n_rows].
        blocks: per source its index and its rows in order, as blocks [k, seq_len].
        sources: per source at least ``name`` and ``domain``.
        seq_len: tokens a row.
        vocab: number of token ids.
        tokenizer_hash: of the tokenizer that made the tokens.

    Returns:
        The manifest.

    Raises:
        DataError: a source gave more or fewer rows than the schedule has, or a token id is not below ``vocab``.
    """
    rows = {source: np.concatenate([np.zeros((0, seq_len), np.int64), *given]) for source, given in blocks}
    for source, description in enumerate(sources):
        wanted, got = int((row_source == source).sum()), len(rows.get(source, ()))
        if wanted != got:
            raise DataError(f"source {description['name']!r}: {got} rows, its schedule has {wanted}")
    tokens = np.empty((len(row_source), seq_len), np.int64)
    for source, given in rows.items():
        tokens[row_source == source] = given
    each = shard_rows(seq_len, token_dtype(vocab))
    for number, first in enumerate(range(0, len(row_source), each)):
        part = tokens[first : first + each]
        write_shard(path, number, part, plain(len(part), seq_len), vocab)
    manifest = finish(
        path,
        path,
        row_source=row_source,
        sources=sources,
        seq_len=seq_len,
        vocab=vocab,
        tokenizer_hash=tokenizer_hash,
        more={},
    )
    for marker in path.glob("rows-*.npz"):
        marker.unlink()
    return manifest
