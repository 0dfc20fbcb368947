"""What ``prism diff`` says: its tables and the lines beneath them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.analyse.weights import Found, divergence_json, keys_of
from prismlab.arith.sums import ULP_CLASSES, threshold_key
from prismlab.errors import shown
from prismlab.tools import show
from prismlab.tools.show import Table, count, digits, percent

MAIN = 0.01
"""The threshold that findings are told at, or the nearest to it."""
SIGNIFICANT = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
"""Bits of a number's significand."""
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
MOST_BARS = 40
"""Parts that one figure shows; of a model with more (an unknown one, by tensor) it shows components."""
LISTED = 3
"""Names that a line lists of many."""

Div = Mapping[str, Any]
Row = tuple[str, Div, bool]
"""A name, its DIV, and whether it stands out."""


def nearest(thresholds: Sequence[float]) -> float:
    """The threshold nearest to ``MAIN``, in ratio."""
    return min(thresholds, key=lambda t: abs(math.log(t / MAIN)))


def _rows(found: Found, by: str | None) -> list[Row]:
    """What a table shows of one checkpoint."""
    metrics = found.metrics
    rows: list[Row] = [("whole", metrics["total"], True)]
    if by == "layer":
        rows += [
            (f"layer {layer} {name}", div, False)
            for layer, components in metrics["layers"].items()
            for name, div in components.items()
        ]
    elif by == "tensor":
        rows += [(shown(name, 60), div, False) for name, div in tensors(found).items()]
    elif by is not None:
        fine = by == "subcomponent"
        for component, div in metrics["components"].items():
            inner = [name for name in metrics["subcomponents"] if name != component and _in(name, component, metrics)]
            rows.append((component, div, fine and bool(inner)))
            parts = [(name, metrics["subcomponents"][name]) for name in inner] if fine else []
            rows += [(f"  {shown(name.removeprefix(f'{component}.'), 60)}", part, False) for name, part in parts]
    return rows


