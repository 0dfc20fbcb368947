"""What a run is allowed, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ended", "failed", "crashed", "time", "memory", "output", "processes", "scratch", "fault"]
"""``ended`` with exit status 0; ``failed`` with another; ``crashed`` by a signal; beyond a limit; or ``fault``: the
sandbox's own trouble, which says nothing about the program."""

MIDDLING = 64 << 10
"""Bytes of standard error that are kept."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use."""

    seconds: float = 2.0
    """Wall clock, from the moment at which the program starts."""
    memory: int = 512
    """MB: address space of each process, and resident memory of all together."""
    processes: int = 64
    """Processes and threads."""
    scratch: int = 64
    """MB of files."""
    output: int = 4
    """MB of standard output, or of one answer."""
    files: int = 256
    """Open files of a process."""

    def job(self) -> dict[str, int]:
        """As the confined side sets them; CPU seconds of a process stand a little above the wall clock, which
        decides."""
        whole = asdict(self)
        return {
            **{name: whole[name] for name in ("memory", "processes", "scratch", "files")},
            "cpu": int(self.seconds) + 2,
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    status: Status
    reason: str
    """In a few words; empty after ``ended``."""
    code: int | None = None
    """Exit status; 128 and the signal's number after a signal."""
    stdout: bytes = b""
    stderr: bytes = b""
    """The first 64 KB."""
    seconds: float = 0.0
    """From the program's start until nothing of it was left."""
    peak: int = 0
    """MB resident, the most that was seen; 0 of a run too short to be looked at."""
    record: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """What the sandbox enforced, see ``probe``."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What tests said of a program."""

    verdict: Literal["passed", "failed", "no_verdict"]
    reason: str
    """In a few words; empty after ``passed``."""
    seconds: float = 0.0
    record: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True, kw_only=True)
class Values:
    """What calls gave."""

    status: Status
    reason: str
    """In a few words; empty after ``ended``."""
    values: list[Any]
    """For each call that was made ``[tree]``, see ``plain.to_plain``, or None where it raised."""
