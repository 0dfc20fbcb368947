"""Points of a landscape and what their samples say: scores, deviations from the straight line, barriers.

Numbers only: the points' sample rows come from ``prismlab.analyse.landscape`` or from a file. Every point has the same
items and samples, so that two points are compared item by item.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismlab.evaluate.sampled import CONFIDENCE, Row, Score, aggregate
from prismlab.seeds import derive_seed
from prismlab.stats import cluster_bootstrap

Place = tuple[float, float]
"""(a, b) of W(a, b) = base + a (mid - base) + b (RL - mid)."""
Rows = Mapping[Place, Sequence[Row]]
RESAMPLES = 2000
"""Of the interval of a deviation from the straight line."""


@dataclass(frozen=True, kw_only=True)
class PathPoint:
    """A point on the way from base to mid (leg 1: b = 0) or from mid to RL (leg 2: a = 1)."""

    leg: int
    t: float
    """0 to 1 along its leg; where leg 2 begins stands the end of leg 1, so that no point is listed twice."""
    place: Place


def _steps(n: int) -> list[float]:
    return [float(value) for value in np.linspace(0.0, 1.0, n)]


def path_points(points: int, legs: int) -> list[PathPoint]:
    """``points`` points a leg, ends included: ``legs * (points - 1) + 1`` in all."""
    first = [PathPoint(leg=1, t=t, place=(t, 0.0)) for t in _steps(points)]
    return first + [PathPoint(leg=2, t=t, place=(1.0, t)) for t in _steps(points)[1:]] * (legs - 1)


def grid_points(grid: int | None) -> list[list[Place]]:
    """Places of an n x n grid over [0, 1] x [0, 1], one row for each a; none for None."""
    return [[(a, b) for b in _steps(grid)] for a in _steps(grid)] if grid else []


def all_places(points: int, legs: int, grid: int | None) -> list[Place]:
    """Each place of the path and the grid once, the path first."""
    path = [point.place for point in path_points(points, legs)]
    return list(dict.fromkeys([*path, *(place for row in grid_points(grid) for place in row)]))


def place_name(place: Place) -> str:
    """``<a>-<b>``, at most six decimals: the name of a point's file."""
    return "-".join(f"{value:.6f}".rstrip("0").rstrip(".") for value in place)


def _key(row: Row) -> tuple[str, str, int]:
    return (row["task"], row["item_id"], row["sample"])


def _paired(
    at: Sequence[Row], start: Sequence[Row], end: Sequence[Row], t: float
) -> dict[str, list[tuple[Any, float]]]:
    """By task: problem and score minus the straight line's, of every sample that has a score at all three points."""
    first, last = ({_key(row): row["score"] for row in rows} for rows in (start, end))
    found: defaultdict[str, list[tuple[Any, float]]] = defaultdict(list)
    for row in at:
        s0, s1 = first[_key(row)], last[_key(row)]
        if row["score"] is not None and s0 is not None and s1 is not None:
            found[row["task"]].append((row["problem"], row["score"] - (1 - t) * s0 - t * s1))
    return found


def _without_spread(value: float, t: float, at: Score, start: Score, end: Score) -> tuple[float | None, float | None]:
    """Bounds of a deviation from its three scores' own intervals, as if they were independent (MOVER)."""
    below: list[float] = []
    above: list[float] = []
    for score, factor in ((at, 1.0), (start, t - 1), (end, -t)):
        if score["value"] is None or score["lo"] is None or score["hi"] is None:
            return None, None
        down, up = abs(factor) * (score["value"] - score["lo"]), abs(factor) * (score["hi"] - score["value"])
        below.append(down if factor > 0 else up)
        above.append(up if factor > 0 else down)
    return value - math.hypot(*below), value + math.hypot(*above)


def _task_deviation(pairs: Sequence[tuple[Any, float]], t: float, own: Sequence[Score], seed: int) -> dict[str, Any]:
    """Mean of a task's paired differences in points: bounds by resampling problems, or from the scores' own bounds."""
    values = [difference for _, difference in pairs]
    found = cluster_bootstrap(values, [problem for problem, _ in pairs], CONFIDENCE, RESAMPLES, seed)
    value = 100.0 * float(np.mean(values))
    if found.reason is None and found.lo is not None and found.hi is not None:
        return {"value": value, "lo": 100.0 * found.lo, "hi": 100.0 * found.hi}
    # All differences are equal (at a floor, say): resampling would tell a spread of nothing.
    at, start, end = own
    lo, hi = _without_spread(value, t, at, start, end)
    return {"value": value, "lo": lo, "hi": hi}


