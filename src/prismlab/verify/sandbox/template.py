"""Runs as the template: a Python that is started once and forked for every program, so that none waits for a Python.

It never runs a program itself and holds nothing that is secret: the keeper starts it with a fixed environment and gives
it this file, ``inside.py``, ``plain.py`` and ``landlock.py``, compiled. At level A it lives behind bwrap, in a user
namespace and a root of its own; at level B it is confined by nothing.

For each order (marshal, on descriptor 3, with control, input, output, errors and a channel to the keeper) it forks a
process in between, which at level A makes namespaces and file systems that no other program shares, forks the first
process of the program and ends, so that the keeper becomes that one's parent. The first process gives up its
capabilities; at level A it is the namespace's first, forks the program and reaps what is left to it. The program's own
process takes its descriptors, closes all others, puts itself under Landlock (level B) and the filter, and goes on in
``inside.py``.

On the channel the keeper hears ``P`` and the number of the first process, or ``E`` and what failed; at level B also
``L`` with the descriptor on which the filter asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import marshal
import os
import signal
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

ORDERS, HOST_PROC = 3, 5
"""Where orders come from; the host's /proc, for the maps of user namespaces (level A)."""
MAX_DESCRIPTOR = 1 << 16
COMMON = ("bisect", "collections", "functools", "heapq", "itertools", "json", "math", "re", "string", "typing")
"""Modules that most programs use, imported once. None of them draws random numbers: those would be the same in all."""

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
NAMESPACES = 0x10000000 | CLONE_NEWPID | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""User, pid, net, ipc, uts, cgroup."""
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITY_VERSION = 0x20080522
SET_MODE_FILTER, NEW_LISTENER = 1, 8
USER = 1000
SELF = 0x7FFFFFF1
"""In the filter: the number of the program's own process, which is known only here. No process has this one."""

libc = ctypes.CDLL(None, use_errno=True)


def done(value: int, what: str) -> int:
    """The value of a system call.

    Raises:
        OSError: it has failed.
    """
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return value


def prctl(option: int, value: int) -> int:
    """``prctl`` with one argument; -1 where the kernel refuses."""
    return libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def tell(channel: int, text: bytes, descriptors: Sequence[int] = ()) -> None:
    """Say something to the keeper."""
    line = socket.socket(fileno=channel)
    try:
        socket.send_fds(line, [text], descriptors)
    finally:
        line.detach()


def mount(kind: str, target: str, flags: int, data: str | None = None) -> None:
    """Mount a file system of this kind, or change how one is shared."""
    text = None if data is None else data.encode()
    done(libc.mount(kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), text), f"mount {target}")


def own_namespaces(megabytes: int) -> None:
    """Level A, the process in between: what it forks sees nobody else's files, processes, network or names.

    The file systems are mounted before the new user namespace, so that they belong to one in which the program has
    nothing to say.

    Raises:
        OSError: the kernel refuses.
    """
    done(libc.unshare(CLONE_NEWNS), "mount namespace")
    mount("none", "/", MS_REC | MS_PRIVATE)
    for folder in ("/tmp", "/dev/shm"):
        mount("tmpfs", folder, MS_NOSUID | MS_NODEV, f"size={megabytes << 20},mode=0700")
    done(libc.unshare(NAMESPACES), "namespaces")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{USER} {USER} 1"), ("gid_map", f"{USER} {USER} 1")):
        file = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=HOST_PROC)
        os.write(file, text.encode())
        os.close(file)


def give_up_capabilities() -> None:
    """For good: nothing that is executed gets any back.

    Raises:
        OSError: the kernel refuses.
    """
    done(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    number = 0
    while number < 64 and prctl(PR_CAPBSET_DROP, number) == 0:
        number += 1
    header, none = struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24)
    done(libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(none)), "capset")


