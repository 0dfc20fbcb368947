"""Two checkpoints on the same items: the difference of their scores, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike, NDArray

from prismlab.stats.interval import Interval, check_level, special, vector
from prismlab.stats.proportions import critical_value, group, per_cluster, worth

PSEUDO = 1.0
"""Trials added on either side, one for the new and one for the old (Bonett and Price 2012)."""


@dataclass(frozen=True)
class PairedItems:
    """Mean of new - old over items, with all that tests of it need. Scores from 0 to 1, so differences from -1 to 1."""

    interval: Interval
    """Mean difference; its interval is symmetric about ``centre``, a little nearer to 0."""
    items: int
    pairs: int
    """Pairs of samples, over all items."""
    better: int
    """Pairs in which the new score is higher."""
    worse: int
    """Pairs in which the new score is lower."""
    centre: float
    """Mean difference with the added trials."""
    error: float
    """Standard error of ``centre``."""
    df: float
    """Degrees of freedom of the test; infinite where the normal distribution serves."""
    trials: float
    """Independent pairs that the items are worth."""

    @property
    def variance(self) -> float:
        """Variance of the mean difference, times the number of items."""
        return self.error**2 * self.items * (self.trials + 2 * PSEUDO) / self.trials

    def p_above(self, bound: float) -> float:
        """One-sided p-value against "the true difference is ``bound`` or less"."""
        return self._tail((bound - self.centre) / self.error)

    def p_below(self, bound: float) -> float:
        """One-sided p-value against "the true difference is ``bound`` or more"."""
        return self._tail((self.centre - bound) / self.error)

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Bounds of the two-sided interval at another level, within -1 to 1."""
        check_level(confidence)
        half = critical_value(self.df, (1 - confidence) / 2) * self.error
        return max(-1.0, self.centre - half), min(1.0, self.centre + half)

    def _tail(self, t: float) -> float:
        return float(special().ndtr(t) if math.isinf(self.df) else special().stdtr(self.df, t))


def paired_items(
    new: ArrayLike,
    old: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[Any],
    confidence: float = 0.95,
) -> PairedItems:
    """Mean difference of two sets of scores of the same samples of the same items.

    With one sample an item this is the adjusted Wald interval of Bonett and Price (2012) for paired proportions: two
    pairs are added, one that each side wins, which keeps its coverage where few pairs differ; without any pair that
    differs among n the interval reaches 2.8/(n + 2) to either side. With more samples an item n is what the pairs are
    ``worth``.

    Args:
        new: score of each sample, 0 to 1.
        old: score of the same sample of the same item, in the same order.
        clusters: the item of each pair.

    Raises:
        ValueError: lengths differ, a score outside 0 to 1, or fewer than 2 items.
    """
    check_level(confidence)
    x, y = vector(new, "new"), vector(old, "old")
    if len(x) != len(y):
        raise ValueError(f"pairs need equal lengths, not {len(x)} and {len(y)}")
    if len(x) and (min(x.min(), y.min()) < 0 or max(x.max(), y.max()) > 1):
        raise ValueError("a score lies outside 0 to 1")
    codes, k = group(clusters, len(x))
    if k < 2:
        raise ValueError(f"a paired difference needs at least 2 items, not {k}")
    d = x - y
    sizes = per_cluster(codes, k)
    mean, square = float(d.mean()), float((d * d).mean())
    found = worth(per_cluster(codes, k, d) / sizes, sizes, square - mean * mean)
    n = found.trials
    centre = n * mean / (n + 2 * PSEUDO)
    spread = (n * square + 2 * PSEUDO) / (n + 2 * PSEUDO) - centre * centre
    error = math.sqrt(spread / (n + 2 * PSEUDO))
    half = critical_value(found.df, (1 - confidence) / 2) * error
    # A mean at the very end of its range is still inside its interval.
    lo, hi = max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
    interval = Interval(mean, lo, hi, k, "paired over items", None if square else "no pair differs")
    better, worse = int((d > 0).sum()), int((d < 0).sum())
    return PairedItems(interval, k, len(d), better, worse, centre, error, found.df, n)
