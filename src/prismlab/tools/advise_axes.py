"""What a checkpoint gained and what it lost: two figures a seed, and the interval of the difference of two checkpoints.

With two seeds or more the interval is Student's over seeds, paired by seed, as in the claims. With one seed it is one
over items (or documents) inside that seed, which says nothing of another seed; ``Readings.unit`` tells which it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismlab.claims.arms import Entry, evaluation_name, number, task_domain
from prismlab.errors import DataError, SpecError, shown
from prismlab.evaluate.retention import read_rows, retention
from prismlab.run.step import Artifact
from prismlab.stats import Interval, bootstrap_ratio, mean_t

TEXT = "text"
"""What ``--loss`` calls the loss on held-out text."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One side of the bargain."""

    name: str
    """``gain`` or ``loss``."""
    evaluation: str
    parts: Mapping[str, float]
    """Tasks, or sources of text, with their weights, which sum to 1."""
    text: bool
    sign: float
    """Of new - old, so that a larger number is more gain, or more loss."""

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return "bits per byte" if self.text else "points"

    @property
    def what(self) -> str:
        """In words."""
        kind = "text loss" if self.text else "score"
        return f"{kind} of evaluation {self.evaluation!r}: {', '.join(shown(part, 40) for part in self.parts)}"


def cite(steps: Sequence[str], file: str, *columns: str) -> dict[str, Any]:
    """Rows that a line of advice rests on: steps, the file in their artifacts, columns or keys in it."""
    return {"steps": list(dict.fromkeys(steps)), "file": file, "columns": list(columns)}


def mean_of(parts: Sequence[tuple[float, Interval]], method: str) -> Interval:
    """Weighted sum of independent estimates with bounds put together from theirs (MOVER, Zou and Donner 2008)."""
    values = [(weight, part.value, part.lo, part.hi) for weight, part in parts]
    n = min((part.n for _, part in parts), default=0)
    if not values or any(value is None for _, value, _, _ in values):
        return Interval(None, None, None, n, method, "a part has no value")
    point = sum(weight * (value or 0.0) for weight, value, _, _ in values)
    if any(lo is None or hi is None or lo == hi for _, _, lo, hi in values):
        return Interval(point, None, None, n, method, "a part has no interval")
    below = math.hypot(*(weight * ((value or 0.0) - (lo or 0.0)) for weight, value, lo, _ in values))
    above = math.hypot(*(weight * ((hi or 0.0) - (value or 0.0)) for weight, value, _, hi in values))
    return Interval(point, point - below, point + above, n, method)


