"""From a plan to artifacts: each step as soon as its inputs are there, independent ones side by side."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prismlab.errors import PrismError, StoreError
from prismlab.run.launch import Launcher, WorkerPool, log_name
from prismlab.run.progress import WAITS, Display, NoDisplay, where_the_time_went
from prismlab.run.step import Artifact, Progress
from prismlab.run.store import Store
from prismlab.run.worker import Done, Job
from prismlab.study.steps import Missing, Outcome, Plan, Settled, Step, outcome_of, settle

KIND_WEIGHT = {
    "train": 20,
    "rl": 30,
    "evaluation": 8,
    "scoring": 8,
    "landscape": 8,
    "states": 4,
    "corpus": 3,
    "trajectory": 2,
}
"""Rough length of a step by kind, in no unit: only for choosing which of several ready steps starts first."""
NEEDS_SNAPSHOTS = ("trajectory",)
"""Kinds that cannot use an artifact whose snapshots were dropped."""


class StepFailed(PrismError):
    """A step stopped with an error that the user can mend."""


class StepCrashed(Exception):
    """A step stopped by a fault of ours; ``detail`` is the traceback in the process that ran it."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class _Damaged:
    """An input that cannot be used: which step made it, and what is wrong."""

    source: str
    artifact: Artifact
    reason: str


