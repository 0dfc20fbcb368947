"""``prism advise``: what a study's own records say to keep, to merge and to run next, every line with its rows.

Nothing is advised beyond the data: without an interval there is no advice, and what is seen but not shown is called so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from prismlab.claims.arms import Entry
from prismlab.errors import SpecError, shown
from prismlab.evaluate.retention import MARGIN
from prismlab.run.step import Artifact
from prismlab.tools import advise_front, advise_merge, advise_next, show
from prismlab.tools.advise_axes import Readings, axes_of
from prismlab.tools.advise_front import Axes
from prismlab.tools.claims import read_ledger


def _reference(readings: Readings, asked: str | None) -> str:
    known = {str(e["checkpoint"]) for e in readings.entries if e["kind"] == "evaluation"}
    name = asked or readings.arms.get("base")
    if name is None:
        raise SpecError("the study has no arm 'base' to hold gains and losses against; name one with --reference")
    if not known:
        raise SpecError("the study has no evaluation, so there is no gain to weigh; add one to 'evaluations'")
    if name not in known:
        raise SpecError(f"--reference {shown(name, 60)}: no evaluation is of it; there are {', '.join(sorted(known))}")
    return name


def _split(readings: Readings, axes: Axes, reference: str) -> tuple[list[str], list[dict[str, str]]]:
    """Checkpoints that have figures on both sides, and those that lack one, with the reason."""
    names = dict.fromkeys(
        str(e["checkpoint"])
        for e in readings.entries
        if e["kind"] == "evaluation" and e["name"] in {axis.evaluation for axis in axes}
    )
    there: list[str] = []
    missing: list[dict[str, str]] = []
    for name in names:
        reasons = [reason for axis in axes if (reason := readings.missing(axis, name)) is not None]
        if reasons:
            missing.append({"checkpoint": name, "reason": reasons[0]})
        elif name != reference:
            there.append(name)
    return there, missing


def advise(
    study: Mapping[str, Any],
    entries: Sequence[Entry],
    arms: Mapping[str, str],
    inputs: Mapping[str, Artifact],
    *,
    gain: str | None = None,
    loss: str | None = None,
    reference: str | None = None,
    margin: float | None = None,
) -> dict[str, Any]:
    """All advice on a study as one JSON object.

    Args:
        study: the study as JSON.
        entries: the planner's list of steps; one without an artifact has ``missing``.
        arms: arm to checkpoint.
        inputs: finished artifacts by step id.
        gain: evaluation of the gain; None for the one that decides the claims.
        loss: evaluation of the loss, or ``text``.
        reference: checkpoint that gains and losses are held against; None for the arm ``base``.
        margin: loss that counts as retained, in points or bits per byte.

    Raises:
        SpecError: the reference or an evaluation is unknown or not built, or a margin is not above 0.
        DataError: rows that cannot be read or compared.
        StoreError: the ledger cannot be read.
    """
    confidence = float(study.get("claims", {}).get("confidence", 0.95))
    readings = Readings(study=study, entries=entries, arms=arms, inputs=inputs, confidence=confidence)
    base, axes = _reference(readings, reference), axes_of(readings, gain, loss)
    if margin is not None and not margin > 0:
        raise SpecError(f"--margin {margin:g}: the loss that counts as retained, above 0")
    default = float(study.get("claims", {}).get("general_margin", 0.05)) if axes[1].text else MARGIN
    allowed = default if margin is None else margin
    there, missing = _split(readings, axes, base)
    lacking = next((one["reason"] for one in missing if one["checkpoint"] == base), None)
    if lacking is not None:
        raise SpecError(f"{shown(base, 60)}: the reference has no figures ({shown(lacking)}); 'prism run' builds them")
    rows = advise_front.placed(readings, axes, there, base)
    advise_front.front(readings, axes, rows)
    groups, merging, sweep = advise_merge.merges(readings, axes, rows, base, allowed)
    lines = [*advise_front.lines(readings, axes, rows), *merging, *advise_next.gates(readings), *_claims(readings)]
    return {
        "tool": "advise",
        "study": study["name"],
        "reference": base,
        "over": readings.unit,
        "confidence": confidence,
        "margin": allowed,
        "gain": {"what": axes[0].what, "unit": axes[0].unit},
        "loss": {"what": axes[1].what, "unit": axes[1].unit},
        "arms": rows,
        "missing": missing,
        "merges": groups,
        "sweep": sweep,
        "advice": lines,
        "axes": axes,
    }


def _claims(readings: Readings) -> list[dict[str, Any]]:
    key = next((str(e["key"]) for e in readings.entries if e["kind"] == "claims"), None)
    if key is None or key not in readings.inputs:
        return []
    return advise_next.claims(read_ledger(readings.inputs[key]), key)


def _cell(found: Mapping[str, Any], unit: str) -> list[str]:
    form = "+.1f" if unit == "points" else "+.3f"
    if found["value"] is None:
        return [show.NONE, show.NONE]
    bounds = show.NONE if found["lo"] is None else f"{found['lo']:{form}} to {found['hi']:{form}}"
    return [f"{found['value']:{form}}", bounds]


def _where(row: Mapping[str, Any]) -> str:
    if row["reference"]:
        return "the reference"
    if row["behind"] is None:
        return "on the front" if row["front"] else "no figure"
    return f"behind {row['behind']['by']}" + ("" if row["behind"]["shown"] else " (not shown)")


def _tables(found: Mapping[str, Any]) -> list[show.Table]:
    units = (found["gain"]["unit"], found["loss"]["unit"])
    head = ["checkpoint", "arm", "where", f"gain, {units[0]}", "interval", f"loss, {units[1]}", "interval"]
    rows: list[list[str]] = []
    for row in found["arms"]:
        cells = [*_cell(row["gain"], units[0]), *_cell(row["loss"], units[1])]
        cells = [show.NONE] * 4 if row["reference"] else cells
        rows.append([shown(row["checkpoint"], 40), row["arm"] or show.NONE, _where(row), *cells])
    tables = [show.Table(head=head, rows=rows, title=f"Gain and loss against {found['reference']}", words=3)]
    for other, group in found["merges"].items():
        lines = [
            [
                f"{row['share']:.0%}",
                shown(row["checkpoint"], 40),
                row["retention"],
                *_cell(row["loss"], units[1]),
                *([show.NONE] * 2 if row["cost"] is None else _cell(row["cost"], units[0])),
            ]
            for row in group
        ]
        title = f"{shown(other, 40)} merged with {found['reference']}; loss of {found['margin']:g} {units[1]} allowed"
        head = ["share", "checkpoint", "retention", f"loss, {units[1]}", "interval", f"cost, {units[0]}", "interval"]
        tables.append(show.Table(head=head, rows=lines, title=title, words=3))
    return tables


def cited(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where a line's numbers stand, for the terminal: steps without their seeds, file, columns."""
    texts: list[str] = []
    for one in rows:
        steps: dict[str, list[str]] = {}
        for step in one["steps"]:
            name, _, seed = step.rpartition("/s")
            # Steps that all seeds share have none in their id.
            steps.setdefault(name if seed.isdecimal() and name else step, []).extend([seed] if seed.isdecimal() else [])
        told = (name + (f" seed {', '.join(seeds)}" if seeds else "") for name, seeds in steps.items())
        texts.append(f"{'; '.join(told)}: {one['file']} ({', '.join(one['columns'])})")
    return "\n      ".join(shown(text, 2_000) for text in texts)