def _mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Unweighted mean of independent values with bounds (MOVER); no bounds where one has none."""
    k = len(parts)
    value = sum(part["value"] for part in parts) / k
    if any(part["lo"] is None for part in parts):
        return {"value": value, "lo": None, "hi": None}
    below = math.hypot(*(part["value"] - part["lo"] for part in parts)) / k
    above = math.hypot(*(part["hi"] - part["value"] for part in parts)) / k
    return {"value": value, "lo": value - below, "hi": value + above}


def deviation(
    rows: Rows, scores: Mapping[Place, Mapping[str, Any]], at: Place, ends: tuple[Place, Place], t: float, seed: int
) -> dict[str, Any]:
    """How far a point's average lies above the straight line between its leg's ends, in points, with a 95% interval.

    Scores are paired by sample, and a task's interval resamples problems; tasks are put together to domains and the
    average as in an evaluation (see ``evaluate.sampled``). Where all pairs of a task differ alike, its bounds come from
    the three scores' own intervals (method of variance estimates recovery, Zou and Donner 2008), which is wider.

    Args:
        rows: sample rows by place.
        scores: what ``sampled.aggregate`` makes of them, by place.
        at: the point.
        ends: where its leg begins and ends.
        t: 0 to 1 along the leg.
        seed: of the bootstrap.

    Returns:
        ``{value, lo, hi, items}``, with ``reason`` where a number is None.
    """
    items = len({(row["task"], row["item_id"]) for row in rows[at]})
    pairs = _paired(rows[at], rows[ends[0]], rows[ends[1]], t)
    domains: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for task, domain in {row["task"]: row["domain"] for row in rows[at]}.items():
        if not pairs[task]:
            reason = f"task {task}: no sample has a score at this point and at both ends"
            return {"value": None, "lo": None, "hi": None, "items": items, "reason": reason}
        own = [scores[place]["tasks"][task] for place in (at, *ends)]
        domains[domain].append(_task_deviation(pairs[task], t, own, derive_seed(seed, "deviation", task)))
    whole = _mean([_mean(tasks) for tasks in domains.values()])
    return {**whole, "items": items, **({"reason": "a task has one problem"} if whole["lo"] is None else {})}


def _path_row(point: PathPoint, scores: Mapping[Place, Mapping[str, Any]], rows: Rows, seed: int) -> dict[str, Any]:
    a, b = point.place
    row: dict[str, Any] = {"leg": point.leg, "t": point.t, "a": a, "b": b, **scores[point.place], "deviation": None}
    if 0 < point.t < 1:
        ends: tuple[Place, Place] = ((0.0, 0.0), (1.0, 0.0)) if point.leg == 1 else ((1.0, 0.0), (1.0, 1.0))
        row["deviation"] = deviation(rows, scores, point.place, ends, point.t, seed)
    return row


def _barriers(path: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lowest inner point of each leg, with its own interval: as the lowest of several it is biased downwards."""
    found: list[dict[str, Any]] = []
    for leg in dict.fromkeys(row["leg"] for row in path):
        inner = [r for r in path if r["leg"] == leg and r["deviation"] and r["deviation"]["value"] is not None]
        if inner:
            least = min(inner, key=lambda row: row["deviation"]["value"])
            found.append({"leg": leg, **{key: least[key] for key in ("t", "a", "b")}, **least["deviation"]})
    return found


def summarise(rows: Rows, points: int, legs: int, grid: int | None, seed: int) -> dict[str, Any]:
    """The metrics of a landscape from its sample rows; see docs/architecture.md.

    Args:
        rows: sample rows by place, the same items and samples everywhere.
        points: points a leg.
        legs: 1 between two checkpoints, 2 from base over mid to RL.
        grid: points a side of the grid, None for none.
        seed: of the bootstraps of deviations, the same at every point.
    """
    scores = {place: aggregate(rows[place]) for place in all_places(points, legs, grid)}
    path = [_path_row(point, scores, rows, seed) for point in path_points(points, legs)]
    places = grid_points(grid)
    mesh = {
        "a": [row[0][0] for row in places],
        "b": [b for _, b in places[0]] if places else [],
        "average": [[scores[place]["average"] for place in row] for row in places],
    }
    return {
        "path": path,
        "grid": mesh if places else None,
        "barrier": _barriers(path),
        "points": len(scores),
        "samples": sum(len(mine) for mine in rows.values()),
    }
