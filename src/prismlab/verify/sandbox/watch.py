"""What a group of processes uses, read from /proc on the host: the program has no say in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

PAGE = os.sysconf("SC_PAGE_SIZE")
MEGABYTE = 1 << 20
TRUST_SECONDS = 0.5
"""After a longer pause between two looks a number may have become another process's."""


@dataclass
class Group:
    """The processes of one program."""

    pids: set[int] = field(default_factory=set)

    def megabytes(self) -> int:
        """Resident memory; pages that several processes share count once for each."""
        return sum(_resident(pid) for pid in self.pids) * PAGE // MEGABYTE

    def shared_megabytes(self) -> int:
        """Resident memory with a shared page counted in parts; slower."""
        return sum(_proportional(pid) for pid in self.pids) // 1024


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    """Kilobytes; of a process whose maps may not be read, the resident ones."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return _resident(pid) * PAGE // 1024


def _parent_and_session(pid: int) -> tuple[int, int]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold anything.
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[1]), int(fields[3])
    except (OSError, IndexError):
        return 0, 0


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if there is no such process."""
    return _parent_and_session(pid)[0]


class Watcher:
    """Finds the processes of programs; looks up no stranger twice."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}
        """Root of each process of a program that was seen before."""
        self.strangers: dict[int, float] = {}
        """When each process that is nobody's was first seen."""
        self.looked = 0.0

    def forget_strangers(self, since: float) -> None:
        """A worker's job begins that was ordered at ``since``: whatever was first seen after that may be its own."""
        self.strangers = {pid: seen for pid, seen in self.strangers.items() if seen < since}

    def groups(self, roots: Iterable[int], session: bool) -> dict[int, Group]:
        """The group of each root process: its session, or its descendants.

        In a process namespace orphans fall to the root, so descendants are complete.
        """
        now = time.monotonic()
        if now - self.looked > TRUST_SECONDS:
            self.strangers = {}
        self.looked = now
        found = {root: Group({root}) for root in roots}
        alive = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self.known = {pid: root for pid, root in self.known.items() if pid in alive and root in found}
        self.known |= {root: root for root in found}
        self.strangers = {pid: seen for pid, seen in self.strangers.items() if pid in alive and pid not in self.known}
        fresh = {pid: _parent_and_session(pid) for pid in alive - self.known.keys() - self.strangers.keys()}
        if session:
            self.known |= {pid: leader for pid, (_, leader) in fresh.items() if leader in found}
        else:
            self._place(fresh)
        self.strangers |= dict.fromkeys(fresh.keys() - self.known.keys(), now)
        for pid, root in self.known.items():
            found[root].pids.add(pid)
        return found

    def _place(self, fresh: dict[int, tuple[int, int]]) -> None:
        """New processes go where their parents are; a parent may be new itself."""
        while placed := {pid: self.known[parent] for pid, (parent, _) in fresh.items() if parent in self.known}:
            self.known |= placed
            fresh = {pid: both for pid, both in fresh.items() if pid not in placed}


def out_of_memory_kills() -> int:
    """How many processes the host's kernel has killed for want of memory since it started."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
