"""Proportions of right answers: of single trials, and of samples that share an item.

Samples of one item are alike, so n items with m samples are worth less than n m trials. ``clustered_proportion`` finds
out how many they are worth and takes Wilson's interval of so many.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prismlab.stats.interval import Floats, Interval, check_level, special, vector

PULL = 0.6
"""Weight, over samples an item, of the cautious guess that all samples of an item agree; see ``worth``."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    Args:
        successes: number of successes, 0 to ``n``.
        n: number of independent trials; 0 gives an interval without value.
    """
    check_level(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is impossible")
    if n == 0:
        return Interval(None, None, None, 0, "wilson", "no trials")
    z = float(special().ndtri(0.5 + confidence / 2))
    p = successes / n
    lo, hi = _bounds(p, float(n), z)
    return Interval(p, lo, hi, n, "wilson")


def score_bounds(p: ArrayLike, n: ArrayLike, z: ArrayLike) -> tuple[Floats, Floats]:
    """Bounds of Wilson's interval of shares ``p`` of ``n`` trials (not always whole) at critical values ``z``."""
    share, trials = np.asarray(p, dtype=np.float64), np.asarray(n, dtype=np.float64)
    z2 = np.square(np.asarray(z, dtype=np.float64)) / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    # At the edges the formula's bound is exactly 0 or 1; rounding must not move it off.
    lo = np.where(share == 0, 0.0, np.maximum(0.0, centre - half))
    hi = np.where(share == 1, 1.0, np.minimum(1.0, centre + half))
    return lo, hi


def _bounds(p: float, n: float, z: float) -> tuple[float, float]:
    lo, hi = score_bounds(p, n, z)
    return float(lo), float(hi)


def group(clusters: Sequence[Hashable] | NDArray[Any], n: int) -> tuple[NDArray[np.int64], int]:
    """Cluster labels as 0 .. k-1, [n], and k."""
    if len(clusters) != n:
        raise ValueError(f"{n} values need {n} cluster labels, not {len(clusters)}")
    if isinstance(clusters, np.ndarray) and n:
        labels, places = np.unique(clusters, return_inverse=True)
        return places.astype(np.int64), len(labels)
    order: dict[Hashable, int] = {}
    codes = np.fromiter((order.setdefault(c, len(order)) for c in clusters), dtype=np.int64, count=n)
    return codes, len(order)


def per_cluster(codes: NDArray[np.int64], k: int, values: Floats | None = None) -> Floats:
    """Sum of the values of each cluster, or its size, [k]."""
    weights = np.ones(len(codes), dtype=np.float64) if values is None else values
    return np.asarray(np.bincount(codes, weights=weights, minlength=k), dtype=np.float64)


@dataclass(frozen=True)
class Worth:
    """What the samples of some items are worth."""

    trials: float
    """Independent trials that would tell as much: from the number of items to that of samples."""
    df: float
    """Degrees of freedom of the critical value; infinite where no variance had to be learned from the items."""


