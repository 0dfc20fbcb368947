"""One run at a time on one folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prismlab.errors import StoreError

TRIES = 3
"""Attempts at the lock, a tenth of a second apart: whoever only asks who holds it does so for an instant."""


def _holder(text: str) -> str:
    """Who holds the lock, as far as the file tells; it is empty for an instant after the lock is taken."""
    try:
        data: Any = json.loads(text)
        return f"process {data['pid']} on {data['host']}, started {data['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has just started"


def is_lock(path: Path) -> bool:
    """Whether a file is a lock of ours, held or not."""
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = json.loads(text) if text else {"pid": 0}
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "pid" in data


def holder(path: Path) -> str | None:
    """Who holds the lock file ``path``; None if nobody does. Nothing is written, so it needs no right to write."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(os.read(descriptor, 4096).decode(errors="replace"))
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int) -> bool:
    for attempt in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1 if attempt < TRIES - 1 else 0.0)
    return False


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file ``path`` while the block runs.

    The operating system frees the lock when its holder dies, however it dies, so a stale lock needs no care. Between
    machines it holds where the file system carries ``flock`` over (NFSv4, Lustre mounted with ``flock``).

    Raises:
        StoreError: somebody else holds it (the message says who), or its folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path.parent}: cannot be made or written: {error.strerror}; take another folder with --out"
        ) from error
    try:
        if not _take(descriptor):
            who = _holder(os.read(descriptor, 4096).decode(errors="replace"))
            raise StoreError(f"{path.parent}: in use by {who}; wait for it, stop it, or take another folder with --out")
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
