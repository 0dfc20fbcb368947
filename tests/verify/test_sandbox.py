"""The sandbox, driven by real processes: hostile programs at every level and for both kinds of user, and its own
faults."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from drive import EACH
from hostile_programs import ANSWER, STAY
from sandbox_service import over, serving

from prismlab.errors import SandboxError
from prismlab.verify.sandbox import landlock, remote
from prismlab.verify.sandbox.box import Sandbox
from prismlab.verify.sandbox.outcome import Limits
from prismlab.verify.sandbox.probe import INSTALL, SWITCH, examine, open_sandbox, shared_sandbox
from prismlab.verify.sandbox.start import CLEANER
from prismlab.verify.sandbox.watch import parent_of

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1].parent / "shared" / "data" / "hostile" / "sample.jsonl"
ORDINARY = 65534
INPUT, SUM = b"12 30\n", b"42\n"
LONG = Limits(seconds=60.0)
"""For a program that ends by itself: a machine may be busy."""


def trouble(level: str) -> str:
    """Why this machine truly cannot have a level; empty where it can."""
    if not sys.platform.startswith("linux"):
        return "Linux alone"
    if level == "A" and shutil.which("bwrap") is None:
        return f"no bwrap: {INSTALL}"
    if level == "A" and subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]).returncode:
        return "user namespaces are not allowed here"
    return "no Landlock of version 3" if level == "B" and landlock.version() < 3 else ""


WHY = {level: trouble(level) for level in "AB"} | {"C": ""}
LEVELS = [pytest.param(level, marks=pytest.mark.skipif(bool(WHY[level]), reason=WHY[level])) for level in "AB"]


def soon(check: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether ``check`` comes true; the time is one that no machine needs, however busy."""
    until = time.monotonic() + seconds
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def descriptors(pid: int | str = "self") -> int:
    """How many are open; of this process, without those of objects that nobody holds any more."""
    if pid == "self":
        gc.collect()
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture(params=LEVELS)
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param) as made:
        yield made


def python_of(user: int) -> str:
    """A Python that this user may start: this one, or the system's."""
    for program in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        check = [program, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if not subprocess.run(check, user=user, extra_groups=[], cwd="/", capture_output=True).returncode:
                return program
        except OSError:
            continue
    pytest.skip("no Python of 3.11 or later that an ordinary user may start")


def driven(level: str, *, ordinary: bool, seconds: float, address: str = "") -> dict[str, Any]:
    """What became of all programs, in a process of its own."""
    root = os.getuid() == 0
    if not ordinary and not root:
        pytest.skip("these tests do not run as root")
    drop: dict[str, Any] = {"user": ORDINARY, "group": ORDINARY, "extra_groups": []} if ordinary and root else {}
    program = python_of(ORDINARY) if drop else sys.executable
    command = [
        program,
        str(HERE / "drive.py"),
        address or level,
        str(seconds),
        *([str(SAMPLE)] if SAMPLE.is_file() else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]}, **drop)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the keeper has complained"
    return json.loads(done.stdout)


def judged(found: dict[str, Any]) -> None:
    bad = []
    for row in found["rows"]:
        status, expected = row["status"], row["expected"]
        wrong = row["leak"] or status == "fault" or " and " in status
        wrong |= status == "right" if expected == "not right" else expected not in ("", "any", status)
        if wrong:
            bad.append(row)
    assert not bad, "\n".join(map(str, bad))
    assert len(found["rows"]) > 320
    assert all("FAILED" not in text for text in found["record"].get("probes", {}).values())


FAST = [("A", False), ("B", True)]


@pytest.mark.parametrize(("level", "ordinary"), FAST)
def test_hostile_programs_earn_nothing_and_reach_nothing(level: str, ordinary: bool) -> None:
    if WHY[level]:
        pytest.skip(WHY[level])
    judged(driven(level, ordinary=ordinary, seconds=0.7))


@pytest.mark.slow
@pytest.mark.parametrize(("level", "ordinary"), [("A", True), ("B", False)])
def test_hostile_programs_of_the_other_user(level: str, ordinary: bool) -> None:
    if WHY[level]:
        pytest.skip(WHY[level])
    judged(driven(level, ordinary=ordinary, seconds=2.0))


@pytest.mark.slow
@pytest.mark.parametrize("ordinary", [False, True])
def test_hostile_programs_without_a_template(ordinary: bool) -> None:
    if WHY["A"]:
        pytest.skip(WHY["A"])
    found = driven(EACH, ordinary=ordinary, seconds=2.0)
    assert found["record"]["starts"] == "a bwrap for each program (as asked for)"
    judged(found)