def _notes(found: Mapping[str, Any]) -> list[str]:
    over = "over seeds, paired by seed"
    if found["over"] == "items":
        over = "over items and documents inside the one seed: they say nothing of another seed"
    notes = [
        f"Gain: {found['gain']['what']}. Loss: {found['loss']['what']}.",
        f"Intervals of {found['confidence']:.0%} {over}; of comparisons between arms at a level shared by all of them.",
    ]
    notes += [f"Missing: {shown(one['checkpoint'], 60)}: {shown(one['reason'])}." for one in found["missing"]]
    notes += ["", "Advice"]
    for k, line in enumerate(found["advice"], 1):
        notes += [f"{k:>3}. {line['text']}", f"      {cited(line['rows'])}"]
    if not found["advice"]:
        notes.append("  None: nothing is built that an interval could be made of.")
    if found["sweep"]:
        notes += ["", "To be pasted into the study:", "", found["sweep"]]
    return notes


def show_advice(found: dict[str, Any], *, out: Path | None = None, as_json: bool = False) -> None:
    """Show what ``advise`` found: tables, lines with their rows, and the front as a figure on the page."""
    axes = cast("Axes", found.pop("axes"))
    show.emit(
        "advise",
        found,
        _tables(found),
        title=f"Advice on {found['study']}",
        notes=_notes(found),
        figures=lambda: [advise_front.drawing(axes, found["arms"], found["over"])],
        out=out,
        as_json=as_json,
    )
