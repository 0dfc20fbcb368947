"""The stage from artifacts to artifacts: what it writes, and that it writes the same again."""

from __future__ import annotations

import json
import logging
import random
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
from prismlab.errors import DataError, StageError
from prismlab.model.generate import Completion
from prismlab.rl import train as module
from prismlab.rl.rewards import Reward
from prismlab.rl.rollouts import Prompt, Rollout, no_signal, rollout_metrics, rows_of, summary
from prismlab.rl.train import run
from prismlab.run.step import Artifact, Result, Silent


class Shown(Silent):
    """Keeps what the user is shown."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.said: list[str] = []

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self.steps.append(shown)

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def stage(
    start: Path, prompts_artifact: Artifact, artifact: Callable[..., Artifact], rl_spec: Callable[..., dict[str, Any]]
) -> Callable[..., Result]:
    def go(out: Path, seed: int = 3, progress: Silent | None = None, **changes: Any) -> Result:
        out.mkdir()
        config = {"spec": rl_spec(**changes), "template": "think", "seed": seed, "thresholds": [0.001, 0.01]}
        inputs = {"start": artifact("train", start), "prompts": prompts_artifact}
        return run(config, inputs, out, progress or Silent())

    return go


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that a random model can earn: letters among the response's bytes. The item 'bb' has no verdict."""

    def reward(item: Item, completion: Completion, penalties: Any) -> Reward:
        score = (
            None if item.id == "bb" else float(any(letter.isascii() and letter.isalpha() for letter in completion.text))
        )
        taken = 0.0 if completion.finished else penalties.no_stop
        return Reward(
            reward=None if score is None else score - taken,
            form_ok=True,
            score=score,
            verdict="no_verdict" if score is None else "right" if score else "wrong",
            reason="",
            no_stop=taken,
            repetition=0.0,
        )

    monkeypatch.setattr(module, "reward_of", reward)