@pytest.mark.skipif(bool(WHY["A"]), reason=WHY["A"])
def test_where_bwrap_alone_may_make_namespaces_each_program_has_one(open_folder: Path, monkeypatch: Any) -> None:
    """As under AppArmor's profile of bwrap: what it starts gets no capability in its namespace."""
    bare = f'exec env -u SHLVL -u _ -u OLDPWD {shutil.which("bwrap")} "${{@/CAP_SYS_ADMIN/CAP_SYS_NICE}}"'
    monkeypatch.setenv("PATH", fake(open_folder, bare, shell="/bin/bash"))
    made, findings = examine("A")
    try:
        assert all(one.ok for one in findings), findings
        assert made.record["starts"] == "a bwrap for each program ([Errno 1] mount namespace: Operation not permitted)"
        assert made.calls("def add(a, b): return a + b", "add", [([2, 3], 5)], LONG).verdict == "passed"
        assert made.run("while 1: pass", b"", Limits(seconds=0.2)).status == "time"
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(WHY["A"]), reason=WHY["A"])
def test_a_service_is_held_to_the_same() -> None:
    with Sandbox("A") as inner, serving(over(inner)) as address:
        found = driven("C", ordinary=os.getuid() != 0, seconds=2.0, address=address)
    assert found["record"]["level"] == "C"
    judged(found)


