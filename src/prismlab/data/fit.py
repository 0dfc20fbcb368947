"""Best-fit decreasing, compiled: which documents share a row, and how their tokens get there.

Imported only where documents are packed so.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def _longest_first(lengths: Any, capacity: int) -> Any:  # pragma: no cover - runs compiled
    """Items [n] by falling length, equal ones in their order: a counting sort."""
    ends = np.zeros(capacity + 2, np.int64)
    for length in lengths:
        ends[capacity - length + 1] += 1
    for at in range(1, capacity + 2):
        ends[at] += ends[at - 1]
    ordered = np.empty(len(lengths), np.int64)
    for item in range(len(lengths)):
        place = capacity - lengths[item]
        ordered[ends[place]] = item
        ends[place] += 1
    return ordered


@numba.njit(cache=True, nogil=True)
def _least_room(marked: Any, leaves: int, length: int) -> int:  # pragma: no cover - runs compiled
    """The smallest marked leaf that is not below ``length``, or -1. Node ``k`` has the children 2 k and 2 k + 1."""
    node = leaves + length
    while not marked[node]:
        while node & 1:
            node >>= 1
            if node == 0:
                return -1
        node += 1
    while node < leaves:
        node *= 2
        if not marked[node]:
            node += 1
    return node - leaves


@numba.njit(cache=True, nogil=True)
def _mark(marked: Any, node: int) -> None:  # pragma: no cover - runs compiled
    while node and not marked[node]:
        marked[node] = 1
        node >>= 1


@numba.njit(cache=True, nogil=True)
def _unmark(marked: Any, node: int) -> None:  # pragma: no cover - runs compiled
    marked[node] = 0
    node >>= 1
    while node and not (marked[2 * node] or marked[2 * node + 1]):
        marked[node] = 0
        node >>= 1


@numba.njit(cache=True, nogil=True)
def _assign(lengths: Any, capacity: int) -> Any:  # pragma: no cover - runs compiled
    """The row of each item [n], and how many rows there are.

    The leaves of a tree are amounts of free room, marked where a row has so much; the rows of a leaf form a stack.
    """
    leaves = 1
    while leaves < capacity + 1:
        leaves *= 2
    marked = np.zeros(2 * leaves, np.uint8)
    top = np.full(capacity + 1, -1, np.int64)
    below = np.empty(len(lengths), np.int64)
    row_of = np.empty(len(lengths), np.int64)
    rows = 0
    for item in _longest_first(lengths, capacity):
        length = lengths[item]
        room = _least_room(marked, leaves, length)
        if room < 0:
            row = rows
            rows += 1
            room = capacity
        else:
            row = top[room]
            top[room] = below[row]
            if top[room] < 0:
                _unmark(marked, leaves + room)
        row_of[item] = row
        left = room - length
        if left:
            below[row] = top[left]
            top[left] = row
            _mark(marked, leaves + left)
    return row_of, rows


@numba.njit(cache=True, nogil=True)
def _grouped(row_of: Any, rows: int) -> Any:  # pragma: no cover - runs compiled
    ends = np.zeros(rows + 1, np.int64)
    for row in row_of:
        ends[row + 1] += 1
    for row in range(rows):
        ends[row + 1] += ends[row]
    items = np.empty(len(row_of), np.int64)
    at = ends[:rows].copy()
    for item in range(len(row_of)):
        items[at[row_of[item]]] = item
        at[row_of[item]] += 1
    return ends, items


def best_fit(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by best-fit decreasing.

    Items are taken by falling length, equal ones in their order. Each goes to the row with the least free room that
    holds it; of rows with equally much, to the one that an item was last put in; with no such row, to a new one.

    Args:
        lengths: of the items [n], each from 1 to ``capacity``.
        capacity: of a row.

    Returns:
        ``starts`` [rows + 1] and ``items`` [n]: row r holds ``items[starts[r]:starts[r + 1]]``, in rising order.

    Raises:
        ValueError: a length is out of range.
    """
    lengths = np.ascontiguousarray(lengths, np.int64)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise ValueError(f"lengths {lengths.min()} to {lengths.max()}, each must be 1 to {capacity}")
    return _grouped(*_assign(lengths, capacity))


@numba.njit(cache=True, nogil=True)
def copy_pieces(source: Any, pieces: Any, out: Any) -> None:  # pragma: no cover - runs compiled
    """Copy pieces of ``source`` into ``out``, both flat and of one type.

    Args:
        source: [m].
        pieces: first place in ``source``, first and last (exclusive) place in ``out`` of each, int64 [3, n]; within
            bounds, which is not looked at.
        out: [k].
    """
    for piece in range(pieces.shape[1]):
        target = out[pieces[1, piece] : pieces[2, piece]]
        # From 0 on, in both: the compiler then copies many at a time.
        given = source[pieces[0, piece] : pieces[0, piece] + len(target)]
        for at in range(len(target)):
            target[at] = given[at]
