"""The part that runs of different lengths have in common: done once, kept by the shorter, gone on from by the longer.

With a constant rate, or before the decay of warmup-stable-decay, a step knows nothing of the run's length, so that a
series of token budgets is one trunk with branches. The planner says where (``study.series``); that both runs are the
same up to there, rows included, is checked here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismlab.errors import CheckpointError
from prismlab.run.step import Artifact
from prismlab.train.boundaries import TrainingRows
from prismlab.train.parallel import Parallel, World
from prismlab.train.resume import capture, random_state
from prismlab.train.saves import Save, Saves, read_save

FOLDER = "trunk"
LOGS = ("metrics.jsonl", "heldout.jsonl")
OWN = ("steps", "snapshots", "keep_snapshots", "keep_master", "share_prefix")
"""Keys of a spec in which runs on one trunk may differ; of its optimizer those of the decay."""
_DECAY = ("schedule", "decay_steps", "final_lr_factor")
_ROWS = 256
"""Rows hashed at a time."""


def trunk_identity(config: Mapping[str, Any], inputs: Mapping[str, Artifact], rows: TrainingRows, step: int) -> str:
    """Hash of all that decides the first ``step`` steps: spec, start, and the rows themselves with their documents."""
    spec = {key: value for key, value in config["spec"].items() if key not in OWN}
    spec["optimizer"] = {key: value for key, value in spec["optimizer"].items() if key not in _DECAY}
    spec = {key: spec[key] for key in spec if key not in ("launch", "nproc", "mesh", "save", "tensorboard", "wandb")}
    digest = hashlib.blake2b(json.dumps([spec, inputs["start"].fingerprint, step], sort_keys=True).encode())
    last = step * int(spec["rows"])
    for first in range(0, last, _ROWS):
        stop = min(first + _ROWS, last)
        documents = rows.documents(first, stop)
        for part in (rows.tokens(first, stop), rows.loss_mask(first, stop), documents):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]


class Trunk:
    """What a training leaves to longer ones, and what it takes from a shorter one.

    Args:
        config: of the step: ``branch``, the step after which longer runs of the study go on from this one, and
            ``prefix``, the step from which it goes on itself.
        inputs: of the step: ``prefix``, the shorter run.
        rows: what it trains on.
        world: its processes.
        work: where it writes.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        rows: TrainingRows,
        world: World,
        work: Path,
    ) -> None:
        self._config, self._inputs, self._rows = config, inputs, rows
        self._world, self._work = world, work
        self._branch: int | None = config.get("branch")

    def _identity(self, step: int) -> str:
        return trunk_identity(self._config, self._inputs, self._rows, step)

    def take_up(self) -> Save | None:
        """What the shorter run left, its logs brought here; None where this run begins by itself.

        Raises:
            CheckpointError: it left nothing, it is damaged, or the two are not the same up to there.
        """
        if "prefix" not in self._inputs:
            return None
        shorter, step = self._inputs["prefix"].path, int(self._config["prefix"]["step"])
        folder = shorter / FOLDER / f"step-{step:08d}"
        try:
            save = read_save(folder, self._identity(step), hashes=self._world.rank == 0)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; this run cannot go on from the shorter one: set its 'share_prefix: false' to train it whole"
            ) from error
        if self._world.rank == 0:
            for name in LOGS:
                if (shorter / name).is_file():
                    shutil.copyfile(shorter / name, self._work / name)
        self._world.meet()
        return save

    def after(
        self,
        step: int,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        state: Callable[[], Mapping[str, Any]],
    ) -> None:
        """To be called by all processes after every step: keeps it, where longer runs branch off.

        Raises:
            StageError: it could not be written.
        """
        if step != self._branch:
            return
        chief = self._world.rank == 0
        saves = Saves(
            self._work / FOLDER, identity=self._identity(step), rank=self._world.rank, size=self._world.size, keep=1
        )
        if chief:
            saves.sweep()  # what a run left that was stopped while it wrote this: its parts would pass for the others'
        self._world.meet()
        told, own = random_state(self._world.device)
        # Files of snapshots are the shorter run's own: a longer one takes its first behind the branch.
        kept = {**state(), "files": []} if chief else {}
        saves.begin(step, capture(parallel.model, optimizer, self._world.rank), state=kept, own_state=told, own=own)
        saves.wait()
        self._world.meet()
