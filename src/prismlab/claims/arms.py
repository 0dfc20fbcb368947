"""Reads the records of a study's evaluations and analyses into one table that is asked by arm.

The table knows arms (``mid[MCS]``), the rules know nothing of checkpoints. Every answer is a ``Series``: a value a
seed, the reasons where there is none, and the artifacts that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from prismlab.claims.series import Series, absent
from prismlab.run.step import Artifact

Entry = Mapping[str, Any]
Reader = Callable[[Mapping[str, Any]], object]


def evaluation_name(study: Mapping[str, Any], entries: Sequence[Entry]) -> str | None:
    """The evaluation that decides the claims: ``claims.evaluation``, else the first of the study; None without any.

    Which is first is read from the steps, which stand in the order of the study file; a stage's config has sorted keys.
    """
    chosen = cast("str | None", study.get("claims", {}).get("evaluation"))
    return chosen or next((str(entry["name"]) for entry in entries if entry["kind"] == "evaluation"), None)


def number(value: object) -> float | None:
    """A finite number as float, also out of ``{value, lo, hi}``; None for anything else."""
    if isinstance(value, Mapping):
        value = cast("Mapping[str, object]", value).get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None


def at_threshold(changed: Mapping[str, Any], threshold: float) -> object:
    """The entry of ``changed`` whose key is ``threshold`` as a number ("0.01" and "1e-02" are one key)."""
    for key, value in changed.items():
        if abs(float(key) - threshold) <= 1e-9:
            return value
    return None


def path_place(row: Mapping[str, Any]) -> float:
    """Where a point of a landscape's path lies: from 0 to 1 on its first leg, from 1 to 2 on its second."""
    return float(row["leg"]) - 1 + float(row["t"])


