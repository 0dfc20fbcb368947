"""What to run next: seeds, items and samples that would decide what a study left open, and the arms that it lacks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.errors import shown
from prismlab.stats import samples_to_decide, seeds_to_decide, variance_parts
from prismlab.tools.advise_axes import Readings, cite

POWER = 0.8
ASSUMED = "if the mean and the spread seen are the true ones"
LISTED = 3
"""Reasons repeated of a claim that lacks more."""
EQUAL = 1e-9
"""Values that differ by less than this share of the largest differ by rounding alone, as in the ledger."""


def _distance(part: Mapping[str, Any]) -> float | None:
    """From the nearest bound of a part's region, negative outside; None without a value."""
    value, (low, high) = part["effect"]["value"], part["bounds"]
    if value is None:
        return None
    return min(([value - low] if low is not None else []) + ([high - value] if high is not None else []))


def seeds_of_part(part: Mapping[str, Any], confidence: float) -> tuple[int | None, str]:
    """Seeds that would decide a part of a claim, and the sentence on it; None where no number follows.

    Args:
        part: as it stands in the ledger, with its values by seed.
        confidence: of the ledger.
    """
    values = [float(value) for value in part["seeds"].values()]
    label, distance = shown(part["label"], 80), _distance(part)
    if distance is None or len(values) < 2:
        return None, f"{label}: one seed shows no spread; run 3 seeds and ask again"
    if max(values) - min(values) <= EQUAL * max(1.0, *map(abs, values)):
        return None, f"{label}: {len(values)} seeds agree exactly, so no number of seeds follows from them"
    n = seeds_to_decide(distance, statistics.stdev(values), confidence, POWER)
    if n is None:
        return None, f"{label}: it lies on its bound, which no number of seeds decides"
    way = "for" if distance > 0 else "against"
    return n, f"{label}: {n} seeds would decide {way} it"


