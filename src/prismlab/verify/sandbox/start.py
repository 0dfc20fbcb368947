"""How the keeper starts and kills a confined worker: by bwrap (level A), or by Landlock and a filter (level B)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import marshal
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prismlab.verify.sandbox import bpf, landlock
from prismlab.verify.sandbox.files import remove
from prismlab.verify.sandbox.mounts import open_the_way
from prismlab.verify.sandbox.place import DEVICES, FLAGS, Place, environment

CONTROL, BOOT, FILTER, INFO = 3, 4, 9, 10
BOOT_CODE = (
    f"import marshal, os\nPLAIN, inside = marshal.loads(os.pread({BOOT}, 1 << 20, 0))\nos.close({BOOT})\nexec(inside)"
)
FREE = 30
"""Descriptors are moved up here before they are put in their places."""
FIRST_UID = 0x70000000
"""Users that programs run as under root: beyond every range that systems hand out."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAP_SYS_PTRACE = 19
NEIGHBOURS = 512
"""Processes that other programs of the same user may have, beyond a program's own limit, which is then watched."""
SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_MODE_FILTER, NEW_LISTENER = 1, 8
HOME = "/tmp"
NAMESPACES = ("user", "pid", "net", "ipc", "uts", "cgroup")


@dataclass(eq=False)
class Started:
    """A worker's handles."""

    pid: int
    inside: int | None = None
    """Level A: the first process inside the process namespace."""
    info: int | None = None
    channel: socket.socket | None = None
    listener: int | None = None
    scratch: str = ""
    folders: Sequence[str] = ()