def descendants(pid: int) -> set[int]:
    """Processes whose parents lead to ``pid``."""
    parents = {int(name): parent_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208
    found: set[int] = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def waiting_only(made: Sandbox) -> bool:
    """Whether the keeper has no process but the template (level A: behind bwrap) and workers that wait: at level A the
    first process of a namespace, and Python."""
    pool = made.pool()
    each, besides = (2, 2) if made.level == "A" else (1, 1)
    return len([pid for pid in descendants(pool.keeper.pid) if not cleans(pid)]) <= len(pool.waiting) * each + besides


def cleans(pid: int) -> bool:
    """Whether a process removes what a program has left: the keeper's own, after the verdict."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().strip() == CLEANER
    except OSError:
        return True  # gone meanwhile


@pytest.mark.parametrize(
    "program", [one for one in STAY if one.name not in ("empty files", "disk", "memory")], ids=lambda p: p.name
)
def test_nothing_stays(box: Sandbox, program: Any) -> None:
    box.run(program.source, INPUT, Limits(seconds=0.4, memory=256))
    assert soon(lambda: waiting_only(box))
    # Also of one that is asked nothing more, and for the next one nothing has changed.
    assert box.run(ANSWER, INPUT, LONG).stdout == SUM


def test_no_datagram_reaches_a_socket_of_the_host(box: Sandbox, open_folder: Path) -> None:
    """A socket with a path that everybody may write to, as that of the system's log, and one without."""
    program = """
import socket
for kind in (1, 2, 3, 5):
    try:
        one, _ = socket.socketpair(socket.AF_UNIX, kind)
    except OSError:
        continue
    for name in NAMES:
        for send in (lambda: one.sendto(b"x", name), lambda: one.sendmsg([b"x"], [], 0, name)):
            try:
                send()
                print(kind, name)
            except OSError:
                pass
"""
    path, abstract = str(open_folder / "log"), f"\0prism-test-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2)]
        for one, name in zip(sockets, (path, abstract), strict=True):
            one.bind(name)
            one.setblocking(False)
        Path(path).chmod(0o777)
        done = box.run(program.replace("NAMES", repr((path, abstract))), b"", Limits(seconds=20.0))
        assert (done.status, done.stdout, done.stderr) == ("ended", b"", b"")
        for one in sockets:
            with pytest.raises(BlockingIOError):
                one.recv(9)


def test_a_verdict_comes_in_time(box: Sandbox) -> None:
    """How soon after the limit is measured by ``benchmarks/sandbox.py``; here, that it comes before the program's end,
    which never comes."""
    box.run(ANSWER, INPUT)
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert box.run("while 1: pass", b"", Limits(seconds=0.3)).status == "time"
        took.append(time.monotonic() - began)
    assert min(took) < 60


def test_a_verdict_comes_in_time_on_a_busy_machine(box: Sandbox) -> None:
    """Two other processes never give a core away, and four programs with many processes each end together."""
    box.run(ANSWER, INPUT, LONG)
    forks = "import os\nfor _ in range(4): os.fork()\nwhile 1: pass"
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while 1: pass"]) for _ in range(2)]
    try:
        late: list[float] = []
        with ThreadPoolExecutor(4) as threads:
            for source in ("while 1: pass", forks):
                done = threads.map(lambda one: box.run(one, b"", Limits(seconds=1.0)), [source] * 4)
                late += [one.seconds - 1.0 for one in done]
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert len(late) == 8
    assert min(late) >= 0.0
    assert max(late) < 60, late


def holds_files(folder: Path) -> bool:
    """Whether any program's folder holds something; one may go while it is looked at."""
    with contextlib.suppress(FileNotFoundError):
        return any(True for one in folder.iterdir() for _ in one.iterdir())
    return True


def test_what_a_program_leaves_keeps_nobody_waiting() -> None:
    """Level B: folders are removed beside the keeper's loop."""
    if WHY["B"]:
        pytest.skip(WHY["B"])
    litter = "import os\nfor n in range(300):\n open(str(n), 'w').close()\nos.mkdir('d')\nprint(len(os.listdir('.')))"
    with Sandbox("B") as made:
        folder = Path(made.pool().facts["folder"])
        assert made.run(litter, b"", LONG).stdout == b"301\n"
        assert made.run(ANSWER, INPUT, LONG).stdout == SUM
        assert soon(lambda: not holds_files(folder))
    assert not folder.exists()


def test_forks_of_one_template_share_no_chance_and_no_change(box: Sandbox) -> None:
    draw = "import random, os, uuid, secrets\nprint(random.random(), os.urandom(4), uuid.uuid4(), secrets.token_hex(4))"
    change = (
        "import json, builtins, os\nprint(hasattr(json, 'x'), 'X' in os.environ)\njson.x = 1\nos.environ['X'] = '1'"
    )
    assert len({box.run(draw, b"", LONG).stdout for _ in range(5)}) == 5
    assert {box.run(change, b"", LONG).stdout for _ in range(5)} == {b"False False\n"}


def test_no_exception_of_a_program_ends_the_tests_early(box: Sandbox) -> None:
    """``map`` takes a StopIteration of what it calls for its own end: then nothing more is compared."""
    tests = "assert all(map(lambda pair: add(*pair) == sum(pair), [(1, 2), (3, 4)]))"
    assert box.tests("def add(a, b): return a + b", tests, limits=LONG).verdict == "passed"
    for source in ("def add(a, b): raise StopIteration", "class E(StopIteration): pass\ndef add(a, b): raise E"):
        judged = box.tests(source, tests, limits=LONG)
        assert judged.verdict == "failed"
        assert "the program raised" in judged.reason


def test_large_output_within_the_limit(box: Sandbox) -> None:
    done = box.run("print('x' * (4 << 20), end='')", b"", LONG)
    assert (done.status, len(done.stdout)) == ("ended", 4 << 20)
    assert box.run("print('x' * (4 << 20))", b"", LONG).status == "output"
    text = "\U0001f600 \u4e2d\u6587 \u0627"
    assert box.run("print(input()[::-1])", text.encode(), LONG).stdout.decode() == text[::-1] + "\n"


def test_five_hundred_runs_leave_nothing(box: Sandbox) -> None:
    def state() -> tuple[int, int, int]:
        keeper = box.pool().keeper.pid
        statm = Path(f"/proc/{keeper}/statm").read_text().split()
        return descriptors(), descriptors(keeper), int(statm[1])

    def some(count: int) -> None:
        for number in range(count):
            done = box.run(ANSWER if number % 10 else "1/0", INPUT, LONG)
            assert done.status == ("ended" if number % 10 else "failed"), done

    some(50)
    assert soon(lambda: waiting_only(box))
    before = state()
    some(450 if box.level == "A" else 150)
    assert soon(lambda: waiting_only(box))
    # A worker that is starting has some descriptors that one that waits has not.
    assert soon(lambda: state()[1] <= before[1] + 3), (before, state())
    after = state()
    assert after[0] == before[0]
    assert after[2] <= before[2] * 1.05 + 64


def test_many_threads_share_it(box: Sandbox) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for more in range(5):
            done = box.run(ANSWER, f"{number} {more}\n".encode(), LONG)
            if done.stdout != f"{number + more}\n".encode():
                wrong.append(done)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_process_limit_is_one_programs_own(box: Sandbox) -> None:
    forks = "import os,time\nk=0\nfor i in range(10):\n if os.fork()==0:time.sleep(.5);os._exit(0)\n k+=1\nprint(k)"
    said: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: said.append(box.run(forks, b"", Limits(seconds=60.0, processes=16)).stdout))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [b"10\n"] * 10


