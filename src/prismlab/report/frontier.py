"""The section on the solvability frontier: what RL did to prompts that its start solved never, once and more often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.report import figures
from prismlab.report.figures import Bars, Line, Panel
from prismlab.report.records import Found, Records, number
from prismlab.report.sections import Cell, Drawing, Section, Table, name_cell
from prismlab.report.text import with_interval

GROUPS = {"0": "never solved at the start", "1": "solved once at the start", "more": "solved more often"}
SIDES = {"fresh": ("start, drawn again", "#8a909c"), "after": ("after RL", "#c2459b")}
PASS = {"before": ("start, drawn again", "#8a909c"), "after": ("after RL", "#c2459b")}


def _read(group: str, side: str, metrics: Mapping[str, Any]) -> object:
    return metrics.get("groups", {}).get(group, {}).get(side)


def _bars(records: Records, by_run: Mapping[str, Sequence[Found]], group: str) -> Panel:
    bars = [
        Bars(
            name=name,
            colour=colour,
            values={
                records.label(run): records.interval(some, lambda m, side=side: _read(group, side, m))
                for run, some in by_run.items()
            },
        )
        for side, (name, colour) in SIDES.items()
    ]
    return Panel(title=GROUPS[group], y="pass rate, %", bars=bars)


def _passes(records: Records, run: str, some: Sequence[Found]) -> Panel:
    """pass@k of all prompts over k, before and after."""
    lines: list[Line] = []
    for side, (name, colour) in PASS.items():
        seeds: dict[int, list[tuple[float, float]]] = {}
        for one in some:
            cells = one.artifact.metrics.get("pass_at_k", {})
            points = [(float(k), number(cell.get(side))) for k, cell in cells.items()]
            seeds[one.seed or 0] = [(k, value) for k, value in points if value is not None]
        lines.append(Line(name=name, colour=colour, seeds=seeds, markers=True))
    return Panel(title=f"pass@k, {records.label(run)}", x="k", y="%", lines=lines)


def _table(records: Records, by_run: Mapping[str, Sequence[Found]]) -> Table:
    rows: list[list[Cell]] = []
    for run, some in by_run.items():
        for group, what in GROUPS.items():
            prompts = sum(one.artifact.metrics["groups"][group]["prompts"] for one in some)
            gain = records.interval(some, lambda m, group=group: _read(group, "difference", m))
            names = [name_cell(records, run), Cell(what, number=False)]
            rows.append([*names, Cell(str(prompts)), with_interval(gain, 1, False, Cell)])
    return Table(
        head=("run", "prompts that were", "prompts", "gain, points"),
        rows=rows,
        caption="Gain: pass rate after RL minus the start's second draw, paired by prompt and sample.",
    )


def frontier(records: Records) -> Section:
    """Pass rates of RL's own prompts before and after it, by how often the start solved them."""
    found = records.of("frontier")
    if not found:
        return Section("frontier", "What RL unlocked", note="The analysis 'frontier' was not part of this study.")
    order = records.checkpoints(one.entry["checkpoint"] for one in found)
    by_run = {run: [one for one in found if one.entry["checkpoint"] == run] for run in order}
    how = (
        "Prompts are put in groups by a first draw of the start. They are compared with a second, independent draw of "
        "it: prompts picked for a bad first draw do better on another one without any learning."
    )
    panels = [_bars(records, by_run, group) for group in GROUPS]
    curves = [_passes(records, run, some) for run, some in by_run.items()]
    wide = "pass@k of all prompts: a gain at k = 1 that is gone at large k sharpens, one that stays widens."
    return Section(
        "frontier",
        "What RL unlocked",
        short="Frontier",
        drawings=[
            Drawing("frontier", figures.draw(panels), how, "Pass rate by solvability at the start"),
            Drawing("frontier-pass", figures.draw(curves), wide, "pass@k before and after RL"),
        ],
        tables=[_table(records, by_run)],
    )
