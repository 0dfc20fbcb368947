"""Epochs, operations, disk and devices of a plan against sums done by hand, on the reference study's own budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from studies import loaded, study, written

from prismlab.commands_plan import Asked, show_plan
from prismlab.cost.devices import DEVICES
from prismlab.cost.hub import hub_shape
from prismlab.cost.shapes import shape_of
from prismlab.cost.tiny import tiny_shape
from prismlab.cost.training import Disk, Machine, TrainingPlan, plan_training
from prismlab.errors import SpecError
from prismlab.study.check import cross_problems
from prismlab.study.cost import Costs, parameters, passes, shape_for
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study
from prismlab.train.parallel import resolve_mesh

STUDY = Path(__file__).parents[2] / "studies" / "prism-granite-3.3-8b.yaml"


def test_epochs_of_the_reference_budget() -> None:
    study = load_study(STUDY).study
    found = {(one.checkpoint, one.source): one for one in passes(study)}
    # 25,000 steps of 128 rows of 8,192 tokens; mot-math has 4 of 100 shares and 0.6e9 tokens.
    assert found["mid-mc", "mot-math"].tokens == pytest.approx(26_214_400_000 * 0.04)
    assert found["mid-mc", "mot-math"].epochs == pytest.approx(26_214_400_000 * 0.04 / 0.6e9)
    assert ("mid-mc", "mot-science") not in found


def test_a_source_that_would_repeat_too_often_is_refused_before_any_work() -> None:
    study = load_study(STUDY).study
    tight = study.mixtures["mc"].model_copy(update={"max_epochs": 1.0})
    study = study.model_copy(update={"mixtures": {**study.mixtures, "mc": tight}})
    found = cross_problems(study)
    assert any(line.startswith("checkpoints.mid-mc: source 'mot-math' would be repeated 1.75 times") for line in found)


def granite_plan(devices: int, **changes: Any) -> TrainingPlan:
    loaded = load_study(STUDY)
    spec, shape = loaded.study.checkpoints["mid-mc"], shape_for(loaded, "mid-mc")
    assert shape is not None
    machine = Machine(device=DEVICES["h100"], devices=devices, memory=80e9, utilisation=0.4)
    return plan_training(shape, {**spec.model_dump(mode="json", by_alias=True), **changes}, machine)


def test_the_reference_budget_on_its_machine() -> None:
    plan = granite_plan(128)
    assert plan.tokens == 25_000 * 128 * 8_192 == 26_214_400_000
    assert plan.fits
    dense = 6 * plan.shape.parameters * plan.tokens
    # Causal attention over 8,192 tokens: three times 4 x 32 heads x 128 x 40 layers x half a row's pairs a token.
    attention = 3 * 4 * 32 * 128 * 40 * 8193 / 2 * plan.tokens
    assert plan.model_operations == pytest.approx(dense + attention, rel=0.001)
    assert plan.total_operations > plan.model_operations
    assert plan.seconds == pytest.approx(plan.model_operations / (128 * 989e12 * 0.4))
    assert plan.device_hours == pytest.approx(128 * plan.seconds / 3600)


def test_disk_of_a_training_by_hand() -> None:
    n = granite_plan(8).shape.parameters
    state = 12 * n
    asked = {"snapshots": 5, "keep_master": True, "save": {"every_steps": None, "every_minutes": 15.0, "keep": 2}}
    assert granite_plan(8, **asked).disk == Disk(kept=2 * n * 6 + 4 * n, passing=3 * state)
    dropped = granite_plan(8, snapshots=5, keep_snapshots=False, save={"every_steps": None, "every_minutes": None})
    assert dropped.disk == Disk(kept=2 * n, passing=2 * n * 2)
    attention = granite_plan(8, train="attention", save={"every_steps": 100, "every_minutes": None, "keep": 1})
    trained = 40 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    assert attention.disk == Disk(kept=2 * n, passing=2 * (4 * n + 8 * trained))
    assert Disk(kept=1, passing=5) + Disk(kept=2, passing=3) == Disk(kept=3, passing=5)
    # Adapters and their moments are small: a save is the weights.
    adapters = granite_plan(8, lora={"rank": 16, "alpha": 32.0}, save={"every_steps": 100, "keep": 1})
    assert adapters.disk == Disk(kept=2 * n, passing=2 * 4 * n)


def test_what_a_trunk_keeps_for_a_longer_run_is_counted(tmp_path: Path) -> None:
    data = study()
    constant = {**data["checkpoints"]["mid-mc"], "optimizer": {"schedule": "constant"}}
    data["checkpoints"] |= {"short": {**constant, "steps": 6}, "long": {**constant, "steps": 9}}
    loaded_ = loaded(tmp_path, data)
    steps = {step.id: step for step in plan_study(loaded_, machine_text=lambda: "").steps}
    costs, n = Costs(loaded_), tiny_shape("llama", 128, 4).parameters
    kept = {name: costs.of(steps[f"train/{name}/s0"]).disk for name in ("short", "long")}
    assert {name: disk.kept for name, disk in kept.items() if disk} == {"short": (2 + 12) * n, "long": 2 * n}


def test_the_mesh_is_the_one_that_the_training_makes() -> None:
    """A machine's devices share a copy, unless the study names its mesh; see ``train.parallel.resolve_mesh``."""
    given = [None, {"replicate": 4, "shard": None}, {"replicate": None, "shard": 16}, {"replicate": 2, "shard": 16}]
    for mesh in given:
        resolved = resolve_mesh(mesh, 32, local=8)
        assert granite_plan(32, mesh=mesh).setting.shard == resolved.shard


