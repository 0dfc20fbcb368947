"""What an RL run is made of at a step, taken out and put back: policy, optimizer, schedule, reference, random numbers.

The library does not save the soft-updated reference, and what it saves it pickles. So saves are ours (``train.saves``:
safetensors and JSON, hashed, whole or not there), and the library is only told at which step to go on. The order of
prompts and the random numbers of sampling are functions of seed and step, so the step stands for both. Metrics rows lie
in the save; responses lie beside it, see ``rl.rollouts``.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prismlab.train.resume import capture, random_state, restore, set_random_state
from prismlab.train.saves import Save, Saves, Slice

if TYPE_CHECKING:
    from transformers import TrainerState

SHARE = 0.05
"""Most of a run's time that saving may take where the study does not say how often."""
LEAST_SECONDS = 60.0
"""Seconds between saves, at least, where the study does not say how often."""


def _reference(model: torch.nn.Module | None, rank: int) -> dict[str, Slice]:
    if model is None or rank:
        return {}
    named = model.named_parameters()
    return {f"reference/{name}": Slice(values=p.detach().cpu().clone().contiguous()) for name, p in named}


class RunSaves:
    """The saves of one RL run.

    Args:
        folder: where they lie; survives the process.
        identity: hash of what makes two runs the same.
        every: steps between saves; None for as often as ``SHARE`` and ``LEAST_SECONDS`` allow.
        rank: this process.
        size: processes of the run.
        note: told what the user should read.
    """

    def __init__(
        self, folder: Path, identity: str, every: int | None, rank: int, size: int, note: Callable[[str], None]
    ) -> None:
        self._saves = Saves(folder, identity=identity, rank=rank, size=size, note=note)
        self._every, self._rank, self._size = every, rank, size
        self._ended, self._cost = time.monotonic(), 0.0
        self._pending: int | None = None
        if rank == 0:
            self._saves.sweep()

    def latest(self) -> Save | None:
        """The newest intact save."""
        return self._saves.latest()

    def due(self, step: int) -> bool:
        """Whether to save after this step; all processes get the first one's answer."""
        if self._every is not None:
            return step % self._every == 0
        answer = [time.monotonic() - self._ended >= max(LEAST_SECONDS, self._cost / SHARE)]
        if self._size > 1:
            torch.distributed.broadcast_object_list(answer)
        return answer[0]

    def write(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        reference: torch.nn.Module | None,
        state: Mapping[str, Any],
        files: Mapping[str, Path],
    ) -> int | None:
        """Save in the background; returns the step of the save before, which is complete by now.

        Args:
            step: optimizer steps done.
            model: the policy, not wrapped.
            optimizer: of its parameters.
            reference: the soft-updated one; None where there is none.
            state: JSON of the first process.
            files: of the first process, kept in the save by another name.
        """
        began = time.monotonic()
        self._saves.wait()
        done, self._pending = self._pending, step
        tensors = {**capture(model, optimizer, self._rank), **_reference(reference, self._rank)}
        told, own = random_state(next(model.parameters()).device)
        self._saves.begin(step, tensors, state=state, own_state=told, own=own, files=files)
        self._ended = time.monotonic()
        self._cost = self._ended - began
        return done

    def close(self) -> None:
        """Wait for the save under way.

        Raises:
            StageError: it could not be written; the one before is intact.
        """
        self._saves.wait()

    def abandon(self) -> None:
        """Let a save go that waits for other processes; for the way out after an error."""
        self._saves.close()


@torch.no_grad()
def put_back(
    save: Save, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, reference: Any
) -> None:
    """Put policy, optimizer, schedule and reference of a save in place.

    Raises:
        CheckpointError: the save is of another model.
    """
    restore(model, optimizer, save)
    scheduler.load_state_dict(save.state["scheduler"])
    for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    if reference is not None:
        for name, parameter in reference.named_parameters():
            parameter.copy_(save.rows(f"reference/{name}"))


def put_back_random(save: Save, rank: int, device: torch.device) -> None:
    """Put this process's random number generators back, where the save has theirs."""
    own = save.own(rank)
    if own is not None:
        set_random_state(own[0], own[1], device)


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """The schedule's position as JSON; its functions are the study's and are made again."""
    return {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(scheduler.base_lrs)
    }


def trainer_state(state: TrainerState) -> dict[str, Any]:
    """The library's own bookkeeping as JSON, without its copy of the metrics."""
    return json.loads(json.dumps({**dataclasses.asdict(state), "log_history": []}))


def told_to_library(save: Save, folder: Path) -> Path:
    """A folder as the library expects it of a checkpoint: the bookkeeping alone, everything else is put back by us."""
    place = folder / f"checkpoint-{save.step}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "trainer_state.json").write_text(json.dumps(save.state["trainer"]), encoding="utf-8")
    return place


def kept_files(save: Save, names: Sequence[str]) -> dict[str, Path]:
    """Those of these files that a save holds."""
    return {name: save.file(name) for name in names if name in save.manifest["files"]}


def rows_so_far(save: Save | None) -> Sequence[dict[str, Any]]:
    """Metrics rows of the steps that a save holds."""
    return [] if save is None else list(save.state["rows"])
