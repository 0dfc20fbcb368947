"""Where the confined Python lies on the host, where it will lie inside, and the fixed environment it sees."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from prismlab.errors import SandboxError

INSIDE = "/python"
"""Place inside of an interpreter that does not belong to the system: its own may name a user or a project."""
SYSTEM = ("/usr", "/usr/local")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
"""No user's and no site's packages, no folder of the program in front of the library, no bytecode written, UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """An interpreter."""

    program: str
    """Its executable on the host, links followed."""
    prefix: str
    """Its installation on the host."""

    @property
    def inside(self) -> str:
        """The executable's path in the file system of level A."""
        if self.prefix in SYSTEM:
            return self.program
        return f"{INSIDE}/{os.path.relpath(self.program, self.prefix)}"

    def binds(self) -> list[tuple[str, str]]:
        """(host, inside) of everything that is to be seen read-only at level A."""
        pairs = [(path, path) for path in LIBRARIES if os.path.isdir(path) and not os.path.islink(path)]
        if self.prefix in SYSTEM:
            return [*pairs, (self.program, self.program)]
        return [*pairs, (self.prefix, INSIDE)]

    def links(self) -> list[tuple[str, str]]:
        """(target, path) of the links beside them: /lib is one in a merged /usr."""
        return [(os.readlink(path), path) for path in LIBRARIES if os.path.islink(path)]

    def readable(self) -> list[str]:
        """What the program may read and run at level B, where everything keeps its place."""
        found = [path for path in LIBRARIES if os.path.isdir(path)]
        return [*found, self.program if self.prefix in SYSTEM else self.prefix]


def own_place() -> Place:
    """The interpreter that runs now, without its virtual environment.

    Raises:
        SandboxError: its executable cannot be found.
    """
    program = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable or "")
    if not os.path.isfile(program):
        raise SandboxError("the sandbox cannot find the Python that runs now; start prism with one of an absolute path")
    return Place(program=program, prefix=os.path.realpath(sys.base_prefix))


def environment(home: str) -> dict[str, str]:
    """All that a program finds in its environment; the same in training, evaluation and replay."""
    return {
        "HOME": home,
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin",
        "PWD": home,
        "PYTHONHASHSEED": "0",
        "TMPDIR": home,
        "TZ": "UTC",
    }


def barrier(path: str) -> str | None:
    """The topmost folder on the way to ``path`` that other users cannot walk through; None if they all can."""
    folder = Path("/")
    for part in Path(path).parts[1:]:
        folder /= part
        mode = folder.stat().st_mode
        if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
            return str(folder)
    return None
