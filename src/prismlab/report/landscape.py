"""The landscape between checkpoints: the curve along the path, the map of the grid, and the table of the points.

The same drawings serve the report of a study (several seeds) and the command ``prism landscape`` (one measurement).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismlab.claims.arms import path_place
from prismlab.report import figures
from prismlab.report.figures import DOMAIN_COLOURS, Figure, Line, Panel, colour, safe
from prismlab.report.records import Records, in_order, item_interval, number, over_seeds
from prismlab.report.sections import Cell, Drawing, Section, Table
from prismlab.report.text import minus, span, with_interval
from prismlab.stats import Interval

LINE = "#d98f00"
STRAIGHT = "#8a909c"
SCALE = [[0.0, "rgba(138,144,156,0.10)"], [1.0, "rgba(59,125,216,0.6)"]]
"""From nearly the page's own colour in light and dark to blue."""
MOST_NUMBERS = 8
"""Points a side up to which the map has room for their numbers."""
AVERAGE = "average"
Metrics = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One landscape, in one or several seeds."""

    title: str
    names: Sequence[str]
    """Names of the two or three checkpoints, for table and axes."""
    seeds: Mapping[int, Metrics]
    """Metrics of the landscape by seed."""
    confidence: float = 0.95

    def interval(self, read: Callable[[Metrics], object]) -> Interval:
        """Mean over seeds of a score with its interval; of one seed the score's own interval, over items."""
        raw = {seed: read(metrics) for seed, metrics in self.seeds.items()}
        known = {seed: value for seed, value in ((s, number(one)) for s, one in raw.items()) if value is not None}
        single = item_interval(next(iter(raw.values()))) if len(raw) == 1 else None
        return over_seeds(known, self.confidence, single)

    @property
    def places(self) -> list[float]:
        """Places of the path's points: 0 to 1 on the first leg, 1 to 2 on the second."""
        return sorted({path_place(row) for metrics in self.seeds.values() for row in metrics["path"]})

    @property
    def domains(self) -> list[str]:
        """Domains of the tasks, where there are several."""
        found = in_order(d for m in self.seeds.values() for row in m["path"] for d in row["domains"])
        return found if len(found) > 1 else []

    def at(self, place: float, read: Callable[[Mapping[str, Any]], object]) -> Interval:
        """A figure of the path's point at a place."""
        return self.interval(lambda metrics: read(row) if (row := _row(metrics, place)) is not None else None)


def _row(metrics: Metrics, place: float) -> Mapping[str, Any] | None:
    return next((row for row in metrics["path"] if abs(path_place(row) - place) < 1e-9), None)


def _series(walk: Walk, read: Callable[[Mapping[str, Any]], object]) -> dict[int, list[tuple[float, float]]]:
    """Points (place, value) of every seed."""
    known = {seed: [(path_place(row), number(read(row))) for row in m["path"]] for seed, m in walk.seeds.items()}
    return {seed: sorted((x, y) for x, y in points if y is not None) for seed, points in known.items()}


def _path_panel(walk: Walk) -> Panel:
    average = _series(walk, lambda row: row["average"])
    ends = {seed: [(x, y) for x, y in points if x == int(x)] for seed, points in average.items()}
    # One line between the means: with a seed each it would say what the curves say already.
    straight = figures.mean_line(ends) if ends else []
    lines = [
        Line(name=AVERAGE, colour=LINE, seeds=average, markers=True),
        Line(name="straight line between the checkpoints", colour=STRAIGHT, seeds={0: straight}, dash="dot"),
    ]
    for domain in walk.domains:
        tint = colour(domain, DOMAIN_COLOURS)
        mine = _series(walk, lambda row, d=domain: row["domains"].get(d))
        lines.append(Line(name=domain, colour=tint, seeds=mine, shown=False, markers=True))
    ticks = walk.places if len(walk.places) <= 13 else [float(k) for k in range(len(walk.names))]
    return Panel(title=walk.title, y="percent correct", lines=lines, x_ticks=ticks)


