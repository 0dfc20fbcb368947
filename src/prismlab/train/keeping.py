"""A training that goes on where it was stopped: when it is saved, what is in a save, and how it is taken up again.

What a step of a study writes lies in its scratch folder until the end, ``run/`` what becomes the artifact, ``saves/``
beside it, so that it survives a kill; it is then linked into the artifact's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from prismlab.data.corpus import Corpus
from prismlab.run.step import Artifact, Progress
from prismlab.train.parallel import Parallel, World
from prismlab.train.resume import capture, random_state, restore, set_random_state
from prismlab.train.saves import Save, Saves, read_save

HOW = ("launch", "nproc", "mesh", "save", "tensorboard", "wandb")
"""Keys of a spec that say how a training is carried out: a run may go on under others."""


def how_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the training is carried out: what the planner sends beside the configuration, or else the spec says."""
    return {key: config["spec"].get(key) for key in HOW} | dict(config.get("how", {}))


def identity(config: Mapping[str, Any], inputs: Mapping[str, Artifact], corpus: Corpus) -> str:
    """Hash of what makes two runs the same training."""
    rest = {key: value for key, value in config.items() if key not in ("files", "scratch", "how")}
    rest["spec"] = {key: value for key, value in rest["spec"].items() if key not in HOW}
    told = [rest, {key: one.fingerprint for key, one in inputs.items()}, dict(corpus.manifest)]
    return hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def publish(work: Path, out: Path) -> None:
    """Give the files below ``work`` names below ``out``; copies where the file system has no links."""
    if work == out:
        return
    for path in sorted(work.rglob("*")):
        if not path.is_file() or path.is_symlink() or path.name.endswith((".draft", ".partial")):
            continue
        place = out / path.relative_to(work)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)


class Keeper:
    """Saves of one training, as its processes see them.

    Args:
        config: of the step; without ``scratch`` nothing is saved.
        out: the artifact's folder.
        same: see ``identity``.
        world: the processes.
        progress: told of saves that are passed over.
    """

    def __init__(self, config: Mapping[str, Any], out: Path, same: str, world: World, progress: Progress) -> None:
        scratch, spec = config.get("scratch"), how_of(config).get("save") or {}
        self.work = Path(scratch) / "run" if scratch else out
        """Where the run writes."""
        self._world, self._identity, self._note = world, same, progress.note
        self._steps, self._minutes = spec.get("every_steps"), spec.get("every_minutes")
        self._saves: Saves | None = None
        if scratch:
            self._saves = Saves(
                Path(scratch) / "saves",
                identity=same,
                rank=world.rank,
                size=world.size,
                keep=int(spec.get("keep", 2)),
                note=progress.note,
            )
        self._last = time.monotonic()
        self.saved: Save | None = None
        """What the run goes on from; None if it begins."""

    def find(self) -> Save | None:
        """The save to go on from; all processes call it, before anything else is written."""
        chief = self._world.rank == 0
        step = -1
        if self._saves is not None and chief:
            self._saves.sweep()
            self.saved = self._saves.latest()
            step = -1 if self.saved is None else self.saved.step
        step = self._world.agree(step)
        if self._saves is not None and not chief and step >= 0:
            # Hashes were compared by the first process.
            self.saved = read_save(self._saves.place(step), self._identity, hashes=False)
        if chief and self._saves is not None and self.saved is None and self.work.exists():
            shutil.rmtree(self.work)  # of a run that was stopped before its first save
        if chief:
            self.work.mkdir(parents=True, exist_ok=True)
        self._world.meet()
        return self.saved

    def begin(self, parallel: Parallel, optimizer: torch.optim.Optimizer) -> int:
        """Put back what the save holds; the number of steps done."""
        if self.saved is None:
            return 0
        restore(parallel.model, optimizer, self.saved)
        own = self.saved.own(self._world.rank)
        if own is not None:
            set_random_state(*own, self._world.device)
        before = f" with {self.saved.ranks} processes" if self.saved.ranks != self._world.size else ""
        shorter = (
            "" if self._saves is not None and self.saved.folder.parent == self._saves.folder else " by a shorter run"
        )
        self._note(f"going on after step {self.saved.step}, saved{shorter}{before}")
        self._last = time.monotonic()
        return self.saved.step

    def _due(self, step: int) -> bool:
        if self._steps is not None:
            return step % int(self._steps) == 0
        if self._minutes is None:
            return False
        # Processes' clocks differ: the first one's counts.
        return bool(self._world.agree(int(time.monotonic() - self._last >= 60.0 * float(self._minutes))))

    def after(
        self,
        step: int,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        state: Callable[[], Mapping[str, Any]],
        files: Callable[[], Mapping[str, Path]],
    ) -> None:
        """Save, if it is time to: to be called by all processes after every step, once its rows are logged.

        Args:
            step: steps done.
            parallel: the model.
            optimizer: its optimizer.
            state: JSON to be kept, asked of the first process.
            files: files to be kept, asked of the first process.

        Raises:
            StageError: this save or the one before could not be written.
        """
        if self._saves is None or not self._due(step):
            return
        self._last = time.monotonic()
        self._saves.wait()
        chief = self._world.rank == 0
        told, tensors = random_state(self._world.device)
        self._saves.begin(
            step,
            capture(parallel.model, optimizer, self._world.rank),
            state=state() if chief else {},
            own_state=told,
            own=tensors,
            files=files() if chief else {},
        )

    def finish(self, *, whole: bool) -> None:
        """The end: with ``whole`` waits for the save under way, else (after an error) lets it go."""
        if self._saves is None:
            return
        if whole:
            self._saves.wait()
        else:
            self._saves.close()
