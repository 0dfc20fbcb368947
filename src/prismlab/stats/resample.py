"""Bootstrap intervals: items, each with all its samples, are drawn again with replacement."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prismlab.stats.interval import Floats, Interval, Statistic, check_level, vector
from prismlab.stats.proportions import group, per_cluster, wilson

CHUNK = 2**17
"""Places drawn at a time: few enough to stay in the cache, and memory stays bounded however many items there are."""


def _draws(k: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Bootstrap resamples of k units as places 0 .. k-1, some rows [rows, k] at a time; ``resamples`` rows in all."""
    if resamples < 100:
        raise ValueError(f"{resamples} resamples are too few for a percentile interval; take at least 100")
    rng, rows = np.random.default_rng(seed), max(1, CHUNK // k)
    for begin in range(0, resamples, rows):
        # 64-bit places: numpy draws smaller ones, and takes by them, more slowly.
        yield rng.integers(0, k, (min(rows, resamples - begin), k))


def _sums(columns: Sequence[Floats], resamples: int, seed: int) -> list[Floats]:
    """Sums of each column, one value a unit, over the same resamples; [resamples] each."""
    parts = [
        [column.take(places).sum(axis=1) for column in columns] for places in _draws(len(columns[0]), resamples, seed)
    ]
    return [np.concatenate(chunks) for chunks in zip(*parts, strict=True)]


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
    check_level(confidence)
    x = vector(values, "values")
    codes, k = group(clusters, len(x))
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
    if statistic is None:
        sums, counts = per_cluster(codes, k, x), per_cluster(codes, k)
        if bool((counts == counts[0]).all()):
            (totals,) = _sums([sums], resamples, seed)
            estimates = totals / len(x)
        else:
            totals, sizes = _sums([sums, counts], resamples, seed)
            estimates = totals / sizes
    else:
        draws = (np.bincount(row, minlength=k) for places in _draws(k, resamples, seed) for row in places)
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
    check_level(confidence)
    top, bottom = vector(numerators, "numerators"), vector(denominators, "denominators")
    if len(top) != len(bottom):
        raise ValueError(f"{len(top)} numerators and {len(bottom)} denominators")
    if len(top) == 0:
        return Interval(None, None, None, 0, "bootstrap ratio", "no values")
    if bool((bottom < 0).any()) or not float(bottom.sum()) > 0:
        raise ValueError("denominators must be 0 or more, and not all 0")
    codes, k = (np.arange(len(top)), len(top)) if clusters is None else group(clusters, len(top))
    point = float(top.sum() / bottom.sum())
    if k == 1:
        return Interval(point, None, None, 1, "bootstrap ratio", "one unit shows no spread: at least 2 are needed")
    columns = [per_cluster(codes, k, column) for column in (top, bottom)]
    tops, bottoms = _sums(columns, resamples, seed)
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
    check_level(confidence)
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