def worth_of(n: int, m: float, of_mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Trials and degrees of freedom of ``Worth``, elementwise, from two moments of each set of items.

    With n items of m samples each, r is the variance of the items' means over that of a single sample: 1/m if samples
    of an item are independent, 1 if they all agree. Its estimate is worthless where few samples differ: one right
    sample of 1,920 says nothing of whether the item's others agree. So r is pulled to 1 with the weight ``PULL``/m
    against n times the variance seen, and the samples are worth n/r trials. Nothing right or nothing wrong leaves r at
    1, so the items themselves are the trials. At both ends, samples independent or all agreeing, the variance follows
    from the rate; between them it was learned from the items, and the critical value is one of Student's t. With
    s = (r - 1/m)/(1 - 1/m), the correlation of an item's samples, it has (n - 1) v/(s (1 - s)) degrees of freedom: few
    items of many tell a variance whose source is rare (the kurtosis of an item's mean grows as 1/v), v being the
    variance of a single sample with one right and one wrong trial added, at most that of a rate of a half.

    ``PULL`` and the added trial were set by simulation (``benchmarks/stats.py`` writes the table): a ``PULL`` of 0.25
    covers only 88% at 30 items of 64 samples and a rate of 2%, 1 covers 97% at a rate of a half; degrees of freedom
    without v cover 92.8% at 200 items of 64 samples, a rate of 2% and a correlation of one half.

    Args:
        n: items, at least 2.
        m: samples an item, above 1.
        of_mean: estimated variance of the mean over items.
        variance: of a single sample.
    """
    one = np.asarray(variance, dtype=np.float64)
    ratio = np.divide(np.asarray(of_mean) * n, one, out=np.ones_like(one), where=one > 0)
    r = np.clip(ratio, 1 / m, 1.0)
    r = (r * n * one + PULL / m) / (n * one + PULL / m)
    alike = (r - 1 / m) / (1 - 1 / m)
    learned = alike * (1 - alike) / np.minimum(0.25, (n * one + 1) / (n + 2))
    # Beyond so many degrees t is the normal distribution to all digits shown.
    df = np.divide(n - 1, learned, out=np.full_like(one, np.inf), where=learned > 1e-6)
    return n / r, df


def worth(shares: Floats, sizes: Floats, variance: float) -> Worth:
    """How many independent trials the samples of these items are worth; see ``worth_of``.

    Args:
        shares: mean of each item, [n], n at least 2.
        sizes: samples of each item, [n].
        variance: of a single sample.
    """
    n, samples = len(shares), float(sizes.sum())
    m = samples / n
    if m <= 1:
        return Worth(float(n), math.inf)
    mean = float(shares @ sizes) / samples
    # Linearised ratio estimator: with equal sizes it is the variance of the items' means over n.
    of_mean = n / (n - 1) * float(((shares - mean) * sizes) @ ((shares - mean) * sizes)) / samples**2
    trials, df = worth_of(n, m, np.array([of_mean]), np.array([variance]))
    return Worth(float(trials[0]), float(df[0]))


def critical_value(df: float, tail: float) -> float:
    """Quantile of Student's t with probability ``tail`` above it; of the normal distribution for infinite ``df``."""
    return float(special().ndtri(1 - tail)) if math.isinf(df) else float(special().stdtrit(df, 1 - tail))


def clustered_proportion(
    values: ArrayLike, clusters: Sequence[Hashable] | NDArray[Any], confidence: float = 0.95
) -> Interval:
    """Mean of values from 0 to 1, clustered by item (avg@n if each item has n samples), with Wilson's interval.

    The interval is that of ``worth`` many trials. Bootstrap percentiles, which it replaces, cover 80% or less of rates
    near 0 and 1 at 30 items, since what was not drawn once cannot be resampled.

    Args:
        values: one a sample: 0 or 1; what lies between is taken as if it had the variance of 0 and 1, so its
            interval is too wide rather than too narrow.
        clusters: the item of each value.

    Raises:
        ValueError: a value outside 0 to 1, or labels that do not fit.
    """
    check_level(confidence)
    x = vector(values, "values")
    codes, k = group(clusters, len(x))
    if len(x) == 0:
        return Interval(None, None, None, 0, "wilson over items", "no values")
    if float(x.min()) < 0 or float(x.max()) > 1:
        raise ValueError(f"values lie from {x.min():g} to {x.max():g}, not from 0 to 1")
    point = float(x.mean())
    if k == 1:
        return Interval(point, None, None, 1, "wilson over items", "one cluster shows no spread: at least 2 are needed")
    sizes = per_cluster(codes, k)
    found = worth(per_cluster(codes, k, x) / sizes, sizes, point * (1 - point))
    lo, hi = _bounds(point, found.trials, critical_value(found.df, (1 - confidence) / 2))
    equal = f"all {len(x)} values are equal" if bool((x == x[0]).all()) else None
    return Interval(point, lo, hi, k, "wilson over items", equal)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is correct, 1 - C(n-c, k)/C(n, k) (Chen et al. 2021).

    Args:
        n: samples drawn.
        c: correct ones among them.
        k: 1 to n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} correct in {n} samples: needs 0 <= correct <= samples and 1 <= k <= samples")
    whole = math.comb(n, k)
    return (whole - math.comb(n - c, k)) / whole


def mean_pass_at_k(correct: Sequence[int], samples: Sequence[int], k: int, confidence: float = 0.95) -> Interval:
    """Mean over items of the unbiased pass@k, with Wilson's interval of what the items are worth.

    Args:
        correct: right samples of each item.
        samples: samples of each item, ``k`` or more.
        k: samples that are looked at together.
    """
    check_level(confidence)
    if len(correct) != len(samples):
        raise ValueError(f"{len(correct)} counts of right samples and {len(samples)} of samples")
    values = np.array([pass_at_k(n, c, k) for n, c in zip(samples, correct, strict=True)], dtype=np.float64)
    n = len(values)
    if n == 0:
        return Interval(None, None, None, 0, f"pass@{k}", "no items")
    point = float(values.mean())
    if n == 1:
        return Interval(point, None, None, 1, f"pass@{k}", "one item shows no spread: at least 2 are needed")
    # Groups of k of the n samples: so many looks an item are the most that its value can rest on.
    looks = np.full(n, float(np.mean(samples)) / k)
    found = worth(values, looks, point * (1 - point))
    lo, hi = _bounds(point, found.trials, critical_value(found.df, (1 - confidence) / 2))
    return Interval(point, lo, hi, n, f"pass@{k}")
