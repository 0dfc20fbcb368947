"""Landlock: which files a process and its children may touch, by system calls (Linux 5.13 and later).

A path beneath which nothing is granted cannot be opened, listed, executed, made or removed. What Landlock does not
govern (metadata, ``chmod``, ``chdir``, UDP) is refused by the seccomp filter of level B or asked of the keeper. See the
kernel's Documentation/userspace-api/landlock.rst; numbers are from its ``linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, the same on every architecture."""
VERSION = 1
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_FIFO = 16, 32, 128, 256, 1024
REFER, TRUNCATE = 8192, 16384
EVERYTHING = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights over files that an ABI version knows; later versions add none."""
TCP = 3
SCOPES = 3
"""Abstract unix sockets and signals stay within the domain (version 6)."""
READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
SCRATCH = (
    READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | REFER | TRUNCATE
)  # no symbolic link, socket or device
FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
"""Rights that may be granted on a file that is no folder."""
SIGNALS_SCOPED = 6
"""The first version that keeps signals within the domain."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    done = _libc.syscall(ctypes.c_long(number), *arguments)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def version() -> int:
    """Landlock's ABI version on this kernel; 0 where it is absent, switched off or refused."""
    try:
        return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION))
    except OSError:
        return 0


def restrict(grants: Iterable[tuple[str, int]]) -> None:
    """Confine this process for good: nothing but ``grants``, (path, rights) pairs; no TCP, no signal to the outside.

    ``no_new_privs`` must be set. A path that is absent grants nothing.

    Raises:
        OSError: the kernel refuses.
    """
    abi = version()
    known = EVERYTHING[min(max(abi, 1), 5)]
    attributes = struct.pack("=QQQ", known, TCP if abi >= 4 else 0, SCOPES if abi >= SIGNALS_SCOPED else 0)
    size = 24 if abi >= SIGNALS_SCOPED else 16 if abi >= 4 else 8
    rules = _call(CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path, rights in grants:
            try:
                beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                granted = rights & known & (-1 if os.path.isdir(path) else FOR_FILES)
                rule = struct.pack("=Qi", granted, beneath)
                _call(
                    ADD_RULE, ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), ctypes.c_char_p(rule), ctypes.c_uint32(0)
                )
            finally:
                os.close(beneath)
        _call(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)
