"""Carrying out one step in this process: call the stage, measure, record, commit."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, cast

from prismlab.errors import EndBranch, PrismError, StoreError, place_trouble
from prismlab.run.nodes import torchrun_command
from prismlab.run.record import git, peak_memory_mb, reset_peak_memory, versions
from prismlab.run.step import REMOTE_CODE, Artifact, Progress, Result, Stage, trusting
from prismlab.run.store import Store

EVENT = "@prism "
"""Marks the lines by which a process under torchrun tells its progress."""
_KILLED = re.compile(r"failed \(exitcode: -(\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
"""How torchrun tells that a process died of a signal: which signal, which process."""
FAULT_FILE = "PRISM_FAULT_FILE"
"""Environment variable that tells a process where to leave the reason if it ends itself (``train.heart``)."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A settled step as plain data, so that it can travel to another process or machine."""

    id: str
    kind: str
    name: str
    version: int
    entry: str
    fingerprint: str
    seed: int | None
    threads: int
    nproc: int
    config: Mapping[str, Any]
    paths: Mapping[str, list[str]]
    inputs: Mapping[str, Mapping[str, str]]
    """``{kind, fingerprint}`` or ``{missing: reason}`` by key."""
    root: str
    """The store's folder."""
    how: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the step is carried out, beside what it computes."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job."""

    status: Literal["complete", "ended", "failed", "crashed"]
    """``failed``: the user can mend it; ``crashed``: our fault, with ``detail`` the traceback."""
    seconds: float = 0.0
    reason: str = ""
    detail: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


class RankFailed(PrismError):
    """A process under torchrun stopped with an error that the user can mend."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, by whatever signal (Linux; elsewhere a no-op).

    Args:
        parent: the parent's process id; if it is already dead the signal would never come, so this process ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def limit_threads(threads: int) -> None:
    """Have numeric libraries that are not imported yet use ``threads`` threads, and torch also if it is."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        cast(Any, sys.modules["torch"]).set_num_threads(threads)


def load_stage(entry: str) -> Stage:
    """The function behind ``module:function``."""
    module, _, function = entry.partition(":")
    return cast(Stage, getattr(importlib.import_module(module), function))


def _artifacts(job: Job) -> dict[str, Artifact]:
    store = Store(Path(job.root))
    return {
        key: store.read(store.path(found["kind"], found["fingerprint"]))
        for key, found in job.inputs.items()
        if "missing" not in found
    }


def call(job: Job, out: Path, progress: Progress) -> Result:
    """Call the stage in this process."""
    limit_threads(job.threads)
    stage = load_stage(job.entry)
    limit_threads(job.threads)  # The import may have brought torch in, with threads as it likes.
    scratch = Store(Path(job.root)).scratch(job.kind, job.fingerprint)
    config = {**job.config, "files": dict(job.paths), "scratch": str(scratch)}
    if job.how:
        config["how"] = dict(job.how)
    inputs = _artifacts(job)
    told = [one for artifact in inputs.values() for one in artifact.metrics.get(REMOTE_CODE, ())]
    code = [one for at, one in enumerate(told) if one not in told[:at]]
    with trusting(one["blake2b"] for one in code):
        result = stage(config, inputs, out, progress)
    return replace(result, metrics={**result.metrics, REMOTE_CODE: code}) if code else result


def _forward(line: str, progress: Progress, log: IO[str]) -> None:
    if not line.startswith(EVENT):
        log.write(line)
        return
    name, *arguments = json.loads(line.removeprefix(EVENT))
    relay(progress, name, arguments)


def relay(progress: Progress, name: str, arguments: list[Any]) -> None:
    """Replay one recorded call on a progress."""
    if name == "start":
        progress.start(*arguments)
    elif name == "advance":
        progress.advance(arguments[0], **arguments[1])
    else:
        progress.note(arguments[0])


def death_by(code: int) -> str:
    """What killed a process. On Linux a SIGKILL that nobody sent is the kernel's answer to memory running out."""
    hint = "; most likely memory ran out: fewer 'jobs' or 'micro_rows' need less" if code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(code).name}{hint}; run the same command again to go on"


def _watch(errors: IO[str], killed: list[str]) -> None:
    """Pass torchrun's error stream on to the log, and note who it says was killed; it then stops the others itself."""
    for line in errors:
        sys.stderr.write(line)
        found = _KILLED.search(line)
        if found is not None and int(found[1]) != signal.SIGTERM:
            killed.append(f"process {found[2]} (pid {found[3]}) was {death_by(int(found[1]))}")
    sys.stderr.flush()


def _told(file: Path) -> dict[str, Any]:
    """What the processes of a job file left behind, read and removed; a fault that one names outweighs a success."""
    told: dict[str, Any] = {}
    for suffix in (".answer", ".crash", ".error"):
        written = file.with_suffix(suffix)
        told |= json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
        written.unlink(missing_ok=True)
    file.unlink()
    return told


