"""The Pareto front of gain against loss, and which arms are shown to lie behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prismlab.stats import Interval, seeds_to_decide
from prismlab.tools.advise_axes import Axis, Readings

if TYPE_CHECKING:
    from prismlab.report.figures import Figure
    from prismlab.report.sections import Drawing

Axes = tuple[Axis, Axis]
POWER = 0.8


def signed(interval: Interval, unit: str) -> str:
    """A difference in words, with its interval: ``+3.1 points (+1.2 to +5.0)``."""
    form = "+.1f" if unit == "points" else "+.3f"
    if interval.value is None:
        return "unknown"
    if interval.lo is None or interval.hi is None:
        return f"{interval.value:{form}} {unit} (no interval)"
    return f"{interval.value:{form}} {unit} ({interval.lo:{form}} to {interval.hi:{form}})"


def _bounded(interval: Interval) -> bool:
    return interval.lo is not None and interval.hi is not None


def placed(readings: Readings, axes: Axes, checkpoints: Sequence[str], reference: str) -> list[dict[str, Any]]:
    """Gain and loss of every checkpoint against the reference, which stands first, at 0 and 0 by definition."""
    label = {name: arm for arm, name in reversed(list(readings.arms.items()))}
    zero = Interval(0.0, 0.0, 0.0, len(readings.seeds), "reference").to_json()
    rows = [{"checkpoint": reference, "arm": label.get(reference), "gain": zero, "loss": zero, "reference": True}]
    for name in checkpoints:
        gain, loss = (readings.difference(axis, name, reference) for axis in axes)
        rows.append({"checkpoint": name, "arm": label.get(name), "gain": gain.to_json(), "loss": loss.to_json()})
        rows[-1]["reference"] = False
    return rows


def _at_least(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether a's estimates are as good as b's on both sides and better on one."""
    gain, loss = a["gain"]["value"] - b["gain"]["value"], b["loss"]["value"] - a["loss"]["value"]
    return gain >= 0 and loss >= 0 and (gain > 0 or loss > 0)


def _compare(readings: Readings, axes: Axes, better: str, worse: str, level: float) -> dict[str, Any]:
    """How ``better`` stands to ``worse`` on both sides, and whether that is shown."""
    gain, loss = (readings.difference(axis, better, worse, level) for axis in axes)
    shown_gain = gain.lo is not None and gain.lo > 0
    shown_loss = loss.hi is not None and loss.hi < 0
    return {
        "by": better,
        "gain": gain.to_json(),
        "loss": loss.to_json(),
        "confidence": level,
        "shown": shown_gain and shown_loss,
        "bounded": _bounded(gain) and _bounded(loss),
        "text": f"gains {signed(gain, axes[0].unit)} more and loses {signed(loss, axes[1].unit)}",
    }


