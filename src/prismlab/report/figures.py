"""Figures as plain Plotly JSON: panels of lines and panels of bars, and nothing that knows a study.

Colours belong to a thing, not to a figure: an arm has one colour on the whole page. Text and grid colours are left to
the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismlab.stats import Interval

Figure = dict[str, Any]
Points = Sequence[tuple[float, float]]

ARM_COLOURS = {
    "base": "#8a909c",
    "mid[M]": "#d98f00",
    "mid[MC]": "#149b7a",
    "mid[MCS]": "#3b7dd8",
    "mid[MC]>rl[MC]": "#86b817",
    "mid[MC]>rl[MCS]": "#4f9a3a",
    "mid[MCS]>rl[MC]": "#8b74e0",
    "mid[MCS]>rl[MCS]": "#c2459b",
    "base>rl[MCS]": "#b5703a",
    "mid[MCS]>finetune[MCS]": "#d9534f",
}
COMPONENT_COLOURS = {
    "attention": "#3b7dd8",
    "mlp": "#d98f00",
    "mamba": "#149b7a",
    "embedding": "#8b74e0",
    "head": "#c2459b",
    "norm": "#8a909c",
    "other": "#b5703a",
}
DOMAIN_COLOURS = {"math": "#3b7dd8", "code": "#149b7a", "science": "#c2459b", "web": "#8a909c", "chat": "#d98f00"}
SPARE_COLOURS = ("#5aa9c7", "#a0813c", "#7a6aa8", "#5f9e6e", "#b8606a", "#6c7fa8", "#9a9a3f", "#4fa3a0")
MOST_POINTS, FEWEST_POINTS, FIGURE_POINTS = 400, 60, 40_000
"""Points kept of a line, fewer where a figure has many: more cannot be told apart and would make the page heavy."""
LEGEND = {
    "orientation": "h",
    "x": 0,
    "y": 0,
    "xanchor": "left",
    "yanchor": "bottom",
    "xref": "container",
    "yref": "container",
    "traceorder": "normal",
}
"""At the foot of the figure, whatever its height."""
COLUMNS = 3
PANEL_HEIGHT = 250


def colour(name: str, known: Mapping[str, str] = ARM_COLOURS) -> str:
    """Colour of a named thing: its own, or a spare one that depends on its name alone."""
    return known.get(name) or SPARE_COLOURS[sum(name.encode()) % len(SPARE_COLOURS)]


def safe(text: str) -> str:
    """Text for Plotly, which reads a small markup: tags and entities in names must show as they are written."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` of the points, evenly over their order, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One named line, in one or several seeds."""

    name: str
    colour: str
    seeds: Mapping[int, Points]
    """Points (x, y) by seed."""
    dash: str = "solid"
    shown: bool = True
    """False: in the legend, to be switched on by a click."""
    markers: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One named group of bars or dots with their intervals."""

    name: str
    colour: str
    values: Mapping[str, Interval]
    """Category to value."""
    shown: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    x: str = ""
    y: str = ""
    lines: Sequence[Line] = field(default=())
    bars: Sequence[Bars] = field(default=())
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    x_ticks: Sequence[float] | None = None
    """Where the x axis has labels, where not everywhere."""


def mean_line(seeds: Mapping[int, Points]) -> list[tuple[float, float]]:
    """Mean over seeds, at the x values that every seed has."""
    tables = [dict(points) for points in seeds.values()]
    shared = set(tables[0]).intersection(*tables[1:])
    return [(x, sum(table[x] for table in tables) / len(tables)) for x in sorted(shared)]


def _trace(
    line: Line, points: Points, seed: int | None, axis: str, legend: bool, digits: str, most: int
) -> dict[str, Any]:
    kept = thin(points, most)
    thick = seed is None or len(line.seeds) == 1
    where = f" · seed {seed}" if seed is not None else f" · mean of {len(line.seeds)} seeds"
    name = safe(line.name)
    return {
        "type": "scatter",
        "mode": "lines+markers" if line.markers and thick else "lines",
        "name": name,
        "legendgroup": name,
        "showlegend": legend,
        "visible": True if line.shown else "legendonly",
        "x": [x for x, _ in kept],
        "y": [y for _, y in kept],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "line": {"color": line.colour, "width": 2.2 if thick else 1, "dash": line.dash},
        "marker": {"size": 5},
        "opacity": 1 if thick else 0.35,
        "meta": {"seed": None if thick else seed},
        "hovertemplate": f"{name}{where}<br>%{{x:,}} : %{{y:{digits}}}<extra></extra>",
    }


def _line_traces(line: Line, axis: str, legend: bool, digits: str, most: int) -> list[dict[str, Any]]:
    seeds = {seed: points for seed, points in line.seeds.items() if points}
    if not seeds:
        return []
    if len(seeds) == 1:
        (seed, points), *_ = seeds.items()
        return [_trace(line, points, seed, axis, legend, digits, most)]
    mean = _trace(line, mean_line(seeds), None, axis, legend, digits, most)
    return [mean, *(_trace(line, points, seed, axis, False, digits, most) for seed, points in seeds.items())]


def _bar_trace(bars: Bars, axis: str, legend: bool) -> dict[str, Any]:
    found = [(safe(name), i) for name, i in bars.values.items() if i.value is not None]
    name = safe(bars.name)
    spans = [_span(interval) for _, interval in found]
    whiskers = {
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [None if i.hi is None else i.hi - (i.value or 0.0) for _, i in found],
            "arrayminus": [None if i.lo is None else (i.value or 0.0) - i.lo for _, i in found],
            "thickness": 1.2,
            "width": 3,
        }
    }
    # A whisker of no length would read as certainty.
    bounded = any(i.lo is not None or i.hi is not None for _, i in found)
    return {
        "type": "bar",
        "name": name,
        "legendgroup": name,
        "showlegend": legend,
        "visible": True if bars.shown else "legendonly",
        "x": [category for category, _ in found],
        "y": [interval.value for _, interval in found],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        # With an outline a bar of height 0 is drawn, and so told from one that is missing.
        "marker": {"color": bars.colour, "line": {"color": bars.colour, "width": 1}},
        **(whiskers if bounded else {}),
        "customdata": spans,
        "hovertemplate": f"{name}<br>%{{x}} : %{{y:.4g}}<br>%{{customdata}}<extra></extra>",
    }


def _span(interval: Interval) -> str:
    if interval.lo is None or interval.hi is None:
        return "no interval"
    return f"interval {interval.lo:.4g} to {interval.hi:.4g} ({interval.n} {_units(interval)})"


def _units(interval: Interval) -> str:
    return "items" if interval.method == "items" else "seeds"


def grid(n: int, columns: int = COLUMNS, gap: float = 0.075) -> list[tuple[list[float], list[float]]]:
    """``[x0, x1], [y0, y1]`` of each of ``n`` panels in paper coordinates, row by row from the top.

    ``gap`` is what lies between two columns, as a share of the width.
    """
    if n == 0:
        return []
    columns = min(n, columns)
    rows = math.ceil(n / columns)
    gap_x, gap_y = gap if columns > 1 else 0.0, 0.32 / rows if rows > 1 else 0.0
    width, height = (1 - gap_x * (columns - 1)) / columns, (1 - gap_y * (rows - 1)) / rows
    out: list[tuple[list[float], list[float]]] = []
    for k in range(n):
        row, column = divmod(k, columns)
        x0, y1 = column * (width + gap_x), 1 - row * (height + gap_y)
        out.append(([x0, min(1.0, x0 + width)], [max(0.0, y1 - height), y1]))
    return out


def _axes(panel: Panel, axis: str, place: tuple[list[float], list[float]]) -> dict[str, Any]:
    x: dict[str, Any] = {"domain": place[0], "anchor": f"y{axis}", "title": {"text": safe(panel.x)}, "automargin": True}
    y: dict[str, Any] = {"domain": place[1], "anchor": f"x{axis}", "title": {"text": safe(panel.y)}, "automargin": True}
    x |= {"type": "log"} if panel.log_x else {"type": "category"} if panel.bars else {}
    if panel.x_ticks:
        x |= {"tickmode": "array", "tickvals": list(panel.x_ticks), "ticktext": [f"{t:g}" for t in panel.x_ticks]}
    y["exponentformat"] = "e"
    y |= {"type": "log"} if panel.log_y else {}
    # Whole decades are enough for labels where there are several: the digits between them overlap in a small panel.
    y |= {"dtick": 1} if panel.log_y and _decades(panel) > 1.5 else {}
    y |= {"range": list(panel.y_range)} if panel.y_range else {}
    y |= {"rangemode": "tozero"} if panel.bars and not panel.log_y and not panel.y_range else {}
    return {f"xaxis{axis}": x, f"yaxis{axis}": y}


def draw(panels: Sequence[Panel], columns: int = COLUMNS, height: int = PANEL_HEIGHT, digits: str = ".4g") -> Figure:
    """A figure of panels that share one legend.

    Args:
        panels: those without any point are left out; without any panel left the figure has no ``data``.
        columns: panels a row on a wide screen.
        height: pixels of a row.
        digits: d3 format of the y values on hover.
    """
    filled = [panel for panel in panels if _filled(panel)]
    traces = sum(1 + len(line.seeds) for panel in filled for line in panel.lines)
    most = max(FEWEST_POINTS, min(MOST_POINTS, FIGURE_POINTS // max(1, traces)))
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    titles: list[dict[str, Any]] = []
    named: set[str] = set()
    for k, (panel, place) in enumerate(zip(filled, grid(len(filled), columns), strict=True)):
        axis = "" if k == 0 else str(k + 1)
        for line in panel.lines:
            data += _line_traces(line, axis, line.name not in named, digits, most)
            named.add(line.name)
        for bars in panel.bars:
            data.append(_bar_trace(bars, axis, bars.name not in named))
            named.add(bars.name)
        layout |= _axes(panel, axis, place)
        titles.append(panel_title(panel.title, place))
    rows = math.ceil(len(filled) / min(columns, max(1, len(filled)))) if filled else 1
    foot = legend_height(named)
    layout |= {
        "height": rows * height + 50 + foot,
        "margin": {"l": 52, "r": 12, "t": 34, "b": 50 + foot},
        "legend": LEGEND,
        "annotations": titles,
        "hovermode": "closest",
        "barmode": "group",
        "bargap": 0.25,
        "showlegend": True,
        "meta": {"panels": len(filled), "panel_height": height},
    }
    return {"data": data, "layout": layout}


def _filled(panel: Panel) -> bool:
    return any(points for line in panel.lines for points in line.seeds.values()) or any(
        interval.value is not None for bars in panel.bars for interval in bars.values.values()
    )


def legend_height(names: Collection[str]) -> int:
    """Pixels that a legend of these names needs on a page of ordinary width."""
    return 14 + 22 * math.ceil(sum(7 * len(name) + 52 for name in names) / 960)


def _decades(panel: Panel) -> float:
    """How many powers of ten the positive values of a panel span."""
    values = [y for line in panel.lines for points in line.seeds.values() for _, y in points if y > 0]
    values += [i.value for bars in panel.bars for i in bars.values.values() if i.value is not None and i.value > 0]
    return math.log10(max(values) / min(values)) if values else 0.0


def panel_title(text: str, place: tuple[list[float], list[float]]) -> dict[str, Any]:
    """The annotation that stands above a panel at ``place`` (see ``grid``)."""
    return {
        "text": f"<b>{safe(text)}</b>" if text else "",
        "x": place[0][0],
        "y": place[1][1],
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 6,
        "showarrow": False,
    }


def layer_ticks(lines: Sequence[Line]) -> list[float]:
    """At most about ten whole layer numbers."""
    deepest = max((x for line in lines for points in line.seeds.values() for x, _ in points), default=0.0)
    return [float(n) for n in range(0, int(deepest) + 1, max(1, round(deepest / 10)))]


def stacked(rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], x: str) -> Figure:
    """Horizontal stacked bars: row to {part: value}."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    names = [safe(row) for row in rows]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": safe(part),
            "y": names,
            "x": [row.get(part) for row in rows.values()],
            "marker": {"color": colours[part], "line": {"width": 1, "color": "rgba(255,255,255,0.35)"}},
            "hovertemplate": f"%{{y}} · {safe(part)} : %{{x:.4g}}<extra></extra>",
        }
        for part in parts
    ]
    layout = {
        "barmode": "stack",
        "height": 70 + 40 * len(rows) + legend_height(parts),
        "margin": {"l": 52, "r": 12, "t": 12, "b": 50 + legend_height(parts)},
        "xaxis": {"title": {"text": safe(x)}, "automargin": True},
        "yaxis": {"automargin": True, "autorange": "reversed", "type": "category"},
        "legend": LEGEND,
        "hovermode": "closest",
        "meta": {"panels": 1, "panel_height": 0},
    }
    return {"data": data, "layout": layout}
