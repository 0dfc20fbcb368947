"""Before a run: how small a difference it can show, how many items decide, and how surely.

All by the normal distribution and the variance of a mean over items; few items or rates near 0 and 1 need more.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray

from prismlab.stats.interval import special, vector
from prismlab.stats.proportions import group, per_cluster


def _quantile(p: float) -> float:
    return float(special().ndtri(p))


def _share(value: float, what: str) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} {value} is not between 0 and 1")


def variance_of_item(rate: float, samples: int = 1, spread: float = 0.5, shared: float | None = None) -> float:
    """Variance that one item adds to a score, or to a difference of two scores on the same items.

    A sample's variance is p (1 - p); the share ``spread`` of it lies between items and stays however often an item is
    sampled, the rest falls with the samples: p (1 - p) (spread + (1 - spread)/m). In a difference on the same items the
    part between items counts twice, less what the two checkpoints share of it.

    Args:
        rate: expected score, 0 to 1.
        samples: m, samples an item.
        spread: intraclass correlation of the samples of an item, 0 to 1.
        shared: correlation between the two checkpoints' rates on an item, 0 to 1; None for a single score.
    """
    _share(rate, "rate")
    _share(spread, "spread")
    if samples < 1:
        raise ValueError(f"{samples} samples an item: at least 1")
    whole = rate * (1 - rate)
    if shared is None:
        return whole * (spread + (1 - spread) / samples)
    _share(shared, "shared")
    return 2 * whole * (spread * (1 - shared) + (1 - spread) / samples)


def detectable_difference_items(items: int, variance: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """Smallest true difference that an interval over ``items`` shows to be none of 0, with probability ``power``.

    Args:
        items: number of items.
        variance: that of ``variance_of_item``.
    """
    if items < 2:
        raise ValueError(f"{items} items: at least 2")
    return (_quantile(0.5 + confidence / 2) + _quantile(power)) * math.sqrt(variance / items)


def items_to_decide(distance: float, variance: float, alpha: float = 0.025, power: float = 0.8) -> int | None:
    """Items after which a one-sided test at level ``alpha`` sees a distance from its bound, with probability ``power``.

    Args:
        distance: true difference minus the bound of the test, of either sign; 0 is never decided and gives None.
        variance: that of ``variance_of_item``, or ``PairedItems.variance``.
    """
    if distance == 0:
        return None
    return math.ceil(((_quantile(1 - alpha) + _quantile(power)) / distance) ** 2 * variance)


def samples_to_decide(
    distance: float, between: float, within: float, items: int, alpha: float = 0.025, power: float = 0.8
) -> int | None:
    """Samples an item after which ``items`` items see ``distance`` from a bound, with probability ``power``.

    The variance of the mean is (between + within/m)/items with m samples an item; no m helps against the part between.

    Args:
        distance: true difference minus the bound of the test, of either sign; 0 gives None.
        between: variance of the items' true means, see ``variance_parts``.
        within: variance of one sample about its item's mean.

    Returns:
        1 or more; None where no number of samples is enough.
    """
    if items < 2 or between < 0 or within < 0:
        raise ValueError(f"{items} items of variances {between}, {within}: at least 2 items, none below 0")
    allowed = items * (distance / (_quantile(1 - alpha) + _quantile(power))) ** 2
    return None if allowed <= between else max(1, math.ceil(within / (allowed - between)))


def variance_parts(values: ArrayLike, clusters: Sequence[Hashable] | NDArray[Any]) -> tuple[float, float] | None:
    """Variance between items and within them, of a value a sample (one-way analysis of variance).

    With sizes m_i of n items in N values, within = SSW/(N - n) and between = (SSB/(n - 1) - within)/m0, at least 0,
    m0 = (N - sum m_i^2/N)/(n - 1) (Searle, Casella and McCulloch 1992, section 3.6).

    Returns:
        None with fewer than 2 items, or with one value an item, which tells nothing of what lies within.
    """
    x = vector(values, "values")
    codes, n = group(clusters, len(x))
    if n < 2 or len(x) == n:
        return None
    sizes = per_cluster(codes, n)
    means = per_cluster(codes, n, x) / sizes
    inner = float(((x - means[codes]) ** 2).sum()) / (len(x) - n)
    outer = float((sizes * (means - float(x.mean())) ** 2).sum()) / (n - 1)
    equivalent = (len(x) - float((sizes**2).sum()) / len(x)) / (n - 1)
    return max(0.0, (outer - inner) / equivalent), inner


def power_items(distance: float, items: int, variance: float, alpha: float = 0.025) -> float:
    """Probability that a one-sided test at level ``alpha`` sees ``distance`` (above 0: on the tested side)."""
    if items < 1 or not variance > 0:
        raise ValueError(f"{items} items of variance {variance}: both must be above 0")
    return float(special().ndtr(distance / math.sqrt(variance / items) - _quantile(1 - alpha)))
