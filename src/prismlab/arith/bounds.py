"""What the pass in 16-bit lanes (``lanes``) needs to know of thresholds, without numba."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismlab.arith.machine import POINTER, WHOLE, Entry

SLOTS = 5
"""Thresholds of one pass: those of the reference study but the smallest, below which nothing but equality lies."""
BLOCK = 4096
"""Elements at a time: 16 KB of both sides stay in the first-level cache."""
INFINITE = 0x7F80
"""Magnitude bits from which on a bfloat16 is infinite or NaN."""
NONE, ONE, TWO, FOUR, FLIPS, ZEROS = range(SLOTS, SLOTS + 6)
"""Where counts stand behind those of thresholds: distance 0, 1, 2, at most 4 steps; sign flips; old zeros."""
COUNTS = SLOTS + 6
DIVERGENCE = Entry(
    "prismlab.arith.lanes",
    "compiled_divergence",
    tuple(f"prismlab.arith.{name}" for name in ("lanes", "vectors", "bounds")),
    (POINTER, POINTER, WHOLE, POINTER, POINTER, POINTER, POINTER),
)
"""``lanes.divergence`` as machine code."""


def _wanted(t: float) -> np.ndarray:
    """floor(2 t s) for every s from 0 to 255, the rounding of t * s in float64 included."""
    halves = np.arange(512) * 0.5
    return (halves[None, :] <= t * np.arange(256.0)[:, None]).sum(axis=1) - 1


def any_change(t: float) -> bool:
    """Whether every change counts at threshold ``t``: it lies below half a step of the largest significand."""
    return 0.0 < t < 0.5 and not _wanted(t).any()


def bounds(thresholds: Sequence[float]) -> np.ndarray | None:
    """Multipliers [SLOTS] (uint16) for at most ``SLOTS`` thresholds; None where a threshold has none.

    They reproduce, for every significand s from 0 to 255, which D satisfy ``D / 2 > t * s`` as float64 computes it: the
    definition that the counts follow, rounding of t included. Scaling by a power of two changes neither side.
    """
    if len(thresholds) > SLOTS:
        raise ValueError(f"{len(thresholds)} thresholds, at most {SLOTS} a pass")
    out = np.zeros(SLOTS, np.uint16)
    for slot, t in enumerate(thresholds):
        found = _multiplier(t) if 0.0 < t < 0.5 else None
        if found is None:
            return None
        out[slot] = found
    return out


def _multiplier(t: float) -> int | None:
    wanted, near = _wanted(t), int(2 * t * 65536)
    for m in (near, near + 1):
        if m < 65536 and ((np.arange(256) * m) >> 16 == wanted).all():
            return m
    return None
