"""Where steps are carried out: in this process, or in worker processes. The place where a cluster engine plugs in."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, cast

from prismlab.run.step import Progress
from prismlab.run.worker import (
    Done,
    Job,
    Throttled,
    death_by,
    die_with_parent,
    execute,
    limit_threads,
    rank_main,
    relay,
)


class Launcher(Protocol):
    """Carries out jobs. An engine that reaches other machines implements these three (the store's folder is shared)."""

    slots: int
    """How many jobs it carries out at a time."""

    def run(self, job: Job, progress: Progress) -> Done:
        """Carry out one job and wait for it; called from up to ``slots`` threads at once."""
        ...

    def close(self, *, kill: bool = False) -> None:
        """Let idle workers go; with ``kill`` stop busy ones too."""
        ...


class InProcess:
    """One job at a time in the calling process: for debugging and for calls from Python."""

    slots = 1

    def run(self, job: Job, progress: Progress) -> Done:
        return execute(job, progress)

    def close(self, *, kill: bool = False) -> None:
        pass


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, threads: int, logs: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Not a daemon in multiprocessing's sense, since a stage may start processes of its own.
        self.process = context.Process(target=_serve, args=(theirs, threads, str(logs), os.getpid()), daemon=False)
        self.process.start()
        theirs.close()

    def run(self, job: Job, progress: Progress) -> Done:
        try:
            self.pipe.send(job)
            while True:
                name, arguments = self.pipe.recv()
                if name == "done":
                    return cast(Done, arguments)
                relay(progress, name, arguments)
        except (EOFError, OSError):
            self.process.join(timeout=5)
            return Done(status="failed", reason=_death(self.process.exitcode))


def _death(code: int | None) -> str:
    """Why a worker is gone."""
    if code is None or code >= 0:
        return f"its process ended by itself (exit code {code}); its log may say why"
    return f"its process was {death_by(-code)}"


class WorkerPool:
    """Persistent worker processes, each with one job at a time; what libraries print goes to ``logs/<step>.log``.

    Args:
        slots: number of processes.
        threads: CPU threads of each.
        logs: folder of the log files.
    """

    def __init__(self, slots: int, threads: int, logs: Path) -> None:
        self.slots = slots
        self._workers = [_Worker(threads, logs) for _ in range(slots)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def run(self, job: Job, progress: Progress) -> Done:
        worker = self._free.get()
        try:
            return worker.run(job, progress)
        finally:
            self._free.put(worker)

    def close(self, *, kill: bool = False) -> None:
        for worker in self._workers:
            if kill:
                worker.process.kill()
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _leave_with_parent() -> None:
    """End this process when the parent is gone: the pipe to it closes, whatever the platform."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def log_name(step: str) -> str:
    """File name of a step's log."""
    return step.replace("/", "_").replace(":", "_") + ".log"


def _redirect(path: Path) -> None:
    """Send everything that this process prints, from C too, to ``path``."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _serve(pipe: Connection[Any, Any], threads: int, logs: str, parent: int) -> None:
    """Main function of a worker: jobs in, progress and outcomes out, until the pipe closes."""
    die_with_parent(parent)
    _leave_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means.
    limit_threads(threads)
    while True:
        try:
            job = cast(Job, pipe.recv())
        except EOFError:
            return
        _redirect(Path(logs) / log_name(job.id))
        progress = Throttled(lambda name, arguments: pipe.send((name, arguments)))
        done = execute(job, progress)
        progress.flush()
        pipe.send(("done", done))


if __name__ == "__main__":
    sys.exit(rank_main(Path(sys.argv[1])))
