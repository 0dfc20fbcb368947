"""Metrics of a run as JSON lines, and as TensorBoard or W&B where asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from prismlab.errors import MissingExtra


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested mapping by slash-joined key; text and null are left out."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat


class MetricsLog:
    """Appends rows to ``out/metrics.jsonl``; every row has ``step``. Use it as a context manager.

    Args:
        out: the artifact's folder.
        tensorboard: also write event files below ``out/tensorboard``.
        wandb: project to log to, or None.
        name: run name shown by W&B.
        sizes: bytes of each file of rows that stay, as ``sizes`` gave them; what a stopped run wrote behind them goes.
            None appends to what there is.
        step: the step after which ``sizes`` were taken; TensorBoard hides what was logged behind it.
        run: W&B's id of this run, under which a run that goes on is shown as one; None for a new one.

    Raises:
        MissingExtra: TensorBoard or W&B was asked for and is not installed.
    """

    def __init__(
        self,
        out: Path,
        *,
        tensorboard: bool,
        wandb: str | None,
        name: str,
        sizes: Mapping[str, int] | None = None,
        step: int | None = None,
        run: str | None = None,
    ) -> None:
        self._out, self._files = out, dict[str, TextIO]()
        for file, size in (sizes or {}).items():
            if size or (out / file).exists():
                with (out / file).open("r+b") as rows:
                    rows.truncate(size)
        # All of them, written to again or not: the next save has to know the length of each.
        for file in ("metrics.jsonl", *(sizes or {})):
            self._file(file)
        self._board: Any = None
        self._wandb: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise MissingExtra("tensorboard", "train", "'tensorboard: true'") from error
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=None if step is None else step + 1)
        if wandb is not None:
            try:
                import wandb as library  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise MissingExtra("wandb", "wandb", f"'wandb: {wandb}'") from error
            again = {} if run is None else {"id": run, "resume": "allow"}
            self._wandb = library.init(project=wandb, name=name, dir=str(out), **again)

    def _file(self, name: str) -> TextIO:
        if name not in self._files:
            self._files[name] = (self._out / name).open("a", encoding="utf-8", buffering=1)
        return self._files[name]

    def log(self, row: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        """Write one row. Numbers that are not finite become null, which JSON can hold and a reader cannot mistake."""
        self._file(file).write(json.dumps(_finite(row), separators=(",", ":")) + "\n")
        if self._board is None and self._wandb is None:
            return
        flat = flatten(row)
        step = int(flat.pop("step"))
        if self._board is not None:
            for key, value in flat.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(flat, step=step)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of rows, all of them forced to the disk: what a save has to know of the log."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: (self._out / name).stat().st_size for name in self._files}

    def close(self) -> None:
        """Flush and close every sink."""
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