def _band(walk: Walk, axis: str) -> dict[str, Any] | None:
    """The intervals of the average as an area behind its line, cut off at 0 and 100."""
    found = [(x, walk.at(x, lambda row: row["average"])) for x in walk.places]
    bounded = [(x, max(0.0, i.lo), min(100.0, i.hi)) for x, i in found if i.lo is not None and i.hi is not None]
    if len(bounded) < 2:
        return None
    red, green, blue = (int(LINE[k : k + 2], 16) for k in (1, 3, 5))
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "name": AVERAGE,
        "legendgroup": AVERAGE,
        "showlegend": False,
        "x": [x for x, _, _ in bounded] + [x for x, _, _ in reversed(bounded)],
        "y": [hi for _, _, hi in bounded] + [lo for _, lo, _ in reversed(bounded)],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "line": {"width": 0, "color": LINE},
        "fillcolor": f"rgba({red},{green},{blue},0.16)",
        "hoverinfo": "skip",
    }


def _label(x: float, names: Sequence[str]) -> str:
    """What stands under a place of the path: the checkpoint's name, or the share of its leg."""
    return safe(names[int(x)]) if x == int(x) else f"{x - int(x):.2g}"


def path_figure(walks: Sequence[Walk]) -> Figure:
    """Scores along the path of every landscape, a panel each."""
    panels = [_path_panel(walk) for walk in walks]
    drawn = figures.draw(panels, columns=1 if len(walks) == 1 else 2, height=340)
    bands: list[dict[str, Any]] = []
    filled = [walk for walk in walks if any(_series(walk, lambda row: row["average"]).values())]
    for k, walk in enumerate(filled):
        axis = "" if k == 0 else str(k + 1)
        band = _band(walk, axis)
        bands += [band] if band is not None else []
        x = drawn["layout"][f"xaxis{axis}"]
        roles = ("base", "mid", "RL") if len(walk.names) == 3 else ("start", "end")
        x["ticktext"] = [_label(place, roles) for place in x["tickvals"]]
        drawn["layout"][f"yaxis{axis}"]["rangemode"] = "tozero"
    return {**drawn, "data": [*bands, *drawn["data"]]}


def _grid_numbers(walk: Walk) -> tuple[list[float], list[float], list[list[Interval]]]:
    """a, b and the scores [b][a], so that a runs from left to right."""
    first = next(iter(walk.seeds.values()))["grid"]
    a, b = first["a"], first["b"]
    cells = [
        [walk.interval(lambda m, i=i, j=j: m["grid"]["average"][i][j]) for i in range(len(a))] for j in range(len(b))
    ]
    return a, b, cells


def _grid_traces(walk: Walk, axis: str, colourbar: bool) -> list[dict[str, Any]]:
    a, b, cells = _grid_numbers(walk)
    axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": False}
    hover = [
        [f"{minus(f'{cell.value:.1f}')}% {span(cell, 1)}" if cell.value is not None else "" for cell in row]
        for row in cells
    ]
    surface = {
        "type": "contour",
        "x": a,
        "y": b,
        "z": [[cell.value for cell in row] for row in cells],
        "colorscale": SCALE,
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.6, "color": STRAIGHT},
        "colorbar": {"title": {"text": "%"}, "thickness": 12, "outlinewidth": 0},
        "showscale": colourbar,
        "text": hover,
        "hovertemplate": "a = %{x:.3g}, b = %{y:.3g}<br>%{text}<extra></extra>",
        **axes,
    }
    path = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [0, 1, 1],
        "y": [0, 0, 1],
        "line": {"color": LINE, "width": 2.2},
        "marker": {"size": 8, "color": LINE},
        "cliponaxis": False,
        "hoverinfo": "skip",
        **axes,
    }
    numbers = {
        "type": "scatter",
        "mode": "text",
        # Off the edges, along which the path runs.
        "x": [min(0.988, max(0.012, x)) for _ in b for x in a],
        "y": [y for y in b for _ in a],
        "text": ["" if cell.value is None else minus(f"{cell.value:.0f}") for row in cells for cell in row],
        "textposition": [_beside(x, y) for y in b for x in a],
        "cliponaxis": False,
        "hoverinfo": "skip",
        **axes,
    }
    return [surface, path, *([numbers] if max(len(a), len(b)) <= MOST_NUMBERS else [])]


def _beside(x: float, y: float) -> str:
    """Where a number stands: within the map, and off the path."""
    return f"{'bottom' if y == 1 else 'top'} {'left' if x == 1 else 'right' if x == 0 else 'center'}"


