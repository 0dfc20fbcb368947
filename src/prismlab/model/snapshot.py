"""Stage ``snapshot``: the weights that a run saved on its way, as a checkpoint of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError
from prismlab.model.folder import SINGLE, beside_weights
from prismlab.run.step import Artifact, Progress, Result


def place(source: Path, target: Path) -> None:
    """A hard link, since weights are large; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Put the snapshot of ``inputs['run']`` after ``config['step']`` steps beside the run's config and tokenizer.

    Raises:
        CheckpointError: the run's snapshot is not there any more.
    """
    made = inputs["run"]
    weights = made.path / "snapshots" / f"step-{int(config['step']):06d}" / SINGLE
    if not weights.is_file():
        raise CheckpointError(
            f"{weights}: the snapshot is gone ('prism gc' deletes snapshots); delete {made.path} to have the run anew"
        )
    model = out / "model"
    model.mkdir(parents=True)
    for file in beside_weights(made.model):
        place(file, model / file.name)
    place(weights, model / SINGLE)
    progress.note(f"weights after step {config['step']}")
    return Result(metrics={"step": int(config["step"])})