@pytest.mark.usefixtures("letters")
def test_what_it_writes(stage: Callable[..., Result], tmp_path: Path, start: Path) -> None:
    out, shown = tmp_path / "out", Shown()
    result = stage(out, progress=shown, steps=4, snapshots=2, kl_beta=0.05, prompts_per_step=3)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rollouts = pq.read_table(out / "rollouts.parquet").to_pylist()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert len(rollouts) == 4 * 3 * 4
    for row in rows:
        mine = [r for r in rollouts if r["step"] == row["step"]]
        rewards = [r["reward"] for r in mine if r["reward"] is not None]
        assert sorted({r["item_id"] for r in mine}) == ["a", "bb", "ccc"]
        assert row["reward"] == pytest.approx(np.mean(rewards))
        assert row["reward_std"] == pytest.approx(np.std(rewards))
        assert row["length"] == pytest.approx(np.mean([r["length"] for r in mine]))
        assert row["truncation"] == pytest.approx(np.mean([not r["finished"] for r in mine]))
        for domain, name in (("math", "a"), ("science", "ccc")):
            scores = [r["score"] for r in mine if r["item_id"] == name]
            assert row["pass"][domain] == pytest.approx(np.mean(scores))
        assert row["unscored"] == 4
        groups = [{r["reward"] for r in mine if r["item_id"] == name} for name in ("a", "bb", "ccc")]
        assert row["no_signal"] == pytest.approx(sum(len(g) == 1 for g in groups) / 3)
        assert row["lr"] == pytest.approx(1e-3)
        assert row["entropy"] > 5.0
        assert row["grad_norm"] > 0.0
        assert row["kl"] >= 0.0
    assert {(r["item_id"], r["correct_before"], r["samples_before"]) for r in rollouts} == {
        ("a", 0, 4),
        ("bb", 1, 4),
        ("ccc", 2, 4),
    }
    assert [r["sample"] for r in rollouts[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert result.metrics["steps"] == 4
    assert result.metrics["reward_first"] == rows[0]["reward"]
    assert result.metrics["reward_last"] == rows[-1]["reward"]
    assert result.metrics["signal_share"] == pytest.approx(1.0 - np.mean([row["no_signal"] for row in rows]))
    assert result.tokens == sum(r["length"] for r in rollouts)
    assert [step["reward"] for step in shown.steps] == [row["reward"] for row in rows]
    assert any("16 responses had no verdict" in said for said in shown.said)
    final = load_file(out / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == ["step-000002", "step-000004"]
    snapshot = load_file(out / "snapshots" / "step-000004" / "model.safetensors")
    assert all(torch.equal(final[name], snapshot[name]) for name in final)
    half = load_file(out / "snapshots" / "step-000002" / "model.safetensors")
    assert any(not torch.equal(final[name], half[name]) for name in final)


@pytest.mark.usefixtures("letters")
def test_what_it_leaves_alone(stage: Callable[..., Result], tmp_path: Path, start: Path) -> None:
    """The next stage compares tokenizers, and the library would write a padding token into both files."""
    stage(tmp_path / "out", steps=1)
    folders = (start / "model", tmp_path / "out" / "model")
    old, new = ((folder / "tokenizer.json").read_text() for folder in folders)
    assert old == new
    old, new = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in folders)
    # How it was loaded is written by the library's own saving, too.
    assert {key: value for key, value in new.items() if key not in ("is_local", "local_files_only")} == old
    old, new = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert {**new, "dtype": old["dtype"]} == {**old, "use_cache": True}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.jsonl", "model", "rollouts.parquet"]


@pytest.mark.usefixtures("letters")
def test_snapshots_that_are_measured_and_dropped(stage: Callable[..., Result], tmp_path: Path, start: Path) -> None:
    changes = {"steps": 4, "snapshots": 2, "keep_master": True}
    stage(tmp_path / "kept", **changes)
    stage(tmp_path / "dropped", **changes, keep_snapshots=False)
    assert not (tmp_path / "dropped" / "snapshots").exists()
    folders = {step: tmp_path / "kept" / "snapshots" / f"step-{step:06d}" for step in (2, 4)}
    found = trace.read(tmp_path / "dropped" / trace.FILE)
    assert found == trace.measure(start / "model", folders, [0.001, 0.01])
    assert found.series("total")[1].sums.difference2 > found.series("total")[0].sums.difference2 > 0
    master, saved = (load_file(tmp_path / "dropped" / name / "model.safetensors") for name in ("master", "model"))
    assert all(torch.equal(master[name].bfloat16(), saved[name]) for name in saved)


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_same_again_bitwise(stage: Callable[..., Result], tmp_path: Path, beta: float) -> None:
    changes = {"steps": 3, "kl_beta": beta, "reference_every": 1}
    stage(tmp_path / "one", **changes)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    stage(tmp_path / "two", **changes)
    stage(tmp_path / "other", seed=4, **changes)
    one, two, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    tables = [pq.read_table(tmp_path / name / "rollouts.parquet") for name in ("one", "two", "other")]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_no_reward_is_a_result(stage: Callable[..., Result], tmp_path: Path, start: Path) -> None:
    """A random model never keeps the think format; without penalties and KL, nothing moves, and the user is told."""
    shown = Shown()
    penalties = {"no_stop_penalty": 0.0, "repetition_penalty": 0.0}
    result = stage(tmp_path / "out", progress=shown, steps=2, prompts_per_step=5, **penalties)
    assert result.metrics["reward_mean"] == 0.0
    assert result.metrics["signal_share"] == 0.0
    assert any("no group of responses had different rewards" in said for said in shown.said)
    assert any("3 prompts for 5 a step" in said for said in shown.said)
    new, old = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "out", start))
    assert all(torch.equal(new[name], old[name].bfloat16()) for name in new)
    rows = pq.read_table(tmp_path / "out" / "rollouts.parquet").to_pylist()
    assert {row["verdict"] for row in rows} == {"no_answer"}
    assert not any(row["form_ok"] for row in rows)


