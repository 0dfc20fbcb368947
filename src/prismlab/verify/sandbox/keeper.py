"""The keeper: a small process that starts confined workers, watches them, kills them and reaps what they leave.

It is apart from the trainer because starting a process from one of many gigabytes and many threads is slow and
unsafe, and because it can give up root for good. It is a subreaper, so that no descendant of a program is ever
anybody else's child.

The parent sends ``{"level", "processes", ...}`` with five descriptors for each worker: the worker's line to the
keeper, and the program's control socket, input, output and errors. On a line the parent says ``S`` and limits (the
job has begun: watch) or ``K`` (kill); closing it kills too. The keeper's last word on a line is a JSON object:
``status``, ``killed`` (why, where it was the keeper's doing), ``peak`` (MB of the group, as far as it was seen),
``oom`` (the host was out of memory meanwhile). It comes when no process of the worker is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prismlab.verify.sandbox import start
from prismlab.verify.sandbox.files import size_of
from prismlab.verify.sandbox.forking import IGNORED
from prismlab.verify.sandbox.notify import Answerer
from prismlab.verify.sandbox.watch import Group, Watcher, out_of_memory_kills, parent_of

TICK = 0.02
"""Seconds between two looks at the memory of running programs."""
PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG = 36, 1


@dataclass(eq=False)
class Worker:
    """One confined process and what is known of it."""

    line: socket.socket
    started: start.Started
    watched: dict[str, Any] | None = None
    status: int | None = None
    killed: str = ""
    dying: bool = False
    peak: int = 0
    oom_before: int = 0
    """Kills for want of memory on this machine, up to a second before it was ordered."""
    ordered: float = field(default_factory=time.monotonic)
    next_walk: float = 0.0
    """When its folder is looked through next."""
    answerer: Answerer | None = None
    told: bytes = b""
    """What bwrap has said of it so far."""
    left: set[int] = field(default_factory=set)
    """Processes that must be reaped before the worker is gone: the first one, and at level A the first inside."""


class Keeper:
    """The loop."""

    def __init__(self, control: socket.socket, starter: start.Starter) -> None:
        self.control, self.starter = control, starter
        self.workers: list[Worker] = []
        self.watcher = Watcher()
        self.next_look = 0.0
        self.oom_kills, self.next_count = 0, 0.0
        self.patience = 200
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._listen(reader, lambda: _drain(reader))
        self._listen(control.fileno(), self._order)

    def _listen(self, descriptor: int, handler: Callable[[], None]) -> None:
        self.handlers[descriptor] = handler
        self.poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        if self.handlers.pop(descriptor, None):
            self.poll.unregister(descriptor)

    def run(self) -> None:
        """Until the parent is gone; then everything dies."""
        while True:
            busy = any(worker.watched is not None or worker.dying for worker in self.workers)
            for descriptor, _ in self.poll.poll(TICK * 1000 if busy else None):
                handler = self.handlers.get(descriptor)
                if handler:
                    handler()
            self._reap()
            self._look()
            for worker in [worker for worker in self.workers if worker.dying]:
                self._finish(worker)

    def _order(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, 1 << 16, 5)
        except ConnectionResetError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not data:
            for worker in self.workers:
                self._kill(worker, "")
            while self.workers and self._wait_for_rest():
                pass
            self.starter.close()
            os._exit(0)
        line = socket.socket(fileno=descriptors[0])
        try:
            begun = self.starter.start(json.loads(data), descriptors[1:])
        except OSError as error:
            _say(line, {"status": None, "killed": f"cannot start: {error}", "peak": 0, "oom": False})
            line.close()
            return
        finally:
            for descriptor in descriptors[1:]:
                os.close(descriptor)
        if time.monotonic() > self.next_count:
            self.oom_kills, self.next_count = out_of_memory_kills(), time.monotonic() + 1.0
        worker = Worker(line=line, started=begun, oom_before=self.oom_kills)
        if begun.pid is not None:
            worker.left.add(begun.pid)
        self.workers.append(worker)
        self._listen(line.fileno(), lambda: self._hear(worker))
        if begun.info is not None:
            self._listen(begun.info, lambda: self._first_inside(worker))
        if begun.channel is not None:
            channel = begun.channel
            self._listen(channel.fileno(), lambda: self._told(worker, channel))

    def _hear(self, worker: Worker) -> None:
        try:
            said = worker.line.recv(1 << 12)
        except ConnectionError:
            said = b""
        if said[:1] == b"S":
            worker.watched = json.loads(said[1:])
            self.watcher.forget_strangers(worker.ordered)
            # Most programs are over before it is time to look at them.
            if sum(one.watched is not None for one in self.workers) == 1:
                self.next_look = time.monotonic() + TICK
        else:
            if not said:
                self._forget(worker.line.fileno())
            self._kill(worker, "")

    def _first_inside(self, worker: Worker) -> None:
        """bwrap tells the process id of the first process inside."""
        assert worker.started.info is not None
        piece = os.read(worker.started.info, 1 << 12)
        worker.told += piece
        # It comes in pieces: the number is whole once something stands behind it.
        found = re.search(rb'"child-pid": ([0-9]+)[^0-9]', worker.told)
        if found and worker.started.inside is None:
            inside = worker.started.inside = int(found[1])
            if parent_of(inside) in (worker.started.pid, os.getpid()):
                worker.left.add(inside)
            _say(worker.line, {"inside": inside})
        if not piece:
            self._forget(worker.started.info)

    def _told(self, worker: Worker, channel: socket.socket) -> None:
        """The template tells which process the worker's first is, or why there is none; at level B the worker then
        hands over the descriptor on which its filter asks."""
        try:
            said, descriptors, _, _ = socket.recv_fds(channel, 1 << 12, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            said, descriptors = b"", []
        begun = worker.started
        if said[:1] == b"P":
            begun.pid = int(said[1:])
            worker.left.add(begun.pid)
            if self.starter.level == "A":
                begun.inside = begun.pid
                _say(worker.line, {"inside": begun.pid})
            if worker.dying:
                self.starter.kill(begun, worker.left)
        elif descriptors:
            listener = begun.listener = descriptors[0]
            worker.answerer = Answerer(begun.scratch, begun.folders)
            self._listen(listener, lambda: self._answer(worker, listener))
        if said[:1] in (b"E", b"L", b""):
            self._forget(channel.fileno())
            channel.close()
            begun.channel = None
            if begun.pid is None:
                self._kill(worker, f"cannot start: {said[1:].decode('utf-8', 'replace') or 'the template is gone'}")

    def _answer(self, worker: Worker, listener: int) -> None:
        if worker.answerer and not worker.answerer.answer(listener):
            self._forget(listener)

    def _kill(self, worker: Worker, why: str) -> None:
        worker.killed = worker.killed or why
        worker.dying = True
        self.starter.kill(worker.started, worker.left)

    def _reap(self) -> None:
        """Take the status of every process that has ended, its own children's and those that fell to it."""
        while True:
            try:
                # Without taking it yet: as long as a group's first process is not reaped, its number is nobody else's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            # A first process is the keeper's child once the one in between, which tells its number, has ended: what is
            # not known now is nobody's first process, but for what still stands in a channel.
            self._hear_of_starts()
            for worker in self.workers:
                if ended.si_pid == worker.started.pid:
                    if worker.started.info is not None and worker.started.inside is None:
                        self._first_inside(worker)
                    self._kill(worker, "")
                    worker.status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                worker.left.discard(ended.si_pid)
            os.waitpid(ended.si_pid, 0)

    def _hear_of_starts(self) -> None:
        for worker in self.workers:
            if worker.started.pid is None and worker.started.channel is not None:
                self._told(worker, worker.started.channel)

    def _wait_for_rest(self) -> bool:
        """The parent is gone: reap until nothing is left, for at most a second."""
        self._hear_of_starts()
        self._reap()
        self.workers = [worker for worker in self.workers if not self.starter.gone(worker.started, worker.left)]
        time.sleep(0.005)
        self.patience -= 1
        return self.patience > 0

    def _look(self) -> None:
        """Memory, processes and files of running programs against their limits."""
        watched = [worker for worker in self.workers if worker.watched is not None and not worker.dying]
        if not watched or time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + TICK
        roots = {root: worker for worker in watched if (root := worker.started.inside or worker.started.pid)}
        for root, group in self.watcher.groups(roots, session=self.starter.level == "B").items():
            self._judge(roots[root], group)

    def _judge(self, worker: Worker, group: Group) -> None:
        assert worker.watched is not None
        limits = worker.watched
        worker.peak = max(worker.peak, group.megabytes())
        if group.megabytes() > limits["memory"] and group.shared_megabytes() > limits["memory"]:
            self._kill(worker, "memory")
        elif self.starter.level == "B":
            if len(group.pids) > limits["processes"]:
                self._kill(worker, "processes")
            elif time.monotonic() > worker.next_walk:
                began = time.monotonic()
                if size_of(worker.started.scratch) > limits["scratch"] << 20:
                    self._kill(worker, "scratch")
                # A program that makes many files must not keep the keeper from the others: a twentieth of its time.
                worker.next_walk = time.monotonic() + max(TICK, 20 * (time.monotonic() - began))

    def _finish(self, worker: Worker) -> None:
        if not self.starter.gone(worker.started, worker.left):
            self.starter.kill(worker.started, worker.left)
            return
        self.workers.remove(worker)
        begun = worker.started
        for descriptor in (begun.info, begun.listener):
            if descriptor is not None:
                self._forget(descriptor)
                os.close(descriptor)
        if begun.channel is not None:
            self._forget(begun.channel.fileno())
            begun.channel.close()
        self._forget(worker.line.fileno())
        starved = worker.status in (-signal.SIGKILL, 128 + signal.SIGKILL) and not worker.killed
        oom = starved and out_of_memory_kills() > worker.oom_before
        _say(worker.line, {"status": worker.status, "killed": worker.killed, "peak": worker.peak, "oom": oom})
        worker.line.close()
        # What cannot be deleted now is tried again at the end; the next program has a folder of its own.
        with contextlib.suppress(OSError):
            self.starter.clean(begun)


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 1 << 10):
            pass


def _say(line: socket.socket, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        line.send(json.dumps(what).encode())


def main() -> None:
    """``python -m prismlab.verify.sandbox.keeper FD SETTINGS``: serve the parent on socket FD."""
    control = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sys.argv[2])
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        starter = start.Starter.prepare(settings)
        keeper = Keeper(control, starter)
    except OSError as error:
        _say(control, {"refused": str(error)})
        return
    _say(control, {"ready": True, **starter.facts})
    for name in IGNORED:
        signal.signal(name, signal.SIG_IGN)
    keeper.run()


if __name__ == "__main__":
    main()
