"""Arms of the sweeps: what the graph tells, what a study names, and how long its base was trained for."""

from __future__ import annotations

from typing import Any

import pytest
from synthetic import World, study_json

from prismlab.claims.schedule_rules import trained_length
from prismlab.study.arms import infer_arms
from prismlab.study.check import cross_problems
from prismlab.study.study import Study


def study(arms: dict[str, str] | None = None, **more: Any) -> Study:
    """The synthetic study with a merge of base and mid-mc that is trained on."""
    given = study_json((0,))
    given["checkpoints"] |= {
        "merged": {"stage": "merge", "weights": {"base": 0.15, "mid-mc": 0.85}},
        "extended": {"stage": "extend", "from": "merged", "mixture": "mc", "steps": 4, "rows": 1, "seq_len": 128},
        **more,
    }
    given["claims"]["arms"] = arms or {}
    return Study.model_validate(given)


def test_long_context_training_of_a_merge_is_the_repair() -> None:
    assert infer_arms(study())["mid[MC]>merge>extend"] == "extended"
    twice = {"other": {"stage": "extend", "from": "merged", "mixture": "mc", "steps": 8, "rows": 1, "seq_len": 128}}
    assert infer_arms(study(**twice))["mid[MC]>merge>extend"] == "extended"
    assert infer_arms(study({"mid[MC]>merge>extend": "other"}, **twice))["mid[MC]>merge>extend"] == "other"


def test_extending_what_is_no_merge_is_no_repair() -> None:
    straight = {"stage": "extend", "from": "mid-mc", "mixture": "mc", "steps": 4, "rows": 1, "seq_len": 128}
    assert "mid[MC]>merge>extend" not in infer_arms(study(extended=straight))


@pytest.mark.parametrize(
    "arm", ["mid[MCS]@16k", "mid[MC]@26B", "phase3>mid[MCS]", "extend>mid[MCS]", "mid[MC]>merge>extend", "base>rl[MC]"]
)
def test_a_study_may_name_the_arms_of_the_sweeps(arm: str) -> None:
    assert not [text for text in cross_problems(study({arm: "mid-mcs"})) if "claims.arms" in text]


@pytest.mark.parametrize(
    "arm", ["mid[MCS]@", "mid[MCS]@16", "phase5>mid[MCS]", "mid[SCM]", "mid[MC]>merged", "base@8k"]
)
def test_other_names_are_refused(arm: str) -> None:
    assert [text for text in cross_problems(study({arm: "mid-mcs"})) if "no arm is called so" in text]


def test_the_length_of_the_base_is_the_longest_of_its_own_training() -> None:
    def length(checkpoints: dict[str, Any], base: str = "base", given: int | None = None) -> int | None:
        world = World()
        world.study = {**world.study, "checkpoints": checkpoints, "claims": {"long_context": given}}
        world.arms = {"base": base}
        return trained_length(world.table)

    pretrained = {"stage": "pretrain", "from": "tiny", "seq_len": 64}
    longer = {"stage": "extend", "from": "base", "seq_len": 256}
    assert length({"base": pretrained, "mid": {"stage": "midtrain", "from": "base", "seq_len": 512}}) == 64
    assert length({"base": pretrained, "long": longer}, "long") == 256
    assert length({"base": {**pretrained, "seq_len": 1024}, "long": longer}, "long") == 1024
    assert length({}, "outside") is None
    assert length({"base": pretrained}, given=4096) == 4096
