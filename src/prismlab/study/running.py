"""How a training is carried out and watched: saves, processes, monitors, alarm. None of it changes what is learned."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prismlab.study.spec import LARGEST, Count, Name, Positive
from prismlab.study.world import Spec

HOW = ("launch", "nproc", "mesh", "save", "tensorboard", "wandb")
"""Fields of a training that say how it is carried out. They are no part of its fingerprint: a stopped run goes on with
more processes, or fewer."""


class SaveSpec(Spec):
    """When a training is saved, so that a stopped one goes on from there. Give one of the two; null, null for never."""

    every_steps: Count | None = None
    """Optimizer steps between saves."""
    every_minutes: Positive | None = 15.0
    """Minutes between saves, by a clock that nobody sets."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Saves that stay: if the newest is damaged, the one before is taken."""

    @model_validator(mode="before")
    @classmethod
    def _steps_alone(cls, data: object) -> object:
        """Who names steps means no minutes."""
        if isinstance(data, dict) and data.get("every_steps") is not None:  # pyright: ignore[reportUnknownMemberType]
            return {"every_minutes": None, **data}  # pyright: ignore[reportUnknownVariableType]
        return data  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.every_steps is not None and self.every_minutes is not None:
            raise ValueError("give one of 'every_steps' and 'every_minutes'")
        return self


class MeshSpec(Spec):
    """How the processes of a training stand: ``replicate`` copies of the model, each split over ``shard`` of them."""

    replicate: Count | None = None
    """Copies of the model; null for what is left."""
    shard: Count | None = None
    """Processes that share one copy; null for what is left, and for all of a machine if both are null."""

    def misfit(self, nproc: int | None) -> str | None:
        """Why no number of machines of ``nproc`` processes (None: no ``torchrun``, so one) gives this mesh, if so."""
        places = (self.replicate or 1) * (self.shard or 1)
        if nproc is None:
            return None if places == 1 else f"a 'mesh' of {places} processes needs 'launch: torchrun' and 'nproc'"
        if self.replicate is None or self.shard is None or places % nproc == 0:
            return None
        return (
            f"a 'mesh' of {self.replicate} x {self.shard} has {places} places, which machines of {nproc} processes "
            "('nproc') cannot fill; leave one of the two out, or give a multiple"
        )


class MonitorSpec(Spec):
    """What is measured of the model while it trains, on held-out documents."""

    heldout: Annotated[list[Name], Field(min_length=1)]
    """Sources whose held-out documents are scored, nats a token."""
    general: list[Name] = []
    """Those of them that stand for general text: the distance to the start and the alarm go by them; empty for all."""
    every: Count = 100
    """Steps between measurements; there is one before the first step and one after the last."""
    documents: Count = 8
    """Held-out documents a source."""
    tokens: Annotated[int, Field(ge=8, le=LARGEST)] = 512
    """Tokens a document is cut to."""
    kl_positions: Annotated[int, Field(ge=0, le=LARGEST)] = 256
    """Places in the general text at which the next token's distribution is compared with the start's; 0 for none."""

    @model_validator(mode="after")
    def _general_is_measured(self) -> Self:
        lost = [name for name in self.general if name not in self.heldout]
        if lost:
            raise ValueError(f"'general' names {lost[0]!r}, which is not in 'heldout'")
        return self


class AlarmSpec(Spec):
    """What is done when general text is forgotten; needs ``monitor``."""

    heldout_loss_up: Positive
    """Rise of the mean loss on general held-out text over the start's, nats a token, that sets it off."""
    action: Literal["warn", "save", "stop"] = "warn"
    """``warn`` tells; ``save`` also keeps the weights at that step (``alarm/``); ``stop`` ends the branch there."""


class RunSide(Spec):
    """Fields of a training that say how it is carried out and watched."""

    save: SaveSpec = SaveSpec()
    """When it is saved, so that a stopped run goes on."""
    mesh: MeshSpec | None = None
    """How its processes stand; null for what the machine has."""
    monitor: MonitorSpec | None = None
    """What is measured while it trains; null for the training loss alone."""
    alarm: AlarmSpec | None = None
    """What is done when general text is forgotten."""

    @model_validator(mode="after")
    def _alarm_hears(self) -> Self:
        if self.alarm is not None and self.monitor is None:
            raise ValueError("'alarm' needs 'monitor': it goes by held-out general text")
        return self
