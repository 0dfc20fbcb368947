"""A way past folders that only root can walk through, for a keeper that is about to stop being root.

Python often lies in a folder such as ``/root/.pyenv``. In a mount namespace of its own the keeper covers the barring
folder by an empty one and binds the interpreter back to its place, so that it can be read by the user that programs run
as, and nothing else of that folder can.
"""

from __future__ import annotations

import ctypes
import os

from prismlab.verify.sandbox.place import Place, barrier

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MS_NOSUID, MS_NODEV = 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def _done(value: int) -> None:
    if value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _done(_libc.mount(*encoded, ctypes.c_ulong(flags), None if data is None else data.encode()))


def open_the_way(place: Place) -> None:
    """Make the interpreter reachable for every user, for this process and what it starts.

    Raises:
        OSError: mounting is not allowed here.
    """
    barred = barrier(place.prefix)
    if barred is None:
        return
    try:
        _done(_libc.unshare(CLONE_NEWNS))
    except OSError as error:
        raise OSError(
            f"Python lies in {place.prefix}, where only root may go, and root may not mount here ({error.strerror}): "
            "use a Python that every user can start, such as /usr/bin/python3"
        ) from error
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    kept = os.open(place.prefix, os.O_PATH | os.O_DIRECTORY)
    try:
        _mount("cover", barred, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
        os.makedirs(place.prefix, mode=0o755)
        _mount(f"/proc/self/fd/{kept}", place.prefix, None, MS_BIND | MS_REC)
    finally:
        os.close(kept)
