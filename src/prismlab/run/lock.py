"""One run at a time on one folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prismlab.errors import StoreError


def _holder(text: str) -> str:
    """Who holds the lock, as far as the file tells; it is empty for an instant after the lock is taken."""
    try:
        data: Any = json.loads(text)
        return f"process {data['pid']} on {data['host']}, started {data['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has just started"


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file ``path`` while the block runs.

    The operating system frees the lock when its holder dies, however it dies, so a stale lock needs no care. Between
    machines it holds where the file system carries ``flock`` over (NFSv4, Lustre mounted with ``flock``).

    Raises:
        StoreError: somebody else holds it; the message says who.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.read(descriptor, 4096).decode(errors="replace"))
            raise StoreError(
                f"{path.parent}: in use by {holder}; wait for it, stop it, or take another folder with --out"
            ) from None
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat("T", "seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        os.close(descriptor)
