"""The paper's tables in the shape of a study's records, so that the very rules of the ledger can read them.

A model of the paper stands where a study has a seed. One model alone is what a rule asks for, a study with one seed;
several models are no repetitions of one another, and what is decided over them is told apart (``reference_ledger``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismlab.claims.arms import Reader, Table
from prismlab.claims.reference_tables import (
    ACTIVE,
    BEHAVIOUR,
    CKA,
    COSINE,
    DIVERGENCE,
    FRONT,
    LANDSCAPE,
    RL_ON_BASE_DEFICIT,
    SCORES,
    SUBCOMPONENTS,
    UNCHANGED,
)
from prismlab.claims.rule import BASE, MC, MCS, rl
from prismlab.claims.series import Series
from prismlab.run.step import Artifact

GRANITE = "Granite-3.3 8B"
NEMOTRON = "Nemotron-H 8B (8k)"
MODELS = tuple(dict.fromkeys((GRANITE, *(row.partition(", ")[0] for row in SCORES["table 6"].rows))))
"""The seven, Granite-3.3 8B first: the only one with figures for most claims."""
DOMAINS = ("code", "math", "science")
BENCHMARKS = {"code": ("LiveCodeBench", "Codeforces"), "math": ("AIME24", "AIME25", "MATH500"), "science": ("GPQA-D",)}
"""Benchmarks of a domain; its score is their mean."""
TASK = "MATH500"


def _domains(cells: Mapping[str, float | None]) -> dict[str, float] | None:
    """Domain scores from benchmarks, not from the averages that the table prints; None if a benchmark is missing."""
    scores: dict[str, float] = {}
    for domain, names in BENCHMARKS.items():
        values = [cells.get(name) for name in names]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        scores[domain] = sum(known) / len(known)
    return scores


def row_scores(table: str, row: str) -> dict[str, float] | None:
    """Domain scores of a row of a table of scores; None where it lacks the row or a benchmark."""
    grid = SCORES[table]
    return _domains(dict(zip(grid.columns, grid.rows[row], strict=True))) if row in grid.rows else None


def arm_scores(model: str) -> dict[str, dict[str, float]]:
    """Domain scores of every arm of a model that the tables have."""
    found: dict[str, dict[str, float]] = {}
    for arm, row in ((BASE, "base"), (MCS, "mid")):
        scores = row_scores("table 6", f"{model}, {row}")
        if scores is not None:
            found[arm] = scores
    for row in SCORES["table 11"].rows:
        name, _, arm = row.partition(", ")
        scores = row_scores("table 11", row)
        if name == model and scores is not None:
            found[arm] = scores
    if model == GRANITE:
        only_math = row_scores("table 19", "Math")
        if only_math is not None:
            found["mid[M]"] = only_math
        whole = found[rl(MCS, "MCS")]
        found[rl(BASE, "MCS")] = {d: whole[d] - RL_ON_BASE_DEFICIT[d] for d in DOMAINS}
    return found


def _average(scores: Mapping[str, float]) -> float:
    return sum(scores[domain] for domain in DOMAINS) / len(DOMAINS)


def _evaluations(model: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (
            {"kind": "evaluation", "name": "paper", "checkpoint": arm},
            {"domains": {d: {"value": v} for d, v in scores.items()}, "average": {"value": _average(scores)}},
        )
        for arm, scores in arm_scores(model).items()
    ]


def _changed(percent_unchanged: float | None) -> dict[str, float]:
    return {} if percent_unchanged is None else {"0.01": 1 - percent_unchanged / 100}


def _weights(model: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Divergences of table 12; Granite's shares of the whole model are table 22's, since table 12 has attention's."""
    if model not in DIVERGENCE:
        return []
    pairs = {"MCS base->mid": (BASE, MCS), "MCS mid->RL": (MCS, rl(MCS, "MCS")), "MC base->mid": (BASE, MC)}
    pairs |= {"MC mid->RL": (MC, rl(MC, "MC")), "base->RL": (BASE, rl(BASE, "MCS"))}
    column = {(BASE, MCS): 0, (MCS, rl(MCS, "MCS")): 1, (BASE, rl(BASE, "MCS")): 2}
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for label, row in DIVERGENCE[model].items():
        pair = pairs[label]
        total: dict[str, Any] = {"l2": row[3], "changed": _changed(row[4])}
        if model == GRANITE and pair in ((BASE, MCS), (MCS, rl(MCS, "MCS"))):
            side = 1 if pair == (BASE, MCS) else 2
            total["changed"] = {str(line[0] / 100): 1 - line[side] / 100 for line in UNCHANGED}
        metrics: dict[str, Any] = {"total": total, "subcomponents": {}}
        if pair in column:
            at = column[pair] + (3 if model == NEMOTRON else 0)
            parts = {name: values[at] for name, values in SUBCOMPONENTS.items()}
            metrics["subcomponents"] = {
                name: {"changed": {"0.01": value / 100}} for name, value in parts.items() if value is not None
            }
        found.append(({"kind": "weights", "name": label, "old": pair[0], "new": pair[1]}, metrics))
    return found


