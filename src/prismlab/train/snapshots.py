"""Snapshots of a run's weights: kept, or measured when they are saved and dropped. Used by training and by RL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.arith.trace import FILE, Recorder, read, write
from prismlab.model.checkpoint import save_snapshot
from prismlab.train.optim import snapshot_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LAST = "last.safetensors"
"""Name in a save of the snapshot that the next one is compared with."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` when the block ends: another name of the old file keeps what it had."""
    draft = path.with_name(f"{path.name}.draft")
    yield draft
    draft.replace(path)


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

    def due(self, step: int) -> bool:
        """Whether the weights are saved after ``step``."""
        return step in self._steps

    def kept(self) -> dict[str, Path]:
        """Files without which a stopped run could not measure its next snapshot, for a save; none is written to again,
        whatever happens to its name.
        """
        if self._recorder is None or self._recorder.before is None:
            return {}
        return {LAST: self._recorder.before / "model.safetensors", FILE: self._out / FILE}

    def go_on(self, step: int, files: Mapping[str, Path]) -> None:
        """Take up what a stopped run had measured when it was saved after ``step``: the files of ``kept``."""
        if self._recorder is None or not files:
            return
        last = max(one for one in self._steps if one <= step)
        folder = self._out / "snapshots" / f"step-{last:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, place in ((LAST, folder / "model.safetensors"), (FILE, self._out / FILE)):
            with whole(place) as draft:
                shutil.copyfile(files[name], draft)
        self._recorder.go_on(read(self._out / FILE), folder)

    def after(self, step: int) -> None:
        """To be called after every step, by one process of a run."""
        if step not in self._steps:
            return
        folder = self._out / "snapshots" / f"step-{step:06d}"
        save_snapshot(self._model, folder)
        if self._recorder is not None:
            self._recorder.take(step, folder)
            with whole(self._out / FILE) as draft:
                write(self._recorder.trace, draft)

    def close(self) -> None:
        """To be called after the last step: writes what was measured and drops the last snapshot."""
        if self._recorder is not None:
            with whole(self._out / FILE) as draft:
                write(self._recorder.close(), draft)
