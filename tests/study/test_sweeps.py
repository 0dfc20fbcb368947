"""The shipped studies of C16 to C18: they load, name every arm that the rules read, and sweep one thing at a time."""

from __future__ import annotations

from pathlib import Path

from prismlab.claims.rules import CLAIMS
from prismlab.study.arms import infer_arms
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study

STUDIES = Path(__file__).parents[2] / "studies"
ARMS = {claim.id: claim.arms for claim in CLAIMS}


def trainings(name: str) -> dict[str, TrainSpec]:
    checkpoints = load_study(STUDIES / name).study.checkpoints
    return {key: spec for key, spec in checkpoints.items() if isinstance(spec, TrainSpec)}


def test_long_context_has_its_arms_and_scores_at_the_base_s_length() -> None:
    study = load_study(STUDIES / "long-context.yaml").study
    assert set(ARMS["C16"]) <= set(infer_arms(study))
    task = study.tasks["at-480"].micro
    assert task is not None
    assert task.tokens == study.claims.long_context == 480
    assert "at-480" in study.evaluations[study.claims.evaluation or ""].tasks
    of = trainings("long-context.yaml")
    # Question, line break, answer and end fit a row of the base's, and none of mid-training's.
    assert of["mid"].seq_len < 480 + 3 <= of["base"].seq_len == of["extended"].seq_len
    assert (of["extended"].train, of["extended-attention"].train) == ("all", "attention")
    mixed = study.mixtures[of["mid"].mixture]
    assert all((study.sources[name].micro or study.sources["near"].micro).domain != "retrieval" for name in mixed.names)  # type: ignore[union-attr]


def test_schedules_sweep_one_thing_at_a_time() -> None:
    loaded = load_study(STUDIES / "schedules.yaml")
    assert set(ARMS["C17"]) | set(ARMS["C18"]) <= set(infer_arms(loaded.study))
    of = trainings("schedules.yaml")
    contexts = [of[f"context-{k}k"] for k in (8, 16, 32)]
    assert len({(spec.tokens, spec.mixture, spec.start, spec.rows * spec.seq_len) for spec in contexts}) == 1
    assert [spec.seq_len for spec in contexts] == [64, 128, 256]
    short, long = of["budget-16b"].tokens, of["budget-26b"].tokens
    assert abs(short / long - 16 / 26) < 0.01
    starts = {of[name].start for name in ("from-phase3", "from-phase4", "from-long")}
    assert starts == {"pre@50", "pre@100", "long"}
    # The longer budget goes on from where the shorter one begins to decay, so that those steps are done once.
    steps = {step.id: step for step in plan_study(loaded, machine_text=lambda: "").steps}
    assert steps["train/budget-26b/s0"].inputs["prefix"] == "train/budget-16b/s0"
    assert steps["train/budget-26b/s0"].config["prefix"] == {"step": 80}
