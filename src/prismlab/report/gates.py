"""Section of the page on retention gates: every benchmark's change against its margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.errors import shown
from prismlab.report import figures
from prismlab.report.figures import Bars, Figure, Panel, colour
from prismlab.report.records import Found, Records
from prismlab.report.sections import Cell, Drawing, Section, Table, name_cell
from prismlab.report.text import NONE
from prismlab.stats import Interval

LONG = 40
"""Rows from which the table is folded."""


def gates(records: Records) -> Section:
    """What checkpoints lost against the references of the study's gates, drawn against the margins."""
    found, ended = records.of("gate"), [e for e in records.entries if e["kind"] == "gate" and "missing" in e]
    if not found and not ended:
        return Section("gates", "Retention gates", note="This study has no retention gate.")
    names = list(dict.fromkeys(str(one.entry["name"]) for one in found))
    drawings = [
        _drawing(records, k, name, [o for o in found if o.entry["name"] == name]) for k, name in enumerate(names)
    ]
    rows = [row for one in found for row in _rows(records, one)]
    caption = (
        "Changes in points on the same items, with 95% intervals over items inside a seed. Retained: the whole "
        "interval lies above minus the margin. Regressed: a loss beyond the margin is shown, after Holm's "
        "correction over the benchmarks. So many items as needed decide with a probability of 80%, if the change "
        "seen is the true one."
    )
    head = ["checkpoint", "against", "benchmark", "seed", "verdict", "reference", "new", "change", "margin", "items"]
    tables = [Table([*head, "items needed"], rows, caption, folded=len(rows) > LONG)] if rows else []
    lead = "What was lost on benchmarks that a checkpoint should keep. An average takes no part, so none hides a loss."
    note = " ".join([*_warnings(found), *_stopped(ended)])
    return Section("gates", "Retention gates", lead, drawings, tables, short="Gates", note=note)


def _warnings(found: Sequence[Found]) -> list[str]:
    """A sentence for every checkpoint that a gate was asked to warn of and that is not shown to be retained."""
    told: dict[str, list[str]] = {}
    for one in found:
        verdict, action = one.artifact.metrics["verdict"], one.artifact.config["spec"]["action"]
        if action != "record" and verdict != "retained":
            sides = f"{one.entry['checkpoint']} against {one.entry['reference']}"
            told.setdefault(f"Gate {one.entry['name']} warns: {sides} is {verdict}", []).append(str(one.seed))
    return [f"{text} (seed {', '.join(seeds)})." for text, seeds in told.items()]


def _stopped(ended: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"Gate {entry['name']}, seed {entry['seed']}: {entry['missing']}." for entry in ended]


def _interval(entry: Mapping[str, Any]) -> Interval:
    return Interval(entry["difference"], entry["lo"], entry["hi"], int(entry["items"]), "items")


def _number(value: float | None, form: str = ".1f") -> str:
    return NONE if value is None else format(value, form)


def _rows(records: Records, one: Found) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for task, entry in one.artifact.metrics["tasks"].items():
        bounds = "" if entry["lo"] is None else f"{entry['lo']:+.1f} to {entry['hi']:+.1f}"
        needed = entry["items_needed"]
        rows.append(
            [
                name_cell(records, str(one.entry["checkpoint"])),
                name_cell(records, str(one.entry["reference"])),
                Cell(shown(task, 40), number=False),
                Cell(str(one.seed)),
                Cell(str(entry["verdict"]), number=False, best=entry["verdict"] == "regressed"),
                Cell(_number(entry["base"])),
                Cell(_number(entry["new"])),
                Cell(_number(entry["difference"], "+.1f"), bounds),
                Cell(f"{entry['margin']:g}"),
                Cell(f"{entry['items']:,}"),
                Cell(NONE if needed is None else f"{needed:,}"),
            ]
        )
    return rows


def _drawing(records: Records, place: int, name: str, found: Sequence[Found]) -> Drawing:
    """A panel a benchmark: a bar a checkpoint and seed, the margin as a line."""
    tasks = list(dict.fromkeys(task for one in found for task in one.artifact.metrics["tasks"]))
    panels: list[Panel] = []
    margins: list[float] = []
    for task in tasks:
        bars: dict[str, dict[str, Interval]] = {}
        for one in found:
            entry = one.artifact.metrics["tasks"].get(task)
            if entry is None or entry["difference"] is None:
                continue
            label = records.label(str(one.entry["checkpoint"]))
            category = label if len(records.seeds) == 1 else f"{label}, seed {one.seed}"
            bars.setdefault(label, {})[category] = _interval(entry)
        if bars:
            drawn = [Bars(name=label, colour=colour(label), values=values) for label, values in bars.items()]
            panels.append(Panel(title=shown(task, 40), y="change, points", bars=drawn))
            margins.append(min(one.artifact.metrics["tasks"][task]["margin"] for one in found))
    reference = ", ".join(dict.fromkeys(records.label(str(one.entry["reference"])) for one in found))
    how = (
        f"Gate {name!r}, against {reference}: each bar is a checkpoint's change with its interval, the dashed line "
        "minus the margin. An interval wholly above the line is retained, one wholly below it a loss beyond the margin."
    )
    return Drawing(f"gate-{place}", _lined(panels, margins), how, f"Changes under gate {name}")


def _lined(panels: Sequence[Panel], margins: Sequence[float]) -> Figure:
    """The panels with a line at minus each one's margin; names of checkpoints stand in the legend."""
    figure = figures.draw(panels)
    shapes: list[dict[str, Any]] = []
    for k, margin in enumerate(margins):
        axis = "" if k == 0 else str(k + 1)
        where = {"xref": f"x{axis} domain", "yref": f"y{axis}", "x0": 0, "x1": 1, "y0": -margin, "y1": -margin}
        shapes.append({"type": "line", **where, "line": {"color": "#d9534f", "width": 1.5, "dash": "dash"}})
    layout = {**figure["layout"], "barmode": "overlay", "shapes": shapes}
    for key, axis in layout.items():
        if key.startswith("xaxis"):
            layout[key] = {**axis, "showticklabels": False}
    return {**figure, "layout": layout}