def test_shapes_by_base(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "vocab_size": 70_000}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "mixtral"}')
    (odd / "model.safetensors").write_bytes(b"\0" * 1000)
    data = study()
    hub = "mistralai/Mistral-7B-v0.1@main"
    data["bases"] = {"mine": {"checkpoint": "mine"}, **data["bases"]}
    data["bases"] |= {"odd": {"checkpoint": "odd"}, "known": {"checkpoint": hub}, "far": {"checkpoint": "some/body"}}
    loaded_ = loaded(tmp_path, data)
    mine, tiny = shape_for(loaded_, "mine"), shape_for(loaded_, "merged")
    assert mine is not None
    assert (mine.layers, mine.vocab) == (shape_of(config).layers, 70_000)
    assert tiny == tiny_shape("llama", 128, 4)
    assert shape_for(loaded_, "known") == hub_shape(hub)
    assert shape_for(loaded_, "odd") is None
    assert (parameters(loaded_, "odd"), parameters(loaded_, "far")) == (500.0, None)
    # The corpora's tokenizer is the first base's, of so large a vocabulary that a token takes four bytes.
    steps = {step.id: step for step in plan_study(loaded_, machine_text=lambda: "").steps}
    costs = Costs(loaded_)
    assert costs.of(steps["corpus/mc-40x16/s0"]).disk == Disk(kept=4 * 40 * 16)
    merged = costs.of(steps["merge/merged/s0"]).disk
    assert merged == Disk(kept=2 * tiny_shape("llama", 128, 4).parameters)


def test_what_has_no_shape_is_counted_the_usual_way(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "mixtral"}')
    (odd / "model.safetensors").write_bytes(b"\0" * 1000)
    data = study()
    data["bases"] = {"tiny": {"checkpoint": "odd"}}
    loaded_ = loaded(tmp_path, data)
    steps = {step.id: step for step in plan_study(loaded_, machine_text=lambda: "").steps}
    train = Costs(loaded_).of(steps["train/mid-mc/s0"])
    assert train.flops == 6 * 500 * 640
    rl = Costs(loaded_).of(steps["rl/rl/s0"])
    assert rl.tokens is not None
    assert rl.flops == 10 * 500 * rl.tokens


def plan_text(capsys: pytest.CaptureFixture[str], tmp_path: Path, file: Path, **asked: Any) -> str:
    show_plan(file, Asked(**asked), out=tmp_path / "run", threads=None)
    return capsys.readouterr().out


def test_the_plan_of_the_reference_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan_text(capsys, tmp_path, STUDY, devices=128, memory_gb=80.0)
    budget = next(line for line in text.splitlines() if line.startswith("mid-mc ") and "x 128 x" in line)
    assert "8.17G" in budget
    assert "25,000 x 128 x 8,192   26.2G" in budget
    assert "yes, 80 GB" in text
    assert "trained on: 52,428,800,000 tokens" in text


def test_a_plan_that_cannot_fit_names_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nearest = r"mid-mc needs 45\.\d GB.*128 devices of 36 GB.*\(33\.\d GB\) is mesh\.shard: 32 instead of 8$"
    with pytest.raises(SpecError, match=nearest):
        plan_text(capsys, tmp_path, STUDY, devices=128, memory_gb=36.0)
    with pytest.raises(
        SpecError, match=r"is mesh\.shard: \d+ instead of 8 and checkpointing: full instead of selective$"
    ):
        plan_text(capsys, tmp_path, STUDY, devices=128, memory_gb=20.0)
    with pytest.raises(SpecError, match=r"2 devices of 20 GB have; \d+(\.\d+)? GB is the least.*more devices"):
        plan_text(capsys, tmp_path, STUDY, devices=2, memory_gb=20.0)
    # Without a stated machine the table tells, and nothing is refused.
    large = study(bases={"tiny": {"checkpoint": "mistralai/Mistral-Small-24B-Base-2501@main"}})
    assert "no, 141 GB" in plan_text(capsys, tmp_path, written(tmp_path, large), device="h200")
    with pytest.raises(SpecError, match="'b52' is not known"):
        plan_text(capsys, tmp_path, STUDY, device="b52")


def test_tiny_models_are_planned_on_devices_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, study())
    assert "device hours" not in plan_text(capsys, tmp_path, file)
    text = plan_text(capsys, tmp_path, file, device="cpu", utilisation=0.5)
    assert "reach 50%" in text
    assert "measured now" in text
    assert "no plan of devices" not in text
