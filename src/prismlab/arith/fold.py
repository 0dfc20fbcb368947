"""Checkpoints streamed side by side through a function, by several threads, in bounded memory.

Every thread reads the same elements of all checkpoints into buffers of its own and hands them to the function; compiled
functions and reads leave the interpreter free, so two threads do twice the work. Results are added in the order of the
elements, whichever thread was first: the sums do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from prismlab.arith.kernels import Stored
from prismlab.arith.parts import CHUNK, Part
from prismlab.model.tensors import ITEM_BYTES, STORED
from prismlab.run.step import Progress, Silent

AHEAD = 32 << 20
"""Bytes a file that the system is asked to read in advance: for files that are not in memory yet."""
MOST_THREADS = 8
"""Threads by default at most: beyond, memory is the limit."""


class Addable(Protocol):
    """A result of a chunk, to which that of another chunk can be added."""

    def add(self, other: Self, /) -> None:
        """Take in another part."""
        ...


T = TypeVar("T", bound=Addable)


def default_threads() -> int:
    """Threads that this process may use, at most ``MOST_THREADS``."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass
class _Work(Generic[T]):
    """Tasks in order, and what came of them."""

    tasks: list[tuple[int, int, int]]
    """(part, first element, element past the last)."""
    results: dict[int, T] = field(default_factory=dict)
    taken: int = 0
    awaited: int = -1
    """The task that the caller waits for; it is woken for no other, since every waking takes a core from the work."""
    stop: bool = False
    error: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> int | None:
        """The next task's number; None if there is none or the work was given up."""
        with self.changed:
            if self.stop or self.taken == len(self.tasks):
                return None
            self.taken += 1
            return self.taken - 1

    def put(self, number: int, result: T) -> None:
        with self.changed:
            self.results[number] = result
            if number == self.awaited:
                self.changed.notify()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self.stop, self.error = True, self.error or error
            self.changed.notify()

    def wait(self, numbers: Sequence[int]) -> list[T]:
        """The results of consecutive tasks, once all are there; the error of any task that failed."""
        with self.changed:
            for self.awaited in reversed(numbers):
                while self.awaited not in self.results and self.error is None:
                    self.changed.wait()
                if self.error is not None:
                    raise self.error
            return [self.results.pop(number) for number in numbers]


class _Reader:
    """Buffers of one thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.buffers: dict[tuple[int, str], Stored] = {}

    def read(self, part: Part, start: int, stop: int) -> tuple[Stored, ...]:
        out: list[Stored] = []
        for k, view in enumerate(part.views):
            key = (k, view.dtype)
            if key not in self.buffers:
                self.buffers[key] = np.empty(self.size, STORED[view.dtype])
            buffer = self.buffers[key][: stop - start]
            view.read_into(start, stop, buffer)
            out.append(buffer)
        return tuple(out)


class _Ahead:
    """Asks the system to read on while a chunk is worked on, once every ``AHEAD`` bytes of a file."""

    def __init__(self) -> None:
        self.asked: dict[Any, int] = {}

    def ask(self, part: Part, stop: int) -> None:
        for view in part.views:
            here = view.offset + stop * ITEM_BYTES[view.dtype]
            if here + AHEAD // 2 > self.asked.get(view.path, 0):
                begin = max(here, self.asked.get(view.path, 0))
                self.asked[view.path] = begin + AHEAD
                view.source.advise(begin, AHEAD)


def _worker(work: _Work[T], parts: Sequence[Part], visit: Callable[..., T], size: int, ahead: _Ahead) -> None:
    reader = _Reader(size)
    try:
        while (number := work.take()) is not None:
            at, start, stop = work.tasks[number]
            ahead.ask(parts[at], stop)
            work.put(number, visit(*reader.read(parts[at], start, stop)))
    except BaseException as error:  # handed to the caller's thread, which raises it
        work.fail(error)


def fold(
    parts: Sequence[Part],
    visit: Callable[..., T],
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    size: int = CHUNK,
) -> Iterator[tuple[Part, T]]:
    """Each part with the sum of ``visit`` over its chunks; a part without elements is left out.

    Args:
        parts: of ``parts.match``. They are read in the order in which they lie in the first checkpoint's files.
        visit: called with one array a checkpoint, corresponding elements as stored ([n], n at most ``size``), that hold
            only during the call; by several threads at the same time.
        progress: told of every part that is done; the caller starts it.
        threads: None for as many as the process may use, at most 8.
        size: elements of a chunk.

    Raises:
        CheckpointError: a file ends too early; and whatever ``visit`` raises.
    """
    bar = progress or Silent()
    ordered = sorted(parts, key=lambda part: (str(part.views[0].path), part.views[0].offset, part.ranges[:1]))
    work = _Work([(k, *span) for k, part in enumerate(ordered) for span in part.spans(size)])
    ahead = _Ahead()
    count = min(threads or default_threads(), max(1, len(work.tasks)))
    args = (work, ordered, visit, size, ahead)
    pool = [threading.Thread(target=_worker, args=args, daemon=True) for _ in range(count)]
    for thread in pool:
        thread.start()
    try:
        for at, group in groupby(range(len(work.tasks)), key=lambda number: work.tasks[number][0]):
            first, *rest = work.wait(list(group))
            for result in rest:
                first.add(result)
            bar.advance()
            yield ordered[at], first
    finally:
        work.stop = True
        for thread in pool:
            thread.join()
