"""What is counted and summed when checkpoints are compared. Results of parts add up to the results of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import SpecError

Floats = NDArray[np.float64]

ULP_CLASSES = ("0", "1", "2", "3-4", ">4")
"""Distances in representable numbers that are told apart."""


def threshold_key(threshold: float) -> str:
    """A threshold as a key of JSON, for example ``0.001``."""
    return f"{threshold:g}"


def rising(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Thresholds in rising order, each once.

    Raises:
        SpecError: there is none, one is not a relative change above 0, or two have one key: one would hide the other.
    """
    levels = tuple(sorted({float(t) for t in thresholds}))
    if not levels or not all(0 < t < math.inf for t in levels):
        raise SpecError(f"thresholds {list(levels)}: name at least one relative change above 0, for example 0.01")
    for a, b in pairwise(levels):
        if threshold_key(a) == threshold_key(b):
            raise SpecError(f"thresholds {a!r} and {b!r} are both {threshold_key(a)} to six digits: leave one out")
    return levels


@dataclass
class Sums:
    """What is known of two arrays after one pass."""

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
    changed: list[int] = field(default_factory=list)
    """Per threshold: elements with |new - old| > t |old|."""
    equal: int = 0
    """Elements with new == old, as numbers: 0 and -0 are equal."""
    zeros_old: int = 0
    """Elements with old == 0."""
    zeros_changed: int = 0
    """Elements with old == 0 and new != 0: they count as changed at every threshold."""
    sign_flips: int = 0
    """Elements with one sign in old and the other in new, neither of them 0."""
    ulp: list[int] = field(default_factory=list)
    """Elements by distance in numbers that the format can represent, by ``ULP_CLASSES``."""
    ulp_elements: int = 0
    """Elements for which that distance is defined: both sides have one type."""

    def __post_init__(self) -> None:
        self.changed = self.changed or [0] * len(self.thresholds)
        self.ulp = self.ulp or [0] * len(ULP_CLASSES)

    def add(self, other: Sums) -> None:
        """Take in the sums of another part."""
        if other.thresholds != self.thresholds:
            raise ValueError(f"thresholds differ: {self.thresholds} and {other.thresholds}")
        for name in ("elements", "nonfinite", "difference2", "old2", "equal", "zeros_old", "zeros_changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sign_flips += other.sign_flips
        self.ulp_elements += other.ulp_elements
        self.changed = [a + b for a, b in zip(self.changed, other.changed, strict=True)]
        self.ulp = [a + b for a, b in zip(self.ulp, other.ulp, strict=True)]

    @property
    def l2(self) -> float | None:
        """||new - old|| / ||old||; None where the old norm is 0 or a sum is beyond float64."""
        ratio = math.sqrt(self.difference2) / math.sqrt(self.old2) if self.old2 > 0 else math.nan
        return ratio if math.isfinite(ratio) else None


@dataclass
class Updates:
    """Sums of products of k updates from one base."""

    matrix: Floats
    """[k + 1, k + 1]: of the updates; the last row and column belong to the base, and only its own square is used."""
    elements: int = 0
    """Elements finite in all checkpoints."""
    nonfinite: int = 0
    """Elements left out because one of the checkpoints is NaN or infinite there."""

    @classmethod
    def zero(cls, k: int) -> Updates:
        """Of nothing yet, for ``k`` updates."""
        return cls(np.zeros((k + 1, k + 1)))

    def add(self, other: Updates) -> None:
        """Take in the sums of another part."""
        self.matrix = self.matrix + other.matrix
        self.elements += other.elements
        self.nonfinite += other.nonfinite

    @property
    def base2(self) -> float:
        """Sum of base^2."""
        return float(self.matrix[-1, -1])

    def square(self, k: int) -> float:
        """Sum of squares of update ``k``."""
        return float(self.matrix[k, k])

    def length(self, k: int) -> float | None:
        """Norm of update ``k`` over that of the base; None where the base is zero or a sum is beyond float64."""
        ratio = math.sqrt(self.square(k)) / math.sqrt(self.base2) if self.base2 > 0 else math.nan
        return ratio if math.isfinite(ratio) else None

    def cosine(self, a: int, b: int) -> float | None:
        """Cosine between updates ``a`` and ``b``, held to [-1, 1] against rounding; None if an update is zero."""
        # Two roots, not the root of a product: the product of two small sums can underflow.
        norm = math.sqrt(self.square(a)) * math.sqrt(self.square(b))
        ratio = float(self.matrix[a, b]) / norm if norm > 0 else math.nan
        if not math.isfinite(ratio):
            return None
        return 1.0 if a == b else max(-1.0, min(1.0, ratio))


@dataclass
class Overlap:
    """Sizes of the intersection and the union of two sets of elements."""

    both: int = 0
    either: int = 0

    def add(self, other: Overlap) -> None:
        """Take in another part of both sets."""
        self.both += other.both
        self.either += other.either

    @property
    def jaccard(self) -> float | None:
        """Elements in both over elements in either; None if both sets are empty."""
        return self.both / self.either if self.either else None


def combine(parts: Sequence[Any]) -> Any:
    """The first of ``parts`` with all others added to it."""
    first, *rest = parts
    for part in rest:
        first.add(part)
    return first
