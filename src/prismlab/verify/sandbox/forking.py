"""The keeper's side of the template (``template.py``): starts it, and asks it for one program's process after the
other."""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.verify.sandbox.template import HOST_PROC, ORDERS

BOOT = 4
BOOT_CODE = (
    f"import marshal, os\nparts = marshal.loads(os.pread({BOOT}, 1 << 22, 0))\nos.close({BOOT})\n"
    "space = {'__name__': 'template'}\nexec(parts['template'], space)\nspace['main'](parts)()"
)
FREE = 30
"""Descriptors are moved up here before they are put in their places."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The keeper lives as long as its parent; what it starts is to find them as any program does."""
READY_SECONDS = 15.0
"""Within this time a template must be up, on a machine however busy."""


def compiled(name: str) -> Any:
    """A module of this package as code, for an interpreter that cannot see it; the keeper runs by the same one."""
    text = (Path(__file__).parent / f"{name}.py").read_text("utf-8")
    return compile(text, f"<{name}>", "exec", dont_inherit=True)


def sealed(content: bytes) -> int:
    """A file in memory that nobody can change any more."""
    made = os.memfd_create("boot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(made, content)
    fcntl.fcntl(
        made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    )
    return made


def high(descriptor: int) -> int:
    """A copy of a descriptor above those that a process is given."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE)


class Template:
    """A template that has said that it can start programs."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        """Start it by ``command``, to which Python's ``-c`` and the code are added.

        Raises:
            OSError: it cannot be started here; the text says what it said.
        """
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors, its_errors = os.pipe()
        given = self._descriptors(theirs, its_errors)
        try:
            moves = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in given.items()]
            line = [*command, "-c", BOOT_CODE]
            self.pid = os.posix_spawn(command[0], line, variables, file_actions=moves, setsigdef=IGNORED)
            for one in given.values():
                os.close(one)
            self.orders.settimeout(READY_SECONDS)
            self.orders.send(marshal.dumps(dict(settings)))
            said = self.orders.recv(1 << 12)
        except OSError as error:
            said = f"E{error}".encode()
        os.set_blocking(errors, False)
        if said != b"ready":
            self.orders.close()
            raise OSError(said[1:].decode("utf-8", "replace") or _read(errors) or "it ended")
        os.close(errors)
        self.orders.settimeout(None)

    def _descriptors(self, theirs: socket.socket, its_errors: int) -> dict[int, int]:
        """By their places in the template. Its streams are pipes, as programs' are: Python looks once, at its start."""
        reader, writer = os.pipe()
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        parts = {name: compiled(name) for name in ("template", "inside", "landlock")}
        boot = sealed(marshal.dumps({**parts, "plain": marshal.dumps(compiled("plain"))}))
        wanted = {0: reader, 1: writer, 2: its_errors, ORDERS: theirs.detach(), BOOT: boot, HOST_PROC: proc}
        given = {target: high(source) for target, source in wanted.items()}
        for source in wanted.values():
            os.close(source)
        return given

    def ask(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> socket.socket:
        """Order a worker with these descriptors: control, input, output, errors. Gives the channel on which it is heard
        of.

        Raises:
            OSError: the template is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self.orders, [marshal.dumps(dict(order))], [*descriptors, theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, 1 << 12).decode("utf-8", "replace").strip()[-300:]
    except OSError:
        return ""
    finally:
        os.close(descriptor)
