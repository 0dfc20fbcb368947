"""The section of the page that shows weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.report import figures
from prismlab.report.figures import COMPONENT_COLOURS, Bars, Line, Panel, colour, layer_ticks
from prismlab.report.records import Found, Records, at_threshold, number
from prismlab.report.sections import Cell, Drawing, Section, Table
from prismlab.report.text import short, with_interval

Pair = tuple[str, str]
ONE_PERCENT = 0.01


def _found(records: Records, kind: str, pair: Pair) -> list[Found]:
    return records.of(kind, old=pair[0], new=pair[1])


def _direct(records: Records, pair: Pair) -> bool:
    """Whether ``new`` was made from ``old`` in one stage: the pairs shown without a click."""
    return records.start_of(pair[1]) == pair[0]


def _union(found: Sequence[Found], field: str) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one.artifact.metrics.get(field, {})))


def _share(metrics: Mapping[str, Any], field: str, name: str, threshold: float = ONE_PERCENT) -> float | None:
    where = metrics.get("total", {}) if field == "total" else metrics.get(field, {}).get(name, {})
    share = number(at_threshold(where.get("changed", {}), threshold))
    return None if share is None else 100 * share


def _pair_bars(records: Records, pair: Pair, field: str, names: Sequence[str], log_l2: bool) -> Bars:
    found = _found(records, "weights", pair)

    def read(metrics: Mapping[str, Any], name: str) -> object:
        return metrics.get(field, {}).get(name, {}).get("l2") if log_l2 else _share(metrics, field, name)

    values = {name: records.interval(found, lambda m, name=name: read(m, name)) for name in names}
    return Bars(
        name=records.pair_label(*pair),
        colour=colour(records.label(pair[1])),
        values=values,
        shown=_direct(records, pair),
    )


def divergence(records: Records) -> Section:
    """Shares changed and distances, by sub-component, by layer and against the threshold."""
    pairs = records.pairs("weights")
    if not pairs:
        return Section("weights", "Weights", note="The analysis 'weights' was not part of this study.")
    names = _union(records.of("weights"), "subcomponents")
    shares = [_pair_bars(records, pair, "subcomponents", names, False) for pair in pairs]
    lengths = [_pair_bars(records, pair, "subcomponents", names, True) for pair in pairs]
    parts = figures.draw(
        [
            Panel(title="elements changed by more than 1%", y="percent", bars=shares, y_range=(0, 100)),
            Panel(title="distance ‖new − old‖ / ‖old‖", y="L2, log scale", bars=lengths, log_y=True),
        ],
        columns=1,
        height=280,
    )
    drawings = [
        Drawing(
            "divergence",
            parts,
            "Each group is a sub-component, each bar a transition in its own colour; dense change reaches 100%, "
            "sparse change stays near the floor. Transitions over several stages are switched on in the legend.",
            "Change by sub-component",
        ),
        Drawing(
            "layers",
            figures.draw(_layer_panels(records, pairs), columns=3, height=270),
            "Distance per layer on a log scale: parallel lines mean that a transition spreads alike over depth.",
            "Distance by layer",
        ),
        Drawing(
            "thresholds",
            figures.draw([_threshold_panel(records, pairs)], columns=1, height=330),
            "Share of elements that count as unchanged when the threshold grows: a gap that stays open from left "
            "to right does not hang on the choice of 1%.",
            "Sparsity against threshold",
        ),
    ]
    return Section("weights", "Weights", drawings=drawings, tables=[_weights_table(records, pairs)])


def _layer_panels(records: Records, pairs: Sequence[Pair]) -> list[Panel]:
    layers = [m for one in records.of("weights") for m in one.artifact.metrics.get("layers", {}).values()]
    components = [c for c in COMPONENT_COLOURS if any(c in layer for layer in layers)]
    panels: list[Panel] = []
    for component in components:
        lines: list[Line] = []
        for pair in pairs:
            seeds = {one.seed: _layer_points(one, component) for one in _found(records, "weights", pair)}
            label, tint = records.pair_label(*pair), colour(records.label(pair[1]))
            lines.append(Line(name=label, colour=tint, seeds=seeds, markers=True, shown=_direct(records, pair)))
        ticks = layer_ticks(lines)
        panels.append(Panel(title=component, x="layer", y="L2, log scale", lines=lines, log_y=True, x_ticks=ticks))
    return panels


def _layer_points(one: Found, component: str) -> list[tuple[float, float]]:
    layers = one.artifact.metrics.get("layers", {})
    points = [(float(n), number(layer.get(component, {}).get("l2"))) for n, layer in layers.items()]
    # A log axis has no place for a distance of exactly 0.
    return sorted((x, y) for x, y in points if y is not None and y > 0)


def _threshold_panel(records: Records, pairs: Sequence[Pair]) -> Panel:
    lines: list[Line] = []
    for pair in pairs:
        seeds: dict[int, list[tuple[float, float]]] = {}
        for one in _found(records, "weights", pair):
            changed = one.artifact.metrics.get("total", {}).get("changed", {})
            known = ((100 * float(t), number(share)) for t, share in changed.items())
            seeds[one.seed] = sorted((t, 100 * (1 - share)) for t, share in known if share is not None)
        label, tint = records.pair_label(*pair), colour(records.label(pair[1]))
        lines.append(Line(name=label, colour=tint, seeds=seeds, markers=True, shown=_direct(records, pair)))
    ticks = sorted({x for line in lines for points in line.seeds.values() for x, _ in points})
    where = "threshold, percent of the old value (log scale)"
    return Panel(title="", x=where, y="percent unchanged", lines=lines, log_x=True, y_range=(0, 101), x_ticks=ticks)


def _weights_table(records: Records, pairs: Sequence[Pair]) -> Table:
    rows: list[list[Cell]] = []
    for pair in pairs:
        found = _found(records, "weights", pair)
        changed = records.interval(found, lambda m: _share(m, "total", ""))
        length = records.interval(found, lambda m: m.get("total", {}).get("l2"))
        equal = records.interval(found, lambda m: _times(m.get("total", {}).get("equal"), 100))
        bounds = "" if length.lo is None else f"[{short(length.lo)}, {short(length.hi)}]"
        rows.append(
            [
                Cell(records.pair_label(*pair), number=False),
                with_interval(changed, 2, False, Cell),
                with_interval(equal, 2, False, Cell),
                Cell(short(length.value), bounds),
            ]
        )
    caption = "Whole model, all elements counted alike; 'exactly equal' compares the saved bf16 values."
    return Table(["transition", "changed by over 1%, %", "exactly equal, %", "L2"], rows, caption)


def _times(value: object, factor: float) -> float | None:
    found = number(value)
    return None if found is None else factor * found
