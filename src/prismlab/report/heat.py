"""Square tables of numbers as heat maps, in the frame that ``figures`` gives to panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prismlab.report.figures import Figure, grid, panel_title, safe
from prismlab.report.text import NONE, minus

SCALE = [[0.0, "#b5703a"], [0.5, "rgba(138,144,156,0.12)"], [1.0, "#3b7dd8"]]
"""From -1 over 0, which is nearly the page's own colour in light and dark, to 1."""
ROW = 44
"""Pixels of one row of a map."""
TALLEST = 528
"""Pixels of the rows of one map; above twelve rows they get lower."""
MOST_NUMBERS = 12
"""Columns up to which a cell has room for its number."""
LETTER = 0.0075
"""Width of a letter of a name, as a share of a figure on a page of full width."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How values become colours and text."""

    low: float | None
    """Value of the first colour; None for the smallest there is. The last colour is 1."""
    scale: Sequence[Sequence[Any]]
    digits: int


SIGNED = Look(low=-1.0, scale=SCALE, digits=2)
"""For cosines."""
NEAR_ONE = Look(low=None, scale=[[0.0, "#b5703a"], [1.0, "rgba(138,144,156,0.12)"]], digits=4)
"""For similarities, of which what falls below 1 is to be seen."""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Values up to 1 of every two of some names."""

    title: str
    names: Sequence[str]
    values: Sequence[Sequence[float | None]]
    """[names][columns]; None leaves a cell empty."""
    columns: Sequence[str] | None = None
    """Names of the columns, where they are not those of the rows."""
    look: Look = SIGNED

    @property
    def across(self) -> Sequence[str]:
        """Names of the columns."""
        return self.names if self.columns is None else self.columns

    @property
    def low(self) -> float:
        """Value of the first colour."""
        if self.look.low is not None:
            return self.look.low
        # Were all values 1, a range without width would colour them at random.
        return min([0.999, *(value for row in self.values for value in row if value is not None)])


def _trace(one: HeatMap, axis: str) -> dict[str, Any]:
    """One map on the axes of its panel."""
    names, across = [safe(name) for name in one.names], [safe(name) for name in one.across]
    digits = one.look.digits
    # Rounded first, and 0.0 added: a minus sign before 0.00 would say something.
    near = [[None if value is None else round(value, digits) + 0.0 for value in row] for row in one.values]
    text = [[NONE if value is None else minus(f"{value:.{digits}f}") for value in row] for row in near]
    return {
        "type": "heatmap",
        "x": across,
        "y": names,
        "z": [list(row) for row in one.values],
        "text": text,
        "texttemplate": "%{text}" if len(across) <= MOST_NUMBERS else "",
        "zmin": one.low,
        "zmax": 1.0,
        "colorscale": [list(stop) for stop in one.look.scale],
        "showscale": False,
        "showlegend": False,
        "xgap": 2,
        "ygap": 2,
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "hovertemplate": f"%{{y}}<br>%{{x}}<br>%{{z:.{digits + 2}f}}<extra></extra>",
    }


def _gap(maps: Sequence[HeatMap], columns: int) -> float:
    """Room for the names of maps that stand right of another one; a page makes room at its left edge alone."""
    inner = [name for k, one in enumerate(maps) if k % columns for name in one.names]
    return min(0.3, 0.03 + LETTER * max(map(len, inner), default=0))


def heat_maps(maps: Sequence[HeatMap], columns: int = 2) -> Figure:
    """A figure of heat maps, each cell with its number; maps without any value are left out."""
    filled = [one for one in maps if any(value is not None for row in one.values for value in row)]
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    titles: list[dict[str, Any]] = []
    for k, (one, place) in enumerate(zip(filled, grid(len(filled), columns, _gap(filled, columns)), strict=True)):
        axis = "" if k == 0 else str(k + 1)
        data.append(_trace(one, axis))
        common = {"type": "category", "automargin": True, "showgrid": False}
        layout[f"xaxis{axis}"] = {**common, "domain": place[0], "anchor": f"y{axis}"}
        layout[f"yaxis{axis}"] = {**common, "domain": place[1], "anchor": f"x{axis}", "autorange": "reversed"}
        titles.append(panel_title(one.title, place))
    rows = -(-len(filled) // columns) if filled else 1
    height = 60 + min(TALLEST, ROW * max((len(one.names) for one in filled), default=1))
    layout |= {
        "height": rows * height + 84,
        "margin": {"l": 52, "r": 12, "t": 34, "b": 50},
        "annotations": titles,
        "hovermode": "closest",
        "showlegend": False,
        "meta": {"panels": len(filled), "panel_height": height},
    }
    return {"data": data, "layout": layout}
