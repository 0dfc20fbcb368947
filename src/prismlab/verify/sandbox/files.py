"""A program's folder at level B: how much it holds, and its removal, whatever the program made of it."""

from __future__ import annotations

import contextlib
import os

MOST_ENTRIES = 4_000
"""A folder with more entries counts as full: it is not walked to its end."""


def size_of(folder: str) -> int:
    """Bytes on disk beneath a folder, which a program may be writing to meanwhile; far too many entries count as
    2^62."""
    total, entries, waiting = 0, 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > MOST_ENTRIES:
                        return 1 << 62
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        except OSError:
            continue  # removed meanwhile, too deep to name, or barred: nothing more can be put in there by its path
    return total


def remove(folder: str) -> None:
    """Delete a folder that nobody uses any more: deep ones, and those that their maker has barred.

    A folder within it is moved up before it is emptied, so that no path and no recursion grows with the depth.
    """
    number = 0
    waiting = [folder]
    while waiting:
        one = waiting[-1]
        with contextlib.suppress(OSError):
            os.chmod(one, 0o700, follow_symlinks=False) if os.chmod in os.supports_follow_symlinks else os.chmod(
                one, 0o700
            )
        inner: list[str] = []
        try:
            with os.scandir(one) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        number += 1
                        up = f"{folder}.{number}"
                        os.chmod(entry.path, 0o700)
                        os.rename(entry.path, up)
                        inner.append(up)
                    else:
                        os.unlink(entry.path)
        except FileNotFoundError:
            pass
        waiting.pop()
        with contextlib.suppress(OSError):
            os.rmdir(one)
        waiting += inner