def boot_file() -> int:
    """``inside.py`` with ``plain.py`` as its data, compiled, in a sealed file in memory: what a confined Python
    begins with.

    The keeper runs by the same interpreter, so the bytecode fits; compiling it takes half as long as starting Python.
    """
    folder = Path(__file__).parent
    plain = compile((folder / "plain.py").read_text("utf-8"), "<plain>", "exec", dont_inherit=True)
    inside = compile((folder / "inside.py").read_text("utf-8"), "<sandbox>", "exec", dont_inherit=True)
    made = os.memfd_create("boot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(made, marshal.dumps((marshal.dumps(plain), inside)))
    fcntl.fcntl(
        made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    )
    return made


def _uid_works(uid: int) -> bool:
    """Whether a process may become this user: a container may know few."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def may_trace() -> bool:
    """Whether this process may look into those of other users, which containers take from root."""
    with open("/proc/self/status", encoding="ascii") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return bool(held >> CAP_SYS_PTRACE & 1)


@dataclass(eq=False)
class Starter:
    """Starts workers of one level."""

    level: Literal["A", "B"]
    place: Place
    boot: int
    """Descriptor of the boot's file."""
    scratch_mb: int
    bwrap: str = ""
    uid: int | None = None
    """First of the users that workers run as; None where they run as the caller."""
    shared: bool = False
    """Level B under a root that may not trace: all programs run as one user."""
    folder: str = ""
    """Level B: where the programs' folders are made."""
    program: bytes = b""
    """The filter."""
    facts: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    @classmethod
    def prepare(cls, settings: Mapping[str, Any]) -> Starter:
        """Take what the parent asks for and, as root, prepare to run as somebody else.

        Raises:
            OSError: the system refuses.
        """
        made = cls(
            level=settings["level"],
            place=Place(program=settings["program"], prefix=settings["prefix"]),
            boot=boot_file(),
            scratch_mb=settings["scratch"],
            bwrap=settings["bwrap"],
        )
        made.program = bpf.assemble(made.level)
        if os.getuid() == 0:
            made._leave_root()
        if made.level == "B":
            made.folder = tempfile.mkdtemp(prefix="prism-sandbox-")
            os.chmod(made.folder, 0o711)
        made.facts |= {"uid": made.uid if made.uid is not None else os.getuid(), "landlock": landlock.version()}
        made.facts["folder"] = made.folder
        return made

    def _leave_root(self) -> None:
        first = FIRST_UID + os.getpid() % 4096 * 65536
        self.uid = first if _uid_works(first) else 61000
        open_the_way(self.place)
        if self.level == "A" or not may_trace():
            # At level B the keeper reads its programs' memory: as root where root may, else as the user that they are.
            self.shared = self.level == "B"
            try:
                os.setgroups([])
                os.setresgid(self.uid, self.uid, self.uid)
                os.setresuid(self.uid, self.uid, self.uid)
            except OSError as error:
                raise OSError(
                    f"root may not become another user here ({error.strerror}): start prism as one"
                ) from error
            # Another user's process may not be looked into; this one's own workers must be.
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)

    def start(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> Started:
        """Start a worker with ``descriptors``: control, input, output, errors.

        Raises:
            OSError: no process could be started.
        """
        self.count += 1
        high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FREE) for one in descriptors]
        try:
            return self._by_bwrap(high) if self.level == "A" else self._by_fork(high, order)
        finally:
            for one in high:
                os.close(one)

    def _python(self, program: str, processes: int) -> list[str]:
        return [program, *FLAGS, "-c", BOOT_CODE, str(processes)]

    def bwrap_arguments(self) -> list[str]:
        """The command line of bwrap, up to the program."""
        line = [self.bwrap, *(f"--unshare-{name}" for name in NAMESPACES), "--uid", "1000", "--gid", "1000"]
        line += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        for source, target in self.place.binds():
            line += ["--ro-bind", source, target]
        for target, path in self.place.links():
            line += ["--symlink", target, path]
        for device in DEVICES:
            line += ["--dev-bind", device, device]
        for folder in (HOME, "/dev/shm"):
            line += ["--size", str(self.scratch_mb << 20), "--perms", "0700", "--tmpfs", folder]
        line += ["--remount-ro", "/", "--chdir", HOME, "--seccomp", str(FILTER), "--json-status-fd", str(INFO), "--"]
        return line

    def _by_bwrap(self, high: Sequence[int]) -> Started:
        boot = fcntl.fcntl(self.boot, fcntl.F_DUPFD_CLOEXEC, FREE)
        filter_reader, filter_writer = _pipe()
        info_reader, info_writer = _pipe()
        try:
            os.write(filter_writer, self.program)
            os.close(filter_writer)
            targets = [CONTROL, 0, 1, 2, BOOT, FILTER, INFO]
            moves = [
                (os.POSIX_SPAWN_DUP2, s, t)
                for s, t in zip([*high, boot, filter_reader, info_writer], targets, strict=True)
            ]
            line = [*self.bwrap_arguments(), *self._python(self.place.inside, processes=2)]
            pid = os.posix_spawn(self.bwrap, line, environment(HOME), file_actions=moves)
        except OSError:
            os.close(info_reader)
            raise
        finally:
            for descriptor in (boot, filter_reader, info_writer):
                os.close(descriptor)
        return Started(pid=pid, info=info_reader)

    def _by_fork(self, high: Sequence[int], order: Mapping[str, Any]) -> Started:
        scratch = f"{self.folder}/{self.count}"
        os.mkdir(scratch, 0o700)
        uid = None
        if self.uid is not None and not self.shared:
            uid = self.uid + self.count % (65536 if self.uid >= FIRST_UID else 500)
        more = NEIGHBOURS if self.shared else int(order["neighbours"])
        if uid is not None:
            os.chown(scratch, uid, uid)
        ours, theirs = socket.socketpair()
        folders = [scratch, *self.place.readable(), *DEVICES]
        pid = os.fork()
        if not pid:
            try:
                self._confine_and_run(high, theirs, scratch, folders, uid, more)
            except BaseException as error:
                os.write(2, f"confinement failed: {error!r}\n".encode())
            os._exit(70)
        theirs.close()
        return Started(pid=pid, channel=ours, scratch=scratch, folders=folders)

    def _confine_and_run(
        self,
        high: Sequence[int],
        channel: socket.socket,
        scratch: str,
        folders: Sequence[str],
        uid: int | None,
        more: int,
    ) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        boot = fcntl.fcntl(self.boot, fcntl.F_DUPFD_CLOEXEC, FREE)
        kept = socket.socket(fileno=fcntl.fcntl(channel.detach(), fcntl.F_DUPFD_CLOEXEC, FREE + 10))
        for source, target in zip([*high, boot], (CONTROL, 0, 1, 2, BOOT), strict=True):
            os.dup2(source, target)
        os.closerange(BOOT + 1, kept.fileno())
        os.closerange(kept.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        os.umask(0o077)
        os.chdir(scratch)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError("no_new_privs is refused")
        rights = {scratch: landlock.SCRATCH, **dict.fromkeys(DEVICES, landlock.READ_FILE | landlock.WRITE_FILE)}
        landlock.restrict([(folder, rights.get(folder, landlock.RUN)) for folder in folders])
        alone = None if uid is not None or landlock.version() >= landlock.SIGNALS_SCOPED else os.getpid()
        listener = _load(libc, self.program if alone is None else bpf.assemble("B", signals_only_to=alone))
        socket.send_fds(kept, [b"L"], [listener])
        kept.close()
        os.close(listener)
        program = self.place.program
        os.execve(program, self._python(program, more), environment(scratch))

    def kill(self, worker: Started, left: set[int]) -> None:
        """Kill what is left of a worker; at level B only before its first process is reaped, whose number is the
        group's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.level == "B" and worker.pid in left:
                os.killpg(worker.pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def gone(self, worker: Started, left: set[int]) -> bool:
        """Whether no process of a worker is left, not even one that nobody has asked for its status."""
        if left:
            return False
        if self.level == "A":
            return True
        try:
            os.killpg(worker.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def clean(self, worker: Started) -> None:
        """Remove a worker's folder."""
        if worker.scratch:
            remove(worker.scratch)

    def close(self) -> None:
        """Remove the folder of all."""
        if self.folder:
            remove(self.folder)


def _pipe() -> tuple[int, int]:
    return tuple(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FREE) for one in _closing(os.pipe()))  # type: ignore[return-value]


def _closing(pair: tuple[int, int]):
    for one in pair:
        yield one
        os.close(one)


def _load(libc: ctypes.CDLL, program: bytes) -> int:
    """Install the filter; gives the descriptor on which it asks."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    number = SECCOMP[bpf.machine()]
    found = libc.syscall(ctypes.c_long(number), SET_MODE_FILTER, NEW_LISTENER, ctypes.c_char_p(header))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")
    return found
