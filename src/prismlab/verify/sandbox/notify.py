"""Answers to the system calls that level B's filter asks about: paths, and who and where the program is.

Landlock keeps a program from what a file holds, but not from whether it exists. So every call with a path waits for
the keeper, which reads the path in the program's memory: beneath the program's own folders the call goes on, elsewhere
there is no such file. A thread that changes the path while it is read can learn whether a file exists (docs/sandbox.md
names this); it still cannot open it. Identity is answered with fixed values.

Numbers and layouts are from the kernel's ``linux/seccomp.h``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import struct
from collections.abc import Sequence

from prismlab.verify.sandbox.bpf import AUDIT_ARCH, machine
from prismlab.verify.sandbox.syscalls import IDENTITY, PATHS

RECEIVE, SEND, STILL_THERE = 0xC0502100, 0xC0182101, 0x40082102
CONTINUE = 1
AT_FDCWD = 0xFFFFFF9C
LONGEST = 4096
NEUTRAL_ID = 1000
NEUTRAL_NAMES = ("Linux", "sandbox", "6.0", "#1", None, "(none)")
"""utsname: system, node, release, version, machine (the true one), domain; each 65 bytes."""

_COLUMN = list(AUDIT_ARCH).index(machine())
_NAMES = {pair[_COLUMN]: name for name, pair in (PATHS | IDENTITY).items() if pair[_COLUMN] is not None}
_WITH_FOLDER = {
    "openat": ((0, 1),),
    "mkdirat": ((0, 1),),
    "newfstatat": ((0, 1),),
    "unlinkat": ((0, 1),),
    "readlinkat": ((0, 1),),
    "faccessat": ((0, 1),),
    "faccessat2": ((0, 1),),
    "statx": ((0, 1),),
    "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)),
    "rename": ((None, 0), (None, 1)),
}
"""Arguments that hold a folder's descriptor and a path; of calls that are not named, the first is the path."""
_LOOK = {"stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"}
"""Calls that may also see the folders above the program's own."""


class Answerer:
    """Decides for one program what its calls may see."""

    def __init__(self, home: str, folders: Sequence[str]) -> None:
        """Its calls may see what is in ``folders``, and that there are folders above its ``home``."""
        self.folders = (home, *folders)
        self.above = {"/"}
        while home != "/":
            home = posixpath.dirname(home)
            self.above.add(home)

    def may(self, call: str, path: str) -> bool:
        """Whether ``call`` may go on with this absolute path."""
        plain = posixpath.normpath("/" + path.lstrip("/"))
        if call in _LOOK and plain in self.above:
            return True
        return any(plain == folder or plain.startswith(folder + "/") for folder in self.folders)

    def answer(self, listener: int) -> bool:
        """Answer one call that waits on ``listener``; False once nobody is left to ask."""
        try:
            asked = fcntl.ioctl(listener, RECEIVE, bytes(80))
        except OSError as error:
            return error.errno == errno.EINTR
        call_id, pid, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", asked)
        try:
            value, code, flags = self._decide(_NAMES.get(number, ""), pid, arguments)
        except OSError:
            # The program is gone, or its memory cannot be read where its argument points to.
            value, code, flags = 0, -errno.EFAULT, 0
        try:
            fcntl.ioctl(listener, SEND, struct.pack("=QqiI", call_id, value, code, flags))
        except OSError:
            return True  # it ended meanwhile; the next RECEIVE tells whether somebody is left
        return True

    def _decide(self, call: str, pid: int, arguments: Sequence[int]) -> tuple[int, int, int]:
        if call in ("getuid", "geteuid", "getgid", "getegid"):
            return NEUTRAL_ID, 0, 0
        if call in ("getresuid", "getresgid"):
            for address in arguments[:3]:
                _write(pid, address, struct.pack("=I", NEUTRAL_ID))
            return 0, 0, 0
        if call == "uname":
            names = (machine() if name is None else name for name in NEUTRAL_NAMES)
            _write(pid, arguments[0], b"".join(name.encode().ljust(65, b"\0") for name in names))
            return 0, 0, 0
        for folder, place in _WITH_FOLDER.get(call, ((None, 0),)):
            path = _text(pid, arguments[place])
            if path and not path.startswith("/"):
                at = AT_FDCWD if folder is None else arguments[folder] & 0xFFFFFFFF
                base = os.readlink(f"/proc/{pid}/cwd" if at == AT_FDCWD else f"/proc/{pid}/fd/{at}")
                path = posixpath.join(base, path)
            # An empty path is the descriptor itself, which only an open that was allowed has given.
            if path and not self.may(call, path):
                return 0, -errno.ENOENT, 0
        return 0, 0, CONTINUE


def _text(pid: int, address: int) -> str:
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while len(found) < LONGEST:
            # Up to the end of a page at a time: the next one may not be there.
            at = address + len(found)
            piece = os.pread(memory, min(4096 - at % 4096, LONGEST), at)
            found += piece
            if not piece or b"\0" in piece:
                break
    finally:
        os.close(memory)
    return os.fsdecode(found.partition(b"\0")[0])


def _write(pid: int, address: int, value: bytes) -> None:
    memory = os.open(f"/proc/{pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(memory, value, address)
    finally:
        os.close(memory)
