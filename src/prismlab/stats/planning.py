"""Before a run: how small a difference it can show, how many items decide, and how surely.

All by the normal distribution and the variance of a mean over items; few items or rates near 0 and 1 need more.
"""

from __future__ import annotations

import math

from prismlab.stats.interval import special


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


def power_items(distance: float, items: int, variance: float, alpha: float = 0.025) -> float:
    """Probability that a one-sided test at level ``alpha`` sees ``distance`` (above 0: on the tested side)."""
    if items < 1 or not variance > 0:
        raise ValueError(f"{items} items of variance {variance}: both must be above 0")
    return float(special().ndtr(distance / math.sqrt(variance / items) - _quantile(1 - alpha)))
