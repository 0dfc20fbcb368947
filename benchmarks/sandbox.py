"""The sandbox and the verifiers: speed, growth over many runs, real tasks, broken programs, hostile programs.

    python benchmarks/sandbox.py --data ../shared/data --out benchmarks/results/sandbox.json

``--only speed late growth tasks broken maths hostile`` chooses parts. Speeds want a quiet machine: the load beside them
says whether it was one. ``--data`` holds ``code/`` (HumanEval, MBPP, CodeContests), ``math/`` (GSM8K) and
``hostile/sample.jsonl``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from prismlab.data.rows import Row
from prismlab.data.tests import read_tests
from prismlab.verify.code import judge_tests
from prismlab.verify.math_pool import shared_pool
from prismlab.verify.maths import judge_math
from prismlab.verify.sandbox.box import Sandbox
from prismlab.verify.sandbox.outcome import Limits
from prismlab.verify.sandbox.watch import parent_of

TESTS = Path(__file__).resolve().parents[1] / "tests" / "verify"
sys.path.insert(0, str(TESTS))

from contest_solutions import SOLUTIONS  # noqa: E402
from mutants import variants  # noqa: E402

LEVELS: tuple[Literal["A", "B"], ...] = ("A", "B")
SUM = "a,b=map(int,input().split());print(a+b)"
TICKS = os.sysconf("SC_CLK_TCK")


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load() -> float:
    """Processes that want a core, of the last minute."""
    return os.getloadavg()[0]


def quiet_python(count: int = 40) -> float:
    """Milliseconds, median, to start this Python and leave it again: what the machine itself costs now."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run([os.path.realpath(sys.executable), "-S", "-c", "0"], check=True)
        took.append(time.perf_counter() - began)
    return round(statistics.median(took) * 1e3, 2)


