"""Means over seeds: Student's t interval, test and power."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from prismlab.stats.interval import Interval, check_level, special, vector


def mean_t(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values (one a seed) with Student's t interval, n - 1 degrees of freedom.

    One value has a mean and no interval; equal values have an interval without width, and ``reason`` says so.
    """
    check_level(confidence)
    x = vector(values, "values")
    n = len(x)
    if n == 0:
        return Interval(None, None, None, 0, "t", "no values")
    mean = float(x.mean())
    if n == 1:
        return Interval(mean, None, None, 1, "t", "one value shows no spread: an interval needs at least 2 seeds")
    half = float(special().stdtrit(n - 1, 0.5 + confidence / 2)) * float(x.std(ddof=1)) / math.sqrt(n)
    if bool((x == x[0]).all()):
        return Interval(float(x[0]), float(x[0]), float(x[0]), n, "t", f"all {n} values are equal")
    return Interval(mean, mean - half, mean + half, n, "t")


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of a - b over pairs (the same seed in both) with Student's t interval."""
    x, y = vector(a, "a"), vector(b, "b")
    if len(x) != len(y):
        raise ValueError(f"pairs need equal lengths, not {len(x)} and {len(y)}")
    return mean_t(x - y, confidence)


def p_value_t(values: ArrayLike, null: float = 0.0, side: Literal["two", "greater", "less"] = "two") -> float | None:
    """p-value of the one-sample t test of mean = ``null``; None with fewer than 2 values or without spread."""
    x = vector(values, "values")
    if len(x) < 2 or bool((x == x[0]).all()):
        return None
    t = float((x.mean() - null) / (x.std(ddof=1) / math.sqrt(len(x))))
    below = float(special().stdtr(len(x) - 1, t))
    above = float(special().stdtr(len(x) - 1, -t))
    return {"two": min(1.0, 2 * min(below, above)), "greater": above, "less": below}[side]


def power_t(effect: float, sd: float, n: int, confidence: float = 0.95) -> float | None:
    """Power of the two-sided one-sample (or paired) t test, from the noncentral t distribution (Cohen 1988).

    Args:
        effect: true mean (of the difference), same unit as ``sd``.
        sd: standard deviation of one value, above 0.
        n: number of seeds; below 2 there is no test and the power is None.
    """
    check_level(confidence)
    if not sd > 0:
        raise ValueError(f"standard deviation {sd} must be above 0")
    if n < 2:
        return None
    critical = float(special().stdtrit(n - 1, 0.5 + confidence / 2))
    return _two_sided_power(abs(effect) / sd * math.sqrt(n), critical, n - 1)


def _two_sided_power(shift: float, critical: float, df: int) -> float:
    """P(|T| > critical) of the noncentral t with ``df`` degrees of freedom and noncentrality ``shift``.

    T = (Z + shift)/S with S = sqrt(chi2/df), so the probability is the mean of Phi(shift - cS) + Phi(-shift - cS) over
    S. Gauss-Legendre in panels finer than the step of Phi: library routines lose digits, or give NaN, at few degrees
    of freedom and large shifts, which is where a study with three seeds lies.
    """
    gauss = special()
    nodes, weights = np.polynomial.legendre.leggauss(16)
    low, high = max(0.0, 1 - 12 / math.sqrt(df)), 1 + 12 / math.sqrt(df)
    edges = np.linspace(low, high, 1 + math.ceil(max(64.0, 2 * critical * (high - low))))
    half = (edges[1:] - edges[:-1]) / 2
    s = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    log_density = (df - 1) * np.log(s) - df * s * s / 2 + math.log(2) + df / 2 * math.log(df / 2)
    density = np.exp(log_density - math.lgamma(df / 2)) * half[:, None] * weights
    tails = gauss.ndtr(shift - critical * s) + gauss.ndtr(-shift - critical * s)
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


MOST_SEEDS = 10_000
"""Seeds beyond which no study is planned."""


def seeds_to_decide(distance: float, sd: float, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Seeds after which the two-sided t test sees ``distance`` from its threshold with probability ``power``.

    The smallest n with ``power_t(distance, sd, n, confidence) >= power``, by bisection: the power rises with n.

    Args:
        distance: true mean minus the threshold, of either sign; 0 is never decided and gives None.
        sd: standard deviation of one value, above 0.

    Returns:
        2 or more; None where more than ``MOST_SEEDS`` would be needed.
    """

    def enough(n: int) -> bool:
        return (power_t(distance, sd, n, confidence) or 0.0) >= power

    if distance == 0 or not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