@pytest.mark.usefixtures("letters")
def test_weights_that_break_are_named(stage: Callable[..., Result], tmp_path: Path) -> None:
    optimizer = {"lr": 1e30, "schedule": "constant"}
    with pytest.raises(StageError, match=r"RL step [12]: "):
        stage(tmp_path / "out", steps=3, optimizer=optimizer)
    # What was sampled until then can be read.
    assert pq.read_table(tmp_path / "out" / "rollouts.parquet").num_rows >= 8


def test_without_prompts(
    start: Path, tmp_path: Path, artifact: Callable[..., Artifact], rl_spec: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    inputs = {"start": artifact("train", start), "prompts": artifact("prompts", tmp_path)}
    with pytest.raises(DataError, match="holds no prompt"):
        run({"spec": rl_spec(), "template": "think", "seed": 1}, inputs, tmp_path, Silent())


@pytest.mark.usefixtures("letters")
def test_nothing_is_printed(
    stage: Callable[..., Result], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stage(tmp_path / "out", steps=1)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")


def rewards(*values: float | None) -> list[Reward]:
    return [Reward(reward=v, form_ok=True, score=v, verdict="", reason="", no_stop=0.0, repetition=0.0) for v in values]


def test_groups_without_signal() -> None:
    assert no_signal([1.0, 0.0, 0.5, 0.5], 2) == 0.5
    assert no_signal([None, 0.0, None, None, 1.0, 0.9], 2) == pytest.approx(2 / 3)


def test_a_step_without_any_verdict_is_missing_not_zero(make_item: Callable[..., Item]) -> None:
    prompt = Prompt(item=make_item("a"), ids=(1,), correct=0, samples=2)
    completion = Completion(token_ids=[5, 0], text="", logprobs=None, sampler_logprobs=None, finished=True)
    rollout = Rollout(
        step=1, group=2, prompts=[prompt] * 2, completions=[completion] * 2, rewards=rewards(None, None), seconds=0.5
    )
    row = rollout_metrics(rows_of(rollout), rollout.group, rollout.seconds)
    assert row["reward"] is None
    assert row["pass"] == {}
    assert row["unscored"] == 2
    assert row["truncation"] == 0.0


def test_summary_by_hand() -> None:
    rows = [
        {"reward": value, "no_signal": 0.25, "unscored": 1, "seconds": 2.0, "seconds_sampling": 0.5}
        for value in [0.1, 0.3, *[0.5] * 16, None, 0.9]
    ]
    got = summary(rows)
    assert got["reward_first"] == pytest.approx(0.2)
    assert got["reward_last"] == pytest.approx(0.9)
    assert got["reward_mean"] == pytest.approx((0.1 + 0.3 + 8.0 + 0.9) / 19)
    assert (got["steps"], got["signal_share"], got["unscored"]) == (20, 0.75, 20)
    assert (got["seconds_sampling"], got["seconds_update"]) == (10.0, 30.0)


@pytest.mark.usefixtures("letters")
def test_adapters_alone_are_trained_and_merged(stage: Callable[..., Result], tmp_path: Path, start: Path) -> None:
    changes = {"steps": 2, "prompts_per_step": 3, "kl_beta": 0.05, "reference_every": 0}
    stage(tmp_path / "out", lora={"rank": 2, "targets": ["q_proj"]}, keep_master=True, **changes)
    new, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "master", start / "model"))
    assert new.keys() == old.keys()
    for name, tensor in new.items():
        difference = tensor - old[name]
        if "q_proj" in name:
            singular = torch.linalg.svdvals(difference)
            assert singular[0] > 0
            assert singular[2:].max() < 1e-5 * singular[0] + 1e-7, "an update of rank 2"
        else:
            assert not difference.any(), name
    stage(tmp_path / "again", lora={"rank": 2, "targets": ["q_proj"]}, keep_master=True, **changes)
    again = load_file(tmp_path / "again" / "master" / "model.safetensors")
    assert all(torch.equal(again[name], new[name]) for name in new)