@dataclass(kw_only=True)
class Summary:
    """What a run did; ``as_json`` is what ``run.json`` holds."""

    study: str
    started: str
    seconds: float = 0.0
    jobs: int = 1
    status: str = "running"
    steps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    report: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the seconds by kind."""
        return {**self.__dict__, "by_kind": where_the_time_went(self.steps)}


def priorities(plan: Plan) -> dict[str, int]:
    """Weight of the longest chain of steps that each step begins, its own included."""
    readers, weight = plan.downstream(), dict[str, int]()
    for step in reversed(plan.steps):
        weight[step.id] = KIND_WEIGHT.get(step.kind, 1) + max((weight[r] for r in readers[step.id]), default=0)
    return weight


class Runner:
    """Carries out a plan on a store that the caller has locked and prepared.

    Args:
        plan: what to build.
        store: where artifacts lie.
        jobs: steps at a time.
        display: shows the run.
        launcher: makes the launcher, given the number of slots and threads; by default worker processes.
        only: kinds that may be built; steps of other kinds that are not there count as missing. None for all.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        jobs: int = 1,
        display: Display | None = None,
        launcher: Callable[[int, int], Launcher] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self._plan = plan
        self._store = store
        self._jobs = jobs
        self._display = display or NoDisplay()
        self._make_launcher: Callable[[int, int], Launcher] = launcher or self._pool
        self._only = only
        self._steps = {step.id: step for step in plan.steps}
        self._priority = priorities(plan)
        self._outcomes: dict[str, Outcome] = {}
        self._waiting: dict[str, Step] = dict(self._steps)
        self._ready: dict[str, Settled] = {}
        self._running: dict[Future[Done | _Damaged], Settled] = {}
        self._intact: set[Path] = set()
        self._anew: set[str] = set()
        self._failure: tuple[Settled, Done] | None = None
        self._launcher: Launcher | None = None
        self._begun = False
        self._log: dict[str, dict[str, Any]] = {}

    def _pool(self, slots: int, threads: int) -> Launcher:
        return WorkerPool(slots, threads, self._store.logs)

    def run(self) -> Summary:
        """Build everything that is missing.

        Raises:
            StepFailed: a step stopped with an error that the user can mend; steps that were running have ended too.
            StepCrashed: a step stopped by a fault of ours.
        """
        started, clock = datetime.now(UTC).isoformat("T", "seconds"), time.monotonic()
        summary = Summary(study=self._plan.name, started=started, jobs=self._jobs)
        self._settle()
        self._display.begin(len(self._steps), len(self._outcomes))
        self._begun = True
        status = "stopped"
        try:
            with ThreadPoolExecutor(max_workers=self._jobs) as threads:
                try:
                    self._loop(threads)
                except BaseException:
                    self._close(kill=True)
                    raise
            status = "complete" if self._failure is None else self._failure[1].status
        finally:
            self._close(kill=False)
            self._display.close()
            summary.status, summary.seconds = status, round(time.monotonic() - clock, 3)
            self._write(summary)
        if self._failure is not None:
            self._raise(*self._failure)
        return summary

    def _loop(self, threads: ThreadPoolExecutor) -> None:
        while True:
            self._settle()
            while self._failure is None and self._ready and len(self._running) < self._jobs:
                self._start(threads)
            if not self._running:
                return
            finished, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finish(self._running.pop(future), future.result())

    def _settle(self) -> None:
        """Move every waiting step whose inputs are decided to where it belongs: ready, cached or missing."""
        for step in [step for step in self._plan.steps if step.id in self._waiting]:
            if any(source not in self._outcomes for source in step.before):
                continue
            settled = settle(step, self._outcomes)
            if isinstance(settled, Missing):
                self._decide(step, settled, status="skipped", reason=settled.reason)
                continue
            found = None if step.id in self._anew else self._cached(settled)
            if found is not None:
                outcome = outcome_of(step, settled.fingerprint, found.record)
                self._decide(step, outcome, status="cached", artifact=found)
            elif self._only is not None and step.kind not in self._only:
                reason = self._store.not_built(step.id)
                self._decide(step, Missing(f"{step.id} is {reason}"), status="skipped", reason=reason)
            else:
                del self._waiting[step.id]
                self._ready[step.id] = settled

    def _cached(self, settled: Settled) -> Artifact | None:
        kind, fingerprint = settled.step.kind, settled.fingerprint
        found = self._store.find(kind, fingerprint)
        folder = self._store.path(kind, fingerprint)
        if found is None and folder.exists():
            where = self._store.set_aside(folder)
            self._display.note(f"{settled.step.id}: its record is damaged; moved to {where}, built anew")
        if found is not None and settled.step.takes_what_there_is:
            # Nothing reads these but people, so nobody else would notice.
            try:
                self._store.verify(found)
            except StoreError as error:
                self._display.note(f"{error}; moved to {self._store.set_aside(folder)}")
                return None
        return found

    def _decide(
        self,
        step: Step,
        outcome: Outcome,
        *,
        status: str,
        reason: str = "",
        artifact: Artifact | None = None,
        built: bool = False,
    ) -> None:
        self._waiting.pop(step.id, None)
        self._outcomes[step.id] = outcome
        record: Mapping[str, Any] = {} if artifact is None else artifact.record
        entry: dict[str, Any] = {
            "id": step.id,
            "kind": step.kind,
            "status": status,
            "fingerprint": record.get("fingerprint"),
            "seconds": record.get("seconds", 0.0),
            "built": built,
        }
        text = reason or str(record.get("reason", ""))
        self._log[step.id] = {**entry, "reason": text} if text else entry
        if self._begun and not built:
            self._display.finished(step.id, status, 0.0, text)

    def _start(self, threads: ThreadPoolExecutor) -> None:
        if self._launcher is None:
            slots = min(self._jobs, len(self._ready) + len(self._waiting))
            # From this thread: the kernel ties a worker's life to the thread that made it.
            self._launcher = self._make_launcher(slots, max(step.threads for step in self._plan.steps))
        settled = heapq.nsmallest(1, self._ready.values(), key=lambda s: -self._priority[s.step.id])[0]
        del self._ready[settled.step.id]
        progress = self._display.started(settled.step.id)
        self._running[threads.submit(self._carry_out, self._launcher, settled, progress)] = settled

    def _carry_out(self, launcher: Launcher, settled: Settled, progress: Progress) -> Done | _Damaged:
        """In a thread of its own: check the inputs, then have the job done."""
        for key, found in settled.inputs.items():
            if isinstance(found, str):
                damaged = self._check(settled.step, key, found)
                if damaged is not None:
                    return damaged
        return launcher.run(self._job(settled), progress)

    def _check(self, step: Step, key: str, fingerprint: str) -> _Damaged | None:
        source = step.inputs[key]
        folder = self._store.path(self._steps[source].kind, fingerprint)
        artifact = self._store.find(self._steps[source].kind, fingerprint)
        if artifact is None:
            artifact = Artifact(kind=self._steps[source].kind, fingerprint=fingerprint, path=folder, record={})
            return _Damaged(source=source, artifact=artifact, reason=f"{folder}: its record is damaged or missing")
        if step.kind in NEEDS_SNAPSHOTS and key == "run" and artifact.record.get("dropped"):
            return _Damaged(
                source=source, artifact=artifact, reason=f"{source}: its snapshots were dropped by 'prism gc'"
            )
        if folder not in self._intact:
            try:
                self._store.verify(artifact)
            except StoreError as error:
                return _Damaged(source=source, artifact=artifact, reason=str(error))
            self._intact.add(folder)
        return None

    def _job(self, settled: Settled) -> Job:
        step = settled.step
        inputs: dict[str, Mapping[str, str]] = {
            key: {"missing": found.reason}
            if isinstance(found, Missing)
            else {"kind": self._steps[step.inputs[key]].kind, "fingerprint": found}
            for key, found in settled.inputs.items()
        }
        return Job(
            id=step.id,
            kind=step.kind,
            name=step.name,
            version=step.version,
            entry=step.entry,
            fingerprint=settled.fingerprint,
            seed=step.seed,
            threads=step.threads,
            nproc=step.nproc,
            how=step.how,
            config=settled.config,
            paths={key: list(files) for key, files in step.paths.items()},
            inputs=inputs,
            root=str(self._store.root),
        )

    def _finish(self, settled: Settled, done: Done | _Damaged) -> None:
        step = settled.step
        if isinstance(done, _Damaged):
            self._rebuild(settled, done)
            return
        self._display.finished(step.id, done.status, done.seconds, done.reason.partition("\n")[0])
        if done.status in ("failed", "crashed"):
            self._failure = self._failure or (settled, done)
            return
        self._anew.discard(step.id)
        self._intact.add(self._store.path(step.kind, settled.fingerprint))
        artifact = self._store.find(step.kind, settled.fingerprint)
        record = None if artifact is None else artifact.record
        outcome = outcome_of(step, settled.fingerprint, record)
        self._decide(step, outcome, status=done.status, artifact=artifact, built=True)

    def _rebuild(self, settled: Settled, damaged: _Damaged) -> None:
        """Put the step whose artifact is damaged, and the one that wanted to read it, back to the start."""
        source = self._steps[damaged.source]
        self._display.finished(settled.step.id, WAITS, 0.0, damaged.reason)
        self._waiting[settled.step.id] = settled.step
        if source.id not in self._outcomes:
            return  # Another reader has found it already.
        if self._only is not None and source.kind not in self._only:
            raise StoreError(f"{damaged.reason}\n'prism run' builds it again")
        folder = damaged.artifact.path
        if damaged.artifact.record.get("dropped"):
            self._anew.add(source.id)
            self._display.again(source.id, "for its snapshots")
        elif folder.exists():
            self._display.again(source.id, f"moved to {self._store.set_aside(folder)}")
        else:
            self._display.again(source.id, "gone")
        self._intact.discard(folder)
        del self._outcomes[source.id]
        self._waiting[source.id] = source
        for ready in [s for s in self._ready.values() if source.id in s.step.inputs.values()]:
            self._waiting[ready.step.id] = self._ready.pop(ready.step.id).step

    def _raise(self, settled: Settled, done: Done) -> None:
        if done.status == "failed":
            raise StepFailed(f"{settled.step.id}: {done.reason}")
        log = self._store.logs / log_name(settled.step.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        if not log.exists() or done.detail not in log.read_text(encoding="utf-8", errors="replace"):
            with log.open("a", encoding="utf-8") as file:
                file.write(done.detail)
        raise StepCrashed(f"{settled.step.id}: {done.reason} (log: {log})", done.detail)

    def _close(self, *, kill: bool) -> None:
        if self._launcher is not None:
            self._launcher.close(kill=kill)
            self._launcher = None

    def _write(self, summary: Summary) -> None:
        """Store what the run did in ``run.json``."""
        summary.steps = [self._log[step.id] for step in self._plan.steps if step.id in self._log]
        for step in self._plan.steps:
            found = self._outcomes.get(step.id)
            if step.kind == "report" and isinstance(found, str):
                summary.report = str(self._store.path(step.kind, found) / "report.html")
        draft = self._store.root / "run.json.tmp"
        draft.write_text(json.dumps(summary.as_json(), indent=1), encoding="utf-8")
        draft.replace(self._store.root / "run.json")
