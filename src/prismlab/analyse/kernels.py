"""One pass over two (or three) equally shaped arrays that gathers everything the weight analyses need.

Two implementations with the same results: numpy, and numba (the extra ``kernels``), which does all the sums and counts
of a block while it is in the cache. Comparisons and sums are in float64 on the exact values, so that counts agree to
the last element; sums agree to rounding. Which one ran is recorded, since nothing else would tell.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

COMPILED_FROM = 20_000_000
"""Elements of a checkpoint from which the compiled pass (ten times as fast, 0.3 to 1.1 s to load) pays for itself."""


def threshold_key(threshold: float) -> str:
    """A threshold as a key of JSON, for example ``0.001``."""
    return f"{threshold:g}"


@dataclass
class Sums:
    """What is known of two arrays after one pass; sums of parts add up to the sums of the whole."""

    thresholds: tuple[float, ...]
    """Relative changes t that are counted."""
    elements: int = 0
    """Elements compared: those finite in both."""
    nonfinite: int = 0
    """Elements left out because one side is NaN or infinite."""
    difference2: float = 0.0
    """Sum of (new - old)^2."""
    old2: float = 0.0
    """Sum of old^2."""
    new2: float = 0.0
    """Sum of new^2."""
    changed: list[int] = field(default_factory=list)
    """Per threshold: elements with |new - old| > t |old|."""
    equal: int = 0
    """Elements with new == old."""
    zeros_old: int = 0
    """Elements with old == 0."""
    zeros_changed: int = 0
    """Elements with old == 0 and new != 0."""

    def __post_init__(self) -> None:
        if not self.changed:
            self.changed = [0] * len(self.thresholds)

    def add(self, other: Sums) -> None:
        """Take in the sums of another part."""
        if other.thresholds != self.thresholds:
            raise ValueError(f"thresholds differ: {self.thresholds} and {other.thresholds}")
        for name in ("elements", "nonfinite", "difference2", "old2", "new2", "equal", "zeros_old", "zeros_changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.changed = [a + b for a, b in zip(self.changed, other.changed, strict=True)]

    @property
    def l2(self) -> float | None:
        """||new - old|| / ||old||; None where the old norm is 0 or a sum is beyond float64."""
        ratio = math.sqrt(self.difference2) / math.sqrt(self.old2) if self.old2 > 0 else math.nan
        return ratio if math.isfinite(ratio) else None


def has_numba() -> bool:
    """Whether the compiled pass can be had."""
    return importlib.util.find_spec("numba") is not None


def choose(elements: int) -> str:
    """``numba`` or ``numpy``: the compiled pass for checkpoints that are worth loading it, where it is installed."""
    return "numba" if elements >= COMPILED_FROM and has_numba() else "numpy"


@functools.cache
def _compiled() -> ModuleType:
    """The compiled passes; compiled once a machine, since numba keeps them on disk."""
    from prismlab.analyse import compiled

    return compiled


def _dot(a: Floats, b: Floats) -> float:
    """Sum of products by numpy's pairwise sum: its error and its order do not depend on how many threads BLAS takes."""
    return float(np.multiply(a, b).sum())


def _pass_numpy(old: Floats, new: Floats, thresholds: Sequence[float]) -> tuple[Floats, list[int]]:
    size = np.abs(old)
    zeros = size == 0
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: the caller sees it in the sums
        difference = new - old
        sums = np.array([_dot(difference, difference), _dot(old, old), _dot(new, new)])
    np.abs(difference, out=difference)
    counts = [int(np.count_nonzero(difference > t * size)) for t in thresholds]
    counts.append(int(np.count_nonzero(new == old)))
    counts.append(int(np.count_nonzero(zeros)))
    counts.append(int(np.count_nonzero(zeros & (new != 0))))
    return sums, counts


def divergence(old: Array, new: Array, thresholds: Sequence[float], kernel: str = "numpy") -> Sums:
    """Everything that the divergence of two arrays needs, in one pass.

    Args:
        old: [n], float32 or float64.
        new: [n].
        thresholds: relative changes t; an element counts as changed if |new - old| > t |old|, so an old zero counts
            as changed if the new value is not zero.
        kernel: ``numpy`` or ``numba``.

    Elements that are NaN or infinite on either side are left out of everything and counted.
    """
    if old.shape != new.shape:
        raise ValueError(f"shapes differ: {old.shape} and {new.shape}")
    levels = tuple(float(t) for t in thresholds)
    if old.size == 0:
        return Sums(levels)
    if kernel == "numba":
        sums, counts = _compiled().divergence(old, new, np.array(levels))
    else:
        sums, counts = _pass_numpy(old.astype(np.float64), new.astype(np.float64), levels)
    if not np.isfinite(sums).all():
        finite = np.isfinite(old) & np.isfinite(new)
        left_out = int(old.size - np.count_nonzero(finite))
        if left_out:
            rest = divergence(old[finite], new[finite], levels, kernel)
            rest.nonfinite = left_out
            return rest
    k = len(levels)
    changed = [int(c) for c in counts[:k]]
    equal, zeros, woken = (int(c) for c in counts[k:])
    difference2, old2, new2 = (float(s) for s in sums)
    return Sums(levels, old.size, 0, difference2, old2, new2, changed, equal, zeros, woken)


@dataclass
class Products:
    """Sums over two updates a - base and b - base."""

    elements: int = 0
    """Elements finite in all three."""
    nonfinite: int = 0
    """Elements left out because one of the three is NaN or infinite."""
    dot: float = 0.0
    """Sum of (a - base)(b - base)."""
    a2: float = 0.0
    """Sum of (a - base)^2."""
    b2: float = 0.0
    """Sum of (b - base)^2."""
    base2: float = 0.0
    """Sum of base^2."""

    def add(self, other: Products) -> None:
        """Take in the sums of another part."""
        for name in ("elements", "nonfinite", "dot", "a2", "b2", "base2"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def cosine(self) -> float | None:
        """Cosine between the updates, held to [-1, 1] against rounding; None if an update is zero."""
        # Two roots, not the root of a product: the product of two small sums can underflow.
        norm = math.sqrt(self.a2) * math.sqrt(self.b2)
        ratio = self.dot / norm if norm > 0 else math.nan
        return max(-1.0, min(1.0, ratio)) if math.isfinite(ratio) else None


def products(base: Array, a: Array, b: Array, kernel: str = "numpy") -> Products:
    """The sums of two updates from one base.

    Args:
        base: [n], float32 or float64.
        a: [n].
        b: [n].
        kernel: ``numpy`` or ``numba``.
    """
    if not base.shape == a.shape == b.shape:
        raise ValueError(f"shapes differ: {base.shape}, {a.shape} and {b.shape}")
    if kernel == "numba" and base.size:
        sums = tuple(float(value) for value in _compiled().products(base, a, b))
    else:
        start = base.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: seen in the sums, below
            to_a, to_b = a - start, b - start
            sums = (_dot(to_a, to_b), _dot(to_a, to_a), _dot(to_b, to_b), _dot(start, start))
    if not all(map(math.isfinite, sums)):
        finite = np.isfinite(base) & np.isfinite(a) & np.isfinite(b)
        left_out = int(base.size - np.count_nonzero(finite))
        if left_out:
            rest = products(base[finite], a[finite], b[finite], kernel)
            rest.nonfinite = left_out
            return rest
    return Products(base.size, 0, *sums)
