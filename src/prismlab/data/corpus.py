"""A corpus on disk: rows of tokens in the order in which they are trained on.

``tokens-00000.bin``  tokens [rows, seq_len], uint16 or uint32, little endian; every shard but the last has as many rows
``starts-00000.bin``  uint32: where in its row each document begins; the top bit marks one that began in an earlier row
``mask-00000.bin``    bits [rows, ceil(seq_len / 8)]: whether a loss is taken on each token; only where it is not on all
``row_source.npy``    uint16 [n_rows], index into the manifest's ``sources``
``row_fill.npy``      uint32 [n_rows], tokens of the row; what is behind them is padding
``row_starts.npy``    int64 [n_rows + 1], first of each row's entries in ``starts``, counted over all shards
``manifest.json``     counts, sources with domain, weight, share and epochs, tokenizer hash, size and hash of every
                      file, hash of the token stream
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.data.files import hash_file
from prismlab.data.shards import CONTINUES, DTYPES, SCHEMA, token_dtype, write_corpus
from prismlab.errors import DataError, shown

__all__ = ["Corpus", "rank_rows", "token_dtype", "write_corpus"]
MAX_MANIFEST = 64 * 2**20
"""Longest manifest in bytes; of a corpus of 100,000 shards it is a third of that."""
MAPPED = 64
"""Shard files mapped at a time."""


def rank_rows(step: int, rows: int, rank: int, ranks: int) -> range:
    """The rows of a corpus that one of ``ranks`` processes trains on in a step (from 0) of ``rows`` rows.

    The ranks' rows in their order are the step's rows, the steps' rows in their order are the corpus.

    Raises:
        ValueError: ``rows`` is no multiple of ``ranks``.
    """
    if rows % ranks:
        raise ValueError(f"{rows} rows a step cannot be split over {ranks} processes: choose a multiple")
    share = rows // ranks
    first = step * rows + rank * share
    return range(first, first + share)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus opened for reading; its tokens are mapped from disk, not loaded."""

    path: Path
    manifest: Mapping[str, Any]
    n_rows: int
    seq_len: int
    vocab: int
    tokenizer_hash: str
    sources: list[str]
    """Names, in the order of the indices in ``row_source``."""
    domains: list[str]
    """Domain of each source."""
    row_source: NDArray[np.uint16]
    """Source of each row [n_rows]."""
    row_fill: NDArray[np.uint32]
    """Tokens of each row, padding apart [n_rows]."""
    masked: bool
    """Whether there is a place without a loss: a masked token, or padding."""
    _row_starts: NDArray[np.int64]
    _dtype: np.dtype[Any]
    _shard_rows: int
    _maps: OrderedDict[str, NDArray[Any]] = field(default_factory=OrderedDict[str, NDArray[Any]])

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open the corpus in a folder. Sizes are checked at once, hashes by ``verify``.

        Raises:
            DataError: it is no corpus, its manifest is broken, or its files have other sizes than it states.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            _check_manifest(manifest)
            n_rows, seq_len, dtype = manifest["rows"], manifest["seq_len"], DTYPES[manifest["dtype"]]
            sources = [source["name"] for source in manifest["sources"]]
            domains = [source["domain"] for source in manifest["sources"]]
            shard_rows, masked = manifest["shard_rows"], bool(manifest["masked"] or manifest["padding"])
            sizes = {name: known["bytes"] for name, known in manifest["files"].items()}
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise DataError(f"{path / 'manifest.json'}: broken at {error}; build the corpus again") from error
        for name, wanted in sizes.items():
            size = (path / name).stat().st_size if (path / name).is_file() else 0
            if size != wanted:
                raise DataError(f"{path / name}: {size} bytes, its manifest states {wanted}; build the corpus again")
        row_source = _array(path, "row_source.npy", n_rows, np.uint16)
        if n_rows and int(row_source.max()) >= len(sources):
            raise DataError(f"{path / 'row_source.npy'}: does not fit the manifest's {len(sources)} sources")
        row_fill, row_starts = (_array(path, *one) for one in _indices(n_rows))
        _check_sums(path, manifest, row_fill, row_starts)
        return cls(
            path=path,
            manifest=manifest,
            n_rows=n_rows,
            seq_len=seq_len,
            vocab=manifest["vocab"],
            tokenizer_hash=manifest["tokenizer"],
            sources=sources,
            domains=domains,
            row_source=row_source,
            row_fill=row_fill,
            masked=masked,
            _row_starts=row_starts,
            _dtype=dtype,
            _shard_rows=shard_rows,
        )

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise DataError(f"{self.path}: rows {start} to {stop} were asked for, the corpus has {self.n_rows}")

    def _shard(self, kind: str, number: int) -> NDArray[Any]:
        """A shard's file, mapped: ``tokens`` and ``mask`` as rows, ``starts`` flat."""
        name = f"{kind}-{number:05d}.bin"
        if name not in self._maps:
            if len(self._maps) >= MAPPED:
                self._maps.popitem(last=False)
            dtype, width = {
                "tokens": (self._dtype, self.seq_len),
                "mask": (np.dtype(np.uint8), -(-self.seq_len // 8)),
                "starts": (np.dtype("<u4"), 0),
            }[kind]
            mapped = np.memmap(self.path / name, dtype=dtype, mode="r")
            self._maps[name] = mapped.reshape(-1, width) if width else mapped
        self._maps.move_to_end(name)
        return self._maps[name]

    def _rows(self, kind: str, start: int, stop: int) -> NDArray[Any]:
        each, found = self._shard_rows, list[NDArray[Any]]()
        for number in range(start // each, -(-stop // each)):
            low, high = max(start - number * each, 0), min(stop - number * each, each)
            found.append(self._shard(kind, number)[low:high])
        return np.concatenate(found)

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows ``start`` to ``stop`` (exclusive) in training order, int64 [stop - start, seq_len].

        Raises:
            DataError: the corpus has no such rows.
        """
        self._check(start, stop)
        if start == stop:
            return np.zeros((0, self.seq_len), np.int64)
        return self._rows("tokens", start, stop).astype(np.int64)

    def loss_mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether a loss is taken on each token of rows ``start`` to ``stop``, bool [stop - start, seq_len].

        False on padding and, in sources with ``loss: answer``, on prompts.

        Raises:
            DataError: the corpus has no such rows.
        """
        self._check(start, stop)
        if start < stop and self.manifest["masked"]:
            return np.unpackbits(self._rows("mask", start, stop), axis=1, count=self.seq_len).astype(np.bool_)
        return np.arange(self.seq_len) < self.row_fill[start:stop, None]

    def _starts(self, row: int) -> NDArray[np.uint32]:
        self._check(row, row + 1)
        number = row // self._shard_rows
        before = self._row_starts[number * self._shard_rows]
        low, high = self._row_starts[row] - before, self._row_starts[row + 1] - before
        return self._shard("starts", number)[low:high]

    def boundaries(self, row: int) -> NDArray[np.int64]:
        """Where in a row each of its documents begins, int64 [documents]; the first is 0. A document ends where the
        next one begins, the last at ``row_fill[row]``.

        Raises:
            DataError: the corpus has no such row.
        """
        return (self._starts(row) & ~CONTINUES).astype(np.int64)

    def continues(self, row: int) -> NDArray[np.bool_]:
        """Whether each of a row's documents began in an earlier row, as ``boundaries``."""
        return (self._starts(row) & CONTINUES).astype(np.bool_)

    def row_domain(self, row: int) -> str:
        """Domain of a row."""
        return self.row_domains(row, row + 1)[0]

    def row_domains(self, start: int, stop: int) -> list[str]:
        """Domain of each of the rows ``start`` to ``stop`` (exclusive).

        Raises:
            DataError: the corpus has no such rows.
        """
        self._check(start, stop)
        return [self.domains[source] for source in self.row_source[start:stop].tolist()]

    def stream_hash(self) -> str:
        """BLAKE2b (128 bits) of the tokens as they are on disk now, row after row, whatever the shards."""
        digest = hashlib.blake2b(digest_size=16)
        for number in range(-(-self.n_rows // self._shard_rows)):
            digest.update(np.ascontiguousarray(self._shard("tokens", number)).data)
        return digest.hexdigest()

    def verify(self) -> None:
        """Compare every file with the hash in the manifest, and the manifest with what the files hold.

        Raises:
            DataError: a file is not what was written; the message names the first.
        """
        for name, known in self.manifest["files"].items():
            if hash_file(self.path / name) != known["blake2b"]:
                raise DataError(f"{self.path / name}: not what was written (hash differs); build the corpus again")
        shards = range(-(-self.n_rows // self._shard_rows))
        largest = max((int(self._shard("tokens", number).max()) for number in shards), default=0)
        if self.stream_hash() != self.manifest["stream"] or largest >= self.vocab:
            raise DataError(
                f"{self.path / 'manifest.json'}: not what was written ('stream' or 'vocab' does not fit the tokens); "
                "build the corpus again"
            )


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise where a manifest cannot be one that was written here; a flipped bit may leave it sound JSON.

    Raises:
        ValueError: naming a key that does not hold what it should.
        KeyError: a key is missing, or the files are not those of the format.
    """

    def wanted(key: str, right: bool) -> None:
        if not right:
            raise ValueError(f"{key!r} ({shown(json.dumps(manifest[key]), 60)})")

    def count(key: str, least: int) -> int:
        value = manifest[key]
        wanted(key, isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53)
        return value

    rows, seq_len, vocab = count("rows", 0), count("seq_len", 1), count("vocab", 1)
    each, tokens, padding = count("shard_rows", 1), count("tokens", 0), count("padding", 0)
    wanted("tokens", tokens + padding == rows * seq_len)
    wanted("dtype", DTYPES[manifest["dtype"]] == token_dtype(vocab))
    wanted("masked", isinstance(manifest["masked"], bool))
    for key in ("tokenizer", "stream"):
        wanted(key, isinstance(manifest[key], str))
    wanted("sources", all(_is_source(one) for one in manifest["sources"]))
    if "pad" in manifest:
        wanted("pad", 0 <= count("pad", 0) < vocab)
    if "packing" in manifest:
        wanted("packing", isinstance(manifest["packing"], dict) and isinstance(manifest["packing"]["method"], str))
    files = {name: known["bytes"] for name, known in manifest["files"].items()}
    # Of a number of rows that lies, not even the names of its shards are written out.
    wanted("rows", -(-rows // each) <= len(files))
    _check_names(set(files), rows, each, manifest["masked"])
    width = {"tokens": seq_len * token_dtype(vocab).itemsize, "mask": -(-seq_len // 8)}
    for name, size in files.items():
        kind, _, number = name.removesuffix(".bin").partition("-")
        if kind in width and size != width[kind] * min(each, rows - int(number) * each):
            raise ValueError(f"{name!r} ({size} bytes)")


def _is_source(source: Any) -> bool:
    weight = source.get("weight", 1.0)
    named = isinstance(source["name"], str) and isinstance(source["domain"], str)
    return named and isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < 1e300


def _indices(n_rows: int) -> tuple[tuple[str, int, Any], ...]:
    return ("row_fill.npy", n_rows, np.uint32), ("row_starts.npy", n_rows + 1, np.int64)


def _check_sums(path: Path, manifest: Mapping[str, Any], fill: NDArray[Any], starts: NDArray[Any]) -> None:
    """Refuse rows that hold more than fits, or not the tokens and documents that the manifest and the shards have."""
    tokens, most = int(fill.sum(dtype=np.int64)), int(fill.max(initial=0))
    if tokens != manifest["tokens"] or most > manifest["seq_len"]:
        raise DataError(
            f"{path / 'row_fill.npy'}: {tokens} tokens, at most {most} a row, where the manifest has "
            f"{manifest['tokens']} in rows of {manifest['seq_len']}; build the corpus again"
        )
    listed = sum(known["bytes"] for name, known in manifest["files"].items() if name.startswith("starts-"))
    if int(starts[0]) != 0 or 4 * int(starts[-1]) != listed:
        raise DataError(f"{path / 'row_starts.npy'}: does not fit the documents of the shards; build the corpus again")


def _check_names(names: set[str], n_rows: int, shard_rows: int, masked: bool) -> None:
    """Raise KeyError where files are listed that the format does not have, or others are not."""
    kinds = ("tokens", "starts", "mask") if masked else ("tokens", "starts")
    wanted = {f"{kind}-{number:05d}.bin" for number in range(-(-n_rows // shard_rows)) for kind in kinds}
    wanted |= {"row_source.npy", "row_fill.npy", "row_starts.npy"}
    if names != wanted:
        raise KeyError(", ".join(shown(name, 40) for name in sorted(names ^ wanted)[:3]))


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: no manifest.json, so not a corpus")
    if file.stat().st_size > MAX_MANIFEST:
        raise DataError(f"{file}: {file.stat().st_size:,} bytes are too long for a manifest; build the corpus again")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}); build the corpus again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise DataError(f"{file}: not a manifest of schema {SCHEMA}; build the corpus again")
    return manifest


def _array(path: Path, name: str, length: int, dtype: Any) -> NDArray[Any]:
    """One of the corpus's index arrays, mapped."""
    try:
        values = np.load(path / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path / name}: cannot be read ({error}); build the corpus again") from error
    if values.shape != (length,) or values.dtype != dtype:
        raise DataError(f"{path / name}: does not fit the manifest's rows; build the corpus again")
    return values