def front(readings: Readings, axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Marks ``rows`` in place: ``front``, and of the others ``behind``, the comparison with an arm that is better.

    An arm lies behind by the estimates if another gains as much or more and loses as much or less; of several it is
    held against the one that gains most. It is *shown* to lie behind if both intervals of the difference of the two
    arms say so, at a level shared over all arms that are compared (Bonferroni). Without an interval on a side nothing
    is shown.
    """
    known = [row for row in rows if row["gain"]["value"] is not None and row["loss"]["value"] is not None]
    best = [row for row in known if not any(_at_least(other, row) for other in known)]
    better = {
        row["checkpoint"]: max(
            (other for other in best if _at_least(other, row)), key=lambda other: other["gain"]["value"]
        )["checkpoint"]
        for row in known
        if row not in best
    }
    level = 1 - (1 - readings.confidence) / max(1, len(better))
    for row in rows:
        row["front"], name = row in best, row["checkpoint"]
        row["behind"] = _compare(readings, axes, better[name], name, level) if name in better else None


def lines(readings: Readings, axes: Axes, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Advice on which arms to keep and which to drop."""
    found: list[dict[str, Any]] = []

    def cited(*names: str) -> list[dict[str, Any]]:
        return readings.cited(axes, *names)

    kept = [row["checkpoint"] for row in rows if row.get("front")]
    if kept:
        text = f"On the front by the estimates: {', '.join(kept)}."
        found.append({"kind": "front", "text": text, "rows": cited(*kept)})
    for row in rows:
        name, behind = row["checkpoint"], row.get("behind")
        if behind is not None and behind["shown"]:
            text = f"Drop {name}: {behind['by']} {behind['text']}; both intervals lie on one side of 0."
            found.append({"kind": "dominated", "text": text, "rows": cited(name, behind["by"])})
        elif behind is not None:
            why = "an interval holds 0" if behind["bounded"] else "a side has no interval"
            text = f"{name} lies behind {behind['by']} by the estimates alone, not shown: {why}. {behind['by']} "
            text += f"{behind['text']}. {_seeds(readings, axes, name, behind)}"
            found.append({"kind": "undecided", "text": text.strip(), "rows": cited(name, behind["by"])})
    return found


def _seeds(readings: Readings, axes: Axes, name: str, behind: Mapping[str, Any]) -> str:
    """How many seeds would show that one arm lies behind another, at the level of the comparison."""
    needed: list[int] = []
    for axis in axes:
        a, b = readings.values(axis, behind["by"]), readings.values(axis, name)
        values = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
        mean = sum(values) / len(values) if values else 0.0
        sd = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0
        n = seeds_to_decide(mean, sd, behind["confidence"], POWER) if sd > 0 else None
        if n is None:
            return ""
        needed.append(n)
    return f"If these differences and their spread are the true ones, {max(needed)} seeds would show it (power 80%)."


def drawing(axes: Axes, rows: Sequence[Mapping[str, Any]], unit: str) -> Drawing:
    """The front as a figure for the page."""
    from prismlab.report.sections import Drawing

    how = (
        f"Each point is an arm against the reference; whiskers are intervals over {unit}. Up is gain "
        f"({axes[0].what}), right is loss ({axes[1].what}). The line joins the arms that no other beats on both sides "
        "by the estimates; the intervals of differences between arms, which decide, are in the advice."
    )
    return Drawing("pareto", _figure(axes, rows), how, "Gain against loss")


def _figure(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> Figure:
    from prismlab.report.figures import LEGEND, colour, legend_height, safe

    known = [row for row in rows if row["gain"]["value"] is not None and row["loss"]["value"] is not None]
    edge = sorted((row["loss"]["value"], row["gain"]["value"]) for row in known if row["front"])
    line = {"color": "#8a909c", "width": 1.2, "dash": "dot"}
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front",
            "x": [x for x, _ in edge],
            "y": [y for _, y in edge],
            "line": line,
            "hoverinfo": "skip",
        }
    ]
    for row in known:
        name = safe(row["arm"] or row["checkpoint"])
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [row["loss"]["value"]],
                "y": [row["gain"]["value"]],
                **{key: _whisker(row[side]) for key, side in (("error_x", "loss"), ("error_y", "gain"))},
                "marker": {"size": 10, "color": colour(row["arm"] or row["checkpoint"]), "line": {"width": 1}},
                "hovertemplate": f"{name}<br>loss %{{x:.4g}} : gain %{{y:.4g}}<extra></extra>",
            }
        )
    names = [trace["name"] for trace in data]
    layout = {
        "height": 420 + legend_height(names),
        "margin": {"l": 60, "r": 12, "t": 20, "b": 60 + legend_height(names)},
        "xaxis": {"title": {"text": f"loss, {axes[1].unit}"}, "automargin": True},
        "yaxis": {"title": {"text": f"gain, {axes[0].unit}"}, "automargin": True},
        "legend": LEGEND,
        "hovermode": "closest",
        "showlegend": True,
        "meta": {"panels": 1, "panel_height": 0},
    }
    return {"data": data, "layout": layout}


def _whisker(interval: Mapping[str, Any]) -> dict[str, Any]:
    value, lo, hi = interval["value"], interval["lo"], interval["hi"]
    if lo is None or hi is None or lo == hi:
        return {"visible": False}
    ends = {"array": [hi - value], "arrayminus": [value - lo]}
    return {"type": "data", "symmetric": False, **ends, "thickness": 1.2, "width": 3}
