"""Phases of datatrove pipelines, carried out here, by processes, or by a cluster's Slurm or Ray.

datatrove writes a marker for each task that is done; a task whose marker is there is passed over, so work that was
stopped goes on from there.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from loguru import logger

from prismlab.errors import DataError, MissingExtra
from prismlab.run.step import Progress

KINDS = ("local", "slurm", "ray")


@dataclass(frozen=True)
class Phase:
    """One pipeline over a number of tasks; it begins when all tasks of the one before are done."""

    name: str
    pipeline: Sequence[Any]
    tasks: int


class InProcess(LocalPipelineExecutor):
    """Tasks one after another in this very process: no second one is started, and errors come as they are."""

    def run(self) -> None:  # type: ignore[override]
        pipeline = self.pipeline
        log = self.logging_dir.open("stderr.log", "a")
        try:
            for rank in self.get_incomplete_ranks(range(self.tasks)):
                self.pipeline = deepcopy(pipeline)
                # Log lines and bars of the libraries go to the phase's own folder: this terminal has its own progress.
                with contextlib.redirect_stderr(log):
                    self._run_for_rank(rank, local_rank=1)
        finally:
            self.pipeline = pipeline
            log.close()
            _quiet()
            give_back()


def give_back() -> None:
    """Free memory back to the system: Arrow and the C library keep it, and phases use theirs one after another."""
    pa.default_memory_pool().release_unused()
    # Of the GNU library alone; others give large pieces back by themselves.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _quiet() -> None:
    """Give loguru back a sink that is open, for errors alone."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def _local(phase: Phase, logs: str, workers: int) -> PipelineExecutor:
    if workers == 1 or phase.tasks == 1:
        return InProcess(list(phase.pipeline), tasks=phase.tasks, workers=1, logging_dir=logs)
    # fork would copy threads' locks; a fresh process each is slower by a second and safe.
    return LocalPipelineExecutor(
        list(phase.pipeline), tasks=phase.tasks, workers=workers, logging_dir=logs, start_method="forkserver"
    )


def run_here(phases: Sequence[Phase], folder: Path, progress: Progress, workers: int = 1) -> None:
    """Carry out phases on this machine.

    Args:
        phases: in order.
        folder: of the whole work; markers and logs go to ``logs/`` in it.
        progress: told of each phase.
        workers: processes at a time; with one, this process does everything.

    Raises:
        DataError: what the blocks raise, as it was raised.
    """
    _quiet()
    progress.start(len(phases), "phase")
    for phase in phases:
        executor = _local(phase, str(folder / "logs" / phase.name), workers)
        if isinstance(executor, InProcess):
            executor.run()
        else:
            with (folder / "logs" / f"{phase.name}.log").open("a") as log, contextlib.redirect_stderr(log):
                try:
                    executor.run()
                finally:
                    _quiet()
        progress.advance(1)


def submit(phases: Sequence[Phase], folder: Path, options: Mapping[str, Any]) -> str:
    """Hand phases to a cluster, each to begin when the one before is done.

    Args:
        phases: in order.
        folder: of the whole work, on a disk that every machine of the cluster sees.
        options: ``kind`` (``slurm`` or ``ray``) and the arguments of datatrove's ``SlurmPipelineExecutor`` (at least
            ``time`` and ``partition``) or ``RayPipelineExecutor``.

    Returns:
        What was handed over. Ray is waited for, Slurm is not.

    Raises:
        DataError: the kind is not known, or its options are wrong.
        MissingExtra: Ray is not installed.
    """
    rest = {key: value for key, value in options.items() if key != "kind"}
    kind = options.get("kind")
    try:
        if kind == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor as Executor
        elif kind == "ray":
            import ray  # noqa: F401  # type: ignore[import-not-found]
            from datatrove.executor.ray import RayPipelineExecutor as Executor
        else:
            raise DataError(f"executor {kind!r} is not known; there are {', '.join(KINDS)}")
    except ImportError as error:
        raise MissingExtra("ray", "ray", "the executor 'ray'") from error
    previous: Any = None
    for phase in phases:
        logs = str(folder / "logs" / phase.name)
        named = {"job_name": f"prism-{phase.name}"} if kind == "slurm" else {}
        try:
            previous = Executor(
                list(phase.pipeline),
                tasks=phase.tasks,
                logging_dir=logs,
                depends=previous,
                **{**named, **rest},
            )
        except TypeError as error:
            raise DataError(f"options of the executor {kind!r}: {error}") from error
    if previous is not None:
        previous.run()
    return ", ".join(phase.name for phase in phases)


def done(phases: Sequence[Phase], folder: Path) -> bool:
    """Whether every task of every phase has its marker."""
    return all(
        (folder / "logs" / phase.name / "completions" / f"{rank:05d}").is_file()
        for phase in phases
        for rank in range(phase.tasks)
    )
