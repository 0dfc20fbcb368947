"""Sections of the page that show where training went: directions of updates, and the path of a run step by step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prismlab.report import figures
from prismlab.report.figures import Line, Panel, colour
from prismlab.report.heat import HeatMap, heat_maps
from prismlab.report.records import Found, Records, at_threshold, number, over_seeds
from prismlab.report.sections import Cell, Drawing, Section, Table, name_cell
from prismlab.report.text import short, with_interval
from prismlab.stats import Interval

ONE_PERCENT = 0.01
_FROM_MID = re.compile(r"mid\[\w+\](>rl\[\w+\])")
Points = list[tuple[float, float]]
Curve = Callable[[Mapping[str, Any]], Points]


def _groups(found: Sequence[Found]) -> list[tuple[str, tuple[str, ...]]]:
    """Base and checkpoints of every group, in the order of the plan."""
    return list(dict.fromkeys((one.entry["base"], tuple(one.entry["checkpoints"])) for one in found))


def _cell(metrics: Mapping[str, Any], part: str | None, i: int, j: int) -> object:
    """Cosine of two updates, whole or of a component."""
    table = metrics.get("cosine") if part is None else metrics.get("components", {}).get(part)
    return table[i][j] if table else None


def directions(records: Records) -> Section:
    """Cosines between all updates from one base: a map of the whole model, a table by component."""
    found = records.of("direction")
    if not found:
        return Section("direction", "Update directions", note="The analysis 'direction' was not part of this study.")
    parts = list(dict.fromkeys(part for one in found for part in one.artifact.metrics.get("components", {})))
    maps: list[HeatMap] = []
    rows: list[list[Cell]] = []
    for base, names in _groups(found):
        steps = [one for one in found if (one.entry["base"], tuple(one.entry["checkpoints"])) == (base, names)]
        size, labels = range(len(names)), [records.label(name) for name in names]
        values = [[records.interval(steps, lambda m, i=i, j=j: _cell(m, None, i, j)).value for j in size] for i in size]
        maps.append(HeatMap(title=f"updates from {records.label(base)}", names=labels, values=values))
        for i in size:
            rows += [_pair_row(records, steps, base, names, (i, j), parts) for j in range(i + 1, len(names))]
    how = (
        "Cosine between every two updates from one start, whole model: 1 is one direction, 0 has nothing in common, "
        "−1 is the opposite."
    )
    table = Table(["updates", "from", "whole model", *parts], rows, "Cosines by component, means over seeds.")
    drawing = Drawing("direction", heat_maps(maps), how, "Cosine between updates")
    return Section("direction", "Update directions", short="Direction", drawings=[drawing], tables=[table])


def _pair_row(
    records: Records,
    steps: Sequence[Found],
    base: str,
    names: Sequence[str],
    pair: tuple[int, int],
    parts: Sequence[str],
) -> list[Cell]:
    i, j = pair
    row = [Cell(records.label(names[i]), f"and {records.label(names[j])}", number=False)]
    row.append(Cell(records.label(base), number=False))
    for part in (None, *parts):
        interval = records.interval(steps, lambda m, part=part: _cell(m, part, i, j))
        row.append(with_interval(interval, 3, False, Cell))
    return row


def _points(metrics: Mapping[str, Any], values: Sequence[Any] | None, factor: float = 1.0) -> Points:
    known = zip(metrics.get("steps", []), map(number, values or []), strict=False)
    return [(float(step), factor * value) for step, value in known if value is not None]


def _relative(metrics: Mapping[str, Any]) -> Points:
    points = _points(metrics, metrics.get("l2"))
    last = points[-1][1] if points else 0.0
    return [(step, value / last) for step, value in points] if last else []


def _length(metrics: Mapping[str, Any]) -> Points:
    return _points(metrics, metrics.get("l2"))


def _active(metrics: Mapping[str, Any]) -> Points:
    curve: Any = at_threshold(metrics.get("changed", {}), ONE_PERCENT)
    return _points(metrics, curve, 100)


def _overlap(metrics: Mapping[str, Any]) -> Points:
    return _points(metrics, metrics.get("overlap"))


def trajectories(records: Records) -> Section:
    """How far runs are from their start, snapshot by snapshot, and how runs from two starts differ."""
    found = records.of("trajectory")
    if not found:
        return Section("trajectory", "Trajectories", note="The analysis 'trajectory' was not part of this study.")
    order = records.checkpoints(one.entry["checkpoint"] for one in found)

    def lines(read: Curve) -> list[Line]:
        out: list[Line] = []
        for c in order:
            seeds = {one.seed: read(one.artifact.metrics) for one in found if one.entry["checkpoint"] == c}
            out.append(Line(name=records.label(c), colour=colour(records.label(c)), seeds=seeds, markers=True))
        return out

    panels = [
        Panel(title="distance ‖now − start‖ / ‖start‖", x="step", y="L2", lines=lines(_length)),
        Panel(title="the same, share of the final one", x="step", y="share", lines=lines(_relative)),
        Panel(title="elements changed by more than 1%", x="step", y="percent", lines=lines(_active)),
        Panel(title="overlap with the snapshot before", x="step", y="share", lines=lines(_overlap)),
    ]
    how = (
        "Snapshots of a run against its start, all runs on one axis. A distance that rises early and flattens is "
        "front-loaded; overlap is Jaccard's, of the sets of changed elements."
    )
    drawings = [Drawing("trajectory", figures.draw(panels, columns=2, height=290), how, "Trajectories")]
    drawings += _differences(records)
    head = ["run", "share of the distance at 40% of the steps", "steps to half", "steps to 80%"]
    rows = [_trajectory_row(records, c) for c in order]
    tables = [Table(head, rows, "Means over seeds with their intervals."), _component_table(records, order)]
    return Section("trajectory", "Trajectories", drawings=drawings, tables=tables)


def _rivals(records: Records) -> list[tuple[str, str]]:
    """RL from mid-training and RL with the same prompts from the base, where both have a trajectory."""
    there = list(dict.fromkeys(one.entry["checkpoint"] for one in records.of("trajectory")))
    pairs: list[tuple[str, str]] = []
    for checkpoint in records.checkpoints(there):
        match = _FROM_MID.fullmatch(records.arm(checkpoint) or "")
        other = records.arms.get(f"base{match[1]}") if match else None
        if other in there:
            pairs.append((checkpoint, str(other)))
    return pairs


def _differences(records: Records) -> list[Drawing]:
    """From mid minus from base, step by step."""
    lines: dict[str, list[Line]] = {"changed": [], "front": []}
    for mid, base in _rivals(records):
        name, tint = f"{records.label(mid)} minus {records.label(base)}", colour(records.label(mid))
        for key, read in (("changed", _active), ("front", _relative)):
            lines[key] += _difference_lines(records, (mid, base), read, name, tint)
    if not any(lines.values()):
        return []
    panels = [
        Panel(title="changed by more than 1%: difference", x="step", y="points", lines=lines["changed"]),
        Panel(title="share of the final distance: difference", x="step", y="share", lines=lines["front"]),
    ]
    how = (
        "RL from mid-training minus RL with the same prompts from the base, at the steps that both have: 0 is a path "
        f"that does not depend on its start. Dotted: {records.confidence:.0%} interval over seeds, where there are "
        "several."
    )
    figure = figures.draw(panels, columns=2, height=290)
    return [Drawing("trajectory-difference", figure, how, "Difference between starts")]


def _difference_lines(records: Records, pair: tuple[str, str], read: Curve, name: str, tint: str) -> list[Line]:
    curves = [
        {one.seed: dict(read(one.artifact.metrics)) for one in records.of("trajectory", checkpoint=checkpoint)}
        for checkpoint in pair
    ]
    at: dict[float, dict[int, float]] = {}
    for seed in curves[0].keys() & curves[1].keys():
        for step in curves[0][seed].keys() & curves[1][seed].keys():
            at.setdefault(step, {})[seed] = curves[0][seed][step] - curves[1][seed][step]
    spans = {step: over_seeds(values, records.confidence) for step, values in sorted(at.items())}
    first = records.seeds[0]
    mean = [(step, span.value) for step, span in spans.items() if span.value is not None]
    out = [Line(name=name, colour=tint, seeds={first: mean}, markers=True)]
    for which in ("lo", "hi"):
        bound = [(step, value) for step, span in spans.items() if (value := getattr(span, which)) is not None]
        out.append(Line(name=f"{name}, interval", colour=tint, seeds={first: bound}, dash="dot"))
    return out


def _trajectory_row(records: Records, checkpoint: str) -> list[Cell]:
    found = records.of("trajectory", checkpoint=checkpoint)
    row = [name_cell(records, checkpoint)]
    for field, digits in (("front_share", 3), ("step50", 1), ("step80", 1)):
        values = records.by_seed(found, lambda m, field=field: m.get(field))
        row.append(with_interval(over_seeds(values, records.confidence), digits, False, Cell))
    return row


def _component_table(records: Records, order: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for checkpoint in order:
        found = records.of("trajectory", checkpoint=checkpoint)
        parts = dict.fromkeys(name for one in found for name in one.artifact.metrics.get("components", {}))
        rows += [_component_row(records, found, checkpoint, part) for part in parts]
    head = ["run", "component", "L2", "changed by over 1%, %", "steps to half", "steps to 80%"]
    caption = "By component: distance and share changed at the last snapshot, and the steps to half and 80% of it."
    return Table(head, rows, caption, folded=True)


def _component_row(records: Records, found: Sequence[Found], checkpoint: str, part: str) -> list[Cell]:
    def mean(read: Callable[[Mapping[str, Any]], object]) -> Interval:
        values = records.by_seed(found, lambda m: read(m.get("components", {}).get(part, {})))
        return over_seeds(values, records.confidence)

    length = mean(lambda m: _last(m.get("l2")))
    row = [name_cell(records, checkpoint), Cell(part, number=False), Cell(short(length.value))]
    row.append(with_interval(mean(_last_changed), 2, False, Cell))
    return row + [with_interval(mean(lambda m, f=field: m.get(f)), 1, False, Cell) for field in ("step50", "step80")]


def _last(values: Any) -> float | None:
    return number(values[-1]) if values else None


def _last_changed(metrics: Mapping[str, Any]) -> float | None:
    share = _last(at_threshold(metrics.get("changed", {}), ONE_PERCENT))
    return None if share is None else 100 * share
