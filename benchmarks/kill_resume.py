"""kill -9 at random moments of a study, run again, compare the end state with an undisturbed run.

    python benchmarks/kill_resume.py --kills 20 --out benchmarks/results/kill_resume.json

Every trial starts from an empty folder, is killed with its whole process group at a moment drawn uniformly over the
undisturbed run's duration, and is run again to its end. Equal means: the same artifacts under the same fingerprints,
every safetensors file, corpus and sample table equal byte for byte, and the same verdicts. Logs of speed (metrics.jsonl
or TensorBoard, the page with its seconds) are not compared: they tell when a run happened.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

COMPARED = {".safetensors", ".parquet", ".bin", ".npy", ".jsonl"}
TIMED = {"metrics.jsonl"}


def command(study: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "prismlab", "run", str(study), "--out", str(out)]


def end_state(out: Path) -> dict[str, str]:
    """Hash of every compared file by artifact and path, and every ledger's verdicts."""
    state: dict[str, str] = {}
    for artifact in sorted((out / "artifacts").iterdir()):
        record = json.loads((artifact / "record.json").read_text())
        state[f"{artifact.name}/status"] = record["status"]
        for file in sorted(artifact.rglob("*")):
            name = str(file.relative_to(artifact))
            if file.is_file() and file.suffix in COMPARED and file.name not in TIMED:
                state[f"{artifact.name}/{name}"] = hashlib.blake2b(file.read_bytes()).hexdigest()
        if record["kind"] == "claims":
            state["verdicts"] = json.dumps(record["metrics"]["verdicts"], sort_keys=True)
    return state


def finish(study: Path, out: Path) -> float:
    began = time.monotonic()
    done = subprocess.run(command(study, out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"run in {out} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.monotonic() - began


def killed_after(study: Path, out: Path, seconds: float) -> int:
    """Start a run, kill its process group after ``seconds``; the number of artifacts that were complete by then."""
    process = subprocess.Popen(
        command(study, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list((out / "artifacts").glob("*/record.json"))) if (out / "artifacts").is_dir() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("studies/smoke.yaml"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rng, trials = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        seconds = finish(options.study, Path(folder) / "whole")
        expected = end_state(Path(folder) / "whole")
        print(f"undisturbed: {seconds:.1f} s, {len(expected)} compared values")
        for trial in range(options.kills):
            out, moment = Path(folder) / f"trial{trial}", rng.uniform(0, seconds)
            complete = killed_after(options.study, out, moment)
            finish(options.study, out)
            state = end_state(out)
            different = sorted(k for k in expected.keys() | state.keys() if expected.get(k) != state.get(k))
            trials.append({"killed_at_s": round(moment, 2), "artifacts_then": complete, "different": different})
            print(f"{trial + 1}: killed at {moment:.1f} s with {complete} artifacts, different: {different or 'none'}")
    equal = sum(not trial["different"] for trial in trials)
    print(f"{equal} of {len(trials)} end states equal")
    if options.out:
        result = {
            "date": date.today().isoformat(),
            "device": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "study": options.study.name,
            "seconds_undisturbed": round(seconds, 1),
            "compared": len(expected),
            "equal": equal,
            "trials": trials,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(equal != len(trials))


if __name__ == "__main__":
    main()
