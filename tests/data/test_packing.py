from __future__ import annotations

import builtins
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.data.packing import Layout, best_fit_rows, chunks, cut_at_row_ends, joined
from prismlab.errors import MissingExtra

LENGTHS = st.lists(st.integers(1, 70), max_size=60)


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as it is told in words: the reference."""
    rows: list[list[int]] = []
    free: list[int] = []
    touched: list[int] = []
    for clock, item in enumerate(sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))):
        fits = [row for row in range(len(rows)) if free[row] >= lengths[item]]
        if fits:
            row = min(fits, key=lambda at: (free[at], -touched[at]))
        else:
            row = len(rows)
            rows.append([])
            free.append(capacity)
            touched.append(0)
        rows[row].append(item)
        free[row] -= lengths[item]
        touched[row] = clock
    return [sorted(row) for row in rows]


def spelt(layout: Layout) -> list[list[tuple[int, int, int]]]:
    """Rows as lists of (document, offset, length)."""
    whole = list(zip(layout.document.tolist(), layout.offset.tolist(), layout.length.tolist(), strict=True))
    return [whole[a:b] for a, b in zip(layout.starts[:-1].tolist(), layout.starts[1:].tolist(), strict=True)]


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 64))
@settings(max_examples=200, deadline=None)
def test_best_fit_equals_the_slow_reference(lengths: list[int], capacity: int) -> None:
    from prismlab.data.fit import best_fit

    starts, items = best_fit(np.array(lengths, np.int64), capacity)
    found = [items[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert found == slow_best_fit(lengths, capacity)
    assert all(sum(lengths[item] for item in row) <= capacity for row in found)


def test_best_fit_at_the_size_of_a_window_equals_the_reference() -> None:
    from prismlab.data.fit import best_fit

    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1.2, 3000).astype(np.int64), 1, 2048)
    starts, items = best_fit(lengths, 2048)
    found = [items[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert found == slow_best_fit(lengths.tolist(), 2048)
    assert lengths.sum() / ((len(starts) - 1) * 2048) > 0.99


def test_lengths_out_of_range_are_refused() -> None:
    from prismlab.data.fit import best_fit

    for lengths in ([0, 3], [9]):
        with pytest.raises(ValueError, match="each must be 1 to 8"):
            best_fit(np.array(lengths), 8)


@given(LENGTHS, st.integers(8, 32), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_rows_of_whole_documents_lose_and_double_nothing(lengths: list[int], seq_len: int, overlap: int) -> None:
    layout = best_fit_rows(np.array(lengths, np.int64), seq_len, overlap)
    assert (layout.fill() <= seq_len).all()
    met: dict[tuple[int, int], int] = {}
    for row in spelt(layout):
        assert sum(length for _, _, length in row) <= seq_len
        for document, offset, length in row:
            for at in range(offset, offset + length):
                met[document, at] = met.get((document, at), 0) + 1
    assert set(met) == {(document, at) for document, length in enumerate(lengths) for at in range(length)}
    chunk_count = [1 if n <= seq_len else -(-(n - overlap) // (seq_len - overlap)) for n in lengths]
    assert sum(met.values()) == sum(lengths) + overlap * sum(count - 1 for count in chunk_count)
    assert max(met.values(), default=1) <= (1 if overlap == 0 else 2 + overlap // (seq_len - overlap))


def test_chunks_of_known_documents() -> None:
    document, offset, length = chunks(np.array([10, 25, 26]), 10, 2)
    assert document.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert offset.tolist() == [0, 0, 8, 16, 0, 8, 16]
    assert length.tolist() == [10, 10, 10, 9, 10, 10, 10]
    assert chunks(np.array([20]), 10, 0)[2].tolist() == [10, 10]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 16))
@settings(max_examples=150, deadline=None)
def test_concatenation_is_cut_at_row_ends(lengths: list[int], seq_len: int) -> None:
    flat = [(document, at) for document, length in enumerate(lengths) for at in range(length)]
    rows = len(flat) // seq_len
    keep = np.array(lengths, np.int64)
    over = len(flat) - rows * seq_len
    offset = np.zeros(len(lengths), np.int64)
    # The rest behind the last row is cut off first, as a source does.
    while over:
        cut = min(over, int(keep[-1]))
        keep[-1] -= cut
        over -= cut
        if not keep[-1]:
            keep, offset = keep[:-1], offset[:-1]
    layout = cut_at_row_ends(np.arange(len(keep)), offset, keep, seq_len)
    found = [[(d, at) for d, o, n in row for at in range(o, o + n)] for row in spelt(layout)]
    assert found == [flat[row * seq_len : (row + 1) * seq_len] for row in range(rows)]
    assert layout.places(seq_len).tolist() == [
        row * seq_len + sum(n for _, _, n in segments[:at])
        for row, segments in enumerate(spelt(layout))
        for at in range(len(segments))
    ]


def test_rows_are_taken_and_joined() -> None:
    layout = best_fit_rows(np.array([5, 4, 3, 3, 6], np.int64), 8)
    rows = spelt(layout)
    assert spelt(layout.take(np.array([2, 0]))) == [rows[2], rows[0]]
    assert spelt(layout.take(np.zeros(0, np.int64))) == []
    assert spelt(joined([layout.take(np.array([1])), layout.take(np.array([0, 2]))])) == [rows[1], rows[0], rows[2]]


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "prismlab.data.fit":
            raise ImportError("No module named 'numba'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"'numba'.*prismlab\[kernels\]"):
        best_fit_rows(np.array([3]), 8)