def _torchrun(job: Job, out: Path, progress: Progress) -> tuple[Result, float | None]:
    """Run the stage in ``nproc`` processes on this machine; the first one writes and reports."""
    file = out.with_name(f"{out.name}.job.json")
    file.write_text(json.dumps({"job": asdict(job), "out": str(out)}), encoding="utf-8")
    parent = os.getpid()
    killed: list[str] = []
    with subprocess.Popen(
        torchrun_command(file, job.nproc),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
        preexec_fn=lambda: die_with_parent(parent),
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: PT018
        errors = threading.Thread(target=_watch, args=(process.stderr, killed))
        errors.start()
        for line in process.stdout:
            _forward(line, progress, sys.stdout)
        errors.join()
    told = _told(file)
    if told.get("ended") is not None:
        raise EndBranch(told["ended"])
    if told.get("failed") is not None:
        raise RankFailed(told["failed"])
    if killed:
        raise RankFailed(f"of its {job.nproc} processes here, {killed[0]}")
    if process.returncode != 0 or "metrics" not in told:
        raise RuntimeError(
            f"torchrun ended with {process.returncode}: {told.get('crashed', 'see the log of this step')}"
        )
    return Result(metrics=told["metrics"], tokens=told["tokens"]), told["peak"]


def _measured(job: Job, out: Path, progress: Progress) -> tuple[Result, float | None]:
    if job.nproc > 0:
        return _torchrun(job, out, progress)
    measured = reset_peak_memory()
    result = call(job, out, progress)
    return result, peak_memory_mb() if measured else None


def execute(job: Job, progress: Progress) -> Done:
    """Build one artifact: stage, record, commit. Never raises but for what stops the process itself."""
    store = Store(Path(job.root))
    started, clock = datetime.now(UTC).isoformat("T", "seconds"), time.monotonic()
    draft: Path | None = None
    try:
        draft = store.draft(job.kind, job.fingerprint)
        try:
            result, peak = _measured(job, draft, progress)
            ended = None
        except EndBranch as end:
            result, peak, ended = Result(), None, end.reason
        seconds = round(time.monotonic() - clock, 3)
        store.commit(draft, _record(job, result, started=started, seconds=seconds, peak=peak, ended=ended))
        shutil.rmtree(store.scratch(job.kind, job.fingerprint), ignore_errors=True)
        return Done(status="complete" if ended is None else "ended", seconds=seconds, reason=ended or "")
    except Exception as error:
        seconds = round(time.monotonic() - clock, 3)
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        trouble = place_trouble(error)
        if trouble is not None:
            error = StoreError(f"{store.root}: {trouble}")
        traceback.print_exception(error)
        if isinstance(error, PrismError):
            return Done(status="failed", seconds=seconds, reason=str(error))
        text = "".join(traceback.format_exception(error))
        return Done(status="crashed", seconds=seconds, reason=f"{type(error).__name__}: {error}", detail=text)


def _record(
    job: Job, result: Result, *, started: str, seconds: float, peak: float | None, ended: str | None
) -> dict[str, Any]:
    return {
        "kind": job.kind,
        "version": job.version,
        "name": job.id,
        "fingerprint": job.fingerprint,
        "config": dict(job.config),
        "inputs": {key: dict(found) for key, found in job.inputs.items()},
        "read": dict(job.paths),
        "seed": job.seed,
        "threads": job.threads,
        "versions": versions(),
        "git": git(),
        "started": started,
        "seconds": seconds,
        "peak_memory_mb": peak,
        "tokens": result.tokens,
        "metrics": dict(result.metrics),
        "status": "complete" if ended is None else "ended",
        **({} if ended is None else {"reason": ended}),
    }


class Throttled:
    """A progress that passes calls to ``send`` at most ten times a second, sums of ``advance`` in between."""

    def __init__(self, send: Callable[[str, list[Any]], None]) -> None:
        self._send = send
        self._count = 0
        self._shown: dict[str, float | str] = {}
        self._last = 0.0

    def start(self, total: int | None, unit: str) -> None:
        self.flush()
        self._send("start", [total, unit])

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self._count += n
        self._shown = {key: value if isinstance(value, str) else float(value) for key, value in shown.items()}
        if time.monotonic() - self._last >= 0.1:
            self.flush()

    def note(self, text: str) -> None:
        self.flush()
        self._send("note", [text])

    def flush(self) -> None:
        """Send what was held back."""
        if self._count:
            self._send("advance", [self._count, self._shown])
            self._count, self._last = 0, time.monotonic()


def _swallow(name: str, arguments: list[Any]) -> None:
    """For every process under torchrun but the first."""


def _emit(name: str, arguments: list[Any]) -> None:
    sys.stdout.write(f"{EVENT}{json.dumps([name, *arguments])}\n")
    sys.stdout.flush()


def rank_main(file: Path) -> int:
    """One process under torchrun: run the stage; the first one writes the answer, one that fails the error."""
    die_with_parent(os.getppid())
    told = json.loads(file.read_text(encoding="utf-8"))
    job, first = Job(**told["job"]), os.environ.get("RANK", "0") == "0"
    os.environ[FAULT_FILE] = str(file.with_suffix(".error"))
    answer: dict[str, Any]
    try:
        reset_peak_memory()
        progress = Throttled(_emit if first else _swallow)
        result = call(job, Path(told["out"]), progress)
        progress.flush()
        if not first:
            return 0
        answer = {"metrics": dict(result.metrics), "tokens": result.tokens, "peak": peak_memory_mb()}
    except EndBranch as end:
        answer = {"ended": end.reason}
    except PrismError as error:
        answer = {"failed": str(error)}
    except Exception as error:
        traceback.print_exc()
        trouble = place_trouble(error)
        answer = {"crashed": f"{type(error).__name__}: {error}"} if trouble is None else {"failed": trouble}
    # What the user can mend has a file of its own: a process that fails makes the others crash for want of it.
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(answer), encoding="utf-8")
    draft.replace(file.with_suffix(".answer" if "metrics" in answer else ".crash" if "crashed" in answer else ".error"))
    return 0 if "metrics" in answer else 1
