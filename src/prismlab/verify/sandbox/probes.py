"""Programs that try, inside, what a confined program must not be able to do, and the host's side of each attempt."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.verify.sandbox.box import Sandbox
from prismlab.verify.sandbox.outcome import Limits, Outcome
from prismlab.verify.sandbox.place import environment
from prismlab.verify.sandbox.start import HOME, NAMESPACES

TRY = r"""
import json, os, sys
canary, listener, abstract, parent = json.loads(sys.stdin.read())
found = {}
def attempt(name, action):
    try:
        found[name] = [True, str(action())[:80]]
    except BaseException as error:
        found[name] = [False, type(error).__name__]
def connect(family, address, kind=1):
    import socket
    s = socket.socket(family, kind)
    s.settimeout(1)
    s.connect(address)
def write(path):
    with open(path, "a") as file:
        file.write("x")
attempt("read", lambda: open(canary).read())
attempt("passwd", lambda: open("/etc/passwd").read())
attempt("exists", lambda: os.stat(canary))
attempt("list", lambda: os.listdir(os.path.dirname(canary)))
attempt("write", lambda: write(canary))
attempt("create", lambda: write(os.path.join(os.path.dirname(canary), "made")))
attempt("library", lambda: write(os.path.join(os.path.dirname(os.__file__), "made.py")))
attempt("signal", lambda: os.kill(parent, 0))
attempt("memory", lambda: open("/proc/%d/mem" % parent, "rb"))
attempt("environ", lambda: open("/proc/%d/environ" % parent, "rb").read())
attempt("tcp", lambda: connect(2, ("127.0.0.1", listener)))
attempt("udp", lambda: connect(2, ("127.0.0.1", listener), 2))
attempt("unix", lambda: connect(1, "\0" + abstract))
attempt("datagrams", lambda: __import__("socket").socketpair(1, 2))
attempt("memfd", lambda: os.memfd_create("x"))
attempt("namespace", lambda: __import__("ctypes").CDLL(None).unshare(0x10000000) and 1 / 0)
attempt("trace", lambda: __import__("ctypes").CDLL(None).ptrace(16, parent, 0, 0) and 1 / 0)
print(json.dumps([found, sorted(os.environ), os.getuid(), os.uname().nodename]))
"""
"""Every attempt must fail."""
SCRATCH = "open('a','w').write('x');print(open('a').read())"
FORKS = """
import os, time
n = 0
try:
    while n < 400:
        if os.fork() == 0:
            time.sleep(3); os._exit(0)
        n += 1
except OSError:
    pass
if n == 400:
    time.sleep(3)  # nothing has refused it: who only watches is given time to look
print(n)
"""
FILL = """
try:
    for n in range(400):
        with open(str(n), "wb") as file:
            file.write(b"x" * (1 << 20))
except OSError:
    pass
if n == 399:
    import time
    time.sleep(3)
print(n)
"""
GROUP = """
import os, time
for n in range(4):
    if os.fork() == 0:
        x = bytearray(60 << 20)
        for at in range(0, len(x), 4096): x[at] = n
        time.sleep(15); os._exit(0)