def grid_figure(walks: Sequence[Walk]) -> Figure:
    """Maps of the grids; landscapes without one are left out."""
    mapped = [walk for walk in walks if walk.seeds and all(metrics["grid"] for metrics in walk.seeds.values())]
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    titles: list[dict[str, Any]] = []
    for k, (walk, place) in enumerate(zip(mapped, figures.grid(len(mapped), 2), strict=True)):
        axis = "" if k == 0 else str(k + 1)
        data += _grid_traces(walk, axis, len(mapped) == 1)
        common: dict[str, Any] = {"automargin": True, "showgrid": False, "zeroline": False, "range": [-0.03, 1.03]}
        ticks = next(iter(walk.seeds.values()))["grid"]["a"]
        common |= (
            {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{t:.2g}" for t in ticks]}
            if len(ticks) <= 11
            else {}
        )
        layout[f"xaxis{axis}"] = {
            **common, "domain": place[0], "anchor": f"y{axis}", "title": {"text": "a: base (0) to mid (1)"},
        }  # fmt: skip
        layout[f"yaxis{axis}"] = {
            **common, "domain": place[1], "anchor": f"x{axis}", "title": {"text": "b: towards RL"},
        }  # fmt: skip
        titles.append(figures.panel_title(walk.title, place))
    rows = -(-len(mapped) // 2)
    layout |= {
        "height": 400 * max(1, rows) + 84,
        "margin": {"l": 52, "r": 12, "t": 34, "b": 50},
        "annotations": titles,
        "hovermode": "closest",
        "showlegend": False,
        "meta": {"panels": len(mapped), "panel_height": 400},
    }
    return {"data": data, "layout": layout}


def path_rows(walk: Walk) -> list[tuple[str, Interval, Interval, list[Interval]]]:
    """Of every point of the path: where it is, its average, what it has over the straight line, its domains."""
    out: list[tuple[str, Interval, Interval, list[Interval]]] = []
    for x in walk.places:
        leg = int(x)
        where = walk.names[leg] if x == leg else f"{x - leg:.3g} of the way to {walk.names[leg + 1]}"
        domains = [walk.at(x, lambda row, d=d: row["domains"].get(d)) for d in walk.domains]
        above = walk.at(x, lambda row: row["deviation"])
        out.append((where, walk.at(x, lambda row: row["average"]), above, domains))
    return out


def _table(walk: Walk, inside: str) -> Table:
    rows: list[list[Cell]] = []
    for where, average, above, domains in path_rows(walk):
        values = (average, above, *domains)
        rows.append([Cell(where, number=False), *(with_interval(value, 1, False, Cell) for value in values)])
    caption = (
        f"{walk.title}: percent correct at every point, and by how many points the average lies above the straight "
        f"line between its leg's ends, with {walk.confidence:.0%} intervals {inside}."
    )
    return Table(["point", AVERAGE, "above the straight line", *walk.domains], rows, caption)


PATH_HOW = (
    "Weights are moved on a straight line from one checkpoint to the next, and every point answers the same questions "
    "with the same random numbers. A curve below the dotted line is a barrier. Domains are switched on in the legend."
)
GRID_HOW = (
    "W(a, b) = base + a (mid − base) + b (RL − mid): percent correct, between the grid's points interpolated. The line "
    "is the path from base over mid to RL; its upper left corner is RL's update put on the base."
)


def drawings(walks: Sequence[Walk], band: str) -> list[Drawing]:
    """The curve of every landscape and the map of those with a grid.

    Args:
        walks: the landscapes.
        band: what the shaded band is, for the caption.
    """
    found = [Drawing("landscape", path_figure(walks), f"{PATH_HOW} {band}", "Scores along the path")]
    grid = grid_figure(walks)
    return found + ([Drawing("landscape-grid", grid, GRID_HOW, "Scores on the grid")] if grid["data"] else [])


def landscape(records: Records) -> Section:
    """Scores on the plane of base, mid and RL."""
    found = records.of("landscape")
    if not found:
        return Section("landscape", "Landscape", note="The analysis 'landscape' was not part of this study.")
    chains = list(dict.fromkeys(tuple(one.entry[key] for key in ("base", "mid", "rl")) for one in found))
    walks = [
        Walk(
            title=" → ".join(map(records.label, chain)),
            names=[records.label(name) for name in chain],
            seeds={
                one.seed: one.artifact.metrics
                for one in records.of("landscape", base=chain[0], mid=chain[1], rl=chain[2])
            },
            confidence=records.confidence,
        )
        for chain in chains
    ]
    several = len(records.seeds) > 1
    inside = "over seeds" if several else "over items inside the one seed"
    band = f"The band is the average's {records.confidence:.0%} interval {inside}."
    tables = [_table(walk, inside) for walk in walks]
    return Section("landscape", "Landscape", drawings=drawings(walks, band), tables=tables)
