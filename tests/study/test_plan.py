"""Plans: what each step is told, which steps there are, and what changes a fingerprint and what does not."""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from studies import STUDY, loaded, study

from prismlab.errors import SpecError
from prismlab.seeds import derive_seed
from prismlab.study.arms import ambiguous_arms, infer_arms
from prismlab.study.content import FileHashes
from prismlab.study.cost import Costs, step_tokens
from prismlab.study.load import load_study
from prismlab.study.pairs import root_of
from prismlab.study.plan import plan_study
from prismlab.study.stages import STAGES
from prismlab.study.steps import Missing, Plan, Settled


def planned(folder: Path, data: dict[str, Any] | None = None, text: str = "t", **options: Any) -> Plan:
    return plan_study(loaded(folder, data), machine_text=lambda: text, **options)


def fingerprints(plan: Plan) -> dict[str, str]:
    return {
        key: found.fingerprint
        for key, found in plan.resolve(lambda kind, f: None).items()
        if isinstance(found, Settled)
    }


def names(plan: Plan, kind: str) -> list[str]:
    return [step.id.split("/")[1] for step in plan.steps if step.kind == kind]


def test_steps_come_after_their_inputs_and_know_their_stage(tmp_path: Path) -> None:
    seen: set[str] = set()
    for step in planned(tmp_path, study(seeds=[0, 3])).steps:
        assert set(step.inputs.values()) <= seen
        assert (step.entry, step.version) == STAGES[step.kind]
        assert "seed" in step.config
        seen.add(step.id)


