"""Compiled passes for every type of element, in float64; imported only where numba is installed and work is large."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

BLOCK = 1024
"""Elements held as float64 at a time: a few such arrays fit a first-level cache."""
_ANY_ORDER = {"reassoc", "contract"}
"""Only the order of sums may be changed by the compiler: NaN and infinity keep their meaning."""


@numba.njit(cache=True, nogil=True, fastmath=_ANY_ORDER, error_model="numpy")
def divergence(old: Any, new: Any, thresholds: Any) -> Any:  # pragma: no cover - runs compiled
    """Sums [2] of the difference and old squared; counts [t + 3]: changed, old zeros, woken zeros, sign flips.

    Args:
        old: [n] float32 or float64.
        new: [n].
        thresholds: [t] float64.
    """
    levels = len(thresholds)
    counts = np.zeros(levels + 3, np.int64)
    sums = np.zeros(2)
    distance, size = np.empty(BLOCK), np.empty(BLOCK)
    for begin in range(0, len(old), BLOCK):
        xs, ys = old[begin : begin + BLOCK], new[begin : begin + BLOCK]
        difference2 = old2 = 0.0
        zeros = woken = flips = 0
        for i in range(len(xs)):
            x, y = np.float64(xs[i]), np.float64(ys[i])
            d = y - x
            difference2 += d * d
            old2 += x * x
            distance[i] = abs(d)
            size[i] = abs(x)
            zeros += x == 0.0
            woken += (x == 0.0) & (y != 0.0)
            flips += ((x < 0.0) & (y > 0.0)) | ((x > 0.0) & (y < 0.0))
        sums[0] += difference2
        sums[1] += old2
        counts[levels] += zeros
        counts[levels + 1] += woken
        counts[levels + 2] += flips
        for k in range(levels):
            t = thresholds[k]
            changed = 0
            for i in range(len(xs)):
                changed += distance[i] > t * size[i]
            counts[k] += changed
    return sums, counts


@numba.njit(cache=True, nogil=True, error_model="numpy")
def steps(old: Any, new: Any, sign: Any) -> Any:  # pragma: no cover - runs compiled
    """Counts [5] of the distance 0, 1, 2, 3 to 4 and more in representable numbers.

    Args:
        old: [n], the bits as unsigned integers of the format's width.
        new: [n].
        sign: the sign bit, of that type.
    """
    counts = np.zeros(5, np.int64)
    for i in range(len(old)):
        x, y = old[i], new[i]
        size_x, size_y = x & ~sign, y & ~sign
        # Both magnitudes are below half of the type's range, so their sum fits.
        apart = size_x + size_y if (x ^ y) & sign else max(size_x, size_y) - min(size_x, size_y)
        if apart <= 2:
            counts[apart] += 1
        elif apart <= 4:
            counts[3] += 1
        else:
            counts[4] += 1
    return counts


@numba.njit(cache=True, nogil=True, fastmath=_ANY_ORDER, error_model="numpy")
def products(base: Any, other: Any) -> Any:  # pragma: no cover - runs compiled
    """Sums [k + 1, k + 1] of products of the updates other - base and, last, of base itself.

    Args:
        base: [n] float32 or float64.
        other: [k, n], a row a checkpoint.
    """
    k = len(other)
    sums = np.zeros((k + 1, k + 1))
    held = np.empty((k + 1, BLOCK))
    for begin in range(0, len(base), BLOCK):
        n = min(BLOCK, len(base) - begin)
        for i in range(n):
            held[k, i] = np.float64(base[begin + i])
        for a in range(k):
            row = other[a, begin : begin + n]
            for i in range(n):
                held[a, i] = np.float64(row[i]) - held[k, i]
        for a in range(k + 1):
            for b in range(a + 1):
                total = 0.0
                left, right = held[a], held[b]
                for i in range(n):
                    total += left[i] * right[i]
                sums[a, b] += total
    return sums


@numba.njit(cache=True, nogil=True, error_model="numpy")
def overlap(start: Any, before: Any, now: Any, threshold: Any) -> Any:  # pragma: no cover - runs compiled
    """(both, either) of the elements of ``before`` and ``now`` beyond ``threshold``, then of those that moved at all.

    What is not finite at the start or on a side is in no set of that side.
    """
    both = either = both_moved = either_moved = 0
    for i in range(len(start)):
        x, y, z = np.float64(start[i]), np.float64(before[i]), np.float64(now[i])
        far_y, far_z = abs(y - x) > threshold * abs(x), abs(z - x) > threshold * abs(x)
        sound_y, sound_z = np.isfinite(x) & np.isfinite(y), np.isfinite(x) & np.isfinite(z)
        far_y, far_z = far_y & sound_y, far_z & sound_z
        moved_y, moved_z = (y != x) & sound_y, (z != x) & sound_z
        both += far_y & far_z
        either += far_y | far_z
        both_moved += moved_y & moved_z
        either_moved += moved_y | moved_z
    return both, either, both_moved, either_moved