def _in(subcomponent: str, component: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a sub-component is of a component; tensors that no component knows stand under their own names."""
    head = subcomponent.partition(".")[0]
    return head == component if head in metrics["components"] else component == "other"


def tensors(found: Found) -> dict[str, Div]:
    """DIV of every tensor, of fused ones of every part, by name."""
    pieces = Counter(row["name"] for row in found.rows)
    named = {
        row["name"] if pieces[row["name"]] == 1 else f"{row['name']} ({row['subcomponent']})": sums
        for row, sums in zip(found.rows, found.sums, strict=True)
    }
    return {key: divergence_json(named[name]) for name, key in keys_of(sorted(named)).items()}


def pair_of_tables(rows: Sequence[Row], thresholds: Sequence[float], title: str) -> list[Table]:
    """Relative change, and beside it the distance in steps where any is known."""
    keys = [threshold_key(t) for t in sorted(thresholds)]
    strong = [k for k, (_, _, out) in enumerate(rows) if out and len(rows) > 1]
    stepless = all(div["ulp"] is None for _, div, _ in rows)
    head = ["", "elements", "L2", *(f">{100 * float(key):g}%" for key in keys), "equal"]
    cells = [
        [name, count(div["elements"]), digits(div["l2"])]
        + [percent(share) for share in (*(div["changed"][key] for key in keys), div["equal"])]
        for name, div, _ in rows
    ]
    flips = [percent(div["sign_flips"]) for _, div, _ in rows]
    if stepless:
        cells = [[*row, flip] for row, flip in zip(cells, flips, strict=True)]
        note = "Percent of the elements. L2: ||new - old|| / ||old||."
        return [Table(head=[*head, "sign flips"], rows=cells, title=title, strong=strong, note=note)]
    steps = [
        [name, *(percent((div["ulp"] or {}).get(key)) for key in ULP_CLASSES), flip]
        for (name, div, _), flip in zip(rows, flips, strict=True)
    ]
    named = [f"{key} step{'' if key == '1' else 's'}" for key in ULP_CLASSES]
    note = (
        "Percent of the elements. L2: ||new - old|| / ||old||. Steps: numbers of the saved format between old and new."
    )
    return [
        Table(head=head, rows=cells, title=title, strong=strong),
        Table(head=["", *named, "sign flips"], rows=steps, strong=strong, beside=True, note=note),
    ]


def types(metrics: Mapping[str, Any]) -> str:
    """The types of both sides, most frequent first: ``BF16``, or ``BF16 and F32 against F32``."""
    sides = [
        " and ".join(sorted(met, key=lambda dtype: -met[dtype]))
        for met in (metrics["format"][s] for s in ("old", "new"))
    ]
    return sides[0] if sides[0] == sides[1] else " against ".join(sides)


def main_type(metrics: Mapping[str, Any]) -> str | None:
    """The type that most elements have on both sides; None where the sides differ."""
    mains = {max(met, key=lambda dtype: met[dtype], default=None) for met in metrics["format"].values()}
    return next(iter(mains)) if len(mains) == 1 else None


def finding_note(metrics: Mapping[str, Any], thresholds: Sequence[float]) -> str | None:
    """How much of what counts as unchanged is equal; None where nothing was compared."""
    div, t, main = metrics["total"], nearest(thresholds), main_type(metrics)
    if not div["elements"]:
        return None
    unchanged, text = 1 - div["changed"][threshold_key(t)], f"Unchanged at {100 * t:g}%: "
    text += f"{percent(unchanged)}% of the elements"
    if unchanged > 0:
        text += f"; {percent(min(1.0, div['equal'] / unchanged))}% of these are equal"
        most = 0 if main is None else math.floor(t * 2 ** SIGNIFICANT[main])
        text += f", the others differ by at most {count(most)} step{'s' if most > 1 else ''}" if most else ""
    reason = div.get("ulp_reason")
    return f"{text}." if reason is None else f"{text}. No distance in steps for all: {reason}."


def format_note(metrics: Mapping[str, Any], thresholds: Sequence[float]) -> str | None:
    """What the saved format can tell apart; None where the two sides are saved in different types."""
    main, t = main_type(metrics), nearest(thresholds)
    if main is None:
        return None
    step = 2.0 ** -SIGNIFICANT[main]
    text = f"One step of {main} is {100 * step:.2g} to {200 * step:.2g}% of a number"
    if step < t / 1000:
        return f"{text}, so rounding plays no part at {100 * t:g}%."
    text += ": what moved by less than half of that was rounded away when it was saved"
    blind = [f"{100 * one:g}%" for one in sorted(thresholds) if one < step]
    return f"{text}, and at {' and '.join(blind)} only equal numbers are unchanged." if blind else f"{text}."


def _zeros_note(div: Div) -> str | None:
    zeros, woken = div["zeros_old"], div["zeros_changed"]
    if not zeros:
        return None
    if not woken:
        return f"Old zeros: {count(zeros)}, all of them zero still."
    said = f"Old zeros: {count(zeros)}; {count(woken)} of them not zero now"
    return f"{said}, which counts as changed at every threshold."


def skipped_notes(skipped: Sequence[Mapping[str, str]]) -> list[str]:
    """What was not compared, a line a reason, with the first names."""
    reasons: dict[str, list[str]] = {}
    for line in skipped:
        reasons.setdefault(line["reason"], []).append(line["name"])
    out: list[str] = []
    for reason, names in reasons.items():
        if names == ["model_type"]:
            out.append(f"Note: {reason}.")
            continue
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        out.append(
            f"Not compared in full: {', '.join(shown(name) for name in names[:LISTED])}{more}: {shown(reason, 300)}."
        )
    return out


def rounding_note(rounding: Mapping[str, Any]) -> str:
    """What the master weights tell, in words."""
    equal, hidden = rounding["equal_saved"], rounding["hidden_of_unchanged"]
    if equal is None or hidden is None:
        return "Rounding: no element is equal as saved, so none is hidden."
    text = (
        f"Rounding: {percent(equal)}% of the elements are equal as saved, {percent(rounding['equal_master'])}% in the "
        f"master weights: {percent(hidden)}% of what looks untouched had moved."
    )
    unlike = rounding["unlike"]
    return text + (
        f" {count(unlike)} master weights do not round to the saved ones: is it their master?" if unlike else ""
    )


def _cosine(value: float | None) -> str:
    return show.NONE if value is None else f"{round(value, 3) + 0.0:.3f}"  # no minus sign before 0.000


def direction_tables(direction: Mapping[str, Any] | None) -> list[Table]:
    """Cosines of the whole, every two, and by component; none of one checkpoint."""
    if direction is None:
        return []
    names = direction["names"]
    whole = Table(
        head=["cosine", *names],
        rows=[[name, *map(_cosine, row)] for name, row in zip(names, direction["cosine"], strict=True)],
        title="Directions: cosine between the updates from the first checkpoint",
    )
    groups = direction["components"]
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    rows = [
        [f"{names[a]}, {names[b]}", _cosine(direction["cosine"][a][b]), *(_cosine(m[a][b]) for m in groups.values())]
        for a, b in pairs
    ]
    return [whole, Table(head=["cosine by component", "whole", *groups], rows=rows)]


def spectra_tables(found: Mapping[str, Found]) -> list[Table]:
    """Spectra of the updates that were asked for."""
    out: list[Table] = []
    for name, one in found.items():
        spectra = one.metrics.get("spectra", [])
        rows = [
            [
                shown(row["name"], 60),
                "x".join(map(str, row["shape"])),
                digits(row["frobenius"]),
                digits(row["stable_rank"]),
                digits(row["singular"][0] if row["singular"] else None),
                percent(_held(row)),
            ]
            for row in spectra
        ]
        if rows:
            head = ["update of", "shape", "norm", "stable rank", "largest singular value", "top 8 hold"]
            title = "Spectra of updates" + (f": {name}" if len(found) > 1 else "")
            note = "Stable rank: norm² over largest singular value². Top 8 hold: percent of norm² in 8 directions."
            out.append(Table(head=head, rows=rows, title=title, note=note))
    return out


def _held(row: Mapping[str, Any]) -> float | None:
    """Share of the update's square in its top singular directions."""
    if not row["singular"]:
        return None
    return min(1.0, sum(value * value for value in row["singular"]) / row["frobenius"] ** 2)


def speed_note(found: Mapping[str, Found], seconds: float, threads: int) -> str:
    """How much was read, and how fast."""
    firsts = [one.metrics for one in found.values()]
    sides = [firsts[0]["format"]["old"], *(one["format"]["new"] for one in firsts)]
    size = sum(ITEM_BYTES[dtype] * n for side in sides for dtype, n in side.items())
    kernel = firsts[0]["kernel"]
    many = "" if kernel.startswith("torch") else f", {threads} thread{'s' if threads > 1 else ''}"
    told = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    rate = f"{size / 1e9 / seconds:.1f} GB/s, " if size >= 1e8 and seconds else ""
    return f"Compared {told} in {seconds:.2f} s ({rate}{kernel}{many})."


def notes(found: Mapping[str, Found], thresholds: Sequence[float]) -> list[str]:
    """The lines beneath the tables: what was found in words, and what was not compared."""
    lines: dict[str, list[str]] = {}
    formats: list[str | None] = []
    for name, one in found.items():
        metrics = one.metrics
        told = [finding_note(metrics, thresholds), _zeros_note(metrics["total"]), *skipped_notes(metrics["skipped"])]
        told += [rounding_note(metrics["rounding"])] if "rounding" in metrics else []
        for line in told:
            if line:
                lines.setdefault(line, []).append(name)
        formats.append(format_note(metrics, thresholds))
    # What holds for several checkpoints, and what the format can tell apart, is said once.
    whose = [
        line if len(found) == 1 else f"{', '.join(who)}: {line[0].lower()}{line[1:]}" for line, who in lines.items()
    ]
    known = [line for line in dict.fromkeys(formats) if line]
    return [*whose[:1], *known, *whose[1:]] if len(found) == 1 else [*whose, *known]


def tables(old: str, found: Mapping[str, Found], thresholds: Sequence[float], by: str | None) -> list[Table]:
    """The tables of divergence: of one checkpoint part by part, of several the whole of each unless ``by`` is given."""

    def about(metrics: Mapping[str, Any]) -> str:
        return f"{shown(metrics['model_type'], 40)}, {types(metrics)}"

    if len(found) == 1 or by is not None:
        out: list[Table] = []
        for name, one in found.items():
            title = f"{old} → {name}: {about(one.metrics)}"
            out += pair_of_tables(_rows(one, by or "subcomponent"), thresholds, title)
        return out
    rows = [(name, one.metrics["total"], False) for name, one in found.items()]
    first = next(iter(found.values())).metrics
    return pair_of_tables(rows, thresholds, f"Against {old}: {about(first)}")
