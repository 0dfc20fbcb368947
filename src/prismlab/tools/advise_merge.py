"""Which share of the reference, merged back in, restores retention at least cost; else the sweep to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.stats import Interval, non_inferiority
from prismlab.tools.advise_axes import Readings
from prismlab.tools.advise_front import Axes, signed

FIRST_SHARES = (0.1, 0.2, 0.35, 0.5)
"""Shares of the reference in a sweep where nothing was measured: the reference study's 0.15 lies between."""
FINEST = 0.02
"""Shares nearer than this are not told apart by any evaluation here, so no sweep goes between them."""
Row = dict[str, Any]


def _merged(study: Mapping[str, Any], reference: str) -> dict[str, list[tuple[float, str]]]:
    """Measured merges of the reference with one other checkpoint: other to [(share of the reference, merge)]."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, spec in study.get("checkpoints", {}).items():
        if spec["stage"] != "merge":
            continue
        weights: Mapping[str, float] = spec["weights"]
        others = [one for one in weights if one != reference]
        if reference in weights and len(others) == 1:
            found.setdefault(others[0], []).append((weights[reference] / sum(weights.values()), name))
    return {other: sorted(merges) for other, merges in found.items()}


def _held(loss: Interval, margin: float) -> str:
    """Verdict on retention: a loss turned round is a difference of which more is better."""
    return non_inferiority(loss.scaled(-1.0), margin)


def _group(
    readings: Readings, axes: Axes, reference: str, other: str, merges: Sequence[tuple[float, str]], margin: float
) -> list[Row]:
    """A checkpoint and its merges by share of the reference, with what each gained, lost, and cost."""
    rows: list[Row] = []
    for share, name in [(0.0, other), *merges]:
        if any(readings.missing(axis, name) for axis in axes):
            continue
        gain, loss = (readings.difference(axis, name, reference) for axis in axes)
        cost = readings.difference(axes[0], other, name) if name != other else None
        row = {"share": share, "checkpoint": name, "gain": gain.to_json(), "loss": loss.to_json()}
        rows.append({**row, "cost": None if cost is None else cost.to_json(), "retention": _held(loss, margin)})
    return rows


def _interval(found: Mapping[str, Any]) -> Interval:
    return Interval(found["value"], found["lo"], found["hi"], found["n"], found["method"], found.get("reason"))


def _next_shares(rows: Sequence[Row]) -> list[float]:
    """Shares worth a merge: between the last that does not retain and the first that does; beyond what is there."""
    kept = [row["share"] for row in rows if row["retention"] == "retained"]
    low = max((row["share"] for row in rows if not kept or row["share"] < kept[0]), default=0.0)
    if len(rows) < 2 and not kept:
        return list(FIRST_SHARES)
    high = kept[0] if kept else 1.0
    steps = [round(low + (high - low) * k / 4, 2) for k in (1, 2, 3)]
    return [share for share in dict.fromkeys(steps) if share - low >= FINEST and high - share >= FINEST]


def sweep(study: Mapping[str, Any], reference: str, other: str, shares: Sequence[float]) -> str:
    """A part of a study file that merges a checkpoint with the reference at these shares."""
    out = ["checkpoints:"]
    for share in shares:
        name = f"{other[:40]}-with-{100 * share:.0f}"
        while name in study.get("checkpoints", {}):
            name += "-again"
        out.append(f"  {name}: {{stage: merge, weights: {{{reference}: {share:g}, {other}: {1 - share:g}}}}}")
    return "\n".join(out)


def _best(readings: Readings, axes: Axes, other: str, rows: Sequence[Row], margin: float) -> dict[str, Any] | None:
    """The line on the retained merge that gains most; None where none is retained."""
    kept = [row for row in rows if row["retention"] == "retained"]
    if not kept:
        return None
    best = max(kept, key=lambda row: (row["gain"]["value"], -row["share"]))
    limit = f"{margin:g} {axes[1].unit}"
    whole = _interval(rows[0]["gain"])
    if best["cost"] is not None and (best["cost"]["lo"] is None or not (whole.lo or 0.0) > 0 or rows[0]["share"]):
        why = f"{other} itself is not shown to gain ({signed(whole, axes[0].unit)})"
        why = "its cost has no interval" if (whole.lo or 0.0) > 0 else why
        text = f"No merge of {other} is advised, though {best['checkpoint']} is shown to lose less than {limit}: {why}."
    elif best["cost"] is None:
        text = f"{other} needs no merge: it is shown to lose less than {limit}"
        text += f" ({signed(_interval(best['loss']), axes[1].unit)})."
    else:
        cost = _interval(best["cost"])
        text = (
            f"Merge {best['share']:.0%} of the reference into {other} ({best['checkpoint']}): of the measured shares "
            f"that are shown to lose less than {limit} it gains most. Loss "
            f"{signed(_interval(best['loss']), axes[1].unit)}; cost in gain {signed(cost, axes[0].unit)}."
        )
        near = [
            row["checkpoint"]
            for row in kept
            if row is not best and _apart(readings, axes, best["checkpoint"], row["checkpoint"]) is False
        ]
        text += f" Not told apart from it in gain: {', '.join(near)}." if near else ""
    names = [row["checkpoint"] for row in rows]
    return {"kind": "merge", "text": text, "rows": readings.cited(axes, *names)}


def _apart(readings: Readings, axes: Axes, a: str, b: str) -> bool | None:
    found = readings.difference(axes[0], a, b)
    return None if found.lo is None or found.hi is None else found.lo > 0 or found.hi < 0


def merges(
    readings: Readings, axes: Axes, rows: Sequence[Mapping[str, Any]], reference: str, margin: float
) -> tuple[dict[str, list[Row]], list[dict[str, Any]], str | None]:
    """The measured merges, the advice on them, and the sweep to run.

    Args:
        rows: arms as ``placed`` and ``front`` leave them.
        margin: loss that counts as retained, in the unit of the loss.

    Returns:
        Groups by the checkpoint that is merged with the reference; lines of advice; a part of a study file, or None
        where nothing is left to measure.
    """
    groups = {
        other: _group(readings, axes, reference, other, found, margin)
        for other, found in _merged(readings.study, reference).items()
    }
    groups = {other: found for other, found in groups.items() if found}
    advice: list[dict[str, Any]] = []
    for other, found in groups.items():
        best = _best(readings, axes, other, found, margin)
        if best is None:
            limit = f"{margin:g} {axes[1].unit}"
            text = f"No measured share of the reference in {other} is shown to lose less than {limit}."
            names = [row["checkpoint"] for row in found]
            best = {"kind": "merge", "text": text, "rows": readings.cited(axes, *names)}
        advice.append(best)
    other = _to_sweep(readings, axes, rows, groups, reference, margin)
    if other is None:
        return groups, advice, None
    mine = groups.get(other) or _group(readings, axes, reference, other, (), margin)
    shares = _next_shares(mine)
    if not shares:
        return groups, advice, None
    text = f"Merge {other} with the reference at {', '.join(f'{share:g}' for share in shares)} (below, to be pasted): "
    text += (
        "between these shares retention turns." if other in groups else "it is not shown to retain, and no merge is."
    )
    advice.append({"kind": "sweep", "text": text, "rows": readings.cited(axes, other)})
    return groups, advice, sweep(readings.study, reference, other, shares)


def _to_sweep(
    readings: Readings,
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Sequence[Row]],
    reference: str,
    margin: float,
) -> str | None:
    """The trained checkpoint that gains most and is not shown to retain; only one that is shown to gain at all."""
    merged = {name for name, spec in readings.study.get("checkpoints", {}).items() if spec["stage"] == "merge"}
    worth = [
        row
        for row in rows
        if not row["reference"]
        and row["checkpoint"] not in merged
        and (row["gain"]["lo"] or 0.0) > 0
        and row["loss"]["lo"] is not None
        and _held(_interval(row["loss"]), margin) != "retained"
    ]
    best = max(worth, key=lambda row: row["gain"]["value"], default=None)
    return None if best is None else str(best["checkpoint"])
