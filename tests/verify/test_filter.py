"""The seccomp filter, run by an interpreter of its instructions; the numbers of calls against the system's headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from prismlab.verify.sandbox import bpf, syscalls
from prismlab.verify.sandbox.notify import Answerer
from prismlab.verify.sandbox.template import SELF

TABLES = (
    syscalls.PLAIN
    | syscalls.PATHS
    | syscalls.IDENTITY
    | syscalls.SESSION
    | syscalls.SIGNALS
    | syscalls.OF_A_PROCESS
    | syscalls.FILES
    | syscalls.CHECKED
)
EPERM, ENOSYS, ESRCH = (bpf.ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.ESRCH))


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = bpf.AUDIT_ARCH["x86_64"]) -> int:
    """What the kernel would do: classic BPF over seccomp_data, by its documentation of the five instructions used."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    place, held = 0, 0
    while True:
        what, yes, no, value = code[place]
        place += 1
        if what == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        elif what == 0x06:
            return value
        else:
            met = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[what]
            place += yes if met else no


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("level", ["A", "B"])
def test_what_is_allowed_and_nothing_else(arch: str, level: str) -> None:
    program, column, kind = bpf.assemble(level, arch), arch == "aarch64", bpf.AUDIT_ARCH[arch]
    names = {pair[column]: name for name, pair in TABLES.items() if pair[column] is not None}
    for number in range(600):
        found = run(program, number, (1 << 20, 1 << 20, 1 << 20), kind)
        name = names.get(number)
        if name is None:
            assert found == ENOSYS, number
        elif name in syscalls.PLAIN or name in syscalls.SIGNALS:
            assert found == bpf.ALLOW, name
        elif name in syscalls.IDENTITY:
            assert found == (bpf.ALLOW if level == "A" else bpf.NOTIFY), name
        elif name in syscalls.OF_A_PROCESS:
            assert found == (bpf.ALLOW if level == "A" else ESRCH), name
        elif name in syscalls.SESSION or name in syscalls.FILES:
            assert found == (bpf.ALLOW if level == "A" else EPERM), name
    assert run(program, names_of("read")[column], arch=bpf.AUDIT_ARCH[("aarch64", "x86_64")[column]]) == bpf.KILL
    assert len(program) // 8 < 4096


def names_of(name: str) -> tuple[int, int]:
    x86, arm = TABLES[name]
    return x86, -1 if arm is None else arm


def call(name: str, *arguments: int, level: str = "A", only: int | None = None) -> int:
    return run(bpf.assemble(level, "x86_64", only), names_of(name)[0], arguments)


def test_arguments_that_decide() -> None:
    assert call("socket", 1, 1) == EPERM
    assert call("socketpair", 1, 1) == bpf.ALLOW
    assert call("socketpair", 2, 1) == EPERM
    assert call("socketpair", 1, 1 | 0x80000 | 0x800) == bpf.ALLOW
    # Of datagrams (SOCK_RAW is another name) and of packets each can be sent with an address of its own.
    for kind in (2, 3, 5, 2 | 0x80000):
        assert call("socketpair", 1, kind) == call("socketpair", 1, kind, level="B") == EPERM
    # A thread, a fork, vfork as glibc asks for them; then each new namespace alone.
    assert call("clone", 0x3D0F00) == bpf.ALLOW
    assert call("clone", 0x1200011) == bpf.ALLOW
    assert call("clone", 0x4111) == bpf.ALLOW
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x8000, 0x2000):
        assert call("clone", flag | 17) == EPERM, hex(flag)
    assert call("ioctl", 0, 0x5412) == bpf.ERRNO | errno.ENOTTY
    assert call("ioctl", 0, 0x5401) == bpf.ALLOW
    assert call("prctl", 15) == bpf.ALLOW
    assert call("prctl", 36) == EPERM
    assert call("prlimit64", 0, 7) == bpf.ALLOW
    assert call("prlimit64", 1, 7) == EPERM
    assert call("setpriority", 0, 0, 5) == bpf.ALLOW
    assert call("setpriority", 0, 77, 5) == EPERM
    assert call("setpriority", 1, 0, 5) == EPERM
    assert call("fcntl", 3, 8) == EPERM
    assert call("fcntl", 3, 1) == bpf.ALLOW
    assert call("openat", 0, 0, 0) == bpf.ALLOW
    assert call("openat", 0, 0, bpf.O_PATH, level="B") == bpf.ERRNO | errno.EACCES
    assert call("openat", 0, 0, 0o100, level="B") == bpf.NOTIFY
    assert run(bpf.assemble("A", "x86_64"), names_of("read")[0] | bpf.X32) == ENOSYS


def test_signals_only_to_oneself_where_nothing_else_keeps_them_in() -> None:
    assert call("kill", 4321, 9) == bpf.ALLOW
    for target, found in ((4321, bpf.ALLOW), (0, bpf.ALLOW), (4322, EPERM), (0xFFFFFFFF, EPERM), (1, EPERM)):
        for name in ("kill", "tkill", "tgkill"):
            assert call(name, target, 9, only=4321, level="B") == found


def test_at_level_b_other_processes_do_not_exist() -> None:
    for name in syscalls.OF_A_PROCESS:
        for target, found in ((0, bpf.ALLOW), (SELF, bpf.ALLOW), (1, ESRCH), (4321, ESRCH), (0xFFFFFFFF, ESRCH)):
            assert call(name, target, level="B") == found, (name, target)
            assert call(name, target, level="A") == bpf.ALLOW
    assert call("getpriority", 0, 0, level="B") == call("getpriority", 0, SELF, level="B") == bpf.ALLOW
    assert call("getpriority", 0, 4321, level="B") == ESRCH
    assert call("getpriority", 1, 0, level="B") == EPERM


@pytest.mark.parametrize(
    ("header", "column"),
    [("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0), ("/usr/include/asm-generic/unistd.h", 1)],
)
def test_numbers_are_those_of_the_headers(header: str, column: int) -> None:
    if not Path(header).is_file():
        pytest.skip(f"no {header}: the kernel's headers are not installed")
    text = Path(header).read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    # The generic table has some names behind another; these are what a 64-bit machine calls them.
    known |= {"newfstatat": known.get("fstatat", known.get("newfstatat", -1))} if column else {}
    compared = {name: pair[column] for name, pair in TABLES.items() if name in known}
    assert len(compared) > 100
    assert {name: number for name, number in compared.items() if number != known[name]} == {}
    missing = {name for name, pair in TABLES.items() if pair[column] is None}
    assert not missing & known.keys() - {"renameat"} if column else not missing


def test_paths_that_level_b_may_see() -> None:
    answerer = Answerer("/tmp/box/7", ["/usr/lib", "/dev/null"])
    for path in ("/tmp/box/7", "/tmp/box/7/a/b", "/usr/lib/python3", "/dev/null", "/usr/lib/../lib/x", "//usr/lib"):
        assert answerer.may("openat", path), path
    for path in (
        "/",
        "/tmp",
        "/tmp/box/8",
        "/tmp/box/70",
        "/usr",
        "/usr/lib/../../etc/passwd",
        "/dev/nullx",
        "/etc",
        "/tmp/box/7/../8",
    ):
        assert not answerer.may("openat", path), path
    assert answerer.may("newfstatat", "/tmp/box")
    assert not answerer.may("newfstatat", "/usr")
    assert not answerer.may("readlinkat", "/tmp")
