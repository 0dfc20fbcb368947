"""Checkpoint arithmetic side by side with what people use today: time, rate, peak memory, scaling, cold files.

    python benchmarks/checkpoints.py --dir /scratch/pairs --out benchmarks/results/checkpoints.json

Pairs of bfloat16 checkpoints of 0.58 and 2.3 billion parameters are made under ``--dir`` by ``pairs.py`` unless they
are there. Every figure is the median over ``--runs`` runs, ours and the peer's in turn, page cache warm (each file is
read once before). *Work* leaves imports out on both sides and, for ours, the loading of compiled code; *process* is the
whole command, start included. One pass finds the measures of the paper and those beyond it, so one time stands beside
what is asked of either; seconds of the processor, and of the same reads with nothing done to what was read, tell what
bounds it. Peak memory is the largest resident set of the process, mapped pages included. *Cold*
drops the files' pages first and compares with ``cat old new > /dev/null``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pairs

HERE = Path(__file__).parent
ASKED = {"paper": 60.0, "all": 40.0, "process": 20.0, "cold": 0.9, "memory_mb": 400.0, "scaling": 4.3}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
OURS_A_ROUND = 3
"""Runs of ours for one of the peer, which takes a minute: the median of a third of a second needs more of them."""
OURS = """
import json, os, sys, time
from pathlib import Path
from prismlab.analyse.weights import diff
from prismlab.arith.fold import fold
from prismlab.arith.kernels import chunk_size
from prismlab.arith.parts import lay_out
old, new, warm_old, warm_new = map(Path, sys.argv[1:5])
thresholds = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)

class Nothing:
    def add(self, other):
        pass

def timed(work):
    began, before = time.perf_counter(), os.times()
    found = work()
    after = os.times()
    spent = {"user": after.user - before.user, "system": after.system - before.system}
    return found, {"seconds": time.perf_counter() - began, **spent}

def read():
    for _ in fold(lay_out({"old": old, "new": new}).parts, lambda *arrays: Nothing(), size=chunk_size("numba")):
        pass

diff(warm_old, warm_new, thresholds)  # loads the compiled code
found, spent = timed(lambda: diff(old, new, thresholds))
_, reading = timed(read) if len(sys.argv) > 5 else (None, {})
print(json.dumps({**spent, "reading": reading, "kernel": found["kernel"], "total": found["total"]}))
"""


def run(command: Sequence[str]) -> dict[str, Any]:
    """One process: seconds, peak memory in MB, what it printed."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"process": time.perf_counter() - began, "peak_mb": usage.ru_maxrss / 1024, "printed": printed}


