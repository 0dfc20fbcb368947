"""The seccomp filter, assembled here: no library has to be installed, and every instruction can be tested.

A filter is a list of classic BPF instructions of 8 bytes (``struct sock_filter``: code u16, jt u8, jf u8, k u32) over
``struct seccomp_data`` (nr at 0, arch at 4, six 64-bit arguments from 16 on, low word first); see the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable

from prismlab.errors import SandboxError
from prismlab.verify.sandbox.syscalls import CHECKED, FILES, IDENTITY, OF_A_PROCESS, PATHS, PLAIN, SESSION, SIGNALS
from prismlab.verify.sandbox.template import SELF

ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
KILL = 0x80000000
ERRNO = 0x00050000

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH = 0, 4
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
"""Calls of the x32 ABI have this bit: the same kernel entry, other numbers."""

NEW_NAMESPACE = 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
CLONE_FORBIDDEN = NEW_NAMESPACE | 0x2000 | 0x8000
"""CLONE_NEW*, CLONE_PTRACE, CLONE_PARENT."""
IOCTLS = (0x5451, 0x5450, 0x5421, 0x541B, 0x5401, 0x5413)
"""FIOCLEX, FIONCLEX, FIONBIO, FIONREAD, TCGETS, TIOCGWINSZ."""
PRCTLS = (15, 16, 3, 23, 0x53564D41)
"""PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_CAPBSET_READ, PR_SET_VMA (glibc names its memory)."""
FCNTLS_FORBIDDEN = (8, 10, 15, 1024, 1026, 1031)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX (signals to strangers), F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ (memory that no limit
sees)."""
STREAMS = tuple(1 | flags for flags in (0, 0o4000, 0o2000000, 0o2004000))
"""SOCK_STREAM with SOCK_NONBLOCK, SOCK_CLOEXEC or both. A datagram can be addressed although its socket has a peer: to
any socket of the host with a path, which no version of Landlock keeps in."""
O_PATH = 0o10000000
"""An open with it is not governed by Landlock; the value is the same on both architectures."""

Instruction = tuple[int, int, int, int]


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _return(value: int) -> Instruction:
    return RETURN, 0, 0, value


def _refuse(number: int) -> Instruction:
    return _return(ERRNO | number)


def _one_of(argument: int, values: Iterable[int], inside: Instruction, outside: Instruction) -> list[Instruction]:
    """``inside`` if the low word of an argument is one of ``values``, else ``outside``."""
    block: list[Instruction] = [(LOAD, 0, 0, _low(argument))]
    for value in values:
        block += [(EQUAL, 0, 1, value), inside]
    return [*block, outside]


def _checked(notify_paths: bool) -> dict[str, list[Instruction]]:
    """What happens to calls whose arguments decide."""
    allow, refuse = _return(ALLOW), _refuse(errno.EPERM)
    return {
        "socket": [refuse],
        "socketpair": [(LOAD, 0, 0, _low(0)), (EQUAL, 1, 0, 1), refuse, *_one_of(1, STREAMS, allow, refuse)],
        "clone": [(LOAD, 0, 0, _low(0)), (ANY_BIT, 0, 1, CLONE_FORBIDDEN), refuse, allow],
        "ioctl": _one_of(1, IOCTLS, allow, _refuse(errno.ENOTTY)),
        "prctl": _one_of(0, PRCTLS, allow, refuse),
        "fcntl": _one_of(1, FCNTLS_FORBIDDEN, refuse, allow),
        # Another process's limits, priority: only of the caller itself, which is 0.
        "prlimit64": _one_of(0, [0], allow, refuse),
        "setpriority": [(LOAD, 0, 0, _low(0)), (EQUAL, 1, 0, 0), refuse, *_one_of(1, [0], allow, refuse)],
        "getpriority": [allow] if not notify_paths else [(LOAD, 0, 0, _low(0)), (EQUAL, 1, 0, 0), refuse, *_own(1)],
        "openat": [
            (LOAD, 0, 0, _low(2)),
            (ANY_BIT, 0, 1, O_PATH),
            _refuse(errno.EACCES) if notify_paths else allow,
            _return(NOTIFY if notify_paths else ALLOW),
        ],
        "open": [
            (LOAD, 0, 0, _low(1)),
            (ANY_BIT, 0, 1, O_PATH),
            _refuse(errno.EACCES) if notify_paths else allow,
            _return(NOTIFY if notify_paths else ALLOW),
        ],
    }


def _own(argument: int) -> list[Instruction]:
    """Allowed if an argument is 0 or the number of the program's own process; no other process exists for it."""
    return _one_of(argument, [0, SELF], _return(ALLOW), _refuse(errno.ESRCH))


def _signals(only_to: int | None) -> list[Instruction]:
    """Signals to anybody (whom namespace or Landlock let it see), or to process ``only_to`` and its own group."""
    allow = _return(ALLOW)
    return [allow] if only_to is None else _one_of(0, [0, only_to], allow, _refuse(errno.EPERM))


def _blocks(level: str, signals_only_to: int | None) -> dict[str, list[Instruction]]:
    inside = level == "B"
    names = {name: [_return(ALLOW)] for name in PLAIN}
    names |= {name: [_return(NOTIFY if inside else ALLOW)] for name in (*PATHS, *IDENTITY)}
    names |= {name: [_refuse(errno.EPERM) if inside else _return(ALLOW)] for name in (*SESSION, *FILES)}
    names |= {name: _signals(signals_only_to) for name in SIGNALS}
    names |= {name: _own(0) if inside else [_return(ALLOW)] for name in OF_A_PROCESS}
    return names | _checked(notify_paths=inside)


def machine() -> str:
    """The architecture of this machine.

    Raises:
        SandboxError: neither x86_64 nor aarch64.
    """
    found = platform.machine()
    if found not in AUDIT_ARCH:
        raise SandboxError(f"the sandbox knows the system calls of {', '.join(AUDIT_ARCH)}, not those of {found!r}")
    return found


def instructions(level: str, arch: str, signals_only_to: int | None = None) -> list[Instruction]:
    """The filter as instructions.

    Args:
        level: ``A`` (the namespaces hide files and processes) or ``B`` (paths and identity are asked of a listener).
        arch: ``x86_64`` or ``aarch64``.
        signals_only_to: a process id to which alone signals may go; None where the kernel sees to it.
    """
    column = list(AUDIT_ARCH).index(arch)
    numbers = PLAIN | PATHS | IDENTITY | SESSION | SIGNALS | OF_A_PROCESS | FILES | CHECKED
    code: list[Instruction] = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, AUDIT_ARCH[arch]), _return(KILL), (LOAD, 0, 0, NUMBER)]
    if arch == "x86_64":
        code += [(AT_LEAST, 0, 1, X32), _refuse(errno.ENOSYS)]
    for name, block in _blocks(level, signals_only_to).items():
        number = numbers[name][column]
        if number is not None:
            code += [(EQUAL, 0, len(block), number), *block]
    return [*code, _refuse(errno.ENOSYS)]


def assemble(level: str, arch: str | None = None, signals_only_to: int | None = None) -> bytes:
    """The filter as the kernel (and ``bwrap --seccomp``) takes it: 8 bytes an instruction."""
    code = instructions(level, arch or machine(), signals_only_to)
    return b"".join(struct.pack("=HBBI", *one) for one in code)