time.sleep(15)
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One probe."""

    name: str
    ok: bool
    detail: str


@contextlib.contextmanager
def _canaries() -> Iterator[tuple[str, socket.socket, socket.socket, str]]:
    with tempfile.TemporaryDirectory(prefix="prism-probe-") as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o777)
        canary = Path(folder) / "canary"
        canary.write_text("canary")
        canary.chmod(0o666)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = f"prism-probe-{os.getpid()}-{os.urandom(8).hex()}"
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("\0" + abstract)
        unix.listen()
        for one in (listener, unix):
            one.setblocking(False)
        yield str(canary), listener, unix, abstract


def _untouched(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


def _tried(box: Sandbox) -> list[Finding]:
    with _canaries() as (canary, listener, unix, abstract):
        asked = json.dumps([canary, listener.getsockname()[1], abstract, os.getpid()]).encode()
        done = box.run(TRY, asked, Limits(seconds=30.0))
        calm = _untouched(listener) and _untouched(unix) and Path(canary).read_text() == "canary"
        calm = calm and os.listdir(Path(canary).parent) == ["canary"]
    if done.status == "fault":
        return [Finding(name="start", ok=False, detail=done.reason)]
    try:
        found, names, uid, node = json.loads(done.stdout)
        worked = sorted(name for name, (success, _) in found.items() if success)
        tried = len(found)
    except (ValueError, TypeError):
        return [Finding(name="start", ok=False, detail=f"the probe ended with {done.status} {done.reason}")]
    known = sorted(environment(HOME))
    return [
        Finding(
            name="attempts", ok=not worked, detail=", ".join(worked) + " worked" if worked else f"all {tried} failed"
        ),
        Finding(
            name="host untouched",
            ok=calm,
            detail="files and listeners as they were" if calm else "something came through",
        ),
        Finding(name="environment", ok=names == known, detail=", ".join(names)[:200]),
        Finding(name="identity", ok=(uid, node) == (1000, "sandbox"), detail=f"user {uid} on {node!r}"),
    ]


def _outside(box: Sandbox) -> list[Finding]:
    """Level A: the namespaces of a waiting worker, looked at from here, where no program can pretend."""
    from prismlab.verify.sandbox.session import Session

    session = Session(box.pool().take(), {"mode": "io", "source": "import time;time.sleep(5)"}, b"", Limits(), {})
    try:
        while session.final is None and (session.accepted is None or session.inside is None):
            session.step()
        if session.inside is None:
            return [Finding(name="namespaces", ok=False, detail=session.finish().reason or "the worker ended")]
        shared = []
        for name in ("mnt", *NAMESPACES):
            try:
                if os.readlink(f"/proc/{session.inside}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}"):
                    shared.append(name)
            except OSError as error:
                shared.append(f"{name} ({error.strerror})")
    finally:
        session.stop()
    detail = f"{', '.join(shared)} shared with the host" if shared else f"{len(NAMESPACES) + 1} of its own"
    return [Finding(name="namespaces", ok=not shared, detail=detail)]


def _limits(box: Sandbox) -> list[Finding]:
    # Times are ample: a machine that is busy confines no worse.
    def stopped(name: str, done: Outcome, ok: bool) -> Finding:
        return Finding(name=name, ok=ok, detail=done.reason or done.stdout[:40].decode("utf-8", "replace").strip())

    slow = box.run("while True: pass", b"", Limits(seconds=0.2))
    big = box.run("x = bytearray(300 << 20)", b"", Limits(memory=128))
    forks = box.run(FORKS, b"", Limits(seconds=20.0, processes=20))
    group = box.run(GROUP, b"", Limits(seconds=20.0, memory=128))
    fill = box.run(FILL, b"", Limits(seconds=30.0, scratch=16 if box.level == "B" else box.scratch))
    flood = box.run("while True: print('x' * 65536)", b"", Limits(output=1))
    many = forks.status == "processes" or (forks.stdout.strip().isdigit() and int(forks.stdout) <= 20)
    full = fill.status == "scratch" or (fill.stdout.strip().isdigit() and int(fill.stdout) <= box.scratch)
    return [
        stopped("wall clock", slow, slow.status == "time" and slow.seconds < 20.0),
        stopped("memory of a process", big, big.status == "memory"),
        stopped("memory of a group", group, group.status == "memory"),
        stopped("processes", forks, many and forks.status != "fault"),
        stopped("files", fill, full and fill.status != "fault"),
        stopped("output", flood, flood.status == "output"),
    ]


def probe(box: Sandbox) -> list[Finding]:
    """Put a sandbox to the proof. The first finding that is not ``ok`` says why it must not be used."""
    found = _tried(box)
    if not all(one.ok for one in found):
        return found
    if box.level == "A":
        found += _outside(box)
    return found + _limits(box)


def summary(findings: list[Finding]) -> dict[str, Any]:
    """As it stands in the record."""
    return {one.name: one.detail if one.ok else f"FAILED: {one.detail}" for one in findings}