def test_which_steps_there_are(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    pairs = ["base:mid-mc", "base:mid-mcs", "mid-mcs:rl", "base:rl-base", "mid-mcs:control", "base:merged"]
    assert names(plan, "corpus") == ["start-40x16", "mc-40x16", "mcs-40x16"]
    assert names(plan, "weights") == [*pairs, "mid-mcs:merged", "base:rl"]
    assert names(plan, "cka") == names(plan, "weights")
    assert sorted(names(plan, "states")) == sorted({end for pair in names(plan, "cka") for end in pair.split(":")})
    assert names(plan, "direction") == ["base", "mid-mcs"]
    assert names(plan, "trajectory") == ["rl"]
    assert names(plan, "landscape") == ["base:mid-mcs:rl"]
    assert names(plan, "evaluation") == [f"core@{name}" for name in STUDY["checkpoints"]]
    assert names(plan, "behaviour") == names(plan, "evaluation")
    assert [step.id for step in plan.steps[-2:]] == ["claims/small", "report/small"]


def test_inputs_have_the_keys_of_the_contract(tmp_path: Path) -> None:
    steps = {step.id: step for step in planned(tmp_path).steps}
    assert steps["train/mid-mc/s0"].inputs == {"start": "train/base/s0", "corpus": "corpus/mc-40x16/s0"}
    assert steps["corpus/mc-40x16/s0"].inputs == {"tokenizer": "base/tiny/s0"}
    assert steps["merge/merged/s0"].inputs == {"base": "train/base/s0", "mid-mcs": "train/mid-mcs/s0"}
    assert steps["rl/rl/s0"].inputs == {"start": "train/mid-mcs/s0", "prompts": "prompts/mcs/s0"}
    assert steps["prompts/mcs/s0"].inputs == {"scoring": "scoring/all/s0"}
    assert steps["scoring/all/s0"].inputs == {"scorer": "train/mid-mcs/s0"}
    assert steps["evaluation/core@rl/s0"].inputs == {"checkpoint": "rl/rl/s0"}
    assert steps["weights/base:rl/s0"].inputs == {"old": "train/base/s0", "new": "rl/rl/s0"}
    assert steps["cka/base:rl/s0"].inputs == {"a": "states/base/s0", "b": "states/rl/s0"}
    assert steps["states/rl/s0"].inputs == {"checkpoint": "rl/rl/s0"}
    direction = {"base": "train/base/s0", "mid-mc": "train/mid-mc/s0", "mid-mcs": "train/mid-mcs/s0"}
    assert steps["direction/base/s0"].inputs == direction
    assert steps["direction/mid-mcs/s0"].config["names"] == ["rl", "control"]
    assert steps["trajectory/rl/s0"].inputs == {"start": "train/mid-mcs/s0", "run": "rl/rl/s0"}
    claims = steps["claims/small"]
    chain = {"base": "train/base/s0", "mid": "train/mid-mcs/s0", "rl": "rl/rl/s0"}
    assert steps["landscape/base:mid-mcs:rl/s0"].inputs == chain
    kinds = {"evaluation", "weights", "direction", "cka", "behaviour", "trajectory", "landscape"}
    assert set(claims.inputs) == {step.id for step in steps.values() if step.kind in kinds}
    assert [entry["key"] for entry in claims.config["entries"]] == list(claims.inputs)
    assert set(steps["report/small"].inputs) == set(steps) - {"report/small"}


def test_a_pass_over_outside_weights_is_shared_by_all_seeds(tmp_path: Path) -> None:
    steps = {step.id: step for step in planned(tmp_path, with_files(tmp_path)).steps}
    for seed in (0, 1):
        assert steps[f"cka/mine:own/s{seed}"].inputs == {"a": "states/mine", "b": f"states/own/s{seed}"}
    assert steps["states/mine"].inputs == {"checkpoint": "base/mine"}
    assert steps["states/own/s0"].config == steps["states/own/s1"].config | {
        "seed": steps["states/own/s0"].config["seed"]
    }


def test_entries_say_what_each_input_is(tmp_path: Path) -> None:
    entries = {entry["key"]: entry for entry in planned(tmp_path).steps[-1].config["entries"]}
    key = "evaluation/core@rl/s0"
    assert entries[key] == {"key": key, "kind": "evaluation", "name": "core", "seed": 0, "checkpoint": "rl"}
    assert (entries["cka/base:rl/s0"]["old"], entries["cka/base:rl/s0"]["new"]) == ("base", "rl")
    direction = entries["direction/base/s0"]
    assert (direction["base"], direction["checkpoints"]) == ("base", ["mid-mc", "mid-mcs"])
    landscape = entries["landscape/base:mid-mcs:rl/s0"]
    assert [landscape[key] for key in ("base", "mid", "rl")] == ["base", "mid-mcs", "rl"]
    assert entries["train/mid-mc/s0"]["checkpoint"] == "mid-mc"
    assert "missing" not in entries[key]


def test_configs_have_the_keys_of_the_contract(tmp_path: Path) -> None:
    keys = {step.kind: set(step.config) - {"seed", "content", "machine_text"} for step in planned(tmp_path).steps}
    assert keys == {
        "base": {"spec"},
        "corpus": {
            "mixture",
            "weights",
            "max_epochs",
            "tokens_in_source",
            "packing",
            "sources",
            "micro",
            "rows",
            "seq_len",
            "heldout",
            "template",
        },
        "train": {"stage", "spec"},
        "merge": {"spec"},
        "scoring": {"spec", "tasks", "micro", "template"},
        "prompts": {"spec", "samples"},
        "rl": {"spec", "template"},
        "evaluation": {"spec", "tasks", "sources", "micro", "heldout", "template", "name"},
        "weights": {"thresholds", "svd"},
        "direction": {"base", "names"},
        "states": {"spec", "sources", "micro", "heldout", "template"},
        "cka": {"spec"},
        "behaviour": set(),
        "trajectory": {"thresholds"},
        "landscape": {"spec", "name", "template", "tasks", "micro"},
        "claims": {"study", "entries", "arms"},
        "report": {"study", "entries", "arms"},
    }


def test_seeds_come_from_names_and_all_arms_are_sampled_alike(tmp_path: Path) -> None:
    steps = {step.id: step for step in planned(tmp_path, study(seeds=[0, 3])).steps}
    assert steps["train/mid-mc/s3"].config["seed"] == derive_seed("train", "mid-mc", 3)
    sampled = {step.config["seed"] for step in steps.values() if step.kind == "evaluation" and step.seed == 3}
    assert sampled == {derive_seed("evaluation", "core", 3)}


def test_another_arm_or_order_leaves_other_fingerprints_alone(tmp_path: Path) -> None:
    before = fingerprints(planned(tmp_path))
    data = study()
    data["checkpoints"]["mid-m"] = {**data["checkpoints"]["mid-mc"], "mixture": "m"}
    data["mixtures"]["mc"]["weights"] = dict(reversed(data["mixtures"]["mc"]["weights"].items()))
    data["run"] = {"jobs": 7}
    after = fingerprints(planned(tmp_path, data))
    # The directions from base are those of one more checkpoint now.
    assert after["direction/base/s0"] != before["direction/base/s0"]
    kept = {key for key in before if key.split("/")[0] not in ("claims", "report")} - {"direction/base/s0"}
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert fingerprints(planned(tmp_path, study(run={"jobs": 7}))) == before


def test_a_change_reaches_exactly_what_follows(tmp_path: Path) -> None:
    before = fingerprints(planned(tmp_path))
    data = study()
    data["checkpoints"]["rl"]["steps"] = 6
    after = fingerprints(planned(tmp_path, data))
    changed = {key for key in before if before[key] != after[key]}
    follows = {key for key in before if "rl" in key.split("/")[1].replace("@", ":").split(":")}
    assert changed == follows | {"direction/mid-mcs/s0", "claims/small", "report/small"}


@pytest.mark.parametrize("change", ["threads", "machine text", "version"])
def test_what_else_a_fingerprint_holds(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprints(planned(tmp_path))
    if change == "threads":
        after = fingerprints(planned(tmp_path, threads=2))
        assert not {key for key in before if before[key] == after[key]}
    elif change == "machine text":
        after = fingerprints(planned(tmp_path, text="another Python"))
        assert before["corpus/start-40x16/s0"] != after["corpus/start-40x16/s0"]
        assert before["base/tiny/s0"] == after["base/tiny/s0"]
    else:
        monkeypatch.setitem(STAGES, "cka", (STAGES["cka"][0], 99))
        after = fingerprints(planned(tmp_path))
        assert {key.split("/")[0] for key in before if before[key] != after[key]} == {"cka", "claims", "report"}


def with_files(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text('{"q": "1+1", "a": "2"}\n')
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "model" / "pytorch_model.bin").write_bytes(b"never read")
    data = study(seeds=[0, 1])
    data["sources"]["math"] = {"files": ["rows.jsonl"], "domain": "math", "fields": {"question": "q", "answer": "a"}}
    data["tasks"]["addition"] = {**data["sources"]["math"], "verifier": "number"}
    data["bases"]["mine"] = {"checkpoint": "model"}
    data["checkpoints"]["own"] = {**data["checkpoints"]["mid-mc"], "from": "mine"}
    return data


def test_content_is_fingerprinted_and_paths_are_not(tmp_path: Path) -> None:
    data = with_files(tmp_path / "here")
    plan = planned(tmp_path / "here", data)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert fingerprints(plan) == fingerprints(planned(tmp_path / "there", data))
    steps = {step.id: step for step in plan.steps}
    corpus = steps["corpus/mc-40x16/s0"]
    digest = hashlib.blake2b((tmp_path / "here" / "rows.jsonl").read_bytes(), digest_size=32).hexdigest()
    assert corpus.config["content"] == {"math": [{"name": "rows.jsonl", "blake2b": digest}]}
    assert corpus.paths == {"math": [str(tmp_path / "here" / "rows.jsonl")]}
    assert steps["evaluation/core@rl/s0"].paths == {"addition": [str(tmp_path / "here" / "rows.jsonl")]}
    assert not any(str(tmp_path) in str(step.config) for step in plan.steps)
    (tmp_path / "there" / "rows.jsonl").write_text('{"q": "1+1", "a": "3"}\n')
    after = fingerprints(planned(tmp_path / "there", data))
    assert after["corpus/mc-40x16/s0"] != fingerprints(plan)["corpus/mc-40x16/s0"]
    assert after["corpus/start-40x16/s0"] == fingerprints(plan)["corpus/start-40x16/s0"]


def test_an_outside_base_is_shared_by_all_seeds(tmp_path: Path) -> None:
    plan = planned(tmp_path / "a", with_files(tmp_path / "a"))
    steps = {step.id: step for step in plan.steps}
    base = steps["base/mine"]
    assert [file["name"] for file in base.config["content"]] == ["config.json", "model.safetensors"]
    assert base.paths == {"checkpoint": [str(tmp_path / "a" / "model")]}
    assert steps["train/own/s0"].inputs["start"] == steps["train/own/s1"].inputs["start"] == "base/mine"
    assert {"evaluation/core@mine/s0", "evaluation/core@mine/s1"} <= set(steps)
    assert "evaluation/core@tiny/s0" not in steps, "random weights are not evaluated"


def test_a_hub_base_is_its_id_and_revision(tmp_path: Path) -> None:
    data = study()
    data["bases"]["hub"] = {"checkpoint": "owner/name@abc"}
    data["checkpoints"]["own"] = {**data["checkpoints"]["mid-mc"], "from": "hub"}
    base = next(step for step in planned(tmp_path, data).steps if step.id == "base/hub")
    assert base.config["content"] == {"id": "owner/name", "revision": "abc"}
    assert base.paths == {}


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "a.txt", tmp_path / "hashes.json"
    file.write_text("one")
    hashes = FileHashes(cache)
    first = hashes.of(file)
    hashes.save()
    with monkeypatch.context() as patch:
        patch.setattr("prismlab.study.content.hash_file", lambda path: pytest.fail("hashed again"))
        assert FileHashes(cache).of(file) == first
    file.write_text("three")
    assert FileHashes(cache).of(file) == hashlib.blake2b(b"three", digest_size=32).hexdigest()
    cache.write_text("[broken")
    assert FileHashes(cache).of(file) != first


def test_an_ended_step_skips_what_needs_it_and_is_named_in_the_claims(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    found = plan.resolve(lambda kind, f: {"status": "ended", "reason": "no prompt"} if kind == "prompts" else None)
    assert found["rl/rl/s0"] == Missing("prompts/mcs/s0 ended: no prompt")
    assert found["evaluation/core@rl-base/s0"] == Missing("prompts/mc/s0 ended: no prompt")
    claims = found["claims/small"]
    assert isinstance(claims, Settled)
    missing = {entry["key"]: entry.get("missing") for entry in claims.config["entries"]}
    assert missing["evaluation/core@rl/s0"] == "prompts/mcs/s0 ended: no prompt"
    assert missing["evaluation/core@base/s0"] is None


def test_until_keeps_what_is_needed(tmp_path: Path) -> None:
    plan = planned(tmp_path, study(seeds=[0, 1]))
    assert [step.id for step in plan.until("train/mid-mc/s1").steps] == [
        "base/tiny/s1",
        "corpus/start-40x16/s1",
        "train/base/s1",
        "corpus/mc-40x16/s1",
        "train/mid-mc/s1",
    ]
    assert {step.seed for step in plan.until("train/mid-mc").steps} == {0, 1}
    with pytest.raises(SpecError, match=r"no step 'trian/mid-mc'.*\ndid you mean 'train/"):
        plan.until("trian/mid-mc")


def test_arms(tmp_path: Path) -> None:
    arms = {
        "base": "base",
        "mid[MC]": "mid-mc",
        "mid[MCS]": "mid-mcs",
        "mid[MCS]>rl[MCS]": "rl",
        "base>rl[MC]": "rl-base",
        "mid[MCS]>finetune[MCS]": "control",
    }
    assert infer_arms(loaded(tmp_path).study) == arms
    data = study()
    data["checkpoints"]["mid-again"] = copy.deepcopy(data["checkpoints"]["mid-mcs"])
    data["checkpoints"]["rl-again"] = {**data["checkpoints"]["rl"], "from": "mid-again"}
    two = loaded(tmp_path, data).study
    assert infer_arms(two) == arms, "the first in the file, and RL from the other is no pair of it"
    assert ambiguous_arms(two) == {"mid[MCS]": ["mid-mcs", "mid-again"]}
    chosen = loaded(tmp_path, {**data, "claims": {"arms": {"mid[MCS]": "mid-again"}}}).study
    assert ambiguous_arms(chosen) == {}
    assert infer_arms(chosen)["mid[MCS]"] == "mid-again"
    assert infer_arms(chosen)["mid[MCS]>rl[MCS]"] == "rl-again"


def test_where_a_chain_begins(tmp_path: Path) -> None:
    data = with_files(tmp_path / "a")
    data["checkpoints"]["raw"] = {**data["checkpoints"]["mid-mc"], "from": "tiny"}
    whole = load_study(loaded(tmp_path / "a", data).path).study
    assert {name: root_of(whole, name) for name in ("rl", "merged", "base", "own", "raw")} == {
        "rl": "base",
        "merged": "base",
        "base": "base",
        "own": "mine",
        "raw": None,
    }


def test_costs_by_hand(tmp_path: Path) -> None:
    study_ = loaded(tmp_path)
    steps = {step.id: step for step in planned(tmp_path).steps}
    train = Costs(study_).of(steps["train/mid-mc/s0"])
    # Four layers: queries and output 128 x 128, keys and values 128 x 64, three matrices 128 x 384; a head of 258.
    products = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 128 * 258
    row = 2 * products * 16 + 4 * 4 * 128 * (16 * 17 // 2)
    assert (train.tokens, train.flops, train.seconds) == (640, 3 * 40 * row, None)
    rl = Costs(study_).of(steps["rl/rl/s0"])
    assert rl.tokens == 5 * 64 * 16 * 15360
    # Sampled with half a response behind each token, trained on, and scored by the reference.
    sampled = 2 * products + 4 * 4 * 128 * 7680
    passed = 2 * products + 4 * 4 * 128 * 15361 / 2
    assert rl.flops == pytest.approx(rl.tokens * (sampled + 4 * passed))
    record = {"kind": "train", "name": "x", "version": 1, "status": "complete", "seconds": 2.0}
    half = {"config": {**steps["train/base/s0"].config, "spec": {**steps["train/base/s0"].config["spec"], "steps": 5}}}
    known = Costs(study_, [{**record, **half}])
    assert known.of(steps["train/mid-mc/s0"]).seconds == pytest.approx(4.0)
    assert known.of(steps["rl/rl/s0"]).seconds is None
    assert step_tokens(steps["weights/base:rl/s0"]) is None


def test_a_suite_is_not_counted_as_no_tokens(tmp_path: Path) -> None:
    data = study(seeds=[0])
    data["evaluations"]["far"] = {"suite": {"name": "long", "lengths": [128]}}
    steps = {step.id: step for step in planned(tmp_path, data).steps}
    assert step_tokens(steps["evaluation/far@base/s0"]) is None
    assert step_tokens(steps["evaluation/core@base/s0"])


def test_landscapes_of_the_chain_or_of_what_is_named(tmp_path: Path) -> None:
    data = study(seeds=[0, 1])
    data["analyses"]["landscape"] = {"evaluation": "core", "items": 7, "grid": 3, "triples": [
        ["base", "mid-mc", "rl"], ["base", "mid-mcs", "rl"], ["base", "mid-mc", "rl"]]}  # fmt: skip
    plan = planned(tmp_path, data)
    assert names(plan, "landscape") == ["base:mid-mc:rl", "base:mid-mcs:rl"] * 2
    steps = {step.id: step for step in plan.steps}
    one, other = (steps[f"landscape/base:{mid}:rl/s0"] for mid in ("mid-mc", "mid-mcs"))
    assert one.config == other.config, "the same items and random numbers in every landscape of a seed"
    assert one.config["seed"] != steps["landscape/base:mid-mc:rl/s1"].config["seed"]
    spec = one.config["spec"]
    assert (spec["items"], spec["samples"], spec["tasks"], spec["grid"]) == (7, 1, ["addition", "programs"], 3)
    # 9 points of the path, 9 of the grid, of which (0, 0), (0.5, 0), (1, 0), (1, 0.5) and (1, 1) are the same.
    assert step_tokens(one) == 13 * 2 * 7 * 1 * 32768
    cost = Costs(loaded(tmp_path, data)).of(one)
    products = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 128 * 258
    assert cost.flops == (2 * products + 4 * 4 * 128 * 16384) * step_tokens(one)
    del data["analyses"]["landscape"]["triples"]
    data["claims"] = {"arms": {"mid[MCS]": "mid-mc", "mid[MCS]>rl[MCS]": "rl"}}
    assert names(planned(tmp_path, data), "landscape")[0] == "base:mid-mc:rl"
    lacking = study()
    del lacking["checkpoints"]["rl"], lacking["analyses"]["trajectory"]
    assert names(planned(tmp_path, lacking), "landscape") == []


def test_groups_of_directions(tmp_path: Path) -> None:
    data = study()
    given = [["base", "mid-mc", "rl", "mid-mcs"], ["mid-mcs", "rl", "base"], ["base", "rl", "rl-base"]]
    data["analyses"]["direction"] = {"groups": given}
    plan = planned(tmp_path, data)
    assert names(plan, "direction") == ["base", "mid-mcs", "base:2"]
    steps = {step.id: step for step in plan.steps}
    found = [steps[f"direction/{name}/s0"].config for name in ("base", "mid-mcs", "base:2")]
    assert [[config["base"], *config["names"]] for config in found] == given
    assert set(steps["direction/mid-mcs/s0"].inputs) == {"mid-mcs", "rl", "base"}
    before = fingerprints(plan)
    data["analyses"]["direction"] = {"triples": given}
    assert fingerprints(planned(tmp_path, data)) == before


def test_a_lone_update_has_no_direction_to_compare(tmp_path: Path) -> None:
    data = study()
    del data["checkpoints"]["control"]
    plan = planned(tmp_path, data)
    assert names(plan, "direction") == ["base"]
    assert "rl-base" not in {step.id: step for step in plan.steps}["direction/base/s0"].inputs


def test_a_run_that_measures_its_snapshots_knows_the_thresholds(tmp_path: Path) -> None:
    data = study()
    kept = planned(tmp_path, data)
    assert "thresholds" not in {step.id: step for step in kept.steps}["rl/rl/s0"].config
    data["analyses"]["weights"] = {"thresholds": [0.25, 0.5]}
    other = fingerprints(planned(tmp_path, data))
    assert other["rl/rl/s0"] == fingerprints(kept)["rl/rl/s0"]
    data["checkpoints"]["rl"]["keep_snapshots"] = False
    data["checkpoints"]["control"] |= {"keep_snapshots": False, "snapshots": 1}
    data["checkpoints"]["mid-mc"]["keep_snapshots"] = False
    plan = planned(tmp_path, data)
    steps = {step.id: step for step in plan.steps}
    for name in ("rl/rl/s0", "train/control/s0"):
        assert steps[name].config["thresholds"] == [0.25, 0.5]
    assert steps["trajectory/rl/s0"].config["thresholds"] == [0.25, 0.5]
    assert "thresholds" not in steps["train/mid-mc/s0"].config, "it has no snapshots to measure"
    data["analyses"]["weights"] = {"thresholds": [0.25]}
    changed, before = fingerprints(planned(tmp_path, data)), fingerprints(plan)
    assert changed["rl/rl/s0"] != before["rl/rl/s0"]
    assert changed["rl/rl-base/s0"] == before["rl/rl-base/s0"]


def test_a_pattern_of_spectra_reaches_the_step_and_must_be_one(tmp_path: Path) -> None:
    data = study()
    data["analyses"]["weights"] = {"svd": r"layers\.1\."}
    assert {step.config["svd"] for step in planned(tmp_path, data).steps if step.kind == "weights"} == {r"layers\.1\."}
    data["analyses"]["weights"] = {"svd": "layers("}
    with pytest.raises(SpecError, match="no regular expression"):
        planned(tmp_path, data)