@dataclass
class Readings:
    """Figures of a study's checkpoints, read once."""

    study: Mapping[str, Any]
    entries: Sequence[Entry]
    arms: Mapping[str, str]
    inputs: Mapping[str, Artifact]
    confidence: float
    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])

    @property
    def seeds(self) -> list[int]:
        """Seeds of the study."""
        return list(self.study["seeds"])

    @property
    def unit(self) -> str:
        """What the intervals are over."""
        return "seeds" if len(self.seeds) > 1 else "items"

    def steps(self, axis: Axis, checkpoint: str) -> dict[int, Entry]:
        """The planned evaluations of a checkpoint by seed."""
        found = (e for e in self.entries if e["kind"] == "evaluation" and e["name"] == axis.evaluation)
        return {int(e["seed"]): e for e in found if e.get("checkpoint") == checkpoint}

    def values(self, axis: Axis, checkpoint: str) -> dict[int, float]:
        """The figure of a checkpoint by seed; a seed without it is absent."""
        found: dict[int, float] = {}
        for seed, entry in self.steps(axis, checkpoint).items():
            artifact = self.inputs.get(entry["key"])
            parts = [None if artifact is None else _figure(axis, artifact.metrics, part) for part in axis.parts]
            if all(part is not None for part in parts):
                found[seed] = sum(w * (p or 0.0) for w, p in zip(axis.parts.values(), parts, strict=True))
        return found

    def missing(self, axis: Axis, checkpoint: str) -> str | None:
        """Why a checkpoint has no figure in any seed; None if it has one."""
        if self.values(axis, checkpoint):
            return None
        reasons = [str(e["missing"]) for e in self.steps(axis, checkpoint).values() if "missing" in e]
        return reasons[0] if reasons else f"evaluation {axis.evaluation!r} has no {axis.name} of it"

    def difference(self, axis: Axis, new: str, old: str, confidence: float | None = None) -> Interval:
        """``new`` minus ``old`` in the unit and the sign of the axis.

        Returns:
            No bounds, with a reason, where there is no spread to make them of.
        """
        level = self.confidence if confidence is None else confidence
        a, b = self.values(axis, new), self.values(axis, old)
        shared = sorted(a.keys() & b.keys())
        if len(self.seeds) == 1 and shared:
            return self._inside(axis, new, old, shared[0], level)
        found = mean_t([axis.sign * (a[seed] - b[seed]) for seed in shared], level)
        if found.lo is not None and found.lo == found.hi:
            return Interval(found.value, None, None, found.n, found.method, found.reason)
        return found

    def _inside(self, axis: Axis, new: str, old: str, seed: int, level: float) -> Interval:
        sides = [self.inputs[self.steps(axis, one)[seed]["key"]] for one in (new, old)]
        if axis.text:
            found = [(w, _text_difference(sides, part, level)) for part, w in axis.parts.items()]
        else:
            rows = [self.rows(one) for one in sides]
            tasks = retention(rows[1], rows[0], confidence=level, names=(old, new))["tasks"]
            found = [(w, _points(tasks[part])) for part, w in axis.parts.items()]
        return mean_of(found, "items").scaled(axis.sign)

    def rows(self, artifact: Artifact) -> list[dict[str, Any]]:
        """Sample rows of an evaluation.

        Raises:
            DataError: they cannot be read.
        """
        if artifact.fingerprint not in self._rows:
            self._rows[artifact.fingerprint] = read_rows(artifact.path / "samples.parquet")
        return self._rows[artifact.fingerprint]

    def cited(self, axes: Sequence[Axis], *checkpoints: str) -> list[dict[str, Any]]:
        """The rows that the figures of these checkpoints come from; those of one file and the same steps together."""
        found: list[dict[str, Any]] = []
        for one in (self._cited(axis, *checkpoints) for axis in axes):
            same = next((c for c in found if (c["file"], c["steps"]) == (one["file"], one["steps"])), None)
            if same is None:
                found.append(one)
            else:
                same["columns"] = list(dict.fromkeys([*same["columns"], *one["columns"]]))
        return found

    def _cited(self, axis: Axis, *checkpoints: str) -> dict[str, Any]:
        steps = [
            str(entry["key"])
            for one in checkpoints
            for entry in self.steps(axis, one).values()
            if entry["key"] in self.inputs
        ]
        if self.unit == "seeds":
            columns = [f"metrics.{'text' if axis.text else 'tasks'}.{part}" for part in axis.parts]
            return cite(steps, "record.json", *columns)
        if axis.text:
            return cite(steps, "text.parquet", "source", "document", "nll", "bytes")
        return cite(steps, "samples.parquet", "task", "item_id", "sample", "score")


def _figure(axis: Axis, metrics: Mapping[str, Any], part: str) -> float | None:
    if axis.text:
        return number(metrics.get("text", {}).get(part, {}).get("bits_per_byte"))
    return number(metrics.get("tasks", {}).get(part))


def _points(entry: Mapping[str, Any]) -> Interval:
    return Interval(entry["difference"], entry["lo"], entry["hi"], entry["items"], "items")


