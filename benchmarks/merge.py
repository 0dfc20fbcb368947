"""A linear merge beside mergekit's: whole processes, seconds, peak memory, ratio; and how time grows with size.

    python -m venv /scratch/mergekit
    /scratch/mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5
    python benchmarks/merge.py --dir /scratch/pairs --mergekit /scratch/mergekit/bin/mergekit-yaml

Both merge 0.15 of one bfloat16 checkpoint and 0.85 of another (made under ``--dir`` by ``pairs.py``) into bfloat16, in
turn, page cache warm, the disk quiet before each. Peak memory is the largest resident set of the process, mapped pages
included. The results are compared: mergekit rounds its weights and its sum differently, ours is the nearest to float64.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pairs

from prismlab.model.tensors import open_checkpoint

WEIGHTS = (0.15, 0.85)
ASKED = {"ratio": 8.0, "peak_mb": 400.0, "time_for_4_times_the_size": 4.3}


def run(command: Sequence[str], env: dict[str, str]) -> dict[str, float]:
    """One process: seconds, processor seconds, peak memory in MB. What is still to be written is written before."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read() if process.stderr else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2000:]}")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def recipe(pair: tuple[Path, Path], path: Path) -> Path:
    """mergekit's configuration of the same merge."""
    models = [
        {"model": str(folder), "parameters": {"weight": weight}} for folder, weight in zip(pair, WEIGHTS, strict=True)
    ]
    whole = {"merge_method": "linear", "dtype": "bfloat16", "parameters": {"normalize": False}, "models": models}
    path.write_text(json.dumps(whole))  # JSON is YAML
    return path


def agreement(ours: Path, theirs: Path) -> dict[str, float]:
    """Share of elements with the same bits, and the largest difference relative to the larger of the two."""
    same = elements = 0
    apart = 0.0
    with open_checkpoint(ours) as a, open_checkpoint(theirs) as b:
        if set(a) != set(b):
            raise SystemExit("the two merges hold different tensors")
        for name, view in a.items():
            for x, y in zip(view.chunks(1 << 22), b[name].chunks(1 << 22), strict=True):
                same += int((x == y).sum())
                elements += len(x)
                scale = max(abs(x).max(), abs(y).max())
                apart = max(apart, float(abs(x - y).max() / scale)) if scale else apart
    return {"same": same / elements, "largest_relative_to_the_largest": apart}


def measure(pair: tuple[Path, Path], mergekit: str | None, scratch: Path, runs: int) -> dict[str, Any]:
    """Medians of one size."""
    files = [str(file) for folder in pair for file in sorted(folder.glob("*.safetensors"))]
    sources = [f"{folder}={weight}" for folder, weight in zip(pair, WEIGHTS, strict=True)]
    outs = {"ours": scratch / "merged-ours", "mergekit": scratch / "merged-mergekit"}
    commands = {"ours": [sys.executable, "-m", "prismlab", "merge", *sources, "--out", str(outs["ours"])]}
    if mergekit:
        commands["mergekit"] = [mergekit, str(recipe(pair, scratch / "merge.yaml")), str(outs["mergekit"])]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            shutil.rmtree(outs[name], ignore_errors=True)
            with Path(os.devnull).open("wb") as nowhere:
                subprocess.run(["cat", *files], stdout=nowhere, check=True)
            found[name].append(run(command, env))
    out: dict[str, Any] = {
        name: {key: statistics.median(one[key] for one in all_runs) for key in all_runs[0]}
        | {"spread": [min(one["seconds"] for one in all_runs), max(one["seconds"] for one in all_runs)]}
        for name, all_runs in found.items()
    }
    if mergekit:
        out["agree"] = agreement(outs["ours"], outs["mergekit"])
    for folder in outs.values():
        shutil.rmtree(folder, ignore_errors=True)
    return out


def report(sizes: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """Print the figures beside what was asked; ratios."""
    ratios: dict[str, Any] = {}
    for size, one in sizes.items():
        ours = one["ours"]
        print(f"\n{size:g}B parameters, {2 * pairs.parameters(size) / 1e9:.2f} GB each")
        for name in [name for name in ("ours", "mergekit") if name in one]:
            row = one[name]
            low, high = row["spread"]
            print(
                f"  {name:<9} {row['seconds']:7.2f} s ({low:.2f} to {high:.2f})   processor {row['cpu']:6.2f} s   "
                f"peak {row['peak_mb']:6.0f} MB"
            )
        if "mergekit" in one:
            ratios[f"{size:g}B"] = one["mergekit"]["seconds"] / ours["seconds"]
            print(f"  {ratios[f'{size:g}B']:.1f} times mergekit (asked {ASKED['ratio']:g}); agreement {one['agree']}")
        print(f"  peak {ours['peak_mb']:.0f} MB (asked at most {ASKED['peak_mb']:g})")
    small, large = min(sizes), max(sizes)
    if small < large:
        grown = sizes[large]["ours"]["seconds"] / sizes[small]["ours"]["seconds"]
        size = pairs.parameters(large) / pairs.parameters(small)
        print(f"\n{size:.2f} times the size takes {grown:.2f} times the time (asked: 4.3 for 4)")
        ratios["growth"] = {"size": size, "time": grown}
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="A linear merge beside mergekit's.")
    parser.add_argument("--dir", type=Path, required=True, help="where the pairs lie or are made, and 11 GB are free")
    parser.add_argument("--mergekit", help="the command mergekit-yaml; without it ours alone is measured")
    parser.add_argument("--billions", type=float, nargs="+", default=[0.58, 2.3], choices=list(pairs.SHAPES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    made = {size: pairs.make(given.dir, size) for size in given.billions}
    run([sys.executable, "-c", "from prismlab.merge.blend import BLEND, load; load(BLEND)"], dict(os.environ))
    sizes = {size: measure(pair, given.mergekit, given.dir, given.runs) for size, pair in made.items()}
    ratios = report(sizes)
    if given.out:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        record = {"date": date.today().isoformat(), "machine": machine, "load": os.getloadavg(), "asked": ASKED}
        record |= {"mergekit": "0.1.5", "ratios": ratios, "sizes": {f"{k:g}B": v for k, v in sizes.items()}}
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
