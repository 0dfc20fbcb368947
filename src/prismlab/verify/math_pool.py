"""Workers that compare formulas, each of which can be killed: a limit holds in any thread, and for as many answers at
once."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Literal

from prismlab.errors import MissingExtra

START_SECONDS = 60.0
"""Importing sympy takes seconds, on a busy machine many."""
MOST = 16
"""Workers at one time; more callers wait."""

Said = Literal["right", "wrong", "gold", "time", "fault"]


@dataclass(eq=False)
class _Worker:
    line: socket.socket
    handle: int
    """Of the process, by which it can be killed without mistaking it for another."""


class MathPool:
    """Asks whether two formulas are the same. For any thread; a process that is forked gets workers of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(MOST)
        self.idle: list[_Worker] = []
        self.parent: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        self.owner = 0

    def _begin(self) -> socket.socket:
        """The first process, started if there is none."""
        if (
            self.control is not None
            and self.owner == os.getpid()
            and self.parent is not None
            and self.parent.poll() is None
        ):
            return self.control
        self._end()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "prismlab.verify.math_worker", str(theirs.fileno())]
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self.parent = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True, env=variables
            )
        self.control, self.owner = control, os.getpid()
        control.settimeout(START_SECONDS)
        try:
            if control.recv(16) != b"ready":
                raise OSError("the math verifier's process did not start")
        except OSError:
            self._end()
            raise
        control.settimeout(None)
        return control

    def _end(self) -> None:
        """Give up what there is; a process that was forked gives up only what it has of its parent's."""
        mine = self.owner == os.getpid()
        for worker in self.idle:
            if mine:
                self._drop(worker)
            else:
                os.close(worker.handle)
                worker.line.close()
        self.idle = []
        if self.control is not None:
            self.control.close()
        if mine and self.parent is not None:
            self.parent.kill()
            self.parent.wait()
        self.control = self.parent = None

    def _take(self) -> _Worker:
        with self.lock:
            control = self._begin()
            while self.idle:
                worker = self.idle.pop()
                ended, _, _ = select.select([worker.handle], [], [], 0)
                if not ended:
                    return worker
                self._drop(worker)
            line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    socket.send_fds(control, [b"fork"], [theirs.fileno()])
            except OSError:
                line.close()
                raise
        line.settimeout(START_SECONDS)
        try:
            pid = line.recv(16)
        except OSError:
            line.close()
            raise
        if not pid:
            line.close()
            raise OSError("a worker did not start")
        line.settimeout(None)
        return _Worker(line=line, handle=os.pidfd_open(int(pid)))

    def _drop(self, worker: _Worker) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker.handle, signal.SIGKILL)
        os.close(worker.handle)
        worker.line.close()

    def ask(self, gold: str, answer: str, seconds: float) -> Said:
        """Compare ``answer`` with ``gold``; ``time`` where that took longer, ``gold`` where the reference cannot be
        read.

        ``fault`` is the machine's trouble and says nothing about the answer.
        """
        with self.slots:
            for _ in range(2):
                try:
                    worker = self._take()
                except OSError:
                    continue
                said = self._asked(worker, gold, answer, seconds)
                if said in ("right", "wrong", "gold"):
                    with self.lock:
                        self.idle.append(worker)
                    return said
                self._drop(worker)
                if said == "time":
                    return "time"
            return "fault"

    def _asked(self, worker: _Worker, gold: str, answer: str, seconds: float) -> Said:
        until = time.monotonic() + seconds
        try:
            worker.line.send(json.dumps([gold, answer]).encode())
            ready, _, _ = select.select([worker.line], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return "time"
            said = worker.line.recv(1 << 10).decode()
        except OSError:
            return "fault"
        if said in ("right", "gold"):
            return said  # type: ignore[return-value]
        # An exception in a parser, or no memory for a number: it is not shown to be the same.
        return "wrong" if said else "fault"

    def close(self) -> None:
        """End all processes."""
        with self.lock:
            if self.owner == os.getpid():
                self._end()


_shared = MathPool()
atexit.register(_shared.close)


def shared_pool() -> MathPool:
    """The pool of this process."""
    return _shared


def need_math_verify() -> None:
    """Raises:
    MissingExtra: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtra("math-verify", "verify", "verifier 'math'")
