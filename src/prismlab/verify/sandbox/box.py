"""The sandbox as its callers see it: run a program on an input, or put it to tests. It never runs anything
unconfined."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

from prismlab.errors import SandboxError
from prismlab.verify.sandbox.compare import same_value
from prismlab.verify.sandbox.outcome import Judged, Limits, Outcome, Status, Values
from prismlab.verify.sandbox.place import Place, own_place
from prismlab.verify.sandbox.plain import NotPlain, to_plain
from prismlab.verify.sandbox.pool import Pool
from prismlab.verify.sandbox.session import Ended, Session

LONGEST_PROGRAM = 1 << 20
"""Characters; a longer one fails without being run."""
ATTEMPTS = 3
"""A fault of the sandbox is not the program's: it is tried again this often in all."""


class Box(Protocol):
    """What every level offers."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What is enforced."""
        ...

    def run(self, program: str, stdin: bytes, limits: Limits) -> Outcome:
        """Run ``program`` as a script."""
        ...

    def calls(self, program: str, entry: str, cases: Sequence[tuple[Sequence[Any], Any]], limits: Limits) -> Judged:
        """Call ``entry`` with each case's arguments and compare what it gives with the case's value."""
        ...

    def tests(self, program: str, tests: str, entry: str, prelude: str, limits: Limits) -> Judged:
        """Put ``program`` to Python tests."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Sandbox:
    """Levels A and B on this machine. Any number of threads may use it; a process that is forked gets a keeper of its
    own."""

    def __init__(
        self,
        level: Literal["A", "B"] = "A",
        *,
        warm: int | None = None,
        place: Place | None = None,
        scratch: int = 64,
        record: Mapping[str, Any] | None = None,
        template: bool = True,
    ) -> None:
        """Prepare; nothing is started before the first run. ``probe.open_sandbox`` also checks that it holds.

        Args:
            level: ``A`` (bwrap) or ``B`` (Landlock).
            warm: workers that wait; by default one a core, at least two.
            place: the interpreter that programs get; by default the one that runs now.
            scratch: MB of a program's files, also the most that a run may ask for.
            record: what was found to be enforced; comes back with every result.
            template: whether programs are forks of one Python behind bwrap (level A); without it each has a bwrap of
                its own, which is slower.
        """
        self.level, self.scratch = level, scratch
        self.warm = max(2, len(os.sched_getaffinity(0))) if warm is None else warm
        self.place, self.template = place or own_place(), template
        self.record: Mapping[str, Any] = record or {"level": level}
        self._pool: Pool | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def pool(self) -> Pool:
        """The workers.

        Raises:
            SandboxError: they cannot be had.
        """
        with self._lock:
            mine = self._pool if self._owner == os.getpid() else None
            if mine is not None and (mine.broken or mine.keeper.poll() is not None):
                mine.close()
                self._pool = None
            if self._pool is None or self._owner != os.getpid():
                self._pool, self._owner = (
                    Pool(self.level, self.place, self.warm, self.scratch, self.template),
                    os.getpid(),
                )
            return self._pool

    def close(self) -> None:
        """End the keeper and what it keeps."""
        with self._lock:
            if self._pool is not None and self._owner == os.getpid():
                self._pool.close()
            self._pool = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _session(self, job: Mapping[str, Any], stdin: bytes, limits: Limits) -> Session:
        if limits.scratch > self.scratch:
            raise SandboxError(f"a run asks for {limits.scratch} MB of files; this sandbox was made for {self.scratch}")
        return Session(self.pool().take(), job, stdin, limits, self.record)

    def run(self, program: str, stdin: bytes = b"", limits: Limits = Limits()) -> Outcome:  # noqa: B008 - frozen
        """Run ``program`` as a script with ``stdin``. A fault is tried again in a fresh worker.

        Raises:
            SandboxError: no worker can be had at all.
        """
        if len(program) > LONGEST_PROGRAM:
            return Outcome(status="failed", reason=f"it has {len(program):,} characters", record=self.record)
        outcome = None
        for _ in range(ATTEMPTS):
            try:
                outcome = self._session({"mode": "io", "source": program}, stdin, limits).finish()
            except SandboxError as error:
                outcome = Outcome(status="fault", reason=str(error), record=self.record)
            if outcome.status != "fault":
                return outcome
        assert outcome is not None
        return outcome

    def calls(
        self,
        program: str,
        entry: str,
        cases: Sequence[tuple[Sequence[Any], Any]],
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Judged:
        """Call ``entry`` (of the module, or of its class ``Solution``) case by case until one is wrong.

        ``limits.seconds`` is for all of them. Values are compared here, as plain data, see ``compare.same_value``.
        """
        return self._tried(lambda: self._calls(program, entry, cases, limits), program)

    def tests(
        self,
        program: str,
        tests: str,
        entry: str = "",
        prelude: str = "",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Judged:
        """Put ``program`` to Python tests, which run in a second confined process.

        The tests see plain values alone: what the program gives is sent over as JSON and compared there, so that
        nothing that the program is or does can change a comparison, and the tests' expectations never come to where
        the program runs.

        Args:
            program: defines what is tested.
            tests: statements with ``assert``; if they define ``check`` and there is an ``entry``, ``check(entry)`` is
                called.
            entry: the function under test.
            prelude: code that the tests may use besides, and the program cannot change.
            limits: ``seconds`` is for all of it.
        """
        return self._tried(lambda: self._tests(program, tests, entry, prelude, limits), program)

    def _tried(self, attempt: Any, program: str) -> Judged:
        if len(program) > LONGEST_PROGRAM:
            return Judged(verdict="failed", reason=f"it has {len(program):,} characters", record=self.record)
        reason = ""
        for _ in range(ATTEMPTS):
            began = time.monotonic()
            try:
                verdict, reason = attempt()
            except Ended as end:
                if end.outcome.status == "fault":
                    reason = end.outcome.reason
                    continue
                verdict, reason = "failed", end.outcome.reason or "it ended before it answered"
            except SandboxError as error:
                reason = str(error)
                continue
            return Judged(verdict=verdict, reason=reason, seconds=time.monotonic() - began, record=self.record)
        return Judged(verdict="no_verdict", reason=f"sandbox: {reason}", record=self.record)

    def _loaded(self, program: str, limits: Limits) -> tuple[Session, str]:
        session = self._session({"mode": "call", "source": program}, b"", limits)
        try:
            said = session.line()
        except Ended:
            raise
        except BaseException:
            session.worker.close()
            raise
        return session, "" if said == b'["l", "loaded", null]' else f"it cannot be loaded: {_raised(said)}"

    def values(
        self,
        program: str,
        entry: str,
        arguments: Sequence[Any],
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Values:
        """What ``entry`` gives for each list of arguments, all as trees of ``plain.to_plain``; for a service of level
        C."""
        found: list[Any] = []

        def attempt() -> tuple[str, str]:
            found.clear()
            for said in self._said(program, entry, arguments, limits):
                if isinstance(said, str):
                    return "failed", said
                found.append([said[2][1]] if said is not None and said[1] == "value" else None)
            return "passed", ""

        judged = self._tried(attempt, program)
        words: dict[str, Status] = {"passed": "ended", "failed": "failed", "no_verdict": "fault"}
        return Values(status=words[judged.verdict], reason=judged.reason, values=found)

    def _said(self, program: str, entry: str, arguments: Sequence[Any], limits: Limits) -> Generator[Any, None, None]:
        """What the program says to each call: a line that was read, None for one that cannot be; a text if it does
        not load."""
        session, trouble = self._loaded(program, limits)
        try:
            if trouble:
                yield trouble
                return
            for given in arguments:
                session.say(json.dumps(["l", "call", entry, given, ["d"]]).encode())
                yield _read(session.line())
        finally:
            session.stop()

    def _calls(
        self, program: str, entry: str, cases: Sequence[tuple[Sequence[Any], Any]], limits: Limits
    ) -> tuple[str, str]:
        try:
            arguments = [to_plain(list(given)) for given, _ in cases]
            wanted = [to_plain(expected) for _, expected in cases]
        except NotPlain as error:
            return "no_verdict", f"a case holds what is no plain value: {error}"
        with contextlib.closing(self._said(program, entry, arguments, limits)) as answers:
            for number, said in enumerate(answers):
                if isinstance(said, str):
                    return "failed", said
                if said is None or said[1] != "value":
                    return "failed", f"case {number}: {_raised(said)}"
                if not same_value(wanted[number], said[2][1]):
                    return "failed", f"case {number}: another value"
        return "passed", ""

    def _tests(self, program: str, tests: str, entry: str, prelude: str, limits: Limits) -> tuple[str, str]:
        job = {"mode": "tests", "tests": tests, "entry": entry, "prelude": prelude}
        judge = self._session(job, b"", limits)
        session = None
        try:
            session, trouble = self._loaded(program, limits)
            if trouble:
                return "failed", trouble
            judge.until = max(judge.until, session.until)
            return _relay(judge, session)
        finally:
            judge.stop()
            if session is not None:
                session.stop()


def _relay(judge: Session, session: Session) -> tuple[str, str]:
    """Carry requests and answers between the tests and the program until the tests have a verdict."""
    while True:
        try:
            line = judge.line()
        except Ended as end:
            if end.outcome.status == "time":
                return "failed", end.outcome.reason
            raise SandboxError(f"the tests' process: {end.outcome.reason or end.outcome.status}") from end
        said = _read(line)
        if said is not None and said[1] == "end":
            verdict = {"passed": "passed", "failed": "failed"}.get(said[2], "no_verdict")
            return verdict, "" if verdict == "passed" else str(said[3])[:300]
        session.say(line)
        judge.say(session.line())


def _read(line: bytes) -> list[Any] | None:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = type(said) is list and len(said) >= 3 and said[0] == "l" and type(said[1]) is str
    if good and said[1] == "value":
        good = type(said[2]) is list and len(said[2]) == 3 and said[2][0] == "l"
    return said if good else None


def _raised(said: Any) -> str:
    said = _read(said) if isinstance(said, bytes) else said
    if said is not None and said[1] == "raised" and type(said[2]) is str:
        return f"it raised {said[2][:60]}"
    return "it gave no plain value"
