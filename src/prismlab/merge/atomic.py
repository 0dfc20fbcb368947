"""A folder that is there whole or not at all: built beside its place under a hidden name, then renamed.

Nothing is forced to the disk: a killed process loses nothing by that; a machine that loses power within the next half
minute may lose the files' content. Forcing 1.2 GB took 0.3 s where the whole merge took 1.4 s, a merge can be done
again, and the artifact store of a run forces its files to the disk itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from prismlab.errors import CheckpointError, shown

MARK = "unfinished"
YOUNG = 10.0
"""Seconds within which a folder without a lock may belong to a run that has not taken it yet."""


def check_target(target: Path) -> None:
    """Refuse a place that is taken.

    Raises:
        CheckpointError: it is a file, a folder that is not empty, or no name that can be looked up.
    """
    try:
        there = target.is_dir()
    except (OSError, ValueError) as error:
        raise _unusable(target, error) from error
    if there:
        if next(target.iterdir(), None) is not None:
            raise CheckpointError(f"{target}: is not empty, and nothing is overwritten; name a new folder")
    elif os.path.lexists(target):
        raise CheckpointError(f"{target}: is there and no folder; name a new folder")


def _unusable(target: Path, error: OSError | ValueError) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{shown(target, 300)}: cannot be made ({reason}); name another folder with --out")


def _hidden(target: Path) -> str:
    # A name may have 255 bytes, and something is added to it.
    return f".{target.name.encode(errors='surrogateescape')[:100].decode(errors='ignore')}.{MARK}."


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if another process has it, or locks are not to be had."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(target: Path) -> None:
    """Delete what killed runs left for this target. A running one holds a lock, which its death frees."""
    for left in target.parent.iterdir():
        if (
            not left.name.startswith(_hidden(target))
            or not left.is_dir()
            or left.is_symlink()
            or time.time() - left.stat().st_mtime < YOUNG
        ):
            continue
        lock = _lock(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


@contextmanager
def built_whole(target: Path) -> Generator[Path]:
    """A folder to fill, which becomes ``target`` when the block ends, and is deleted if it ends by an exception.

    A process that is killed leaves a hidden folder beside the target, never a target; the next run for the same target
    deletes it.

    Raises:
        CheckpointError: ``target`` is taken, before or afterwards, or cannot be made.
    """
    check_target(target)
    target = target.resolve()
    draft = target.parent / f"{_hidden(target)}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        draft.mkdir()
    except OSError as error:
        raise _unusable(target, error) from error
    lock = _lock(draft)
    try:
        yield draft
        try:
            draft.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise CheckpointError(f"{target}: was filled while this ran, and nothing is overwritten") from error
            raise
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(draft, ignore_errors=True)