def cpu_below(pid: int) -> float:
    """CPU seconds of a process, of its living descendants, and of the children of all these that have ended."""
    found: dict[int, tuple[int, int]] = {}
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                fields = (one / "stat").read_text().rpartition(")")[2].split()
                found[int(one.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family = [pid]
    for member in family:
        family += [child for child, (parent, _) in found.items() if parent == member]
    return sum(found[member][1] for member in family) / TICKS


def timed(box: Sandbox, runs: int, threads: int) -> dict[str, Any]:
    """Warm runs: the median from call to verdict, runs a second, CPU a run."""

    def one(number: int) -> float:
        began = time.perf_counter()
        done = box.run(SUM, f"{number} 7\n".encode(), Limits(seconds=20.0))
        assert done.stdout == f"{number + 7}\n".encode(), done
        return time.perf_counter() - began

    for number in range(10):
        one(number)
        time.sleep(0.05)
    keeper = box.pool().keeper.pid
    cpu, own, began = cpu_below(keeper), time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        took = list(pool.map(one, range(runs)))
    seconds = time.perf_counter() - began
    return {
        "threads": threads,
        "runs": runs,
        "median_ms": round(statistics.median(took) * 1e3, 2),
        "p95_ms": round(sorted(took)[int(0.95 * runs)] * 1e3, 2),
        "runs_per_second": round(runs / seconds, 1),
        "cpu_ms_per_run": round((cpu_below(keeper) - cpu + time.process_time() - own) / runs * 1e3, 2),
    }


def spaced(box: Sandbox, runs: int) -> dict[str, Any]:
    """One run at a time with a pause before it: the worker is warm, nothing else runs."""
    took = []
    for number in range(runs):
        time.sleep(0.06)
        began = time.perf_counter()
        assert box.run(SUM, b"1 2\n", Limits(seconds=20.0)).status == "ended", number
        took.append(time.perf_counter() - began)
    return {"runs": runs, "median_ms": round(statistics.median(took) * 1e3, 2)}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Latency and throughput at both levels."""
    out: dict[str, Any] = {"load_before": load(), "python_start_ms": quiet_python()}
    for level in LEVELS:
        with Sandbox(level, warm=4) as box:
            out[level] = {"warm": spaced(box, 100), "throughput": [timed(box, 400, threads) for threads in (1, 2, 4)]}
    return {**out, "load_after": load()}


def state(box: Sandbox) -> dict[str, dict[str, int]]:
    """Descriptors and resident memory (KB) of this process and of those that live as long as the sandbox: the keeper
    and its template, the only one of its descendants that no later run replaces."""
    keeper = box.pool().keeper.pid
    parents = {int(one.name): parent_of(int(one.name)) for one in Path("/proc").iterdir() if one.name.isdigit()}
    template = min((pid for pid, parent in parents.items() if parent == keeper), key=started)
    inner = [pid for pid, parent in parents.items() if parent == template]  # level A: behind bwrap
    found = {}
    for name, pid in (("here", os.getpid()), ("keeper", keeper), ("template", inner[0] if inner else template)):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        found[name] = {"descriptors": descriptors, "resident_kb": pages * 4}
    return found


def started(pid: int) -> int:
    """When a process was started, in clock ticks of the machine."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 1 << 62


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """Descriptors and memory after 500 runs and after ``--runs`` of them, in percent of the first."""
    out: dict[str, Any] = {"runs": args.runs}
    for level in LEVELS:
        with Sandbox(level) as box, ThreadPoolExecutor(4) as threads:

            def some(count: int) -> dict[str, dict[str, int]]:
                for _ in range(count // 100):  # thousands of futures at once would themselves be the growth
                    done = threads.map(lambda _: box.run(SUM, b"1 2\n", Limits(seconds=30.0)).status, range(100))
                    assert set(done) == {"ended"}
                time.sleep(1.0)
                return state(box)

            before, began = some(500), time.perf_counter()
            after = some(args.runs - 500)
            grown = {
                name: {what: round(100 * (after[name][what] / was - 1), 2) for what, was in values.items()}
                for name, values in before.items()
            }
            rate = round((args.runs - 500) / (time.perf_counter() - began - 1.0), 1)
            out[level] = {"after_500": before, "after_all": after, "grown_percent": grown, "runs_per_second": rate}
    return out


ENDLESS = {
    "spins": "while 1: pass",
    "sleeps": "import time;time.sleep(60)",
    "threads": "import threading\ndef f():\n while 1: pass\nfor _ in range(8): threading.Thread(target=f).start()",
    "processes": "import os\nfor _ in range(5): os.fork()\nwhile 1: pass",
    "memory": "x = bytearray(300 << 20)\nwhile 1: pass",
    "files": "n = 0\nwhile 1:\n open(str(n % 3000), 'wb').close();n += 1",
    "output": "import os\nwhile 1:\n os.write(1, b'x')\n for _ in range(20000): pass",
}


def late(args: argparse.Namespace) -> dict[str, Any]:
    """How long after its limit (0.5 s) the verdict on a program without end comes: the largest of three one by one, and
    of six, three at a time."""
    out: dict[str, Any] = {}
    for level in LEVELS:
        with Sandbox(level) as box:
            box.run("1", b"", Limits(seconds=20.0))

            def over(source: str) -> float:
                done = box.run(source, b"", Limits(seconds=0.5))
                assert done.status == "time", done
                return done.seconds - 0.5

            found = {}
            for name, source in ENDLESS.items():
                alone = max(over(source) for _ in range(3))
                with ThreadPoolExecutor(3) as threads:
                    found[name] = [round(one, 3) for one in (alone, max(threads.map(over, [source] * 6)))]
            out[level] = {"largest_s": max(map(max, found.values())), "alone_and_together": found}
    return out


def graded(box: Sandbox, work: Iterable[tuple[str, dict[str, Any], str, float]]) -> dict[str, Any]:
    """Verdicts of (name, tests, program, seconds), and the names of those that are not right."""

    def one(job: tuple[str, dict[str, Any], str, float]) -> tuple[str, str, str]:
        name, tests, program, seconds = job
        said = judge_tests({"tests": {**tests, "limits": {"seconds": seconds}}}, program, box)
        return name, said.verdict, said.reason

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(one, work))
    counts = Counter(verdict for _, verdict, _ in found)
    return {"programs": len(found), **counts, "not_right": [one for one in found if one[1] != "right"][:20]}


def tests_of(row: dict[str, Any], field: str) -> dict[str, Any]:
    """A row's tests."""
    return read_tests(Row(where="row", values=row), field)[1]


def tasks(args: argparse.Namespace) -> dict[str, Any]:
    """Reference solutions of three sets, all of which must pass."""
    human = rows_of(args.data / "code" / "humaneval.jsonl.gz")
    mbpp = rows_of(args.data / "code" / "mbpp.jsonl")
    contests = rows_of(args.data / "code" / "code_contests_stdin.jsonl.gz")
    with Sandbox("A") as box:
        return {
            "humaneval": graded(
                box, ((r["task_id"], tests_of(r, "test"), r["canonical_solution"], 30.0) for r in human)
            ),
            "mbpp": graded(box, ((str(r["task_id"]), tests_of(r, "test_list"), r["code"], 30.0) for r in mbpp)),
            "code_contests": graded(
                box, ((str(at), tests_of(contests[at], "tests"), text, 30.0) for at, text in SOLUTIONS.items())
            ),
        }


def shown_broken(row: dict[str, Any], program: str) -> bool:
    """Whether a variant fails the item's own assertions in a Python of its own (or does not end within 5 s of CPU)."""
    limit = "import resource as r\nr.setrlimit(r.RLIMIT_CPU,(5,5))\nr.setrlimit(r.RLIMIT_AS,(1<<30,1<<30))"
    code = f"{limit}\n{program}\n{row['test']}\ncheck({row['entry_point']})\n"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True).returncode != 0


def broken(args: argparse.Namespace) -> dict[str, Any]:
    """Variants of HumanEval's solutions, one change each: those that the item's assertions tell from the original
    must all be wrong, and the others, which are equivalent as far as the assertions go, right."""
    rows = rows_of(args.data / "code" / "humaneval.jsonl.gz")
    made = [
        (row, text)
        for row in rows
        for text in variants(row["prompt"] + row["canonical_solution"], row["entry_point"], args.variants, seed=0)
    ]
    with ThreadPoolExecutor(4) as threads:
        fails = list(threads.map(lambda one: shown_broken(*one), made))
    out: dict[str, Any] = {"variants": len(made)}
    with Sandbox("A") as box:
        for name, wanted in (("broken", True), ("equivalent", False)):
            some = [one for one, failed in zip(made, fails, strict=True) if failed == wanted]
            found = graded(box, ((row["task_id"], tests_of(row, "test"), text, 5.0) for row, text in some))
            found.pop("not_right" if wanted else "", None)
            out[name] = found
    return out


def maths(args: argparse.Namespace) -> dict[str, Any]:
    """GSM8K's answers against themselves in three notations; verdicts a second, and those of formulas, which
    math-verify compares."""
    golds = [
        row["answer"]
        for name in ("gsm8k_train.jsonl.gz", "gsm8k_test.jsonl")
        for row in rows_of(args.data / "math" / name)
    ]
    notations: dict[str, Callable[[str], str]] = {
        "boxed": lambda text: rf"So it is \boxed{{{text}}}.",
        "marked": lambda text: f"Therefore\n#### {text}",
        "told": lambda text: f"The answer is ${text}.",
    }
    out: dict[str, Any] = {"answers": len(golds)}
    for name, shape in notations.items():
        texts = [shape(gold.rpartition("####")[2].strip()) for gold in golds]
        began = time.perf_counter()
        right = sum(judge_math(gold, text).verdict == "right" for gold, text in zip(golds, texts, strict=True))
        out[name] = {"right": right, "verdicts_per_second": round(len(golds) / (time.perf_counter() - began))}
    pairs = [
        (rf"\frac{{{n}}}{{{n + 1}}}\sqrt{{{n + 2}}}", rf"\boxed{{\frac{{{n}\sqrt{{{n + 2}}}}}{{{n + 1}}}}}")
        for n in range(1, 401)
    ]
    shared_pool().ask("x", "1", 60.0)
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as threads:
        right = sum(said.verdict == "right" for said in threads.map(lambda pair: judge_math(*pair), pairs))
    seconds = time.perf_counter() - began
    return {
        **out,
        "formulas": {"right": right, "of": len(pairs), "verdicts_per_second": round(len(pairs) / seconds, 1)},
    }


def hostile(args: argparse.Namespace) -> dict[str, Any]:
    """All hostile programs at both levels and for both kinds of user: what leaked, what was taken for right, how late
    verdicts were."""
    out: dict[str, Any] = {}
    for level in LEVELS:
        for user in ("root", "ordinary") if os.getuid() == 0 else ("ordinary",):
            drop: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
            program, drop = ("/usr/bin/python3", drop) if user == "ordinary" and drop else (sys.executable, {})
            command = [
                program,
                str(TESTS / "drive.py"),
                level,
                "2.0",
                str((args.data / "hostile" / "sample.jsonl").resolve()),
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]}, **drop
            )
            found = json.loads(done.stdout)
            rows = found["rows"]
            false = [row for row in rows if row["status"] == "right" and row["expected"] == "not right"]
            honest = [row for row in rows if row["expected"] == "right" and row["status"] != "right"]
            late = [row["over"] for row in rows if row["status"] == "time"]
            out[f"{level} {user}"] = {
                "programs": len(rows),
                "leaks": [row["name"] for row in rows if row["leak"]],
                "false_rewards": [row["name"] for row in false],
                "honest_refused": [row["name"] for row in honest],
                "faults": [row["name"] for row in rows if row["status"] == "fault"],
                "latest_verdict_s": round(max(late, default=0.0), 3),
                "seconds": round(found["seconds"], 1),
            }
    return out


PARTS = {
    "speed": speed,
    "late": late,
    "growth": growth,
    "tasks": tasks,
    "broken": broken,
    "maths": maths,
    "hostile": hostile,
}


def main() -> None:
    """Run the parts and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the part growth, in hundreds")
    parser.add_argument("--variants", type=int, default=5, help="variants of each solution")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    found["machine"] = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    for name in args.only:
        began = time.monotonic()
        part = {"load": round(load(), 2), **PARTS[name](args)}
        found[name] = {**part, "part_seconds": round(time.monotonic() - began, 1)}
        print(json.dumps({name: found[name]}, indent=1), flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=1) + "\n")
    shared_pool().close()


if __name__ == "__main__":
    main()
