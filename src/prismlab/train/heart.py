"""A sign of life of every process of a run, so that none waits for a dead one.

``torchrun`` stops the processes of its own machine when one of them dies. A process that hangs, or one on another
machine, would be waited for until a collective times out, for NCCL ten minutes. So each process counts up a number of
its own in the run's key-value store, and looks at the others'. Clocks are not compared: a process is silent if its
number did not change for so many seconds of the looker's own steady clock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time

import torch.distributed as dist

BEAT = 2.0
"""Seconds between signs of life."""
SILENT = 40.0
"""Seconds without one after which a process counts as dead. All ranks end within a minute of a death."""
SILENT_VARIABLE = "PRISM_SILENT_SECONDS"
"""Environment variable that sets another number of seconds, for a debugger or a very slow file system."""
FAULT_FILE = "PRISM_FAULT_FILE"
"""Environment variable: where a process that ends itself leaves the reason, as JSON ``{failed: text}``."""
DONE = "done"


def tell(text: str) -> None:
    """Leave the reason where the parent process looks for it, once; the first to tell is right."""
    place = os.environ.get(FAULT_FILE)
    if place:
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return
        os.write(descriptor, json.dumps({"failed": text}).encode())
        os.close(descriptor)


class Heart:
    """Beats and listens in a thread until ``stop``.

    Args:
        store: the key-value store of the run; the thread has its own connection to it.
        rank: this process.
        size: processes.
        silent: seconds after which another is taken for dead, by default ``SILENT``; this process then ends at once,
            telling which it was.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, silent: float | None = None) -> None:
        clone: dist.Store = store.clone()  # pyright: ignore[reportAttributeAccessIssue] (missing in the library's stubs)
        self._store = dist.PrefixStore("prism-heart", clone)
        self._rank, self._size = rank, size
        self._silent = float(os.environ.get(SILENT_VARIABLE, SILENT)) if silent is None else silent
        self._stopped = threading.Event()
        self._store.set(f"who/{rank}", f"process {rank} of {size} ({socket.gethostname()}, pid {os.getpid()})")
        self._store.set(f"beat/{rank}", "0")
        self._thread = threading.Thread(target=self._run, daemon=True, name="heart")
        self._thread.start()

    def _run(self) -> None:
        others = [rank for rank in range(self._size) if rank != self._rank]
        heard: dict[int, tuple[str, float]] = {}
        number = 0
        try:
            while not self._stopped.wait(BEAT):
                number += 1
                self._store.set(f"beat/{self._rank}", str(number))
                there = [rank for rank in others if rank in heard or self._store.check([f"beat/{rank}"])]
                now = time.monotonic()
                values = self._store.multi_get([f"beat/{rank}" for rank in there])
                for rank, value in zip(there, values, strict=True):
                    told = value.decode()
                    if rank not in heard or heard[rank][0] != told:
                        heard[rank] = (told, now)
                    elif told != DONE and now - heard[rank][1] > self._silent:
                        self._end(rank)
        except RuntimeError:
            # The store is gone with the process that held it: torchrun, or its first machine, has ended.
            if not self._stopped.is_set():
                self._leave("the run's key-value store does not answer: torchrun, or its first machine, has ended")

    def _end(self, rank: int) -> None:
        who = self._store.get(f"who/{rank}").decode()
        self._leave(f"{who} has given no sign of life for {self._silent:.0f} s; all processes of the step end")

    def _leave(self, text: str) -> None:
        tell(text)
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        os._exit(1)

    def stop(self) -> None:
        """The end of this process's part in the run: the others do not wait for signs of it any more."""
        self._stopped.set()
        self._thread.join(timeout=2 * BEAT)
        try:
            self._store.set(f"beat/{self._rank}", DONE)
        except RuntimeError:
            return  # The store is gone: nobody is left to be told.
