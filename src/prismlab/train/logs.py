"""Metrics of a run as JSON lines, and as TensorBoard or W&B where asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    Raises:
        MissingExtra: TensorBoard or W&B was asked for and is not installed.
    """

    def __init__(self, out: Path, *, tensorboard: bool, wandb: str | None, name: str) -> None:
        self._file = (out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._board: Any = None
        self._wandb: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise MissingExtra("tensorboard", "train", "'tensorboard: true'") from error
            self._board = SummaryWriter(str(out / "tensorboard"))
        if wandb is not None:
            try:
                import wandb as library  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise MissingExtra("wandb", "wandb", f"'wandb: {wandb}'") from error
            self._wandb = library.init(project=wandb, name=name, dir=str(out))

    def log(self, row: Mapping[str, Any]) -> None:
        """Write one row. Numbers that are not finite become null, which JSON can hold and a reader cannot mistake."""
        self._file.write(json.dumps(_finite(row), separators=(",", ":")) + "\n")
        if self._board is None and self._wandb is None:
            return
        flat = flatten(row)
        step = int(flat.pop("step"))
        if self._board is not None:
            for key, value in flat.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(flat, step=step)

    def close(self) -> None:
        """Flush and close every sink."""
        self._file.close()
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