def _rest(model: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Direction, CKA, behaviour, trajectory and landscape, as far as the tables have them for a model."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    run = rl(MCS, "MCS")
    if model in COSINE:
        cosine = [[1.0, COSINE[model]], [COSINE[model], 1.0]]
        entry = {"kind": "direction", "name": BASE, "base": BASE, "checkpoints": [MC, MCS]}
        found.append((entry, {"names": [MC, MCS], "cosine": cosine}))
    if model in CKA:
        sets = {name: {"min": value} for name, value in CKA[model].items()}
        found.append(({"kind": "cka", "name": f"{MCS}:{run}", "old": MCS, "new": run}, {"sets": sets}))
    for arm, stage in ((BASE, "base"), (MCS, "mid"), (run, "rl")):
        if model in BEHAVIOUR:
            _, length, nll, right, wrong = BEHAVIOUR[model][stage]
            figures = {"length_median": length, "nll": nll, "nll_correct": right, "nll_incorrect": wrong}
            entry = {"kind": "behaviour", "name": "paper", "checkpoint": arm}
            found.append((entry, {"tasks": {TASK: figures}}))
    if model == GRANITE:
        changed = {"0.01": [value / 100 for value in ACTIVE]}
        found.append(
            ({"kind": "trajectory", "name": run, "checkpoint": run}, {"front_share": FRONT, "changed": changed})
        )
    if model in LANDSCAPE:
        corners = {"base": (1, 0.0), "mid": (1, 1.0), "rl": (2, 1.0)}
        path = [{"leg": leg, "t": t, "average": LANDSCAPE[model][name]} for name, (leg, t) in corners.items()]
        found.append(({"kind": "landscape", "name": "paper", "base": BASE, "mid": MCS, "rl": run}, {"path": path}))
    return found


@dataclass(frozen=True)
class TracedTable(Table):
    """A table that writes down every figure it is asked for, once, in words."""

    log: dict[str, None] = field(default_factory=dict[str, None])

    def _note(self, label: str, series: Series, percent: bool = False) -> Series:
        if series.values:
            values = [f"{value * (100 if percent else 1):.6g}" for _, value in sorted(series.values.items())]
            self.log[f"{label} = {', '.join(values)}{' %' if percent else ''}"] = None
        return series

    def score(self, arm: str, domain: str | None = None) -> Series:
        """Score of a domain or the average."""
        return self._note(f"{arm} {domain or 'AVG'}", super().score(arm, domain))

    def changed(self, old: str, new: str, threshold: float, part: str | None = None) -> Series:
        """Share of elements that moved."""
        label = f"{old} -> {new}, changed by over {100 * threshold:g}%{'' if part is None else f', {part}'}"
        return self._note(label, super().changed(old, new, threshold, part), percent=True)

    def l2(self, old: str, new: str) -> Series:
        """Normalised distance."""
        return self._note(f"{old} -> {new}, L2", super().l2(old, new))

    def cka(self, a: str, b: str, debiased: bool = False) -> Series:
        """Smallest CKA."""
        return self._note(f"{a} -> {b}, smallest CKA", super().cka(a, b, debiased))

    def direction(self, base: str, a: str, b: str) -> Series:
        """Cosine between updates."""
        return self._note(f"cosine of {a} - {base} and {b} - {base}", super().direction(base, a, b))

    def behaviour(self, arm: str, field: str, domain: str | None = "math") -> Series:
        """A behaviour figure."""
        return self._note(f"{arm} {field.replace('_', ' ')}", super().behaviour(arm, field, domain))

    def trajectory(self, arm: str, reader: Reader, what: str) -> Series:
        """A figure of the RL run."""
        return self._note(f"{arm} {what}", super().trajectory(arm, reader, what))

    def path_score(self, base: str, mid: str, run: str, place: float) -> Series:
        """Pass rate on the path."""
        return self._note(f"pass rate at {place:g} of the path", super().path_score(base, mid, run, place))


def table_of(models: Sequence[str]) -> TracedTable:
    """The paper's figures of these models; model k stands where a study has seed k.

    Args:
        models: of ``MODELS``.
    """
    entries: list[dict[str, Any]] = []
    inputs: dict[str, Artifact] = {}
    arms: dict[str, str] = {}
    for seed, model in enumerate(models):
        for entry, metrics in (*_evaluations(model), *_weights(model), *_rest(model)):
            key = f"{entry['kind']}/{entry['name']}@{entry.get('checkpoint', '')}/s{seed}"
            entries.append({**entry, "key": key, "seed": seed})
            record = {"metrics": metrics, "config": {}}
            inputs[key] = Artifact(kind=entry["kind"], fingerprint="paper", path=Path(), record=record)
            if entry["kind"] == "evaluation":
                arms[entry["checkpoint"]] = entry["checkpoint"]
            for side in ("old", "new", "base", "mid", "rl"):
                if side in entry:
                    arms[entry[side]] = entry[side]
    study = {
        "name": "the paper",
        "seeds": list(range(len(models))),
        "tasks": {TASK: {"domain": "math"}},
        "evaluations": {"paper": {"tasks": [TASK]}},
        "analyses": {"behaviour": {"evaluation": "paper"}},
    }
    return TracedTable(study=study, entries=entries, arms=arms, inputs=inputs)
