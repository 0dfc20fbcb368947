"""Snapshots of a run's weights: kept, or measured when they are saved and dropped. Used by training and by RL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.arith.trace import FILE, Recorder, write
from prismlab.model.checkpoint import save_snapshot
from prismlab.train.optim import snapshot_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Snapshots:
    """Saves the weights after the steps that a run's spec asks for.

    Args:
        model: the model in training.
        start: the checkpoint that it starts from.
        config: of the step: ``spec`` (JSON of ``TrainSpec`` or ``RLSpec``) and, where the spec says not to keep
            snapshots, the ``thresholds`` at which they are measured.
        out: the artifact's folder: ``snapshots/step-000020/model.safetensors``, or ``trajectory.parquet``.
    """

    def __init__(self, model: PreTrainedModel, start: Path, config: Mapping[str, Any], out: Path) -> None:
        spec = config["spec"]
        self._model, self._out = model, out
        self._steps = snapshot_steps(int(spec["steps"]), int(spec["snapshots"]))
        measured = self._steps and not spec["keep_snapshots"]
        self._recorder = Recorder(start, config["thresholds"]) if measured else None

    def after(self, step: int) -> None:
        """To be called after every step, by one process of a run."""
        if step not in self._steps:
            return
        folder = self._out / "snapshots" / f"step-{step:06d}"
        save_snapshot(self._model, folder)
        if self._recorder is not None:
            self._recorder.take(step, folder)

    def close(self) -> None:
        """To be called after the last step: writes what was measured and drops the last snapshot."""
        if self._recorder is not None:
            write(self._recorder.close(), self._out / FILE)
