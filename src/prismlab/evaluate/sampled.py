"""Scores from sample rows: pure functions, so that every aggregate in a report can be computed again from its rows.

A score is pass@1 in percent: the mean over all scored samples. Rows without a score (no verdict) are left out of the
mean and counted. A task's interval is Wilson's of what its items are worth (``stats.clustered_proportion``), and that
of a mean over tasks or domains is put together from theirs (MOVER, below). Nothing is resampled: a task at 0 or 100%
shows no spread in resamples and would be counted as known exactly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.stats import Interval, clustered_proportion

Row = Mapping[str, Any]
"""A sample row of ``prismlab.score``."""

Score = dict[str, Any]
"""``{value, lo, hi, items, samples, truncation, unscored}``, percent but for counts; ``reason`` where one is due."""

CONFIDENCE = 0.95


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _score(interval: Interval, rows: Sequence[Row]) -> Score:
    ended = [row["finished"] for row in rows]
    score: Score = {
        "value": _percent(interval.value),
        "lo": _percent(interval.lo),
        "hi": _percent(interval.hi),
        "items": len({(row["task"], row["item_id"]) for row in rows}),
        "samples": len(rows),
        "truncation": 100.0 * ended.count(False) / len(ended) if ended else None,
        "unscored": sum(row["score"] is None for row in rows),
    }
    if interval.reason is not None:
        score["reason"] = interval.reason
    return score


def task_score(rows: Sequence[Row]) -> Score:
    """The score of one task's rows.

    ``truncation`` is the share of all samples without a stop token. If no row has a score, ``value``, ``lo`` and ``hi``
    are None. The unit of the interval is the problem: items that ask the same thing in other words are not independent.
    """
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        return _score(Interval(None, None, None, 0, "wilson over items", "no sample was scored"), rows)
    interval = clustered_proportion([row["score"] for row in scored], [row["problem"] for row in scored], CONFIDENCE)
    return _score(interval, rows)


def mean_of(parts: Mapping[str, Score], rows: Sequence[Row], what: str) -> Score:
    """Unweighted mean of independent scores: a domain of its tasks, the average of its domains.

    Bounds by MOVER, the method of variance estimates recovery (Zou and Donner 2008): with k parts,
    ``lo = mean - sqrt(sum((value_i - lo_i)^2)) / k`` and ``hi`` likewise; exact for normal estimates, and it keeps the
    asymmetry of the parts' intervals.

    Args:
        parts: name to score.
        rows: the rows behind all parts, for the counts and the truncation rate.
        what: what a part is called in a reason (task, domain).
    """
    missing = [name for name, part in parts.items() if part["value"] is None]
    if not parts or missing:
        # A mean over the others would be another quantity under the same name.
        reason = f"{what} {', '.join(missing)} has no score" if missing else f"no {what}"
        return _score(Interval(None, None, None, 0, "mover", reason), rows)
    if len(parts) == 1:
        return dict(next(iter(parts.values())))
    k = len(parts)
    value = sum(part["value"] for part in parts.values()) / k
    unbounded = [name for name, part in parts.items() if part["lo"] is None or part["hi"] is None]
    if unbounded:
        reason = f"{what} {', '.join(unbounded)} has no interval"
        return _score(Interval(value / 100, None, None, k, "mover", reason), rows)
    below = math.hypot(*(part["value"] - part["lo"] for part in parts.values())) / k
    above = math.hypot(*(part["hi"] - part["value"] for part in parts.values())) / k
    return _score(Interval(value / 100, (value - below) / 100, (value + above) / 100, k, "mover"), rows)


def by_length(tasks: Mapping[str, Score], lengths: Mapping[str, int], rows: Sequence[Row]) -> dict[str, Score]:
    """Mean score over the tasks of each length, by the length in tokens, rising.

    Args:
        tasks: scores by task.
        lengths: length in tokens of the tasks that were made for one.
        rows: the rows behind all tasks.
    """
    found: dict[str, Score] = {}
    for length in sorted(set(lengths.values())):
        names = [name for name in tasks if lengths.get(name) == length]
        mine = [row for row in rows if row["task"] in names]
        found[str(length)] = mean_of({name: tasks[name] for name in names}, mine, "task")
    return found


def aggregate(rows: Sequence[Row], lengths: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All scores of an evaluation: ``tasks``, ``domains`` (mean over their tasks), ``average`` (mean over domains).

    Args:
        rows: sample rows, in any order.
        lengths: length in tokens of the tasks that were made for one; where there are any, scores come by
            ``lengths``, too.
    """
    by_task: defaultdict[str, list[Row]] = defaultdict(list)
    by_domain: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
        by_domain[row["domain"]].append(row)
    tasks = {task: task_score(mine) for task, mine in by_task.items()}
    domains: dict[str, Score] = {}
    for domain, mine in by_domain.items():
        names = dict.fromkeys(row["task"] for row in mine)
        domains[domain] = mean_of({name: tasks[name] for name in names}, mine, "task")
    whole = {"tasks": tasks, "domains": domains, "average": mean_of(domains, rows, "domain")}
    return {**whole, "lengths": by_length(tasks, lengths, rows)} if lengths else whole
