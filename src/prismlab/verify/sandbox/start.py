"""How the keeper starts and kills a confined worker: by bwrap (level A), or by Landlock and a filter (level B)."""

from __future__ import annotations

import contextlib
import ctypes
import marshal
import os
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prismlab.verify.sandbox import bpf, landlock
from prismlab.verify.sandbox.files import remove
from prismlab.verify.sandbox.forking import BOOT, IGNORED, Template, compiled, high, sealed
from prismlab.verify.sandbox.mounts import open_the_way
from prismlab.verify.sandbox.place import DEVICES, FLAGS, Place, environment
from prismlab.verify.sandbox.template import MAX_DESCRIPTOR, PR_SET_DUMPABLE, SELF

CONTROL, FILTER, INFO = 3, 9, 10
BOOT_CODE = (
    f"import marshal, os\nPLAIN, inside = marshal.loads(os.pread({BOOT}, 1 << 20, 0))\nos.close({BOOT})\nexec(inside)"
)
FIRST_UID = 0x70000000
"""Users that programs run as under root: beyond every range that systems hand out."""
CAP_SYS_PTRACE = 19
NEIGHBOURS = 512
"""Processes that other programs of the same user may have, beyond a program's own limit, which is then watched."""
SECCOMP = {"x86_64": 317, "aarch64": 277}
HOME = "/tmp"
PR_SET_NAME, CLEANER = 15, b"prism-clean"
NAMESPACES = ("user", "pid", "net", "ipc", "uts", "cgroup")


@dataclass(eq=False)
class Started:
    """A worker's handles."""

    pid: int | None = None
    """The first process; the template tells it later."""
    inside: int | None = None
    """Level A: the first process inside the process namespace."""
    info: int | None = None
    """Where bwrap tells of it, where there is one for each program."""
    channel: socket.socket | None = None
    """Where the template and the program's process tell of it."""
    listener: int | None = None
    scratch: str = ""
    folders: Sequence[str] = ()


