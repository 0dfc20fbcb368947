"""Intervals, tests and power: the statistics that every verdict and every score rests on.

The unit of inference is the seed (Student's t over seeds) or the item (bootstrap over items, each a cluster
of samples).
Where an interval cannot be had, its bounds are None and ``reason`` says why: missing is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]


def _special() -> Any:
    """``scipy.special``, imported late (a tenth of a second) and untyped (it ships no stubs)."""
    import scipy.special  # pyright: ignore[reportMissingTypeStubs]

    return scipy.special  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds."""

    value: float | None
    """The point estimate; None where there is nothing to estimate from."""
    lo: float | None
    """Lower bound; None where there is none, see ``reason``."""
    hi: float | None
    """Upper bound; None where there is none, see ``reason``."""
    n: int
    """Units of inference: seeds, items or trials."""
    method: str
    """How the bounds were made."""
    reason: str | None = None
    """Why a bound is missing or has no width."""

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit, for example 100 for percent; a negative factor swaps the bounds."""
        value, lo, hi = (None if x is None else x * factor for x in (self.value, self.lo, self.hi))
        if factor < 0:
            lo, hi = hi, lo
        return Interval(value, lo, hi, self.n, self.method, self.reason)

    def to_json(self) -> dict[str, Any]:
        """``value``, ``lo``, ``hi``, ``n``, ``method``, and ``reason`` where there is one."""
        out: dict[str, Any] = {
            "value": self.value,
            "lo": self.lo,
            "hi": self.hi,
            "n": self.n,
            "method": self.method,
        }
        return out if self.reason is None else {**out, "reason": self.reason}


def _vector(values: ArrayLike, what: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what} must be a list of numbers, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds a value that is not finite; leave such values out and count them")
    return array


def _level(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    Args:
        successes: number of successes, 0 to ``n``.
        n: number of independent trials; 0 gives an interval without value.
    """
    _level(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is impossible")
    if n == 0:
        return Interval(None, None, None, 0, "wilson", "no trials")
    z = float(_special().ndtri(0.5 + confidence / 2))
    p, z2 = successes / n, z * z / n
    centre = (p + z2 / 2) / (1 + z2)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    # At the edges the formula's bound is exactly 0 or 1; rounding must not move it off.
    lo = 0.0 if successes == 0 else max(0.0, centre - half)
    hi = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(p, lo, hi, n, "wilson")


def mean_t(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values (one a seed) with Student's t interval, n - 1 degrees of freedom.

    One value has a mean and no interval; equal values have an interval without width, and ``reason`` says so.
    """
    _level(confidence)
    x = _vector(values, "values")
    n = len(x)
    if n == 0:
        return Interval(None, None, None, 0, "t", "no values")
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, None, None, 1, "t", "one value shows no spread: an interval needs at least 2 seeds")
    half = float(_special().stdtrit(n - 1, 0.5 + confidence / 2)) * float(x.std(ddof=1)) / math.sqrt(n)
    if bool((x == x[0]).all()):
        return Interval(float(x[0]), float(x[0]), float(x[0]), n, "t", f"all {n} values are equal")
    return Interval(mean, mean - half, mean + half, n, "t")


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of a - b over pairs (the same seed in both) with Student's t interval."""
    x, y = _vector(a, "a"), _vector(b, "b")
    if len(x) != len(y):
        raise ValueError(f"pairs need equal lengths, not {len(x)} and {len(y)}")
    return mean_t(x - y, confidence)


def _codes(clusters: Sequence[Hashable] | NDArray[Any], n: int) -> tuple[NDArray[np.int64], int]:
    """Cluster labels as 0 .. k-1 in order of first appearance."""
    if len(clusters) != n:
        raise ValueError(f"{n} values need {n} cluster labels, not {len(clusters)}")
    order: dict[Hashable, int] = {}
    codes = np.fromiter((order.setdefault(c, len(order)) for c in clusters), dtype=np.int64, count=n)
    return codes, len(order)


def _draws(k: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each of k units appears in each bootstrap resample, [resamples, k]."""
    if resamples < 100:
        raise ValueError(f"{resamples} resamples are too few for a percentile interval; take at least 100")
    return np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=resamples)


def _percentiles(estimates: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(estimates, [tail, 1 - tail])
    return float(lo), float(hi)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[Any],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Statistic | None = None,
) -> Interval:
    """Percentile bootstrap that resamples whole clusters (items with all their samples).

    Args:
        values: one a sample.
        clusters: the item that each value belongs to.
        statistic: function of the values of a resample; None for their mean.

    If every value is 0 or every value is 1, resampling shows no spread where there surely is some: the bounds are then
    Wilson's with the clusters as trials, and ``method`` says so.
    """
    _level(confidence)
    x = _vector(values, "values")
    codes, k = _codes(clusters, len(x))
    if len(x) == 0:
        return Interval(None, None, None, 0, "bootstrap", "no values")
    point = float(x.mean()) if statistic is None else float(statistic(x))
    if k == 1:
        return Interval(point, None, None, 1, "bootstrap", "one cluster shows no spread: at least 2 are needed")
    if bool((x == x[0]).all()):
        if statistic is None and x[0] in (0.0, 1.0):
            edge = wilson(k if x[0] else 0, k, confidence)
            return Interval(point, edge.lo, edge.hi, k, "wilson over clusters", f"all {len(x)} values are equal")
        return Interval(point, point, point, k, "bootstrap", f"all {len(x)} values are equal")
    draws = _draws(k, resamples, seed)
    if statistic is None:
        sums = np.bincount(codes, weights=x, minlength=k)
        counts = np.bincount(codes, minlength=k)
        estimates = (draws @ sums) / (draws @ counts)
    else:
        estimates = np.array([statistic(np.repeat(x, draw[codes])) for draw in draws], dtype=np.float64)
    lo, hi = _percentiles(estimates, confidence)
    return Interval(point, lo, hi, k, "bootstrap")


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Ratio of sums, for example bits over bytes of documents, with a percentile bootstrap over pairs.

    Args:
        numerators: one a unit.
        denominators: one a unit, none negative, not all 0.
        clusters: the cluster of each pair; None if each pair is a unit of its own.
    """
    _level(confidence)
    top, bottom = _vector(numerators, "numerators"), _vector(denominators, "denominators")
    if len(top) != len(bottom):
        raise ValueError(f"{len(top)} numerators and {len(bottom)} denominators")
    if len(top) == 0:
        return Interval(None, None, None, 0, "bootstrap ratio", "no values")
    if bool((bottom < 0).any()) or not float(bottom.sum()) > 0:
        raise ValueError("denominators must be 0 or more, and not all 0")
    codes, k = (np.arange(len(top)), len(top)) if clusters is None else _codes(clusters, len(top))
    point = float(top.sum() / bottom.sum())
    if k == 1:
        return Interval(point, None, None, 1, "bootstrap ratio", "one unit shows no spread: at least 2 are needed")
    draws = _draws(k, resamples, seed)
    tops = draws @ np.bincount(codes, weights=top, minlength=k)
    bottoms = draws @ np.bincount(codes, weights=bottom, minlength=k)
    usable = bottoms > 0
    lo, hi = _percentiles(tops[usable] / bottoms[usable], confidence)
    return Interval(point, lo, hi, k, "bootstrap ratio", "no spread among the units" if lo == hi else None)


def bootstrap_statistic(
    statistic: Callable[..., float],
    *groups: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of any statistic of independent groups, each resampled by itself along its first axis.

    Args:
        statistic: called with one array a group.
        groups: arrays whose first axis counts the units; ``n`` of the result is that of the smallest group.
    """
    _level(confidence)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or any(len(array) == 0 for array in arrays):
        return Interval(None, None, None, 0, "bootstrap", "no values in a group")
    point, smallest = float(statistic(*arrays)), min(len(array) for array in arrays)
    if smallest == 1:
        return Interval(point, None, None, 1, "bootstrap", "a group of one value shows no spread")
    if resamples < 100:
        raise ValueError(f"{resamples} resamples are too few for a percentile interval; take at least 100")
    rng = np.random.default_rng(seed)
    estimates = np.array(
        [statistic(*(a[rng.integers(0, len(a), len(a))] for a in arrays)) for _ in range(resamples)], dtype=np.float64
    )
    lo, hi = _percentiles(estimates, confidence)
    return Interval(point, lo, hi, smallest, "bootstrap", "no spread in the resamples" if lo == hi else None)


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
    p = _vector(pvalues, "pvalues")
    if bool(((p < 0) | (p > 1)).any()):
        raise ValueError("a p-value lies outside 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def p_value_t(values: ArrayLike, null: float = 0.0, side: Literal["two", "greater", "less"] = "two") -> float | None:
    """p-value of the one-sample t test of mean = ``null``; None with fewer than 2 values or without spread."""
    x = _vector(values, "values")
    if len(x) < 2 or bool((x == x[0]).all()):
        return None
    t = float((x.mean() - null) / (x.std(ddof=1) / math.sqrt(len(x))))
    below = float(_special().stdtr(len(x) - 1, t))
    above = float(_special().stdtr(len(x) - 1, -t))
    return {"two": min(1.0, 2 * min(below, above)), "greater": above, "less": below}[side]


def power_t(effect: float, sd: float, n: int, confidence: float = 0.95) -> float | None:
    """Power of the two-sided one-sample (or paired) t test, from the noncentral t distribution (Cohen 1988).

    Args:
        effect: true mean (of the difference), same unit as ``sd``.
        sd: standard deviation of one value, above 0.
        n: number of seeds; below 2 there is no test and the power is None.
    """
    _level(confidence)
    if not sd > 0:
        raise ValueError(f"standard deviation {sd} must be above 0")
    if n < 2:
        return None
    critical = float(_special().stdtrit(n - 1, 0.5 + confidence / 2))
    return _two_sided_power(abs(effect) / sd * math.sqrt(n), critical, n - 1)


def _two_sided_power(shift: float, critical: float, df: int) -> float:
    """P(|T| > critical) of the noncentral t with ``df`` degrees of freedom and noncentrality ``shift``.

    T = (Z + shift)/S with S = sqrt(chi2/df), so the probability is the mean of Phi(shift - cS) + Phi(-shift - cS) over
    S. Gauss-Legendre in panels finer than the step of Phi: library routines lose digits, or give NaN, at few degrees
    of freedom and large shifts, which is where a study with three seeds lies.
    """
    special = _special()
    nodes, weights = np.polynomial.legendre.leggauss(16)
    low, high = max(0.0, 1 - 12 / math.sqrt(df)), 1 + 12 / math.sqrt(df)
    edges = np.linspace(low, high, 1 + math.ceil(max(64.0, 2 * critical * (high - low))))
    half = (edges[1:] - edges[:-1]) / 2
    s = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    log_density = (df - 1) * np.log(s) - df * s * s / 2 + math.log(2) + df / 2 * math.log(df / 2)
    density = np.exp(log_density - math.lgamma(df / 2)) * half[:, None] * weights
    tails = special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)
    return min(1.0, float((density * tails).sum()))


def detectable_difference_t(sd: float, n: int, confidence: float = 0.95, power: float = 0.8) -> float | None:
    """Smallest true difference that ``n`` seeds show with probability ``power``; None below 2 seeds.

    Solves ``power_t(difference, sd, n, confidence) = power`` by bisection; the power rises with the difference.
    """
    if not 1 - confidence < power < 1:
        raise ValueError(f"power {power} must lie between {1 - confidence:g}, the level of the test, and 1")
    if power_t(0.0, sd, n, confidence) is None:
        return None
    lo, hi = 0.0, sd
    while (power_t(hi, sd, n, confidence) or 0.0) < power:
        lo, hi = hi, 2 * hi
    while hi - lo > 1e-10 * hi:
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if (power_t(middle, sd, n, confidence) or 0.0) < power else (lo, middle)
    return (lo + hi) / 2


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