def parent_of_this(level: str) -> int:
    """The parent's number as the host has it, which a process in a namespace of its own cannot ask for."""
    if level == "B":
        return os.getppid()
    file = os.open("self/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=HOST_PROC)
    try:
        return int(os.read(file, 1 << 12).rpartition(b")")[2].split()[1])
    finally:
        os.close(file)


def die_with_the_keeper(word: int, level: str, keeper: int) -> None:
    """The process in between has ended once the template says so; then the keeper is the parent, or gone."""
    if os.read(word, 1) != b".":
        os._exit(70)
    done(prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "parent's death")
    if parent_of_this(level) != keeper:
        os._exit(70)
    os.close(word)


def first_of_the_namespace() -> None:
    """Level A: returns in the program's process. This one waits for it, and takes the namespace with it.

    No signal from within reaches it: the first process of a namespace gets none for which it has no handler.
    """
    os.setsid()
    program = os.fork()
    if not program:
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.closerange(0, MAX_DESCRIPTOR)
    while True:
        ended, status = os.wait()
        if ended == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def take_descriptors(given: Sequence[int], kept: int | None) -> None:
    """Control, input, output and errors to 3, 0, 1, 2; all others but ``kept`` are closed.

    Those that were given lie above 3: the template never lets 0 to 3 be free.
    """
    for source, target in zip(given, (3, 0, 1, 2), strict=True):
        os.dup2(source, target)
    if kept is not None:
        os.closerange(4, kept)
    os.closerange(4 if kept is None else kept + 1, MAX_DESCRIPTOR)


def load_filter(program: bytes, number: int, listen: bool) -> int:
    """Install the filter; with ``listen``, the descriptor on which it asks.

    Raises:
        OSError: the kernel refuses.
    """
    code = bytearray(program)
    for at in range(4, len(program), 8):
        if struct.unpack_from("=I", program, at) == (SELF,):
            struct.pack_into("=I", code, at, os.getpid())
    buffer = ctypes.create_string_buffer(bytes(code), len(code))
    header = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    flags = NEW_LISTENER if listen else 0
    return done(libc.syscall(ctypes.c_long(number), SET_MODE_FILTER, flags, ctypes.c_char_p(header)), "seccomp")


def confine_by_landlock(
    order: Mapping[str, Any], channel: int, settings: Mapping[str, Any], restrict: Callable[..., None]
) -> None:
    """Level B: another user where the keeper is root, a folder of its own, Landlock, a filter that asks the keeper."""
    os.setsid()
    home, uid = order["scratch"], order["uid"]
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # Another user's process may not be looked into, nor one that has changed its user; the keeper must.
    prctl(PR_SET_DUMPABLE, 1)
    # A change of user forgets it.
    done(prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "parent's death")
    if os.getppid() != settings["keeper"]:
        os._exit(70)
    os.umask(0o077)
    os.chdir(home)
    os.environ.update({"HOME": home, "PWD": home, "TMPDIR": home})
    done(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    restrict(order["grants"])
    listener = load_filter(settings["filter"], settings["seccomp"], listen=True)
    tell(channel, b"L", [listener])
    os.close(listener)
    os.close(channel)


def next_order() -> tuple[dict[str, Any], list[int], int]:
    """The template's life; returns in the process in between, with an order, its descriptors, and where the word comes
    that this process has ended."""
    orders = socket.socket(fileno=ORDERS)
    while True:
        data, given, _, _ = socket.recv_fds(orders, 1 << 16, 5)
        if not data:
            os._exit(0)
        reader, writer = os.pipe()
        try:
            child = os.fork()
        except OSError as error:
            tell(given[4], f"E{error}".encode())
            child = None
        if child == 0:
            orders.detach()
            os.close(writer)
            return marshal.loads(data), given, reader
        for one in (reader, *given):
            os.close(one)
        if child is not None:
            os.waitpid(child, 0)
            with contextlib.suppress(BrokenPipeError):
                os.write(writer, b".")
        os.close(writer)


def become_first(order: Mapping[str, Any], channel: int, settings: Mapping[str, Any]) -> None:
    """From the process in between to the first process of a program."""
    try:
        if settings["level"] == "A":
            own_namespaces(settings["megabytes"])
        child = os.fork()
        if child:
            tell(channel, b"P%d" % child)
            os._exit(0)
    except OSError as error:
        tell(channel, f"E{error}".encode())
        os._exit(1)


def try_out(settings: Mapping[str, Any]) -> bytes:
    """Whether programs can be started here: ``ready``, or ``E`` and why not."""
    if settings["level"] == "B":
        return b"ready"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            own_namespaces(settings["megabytes"])
            os.write(writer, b"ready")
        except OSError as error:
            os.write(writer, f"E{error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    said = os.read(reader, 1 << 10)
    os.close(reader)
    return said or b"Eit ended"


def prepared(parts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Everything that is the same for all programs, before the first of them."""
    for name in COMMON:
        __import__(name)
    spaces: dict[str, dict[str, Any]] = {"inside": {"PLAIN": parts["plain"]}, "landlock": {}}
    for name, space in spaces.items():
        space["__name__"] = name
        exec(parts[name], space)
    spaces["inside"]["load_plain"]()
    # What is there now is never collected: a collection would write to every page that the forks share.
    gc.collect()
    gc.freeze()
    return spaces


def main(parts: Mapping[str, Any]) -> Callable[[], None]:
    """Serve. Returns only in the process of a program, confined, with what is to run next."""
    orders = socket.socket(fileno=ORDERS)
    settings = marshal.loads(orders.recv(1 << 16))
    spaces = prepared(parts)
    if settings["level"] == "B":
        done(prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "parent's death")
    said = try_out(settings)
    orders.send(said)
    orders.detach()
    if said != b"ready" or (settings["level"] == "B" and os.getppid() != settings["keeper"]):
        os._exit(0)
    order, (*given, channel), word = next_order()
    become_first(order, channel, settings)
    os.dup2(given[3], 2)
    try:
        die_with_the_keeper(word, settings["level"], settings["keeper"])
        if settings["level"] == "A":
            give_up_capabilities()
            first_of_the_namespace()
            os.setsid()
            take_descriptors(given, None)
            os.chdir("/tmp")
            load_filter(settings["filter"], settings["seccomp"], listen=False)
        else:
            take_descriptors(given, channel)
            confine_by_landlock(order, channel, settings, spaces["landlock"]["restrict"])
    except BaseException as error:
        os.write(2, f"confinement failed: {error!r}\n".encode())
        os._exit(70)
    sys.argv = ["-c"]
    processes = order.get("more", 2)
    return lambda: spaces["inside"]["main"](processes)
