"""Steps and plans: configuration, inputs, fingerprints, and what becomes of them when a branch ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismlab.errors import SpecError
from prismlab.study.explain import problem
from prismlab.study.stages import STAGES

OPTIONAL_INPUTS = ("claims", "report")
"""Kinds that take what there is: an input that ended or was skipped is named as missing and does not stop them."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a plan. ``inputs`` maps an input's key to the id of the step that makes it."""

    kind: str
    id: str
    name: str
    seed: int | None
    """The study's seed, not the derived one in the configuration; None for a step that all seeds share."""
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    paths: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Absolute paths of the files that the stage reads; given to it as ``config['files']``, never fingerprinted."""
    waits: Sequence[str] = ()
    """Ids of gates that must have let this step through: no inputs, so a gate's margin changes no fingerprint."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the entries of ``claims`` and ``report`` say about this step: checkpoint, old, new, ..."""
    entry: str
    """The stage function, ``module:function``."""
    version: int
    threads: int = 1
    nproc: int = 0
    """Processes under torchrun; 0 runs the stage in the worker itself."""
    how: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the step is carried out, given to the stage as ``config['how']``, never fingerprinted: it may go on under
    another mesh of processes, or save more often."""

    @property
    def before(self) -> list[str]:
        """Ids of all steps that come before this one."""
        return [*self.inputs.values(), *self.waits]

    @property
    def takes_what_there_is(self) -> bool:
        """Whether inputs may be missing."""
        return self.kind in OPTIONAL_INPUTS


@dataclass(frozen=True)
class Missing:
    """Why a step has no artifact."""

    reason: str


Outcome = str | Missing
"""What became of a step: the fingerprint of its artifact, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A step whose inputs are known: all that a build needs, and what the artifact will be called."""

    step: Step
    config: Mapping[str, Any]
    inputs: Mapping[str, Outcome]
    fingerprint: str


def canonical(value: Any) -> bytes:
    """JSON in one spelling: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(step: Step, config: Mapping[str, Any], inputs: Mapping[str, Outcome]) -> str:
    """16 hexadecimal digits that depend on everything that decides a step's output, and on nothing else."""
    described = {key: found if isinstance(found, str) else {"missing": found.reason} for key, found in inputs.items()}
    whole = [step.kind, step.version, config, described, step.threads]
    return hashlib.blake2b(canonical(whole), digest_size=8).hexdigest()


def settle(step: Step, outcomes: Mapping[str, Outcome]) -> Settled | Missing:
    """The step with its inputs' outcomes filled in; Missing, with the reason, if it cannot run without one that is not
    there, or if a gate that it waits for ended."""
    for gate in step.waits:
        found = outcomes[gate]
        if isinstance(found, Missing):
            return found
    inputs = {key: outcomes[source] for key, source in step.inputs.items()}
    config = step.config
    missing = {key: found.reason for key, found in inputs.items() if isinstance(found, Missing)}
    if missing and not step.takes_what_there_is:
        return Missing(next(iter(missing.values())))
    if missing:
        entries = [
            {**entry, "missing": missing[entry["key"]]} if entry["key"] in missing else entry
            for entry in config["entries"]
        ]
        config = {**config, "entries": entries}
    return Settled(step=step, config=config, inputs=inputs, fingerprint=fingerprint(step, config, inputs))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in an order in which each comes after its inputs."""

    name: str
    steps: Sequence[Step]
    arms: Mapping[str, str]

    def step(self, wanted: str) -> list[Step]:
        """The steps that ``wanted`` means: an id, or the front part of ids (``train/mid-mc``, ``evaluation``).

        Raises:
            SpecError: no step is called so.
        """
        exact = [step for step in self.steps if step.id == wanted]
        found = exact or [step for step in self.steps if step.id.startswith(wanted.rstrip("/") + "/")]
        if not found:
            known = list(dict.fromkeys([*(s.kind for s in self.steps), *(s.id for s in self.steps)]))
            hint = problem("step", f"the study has no step {wanted!r}", None)
            guess = problem("", "", known, wanted).partition("\n")[2]
            raise SpecError(f"{hint}; 'prism plan' lists them" + (f"\n{guess}" if guess else ""))
        return found

    def until(self, wanted: str) -> Plan:
        """The plan cut down to what ``wanted`` names and what that needs."""
        keep = {step.id for step in self.step(wanted)}
        for step in reversed(self.steps):
            if step.id in keep:
                keep |= set(step.before)
        return Plan(name=self.name, steps=[step for step in self.steps if step.id in keep], arms=self.arms)

    def resolve(self, find: Callable[[str, str], Mapping[str, Any] | None]) -> dict[str, Settled | Missing]:
        """Every step settled, as far as the records that ``find(kind, fingerprint)`` gives tell which branches ended.

        A step that is not built yet is taken to succeed: so a plan shows what a run would build.
        """
        outcomes: dict[str, Outcome] = {}
        settled: dict[str, Settled | Missing] = {}
        for step in self.steps:
            this = settled[step.id] = settle(step, outcomes)
            if isinstance(this, Missing):
                outcomes[step.id] = this
                continue
            outcomes[step.id] = outcome_of(step, this.fingerprint, find(step.kind, this.fingerprint))
        return settled

    def downstream(self) -> dict[str, list[str]]:
        """Ids of the steps that read each step, or wait for it."""
        readers: dict[str, list[str]] = {step.id: [] for step in self.steps}
        for step in self.steps:
            for source in dict.fromkeys(step.before):
                readers[source].append(step.id)
        return readers


def outcome_of(step: Step, found: str, record: Mapping[str, Any] | None) -> Outcome:
    """What a record tells the steps downstream: that the branch ended, with its reason, or the fingerprint."""
    if record is not None and record.get("status") == "ended":
        return Missing(f"{step.id} ended: {record.get('reason')}")
    return found


def entries_of(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """What ``claims`` and ``report`` are told about each of their inputs."""
    return [{"key": step.id, "kind": step.kind, "name": step.name, "seed": step.seed, **step.facts} for step in steps]


def stage_of(kind: str) -> dict[str, Any]:
    """``entry`` and ``version`` of a kind, as keywords for ``Step``."""
    entry, version = STAGES[kind]
    return {"entry": entry, "version": version}