def test_a_fault_of_ours_is_no_failure_of_the_program(box: Sandbox) -> None:
    box.run(ANSWER, INPUT)
    keeper = box.pool().keeper.pid
    # Workers that died while they waited: others take their places.
    for one in descendants(keeper):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    done = box.run(ANSWER, INPUT, LONG)
    assert (done.status, done.stdout) == ("ended", SUM)
    # The keeper killed in the middle of a run: started again, and the run with it.
    killer = threading.Timer(0.3, lambda: os.kill(keeper, signal.SIGKILL))
    killer.start()
    done = box.run("import time;time.sleep(1)\n" + ANSWER, INPUT, LONG)
    killer.join()
    assert (done.status, done.stdout) == ("ended", SUM)
    assert box.pool().keeper.pid != keeper


@pytest.mark.parametrize("level", LEVELS)
def test_workers_of_many_cores_that_died_while_they_waited_cost_one_attempt(level: str) -> None:
    """The keeper tells of one after another, so that more of them may look alive than a run has attempts."""
    with Sandbox(level, warm=48) as made:
        made.run(ANSWER, INPUT)
        for _ in range(3):
            for one in descendants(made.pool().keeper.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            done = made.run(ANSWER, INPUT, LONG)
            assert (done.status, done.stdout) == ("ended", SUM), done


def test_no_worker_to_be_had_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sandbox("B")

    def none() -> None:
        raise SandboxError("no keeper")

    monkeypatch.setattr(made, "pool", none)
    assert made.run(ANSWER, INPUT).status == "fault"
    assert made.calls("def f(): return 1", "f", [([], 1)]).verdict == "no_verdict"
    assert made.tests("def f(): return 1", "assert f() == 1").verdict == "no_verdict"


def test_when_the_parent_is_killed_nothing_is_left() -> None:
    if WHY["A"]:
        pytest.skip(WHY["A"])
    code = (
        "from prismlab.verify.sandbox.box import Sandbox\n"
        "from prismlab.verify.sandbox.outcome import Limits\n"
        "box = Sandbox('A'); box.run('1'); print(box.pool().keeper.pid, flush=True)\n"
        "box.run('import time;time.sleep(600)', b'', Limits(seconds=600.0))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        keeper = int(parent.stdout.readline())
        assert soon(lambda: len(descendants(keeper)) > 2)
        time.sleep(0.3)
        left = {keeper, *descendants(keeper)}
        parent.kill()
    assert soon(lambda: not any(map(alive, left))), [pid for pid in left if alive(pid)]


def test_when_the_keeper_is_killed_nothing_is_left(box: Sandbox) -> None:
    """Neither the template nor a program, also one that began a moment ago."""
    for pause in (0.0, 0.02, 0.3):
        box.run(ANSWER, INPUT, LONG)
        keeper = box.pool().keeper.pid
        left: set[int] = set()

        def kill(wait: float = pause, pid: int = keeper, seen: set[int] = left) -> None:
            time.sleep(wait)
            soon(lambda: len(descendants(pid)) > 2)
            seen |= descendants(pid)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        done = box.run("import time;time.sleep(1)\n" + ANSWER, INPUT, LONG)
        killer.join()
        assert (done.status, done.stdout) == ("ended", SUM)
        assert len(left) > 2
        assert soon(lambda pids=left: not any(map(alive, pids))), [pid for pid in left if alive(pid)]


def alive(pid: int) -> bool:
    """Whether a process runs; what has ended and waits for its parent to ask is no longer alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_fork_gets_a_keeper_of_its_own(box: Sandbox) -> None:
    box.run(ANSWER, INPUT)
    keeper = box.pool().keeper.pid
    child = os.fork()
    if not child:
        good = box.run(ANSWER, INPUT, LONG).stdout == SUM and box.pool().keeper.pid != keeper
        box.close()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert box.run(ANSWER, INPUT, LONG).stdout == SUM
    assert box.pool().keeper.pid == keeper


def test_limits_are_kept_to_and_told(box: Sandbox) -> None:
    for program, limits, status in [
        ("x = bytearray(300 << 20)", Limits(seconds=60.0, memory=128), "memory"),
        ("print('x' * (2 << 20))", Limits(seconds=60.0, output=1), "output"),
        ("import os;os.abort()", LONG, "crashed"),
        ("import time;time.sleep(9)", Limits(seconds=0.2), "time"),
        ("1/0", LONG, "failed"),
    ]:
        done = box.run(program, b"", limits)
        assert (done.status, bool(done.reason)) == (status, True), done
    with pytest.raises(SandboxError, match="asks for 999 MB of files"):
        box._session({}, b"", Limits(scratch=999))


def test_input_is_read_to_its_end_and_need_not_be(box: Sandbox) -> None:
    large = b"1 " * 500_000
    assert box.run("import sys;print(sum(map(int,sys.stdin.read().split())))", large, LONG).stdout == b"500000\n"
    assert box.run("print(7)", large, LONG).stdout == b"7\n"
    assert box.run("import os;os.close(0);print(7)", large, LONG).stdout == b"7\n"


# Environments -------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the user whom the keeper becomes can enter, which ``tmp_path`` is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def fake(folder: Path, text: str, shell: str = "/bin/sh") -> str:
    program = folder / "bwrap"
    program.write_text(f"#!{shell}\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "text",
    ['exec "$@"', 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "exit 0", "sleep 0.1; exit 1"],
    ids=["runs its options", "isolates nothing", "does nothing", "fails"],
)
def test_a_bwrap_that_lies_is_found_out(open_folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PATH", fake(open_folder, text))
    monkeypatch.delenv(SWITCH, raising=False)
    with pytest.raises(SandboxError, match=r"level A does not hold on this machine .*PRISM_SANDBOX=B"):
        open_sandbox()


def test_a_bwrap_that_isolates_nothing_is_found_out_by_the_probes(open_folder: Path) -> None:
    """With the system's Python, whose place inside is its place outside: the program does run, and reaches
    everything."""
    if sys.version_info < (3, 11) or not Path("/usr/bin/python3").exists():
        pytest.skip("no system Python")
    code = "from prismlab.verify.sandbox.probe import examine;print([f.name for f in examine('A')[1] if not f.ok])"
    path = fake(open_folder, 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    variables = {"PATH": path, "PYTHONPATH": str(HERE.parents[1] / "src")}
    done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, env=variables)
    if "SyntaxError" in done.stderr or "ImportError" in done.stderr:
        pytest.skip("the system's Python is too old")
    assert "attempts" in done.stdout, done


def test_without_bwrap_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    with pytest.raises(SandboxError, match=rf"needs bwrap.*{INSTALL}.*PRISM_SANDBOX=B"):
        open_sandbox()


def test_namespaces_refused_name_the_remedy(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake(open_folder, "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"))
    with pytest.raises(SandboxError, match=r"uid map: Permission denied.*apparmor_restrict_unprivileged_userns=0"):
        open_sandbox("A")


def test_another_level_is_never_taken_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(SWITCH, "A")
    monkeypatch.setattr("prismlab.verify.sandbox.probe._shared", {})
    with pytest.raises(SandboxError):
        shared_sandbox()
    monkeypatch.setenv(SWITCH, "none")
    with pytest.raises(SandboxError, match="take A, B or the address"):
        open_sandbox()
    monkeypatch.setattr(landlock, "version", lambda: 1)
    with pytest.raises(SandboxError, match="Landlock, version 3"):
        open_sandbox("B")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="Linux alone"):
        open_sandbox("A")


@pytest.mark.parametrize("level", LEVELS)
def test_the_probes_hold_and_their_record_comes_with_every_result(level: str) -> None:
    made, findings = examine(level)
    try:
        assert all(one.ok for one in findings), findings
        record = made.run(ANSWER, INPUT).record
    finally:
        made.close()
    assert record["level"] == level
    assert {"attempts", "wall clock", "memory of a group", "processes"} <= record["probes"].keys()
    assert any("not enforced" in text for text in record["not_enforced"])


@pytest.mark.skipif(bool(WHY["A"]) or os.getuid() != 0, reason="only root can be given up")
def test_root_is_given_up_before_a_program_runs() -> None:
    with Sandbox("A") as made:
        made.run(ANSWER, INPUT)
        keeper = made.pool().keeper.pid
        users = {pid: user_ids(pid) for pid in (keeper, *descendants(keeper))}
    assert "0" in (user_ids(os.getpid()) or ()), "the test itself is root"
    known = {pid: ids for pid, ids in users.items() if ids is not None}
    assert keeper in known
    assert len(known) > 2, "besides the keeper its template and a worker that waits"
    assert not {pid: ids for pid, ids in known.items() if "0" in ids}


def user_ids(pid: int) -> list[str] | None:
    """Real, effective, saved and file system user of a process; None for one that has gone meanwhile."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # what removes a program's files ends when it has done so
        return None
    return next(line for line in status.splitlines() if line.startswith("Uid")).split()[1:]


# Level C --------------------------------------------------------------------------------------------------------------


def service(said: Any, status: int = 200) -> Any:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (200, {"protocol": 1, "level": "test"}) if path == "/v1/record" else (status, said)

    return answer


WROTE = {"stdout": "", "stderr": "", "seconds": 0.1, "peak": 0}


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({}, 200),
        ({}, 500),
        ({}, 404),
        (b"<html>", 200),
        (b"[" * 100_000, 200),
        ([1], 200),
        ({"status": "right", "code": 0, **WROTE}, 200),
        ({"status": "ended", "code": 3, **WROTE}, 200),
        ({"status": "ended", "code": 0, **WROTE, "stdout": "?"}, 200),
        ({"status": "ended", "code": 0, "stdout": "", "stderr": ""}, 200),
        (b" " * (20 << 20), 200),
        ({"status": "fault", "reason": "busy"}, 200),
        ({"verdict": "right"}, 200),
    ],
)
def test_faults_of_a_service_are_no_verdict(said: Any, status: int) -> None:
    with serving(service(said, status)) as address:
        far = remote.RemoteSandbox(address, pause=0.001)
        assert far.run(ANSWER, INPUT).status == "fault"
        assert far.calls("def f(): return 1", "f", [([], 1)]).verdict == "no_verdict"
        assert far.tests("def f(): return 1", "assert f() == 1").verdict == "no_verdict"
    assert far.run(ANSWER, INPUT).status == "fault", "nobody listens any more"


