"""Figures of the page of ``prism diff``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prismlab.analyse.weights import Found
from prismlab.arith.sums import threshold_key
from prismlab.report import figures
from prismlab.report.figures import COMPONENT_COLOURS, SPARE_COLOURS, Bars, Line, Panel, colour, layer_ticks
from prismlab.report.heat import HeatMap, heat_maps
from prismlab.report.sections import Drawing
from prismlab.report.weights import STEPS, ULP_COLOURS, step_shares
from prismlab.stats import Interval
from prismlab.tools.diff_text import MOST_BARS, SIGNIFICANT, main_type, nearest

Point = tuple[float, float]
WIDE = 30.0
"""Ratio of the largest to the smallest length above which bars stand on a log axis, where they have no foot."""


def _value(value: float | None) -> Interval:
    return Interval(value, None, None, 1, "one")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _parts(found: Found) -> Mapping[str, Any]:
    """Sub-components, or of a model with too many of them (an unknown one, by tensor) the components."""
    fine = found.metrics["subcomponents"]
    return fine if len(fine) <= MOST_BARS else found.metrics["components"]


def _change(found: Mapping[str, Found], t: float) -> Drawing:
    tints = {name: SPARE_COLOURS[k % len(SPARE_COLOURS)] for k, name in enumerate(found)}
    key = threshold_key(t)

    def bars(read: Any) -> list[Bars]:
        return [
            Bars(name=name, colour=tints[name], values={p: _value(read(div)) for p, div in _parts(one).items()})
            for name, one in found.items()
        ]

    moved = bars(lambda div: _percent(div["changed"][key]))
    lengths = bars(lambda div: div["l2"] or None)
    known = [i.value for one in lengths for i in one.values.values() if i.value]
    wide = bool(known) and max(known) > WIDE * min(known)
    scale = "L2, log scale" if wide else "L2"
    panels = [
        Panel(title=f"elements changed by more than {100 * t:g}%", y="percent", bars=moved, y_range=(0, 100)),
        Panel(title="distance ‖new − old‖ / ‖old‖", y=scale, bars=lengths, log_y=wide),
    ]
    how = "Above: the share of elements that moved by more than the threshold. Below: how far they moved."
    return Drawing("change", figures.draw(panels, columns=1, height=280), how, "Change by part")


def _steps(found: Mapping[str, Found]) -> Drawing:
    rows: dict[str, dict[str, float]] = {}
    for name, one in found.items():
        parts = {"whole": one.metrics["total"], **_parts(one)} if len(found) == 1 else {name: one.metrics["total"]}
        rows |= {part: step_shares(div["ulp"]) for part, div in parts.items() if div["ulp"]}
    how = (
        "Distance between old and new in numbers that the saved format can represent. Equal elements moved by less "
        "than rounding keeps, or not at all; of bf16 one step is 0.39 to 0.78% of a number."
    )
    figure = figures.stacked(rows, {STEPS[k]: tint for k, tint in ULP_COLOURS.items()}, "percent of the elements")
    return Drawing("steps", figure, how, "Distance in steps of the saved format")


def _threshold_lines(found: Mapping[str, Found]) -> Drawing:
    lines: list[Line] = []
    for k, (name, one) in enumerate(found.items()):
        parts = one.metrics["components"] if len(found) == 1 else {name: one.metrics["total"]}
        for part, div in parts.items():
            known = [(100 * float(t), 100 * (1 - share)) for t, share in div["changed"].items() if share is not None]
            tint = colour(part, COMPONENT_COLOURS) if len(found) == 1 else SPARE_COLOURS[k % len(SPARE_COLOURS)]
            lines.append(Line(name=part, colour=tint, seeds={0: sorted(known)}, markers=True))
    ticks = sorted({x for line in lines for x, _ in line.seeds[0]})
    panel = Panel(
        title="",
        x="threshold, percent of the old value (log scale)",
        y="percent unchanged",
        lines=lines,
        log_x=True,
        y_range=(0, 101),
        x_ticks=ticks,
    )
    how = "Share of elements that count as unchanged when the threshold grows: a steep line hangs on the choice of it."
    figure = figures.draw([panel], columns=1, height=330)
    main = main_type(next(iter(found.values())).metrics)
    step = 100 * 2.0 ** -SIGNIFICANT[main] if main else 0.0
    if ticks[0] <= 2 * step <= ticks[-1]:
        band = {"type": "rect", "xref": "x", "yref": "paper", "x0": step, "x1": 2 * step, "y0": 0, "y1": 1}
        band |= {"layer": "below", "line": {"width": 0}, "fillcolor": "rgba(134,184,23,0.22)"}
        figure["layout"]["shapes"] = [band]
        how += f" The green band is one step of {main}: left of it only equal numbers are unchanged."
    return Drawing("thresholds", figure, how, "Unchanged against threshold")


def _layers(found: Mapping[str, Found]) -> Drawing:
    met = {c for one in found.values() for by in one.metrics["layers"].values() for c in by}
    panels: list[Panel] = []
    for component in (c for c in COMPONENT_COLOURS if c in met):
        lines: list[Line] = []
        for k, (name, one) in enumerate(found.items()):
            by_layer = [(float(n), by.get(component, {}).get("l2")) for n, by in one.metrics["layers"].items()]
            points: list[Point] = [(n, value) for n, value in by_layer if value]  # a log axis has no place for 0
            tint = SPARE_COLOURS[k % len(SPARE_COLOURS)]
            lines.append(Line(name=name, colour=tint, seeds={0: points}, markers=True))
        ticks = layer_ticks(lines)
        panels.append(Panel(title=component, x="layer", y="L2, log scale", lines=lines, log_y=True, x_ticks=ticks))
    how = "Distance per layer on a log scale, by component."
    return Drawing("layers", figures.draw(panels, columns=3, height=270), how, "Distance by layer")


def _cosines(direction: Mapping[str, Any]) -> Drawing:
    names = direction["names"]
    tables = {"whole": direction["cosine"], **direction["components"]}
    maps = [HeatMap(title=name, names=names, values=values) for name, values in tables.items()]
    how = "Cosine between updates from the first checkpoint: 1 is one direction, 0 is unrelated, −1 is back."
    return Drawing("cosines", heat_maps(maps), how, "Cosines between updates")


def _ranks(found: Mapping[str, Found]) -> Drawing:
    lines: dict[str, list[Point]] = {}
    for name, one in found.items():
        for row in one.metrics.get("spectra", []):
            if row["stable_rank"] is not None and row["layer"] is not None:
                label = row["subcomponent"] if len(found) == 1 else f"{name}, {row['subcomponent']}"
                lines.setdefault(label, []).append((float(row["layer"]), row["stable_rank"]))
    drawn = [
        Line(name=name, colour=SPARE_COLOURS[k % len(SPARE_COLOURS)], seeds={0: sorted(points)}, markers=True)
        for k, (name, points) in enumerate(lines.items())
    ]
    panel = Panel(title="", x="layer", y="stable rank, log scale", lines=drawn, log_y=True, x_ticks=layer_ticks(drawn))
    how = "Stable rank of the update by layer: near 1, one direction does it all; noise has a large one."
    return Drawing("ranks", figures.draw([panel], columns=1, height=330), how, "Stable rank of updates")


def drawings(found: Mapping[str, Found], direction: Mapping[str, Any] | None) -> list[Drawing]:
    """Every figure that has something to show."""
    thresholds = [float(t) for t in next(iter(found.values())).metrics["total"]["changed"]]
    made = [_change(found, nearest(thresholds)), _steps(found), _threshold_lines(found), _layers(found)]
    made += [_cosines(direction)] if direction else []
    made += [_ranks(found)]
    return [one for one in made if one.figure["data"]]
