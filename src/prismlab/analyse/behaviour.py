"""Length and confidence of responses, split by correct and incorrect (stage ``behaviour``).

A function of an evaluation's rows and of nothing else. Intervals resample items, each with all its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from prismlab.errors import DataError
from prismlab.run.step import Artifact, Json, Progress, Result
from prismlab.seeds import derive_seed
from prismlab.stats import Floats, Statistic, cluster_bootstrap

Row = Mapping[str, Any]

COLUMNS = ("item_id", "problem", "task", "tokens", "finished", "nll", "score")
"""Columns of ``samples.parquet`` that are read."""


def _median(values: Floats) -> float:
    return float(np.median(values))


def _number(value: Any) -> float | None:
    """A finite float, or None for what is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def _nll_if(score: float) -> Callable[[Row], float | None]:
    return lambda row: _number(row["nll"]) if row["score"] == score else None


_MEASURES: dict[str, tuple[Callable[[Row], float | None], Statistic | None, str]] = {
    "pass": (lambda row: _number(row["score"]), None, "no sample was scored"),
    "length_median": (lambda row: _number(row["tokens"]), _median, "no samples"),
    "length_mean": (lambda row: _number(row["tokens"]), None, "no samples"),
    "nll": (lambda row: _number(row["nll"]), None, "no sample has a log-probability"),
    "nll_correct": (_nll_if(1.0), None, "no correct sample has a log-probability"),
    "nll_incorrect": (_nll_if(0.0), None, "no incorrect sample has a log-probability"),
    "truncation": (lambda row: None if row["finished"] is None else float(not row["finished"]), None, "no samples"),
}
"""Per measure: its value of a row (None leaves the row out), its statistic (None is the mean), the reason if empty."""


def describe(rows: Sequence[Row], confidence: float = 0.95, seed: int = 0) -> dict[str, Json]:
    """Behaviour over ``rows`` (sample rows of the house plan).

    Args:
        rows: any number of samples; problems, which are resampled, are told apart by task and name.
        confidence: level of the intervals.
        seed: of the bootstrap.

    Returns:
        ``n``, the number of samples; ``pass`` (share of scored samples that are correct), ``length_median`` and
        ``length_mean`` (tokens), ``nll`` and the same of correct and of incorrect samples (mean over samples of the
        mean negative log-probability per token, nats), ``truncation`` (share without a stop token), each as
        ``{value, lo, hi}``, null with its ``reason`` where there is none.
    """
    out: dict[str, Json] = {"n": len(rows)}
    for name, (value_of, statistic, empty) in _MEASURES.items():
        kept = [(value, (row["task"], row["problem"])) for row in rows if (value := value_of(row)) is not None]
        if not kept:
            out[name] = {"value": None, "lo": None, "hi": None, "reason": empty}
            continue
        values, clusters = zip(*kept, strict=True)
        found = cluster_bootstrap(values, clusters, confidence, seed=derive_seed(seed, name), statistic=statistic)
        out[name] = {"value": found.value, "lo": found.lo, "hi": found.hi}
        if found.reason is not None:
            out[name]["reason"] = found.reason
    return out


def read_rows(path: Path) -> list[Row]:
    """The columns of ``samples.parquet`` that behaviour needs.

    Raises:
        DataError: the file is missing, damaged, or lacks a column.
    """
    try:
        present = pq.read_schema(path).names
        missing = [name for name in COLUMNS if name not in present]
        if missing:
            raise DataError(f"{path}: column {missing[0]!r} is missing; these are not sample rows")
        return pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: sample rows cannot be read: {error}") from error


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``behaviour``: see the house plan for its input and metrics; it writes no file.

    Raises:
        DataError: the evaluation's rows cannot be read.
    """
    rows = read_rows(inputs["evaluation"].path / "samples.parquet")
    seed = int(config["seed"])
    tasks = sorted({row["task"] for row in rows})
    progress.start(len(tasks) + 1, "tasks")
    metrics: dict[str, Json] = {"tasks": {}}
    for task in tasks:
        metrics["tasks"][task] = describe([row for row in rows if row["task"] == task], seed=seed)
        progress.advance()
    metrics["all"] = describe(rows, seed=seed)
    progress.advance()
    return Result(metrics=metrics)
