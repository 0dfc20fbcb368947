"""What the page is made of: records of a study, asked by kind and checkpoint, with readable names and intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismlab import stats
from prismlab.claims.arms import Entry, at_threshold, evaluation_name, number, task_domain
from prismlab.errors import DataError
from prismlab.report.figures import ARM_COLOURS
from prismlab.run.step import Artifact
from prismlab.stats import Interval

__all__ = ["Found", "Records", "at_threshold", "number", "over_seeds", "task_domain"]

BySeed = dict[int, float]
TASK_DOMAINS = ("math", "code", "science")


@dataclass(frozen=True)
class Found:
    """A step with its artifact."""

    entry: Entry
    artifact: Artifact

    @property
    def seed(self) -> int:
        """Seed of the step; 0 for a step that all seeds share."""
        return int(self.entry.get("seed") or 0)


def in_order(domains: Iterable[str]) -> list[str]:
    """Domains without repetition: math, code and science first, as on the whole page, then the others as they come."""
    given = list(dict.fromkeys(domains))
    return [d for d in TASK_DOMAINS if d in given] + [d for d in given if d not in TASK_DOMAINS]


def over_seeds(values: Mapping[int, float], confidence: float, single: Interval | None = None) -> Interval:
    """Mean over seeds with its t interval; with one seed ``single``, the interval inside that seed, where there is one.

    Equal values in all seeds keep their value and get no bounds: they show no spread.
    """
    numbers = list(values.values())
    if len(numbers) == 1 and single is not None:
        return single
    found = stats.mean_t(numbers, confidence)
    if len(numbers) > 1 and found.lo == found.hi:
        return Interval(found.value, None, None, found.n, found.method, found.reason)
    return found


def item_interval(score: object) -> Interval | None:
    """The interval over items that a SCORE carries; None if it has no value."""
    value = number(score)
    if value is None or not isinstance(score, Mapping):
        return None
    return Interval(value, number(score.get("lo")), number(score.get("hi")), int(score.get("items") or 0), "items")


@dataclass(frozen=True)
class Records:
    """All records of a study."""

    study: Mapping[str, Any]
    entries: Sequence[Entry]
    arms: Mapping[str, str]
    inputs: Mapping[str, Artifact]

    @property
    def confidence(self) -> float:
        """Level of the intervals."""
        return float(self.study.get("claims", {}).get("confidence", 0.95))

    @property
    def seeds(self) -> list[int]:
        """Seeds of the study."""
        return list(self.study["seeds"])

    @property
    def evaluation(self) -> str | None:
        """The evaluation that decides the claims."""
        return evaluation_name(self.study, self.entries)

    @property
    def domains(self) -> list[str]:
        """Task domains of the study."""
        tasks = self.study.get("tasks", {}).values()
        return in_order(str(d) for d in (task_domain(task) for task in tasks) if d)

    def of(self, kind: str, **match: object) -> list[Found]:
        """Finished steps of a kind whose entries have these values, in the order of the plan."""
        return [
            Found(entry, self.inputs[entry["key"]])
            for entry in self.entries
            if entry["kind"] == kind
            and entry["key"] in self.inputs
            and all(entry.get(key) == value for key, value in match.items())
        ]

    def missing(self) -> list[tuple[str, str]]:
        """Steps without an artifact, with the reason."""
        return [
            (entry["key"], str(entry.get("missing", "no artifact")))
            for entry in self.entries
            if entry["key"] not in self.inputs
        ]

    def arm(self, checkpoint: str) -> str | None:
        """The arm that a checkpoint stands for."""
        return next((arm for arm, name in self.arms.items() if name == checkpoint), None)

    def label(self, checkpoint: str) -> str:
        """How the page names a checkpoint: its arm, or its own name."""
        return self.arm(checkpoint) or checkpoint

    def checkpoints(self, names: Iterable[str]) -> list[str]:
        """Names in the page's order: known arms from base to RL, then other arms, then the rest as they come."""
        given = list(dict.fromkeys(names))
        arms = [*(arm for arm in ARM_COLOURS if arm in self.arms), *self.arms]
        known = [self.arms[arm] for arm in dict.fromkeys(arms) if self.arms[arm] in given]
        return list(dict.fromkeys(known + given))

    def made(self) -> list[str]:
        """Checkpoints that stages make, in the order of the study file, a start before what is made of it."""
        specs = self.study.get("checkpoints", {})
        planned = [str(entry.get("checkpoint")) for entry in self.entries if entry["kind"] in ("train", "merge", "rl")]
        return [name for name in dict.fromkeys([*planned, *specs]) if name in specs]

    def by_seed(self, found: Sequence[Found], read: Callable[[Mapping[str, Any]], object]) -> BySeed:
        """A number of each step, by seed; steps without it are left out."""
        values = {one.seed: number(read(one.artifact.metrics)) for one in found}
        return {seed: value for seed, value in values.items() if value is not None}

    def interval(self, found: Sequence[Found], read: Callable[[Mapping[str, Any]], object]) -> Interval:
        """Mean over seeds of a number of these steps, with its interval."""
        raw = [read(one.artifact.metrics) for one in found]
        single = item_interval(raw[0]) if len(raw) == 1 else None
        return over_seeds(self.by_seed(found, read), self.confidence, single)

    def start_of(self, checkpoint: str) -> str | None:
        """What a checkpoint was made from; None for a base; the heaviest part of a merge."""
        spec = self.study.get("checkpoints", {}).get(checkpoint)
        if spec is None:
            return None
        return spec["from"] if "from" in spec else max(spec["weights"], key=spec["weights"].get)

    def pairs(self, kind: str) -> list[tuple[str, str]]:
        """``(old, new)`` of an analysis, one step of the study each first, then the longer ways."""
        pairs = list(dict.fromkeys((one.entry["old"], one.entry["new"]) for one in self.of(kind)))
        order = {name: i for i, name in enumerate(self.checkpoints(new for _, new in pairs))}
        return sorted(pairs, key=lambda pair: (self.start_of(pair[1]) != pair[0], order[pair[1]]))

    def pair_label(self, old: str, new: str) -> str:
        """``base → mid[MCS]``."""
        return f"{self.label(old)} → {self.label(new)}"


def json_lines(found: Found, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Rows of a JSON-lines file of an artifact.

    Raises:
        DataError: the file is missing or a line is not JSON.
    """
    path = found.artifact.path / name
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{found.entry['key']}: {name} cannot be read: {error}; build the step again") from error
