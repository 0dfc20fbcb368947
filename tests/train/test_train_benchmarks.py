"""The benchmarks of training in a short form, so that they still run when they are wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(script: str, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options, "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, check=False, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def test_a_killed_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    found = run("kill_train.py", tmp_path / "out.json", "--kills", "3", "--no-calls", "--dir", str(tmp_path))
    assert [trial["different"] for trial in found["random"]] == [[], [], []]
    # What is compared: weights in both types, both logs, the trajectory, and the saves with moments and random states.
    names = " ".join(found["compared"])
    for part in (
        "master/model",
        "out/model",
        "metrics.jsonl",
        "heldout.jsonl",
        "trajectory.parquet",
        "part-00000",
        "own",
    ):
        assert part in names


@pytest.mark.slow
def test_tiny_models_go_through_the_benchmark_of_gpus(tmp_path: Path) -> None:
    models = ["granite-4-micro", "granite-4-h-micro", "llama-3.1-8b", "nemotron-h-8b"]
    found = run("gpu_train.py", tmp_path / "out.json", "--tiny", "--steps", "3", "--models", *models)
    assert [row["model"] for row in found["models"]] == models
    assert all(row["tokens_per_second"] > 0 and 0 < row["mfu"] < 1 for row in found["models"])
    assert all(row["plan_gib"] > 0 and "error" not in row for row in found["models"])
    assert found["kernels"]["mamba_ssm"] in (True, False)


@pytest.mark.slow
def test_the_loop_stands_beside_a_bare_one(tmp_path: Path) -> None:
    found = run("train_loop.py", tmp_path / "out.json", "--blocks", "3", "--steps", "3")
    for policy in ("ignore", "respect"):
        assert found[policy]["losses_apart"] < 1e-3, "both compute the same"
        assert found[policy]["cpu"]["ratio_median"] > 0.5
        assert len(found[policy]["clock"]["ratios"]) == 3
    assert found["first_step"]["cpu_seconds"] > 0
