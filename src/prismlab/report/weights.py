"""The section of the page that shows how far weights moved, and how much of what did not move is rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prismlab.errors import shown
from prismlab.report import figures
from prismlab.report.figures import COMPONENT_COLOURS, Bars, Figure, Line, Panel, colour, layer_ticks
from prismlab.report.records import Found, Records, at_threshold, number
from prismlab.report.sections import Cell, Drawing, Section, Table
from prismlab.report.text import NONE, short, with_interval
from prismlab.stats import Interval

Pair = tuple[str, str]
ONE_PERCENT = 0.01
STEPS = {"0": "equal", "1": "1 step", "2": "2 steps", "3-4": "3 to 4", ">4": "more"}
"""What the classes of distances are called."""
ULP_COLOURS = {"0": "#8a909c", "1": "#86b817", "2": "#d98f00", "3-4": "#3b7dd8", ">4": "#c2459b"}
"""Equal elements in the grey of what did not move."""
UNCHANGED = "unchanged at 1%"
FEW_ROWS = 16
"""Rows of a table above which it is folded."""


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
    drawings.insert(1, Drawing("steps", _steps(records, pairs), STEPS_READING, "Distance in steps of the saved format"))
    tables = [
        _weights_table(records, pairs),
        *_rounding_table(records, pairs),
        *_parts_table(records, pairs),
        *_spectra_table(records, pairs),
    ]
    return Section("weights", "Weights", drawings=drawings, tables=tables)


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


STEPS_READING = (
    "Distance between old and new weight in numbers that the saved format can represent. In bf16 one step is 0.39 to "
    "0.78% of a number, so at a threshold of 1% (diamonds) one step always counts as unchanged and two steps may: what "
    "moved by less than half a step was rounded away when the checkpoint was saved, and shows as equal."
)


def step_shares(ulp: Mapping[str, object] | None) -> dict[str, float]:
    """Classes of distances as the figures call them, in percent; empty where there are none."""
    found = {name: number(share) for name, share in (ulp or {}).items()}
    return {STEPS[name]: 100 * share for name, share in found.items() if share is not None}


def _steps(records: Records, pairs: Sequence[Pair]) -> Figure:
    """Stacked bars of distances by transition, means over seeds, and where 1% cuts them."""
    rows: dict[str, dict[str, float]] = {}
    cut: dict[str, float] = {}
    for pair in pairs:
        found = _found(records, "weights", pair)
        label = records.pair_label(*pair)
        means = {
            told: records.interval(found, lambda m, key=key: _times(_deep(m, "total", "ulp", key), 100)).value
            for key, told in STEPS.items()
        }
        if None not in means.values():
            rows[label] = {told: share for told, share in means.items() if share is not None}
            changed = records.interval(found, lambda m: _share(m, "total", "")).value
            cut |= {} if changed is None else {label: 100 - changed}
    figure = figures.stacked(rows, {STEPS[key]: tint for key, tint in ULP_COLOURS.items()}, "percent of the elements")
    if cut:
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": UNCHANGED,
                "x": list(cut.values()),
                "y": [figures.safe(label) for label in cut],
                "marker": {
                    "symbol": "diamond",
                    "size": 10,
                    "color": "#1c2026",
                    "line": {"color": "#fff", "width": 1.5},
                },
                "hovertemplate": f"%{{y}} · {UNCHANGED} : %{{x:.4g}}<extra></extra>",
            }
        )
    return figure


def _deep(metrics: Mapping[str, Any], *path: str) -> object:
    """What lies at the end of a path of keys; None where the path ends before."""
    value: Any = metrics
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _unchanged_equal(metrics: Mapping[str, Any]) -> float | None:
    """Of the elements unchanged at 1%, the percentage that are equal."""
    changed, equal = _share(metrics, "total", ""), number(_deep(metrics, "total", "equal"))
    return None if changed is None or equal is None or changed >= 100 else min(100.0, 1e4 * equal / (100 - changed))


def _weights_table(records: Records, pairs: Sequence[Pair]) -> Table:
    rows: list[list[Cell]] = []
    for pair in pairs:
        found = _found(records, "weights", pair)
        changed = records.interval(found, lambda m: _share(m, "total", ""))
        length = records.interval(found, lambda m: _deep(m, "total", "l2"))
        shares = [
            records.interval(found, lambda m: _times(_deep(m, "total", "equal"), 100)),
            records.interval(found, _unchanged_equal),
            records.interval(found, lambda m: _times(_deep(m, "total", "ulp", "1"), 100)),
            records.interval(found, lambda m: _times(_deep(m, "total", "sign_flips"), 100)),
        ]
        bounds = "" if length.lo is None else f"[{short(length.lo)}, {short(length.hi)}]"
        cells = [Cell(records.pair_label(*pair), number=False), with_interval(changed, 2, False, Cell)]
        cells += [with_interval(share, 2, False, Cell) for share in shares]
        rows.append([*cells, Cell(short(length.value), bounds)])
    caption = (
        "Whole model, all elements counted alike. 'Equal' compares the saved bf16 values; 'equal of the unchanged' is "
        "how much of what 1% calls unchanged is exactly equal, the rest moved by a step or two. Signs flip where an "
        "element passes through zero."
    )
    head = ["changed by over 1%, %", "equal, %", "equal of the unchanged, %", "one step, %", "sign flips, %", "L2"]
    return Table(["transition", *head], rows, caption)


def _rounding_table(records: Records, pairs: Sequence[Pair]) -> list[Table]:
    """What the master weights tell, of the transitions that kept them."""
    rows: list[list[Cell]] = []
    sentences: list[str] = []
    for pair in pairs:
        found = [one for one in _found(records, "weights", pair) if one.artifact.metrics.get("rounding")]
        if not found:
            continue
        label = records.pair_label(*pair)

        def read(name: str, found: list[Found] = found) -> Interval:
            return records.interval(found, lambda m: _times(m["rounding"].get(name), 100))

        shares = [read(name) for name in ("equal_saved", "equal_master", "hidden", "hidden_of_unchanged")]
        changed = [
            records.interval(found, lambda m, key=key: _times(at_threshold(m["rounding"][key], ONE_PERCENT), 100))
            for key in ("changed_saved", "changed_master")
        ]
        rows.append([Cell(label, number=False), *(with_interval(one, 2, False, Cell) for one in [*shares, *changed])])
        if shares[3].value is not None:
            sentences.append(f"{shares[3].value:.1f}% of what looks untouched in {label} is rounding")
    if not rows:
        return []
    told = f" So {'; '.join(sentences)}." if sentences else ""
    caption = (
        "Saved bf16 weights beside the float32 weights that they were rounded from: 'hidden' are elements that moved "
        f"in training and equal the start's once saved.{told}"
    )
    head = ["equal as saved, %", "equal in float32, %", "hidden by rounding, %", "hidden of the equal, %"]
    return [Table(["transition", *head, "over 1% as saved, %", "over 1% in float32, %"], rows, caption)]


def _parts_table(records: Records, pairs: Sequence[Pair]) -> list[Table]:
    """Every direct transition by sub-component."""
    rows: list[list[Cell]] = []
    for pair in (pair for pair in pairs if _direct(records, pair)):
        found = _found(records, "weights", pair)
        for name in _union(found, "subcomponents"):

            def read(*path: str, name: str = name, found: list[Found] = found) -> float | None:
                return records.interval(found, lambda m: _deep(m, "subcomponents", name, *path)).value

            shares = [read("equal"), *(read("ulp", key) for key in ("1", "2", "3-4", ">4")), read("sign_flips")]
            cells = [Cell(NONE if share is None else f"{100 * share:.2f}") for share in shares]
            where = [Cell(records.pair_label(*pair), number=False), Cell(shown(name, 80), number=False)]
            rows.append([*where, Cell(short(read("l2"))), *cells])
    head = ["transition", "part", "L2", "equal, %", "1 step, %", "2 steps, %", "3 to 4, %", "more, %", "sign flips, %"]
    return [Table(head, rows, "Steps of the saved format and sign flips by sub-component", folded=True)] if rows else []


def _spectra_table(records: Records, pairs: Sequence[Pair]) -> list[Table]:
    """Stable ranks of the updates of chosen matrices."""
    rows: list[list[Cell]] = []
    for pair in pairs:
        found = [one for one in _found(records, "weights", pair) if one.artifact.metrics.get("spectra")]
        places = {(row["name"], row["subcomponent"]): row for one in found for row in one.artifact.metrics["spectra"]}
        for place, row in places.items():

            def read(make: Callable[[Mapping[str, Any]], object], place: Any = place, found: Any = found) -> Interval:
                return records.interval(found, lambda m: _of_place(m, place, make))

            rank, held = read(lambda row: row["stable_rank"]), read(_held)
            if rank.value is not None:
                cells = [records.pair_label(*pair), shown(place[0], 80)]
                shape = " × ".join(map(str, row["shape"]))
                rows.append([*(Cell(c, number=False) for c in cells), Cell(shape), with_interval(rank, 1, False, Cell)])
                rows[-1].append(with_interval(held, 1, False, Cell))
    if not rows:
        return []
    caption = (
        "Spectra of updates: the stable rank is the squared norm over the squared largest singular value, 1 for an "
        "update in one direction and large for noise; the last column is how much of the squared norm the top 8 "
        "directions hold."
    )
    head = ["transition", "update of", "shape", "stable rank", "held by the top 8, %"]
    return [Table(head, rows, caption, folded=len(rows) > FEW_ROWS)]


def _of_place(metrics: Mapping[str, Any], place: Pair, make: Callable[[Mapping[str, Any]], object]) -> object:
    rows = [row for row in metrics["spectra"] if (row["name"], row["subcomponent"]) == place]
    return make(rows[0]) if rows and rows[0]["stable_rank"] is not None else None


def _held(row: Mapping[str, Any]) -> float:
    return min(100.0, 100 * sum(value * value for value in row["singular"]) / row["frobenius"] ** 2)


def _times(value: object, factor: float) -> float | None:
    found = number(value)
    return None if found is None else factor * found
