"""One study with everything that a training can be asked for: a snapshot as a start, runs on one trunk, adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
RUN: dict[str, Any] = {"stage": "midtrain", "mixture": "m", "rows": 4, "seq_len": 64}
WSD = {"schedule": "wsd", "decay_steps": 2, "lr": 1e-3}
STUDY: dict[str, Any] = {
    "name": "options",
    "bases": {"tiny": {"arch": "granite4-h", "width": 32, "layers": 3}},
    "sources": {
        "sums": {"micro": {"domain": "math", "form": "worked"}},
        "facts": {"micro": {"domain": "science", "form": "worked"}},
    },
    "mixtures": {"m": {"weights": {"sums": 1, "facts": 1}}},
    "checkpoints": {
        "pre": {**RUN, "stage": "pretrain", "from": "tiny", "steps": 8, "snapshots": 2},
        "early": {**RUN, "from": "pre@4", "steps": 4, "optimizer": WSD},
        "longer": {**RUN, "from": "pre@4", "steps": 6, "optimizer": WSD},
        "alone": {**RUN, "from": "pre@4", "steps": 6, "optimizer": WSD, "share_prefix": False},
        "adapted": {**RUN, "from": "early", "steps": 3, "lora": {"rank": 4}, "on_nonfinite": "skip"},
        "attending": {
            **RUN,
            "stage": "extend",
            "from": "longer",
            "steps": 3,
            "seq_len": 4096,
            "rows": 1,
            "allow_longer": True,
            "train": "attention",
            "checkpointing": "selective",
        },
        "leaky": {**RUN, "from": "pre", "steps": 3, "boundaries": "ignore", "precision": "bf16"},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folder and record of each step, by its id."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [sys.executable, "-m", "prismlab", "run", str(folder / "study.yaml"), "--out", str(folder / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    records = (folder / "run" / "artifacts").glob("*/record.json")
    return {(record := json.loads(path.read_text()))["name"]: (path.parent, record) for path in records}


def weights(made: dict[str, tuple[Path, dict[str, Any]]], step: str) -> dict[str, torch.Tensor]:
    return load_file(made[step][0] / "model" / "model.safetensors")


def test_a_run_on_a_trunk_is_the_one_by_itself(made: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    assert set(made["train/longer/s0"][1]["inputs"]) == {"start", "corpus", "prefix"}
    assert set(made["train/alone/s0"][1]["inputs"]) == {"start", "corpus"}
    shared, alone = weights(made, "train/longer/s0"), weights(made, "train/alone/s0")
    assert all(torch.equal(shared[name], tensor) for name, tensor in alone.items())
    assert made["train/longer/s0"][1]["tokens"] == 4 * 4 * 64
    assert made["train/alone/s0"][1]["tokens"] == 6 * 4 * 64


def test_a_snapshot_is_the_runs_own(made: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    saved = load_file(made["train/pre/s0"][0] / "snapshots" / "step-000004" / "model.safetensors")
    taken = weights(made, "snapshot/pre@4/s0")
    assert all(torch.equal(saved[name], tensor) for name, tensor in taken.items())


def test_what_was_not_to_move_did_not(made: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    before, after = weights(made, "train/longer/s0"), weights(made, "train/attending/s0")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("self_attn" in name for name in moved)
    before, after = weights(made, "train/early/s0"), weights(made, "train/adapted/s0")
    assert set(after) == set(before), "adapters are merged: no name of theirs is left"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.endswith("proj.weight") or "_linear" in name for name in moved)


def test_policies_stand_in_the_record(made: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    policies = {name: record["config"]["spec"]["boundaries"] for name, (_, record) in made.items() if "train/" in name}
    assert policies.pop("train/leaky/s0") == "ignore"
    assert set(policies.values()) == {"respect"}
    config = json.loads((made["train/attending/s0"][0] / "model" / "config.json").read_text())
    assert config["max_position_embeddings"] == 4096
