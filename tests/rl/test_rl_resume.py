"""A run that is killed and run again ends as one that was not, to the last bit; nothing is lost or there twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from prismlab.arith import trace
from prismlab.data.items import Item
from prismlab.model.generate import Completion, TransformersSampler
from prismlab.model.passes import Passes
from prismlab.rl import train as module
from prismlab.rl.rewards import Reward
from prismlab.rl.trainer import Trainer
from prismlab.run.step import Artifact, Silent
from prismlab.train.saves import Saves

STEPS = 6
PHASES = ["verification", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sampling", "update", "save"))]
TIMED = ("seconds", "seconds_sampling")


def reward(item: Item, completion: Completion, penalties: Any) -> Reward:
    """One that a random model can earn."""
    score = float(any(letter.isascii() and letter.isalpha() for letter in completion.text))
    return Reward(reward=score, form_ok=True, score=score, verdict="right", reason="", no_stop=0.0, repetition=0.0)


@pytest.fixture
def go(
    start: Path,
    prompts_artifact: Artifact,
    artifact: Callable[..., Artifact],
    rl_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    monkeypatch.setattr(module, "reward_of", reward)

    def run(out: Path, scratch: Path | None, seed: int = 3, progress: Any = None, **changes: Any) -> Any:
        out.mkdir(parents=True, exist_ok=True)
        given = {"steps": STEPS, "kl_beta": 0.05, "reference_every": 2, "keep_master": True, "save_every": 2}
        optimizer = {"lr": 3e-3, "schedule": "linear", "clip": 1.0}
        spec = rl_spec(**{**given, "optimizer": optimizer, **changes})
        config = {"spec": spec, "template": "think", "seed": seed, "thresholds": [0.001, 0.01]}
        if scratch is not None:
            config["scratch"] = str(scratch)
        return module.run(
            config, {"start": artifact("train", start), "prompts": prompts_artifact}, out, progress or Silent()
        )

    return run


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def settled() -> None:
    """Wait until the save under way is on the disk."""
    for thread in threading.enumerate():
        if thread.name.startswith("save-"):
            thread.join()


def killer(phase: str, step: int, saved: bool) -> None:
    """Arms this process to be killed in a phase of a step; if ``saved``, once the save under way is complete."""
    at = {"step": 0, "sampling": 0, "verification": 0}
    begin, update, save = Trainer._generate_single_turn, Trainer.training_step, Saves._write
    draw, judge = Passes._forward, module.reward_of

    def begun(self: Any, *args: Any, **rest: Any) -> Any:
        at.update(step=self.state.global_step + 1, sampling=0, verification=0)
        return begin(self, *args, **rest)

    def forward(self: Any, *args: Any, **rest: Any) -> Any:
        at["sampling"] += 1
        return die() if (phase, step, 3) == ("sampling", at["step"], at["sampling"]) else draw(self, *args, **rest)

    def judged(*args: Any) -> Any:
        at["verification"] += 1
        return die() if (phase, step, 5) == ("verification", at["step"], at["verification"]) else judge(*args)

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = update(self, *args, **kwargs)
        if phase == "update" and self.state.global_step + 1 == step:
            if saved:
                settled()
            die()
        return loss

    def written(self: Any, aside: Path, draft: Any) -> Any:
        if phase == "save" and draft.step >= step:
            aside.mkdir(parents=True, exist_ok=True)
            (aside / "part-00000.safetensors").write_bytes(b"half")
            die()
        return save(self, aside, draft)

    Passes._forward, module.reward_of = forward, judged
    Trainer._generate_single_turn, Trainer.training_step, Saves._write = begun, stepped, written


def killed(
    go: Callable[..., Any], out: Path, scratch: Path, phase: str, step: int, saved: bool = False, **changes: Any
) -> None:
    """Run in a process of its own until it kills itself."""

    def child() -> None:
        killer(phase, step, saved)
        go(out, scratch, **changes)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def end_state(out: Path) -> dict[str, Any]:
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = {f"{name}/{key}": value for name in ("model", "master") for key, value in weights_of(out / name).items()}
    return {
        "weights": {key: value.float().numpy().tobytes() for key, value in weights.items()},
        "rollouts": pq.read_table(out / "rollouts.parquet").to_pylist(),
        "metrics": [{key: value for key, value in row.items() if key not in TIMED} for row in metrics],
        "snapshots": {
            file.parent.name: file.read_bytes() for file in (out / "snapshots").glob("step-*/model.safetensors")
        },
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("phase", PHASES)
def test_killed_and_run_again(phase: str, go: Callable[..., Any], tmp_path: Path) -> None:
    go(tmp_path / "whole", None, snapshots=3)
    expected = end_state(tmp_path / "whole")
    assert len(expected["rollouts"]) == STEPS * 8
    assert len(expected["snapshots"]) == 3
    scratch = tmp_path / "scratch"
    for step in (1, 5, 6) if phase != "save" else (2, 4):
        killed(go, tmp_path / f"killed{step}", scratch, phase, step, snapshots=3)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    go(tmp_path / "again", scratch, snapshots=3)
    assert end_state(tmp_path / "again") == expected


def test_a_save_that_is_written_late_holds_its_own_step_alone(
    go: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Saves._write

    def late(self: Any, *args: Any) -> Any:
        time.sleep(0.5)  # training goes on meanwhile
        return write(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Saves, "_write", late)
        go(tmp_path / "first", tmp_path / "scratch")
    go(tmp_path / "again", tmp_path / "scratch")
    assert end_state(tmp_path / "again") == end_state(tmp_path / "first")


def test_what_was_sampled_is_not_sampled_again(
    go: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(go, tmp_path / "killed", tmp_path / "scratch", "update", 6, saved=True)
    sampled: list[int] = []
    judged: list[str] = []
    sample = TransformersSampler.sample
    monkeypatch.setattr(TransformersSampler, "sample", lambda self, *args: [sampled.append(1), sample(self, *args)][1])
    monkeypatch.setattr(module, "reward_of", lambda *args: [judged.append(args[0].id), reward(*args)][1])
    told: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    # The last save holds step 4 of 6; the responses of steps 5 and 6 are there, judged.
    go(tmp_path / "out", tmp_path / "scratch", progress=Told())
    assert (sampled, judged) == ([], [])
    assert any("going on from step 4" in text for text in told)


def test_the_reference_is_saved_and_put_back(
    go: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the saved reference, the next run's would be the start's: the library reads it from there."""
    references: list[dict[str, torch.Tensor]] = []
    log = module.Recorder.on_log

    def keep(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        references.append({name: p.clone() for name, p in self.trainer.ref_model.named_parameters()})
        log(self, args, state, control, logs, **rest)

    monkeypatch.setattr(module.Recorder, "on_log", keep)
    killed(go, tmp_path / "killed", tmp_path / "scratch", "sampling", 6)
    go(tmp_path / "again", tmp_path / "scratch")
    resumed = references[:]
    references.clear()
    go(tmp_path / "whole", None)
    assert len(resumed) < len(references)
    for mine, theirs in zip(reversed(resumed), reversed(references), strict=False):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    name = next(iter(references[0]))
    assert not torch.equal(references[-1][name], references[0][name])


def test_a_damaged_save_is_passed_over(go: Callable[..., Any], tmp_path: Path) -> None:
    go(tmp_path / "whole", None)
    scratch = tmp_path / "scratch"
    killed(go, tmp_path / "killed", scratch, "sampling", 6)
    newest = sorted(scratch.glob("*/saves/step-*"))[-1] / "part-00000.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(bytes(data))
    sampled = sorted(scratch.glob("*/rollouts/*.judged.parquet"))[-1]
    sampled.write_bytes(sampled.read_bytes()[:100])
    go(tmp_path / "again", scratch)
    assert end_state(tmp_path / "again") == end_state(tmp_path / "whole")


@pytest.mark.slow
def test_a_save_of_another_run_is_not_taken_up(go: Callable[..., Any], tmp_path: Path) -> None:
    killed(go, tmp_path / "killed", tmp_path / "scratch", "update", 6)
    go(tmp_path / "other", tmp_path / "scratch", seed=4)
    go(tmp_path / "whole", None, seed=4)
    ours, expected = (weights_of(tmp_path / name / "model") for name in ("other", "whole"))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_measured_snapshots_go_on(go: Callable[..., Any], tmp_path: Path) -> None:
    changes = {"snapshots": 3, "keep_snapshots": False}
    go(tmp_path / "whole", None, **changes)
    for step in (4, 5, 6):
        killed(go, tmp_path / "killed", tmp_path / "scratch", "update", step, **changes)
    go(tmp_path / "again", tmp_path / "scratch", **changes)
    assert trace.read(tmp_path / "again" / trace.FILE) == trace.read(tmp_path / "whole" / trace.FILE)