def claims(ledger: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A line for every claim that is inconclusive or not tested.

    Args:
        ledger: of the step ``claims``.
        key: that step's id.
    """
    found: list[dict[str, Any]] = []
    for claim in ledger["claims"]:
        rows = [cite([key], "ledger.json", f"claims.{claim['id']}.parts")]
        if claim["verdict"] == "inconclusive":
            rows.append(cite([one["key"] for one in claim["evidence"]], "record.json", "metrics"))
            found.append({"kind": "seeds", "claim": claim["id"], **_undecided(claim, ledger), "rows": rows})
        elif claim["verdict"] == "not_tested":
            reasons = [shown(text, 200) for text in claim["missing"]]
            more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
            text = f"{claim['id']} cannot be tested: {'; '.join(reasons[:LISTED])}{more}."
            found.append({"kind": "missing", "claim": claim["id"], "text": text, "missing": reasons, "rows": rows})
    return found


def _undecided(claim: Mapping[str, Any], ledger: Mapping[str, Any]) -> dict[str, Any]:
    parts = [part for part in claim["parts"] if part["decides"] and part["verdict"] == "inconclusive"]
    told = [seeds_of_part(part, ledger["confidence"]) for part in parts]
    sentences = [sentence for _, sentence in told] or [shown(note, 200) for note in claim["notes"]]
    numbers = [n for n, _ in told]
    known = [n for n in numbers if n is not None]
    against = [n for n, sentence in told if n is not None and sentence.endswith("against it")]
    # One part on the wrong side contradicts the claim; to support it takes all of them.
    seeds = min(against) if against else max(known) if known and len(known) == len(numbers) else None
    head = f"{claim['id']} is inconclusive"
    if seeds is not None:
        head += f": {seeds} seeds would decide it with a probability of {POWER:.0%}, {ASSUMED}"
    return {"text": f"{head} ({'; '.join(sentences)}).", "seeds": seeds}


def _samples(readings: Readings, task: str, keys: Sequence[str], entry: Mapping[str, Any]) -> int | None:
    """Samples an item after which these items decide; None where that cannot be known, or none is enough."""
    sides = [
        {(row["item_id"], row["sample"]): row for row in readings.rows(readings.inputs[key]) if row["task"] == task}
        for key in keys
    ]
    pairs = [(sides[0][at], row) for at, row in sides[1].items() if at in sides[0]]
    scored = [(old, new) for old, new in pairs if old["score"] is not None and new["score"] is not None]
    parts = variance_parts(
        [new["score"] - old["score"] for old, new in scored],
        [str(old.get("problem") or old["item_id"]) for old, _ in scored],
    )
    if parts is None or entry["items"] < 2:
        return None
    return samples_to_decide((entry["difference"] + entry["margin"]) / 100, *parts, entry["items"])


def _pair(readings: Readings, step: Mapping[str, Any]) -> list[str]:
    """Ids of the evaluations that a gate compares; one of an outside base has no seed in its id."""
    found: list[str] = []
    for side in ("reference", "checkpoint"):
        key = f"evaluation/{step['evaluation']}@{step[side]}"
        found.append(key if key in readings.inputs else f"{key}/s{step['seed']}")
    return found


def _needed(readings: Readings, step: Mapping[str, Any], task: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Items, or samples an item, after which one seed's gate decides; None where no number follows."""
    pair, items, samples = _pair(readings, step), entry["items_needed"], None
    if items is not None and all(key in readings.inputs for key in pair):
        samples = _samples(readings, task, pair, entry)
    return {"seed": step["seed"], "items": items, "samples": samples, "change": entry["difference"]}


def _most(values: Sequence[int | None]) -> int | None:
    """The largest; None if one is unknown."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _task_line(
    readings: Readings, steps: Sequence[Mapping[str, Any]], task: str, entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The line on one benchmark of one checkpoint, over the seeds in which it is undecided."""
    seeds = [_needed(readings, step, task, entry) for step, entry in zip(steps, entries, strict=True)]
    items, samples = _most([one["items"] for one in seeds]), _most([one["samples"] for one in seeds])
    used = max(entry["items"] for entry in entries)
    each = max(1, *(round(entry["samples"] / max(1, entry["items"])) for entry in entries))
    where = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(str(one['seed']) for one in seeds)}"
    text = f"Gate {steps[0]['name']}, {steps[0]['checkpoint']}, {where}: {shown(task, 40)} is undecided"
    reasons = list(dict.fromkeys(shown(entry["reason"], 200) for entry in entries if entry.get("reason")))
    if reasons:
        text += f": {'; '.join(reasons)}"
    if items is None and reasons:
        text += ", so no number of items like these decides"
    elif items is None:
        text += ": the loss seen is the margin itself, which no number of items decides"
    else:
        more = f", or {samples:,} samples an item" if samples is not None and samples > each else ""
        changes = ", ".join(f"{one['change']:+.1f}" for one in seeds)
        text += (
            f": {items:,} items would decide it ({used:,} were used){more}, with a probability of {POWER:.0%} a seed, "
        )
        text += f"if the change seen ({changes} points) is the true one"
    pairs = [key for step in steps for key in _pair(readings, step)]
    rows = [
        cite([step["key"] for step in steps], "gate.json", f"tasks.{task}"),
        cite(pairs, "samples.parquet", "task", "item_id", "score"),
    ]
    return {"kind": "items", "task": task, "items": items, "samples": samples, "text": f"{text}.", "rows": rows}


def gates(readings: Readings) -> list[dict[str, Any]]:
    """A line for every benchmark of a checkpoint that a gate of the study left undecided in some seed."""
    found: dict[tuple[str, str, str], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for step in readings.entries:
        if step["kind"] != "gate" or step["key"] not in readings.inputs:
            continue
        tasks: Mapping[str, Mapping[str, Any]] = readings.inputs[step["key"]].metrics["tasks"]
        for task, entry in tasks.items():
            if entry["verdict"] == "undecided" and entry["difference"] is not None:
                found.setdefault((step["name"], step["checkpoint"], task), []).append((step, entry))
    return [
        _task_line(readings, [step for step, _ in pairs], task, [entry for _, entry in pairs])
        for (_, _, task), pairs in found.items()
    ]
