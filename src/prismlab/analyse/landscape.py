"""Pass rates on the plane of base, mid and RL: W(a, b) = base + a (mid - base) + b (RL - mid) (stage ``landscape``).

After arXiv 2603.17074: the path a: 0 -> 1 at b = 0, then b: 0 -> 1 at a = 1, and a grid over both. One model lives in
memory, its weights are set to each point in turn, and the same items are answered with the same random numbers there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.analyse.surface import Place, all_places, place_name, summarise
from prismlab.errors import DataError, StageError
from prismlab.evaluate.draw import Draw, draw_of
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.interpolate import Sources, line, open_sources, plane, set_weights
from prismlab.run.step import Artifact, Json, Progress, Result, Silent
from prismlab.score import SCHEMA, SampleRow, read_rows, write_rows
from prismlab.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Rows = dict[Place, list[SampleRow]]
SURFACE = pa.schema([("a", pa.float64()), ("b", pa.float64()), *SCHEMA])
"""Columns of ``samples.parquet``: the point, and a sample row."""


class Walker:
    """A model that is moved from point to point; loaded when the first point is not known yet.

    Args:
        folders: two checkpoints (the line between them) or three (base, mid, RL).
        dtype: of the live model.
        device: None for the first GPU, or the CPU where there is none.

    Raises:
        CheckpointError: the checkpoints cannot be combined; nothing has been allocated then.
    """

    def __init__(self, folders: Sequence[Path], dtype: str = "float32", device: torch.device | None = None) -> None:
        if len(folders) not in (2, 3):
            raise ValueError(f"a landscape lies between 2 or 3 checkpoints, not {len(folders)}")
        self.sources: Sources = open_sources(folders)
        self._dtype, self._device = dtype, device
        self._model: PreTrainedModel | None = None
        self._tokenizer: Any = None

    @property
    def legs(self) -> int:
        """1 between two checkpoints, 2 from base over mid to RL."""
        return len(self.sources.folders) - 1

    def rows(self, place: Place, draw: Draw, progress: Progress | None = None) -> list[SampleRow]:
        """Sample rows at one point."""
        if self._model is None:
            folder = self.sources.folders[1]
            self._tokenizer = load_tokenizer(folder)
            self._model = load_model(folder, self._dtype, self._device)
        set_weights(self._model, self.sources, plane(*place) if self.legs == 2 else line(place[0]))
        try:
            return draw.rows(self._model, self._tokenizer, progress)
        except StageError as error:
            raise StageError(f"at point {place_name(place)} of {self.sources.folders[-1]}: {error}") from error


def _kept(file: Path, draw: Draw, progress: Progress) -> list[SampleRow] | None:
    """The rows of a point that was sampled before; None where there are none, or not those that are wanted."""
    if not file.is_file():
        return None
    wanted = [(item.task, item.id, sample) for item in draw.items for sample in range(draw.n)]
    try:
        rows = read_rows(file)
    except DataError as error:
        progress.note(f"{error}; the point is sampled again")
        return None
    if [(row["task"], row["item_id"], row["sample"]) for row in rows] == wanted:
        return rows
    progress.note(f"{file}: other items than are asked for; the point is sampled again")
    return None


def _keep(rows: Sequence[SampleRow], file: Path) -> None:
    """Write a point's rows so that they are either absent or whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    write_rows(rows, draft)
    draft.replace(file)


def sample_points(
    walker: Walker, draw: Draw, places: Sequence[Place], cache: Path | None = None, progress: Progress | None = None
) -> Rows:
    """Sample rows of every place, each sampled once.

    Args:
        walker: the checkpoints.
        draw: what is sampled at every point.
        places: points (a, b).
        cache: folder in which each point's rows are kept as ``<a>-<b>.parquet`` as soon as they are there, and looked
            up; it must belong to these checkpoints and settings alone. None keeps nothing.
        progress: counts samples, those that were found too.

    Raises:
        StageError: a prompt fills the model's positions, or weights of a point are broken.
    """
    progress = progress or Silent()
    progress.start(len(places) * draw.samples, "samples")
    found: Rows = {}
    for place in places:
        file = cache / f"{place_name(place)}.parquet" if cache is not None else None
        rows = _kept(file, draw, progress) if file is not None else None
        if rows is not None:
            progress.advance(len(rows))
        else:
            rows = walker.rows(place, draw, progress)
            if file is not None:
                _keep(rows, file)
        found[place] = rows
    return found


def surface_table(rows: Rows) -> pa.Table:
    """All sample rows with their points, in the columns of ``SURFACE``."""
    return pa.Table.from_pylist([{"a": a, "b": b, **row} for (a, b), mine in rows.items() for row in mine], SURFACE)


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``landscape``: see the house plan for its config, inputs and metrics.

    Raises:
        CheckpointError: the checkpoints do not fit one another.
        DataError: a task is missing or broken.
        StageError: a prompt fills the model's positions, or weights of a point are broken.
    """
    spec, draw = config["spec"], draw_of(config)
    walker = Walker([inputs[key].model for key in ("base", "mid", "rl")])
    points, grid = int(spec["points"]), spec["grid"]
    cache = Path(config["scratch"]) / "points" if "scratch" in config else None
    rows = sample_points(walker, draw, all_places(points, walker.legs, grid), cache, progress)
    pq.write_table(surface_table(rows), out / "samples.parquet", compression="zstd")
    metrics = summarise(rows, points, walker.legs, grid, derive_seed(config["seed"], "landscape"))
    return Result(metrics=metrics, tokens=sum(row["tokens"] for mine in rows.values() for row in mine))
