"""The compiled passes of ``kernels``. Imported only where numba is installed and the work is large enough for it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

BLOCK = 2048
"""Elements held as float64 at a time: two such arrays fit a first-level cache."""


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def divergence(old: Any, new: Any, thresholds: Any) -> Any:  # pragma: no cover - runs compiled
    """(sums [3], counts [t + 3]) of ``kernels.divergence``: difference, old, new squared; changed, equal, zeros, woken.

    Only the order of sums may be changed by the compiler ("reassoc"): NaN and infinity keep their meaning.
    """
    levels = len(thresholds)
    counts = np.zeros(levels + 3, np.int64)
    sums = np.zeros(3)
    distance = np.empty(BLOCK)
    size = np.empty(BLOCK)
    for begin in range(0, len(old), BLOCK):
        n = min(BLOCK, len(old) - begin)
        difference2 = old2 = new2 = 0.0
        equal = zeros = woken = 0
        for i in range(n):
            x = np.float64(old[begin + i])
            y = np.float64(new[begin + i])
            d = y - x
            difference2 += d * d
            old2 += x * x
            new2 += y * y
            distance[i] = abs(d)
            size[i] = abs(x)
            equal += x == y
            zeros += x == 0.0
            woken += (x == 0.0) & (y != 0.0)
        sums[0] += difference2
        sums[1] += old2
        sums[2] += new2
        counts[levels] += equal
        counts[levels + 1] += zeros
        counts[levels + 2] += woken
        for k in range(levels):
            t = thresholds[k]
            changed = 0
            for i in range(n):
                changed += distance[i] > t * size[i]
            counts[k] += changed
    return sums, counts


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def products(base: Any, a: Any, b: Any) -> Any:  # pragma: no cover - runs compiled
    """(dot, a2, b2, base2) of ``kernels.products``."""
    sums = np.zeros(4)
    for begin in range(0, len(base), BLOCK):
        dot = a2 = b2 = base2 = 0.0
        for i in range(begin, min(begin + BLOCK, len(base))):
            x = np.float64(base[i])
            u = np.float64(a[i]) - x
            v = np.float64(b[i]) - x
            dot += u * v
            a2 += u * u
            b2 += v * v
            base2 += x * x
        sums[0] += dot
        sums[1] += a2
        sums[2] += b2
        sums[3] += base2
    return sums
