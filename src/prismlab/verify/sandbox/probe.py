"""Which sandbox there is: chosen by the user, proved by probes, or refused with the line that helps. Nothing is a
fallback."""

from __future__ import annotations

import atexit
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from prismlab.errors import SandboxError
from prismlab.verify.sandbox import landlock
from prismlab.verify.sandbox.box import Box, Sandbox
from prismlab.verify.sandbox.place import Place, own_place
from prismlab.verify.sandbox.probes import Finding, probe, summary

SWITCH = "PRISM_SANDBOX"
"""Environment variable: ``A`` (the default), ``B``, or the address of a remote service."""
INSTALL = "apt-get install bubblewrap"
GET_BWRAP = f"install it ({INSTALL}; dnf and pacman have it under the same name)"
OPEN_NAMESPACES = (
    "bwrap may not make user namespaces here: on the host, 'sysctl -w kernel.unprivileged_userns_clone=1 "
    "user.max_user_namespaces=15000' and, on Ubuntu, 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'; in "
    "Docker, start the container with '--security-opt seccomp=unconfined --security-opt apparmor=unconfined'"
)
OTHERS = f"or choose level B ({SWITCH}=B, weaker: see docs/sandbox.md) or a remote service ({SWITCH}=https://...)"
WATCHED = {
    "A": [
        "memory of a group is watched 50 times a second, not enforced",
        "the clock since the machine's start is visible",
    ],
    "B": [
        "memory, processes and files of a group are watched 50 times a second, not enforced",
        "whether a file exists can be learnt by a race; what it holds cannot",
        "the kernel's own faults are nearer: no namespaces",
        "the clock since the machine's start is visible",
    ],
}


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0][:80] if done.stdout.strip() else ""


def _record(level: str, place: Place, findings: list[Finding], facts: Mapping[str, Any]) -> dict[str, Any]:
    bwrap = shutil.which("bwrap")
    return {
        "level": level,
        "python": f"{platform.python_version()} ({place.prefix})",
        "kernel": platform.release(),
        "arch": platform.machine(),
        "bwrap": f"{bwrap} {_first_line([bwrap, '--version'])}" if bwrap and level == "A" else None,
        "landlock": landlock.version() if level == "B" else None,
        "started_by_root": os.getuid() == 0,
        "runs_as": facts.get("uid"),
        "starts": facts.get("starts"),
        "probes": summary(findings),
        "not_enforced": WATCHED[level],
    }


def _prerequisites(level: str) -> None:
    if not sys.platform.startswith("linux"):
        raise SandboxError(
            f"programs are run on Linux alone, not on {sys.platform}; name a remote service: {SWITCH}=https://..."
        )
    if level == "A" and shutil.which("bwrap") is None:
        raise SandboxError(f"running programs needs bwrap, which is not on PATH: {GET_BWRAP}; {OTHERS}")
    if level == "B" and landlock.version() < 3:
        raise SandboxError(
            f"level B needs Landlock, version 3 or later (Linux 6.2), and finds version {landlock.version()}: "
            "boot a newer kernel with 'landlock' among its lsm=, or name a remote service"
        )


def refusal(level: str, failed: Finding) -> str:
    """What helps where a probe has failed."""
    if (
        level == "A"
        and failed.name == "start"
        and re.search("namespace|uid map|ermission|not permitted", failed.detail)
    ):
        return f"{OPEN_NAMESPACES}; {OTHERS}"
    if level == "A":
        found = f"the bwrap on PATH ({shutil.which('bwrap')}) does not start a confined Python or does not confine it"
        return f"{found}: {GET_BWRAP} and put it first on PATH; {OTHERS}"
    return "this system refuses what level B needs (seccomp with a listener, Landlock); name a remote service"


def examine(level: str, place: Place | None = None) -> tuple[Sandbox, list[Finding]]:
    """A sandbox of level ``A`` or ``B`` and what its probes found, good or bad; the caller closes it.

    Raises:
        SandboxError: what it needs is not there at all; the message says what helps.
    """
    if level not in ("A", "B"):
        raise SandboxError(f"{SWITCH}={level!r}: take A, B or the address of a service (https://...)")
    _prerequisites(level)
    place = place or own_place()
    box = Sandbox("A" if level == "A" else "B", place=place)
    try:
        findings = probe(box)
        box.record = _record(level, place, findings, box.pool().facts)
    except BaseException:
        box.close()
        raise
    return box, findings


def open_sandbox(choice: str | None = None, place: Place | None = None) -> Box:
    """The sandbox that ``choice`` names, proved by its probes: ``A``, ``B``, or a service's address.

    Raises:
        SandboxError: there is none, or a probe failed; the message says what helps.
    """
    choice = choice or os.environ.get(SWITCH) or "A"
    if choice.startswith(("http://", "https://")):
        from prismlab.verify.sandbox.remote import RemoteSandbox

        return RemoteSandbox(choice)
    box, findings = examine(choice, place)
    failed = next((one for one in findings if not one.ok), None)
    if failed is not None:
        box.close()
        raise SandboxError(
            f"the sandbox's level {choice} does not hold on this machine ({failed.name}: {failed.detail[:300]}): "
            f"{refusal(choice, failed)}"
        )
    return box


_shared: dict[tuple[int, str], Box] = {}
_lock = threading.Lock()


def shared_sandbox() -> Box:
    """The sandbox of this process, opened at the first call and closed at its end. Errors: as of
    :func:`open_sandbox`."""
    key = os.getpid(), os.environ.get(SWITCH) or "A"
    with _lock:
        if key not in _shared:
            box = _shared[key] = open_sandbox(key[1])
            atexit.register(box.close)
        return _shared[key]
