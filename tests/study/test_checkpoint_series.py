"""Snapshots as starts, and which trainings share a trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies import STUDY, loaded, study

from prismlab.errors import SpecError
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.cost import step_tokens
from prismlab.study.plan import plan_study
from prismlab.study.series import prefixes, snapshots_of, stable_steps
from prismlab.study.steps import Plan
from prismlab.train.optim import snapshot_steps
from prismlab.train.optim import stable_steps as trained_stable_steps

RUN: dict[str, Any] = {"stage": "midtrain", "from": "base", "mixture": "mc", "rows": 4, "seq_len": 16}
CONSTANT = {"schedule": "constant"}
WSD = {"schedule": "wsd", "decay_steps": 2}


def with_runs(**runs: dict[str, Any]) -> dict[str, Any]:
    given = {name: {**RUN, **run} for name, run in runs.items()}
    return study(checkpoints={**STUDY["checkpoints"], **given})


def planned(folder: Path, **runs: dict[str, Any]) -> Plan:
    return plan_study(loaded(folder, with_runs(**runs)), machine_text=lambda: "t")


def test_a_snapshot_is_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        pre={"steps": 30, "snapshots": 3},
        early={"from": "pre@10", "steps": 5},
        late={"from": "pre", "steps": 5},
    )
    steps = {step.id: step for step in plan.steps}
    taken = steps["snapshot/pre@10/s0"]
    assert taken.config["step"] == 10
    assert taken.inputs == {"run": "train/pre/s0"}
    assert steps["train/early/s0"].inputs["start"] == taken.id
    assert steps["train/late/s0"].inputs["start"] == "train/pre/s0"
    # A stop on the way is no base of an arm, whose pretraining has an end.
    assert plan.arms["base"] == "base"
    # The analyses that hold a stage against its start take the snapshot, too.
    assert "weights/pre@10:early/s0" in steps


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("pre@11", "saves no snapshot at step '11'"),
        ("pre@x", "saves no snapshot at step 'x'"),
        ("plain@5", "'plain' has no snapshots"),
        ("tiny@5", "'tiny' has no snapshots"),
        ("measured@5", "set its 'keep_snapshots: true'"),
    ],
)
def test_a_snapshot_that_is_not_there_is_refused(tmp_path: Path, start: str, says: str) -> None:
    runs = {
        "pre": {"steps": 30, "snapshots": 3},
        "plain": {"steps": 10},
        "measured": {"steps": 10, "snapshots": 2, "keep_snapshots": False},
    }
    with pytest.raises(SpecError, match=says):
        planned(tmp_path, **runs, next={"from": start, "steps": 5})


def test_a_cycle_through_a_snapshot_is_found(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a cycle"):
        planned(tmp_path, a={"from": "b@5", "steps": 5, "snapshots": 1}, b={"from": "a@5", "steps": 5, "snapshots": 1})


@pytest.mark.parametrize(("steps", "snapshots"), [(30, 3), (7, 3), (2, 2), (100, 7), (5, 0)])
def test_planner_and_loop_save_after_the_same_steps(steps: int, snapshots: int) -> None:
    assert snapshots_of(steps, snapshots) == sorted(snapshot_steps(steps, snapshots))


@pytest.mark.parametrize("optimizer", [CONSTANT, WSD, {"schedule": "wsd"}, {"schedule": "wsd", "warmup": 3}])
@pytest.mark.parametrize("steps", [6, 25, 100])
def test_planner_and_loop_know_the_same_stable_steps(optimizer: dict[str, Any], steps: int) -> None:
    spec = TrainSpec.model_validate({**RUN, "steps": steps, "optimizer": optimizer})
    trained = trained_stable_steps(steps, spec.optimizer.model_dump(mode="json"))
    assert stable_steps(spec) == trained
    assert 0 < trained <= steps


def shared(folder: Path, **runs: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return prefixes(loaded(folder, with_runs(**runs)).study)


def test_budgets_share_the_trunk_where_the_schedule_allows_it(tmp_path: Path) -> None:
    assert shared(
        tmp_path,
        long={"steps": 30, "optimizer": CONSTANT},
        short={"steps": 10, "optimizer": CONSTANT},
        middle={"steps": 20, "optimizer": CONSTANT},
    ) == {"middle": ("short", 10), "long": ("middle", 20)}
    # Of warmup-stable-decay each branches off before its own decay; a constant run may go on from it.
    assert shared(
        tmp_path,
        a={"steps": 10, "optimizer": WSD},
        b={"steps": 20, "optimizer": WSD},
        c={"steps": 30, "optimizer": {"schedule": "constant"}},
    ) == {"b": ("a", 8), "c": ("b", 18)}


@pytest.mark.parametrize(
    "other",
    [
        {"optimizer": {"schedule": "cosine"}},
        {"optimizer": {"schedule": "constant", "lr": 1e-4}},
        {"optimizer": {"schedule": "constant", "warmup": 2}},
        {"mixture": "mcs"},
        {"seq_len": 32},
        {"rows": 8},
        {"from": "tiny"},
        {"boundaries": "ignore"},
        {"share_prefix": False},
        {"snapshots": 5},
    ],
)
def test_runs_that_differ_before_the_branch_stay_apart(tmp_path: Path, other: dict[str, Any]) -> None:
    same = {"steps": 10, "optimizer": CONSTANT}
    assert shared(tmp_path, a=same, b={"steps": 20, "optimizer": CONSTANT, **other}) == {}
    assert shared(tmp_path, a=same, b={"steps": 20, "optimizer": CONSTANT, "snapshots": 1}) == {"b": ("a", 10)}


def test_the_plan_says_who_goes_on_from_whom_and_counts_tokens_once(tmp_path: Path) -> None:
    runs = {f"t{steps}": {"steps": steps, "optimizer": CONSTANT} for steps in (10, 20, 30)}
    steps = {step.id: step for step in planned(tmp_path, **runs).steps}
    short, middle, long = (steps[f"train/t{n}/s0"] for n in (10, 20, 30))
    assert "prefix" not in short.inputs
    assert (short.config["branch"], middle.config["branch"]) == (10, 20)
    assert "branch" not in long.config
    assert (middle.inputs["prefix"], long.inputs["prefix"]) == (short.id, middle.id)
    assert (middle.config["prefix"], long.config["prefix"]) == ({"step": 10}, {"step": 20})
    assert [step_tokens(step) for step in (short, middle, long)] == [10 * 4 * 16] * 3


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (
            {"seq_len": 4096},
            "rows of 4096 tokens are longer than the 2048 that 'base' was made for; say how with 'rope'",
        ),
        ({"seq_len": 4096, "allow_longer": True}, None),
        ({"seq_len": 4096, "rope": {"theta": 1e6}}, None),
        ({"seq_len": 2048}, None),
        ({"seq_len": 8192, "from": "longer"}, "rows of 8192 tokens are longer than the 4096 that 'longer'"),
        ({"seq_len": 4096, "from": "longer"}, None),
        ({"seq_len": 6144, "from": "stretched"}, None),
        ({"seq_len": 6145, "from": "stretched@5"}, "longer than the 6144 that 'stretched@5'"),
        ({"seq_len": 4096, "from": "llama-hub"}, None),
        ({"seq_len": 8193, "from": "nemotron"}, "longer than the 8192 that 'nemotron'"),
        ({"seq_len": 10**6, "from": "unknown"}, None),
        ({"context_parallel": 2, "nproc": 2, "launch": "torchrun", "from": "nemotron"}, "'nemotron' has Mamba layers"),
        ({"context_parallel": 2, "nproc": 2, "launch": "torchrun"}, None),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_read(
    tmp_path: Path, run: dict[str, Any], says: str | None
) -> None:
    given = {
        "longer": {**RUN, "steps": 5, "seq_len": 4096, "allow_longer": True},
        "stretched": {**RUN, "steps": 5, "snapshots": 1, "rope": {"scaling": "yarn", "factor": 3.0}},
        "asked": {**RUN, "steps": 5, **run},
    }
    bases = {
        **STUDY["bases"],
        "llama-hub": {"checkpoint": "llama-3.1-8b"},
        "nemotron": {"checkpoint": "nemotron-h-8b"},
        "unknown": {"checkpoint": "owner/name@main"},
    }
    data = study(bases=bases, tokenizer="tiny", checkpoints={**STUDY["checkpoints"], **given})
    if says is None:
        loaded(tmp_path, data)
        return
    with pytest.raises(SpecError, match=says):
        loaded(tmp_path, data)
