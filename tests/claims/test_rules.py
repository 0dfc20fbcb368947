"""Every decision rule on synthetic studies: supported, contradicted, inconclusive, not tested, one seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import SCORES, SWEEP_SCORES, World, complete, near

from prismlab.claims.ledger import build
from prismlab.claims.reference import REFERENCE
from prismlab.claims.rules import CLAIMS, RULES_VERSION

Change = Callable[[World], object]
DECIDED = [claim.id for claim in CLAIMS]
MCS, RL = "mid[MCS]", "mid[MCS]>rl[MCS]"
WIDE = [-60.0, 5.0, 65.0]


def entry(world: World, claim: str) -> dict[str, Any]:
    ledger = build(world.table, [claim])
    json.dumps(ledger, allow_nan=False)
    return ledger["claims"][0]


def scores(arm: str, **domains: list[float]) -> Change:
    """Scores of an arm as in the complete world, but for the domains given."""
    base = {
        d: near(v, 0.6, arm, d) for d, v in zip(("math", "code", "science"), (SCORES | SWEEP_SCORES)[arm], strict=True)
    }
    return lambda world: world.evaluate(arm, **{**base, **domains})


def at(value: float, *names: str, spread: float = 0.5) -> list[float]:
    return near(value, spread, "at", *names)


def both(*changes: Change) -> Change:
    return lambda world: [change(world) for change in changes]


def rescore(**arms_average: float) -> Change:
    """All domains of an arm at one level."""

    def change(world: World) -> None:
        for checkpoint, value in arms_average.items():
            arm = next(a for a, c in world.arms.items() if c == checkpoint.replace("_", "-"))
            world.evaluate(arm, at(value, arm, "m"), at(value, arm, "c"), at(value, arm, "s"))

    return change


def thresholds(t: float, values: list[float]) -> Change:
    return lambda w: w.weigh(MCS, RL, near(0.001, 1e-5, "l"), near(0.05, 0.002, "s"), shares={t: values})


def walk(**places: list[float]) -> Change:
    """The straight path 10, 40, 48 with 5 points a leg, but where ``at_<quarters>`` says otherwise."""

    def change(world: World) -> None:
        along = {x / 4: near(10 + 30 * min(1, x / 4) + 8 * max(0, x / 4 - 1), 0.5, "walk", x) for x in range(9)}
        along |= {int(name.removeprefix("at_")) / 4: values for name, values in places.items()}
        world.walk("base", MCS, RL, along)

    return change


CONTRADICTED: dict[str, Change] = {
    "C1": scores(MCS, science=at(10.0, "C1")),
    "C2": lambda w: w.evaluate(MCS, at(48, "a"), at(38, "b"), at(45, "c"), web=near(2.4, 0.01, "w"), chat=at(2.9, "x")),
    "C3": scores("mid[MC]", code=at(1.0, "C3")),
    "C4": scores("base>rl[MCS]", math=at(90, "x"), code=at(90, "y"), science=at(90, "z")),
    "C5": rescore(rl_mc_mc=30, rl_mcs_mc=31, rl_mc_mcs=50, rl_mcs_mcs=51),
    "C6": scores("mid[MC]>rl[MCS]", science=at(70, "C6")),
    "C7": lambda w: w.weigh(MCS, RL, near(0.001, 1e-5, "l"), near(0.30, 0.002, "C7")),
    "C8": thresholds(0.001, near(0.99, 0.001, "C8")),
    "C9": lambda w: w.weigh("base", "base>rl[MCS]", near(0.001, 1e-5, "l"), near(0.2, 0.002, "C9")),
    "C10": lambda w: w.aim("mid[MC]", MCS, near(0.97, 0.005, "C10")),
    "C11": lambda w: w.compare(MCS, RL, near(0.99, 0.0005, "C11")),
    "C12": lambda w: w.follow(RL, near(0.3, 0.02, "C12"), [0.01, 0.012, 0.011], [0.05, 0.051, 0.055]),
    "C13": walk(at_6=near(30.0, 0.5, "C13")),
    "C14": lambda w: w.behave(MCS, near(40, 1, "l"), near(0.15, 0.003, "n"), near(0.05, 0.001, "C14")),
    "C15": lambda w: w.solve(RL, near(-4.0, 0.5, "C15")),
    "C16": lambda w: w.reach("mid[MC]>merge>extend", near(12.0, 0.5, "C16")),
    "C17": scores("mid[MC]@26B", math=at(70, "C17"), code=at(60, "C17")),
    "C18": scores("phase4>mid[MCS]", math=at(70, "C18"), code=at(70, "C18"), science=at(70, "C18")),
}  # fmt: skip
INCONCLUSIVE: dict[str, Change] = {
    "C1": scores(MCS, math=WIDE),
    "C2": lambda w: w.evaluate(MCS, at(48, "a"), at(38, "b"), at(45, "c"), web=[1.5, 2.0, 2.6], chat=[1.5, 2.0, 2.6]),
    "C3": scores(MCS, science=WIDE),
    "C4": scores(RL, science=WIDE, math=WIDE, code=WIDE),
    "C5": scores(RL, science=WIDE, math=WIDE, code=WIDE),
    "C6": scores(RL, science=WIDE),
    "C7": lambda w: w.weigh("base", MCS, [0.2, 0.21, 0.2], [0.85, 0.9, 0.95]),
    "C8": thresholds(0.1, [0.01, 0.99, 0.99]),
    "C9": lambda w: w.weigh("base", "base>rl[MCS]", near(0.001, 1e-5, "l"), [0.02, 0.05, 0.09]),
    "C10": lambda w: w.weigh("base", MCS, [0.17, 0.2, 0.24], [0.96, 0.961, 0.959]),
    "C11": lambda w: w.compare(MCS, RL, [0.9995, 0.998, 0.996]),
    "C12": lambda w: w.follow(RL, [0.3, 0.5, 0.8], [0.01, 0.012, 0.011], [0.05, 0.051, 0.055]),
    "C13": walk(at_1=[5.0, 20.0, 9.0]),
    "C14": lambda w: w.behave(MCS, WIDE, near(0.15, 0.003, "n"), near(-0.03, 0.001, "g")),
    "C15": lambda w: w.solve(RL, [-2.0, 3.0, 9.0]),
    "C16": lambda w: w.reach("mid[MC]", [2.0, 30.0, 70.0]),
    "C17": scores("mid[MC]@16B", math=WIDE),
    "C18": scores("extend>mid[MCS]", math=WIDE),
}  # fmt: skip
LOST: dict[str, tuple[Change, str]] = {
    "C1": (lambda w: w.arms.pop(MCS), "the study has no arm mid[MCS]"),
    "C2": (lambda w: w.lose("evaluation", "it ended", checkpoint="base"), "it ended"),
    "C3": (lambda w: w.arms.pop("mid[M]"), "the study has no arm mid[M]"),
    "C4": (lambda w: w.lose("evaluation", "no reward was earned", checkpoint="rl-base-mcs"), "no reward was earned"),
    "C5": (lambda w: w.arms.pop("mid[MCS]>rl[MC]"), "the study has no arm mid[MCS]>rl[MC]"),
    "C6": (lambda w: w.forget("evaluation", checkpoint="rl-mc-mcs"), "no evaluation 'core' of rl-mc-mcs"),
    "C7": (lambda w: w.forget("weights", old="base", new="mid-mcs"), "no weights analysis of base -> mid-mcs"),
    "C8": (lambda w: w.forget("weights", new="rl-mcs-mcs"), "no weights analysis of mid-mcs -> rl-mcs-mcs"),
    "C9": (lambda w: w.forget("weights", old="base", new="rl-base-mcs"), "no weights analysis of base -> rl-base-mcs"),
    "C10": (lambda w: w.forget("direction"), "no direction of mid-mc and mid-mcs from base"),
    "C11": (lambda w: w.forget("cka", old="mid-mcs"), "no cka analysis of mid-mcs -> rl-mcs-mcs"),
    "C12": (lambda w: w.forget("trajectory", checkpoint="rl-mcs-mcs"), "no trajectory of rl-mcs-mcs"),
    "C13": (lambda w: w.forget("landscape"), "no landscape of base, mid-mcs, rl-mcs-mcs"),
    "C14": (lambda w: w.forget("behaviour", checkpoint="base"), "no behaviour of base"),
    "C15": (lambda w: w.forget("frontier"), "no frontier of rl-mcs-mcs"),
    "C16": (lambda w: w.forget("evaluation", checkpoint="extended"), "no evaluation 'ruler' of extended"),
    "C17": (lambda w: w.arms.pop("mid[MCS]@32k"), "the study has no arm mid[MCS]@32k"),
    "C18": (lambda w: w.arms.pop("phase3>mid[MCS]"), "the study has no arm phase3>mid[MCS]"),
}  # fmt: skip


def test_every_claim_has_a_case() -> None:
    assert sorted(DECIDED) == sorted(CONTRADICTED) == sorted(INCONCLUSIVE) == sorted(LOST)
    assert DECIDED == [f"C{n}" for n in range(1, 19)] == [c.id for c in CLAIMS]
    assert sorted(REFERENCE) == sorted(c.id for c in CLAIMS)


@pytest.mark.parametrize("claim", DECIDED)
def test_supported_where_it_holds(claim: str) -> None:
    found = entry(complete(), claim)
    assert found["verdict"] == "supported", found
    assert found["p"] < 0.025
    assert found["effect"]["n"] == 3
    assert found["effect"]["lo"] < found["effect"]["value"] < found["effect"]["hi"]
    assert found["evidence"]
    assert found["missing"] == []


@pytest.mark.parametrize("claim", DECIDED)
def test_contradicted(claim: str) -> None:
    world = complete()
    CONTRADICTED[claim](world)
    found = entry(world, claim)
    assert found["verdict"] == "contradicted", found
    assert found["p"] > 0.5


@pytest.mark.parametrize("claim", DECIDED)
def test_inconclusive(claim: str) -> None:
    world = complete()
    INCONCLUSIVE[claim](world)
    found = entry(world, claim)
    assert found["verdict"] == "inconclusive", found
    assert found["power"]


@pytest.mark.parametrize("claim", DECIDED)
def test_not_tested_names_what_is_missing(claim: str) -> None:
    world = complete()
    change, reason = LOST[claim]
    change(world)
    found = entry(world, claim)
    assert found["verdict"] == "not_tested", found
    assert any(reason in text for text in found["missing"]), found["missing"]
    assert (found["p"], found["p_holm"]) == (None, None)


@pytest.mark.parametrize("claim", DECIDED)
def test_one_seed_is_inconclusive_and_shows_the_effect(claim: str) -> None:
    found = entry(complete(seeds=(0,)), claim)
    assert found["verdict"] == "inconclusive"
    assert any("1 seed gives no interval" in note for note in found["notes"])
    assert found["effect"]["value"] is not None
    assert (found["effect"]["lo"], found["p"]) == (None, None)


def test_a_study_without_anything_is_not_tested_throughout() -> None:
    world = World()
    assert build(world.table)["counts"] == {"supported": 0, "contradicted": 0, "inconclusive": 0, "not_tested": 18}
    bare = World(arms={"base": "base"})
    bare.study = {**bare.study, "evaluations": {}, "analyses": {}}
    assert build(bare.table)["counts"]["not_tested"] == 18


def test_c1_effect_is_the_least_certain_domain() -> None:
    """Known values: gains 40, 30 and 1 +- 0.1 points; science has the largest p and stands for the claim."""
    world = complete()
    world.evaluate("base", [10, 10, 10], [10, 10, 10], [10, 10, 10])
    world.evaluate(MCS, [50, 50.1, 49.9], [40, 40.1, 39.9], [11, 11.1, 10.9])
    found = entry(world, "C1")
    assert found["effect"]["label"] == "science"
    assert found["effect"]["value"] == pytest.approx(1.0)
    assert found["seeds"] == pytest.approx({"0": 1.0, "1": 1.1, "2": 0.9})
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert found["effect"]["hi"] == pytest.approx(1 + half)


def test_c2_is_non_inferiority_with_the_studys_margin() -> None:
    world = complete()
    world.evaluate("base", at(5, "a"), at(4, "b"), at(20, "c"), web=[2.0, 2.0, 2.0], chat=[2.0, 2.0, 2.0])
    world.evaluate(MCS, at(48, "d"), at(38, "e"), at(45, "f"), web=[2.059, 2.06, 2.061], chat=[1.977, 1.98, 1.981])
    found = entry(world, "C2")
    assert found["verdict"] == "supported"
    assert found["effect"]["value"] == pytest.approx((0.06 - 0.062 / 3) / 2)
    assert [p["label"] for p in found["parts"] if not p["decides"]] == ["web", "chat"]
    assert any("got worse" in note and "web" in note and "chat" not in note for note in found["notes"])
    world.study["claims"]["general_margin"] = 0.01
    assert entry(world, "C2")["verdict"] == "contradicted"


def test_c5_needs_the_mid_effect_to_beat_an_rl_effect_of_either_sign() -> None:
    """RL prompts that hurt by more than mid-training helps contradict the claim as those that help by more do."""
    for sign in (1, -1):
        world = complete()
        low, high = (30, 50) if sign > 0 else (50, 30)
        rescore(rl_mc_mc=low, rl_mcs_mc=low + 4, rl_mc_mcs=high, rl_mcs_mcs=high + 4)(world)
        found = entry(world, "C5")
        assert found["verdict"] == "contradicted"
        shown = {p["label"]: p["effect"]["value"] for p in found["parts"] if not p["decides"]}
        assert shown["mid effect (mid MC to MCS)"] == pytest.approx(4, abs=1)
        assert shown["RL effect (RL prompts MC to MCS)"] == pytest.approx(20 * sign, abs=1)


def test_c6_is_a_difference_of_differences() -> None:
    """The gain after MCS is large, but that after MC is as large: nothing was unlocked."""
    world = complete()
    for mid, start in (("mid[MC]", 20.0), (MCS, 45.0)):
        scores(mid, science=at(start, mid))(world)
        scores(f"{mid}>rl[MCS]", science=at(start + 15, mid, "rl"))(world)
    found = entry(world, "C6")
    assert found["verdict"] == "inconclusive"
    pieces = [p["effect"]["value"] for p in found["parts"] if not p["decides"]]
    assert pieces == pytest.approx([15, 15], abs=1)


def test_c7_without_the_control_is_at_most_inconclusive() -> None:
    world = complete()
    world.forget("weights", new="control")
    del world.arms["mid[MCS]>finetune[MCS]"]
    found = entry(world, "C7")
    assert found["verdict"] == "inconclusive"
    assert any("without a matched fine-tuning control" in note for note in found["notes"])
    CONTRADICTED["C7"](world)
    assert entry(world, "C7")["verdict"] == "contradicted"


def test_c7_a_control_that_is_as_sparse_as_rl_contradicts_the_attribution() -> None:
    world = complete()
    world.weigh(MCS, "mid[MCS]>finetune[MCS]", near(0.001, 1e-5, "c"), near(0.02, 0.002, "control"))
    found = entry(world, "C7")
    assert found["verdict"] == "contradicted"
    assert [p["verdict"] for p in found["parts"] if p["decides"]] == ["supported"] * 3 + ["contradicted"]


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 1e-3), ("schedule", "cosine"), ("steps", 21), ("precision", "bf16"), ("from", "mid-mc")]
)
def test_c7_a_control_that_does_not_match_is_no_control(key: str, value: object) -> None:
    world = complete()
    spec = world.study["checkpoints"]["control"]
    (spec["optimizer"] if key in spec["optimizer"] else spec)[key] = value
    found = entry(world, "C7")
    assert found["verdict"] == "inconclusive"
    assert any("is no control of" in note and repr(value) in note for note in found["notes"])


@pytest.mark.parametrize("arm", [RL, "mid[MCS]>finetune[MCS]"])
@pytest.mark.parametrize("known", [True, False])
def test_c7_a_control_that_cannot_be_held_against_rl_is_none(arm: str, known: bool) -> None:
    """A study may name a merge, or a checkpoint from outside, for an arm: neither tells how it was trained."""
    world = complete()
    if known:
        world.study["checkpoints"]["elsewhere"] = {"stage": "merge", "weights": {"base": 0.5, "mid-mcs": 0.5}}
    world.arms[arm] = "elsewhere"
    share = 0.05 if arm == RL else 0.4
    world.weigh(MCS, arm, near(0.001, 1e-5, "l"), near(share, 0.002, "s"))
    found = entry(world, "C7")
    assert found["verdict"] == "inconclusive"
    assert "the study file does not say how 'elsewhere' was trained" in found["notes"][0]


def test_c8_needs_every_threshold() -> None:
    world = complete()
    for artifact in world.inputs.values():
        if artifact.kind == "weights":
            artifact.metrics["total"]["changed"].pop("0.05")
    found = entry(world, "C8")
    assert found["verdict"] == "not_tested"
    assert any("at 5.0%" in reason for reason in found["missing"])


def test_c9_one_sub_component_beyond_the_bound_contradicts() -> None:
    world = complete()
    share = near(0.05, 0.0005, "C9")
    parts = {"attention.q": share, "attention.v": near(0.05, 0.0005, "v"), "mamba.conv1d": near(0.09, 0.0005, "conv")}
    world.weigh("base", "base>rl[MCS]", near(0.001, 1e-5, "l"), share, parts=parts)
    world.weigh(MCS, RL, near(0.001, 1e-5, "l"), share, parts={k: near(0.05, 0.0005, k) for k in parts})
    found = entry(world, "C9")
    assert found["verdict"] == "contradicted"
    assert found["effect"]["label"] == "mamba.conv1d"
    assert found["effect"]["value"] == pytest.approx(-4.0, abs=0.2)


def test_c10_unequal_distance_contradicts_though_directions_differ() -> None:
    world = complete()
    world.weigh("base", "mid[MC]", near(0.3, 0.001, "far"), near(0.96, 0.002, "s"))
    found = entry(world, "C10")
    assert (found["verdict"], found["effect"]["label"]) == ("contradicted", "equal distance: L2 of MC / L2 of MCS")


def test_c11_takes_the_smallest_pair() -> None:
    world = complete()
    world.compare("mid[MC]", "mid[MC]>rl[MCS]", near(0.99, 0.0005, "C11"))
    assert entry(world, "C11")["verdict"] == "contradicted"


def test_c12_says_what_the_schedule_does() -> None:
    world = complete()
    assert any("64%" in note for note in entry(world, "C12")["notes"])
    world.study["checkpoints"]["rl-mcs-mcs"]["optimizer"]["schedule"] = "constant"
    assert not any("64%" in note for note in entry(world, "C12")["notes"])


def test_c13_each_inner_point_is_held_to_the_line_between_its_leg_s_ends() -> None:
    """Known values: 10, 40, 50 at the ends; the line passes 32.5 at three quarters of the first leg, and W has 26.5."""
    world = complete()
    scatter = (0.0, 0.2, -0.2)
    ends = {0: 10.0, 1: 17.5, 2: 25.0, 3: 26.5, 4: 40.0, 5: 42.5, 6: 46.0, 7: 47.5, 8: 50.0}
    # The ends scatter with their seed, so that the difference by seed does not.
    walk(**{f"at_{x}": [v + s for s in scatter] for x, v in ends.items()})(world)
    found = entry(world, "C13")
    parts = {part["label"]: part for part in found["parts"]}
    assert len(parts) == 2 + 3 + 3
    dip = parts["base to mid, at 0.75 of the way: minus the straight line"]
    assert dip["seeds"] == pytest.approx({"0": -6.0, "1": -6.0, "2": -6.0})
    assert parts["mid to RL, at 0.5 of the way: minus the straight line"]["effect"]["value"] == pytest.approx(1.0)
    assert parts["RL minus mid"]["effect"]["value"] == pytest.approx(10.0)
    walk(at_3=near(31.0, 0.3, "shallow"))(world)
    assert entry(world, "C13")["verdict"] == "supported", "1.5 points below the line are no barrier by the rule"


def test_c13_a_fall_in_rl_contradicts_though_no_point_lies_below_the_line() -> None:
    world = complete()
    walk(**{f"at_{x}": near(40 - 3 * (x - 4), 0.2, "fall", x) for x in range(5, 9)})(world)
    found = entry(world, "C13")
    assert (found["verdict"], found["effect"]["label"]) == ("contradicted", "RL minus mid")


def test_c13_asks_for_five_points_a_leg() -> None:
    world = complete()
    world.walk("base", MCS, RL, {x / 2: near(10 + 15 * x, 0.5, "few", x) for x in range(5)})
    found = entry(world, "C13")
    assert found["verdict"] == "not_tested"
    assert "the landscape has 3 points from base to mid, the rule asks for 5 or more" in found["missing"]


def test_c13_reads_the_landscape_of_its_own_arms() -> None:
    world = complete()
    world.forget("landscape")
    world.walk("base", "mid[MC]", "mid[MC]>rl[MCS]", {x / 4: near(10 + 9 * x, 0.5, "other", x) for x in range(9)})
    assert entry(world, "C13")["verdict"] == "not_tested"


def test_c14_reads_math_tasks_only() -> None:
    world = complete()
    world.study["tasks"]["addition"]["micro"]["domain"] = "code"
    found = entry(world, "C14")
    assert found["verdict"] == "not_tested"
    assert "no task in the domain 'math'" in found["missing"][0]


@pytest.mark.parametrize(
    ("first", "fresh", "verdict"), [(16, 16, "supported"), (8, 64, "not_tested"), (16, 8, "not_tested")]
)
def test_c15_asks_for_sixteen_samples(first: int, fresh: int, verdict: str) -> None:
    world = complete()
    world.solve(RL, near(6.0, 0.5, "C15"), first=first, fresh=fresh)
    found = entry(world, "C15")
    assert found["verdict"] == verdict
    if verdict == "not_tested":
        assert "0 correct of 16 samples" in found["missing"][0]


def test_c15_is_after_minus_the_second_draw_of_the_unsolved_group() -> None:
    """Other groups and the rates themselves have other numbers: a rule that reads them is caught."""
    world = complete()
    world.solve(RL, [5.0, 6.0, 7.0])
    found = entry(world, "C15")
    assert found["effect"]["value"] == pytest.approx(6.0)
    labels = {part["label"]: part["effect"]["value"] for part in found["parts"]}
    assert labels["fresh draw of the start (regression to the mean)"] == pytest.approx(2.0)
    assert labels["after RL"] == pytest.approx(8.0)


def test_c16_is_half_of_the_damage_at_the_length_of_the_base() -> None:
    """Base 60, mid 10, repaired 42: 32 of 50 points are won back, 7 more than half."""
    world = complete()
    found = entry(world, "C16")
    parts = {part["label"]: part["effect"]["value"] for part in found["parts"]}
    assert parts["damage: base minus mid[MC], at 64 tokens"] == pytest.approx(50.0, abs=2)
    assert parts["repair minus half of the damage"] == pytest.approx(7.0, abs=2)
    world.study["claims"]["long_context"] = 32
    assert entry(world, "C16")["verdict"] == "contradicted"
    world.study["claims"]["long_context"] = 128
    assert "no score at 128 tokens" in entry(world, "C16")["missing"][0]
    world.study["claims"]["long_context"] = None
    world.arms["base"] = "mid-m"
    world.study["checkpoints"] = {}
    assert "'claims.long_context'" in entry(world, "C16")["missing"][0]


@pytest.mark.parametrize("by", ["tasks", "suite"])
def test_c16_names_the_step_that_is_not_built(by: str) -> None:
    """No metrics tell which evaluation scores by length, so the study file does."""
    world = complete()
    world.study["tasks"]["far"] = {"micro": {"domain": "retrieval", "tokens": 64}}
    asked = {"tasks": ["far"]} if by == "tasks" else {"tasks": [], "suite": {"name": "long", "lengths": [64]}}
    world.study["evaluations"]["ruler"] = asked
    for one in world.entries:
        if one["kind"] == "evaluation" and one["name"] == "ruler":
            one["missing"] = "not built for this version of the study"
            del world.inputs[one["key"]]
    missing = entry(world, "C16")["missing"]
    assert missing[0] == "seed 0: no evaluation 'ruler' of base (base): not built for this version of the study"
    world.study["evaluations"]["ruler"] = {"tasks": []}
    assert entry(world, "C16")["missing"][0] == "the study has no evaluation that scores by length ('lengths')"


def test_c17_holds_late_gains_to_one_point() -> None:
    world = complete()
    scores("mid[MC]@26B", math=at(54.5, "b"), code=at(44.5, "b"))(world)
    found = entry(world, "C17")
    assert [part["verdict"] for part in found["parts"]] == ["supported", "supported", "contradicted"]


def test_a_lost_seed_is_named_and_the_others_decide() -> None:
    world = complete()
    world.lose("evaluation", "loss is not finite", checkpoint="mid-mcs", seed=2)
    found = entry(world, "C1")
    assert found["effect"]["n"] == 2
    assert any("seed 2" in note and "loss is not finite" in note for note in found["notes"])


def test_the_deciding_evaluation_is_the_one_that_the_study_names() -> None:
    world = complete()
    for i, seed in enumerate(world.seeds):
        world.add(
            "evaluation", "other", seed, {"domains": {"math": {"value": -50.0 + i}}}, {"name": "other"},
            step="other@mid-mcs", checkpoint="mid-mcs",
        )  # fmt: skip
    world.study["evaluations"]["other"] = world.study["evaluations"]["core"]
    assert entry(world, "C1")["verdict"] == "supported"
    world.study["claims"]["evaluation"] = "other"
    assert entry(world, "C1")["verdict"] == "not_tested"


def test_rules_are_documented_word_for_word_and_locked_to_their_version() -> None:
    """Docs and code cannot drift; a changed rule without a new version fails here."""
    text = re.sub(r"\s+", " ", (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8"))
    for claim in CLAIMS:
        assert claim.rule in text, f"docs/claims.md lacks the rule of {claim.id} as it stands in the code"
        assert claim.title in text
    assert f"version {RULES_VERSION}" in text
    digest = hashlib.blake2b("\n".join(c.rule for c in CLAIMS).encode(), digest_size=8).hexdigest()
    assert {1: "6e62b8cf78232b05"}[RULES_VERSION] == digest


def test_the_first_evaluation_is_the_first_in_the_steps_not_in_the_alphabet() -> None:
    """A stage's config has sorted keys, so the study file's order is only in the list of steps."""
    world = complete()
    world.study["evaluations"] = {"aaa": world.study["evaluations"]["core"], **world.study["evaluations"]}
    world.add("evaluation", "aaa", 0, {"domains": {}}, step="aaa@mid-mcs", checkpoint="mid-mcs")
    assert entry(world, "C1")["verdict"] == "supported"
