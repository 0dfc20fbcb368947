"""How a training is carried out is no part of what it is; what is measured is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from prismlab.errors import SpecError
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study
from prismlab.study.running import AlarmSpec, MonitorSpec, RunSide, SaveSpec
from prismlab.study.steps import Settled

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.yaml"


def planned(folder: Path, **changes: Any) -> Settled:
    """The training ``base`` of the smoke study, with changes of its fields."""
    data = yaml.safe_load(SMOKE.read_text())
    data["checkpoints"]["base"] |= changes
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(data))
    plan = plan_study(load_study(file), machine_text=lambda: "0" * 16)
    found = plan.resolve(lambda kind, fingerprint: None)["train/base/s0"]
    assert isinstance(found, Settled)
    return found


def test_a_run_may_go_on_with_other_processes_and_other_saves(tmp_path: Path) -> None:
    plain = planned(tmp_path)
    other = planned(
        tmp_path, launch="torchrun", nproc=2, mesh={"replicate": 2}, save={"every_steps": 5}, tensorboard=False
    )
    assert other.fingerprint == plain.fingerprint
    assert other.step.nproc == 2
    assert other.step.how["mesh"] == {"replicate": 2, "shard": None}
    assert other.step.how["save"] == {"every_steps": 5, "every_minutes": None, "keep": 2}
    assert plain.step.how["save"] == {"every_steps": None, "every_minutes": 15.0, "keep": 2}
    assert not set(plain.step.how) & set(plain.config["spec"])


def test_what_is_measured_is_part_of_it_and_its_data_travel(tmp_path: Path) -> None:
    plain, watched = planned(tmp_path), planned(tmp_path, monitor={"heldout": ["web"]})
    assert watched.fingerprint != plain.fingerprint
    assert list(watched.config["sources"]) == ["web"]
    assert watched.config["heldout"] == load_study(tmp_path / "study.yaml").study.heldout
    assert "sources" not in plain.config
    alarmed = planned(tmp_path, monitor={"heldout": ["web"]}, alarm={"heldout_loss_up": 0.1, "action": "stop"})
    assert alarmed.fingerprint != watched.fingerprint


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValidationError, match="'alarm' needs 'monitor'"):
        RunSide(alarm=AlarmSpec(heldout_loss_up=0.1))
    with pytest.raises(ValidationError, match="one of 'every_steps' and 'every_minutes'"):
        SaveSpec(every_steps=3, every_minutes=1.0)
    with pytest.raises(ValidationError, match="names 'math', which is not in 'heldout'"):
        MonitorSpec(heldout=["web"], general=["math"])
    assert SaveSpec(every_steps=3).every_minutes is None
    never = SaveSpec(every_minutes=None)
    assert (never.every_steps, never.every_minutes) == (None, None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mesh": {"shard": 2}}, "a 'mesh' of 2 processes needs 'launch: torchrun'"),
        ({"launch": "torchrun", "nproc": 4, "mesh": {"replicate": 3, "shard": 2}}, "3 x 2 has 6 places, which .* of 4"),
        ({"launch": "torchrun", "nproc": 2, "mesh": {"replicate": 3, "shard": 2}}, None),  # on three machines
        ({"launch": "torchrun", "nproc": 4, "mesh": {"shard": 32}}, None),  # on eight
        ({"mesh": {"replicate": 1}}, None),
    ],
)
def test_a_mesh_that_no_number_of_machines_gives_is_refused(tmp_path: Path, changes: Any, told: str | None) -> None:
    if told is None:
        planned(tmp_path, **changes)
    else:
        with pytest.raises(SpecError, match=told):
            planned(tmp_path, **changes)
