"""From an interval to a verdict, and what many tests at once cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from prismlab.stats.interval import Interval, vector
from prismlab.stats.student import mean_t, p_value_t


def non_inferiority(difference: Interval, margin: float) -> Literal["retained", "regressed", "undecided"]:
    """Whether an ability is retained within ``margin``.

    Args:
        difference: new - old of a measure of which more is better (turn a loss round with ``scaled(-1)``).
        margin: largest loss that counts as retained, in the unit of the measure, above 0.

    Returns:
        ``retained`` if the whole interval lies above -margin, ``regressed`` if it lies wholly below, else
        ``undecided``, also where there is no interval.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin} must be above 0")
    if difference.lo is not None and difference.lo > -margin:
        return "retained"
    if difference.hi is not None and difference.hi < -margin:
        return "regressed"
    return "undecided"


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure (Holm 1979), in the order given."""
    p = vector(pvalues, "pvalues")
    if bool(((p < 0) | (p > 1)).any()):
        raise ValueError("a p-value lies outside 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class Equivalence:
    """Outcome of two one-sided tests."""

    verdict: Literal["equivalent", "different", "undecided"]
    """``different`` if the whole interval lies outside the bounds on one side."""
    interval: Interval
    """The interval (of 90% at a level of 5%) that decides."""
    p: float | None
    """The larger of the two one-sided p-values; None if an interval was given or there is no test."""


def equivalence(data: Interval | ArrayLike, low: float, high: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests (Schuirmann 1987): equivalent if the 1 - 2 alpha interval lies within [low, high].

    Args:
        data: values, one a seed; or an interval that the caller made at confidence 1 - 2 alpha.
        low: smallest value that counts as equivalent.
        high: largest value that counts as equivalent.
    """
    if not low < high:
        raise ValueError(f"the bounds [{low}, {high}] are empty")
    if isinstance(data, Interval):
        interval, p = data, None
    else:
        interval = mean_t(data, 1 - 2 * alpha)
        sides = (p_value_t(data, low, "greater"), p_value_t(data, high, "less"))
        p = None if sides[0] is None or sides[1] is None else max(sides[0], sides[1])
    if interval.lo is None or interval.hi is None:
        return Equivalence("undecided", interval, p)
    if low <= interval.lo and interval.hi <= high:
        return Equivalence("equivalent", interval, p)
    return Equivalence("different" if interval.hi < low or interval.lo > high else "undecided", interval, p)