def boot_file() -> int:
    """``inside.py`` with ``plain.py`` as its data, compiled, in a sealed file in memory: what a confined Python of its
    own begins with."""
    return sealed(marshal.dumps((marshal.dumps(compiled("plain")), compiled("inside"))))


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
    template: Template | None = None
    """Forks programs; None where each has a bwrap of its own."""

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
        if os.getuid() == 0:
            made._leave_root()
        alone = made.level == "B" and (made.uid is None or made.shared) and landlock.version() < landlock.SIGNALS_SCOPED
        made.program = bpf.assemble(made.level, signals_only_to=SELF if alone else None)
        if made.level == "B":
            made.folder = tempfile.mkdtemp(prefix="prism-sandbox-")
            os.chmod(made.folder, 0o711)
        made.facts |= {"uid": made.uid if made.uid is not None else os.getuid(), "landlock": landlock.version()}
        made.facts["folder"] = made.folder
        made._begin_template(settings["template"])
        return made

    def _begin_template(self, wanted: bool) -> None:
        """At level A a system may let bwrap make namespaces and nobody behind it (AppArmor's profile of bwrap): then
        every program has a bwrap of its own, which is as tight and slower."""
        self.facts["starts"] = "forks of a template"
        try:
            if self.level == "A" and not wanted:
                raise OSError("as asked for")
            self.template = self._new_template()
        except OSError as error:
            if self.level == "B":
                raise
            self.facts["starts"] = f"a bwrap for each program ({error})"[:200]

    def _new_template(self) -> Template:
        settings = {"level": self.level, "keeper": os.getpid(), "megabytes": self.scratch_mb}
        settings |= {"filter": self.program, "seccomp": SECCOMP[bpf.machine()]}
        command = [self.place.program, *FLAGS]
        if self.level == "A":
            command = [*self.bwrap_arguments(template=True), self.place.inside, *FLAGS]
        return Template(command, environment(HOME), settings)

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
        if self.template is not None:
            return self._by_template(self.template, descriptors, order)
        moved = [high(one) for one in descriptors]
        try:
            return self._by_bwrap(moved)
        finally:
            for one in moved:
                os.close(one)

    def bwrap_arguments(self, *, template: bool) -> list[str]:
        """The command line of bwrap, up to the program.

        The template stays in the host's process namespace, so that it can be told who its programs are, and may make
        namespaces within its own; each of its programs gets a file system for its files.
        """
        names = [name for name in NAMESPACES if name != "pid" or not template]
        line = [self.bwrap, *(f"--unshare-{name}" for name in names), "--uid", "1000", "--gid", "1000"]
        line += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        for source, target in self.place.binds():
            line += ["--ro-bind", source, target]
        for target, path in self.place.links():
            line += ["--symlink", target, path]
        for device in DEVICES:
            line += ["--dev-bind", device, device]
        for folder in (HOME, "/dev/shm"):
            size = ["--size", str(self.scratch_mb << 20), "--perms", "0700", "--tmpfs"]
            line += ["--dir", folder] if template else [*size, folder]
        line += ["--remount-ro", "/", "--chdir", HOME]
        own = ["--cap-add", "CAP_SYS_ADMIN"] if template else ["--seccomp", str(FILTER), "--json-status-fd", str(INFO)]
        return [*line, *own, "--"]

    def _by_bwrap(self, moved: Sequence[int]) -> Started:
        boot = high(self.boot)
        filter_reader, filter_writer = _pipe()
        info_reader, info_writer = _pipe()
        try:
            os.write(filter_writer, self.program)
            os.close(filter_writer)
            targets = [CONTROL, 0, 1, 2, BOOT, FILTER, INFO]
            moves = [
                (os.POSIX_SPAWN_DUP2, s, t)
                for s, t in zip([*moved, boot, filter_reader, info_writer], targets, strict=True)
            ]
            line = [*self.bwrap_arguments(template=False), self.place.inside, *FLAGS, "-c", BOOT_CODE, "2"]
            pid = os.posix_spawn(self.bwrap, line, environment(HOME), file_actions=moves, setsigdef=IGNORED)
        except OSError:
            os.close(info_reader)
            raise
        finally:
            for descriptor in (boot, filter_reader, info_writer):
                os.close(descriptor)
        return Started(pid=pid, info=info_reader)

    def _by_template(self, template: Template, descriptors: Sequence[int], order: Mapping[str, Any]) -> Started:
        """Ask the template for a worker; on the channel it says later which process that is."""
        scratch = ""
        if self.level == "B":
            scratch = f"{self.folder}/{self.count}"
            os.mkdir(scratch, 0o700)
            uid = None
            if self.uid is not None and not self.shared:
                uid = self.uid + self.count % (65536 if self.uid >= FIRST_UID else 500)
                os.chown(scratch, uid, uid)
            more = NEIGHBOURS if self.shared else int(order["neighbours"])
            order = {"scratch": scratch, "uid": uid, "more": more, "grants": self._grants(scratch)}
        try:
            channel = template.ask(order, descriptors)
        except OSError:  # something has killed it: another one
            template.orders.close()
            self.template = self._new_template()
            channel = self.template.ask(order, descriptors)
        return Started(channel=channel, scratch=scratch, folders=self._folders(scratch))

    def _folders(self, scratch: str) -> list[str]:
        return [scratch, *self.place.readable(), *DEVICES]

    def _grants(self, scratch: str) -> list[tuple[str, int]]:
        rights = {scratch: landlock.SCRATCH, **dict.fromkeys(DEVICES, landlock.READ_FILE | landlock.WRITE_FILE)}
        return [(folder, rights.get(folder, landlock.RUN)) for folder in self._folders(scratch)]

    def kill(self, worker: Started, left: set[int]) -> None:
        """Kill what is left of a worker; at level B only before its first process is reaped, whose number is the
        group's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.level == "B" and worker.pid is not None and worker.pid in left:
                os.killpg(worker.pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def gone(self, worker: Started, left: set[int]) -> bool:
        """Whether no process of a worker is left, not even one that nobody has asked for its status."""
        if left or (worker.pid is None and worker.channel is not None):
            return False
        if self.level == "A" or worker.pid is None:
            return True
        try:
            os.killpg(worker.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def clean(self, worker: Started) -> None:
        """Remove a worker's folder: at once if it is empty, else by a process of its own, so that a program that has
        left a hundred thousand files keeps nobody else waiting.

        Raises:
            OSError: no process could be started.
        """
        if not worker.scratch:
            return
        with contextlib.suppress(OSError):
            os.rmdir(worker.scratch)
            return
        if os.fork():
            return
        try:
            # With a line open, it would stand for a keeper that is gone.
            os.closerange(3, MAX_DESCRIPTOR)
            ctypes.CDLL(None).prctl(PR_SET_NAME, CLEANER, 0, 0, 0)
            remove(worker.scratch)
        finally:
            os._exit(0)

    def close(self) -> None:
        """Remove the folder of all."""
        if self.folder:
            remove(self.folder)


def _pipe() -> tuple[int, int]:
    return tuple(high(one) for one in _closing(os.pipe()))  # type: ignore[return-value]


def _closing(pair: tuple[int, int]):
    for one in pair:
        yield one
        os.close(one)
