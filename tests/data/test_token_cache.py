"""Tokens of documents on disk, and pieces of them moved into rows: both ways of moving give the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prismlab.data.cache import TokenCache


def filled(folder: Path, texts: list[np.ndarray], dtype: Any) -> TokenCache:
    def encode(parts: Any) -> Any:
        at = 0
        for part in parts:
            held = texts[at : at + len(part)]
            lengths = np.array([len(one) for one in held], np.int64)
            yield SimpleNamespace(tokens=np.concatenate(held), lengths=lengths, prompts=np.zeros(len(held), np.int64))
            at += len(part)

    encoders: Any = SimpleNamespace(encoder=SimpleNamespace(dtype=np.dtype(dtype)), encode=encode)
    documents: Any = [SimpleNamespace(text="x") for _ in texts]
    cache = TokenCache(folder, encoders, lambda: documents, dict)
    cache.ensure(lambda: False)
    return cache


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_moved_where_they_belong_by_either_way(tmp_path: Path, seed: int, dtype: str) -> None:
    """Random segments of random documents, some neighbours on disk and in the rows, laid in random order with gaps."""
    drawn = np.random.default_rng(seed)
    texts = [drawn.integers(0, 60_000, drawn.integers(1, 50)).astype(dtype) for _ in range(300)]
    cache = filled(tmp_path, texts, dtype)
    assert len(list(tmp_path.glob("*.tok"))) > 3
    document = np.sort(drawn.integers(0, 300, [3, 40, 900, 900][seed]))
    lengths = np.array([len(one) for one in texts])[document]
    offset = drawn.integers(0, lengths)
    length = drawn.integers(1, lengths - offset + 1)
    at = drawn.permutation(len(document))
    place = np.empty_like(length)
    place[at] = np.cumsum(length[at] + drawn.integers(0, 2, len(at))) - length[at]
    wanted = np.full(int((place + length).max()), 7, dtype)
    for one, begin, count, where in zip(document, offset, length, place, strict=True):
        wanted[where : where + count] = texts[one][begin : begin + count]
    for compiled in (False, True):
        out = np.full_like(wanted, 7)
        cache.gather(document, offset, length, place, out, compiled)
        assert np.array_equal(out, wanted)
    cache.close()
