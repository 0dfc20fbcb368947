"""A corpus on disk: rows of tokens in the order in which they are trained on.

``tokens.bin``      tokens [n_rows, seq_len], uint16 or uint32, little endian, row after row
``row_source.npy``  uint16 [n_rows], index into the manifest's ``sources``
``manifest.json``   counts, sources with domain, weight, share and epochs, tokenizer hash, hash of the token stream
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import DataError

SCHEMA = 1
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def token_dtype(vocab: int) -> np.dtype[Any]:
    """The narrowest type of the format that holds every token id below ``vocab``."""
    return DTYPES["uint16" if vocab < 2**16 else "uint32"]


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
    _tokens: NDArray[np.unsignedinteger[Any]]

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open the corpus in a folder.

        Raises:
            DataError: it is no corpus, its manifest is broken, or its files have other sizes than it states.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            n_rows, seq_len, dtype = int(manifest["rows"]), int(manifest["seq_len"]), DTYPES[manifest["dtype"]]
            sources = [str(source["name"]) for source in manifest["sources"]]
            domains = [str(source["domain"]) for source in manifest["sources"]]
            vocab, tokenizer = int(manifest["vocab"]), str(manifest["tokenizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path / 'manifest.json'}: broken at {error}; build the corpus again") from error
        file = path / "tokens.bin"
        size, wanted = file.stat().st_size if file.is_file() else 0, n_rows * seq_len * dtype.itemsize
        if size != wanted:
            raise DataError(f"{file}: {size} bytes, its manifest states {wanted}; build the corpus again")
        return cls(
            path=path,
            manifest=manifest,
            n_rows=n_rows,
            seq_len=seq_len,
            vocab=vocab,
            tokenizer_hash=tokenizer,
            sources=sources,
            domains=domains,
            row_source=_read_row_source(path, n_rows, len(sources)),
            _tokens=np.memmap(file, dtype=dtype, mode="r", shape=(n_rows, seq_len)),
        )

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise DataError(f"{self.path}: rows {start} to {stop} were asked for, the corpus has {self.n_rows}")

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows ``start`` to ``stop`` (exclusive) in training order, int64 [stop - start, seq_len].

        Raises:
            DataError: the corpus has no such rows.
        """
        self._check(start, stop)
        return self._tokens[start:stop].astype(np.int64)

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
        """BLAKE2b (128 bits) of the tokens as they are on disk now; equals the manifest's unless they were changed."""
        return _stream_hash(self._tokens)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: no manifest.json, so not a corpus") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); build the corpus again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise DataError(f"{file}: not a manifest of schema {SCHEMA}; build the corpus again")
    return manifest


def _read_row_source(path: Path, n_rows: int, n_sources: int) -> NDArray[np.uint16]:
    file = path / "row_source.npy"
    try:
        row_source = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: cannot be read ({error}); build the corpus again") from error
    if row_source.shape != (n_rows,) or row_source.dtype != np.uint16 or (n_rows and row_source.max() >= n_sources):
        raise DataError(
            f"{file}: does not fit the manifest's {n_rows} rows of {n_sources} sources; build the corpus again"
        )
    return row_source


def _stream_hash(tokens: NDArray[Any], block: int = 4096) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(tokens), block):
        digest.update(np.ascontiguousarray(tokens[start : start + block]).data)
    return digest.hexdigest()


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
    """Write a corpus to ``path``.

    Args:
        path: an existing folder.
        row_source: source of each row [n_rows].
        blocks: per source its index and its rows in order, as blocks [k, seq_len].
        sources: per source at least ``name`` and ``domain``; written after all blocks were taken, so that counts can be
            filled in meanwhile.
        seq_len: tokens a row.
        vocab: number of token ids.
        tokenizer_hash: of the tokenizer that made the tokens.

    Returns:
        The manifest.

    Raises:
        DataError: a source gave more or fewer rows than the schedule has, or a token id is not below ``vocab``.
    """
    dtype, n_rows = token_dtype(vocab), len(row_source)
    tokens: Any = np.memmap(path / "tokens.bin", dtype=dtype, mode="w+", shape=(n_rows, seq_len))
    filled = 0
    for source, rows in blocks:
        filled += _fill(tokens, np.flatnonzero(row_source == source), rows, str(sources[source]["name"]), vocab)
    if filled != n_rows:
        raise DataError(f"{n_rows} rows are scheduled, {filled} were filled")
    tokens.flush()
    np.save(path / "row_source.npy", row_source.astype(np.uint16), allow_pickle=False)
    manifest = {
        "schema": SCHEMA,
        "rows": n_rows,
        "seq_len": seq_len,
        "tokens": n_rows * seq_len,
        "vocab": vocab,
        "dtype": f"uint{dtype.itemsize * 8}",
        "tokenizer": tokenizer_hash,
        "stream": _stream_hash(tokens),
        "sources": [dict(source) for source in sources],
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _fill(tokens: Any, places: NDArray[Any], rows: Iterable[NDArray[Any]], name: str, vocab: int) -> int:
    done = 0
    for block in rows:
        if block.size and int(block.max()) >= vocab:
            raise DataError(f"source {name!r}: token id {int(block.max())}, the vocabulary has {vocab}")
        if done + len(block) > len(places):
            raise DataError(f"source {name!r}: more rows than the {len(places)} of its schedule")
        tokens[places[done : done + len(block)]] = block
        done += len(block)
    if done != len(places):
        raise DataError(f"source {name!r}: {done} rows, its schedule has {len(places)}")
    return done
