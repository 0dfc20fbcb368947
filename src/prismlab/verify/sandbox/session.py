"""One run, driven by the parent: it owns the clock, feeds input, reads with a cap, and waits until nothing is left."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any

from prismlab.verify.sandbox.inside import OUT_OF_MEMORY
from prismlab.verify.sandbox.outcome import MIDDLING, Limits, Outcome, Status
from prismlab.verify.sandbox.pool import Worker

START_SECONDS = 30.0
"""Within this time a worker must have taken its job; the program's own clock starts then."""
REMOVAL_SECONDS = 10.0
"""After a kill the keeper's last word must come within this time."""
CHUNK = 1 << 16
_REASONS = {
    "time": "it ran longer than {seconds:g} s",
    "memory": "it used more than {memory} MB of memory",
    "output": "it wrote more than {output} MB",
    "processes": "it had more than {processes} processes",
    "scratch": "it kept more than {scratch} MB of files",
}


class Ended(Exception):
    """The run is over before it gave what was asked for; ``outcome`` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Session:
    """A worker and its job.

    A session is used by one thread, and closed by it.
    """

    def __init__(self, worker: Worker, job: Mapping[str, Any], stdin: bytes, limits: Limits, record: Mapping[str, Any]):
        body = marshal.dumps({**job, "limits": limits.job()}, 4)
        self.worker, self.limits, self.record = worker, limits, record
        self.to_control = memoryview(len(body).to_bytes(8, "little") + body)
        self.to_stdin = memoryview(stdin)
        self.output: list[bytes] = []
        self.errors = b""
        self.size = 0
        self.heard = b""
        self.accepted: float | None = None
        self.final: Mapping[str, Any] | None = None
        self.inside: int | None = worker.said.get("inside")
        """Level A: the first process inside, by the host's number."""
        self.why: Status | None = None
        self.fault = ""
        self.began = self.finished = time.monotonic()
        self.until = self.began + START_SECONDS
        self.poll = select.poll()
        for descriptor in (worker.line.fileno(), worker.stdout, worker.stderr):
            self.poll.register(descriptor, select.POLLIN)
        self.poll.register(worker.control.fileno(), select.POLLIN | select.POLLOUT)
        if not stdin:
            self._close_stdin()
        with contextlib.suppress(OSError):  # the worker is gone, and what its line still holds says why
            worker.line.send(b"S" + json.dumps(limits.job()).encode())

    def _close_stdin(self) -> None:
        if self.worker.stdin >= 0:
            os.close(self.worker.stdin)
            self.worker.stdin = -1

    def kill(self, why: Status) -> None:
        """End the run for this reason; the first one counts."""
        if self.why is None:
            self.why = why
            self.until = time.monotonic() + REMOVAL_SECONDS
            with contextlib.suppress(OSError):  # then its last word is on the way
                self.worker.line.send(b"K")

    def step(self) -> None:
        """Wait for something to happen, at most until the clock says so, and deal with it."""
        left = self.until - time.monotonic()
        if left <= 0:
            self._late()
            return
        worker = self.worker
        for descriptor, event in self.poll.poll(left * 1000 + 1):
            if descriptor == worker.line.fileno():
                self._line()
            elif descriptor == worker.control.fileno():
                self._control(event)
            elif descriptor == worker.stdin:
                self._feed()
            else:
                self._read(descriptor)

    def _late(self) -> None:
        if self.why is not None:
            self.fault = self.fault or f"{REMOVAL_SECONDS:g} s after a kill something was left"
            self.final = {}
        elif self.accepted is None:
            self.fault = f"the worker did not take its job within {START_SECONDS:g} s"
            self.kill("fault")
        else:
            self.kill("time")

    def _line(self) -> None:
        try:
            said = self.worker.line.recv(1 << 12)
        except ConnectionResetError:
            return  # it closed before it had read all of ours; what it said before is still to be read
        except OSError:
            said = b""
        if not said:
            if self.final is None:
                self.fault = self.fault or "the keeper is gone"
                self.final = {}
                # It may look alive a moment longer: the next attempt must not go to what it leaves.
                self.worker.pool.broken = True
            return
        words = json.loads(said)
        self.inside = words.get("inside", self.inside)
        if "status" in words:
            self.final = words
            self.finished = time.monotonic()
            for descriptor in (self.worker.stdout, self.worker.stderr):
                while self._read(descriptor):
                    pass

    def _control(self, event: int) -> None:
        control = self.worker.control
        if event & select.POLLOUT and self.to_control:
            try:
                self.to_control = self.to_control[control.send(self.to_control[:CHUNK]) :]
            except BlockingIOError:
                pass
            except OSError:
                self.to_control = memoryview(b"")
        if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            try:
                piece = control.recv(CHUNK)
            except BlockingIOError:
                piece = None
            except OSError:
                piece = b""
            if piece == b"":
                self.poll.unregister(control.fileno())
                return
            self._take(piece or b"")
        self.poll.modify(control.fileno(), select.POLLIN | (select.POLLOUT if self.to_control else 0))

    def _take(self, piece: bytes) -> None:
        if self.accepted is None and piece:
            self.accepted = time.monotonic()
            if self.why is None:
                self.until = self.accepted + self.limits.seconds
            piece = piece[1:]
            if self.worker.stdin >= 0:
                self.poll.register(self.worker.stdin, select.POLLOUT)
        self.heard += piece
        if len(self.heard) > self.limits.output << 20:
            self.kill("output")

    def _feed(self) -> None:
        try:
            self.to_stdin = self.to_stdin[os.write(self.worker.stdin, self.to_stdin[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self.to_stdin = memoryview(b"")
        if not self.to_stdin:
            self.poll.unregister(self.worker.stdin)
            self._close_stdin()

    def _read(self, descriptor: int) -> bool:
        try:
            piece = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        if not piece:
            if self.final is None:
                self.poll.unregister(descriptor)
            return False
        if descriptor == self.worker.stderr:
            if len(self.errors) < MIDDLING:
                self.errors += piece[: MIDDLING - len(self.errors)]
            return True
        self.size += len(piece)
        if self.size > self.limits.output << 20:
            self.kill("output")
        else:
            self.output.append(piece)
        return True

    def finish(self) -> Outcome:
        """Run until nothing is left, and say what became of it."""
        try:
            while self.final is None:
                self.step()
        finally:
            # Also where the caller is interrupted: a closed line ends the run.
            self.worker.close()
        return self._outcome()

    def stop(self) -> Outcome:
        """End it now: its work is done."""
        if self.final is None:
            self.kill("ended")
        return self.finish()

    def line(self) -> bytes:
        """The next line that the confined side sends, without its end.

        Raises:
            Ended: the run is over before it came.
        """
        while b"\n" not in self.heard:
            if self.final is not None or self.why is not None:
                raise Ended(self.finish())
            self.step()
        found, _, self.heard = self.heard.partition(b"\n")
        return found

    def say(self, line: bytes) -> None:
        """Send a line."""
        self.to_control = memoryview(bytes(self.to_control) + line + b"\n")
        with contextlib.suppress(OSError, KeyError, ValueError):  # the other side is gone, which ``line`` will tell
            self.poll.modify(self.worker.control.fileno(), select.POLLIN | select.POLLOUT)

    def _outcome(self) -> Outcome:
        final = self.final or {}
        status, reason, code = self._judge(final)
        if status == "fault" and self.accepted is None:
            self.worker.pool.renew()
        return Outcome(
            status=status,
            reason=reason,
            code=code,
            stdout=b"".join(self.output),
            stderr=self.errors,
            seconds=self.finished - (self.accepted or self.began),
            peak=int(final.get("peak", 0)),
            record=self.record,
        )

    def _judge(self, final: Mapping[str, Any]) -> tuple[Status, str, int | None]:
        code = final.get("status")
        code = code if code is None or code >= 0 else 128 - code
        if self.fault:
            return "fault", self.fault, code
        if self.accepted is None:
            shown = self.errors[-300:].decode("utf-8", "replace").strip()
            return "fault", f"the worker ended before its job ({final.get('killed') or shown or code})", code
        why = self.why if self.why is not None else final.get("killed") or None
        if why == "ended":
            return "ended", "", code
        if why in _REASONS:
            return why, _REASONS[why].format(**self.limits.__dict__), code
        if code is None:
            return "fault", "the keeper does not know how it ended", code
        if final.get("oom"):
            return "fault", "the machine ran out of memory and killed it", code
        if code == OUT_OF_MEMORY:
            return "memory", _REASONS["memory"].format(**self.limits.__dict__), code
        if code == 128 + signal.SIGXCPU:
            return "time", f"it used more than {self.limits.job()['cpu']} s of CPU", code
        if code > 128:
            return "crashed", f"ended by signal {code - 128}", code
        return ("ended", "", 0) if code == 0 else ("failed", f"exit status {code}", code)
