"""What a group of processes uses, read from /proc on the host: the program has no say in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

PAGE = os.sysconf("SC_PAGE_SIZE")
MEGABYTE = 1 << 20


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
        """Root of each process seen before; 0 of a stranger."""

    def forget_strangers(self) -> None:
        """A worker's job begins: its processes may have been taken for strangers while it waited."""
        self.known = {pid: root for pid, root in self.known.items() if root}

    def groups(self, roots: Iterable[int], session: bool) -> dict[int, Group]:
        """The group of each root process: its session, or its descendants.

        In a process namespace orphans fall to the root, so descendants are complete.
        """
        found = {root: Group({root}) for root in roots}
        alive = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self.known = {pid: root for pid, root in self.known.items() if pid in alive and (root in found or not root)}
        self.known |= {root: root for root in found}
        fresh = {pid: _parent_and_session(pid) for pid in alive - self.known.keys()}
        if session:
            self.known |= {pid: leader if leader in found else 0 for pid, (_, leader) in fresh.items()}
        else:
            self._place(fresh)
        for pid, root in self.known.items():
            if root:
                found[root].pids.add(pid)
        return found

    def _place(self, fresh: dict[int, tuple[int, int]]) -> None:
        """New processes go where their parents are; a parent may be new itself."""
        while True:
            placed = {pid: self.known[parent] for pid, (parent, _) in fresh.items() if self.known.get(parent)}
            if not placed:
                break
            self.known |= placed
            fresh = {pid: both for pid, both in fresh.items() if pid not in placed}
        self.known |= dict.fromkeys(fresh, 0)


def out_of_memory_kills() -> int:
    """How many processes the host's kernel has killed for want of memory since it started."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
