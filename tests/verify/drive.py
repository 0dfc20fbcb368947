"""Runs the hostile programs through one sandbox and prints what became of them as JSON.

It needs the standard library alone, so that any user's Python can run it: ``python drive.py LEVEL SECONDS [FILE]``.
Programs that are to end by themselves, or by another limit than the clock's, have 120 s, which a busy machine may need;
others have SECONDS. FILE holds rows of the shared sample. ``over`` is how long after its limit a program's verdict
came, ``waited`` how long it waited for its start.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import hostile_more
import hostile_programs

from prismlab.verify.sandbox.box import Sandbox
from prismlab.verify.sandbox.compare import same_output
from prismlab.verify.sandbox.outcome import Limits
from prismlab.verify.sandbox.probe import open_sandbox

EACH = "A, each behind bwrap"
"""A level: as A, without a template."""
CHECK = "def check(f):\n    for a, b in {}:\n        assert f(a, b) == a + b\n"


def script(box, source, seconds):
    """Status and verdict of a script on two inputs, both of which must be right."""
    row = {}
    for _ in range(2):
        a, b = random.randint(2, 999), random.randint(2, 999)
        began = time.monotonic()
        done = box.run(source, f"{a} {b}\n".encode(), Limits(seconds=seconds))
        took = time.monotonic() - began
        right = done.status == "ended" and same_output(str(a + b).encode(), done.stdout)
        row = {"status": "right" if right else done.status, "reason": done.reason, "over": done.seconds - seconds}
        row["waited"] = took - done.seconds
        row |= {
            "leak": "LEAK" in done.stderr.decode("utf-8", "replace"),
            "shown": done.stderr[-200:].decode("utf-8", "replace"),
        }
        row |= {"output": done.stdout[-200:].decode("utf-8", "replace"), "record": dict(done.record).get("level")}
        if not right:
            break
    return row


def function(box, source, seconds):
    """Verdicts of both ways of testing a function: by values, and by Python tests."""
    pairs = [(random.randint(2, 99), random.randint(2, 99)) for _ in range(3)]
    limits = Limits(seconds=seconds)
    began = time.monotonic()
    by_values = box.calls(source, "add", [([a, b], a + b) for a, b in pairs], limits)
    by_tests = box.tests(source, CHECK.format(pairs), "add", "", limits)
    both = {by_values.verdict, by_tests.verdict}
    words = {"passed": "right", "failed": "failed", "no_verdict": "fault"}
    status = words[both.pop()] if len(both) == 1 else f"{by_values.verdict} and {by_tests.verdict}"
    over = time.monotonic() - began - 2 * seconds
    return {"status": status, "reason": f"{by_values.reason} | {by_tests.reason}", "leak": False, "over": over}


def main():
    began = time.monotonic()
    each = sys.argv[1] == EACH
    box = Sandbox("A", template=False) if each else open_sandbox(sys.argv[1])
    if each:
        box.record = {"level": "A", "starts": box.pool().facts["starts"]}
    kinds = {"FORGERIES": script, "REACH": script, "STAY": script, "HONEST": script}
    kinds |= {"FUNCTIONS": function, "HONEST_FUNCTIONS": function}
    work = [
        (kind, one.name, one.source, one.expected, judge)
        for kind, judge in kinds.items()
        for one in (*getattr(hostile_programs, kind), *getattr(hostile_more, kind))
    ]
    if len(sys.argv) > 3:
        for line in Path(sys.argv[3]).read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["kind"] in ("control", "code"):
                judge = function if "def add" in row["payload"] else script
                expected = "right" if row["kind"] == "control" else ""
                work.append((f"shared {row['kind']}", row["name"], row["payload"], expected, judge))

    def one(job):
        kind, name, source, expected, judge = job
        seconds = 120.0 if expected in ("right", "memory", "crashed", "failed", "output") else float(sys.argv[2])
        return {"kind": kind, "name": name, "expected": expected, **judge(box, source, seconds)}

    with ThreadPoolExecutor(6) as threads:
        rows = list(threads.map(one, work))
    seconds = time.monotonic() - began
    box.close()
    print(json.dumps({"user": os.getuid(), "record": dict(box.record), "seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
