"""Two processes on one machine take the steps that one takes, and go on from their saves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from prismlab.run.step import Artifact

SCRIPT = Path(__file__).with_name("rl_process.py")


def launch(folder: Path, out: Path, nproc: int, *more: str) -> int:
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if nproc > 1 else []
    command = [sys.executable, *how, str(SCRIPT), str(folder), str(out), str(nproc), *more]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    ).returncode


def rollouts(out: Path) -> list[dict[str, object]]:
    keys = ("step", "item_id", "sample", "response", "reward")
    return [{key: row[key] for key in keys} for row in pq.read_table(out / "rollouts.parquet").to_pylist()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "master" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_do_what_one_does(start: Path, prompts_artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    shutil.copytree(start, folder)
    shutil.copy(prompts_artifact.path / "prompts.jsonl", folder)
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    assert launch(folder, one, 1) == 0
    assert launch(folder, two, 2) == 0
    expected, found = weights(one), weights(two)
    before = load_file(folder / "model" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    assert max((expected[name] - before[name]).abs().max().item() for name in expected) > 1e-3
    assert rollouts(two) == rollouts(one)
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (one, two)]
    for mine, theirs in zip(*rows, strict=True):
        for key in ("reward", "pass", "no_signal", "penalties", "length"):
            assert mine[key] == theirs[key]
        for key in ("loss", "kl", "entropy", "grad_norm", "ratio"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5)
    assert launch(folder, again, 2, "4") != 0
    assert not (again / "model").exists()
    assert launch(folder, again, 2) == 0
    final = weights(again)
    assert all(torch.equal(final[name], found[name]) for name in found)
    assert rollouts(again) == rollouts(two)