def _text_difference(sides: Sequence[Artifact], source: str, level: float) -> Interval:
    """Bits per byte of the first minus the second, over the same documents, resampled."""
    import pyarrow.parquet as pq

    tables = [
        {
            row["document"]: row
            for row in pq.read_table(one.path / "text.parquet").to_pylist()
            if row["source"] == source
        }
        for one in sides
    ]
    if tables[0].keys() != tables[1].keys():
        raise DataError(f"{shown(source, 60)}: the two sides were scored on other documents; evaluate both again")
    sizes = [[table[place]["bytes"] for place in sorted(table)] for table in tables]
    bits = [[table[place]["nll"] / math.log(2) for place in sorted(table)] for table in tables]
    if sizes[0] != sizes[1]:
        value = sum(bits[0]) / sum(sizes[0]) - sum(bits[1]) / sum(sizes[1])
        return Interval(value, None, None, len(sizes[0]), "items", "the two sides cut the documents differently")
    return bootstrap_ratio([a - b for a, b in zip(*bits, strict=True)], sizes[0], confidence=level)


def _weights(study: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """Weights of tasks: domains count alike, and tasks alike within theirs; all alike where a domain is unknown."""
    known: Mapping[str, Mapping[str, Any]] = study.get("tasks", {})
    domains = [task_domain(known[task]) if task in known else None for task in tasks]
    if None in domains:
        return {task: 1 / len(tasks) for task in tasks}
    return {task: 1 / (len(set(domains)) * domains.count(domain)) for task, domain in zip(tasks, domains, strict=True)}


def _tasks(readings: Readings, evaluation: str) -> list[str]:
    """Tasks of an evaluation: those of the study file, else those in the records of one of a suite."""
    named = list(readings.study["evaluations"][evaluation].get("tasks") or [])
    keys = [e["key"] for e in readings.entries if e["kind"] == "evaluation" and e["name"] == evaluation]
    found = (list(readings.inputs[key].metrics.get("tasks", {})) for key in keys if key in readings.inputs)
    return named or next(found, [])


def axes_of(readings: Readings, gain: str | None, loss: str | None) -> tuple[Axis, Axis]:
    """The two axes: scores of the deciding evaluation, and what a study measures of retention.

    Args:
        gain: evaluation of the gain; None for the one that decides the claims.
        loss: evaluation of the loss, or ``text``; None for a gate's evaluation other than ``gain``, else text.

    Raises:
        SpecError: an evaluation is unknown or has no tasks, or the study measures no retention.
    """
    evaluations: Mapping[str, Mapping[str, Any]] = readings.study.get("evaluations", {})
    target = gain or evaluation_name(readings.study, readings.entries)
    if target is None:
        raise SpecError("the study has no evaluation, so there is no gain to weigh; add one to 'evaluations'")
    gates = [str(gate["evaluation"]) for gate in readings.study.get("gates", {}).values()]
    kept = loss or next((name for name in gates if name != target), TEXT)
    for name, option in ((target, "--gain"), (kept, "--loss")):
        if name not in evaluations and not (name == TEXT and option == "--loss"):
            known = ", ".join(evaluations)
            raise SpecError(f"{option} {shown(name, 60)}: no evaluation is called so; there are {known}")
    first = Axis(name="gain", evaluation=target, parts=_parts(readings, target, "--gain"), text=False, sign=1.0)
    if kept != TEXT:
        parts = _parts(readings, kept, "--loss")
        return first, Axis(name="loss", evaluation=kept, parts=parts, text=False, sign=-1.0)
    texts = {name: list(spec.get("text") or []) for name, spec in evaluations.items()}
    where = target if texts[target] else next((name for name, sources in texts.items() if sources), None)
    if where is None:
        raise SpecError("the study measures no retention: give an evaluation 'text' sources, or name one with --loss")
    sources = texts[where]
    parts = {source: 1 / len(sources) for source in sources}
    return first, Axis(name="loss", evaluation=where, parts=parts, text=True, sign=1.0)


def _parts(readings: Readings, evaluation: str, option: str) -> dict[str, float]:
    tasks = _tasks(readings, evaluation)
    if not tasks:
        what = "the gain" if option == "--gain" else "what may be lost"
        raise SpecError(
            f"evaluation {shown(evaluation, 60)!r} ({what}, {option} names another): it has no tasks, or nothing of it "
            "is built for this version of the study; 'prism run' builds it"
        )
    return _weights(readings.study, tasks)