@dataclass(frozen=True)
class Table:
    """All numbers of a study, by arm and seed."""

    study: Mapping[str, Any]
    """The whole study as JSON."""
    entries: Sequence[Entry]
    """The planner's list of steps."""
    arms: Mapping[str, str]
    """Arm to checkpoint."""
    inputs: Mapping[str, Artifact]
    """Finished artifacts by key."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the study."""
        return tuple(cast("list[int]", self.study["seeds"]))

    @property
    def confidence(self) -> float:
        """Level of every interval."""
        return float(self.study.get("claims", {}).get("confidence", 0.95))

    def score(self, arm: str, domain: str | None = None) -> Series:
        """Score of a domain in percent; the average over domains if ``domain`` is None."""
        if domain is None:
            return self._evaluation(arm, lambda m: m.get("average"), "no average score")
        return self._evaluation(arm, lambda m: m.get("domains", {}).get(domain), f"no score in the domain {domain!r}")

    def text(self, arm: str, source: str) -> Series:
        """Text loss on a source's held-out documents, bits per byte."""
        return self._evaluation(
            arm, lambda m: m.get("text", {}).get(source, {}).get("bits_per_byte"), f"no text loss on {source!r}"
        )

    def text_sources(self) -> tuple[str, ...]:
        """Sources whose text loss the deciding evaluation measures, in the order of the study file."""
        name = evaluation_name(self.study, self.entries)
        return () if name is None else tuple(cast("list[str]", self.study["evaluations"][name].get("text", [])))

    def changed(self, old: str, new: str, threshold: float, part: str | None = None) -> Series:
        """Share (0 to 1) of elements that moved by more than ``threshold``, whole model or one sub-component."""

        def read(metrics: Mapping[str, Any]) -> object:
            where = metrics.get("total", {}) if part is None else metrics.get("subcomponents", {}).get(part, {})
            return at_threshold(where.get("changed", {}), threshold)

        where = "" if part is None else f" in {part}"
        return self._pair("weights", old, new, read, f"no share of changed elements at {threshold:.1%}{where}")

    def l2(self, old: str, new: str) -> Series:
        """Normalised distance ||new-old|| / ||old|| of the whole model."""
        return self._pair("weights", old, new, lambda m: m.get("total", {}).get("l2"), "no L2 distance")

    def subcomponents(self, old: str, new: str) -> tuple[str, ...]:
        """Names of the sub-components that an analysis of ``old`` -> ``new`` tells apart, sorted."""
        found: set[str] = set()
        for entry in self._matching("weights", self._pair_test(old, new)):
            artifact = self.inputs.get(entry["key"])
            if artifact is not None:
                found.update(cast("dict[str, Any]", artifact.metrics.get("subcomponents", {})))
        return tuple(sorted(found))

    def cka(self, a: str, b: str, debiased: bool = False) -> Series:
        """Smallest CKA over all layers and input sets between two arms."""
        field = "debiased_min" if debiased else "min"

        def read(metrics: Mapping[str, Any]) -> object:
            sets = cast("Mapping[str, Mapping[str, Any]]", metrics.get("sets", {}))
            values = [number(one.get(field)) for one in sets.values()]
            known = [value for value in values if value is not None]
            # A minimum over the sets that happen to have a value would flatter the pair.
            return min(known) if known and len(known) == len(values) else None

        return self._pair("cka", a, b, read, f"no {field} in every input set", symmetric=True)

    def direction(self, base: str, a: str, b: str) -> Series:
        """Cosine between the updates base -> a and base -> b of the whole model."""
        names = [self.arms.get(arm) for arm in (base, a, b)]
        if None in names:
            return self._no_arm(*(arm for arm in (base, a, b) if arm not in self.arms))

        def test(entry: Entry) -> bool:
            return entry.get("base") == names[0] and set(names[1:]) <= set(entry.get("checkpoints", ()))

        def read(metrics: Mapping[str, Any]) -> object:
            order = cast("list[str]", metrics["names"])
            return metrics["cosine"][order.index(str(names[1]))][order.index(str(names[2]))]

        what = f"direction of {names[1]} and {names[2]} from {names[0]}"
        return self._read("direction", test, read, what, "no cosine")

    def behaviour(self, arm: str, field: str, domain: str | None = "math") -> Series:
        """A behaviour figure, mean over the tasks of ``domain``; over all samples if ``domain`` is None."""
        if arm not in self.arms:
            return self._no_arm(arm)
        tasks = self.domain_tasks(domain) if domain is not None else ()
        if domain is not None and not tasks:
            return absent(f"the study has no task in the domain {domain!r}")

        def read(metrics: Mapping[str, Any]) -> object:
            if domain is None:
                return metrics.get("all", {}).get(field)
            values = [number(metrics.get("tasks", {}).get(task, {}).get(field)) for task in tasks]
            known = [value for value in values if value is not None]
            return sum(known) / len(known) if known and len(known) == len(values) else None

        checkpoint = self.arms[arm]
        what = f"behaviour of {checkpoint} ({arm})"
        where = "" if domain is None else f" for every {domain} task"
        return self._read(
            "behaviour",
            lambda e: e.get("checkpoint") == checkpoint,
            read,
            what,
            f"no {field}{where} (too few samples?)",
        )

    def domain_tasks(self, domain: str) -> tuple[str, ...]:
        """Tasks of a domain in the study's behaviour evaluation (in the whole study if there is no such analysis)."""
        analyses = cast("Mapping[str, Any]", self.study.get("analyses") or {})
        behaviour = cast("Mapping[str, Any]", analyses.get("behaviour") or {})
        evaluation = self.study.get("evaluations", {}).get(behaviour.get("evaluation"), {})
        tasks = cast("Mapping[str, Mapping[str, Any]]", self.study.get("tasks", {}))
        names = cast("list[str]", evaluation.get("tasks") or list(tasks))
        return tuple(name for name in names if name in tasks and task_domain(tasks[name]) == domain)

    def trajectory(self, arm: str, reader: Reader, what: str) -> Series:
        """A figure of an RL run's trajectory, read by ``reader`` from the metrics of its analysis."""
        if arm not in self.arms:
            return self._no_arm(arm)
        checkpoint = self.arms[arm]
        return self._read(
            "trajectory",
            lambda e: e.get("checkpoint") == checkpoint,
            reader,
            f"trajectory of {checkpoint} ({arm})",
            f"no {what}",
        )

    def frontier(self, arm: str, reader: Reader, without: str) -> Series:
        """A figure of the solvability frontier of an RL run, read by ``reader``; ``without`` says what it may lack."""
        if arm not in self.arms:
            return self._no_arm(arm)
        checkpoint = self.arms[arm]
        what = f"frontier of {checkpoint} ({arm})"
        return self._read("frontier", lambda e: e.get("checkpoint") == checkpoint, reader, what, without)

    def long_score(self, arm: str, length: int) -> Series:
        """Score in percent at a length in tokens, from the first evaluation of the study that scores by length."""
        if arm not in self.arms:
            return self._no_arm(arm)
        # A step that ended tells no metrics, so an evaluation is told by any of its checkpoints.
        scored = (
            str(entry["name"])
            for entry in self._matching("evaluation", lambda _: True)
            if entry["key"] in self.inputs and self.inputs[entry["key"]].metrics.get("lengths")
        )
        # Where none of them is built, the one that the study file asks for says which step that is.
        name, checkpoint = next(scored, None) or self._by_length(), self.arms[arm]
        if name is None:
            return absent("the study has no evaluation that scores by length ('lengths')")

        def test(entry: Entry) -> bool:
            return entry.get("checkpoint") == checkpoint and entry["name"] == name

        def read(metrics: Mapping[str, Any]) -> object:
            return metrics.get("lengths", {}).get(str(length))

        what = f"evaluation {name!r} of {checkpoint} ({arm})"
        return self._read("evaluation", test, read, what, f"no score at {length:,} tokens")

    def _by_length(self) -> str | None:
        """The first evaluation of the study file whose tasks are made for a length in tokens."""
        tasks = cast("Mapping[str, Mapping[str, Any]]", self.study.get("tasks", {}))
        asked = cast("Mapping[str, Mapping[str, Any]]", self.study.get("evaluations", {}))
        for name in dict.fromkeys(str(entry["name"]) for entry in self._matching("evaluation", lambda _: True)):
            spec = asked.get(name, {})
            suite = cast("Mapping[str, Any]", spec.get("suite") or {})
            micro = [cast("Mapping[str, Any]", tasks[task].get("micro") or {}) for task in spec.get("tasks") or ()]
            if suite.get("lengths") or any(one.get("tokens") is not None for one in micro):
                return name
        return None

    def path_points(self, base: str, mid: str, run: str) -> tuple[float, ...]:
        """Places of the points on the path base (0), mid (1), RL (2) that a landscape of these arms has, sorted."""
        found: set[float] = set()
        for entry in self._matching("landscape", self._chain_test(base, mid, run)):
            artifact = self.inputs.get(entry["key"])
            rows = cast("list[Mapping[str, Any]]", artifact.metrics.get("path", []) if artifact is not None else [])
            found.update(path_place(row) for row in rows)
        return tuple(sorted(found))

    def path_score(self, base: str, mid: str, run: str, place: float) -> Series:
        """Average score in percent at a place of the path base (0), mid (1), RL (2)."""
        unknown = [arm for arm in (base, mid, run) if arm not in self.arms]
        if unknown:
            return self._no_arm(*unknown)

        def read(metrics: Mapping[str, Any]) -> object:
            rows = cast("list[Mapping[str, Any]]", metrics.get("path", []))
            return next((row.get("average") for row in rows if abs(path_place(row) - place) <= 1e-9), None)

        names = ", ".join(self.arms[arm] for arm in (base, mid, run))
        what = f"landscape of {names} ({base}, {mid}, {run})"
        return self._read("landscape", self._chain_test(base, mid, run), read, what, f"no score at {place:.3g}")

    def _chain_test(self, *arms: str) -> Callable[[Entry], bool]:
        names = tuple(self.arms.get(arm) for arm in arms)
        return lambda entry: (entry.get("base"), entry.get("mid"), entry.get("rl")) == names

    def spec(self, arm: str) -> Mapping[str, Any] | None:
        """The spec of an arm's checkpoint as JSON; None for a base or an unknown arm."""
        return self.study.get("checkpoints", {}).get(self.arms.get(arm))

    def _no_arm(self, *arms: str) -> Series:
        return Series(missing=tuple(f"the study has no arm {arm}" for arm in arms))

    def _evaluation(self, arm: str, reader: Reader, without: str) -> Series:
        if arm not in self.arms:
            return self._no_arm(arm)
        name, checkpoint = evaluation_name(self.study, self.entries), self.arms[arm]
        if name is None:
            return absent("the study has no evaluation")

        def test(entry: Entry) -> bool:
            return entry.get("checkpoint") == checkpoint and entry["name"] == name

        return self._read("evaluation", test, reader, f"evaluation {name!r} of {checkpoint} ({arm})", without)

    def _pair_test(self, old: str, new: str, symmetric: bool = False) -> Callable[[Entry], bool]:
        pair = (self.arms.get(old), self.arms.get(new))

        def test(entry: Entry) -> bool:
            found = (entry.get("old"), entry.get("new"))
            return found == pair or (symmetric and found == pair[::-1])

        return test

    def _pair(self, kind: str, old: str, new: str, reader: Reader, without: str, symmetric: bool = False) -> Series:
        unknown = [arm for arm in (old, new) if arm not in self.arms]
        if unknown:
            return self._no_arm(*unknown)
        what = f"{kind} analysis of {self.arms[old]} -> {self.arms[new]} ({old} -> {new})"
        return self._read(kind, self._pair_test(old, new, symmetric), reader, what, without)

    def _matching(self, kind: str, test: Callable[[Entry], bool]) -> list[Entry]:
        return [entry for entry in self.entries if entry["kind"] == kind and test(entry)]

    def _read(self, kind: str, test: Callable[[Entry], bool], reader: Reader, what: str, without: str) -> Series:
        found = {int(entry["seed"]): entry for entry in self._matching(kind, test)}
        if not found:
            return absent(f"the study has no {what}")
        values: dict[int, float] = {}
        missing: list[str] = []
        evidence: set[str] = set()
        for seed in self.seeds:
            artifact = self.inputs.get(found[seed]["key"]) if seed in found else None
            if artifact is None:
                reason = found[seed].get("missing", "not among the inputs") if seed in found else "not planned"
                missing.append(f"seed {seed}: no {what}: {reason}")
                continue
            evidence.add(found[seed]["key"])
            value = number(reader(artifact.metrics))
            if value is None:
                missing.append(f"seed {seed}: {what} has {without}")
            else:
                values[seed] = value
        return Series(values, tuple(missing), frozenset(evidence))


def task_domain(task: Mapping[str, Any]) -> str | None:
    """Domain of a task's spec as JSON."""
    micro = cast("Mapping[str, Any]", task.get("micro") or {})
    return cast("str | None", task.get("domain") or micro.get("domain"))


__all__ = ["Entry", "Series", "Table", "at_threshold", "evaluation_name", "number", "path_place", "task_domain"]
