"""The compiled pass of a merge as Python calls it: machine code that does without numba once it is made."""

from __future__ import annotations

from typing import Any

import numpy as np

from prismlab.arith.machine import POINTER, WHOLE, Entry, load

BLOCK = 2048
"""Elements held as float64 at a time: 16 KB, half of a first-level cache."""
KINDS = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}
BLEND = Entry(
    "prismlab.merge.compiled",
    "compiled_blend",
    ("prismlab.merge.compiled", "prismlab.merge.blend"),
    (POINTER, WHOLE, POINTER, POINTER, POINTER, WHOLE, WHOLE, POINTER, WHOLE, WHOLE, POINTER, POINTER),
)
"""``compiled.blend`` as machine code."""


class Blend:
    """Weighted sums of k tensors, rounded once; one for each thread, since it holds its working memory.

    Args:
        starts: where each tensor's bytes begin in what ``__call__`` is given, multiples of 8 [k].
        kinds: their types, keys of ``KINDS`` [k].
        weights: [k].
        kind: type of the result, a key of ``KINDS``.
    """

    def __init__(self, starts: Any, kinds: list[str], weights: Any, kind: str) -> None:
        self._run = load(BLEND)
        self._starts = np.ascontiguousarray(starts, np.int64)
        self._kinds = np.array([KINDS[name] for name in kinds], np.int64)
        self._weights = np.ascontiguousarray(weights, np.float64)
        self._kind = KINDS[kind]
        self._total, self._bits = np.empty(BLOCK), np.empty(BLOCK, np.uint32)

    def __call__(self, raw: Any, count: int, out: Any) -> int:
        """Blend ``count`` elements of each: how many results are not finite.

        Args:
            raw: stored bytes of all (uint8), contiguous.
            count: elements of each.
            out: room for the result's bytes (uint8), contiguous.
        """
        tables = (self._starts.ctypes.data, self._kinds.ctypes.data, self._weights.ctypes.data, len(self._starts))
        room = (self._total.ctypes.data, self._bits.ctypes.data)
        return self._run(raw.ctypes.data, raw.size, *tables, count, out.ctypes.data, out.size, self._kind, *room)