def test_a_slow_service_is_given_up() -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/record":
            time.sleep(1.0)
        return 200, {"protocol": 1}

    with serving(answer) as address:
        far = remote.RemoteSandbox(address, margin=0.05, pause=0.001)
        assert far.run(ANSWER, INPUT, Limits(seconds=0.05)).status == "fault"


def test_a_service_is_asked_again_and_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(str(body["headers"].get("Authorization")))
        if path == "/v1/record":
            return 200, {"protocol": 1}
        return (503, {}) if len(seen) < 3 else (200, {"status": "ended", "code": 0, **WROTE, "stdout": "NDIK"})

    monkeypatch.setenv(remote.TOKEN, "secret")
    with serving(answer) as address:
        assert remote.RemoteSandbox(address, pause=0.001).run(ANSWER, INPUT).stdout == SUM
    assert seen == ["Bearer secret"] * 3


def test_what_is_expected_is_not_sent_to_a_service() -> None:
    bodies: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        bodies.append(json.dumps(body))
        return (200, {"protocol": 1}) if path == "/v1/record" else (200, {"status": "ended", "values": [[777], None]})

    with serving(answer) as address:
        far = remote.RemoteSandbox(address)
        assert far.calls("x", "f", [([1], 777), ([2], 777)]).reason == "case 1: it gave no value"
        assert far.calls("x", "f", [([1], 777), ([2], 888)]).verdict == "failed"
        assert far.calls("x", "f", [([1], 555), ([2], 777)]).reason == "case 0: another value"
    assert not any("777" in body or "888" in body for body in bodies)


def test_a_service_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    with pytest.raises(SandboxError, match="does not answer"):
        remote.RemoteSandbox("http://127.0.0.1:9", pause=0.001)
    with serving(lambda path, body: (200, {"protocol": 9})) as address, pytest.raises(SandboxError, match="protocol 9"):
        open_sandbox(address)


def test_no_limit_of_this_process_is_changed(box: Sandbox) -> None:
    before = [resource.getrlimit(n) for n in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE)]
    box.run(ANSWER, INPUT)
    assert before == [
        resource.getrlimit(n) for n in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE)
    ]


def test_an_interrupted_caller_leaves_nothing(box: Sandbox) -> None:
    box.run(ANSWER, INPUT)
    before = descriptors()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(KeyboardInterrupt):
            box.run("import time;time.sleep(600)", b"", Limits(seconds=600.0))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, kept)
    assert soon(lambda: waiting_only(box))
    assert descriptors() == before
