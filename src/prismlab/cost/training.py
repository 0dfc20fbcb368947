"""A training of a study as its cost: from the JSON of its spec to operations, memory, time and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prismlab.cost.devices import Device, seconds_for
from prismlab.cost.memory import Change, Memory, Setting, loss_in_pieces, memory, smallest_change
from prismlab.cost.operations import TrainingOperations, training_operations
from prismlab.cost.shapes import Shape

NODE = 8
"""Devices of one machine; a copy of the model is split over a machine unless the study's ``mesh`` says otherwise."""
_SAVES = {"every_steps": None, "every_minutes": 15.0, "keep": 2}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices that a plan reckons with."""

    device: Device
    devices: int
    memory: float | None
    """Bytes a device; None where it is not known, and nothing is refused then."""
    utilisation: float
    kind: str = "cuda"
    """``cuda`` or ``cpu``."""


def _shard(spec: Mapping[str, Any], devices: int) -> int:
    """Devices a copy, as the training itself resolves its mesh: what is named, else a machine's."""
    mesh = spec.get("mesh") or {}
    replicate, shard = mesh.get("replicate"), mesh.get("shard")
    if shard is not None and devices % int(shard) == 0:
        return int(shard)
    if replicate is not None and devices % int(replicate) == 0:
        return devices // int(replicate)
    return NODE if devices % NODE == 0 else devices


def setting_of(spec: Mapping[str, Any], devices: int, kind: str = "cuda") -> Setting:
    """The setting of a training (JSON of ``TrainSpec``) on so many devices."""
    return Setting(
        devices=devices,
        shard=_shard(spec, devices),
        rows=int(spec["rows"]),
        micro_rows=spec.get("micro_rows"),
        seq_len=int(spec["seq_len"]),
        precision=str(spec.get("precision", "float32")),
        checkpointing=str(spec.get("checkpointing", "none")),
        trained=str(spec.get("train", "all")),
        masked=spec.get("boundaries", "respect") == "respect",
        context_parallel=int(spec.get("context_parallel", 1)),
        device=kind,
    )


def operations_of(shape: Shape, setting: Setting) -> TrainingOperations:
    """Operations of one row. Documents are not known before the corpus is built, so each row counts as one."""
    return training_operations(
        shape,
        setting.seq_len,
        checkpointing=setting.checkpointing,
        loss_chunks=loss_in_pieces(shape, setting),
        trained=setting.trained,
    )


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes on disk."""

    kept: float
    """Of the finished artifact."""
    passing: float = 0.0
    """Besides, while the step runs."""

    def __add__(self, other: Disk) -> Disk:
        """Sum of what stays; of what passes the larger, since steps run one after another."""
        return Disk(kept=self.kept + other.kept, passing=max(self.passing, other.passing))


def training_disk(shape: Shape, spec: Mapping[str, Any], *, trunk: bool = False) -> Disk:
    """A training's files: bf16 checkpoint and snapshots, float32 masters, and saves of weights and optimizer.

    A save holds the float32 masters and two moments of what is trained; one more than are kept exists while one is
    being written, and one stays with a ``trunk``, on which a longer run of the study goes on. Logs, and adapters with
    their moments, are small beside these and not counted.
    """
    n, trained = shape.parameters, shape.trained(str(spec.get("train", "all")))
    if spec.get("lora") is not None:
        trained = 0
    snapshots = int(spec.get("snapshots", 0))
    stay = snapshots if spec.get("keep_snapshots", True) else 0
    kept = 2.0 * n * (1 + stay) + (4.0 * n if spec.get("keep_master") else 0.0)
    state = 4.0 * n + 8.0 * trained
    kept += state if trunk else 0.0
    # RL has no save of this kind; what passes of a training is its saves and the snapshots that are measured.
    saves = {**_SAVES, **(spec.get("save") or {})} if "rows" in spec else {}
    saved = any(saves.get(key) is not None for key in ("every_steps", "every_minutes"))
    passing = (int(saves["keep"]) + 1) * state if saved else 0.0
    return Disk(kept=kept, passing=passing + 2.0 * n * (min(2, snapshots) - min(2, stay)))


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What one training will cost on a machine."""

    shape: Shape
    setting: Setting
    steps: int
    operations: TrainingOperations
    """Of one row."""
    memory: Memory
    """Of one device."""
    seconds: float
    disk: Disk
    machine: Machine

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.steps * self.setting.rows * self.setting.seq_len

    @property
    def total_operations(self) -> float:
        """Operations that the devices compute, what is computed twice included."""
        return self.steps * self.setting.rows * self.operations.total

    @property
    def model_operations(self) -> float:
        """Operations by which utilisation is reckoned: without what is computed twice."""
        return self.steps * self.setting.rows * self.operations.model.total

    @property
    def tokens_per_second(self) -> float:
        """Over all devices."""
        return self.tokens / self.seconds

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.seconds * self.machine.devices / 3600

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds it; also where that is not known."""
        return self.machine.memory is None or self.memory.total <= self.machine.memory

    def change(self) -> Change | None:
        """The nearest setting that fits; None where none does or none is needed."""
        if self.fits or self.machine.memory is None:
            return None
        return smallest_change(self.shape, self.setting, self.machine.memory)

    def least(self) -> float:
        """Bytes a device of the most frugal setting on this machine."""
        frugal = replace(self.setting, shard=self.setting.devices, micro_rows=1, checkpointing="full")
        return memory(self.shape, frugal).total


def plan_training(shape: Shape, spec: Mapping[str, Any], machine: Machine, *, trunk: bool = False) -> TrainingPlan:
    """The cost of a training.

    Args:
        shape: its model.
        spec: JSON of ``TrainSpec``.
        machine: where it shall run. Time is the model's operations at the machine's utilisation, so what is computed
            twice comes out of the utilisation, as measured figures have it.
        trunk: whether a longer run of the study goes on from it.
    """
    setting = setting_of(spec, machine.devices, machine.kind)
    operations, steps = operations_of(shape, setting), int(spec["steps"])
    whole = steps * setting.rows * operations.model.total
    return TrainingPlan(
        shape=shape,
        setting=setting,
        steps=steps,
        operations=operations,
        memory=memory(shape, setting),
        seconds=seconds_for(whole, machine.device, machine.devices, machine.utilisation),
        disk=training_disk(shape, spec, trunk=trunk),
        machine=machine,
    )
