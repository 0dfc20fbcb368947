"""Several processes: equal to one, going on from one another's saves, and ending together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prismlab.errors import StageError
from prismlab.train.parallel import Mesh, resolve_mesh

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import ranks  # noqa: E402  (beside this file)


def torchrun(*arguments: str, nproc: int = 2, extra: list[str] | None = None) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", *(extra or ["--standalone"])]
    return subprocess.Popen(
        [*launcher, "--nproc-per-node", str(nproc), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str], seconds: float = 1800) -> str:
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors[-4000:]
    return errors


def test_a_mesh_is_what_is_given_and_the_rest_follows() -> None:
    assert resolve_mesh(None, 8, 8) == Mesh(replicate=1, shard=8)
    assert resolve_mesh(None, 16, 8) == Mesh(replicate=2, shard=8)
    assert resolve_mesh({"replicate": 4, "shard": None}, 8, 8) == Mesh(replicate=4, shard=2)
    assert resolve_mesh({"shard": 2}, 8, 8) == Mesh(replicate=4, shard=2)
    assert resolve_mesh(None, 1, 1) == Mesh(replicate=1, shard=1)
    for given in ({"shard": 3}, {"replicate": 2, "shard": 2}, {"replicate": 16}):
        with pytest.raises(StageError, match="8 processes"):
            resolve_mesh(given, 8, 8)


@pytest.mark.slow
def test_two_processes_equal_one_over_fifty_steps(tmp_path: Path) -> None:
    out = tmp_path / "mesh.json"
    command = [sys.executable, str(ROOT / "benchmarks/mesh.py"), "--precisions", "float32", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = json.loads(out.read_text())["differences"]
    assert len(found) == 6
    for name, row in found.items():
        assert row["steps"] == 50, name
        assert row["loss"] < 1e-5, name
        assert row["norm"] < 1e-4, name


def rows_of(folder: Path, stop: int | None) -> list[int]:
    """Rows that a part of a run trained on, of all its processes, in the order of each."""
    files = sorted(folder.glob(f"rows-{stop}-*.jsonl"))
    return [row for file in files for line in file.read_text().splitlines() for row in range(*json.loads(line))]


@pytest.mark.parametrize("archs", [["llama"], pytest.param(["granite4-h", "nemotron-h"], marks=pytest.mark.slow)])
def test_a_run_goes_on_under_other_meshes_in_the_order_of_the_data(tmp_path: Path, archs: list[str]) -> None:
    """Two processes, then one, then two: what one undisturbed process does."""
    for arch in archs:
        ranks.prepare(tmp_path / arch, arch)
        ranks.run(tmp_path / arch, "whole", stop=None)
    script = str(HERE / "ranks.py")
    finished(torchrun(script, str(tmp_path), "moved", "4", "1", "2", *archs))
    for arch in archs:
        ranks.run(tmp_path / arch, "moved", stop=8)
    finished(torchrun(script, str(tmp_path), "moved", "-", "2", "1", *archs))
    for arch in archs:
        whole, moved = tmp_path / arch / "whole", tmp_path / arch / "moved"
        # Each part trains on the rows behind its save, every one once, up to its stop and the step it is stopped in.
        for stop, first, last in ((4, 0, 5), (8, 4, 9), (None, 8, ranks.STEPS)):
            found = rows_of(moved, stop)
            assert sorted(found) == list(range(first * ranks.ROWS, last * ranks.ROWS)), stop
        assert rows_of(moved, 8) == list(range(4 * ranks.ROWS, 9 * ranks.ROWS))
        logs = [[json.loads(line) for line in (one / "out/metrics.jsonl").open()] for one in (whole, moved)]
        assert [row["step"] for row in logs[1]] == list(range(1, ranks.STEPS + 1))
        for ours, theirs in zip(*logs, strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
            assert theirs["domains"].keys() == ours["domains"].keys()
            assert theirs["tokens"] == ours["tokens"]
            assert theirs["lr"] == ours["lr"]
        held = [[json.loads(line) for line in (one / "out/heldout.jsonl").open()] for one in (whole, moved)]
        assert [row["step"] for row in held[1]] == [row["step"] for row in held[0]]
        for ours, theirs in zip(*held, strict=True):
            assert theirs["general"] == pytest.approx(ours["general"], abs=1e-5)
            assert theirs["kl"] == pytest.approx(ours["kl"], abs=1e-5)
        weights = [load_file(one / "out/master/model.safetensors") for one in (whole, moved)]
        for name, tensor in weights[0].items():
            assert torch.allclose(weights[1][name], tensor, atol=1e-4), name
        told = [line for line in (moved / "notes.txt").read_text().splitlines() if "going on" in line]
        assert [("2 processes" in line, "1 processes" in line) for line in told] == [(True, False), (False, True)]


def children(process: subprocess.Popen[str]) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_all_end_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is stopped (not dead) is noticed by its silence; torchrun alone would wait for it for ever."""
    fault = tmp_path / "fault.json"
    monkeypatch.setenv("PRISM_FAULT_FILE", str(fault))
    monkeypatch.delenv("PRISM_SILENT_SECONDS")
    process = torchrun(str(HERE / "ranks.py"), str(tmp_path), "beat")
    wait_for(tmp_path / "beat-1")
    victim = int((tmp_path / "beat-1").read_text())
    assert victim in children(process)
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()
    wait_for(fault, 60)
    assert f"process 1 of 2 ({os.uname().nodename}, pid {victim})" in json.loads(fault.read_text())["failed"]
    os.kill(victim, signal.SIGCONT)  # what torchrun sends next can end it only so
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 60


def test_all_processes_do_what_the_first_one_hears_the_alarm_say(tmp_path: Path) -> None:
    ranks.prepare(tmp_path)
    finished(torchrun(str(HERE / "ranks.py"), str(tmp_path), "alarm", "save", "stop"))
    told = {
        action: [json.loads((tmp_path / f"{action}-{rank}.json").read_text()) for rank in (0, 1)]
        for action in ("save", "stop")
    }
    assert told["save"] == [{"alarm": {"step": 4, "action": "save"}}] * 2
    assert all("retention alarm at step 4" in one["ended"] for one in told["stop"])
    saved, stopped = tmp_path / "save/out", tmp_path / "stop/out"
    kept, snapshot = (load_file(saved / f"{name}/step-000004/model.safetensors") for name in ("alarm", "snapshots"))
    assert all(torch.equal(tensor, snapshot[name]) for name, tensor in kept.items())
    assert (saved / "model/model.safetensors").is_file()
    # The end is the same in both: what was measured up to there is the artifact, and no checkpoint is.
    assert [json.loads(line)["step"] for line in (stopped / "heldout.jsonl").open()] == [0, 4]
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 4
    assert not (stopped / "model").exists()