def read_all(folders: Sequence[Path], keep: bool = True) -> float:
    """Seconds of ``cat`` of all weights; with ``keep=False`` their pages are dropped first."""
    files = [str(file) for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    if not keep:
        drop(folders)
    began = time.perf_counter()
    with Path(os.devnull).open("wb") as nowhere:
        subprocess.run(["cat", *files], stdout=nowhere, check=True)
    return time.perf_counter() - began


def drop(folders: Sequence[Path]) -> None:
    """Drop the files' pages from memory."""
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours_command(old: Path, new: Path) -> list[str]:
    return [sys.executable, "-m", "prismlab", "diff", str(old), str(new)]


def measure(pair: tuple[Path, Path], warm: tuple[Path, Path], runs: int) -> dict[str, Any]:
    """Figures of one size."""
    read_all(pair)
    table: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        table.setdefault(name, []).append(value)

    figures: dict[str, Any] = {}
    for _ in range(runs):
        for _ in range(OURS_A_ROUND):
            work = run([sys.executable, "-c", OURS, *map(str, (*pair, *warm)), "and reading alone"])
            inner = json.loads(work["printed"])
            note("ours_work", inner["seconds"])
            note("ours_user", inner["user"])
            note("ours_system", inner["system"])
            note("reading_alone", inner["reading"]["seconds"])
        whole = run(ours_command(*pair))
        note("ours_process", whole["process"])
        note("ours_peak_mb", max(work["peak_mb"], whole["peak_mb"]))
        peer = run([sys.executable, str(HERE / "usual_diff.py"), *map(str, pair)])
        usual = json.loads(peer["printed"])
        note("usual_work", usual["seconds"])
        note("usual_process", peer["process"])
        note("usual_peak_mb", peer["peak_mb"])
        figures = {"ours": inner["total"], "usual": usual, "kernel": inner["kernel"]}
    out: dict[str, Any] = {name: statistics.median(values) for name, values in table.items()}
    out["spread"] = {name: [min(values), max(values)] for name, values in table.items()}
    out["agree"] = agreement(figures)
    out["kernel"] = figures["kernel"]
    return out


def agreement(figures: dict[str, Any]) -> dict[str, float]:
    """How far the two sides' figures are apart: L2 relative, shares absolute (the script counts ``< t``)."""
    ours, usual = figures["ours"], figures["usual"]
    shares = [abs(1 - ours["changed"][t] - usual["under"][t]) for t in ours["changed"]]
    return {"l2_relative": abs(ours["l2"] / usual["l2"] - 1), "largest_share_difference": max(shares)}


def cold(pair: tuple[Path, Path], runs: int) -> dict[str, float]:
    """Seconds of the work on files that are not in memory, and of reading them."""
    reading: list[float] = []
    working: list[float] = []
    for _ in range(runs):
        reading.append(read_all(pair, keep=False))
        drop(pair)
        command = [sys.executable, "-c", OURS, *map(str, pair), *map(str, tiny(pair[0].parent.parent))]
        working.append(json.loads(run(command)["printed"])["seconds"])
    return {"cat": statistics.median(reading), "ours": statistics.median(working)}


def scaling(made: dict[float, tuple[Path, Path]], warm: tuple[Path, Path], rounds: int) -> dict[float, float]:
    """Median seconds of our work by size, the sizes in turn: a machine whose pace drifts meets both alike."""
    times: dict[float, list[float]] = {size: [] for size in made}
    for pair in made.values():
        read_all(pair)
    for _ in range(rounds):
        for size, pair in made.items():
            command = [sys.executable, "-c", OURS, *map(str, (*pair, *warm))]
            times[size].append(json.loads(run(command)["printed"])["seconds"])
    return {size: statistics.median(values) for size, values in times.items()}


def tiny(folder: Path) -> tuple[Path, Path]:
    """A pair just large enough for the compiled pass, to load it with."""
    return pairs.make(folder, 0.03)


READ = """
import time, torch
torch.set_num_threads(2)
data = torch.ones(2**28)
times = []
for _ in range(5):
    began = time.perf_counter()
    data.sum()
    times.append(time.perf_counter() - began)
print(data.numel() * 4 / min(times) / 1e9)
"""


def read_rate() -> float:
    """Memory-read rate in GB/s: float32 sum over a gigabyte by two threads, as in the reference measurement.

    In a process of its own: the system counts a parent's memory into the peak of the children that it starts.
    """
    return float(run([sys.executable, "-c", READ])["printed"])


def report(
    sizes: dict[float, dict[str, Any]], in_turn: dict[float, float], colds: dict[str, float], rate: float
) -> dict[str, Any]:
    """Ratios beside what was asked, printed and returned."""
    rows: dict[str, Any] = {}
    for size, one in sizes.items():
        volume = 4 * pairs.parameters(size) / 1e9
        ratio = one["usual_work"] / one["ours_work"]
        rows[f"{size:g}B"] = {
            "gb_of_input": volume,
            "ours_gb_s": volume / one["ours_work"],
            "usual_gb_s": volume / one["usual_work"],
            "times_faster_work": ratio,
            "times_faster_process": one["usual_process"] / one["ours_process"],
            "share_of_memory_read_rate": volume / one["ours_work"] / rate,
            "cores_busy": (one["ours_user"] + one["ours_system"]) / one["ours_work"],
            "reading_alone_share": one["reading_alone"] / one["ours_work"],
        }
        print(f"\n{size:g}B parameters, {volume:.2f} GB of input, kernel {one['kernel']}")
        print(
            f"  work     ours {one['ours_work']:7.3f} s ({volume / one['ours_work']:5.2f} GB/s, with ULP and signs)   "
            f"usual {one['usual_work']:7.2f} s   {ratio:6.1f} times (asked 60 / 40)"
        )
        busy = (one["ours_user"] + one["ours_system"]) / one["ours_work"]
        print(
            f"  ours: {one['ours_user']:.3f} s of a processor counting, {one['ours_system']:.3f} s reading: "
            f"{busy:.2f} of {CORES} cores busy; the reads alone take {one['reading_alone']:.3f} s"
        )
        print(
            f"  process  ours {one['ours_process']:7.3f} s   usual {one['usual_process']:7.2f} s   "
            f"{one['usual_process'] / one['ours_process']:6.1f} times (asked 20)"
        )
        print(f"  peak     ours {one['ours_peak_mb']:7.0f} MB  usual {one['usual_peak_mb']:7.0f} MB  (asked 400)")
        print(f"  figures  {one['agree']}")
    grown = in_turn[max(in_turn)] / in_turn[min(in_turn)]
    size_ratio = pairs.parameters(max(sizes)) / pairs.parameters(min(sizes))
    print(f"\n{size_ratio:.2f} times the size takes {grown:.2f} times the time (asked: 4.3 for 4)")
    share = colds["cat"] / colds["ours"]
    print(f"cold files: cat {colds['cat']:.2f} s, ours {colds['ours']:.2f} s: {share:.2f} of cat's rate (asked 0.9)")
    print(f"memory read: {rate:.1f} GB/s by two threads")
    return {"sizes": rows, "scaling": {"size": size_ratio, "time": grown}, "cold_share_of_cat": share}


def main() -> None:
    parser = argparse.ArgumentParser(description="Checkpoint arithmetic beside the usual script.")
    parser.add_argument("--dir", type=Path, required=True, help="where the pairs lie or are made (13 GB)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rate = read_rate()
    warm = tiny(given.dir)
    made = {size: pairs.make(given.dir, size) for size in (0.58, 2.3)}
    sizes = {size: measure(pair, warm, given.runs) for size, pair in made.items()}
    in_turn = scaling(made, warm, 2 * given.runs + 1)
    colds = cold(made[2.3], given.runs)
    ratios = report(sizes, in_turn, colds, rate)
    if given.out:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        record = {"date": date.today().isoformat(), "machine": machine, "load": os.getloadavg(), "asked": ASKED}
        record |= {"memory_read_gb_s": rate, "ratios": ratios, "seconds": {f"{k:g}B": v for k, v in sizes.items()}}
        record |= {"in_turn": {f"{k:g}B": v for k, v in in_turn.items()}, "cold": colds}
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
