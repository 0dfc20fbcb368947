"""The parent's side of the keeper: workers that are started before they are needed, each used once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismlab.errors import SandboxError
from prismlab.verify.sandbox.place import Place

READY_SECONDS = 20.0
"""Within this time a keeper must be up, on a machine however busy."""


@dataclass(eq=False)
class Worker:
    """The parent's ends of one confined process that waits for its job."""

    line: socket.socket
    """To the keeper."""
    control: socket.socket
    """To the program's side of the boot."""
    stdin: int
    stdout: int
    stderr: int
    pool: Pool
    said: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the keeper has said of it while it waited."""

    def lives(self) -> bool:
        """Whether it still waits: its keeper has neither said that it ended nor gone away."""
        while True:
            try:
                words = self.line.recv(1 << 12, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return "status" not in self.said
            except OSError:
                return False
            if not words:
                return False
            self.said |= json.loads(words)

    def close(self) -> None:
        """Give the worker up; the keeper kills what is left."""
        self.line.close()
        self.control.close()
        for name in ("stdin", "stdout", "stderr"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)


class Pool:
    """A keeper and its waiting workers. Any thread may take one."""

    def __init__(self, level: str, place: Place, warm: int, scratch: int, template: bool = True) -> None:
        """Start the keeper. Without ``template`` every program of level A has a bwrap of its own.

        Raises:
            SandboxError: it cannot be started, or refuses.
        """
        self.level, self.warm = level, warm
        self.broken = False
        """Set once no worker can be had of this keeper: another one is wanted."""
        self.waiting: deque[Worker] = deque()
        self.lock = threading.Lock()
        bwrap = shutil.which("bwrap") or ""
        if level == "A" and not bwrap:
            raise SandboxError(
                "the sandbox's level A needs bwrap: apt-get install bubblewrap (dnf, pacman: the same name)"
            )
        settings = {
            "level": level,
            "program": place.program,
            "prefix": place.prefix,
            "bwrap": bwrap,
            "scratch": scratch,
            "template": template,
        }
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        source = str(Path(__file__).parents[3])
        try:
            module = ["-m", "prismlab.verify.sandbox.keeper"]
            self.keeper = subprocess.Popen(
                [place.program, "-s", "-S", "-P", "-B", *module, str(theirs.fileno()), json.dumps(settings)],
                env={"PYTHONPATH": source, "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "TMPDIR": _temporary()},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        finally:
            theirs.close()
        self.facts = self._hello()

    def _hello(self) -> Mapping[str, Any]:
        self.control.settimeout(READY_SECONDS)
        try:
            said = json.loads(self.control.recv(1 << 16) or b"{}")
        except TimeoutError:
            said = {"refused": f"it was not up after {READY_SECONDS:g} s"}
        self.control.settimeout(None)
        if "ready" not in said:
            self.close()
            raise SandboxError(f"the sandbox's keeper did not start: {said.get('refused', 'it ended')}")
        return said

    def _start(self) -> Worker:
        line, its_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control, its_control = socket.socketpair()
        its_stdin, stdin = os.pipe()
        stdout, its_stdout = os.pipe()
        stderr, its_stderr = os.pipe()
        worker = Worker(line=line, control=control, stdin=stdin, stdout=stdout, stderr=stderr, pool=self)
        for descriptor in (stdin, stdout, stderr):
            os.set_blocking(descriptor, False)
        control.setblocking(False)
        theirs = [its_line.fileno(), its_control.fileno(), its_stdin, its_stdout, its_stderr]
        try:
            order = json.dumps({"neighbours": _neighbours() if self.level == "B" else 0}).encode()
            socket.send_fds(self.control, [order], theirs)
        except OSError as error:
            worker.close()
            self.broken = True
            raise SandboxError(f"the sandbox's keeper is gone: {error}") from error
        finally:
            its_line.close()
            its_control.close()
            for descriptor in theirs[2:]:
                os.close(descriptor)
        return worker

    def take(self) -> Worker:
        """A worker that was started before, and another one in its place.

        Raises:
            SandboxError: the keeper is gone.
        """
        with self.lock:
            for _ in range(self.warm + 1):
                while len(self.waiting) < self.warm + 1:
                    self.waiting.append(self._start())
                worker = self.waiting.popleft()
                if worker.lives():
                    return worker
                why = worker.said.get("killed") or worker.said.get("status")
                complaint = _read(worker.stderr)
                worker.close()
        self.broken = True
        raise SandboxError(f"no confined process can be started ({complaint or why or 'the keeper is gone'})")

    def renew(self) -> None:
        """Give up the workers that wait, for others to be started in their places: what ended one of them before its
        job may have ended more, and the keeper tells of one after another."""
        with self.lock:
            while self.waiting:
                self.waiting.popleft().close()

    def close(self) -> None:
        """End the keeper and everything that it keeps."""
        with self.lock:
            while self.waiting:
                self.waiting.popleft().close()
            self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.keeper.wait(5.0)
        if self.keeper.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.keeper.pid, signal.SIGKILL)
            self.keeper.wait()


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, 300).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _temporary() -> str:
    for folder in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return "/tmp"


def _neighbours() -> int:
    """Processes and threads of this user, which count against a program's limit where there is no namespace."""
    count, me = 0, os.getuid()
    if me == 0:
        return 0  # programs get a user of their own
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == me:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count + 256
