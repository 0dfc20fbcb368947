"""Plan beside reality: what trainings were reckoned to cost, and what they did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from prismlab.cost.devices import UTILISATION
from prismlab.cost.memory import RESERVED, memory
from prismlab.cost.shapes import Shape, shape_of
from prismlab.cost.training import operations_of, setting_of, training_disk
from prismlab.errors import SpecError
from prismlab.report.records import Found, Records
from prismlab.report.sections import Cell, Table, name_cell
from prismlab.report.text import NONE, duration, percent, short

MB = 1e6
HEAD = (
    "checkpoint",
    "operations",
    "of the matrix rate",
    "tokens/s: plan",
    "was",
    "training time: plan",
    "was",
    "memory, MB: plan",
    "was",
    "disk, MB: plan",
    "was",
)
CAPTION = (
    "Plan and reality of trainings. Plan: operations by the model's shape, at "
    f"{UTILISATION:.0%} of the rate of matrix products that the run measured before it began; memory and disk by "
    "the same formulas as 'prism plan'. Was: from the records, means over seeds. On a CPU memory is the whole "
    "process's, on a GPU what tensors took."
)


def _shape(found: Found) -> Shape | None:
    """The shape of the model that a training wrote; None where its class has none."""
    try:
        config = json.loads((found.artifact.model / "config.json").read_text(encoding="utf-8"))
        return shape_of(config)
    except (OSError, ValueError, SpecError):
        return None


def _processes(metrics: Mapping[str, Any]) -> int:
    mesh = metrics.get("mesh") or {}
    return int(mesh.get("replicate", 1)) * int(mesh.get("shard", 1))


def _compared(found: Found) -> dict[str, float]:
    """Figures of one training, as far as its record holds them: operations, utilisation, and pairs of plan and was."""
    record, metrics = found.artifact.record, found.artifact.metrics
    spec: Mapping[str, Any] = found.artifact.config["spec"]
    shape = _shape(found)
    if shape is None or spec.get("lora") is not None:
        return {}
    device = str(metrics.get("device", "cpu"))
    # The mesh as it was: it is no part of the spec. It holds all processes, those that share a row included.
    setting = setting_of({**spec, "mesh": metrics.get("mesh")}, _processes(metrics), device)
    tokens = float(spec["steps"] * spec["rows"] * spec["seq_len"])
    figures = {"operations": spec["steps"] * spec["rows"] * operations_of(shape, setting).model.total}
    needs = memory(shape, setting)
    figures["memory_plan"] = (needs.total - (RESERVED["cuda"] if device == "cuda" else 0.0)) / MB
    if metrics.get("memory_mb") is not None:
        figures["memory_was"] = float(metrics["memory_mb"]) * 2**20 / MB
    trunk = "branch" in found.artifact.config
    figures["disk_plan"] = training_disk(shape, spec, trunk=trunk).kept / MB
    figures["disk_was"] = sum(int(known["bytes"]) for known in record.get("files", {}).values()) / MB
    speed, share = metrics.get("tokens_per_second"), metrics.get("mfu")
    if speed:
        figures |= {"speed_was": float(speed), "seconds_was": tokens / float(speed)}
    if speed and share:
        planned = UTILISATION * float(speed) / float(share)
        figures |= {"share": float(share), "speed_plan": planned, "seconds_plan": tokens / planned}
    return figures


def _mean(figures: Sequence[Mapping[str, float]], name: str, show: Callable[[float], str]) -> Cell:
    known = [one[name] for one in figures if name in one]
    return Cell(show(fmean(known)) if known else NONE)


def _row(records: Records, name: str, figures: Sequence[Mapping[str, float]]) -> list[Cell]:
    shown: list[tuple[str, Callable[[float], str]]] = [("operations", short), ("share", percent)]
    ways: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("speed", short),
        ("seconds", duration),
        ("memory", lambda value: f"{value:,.0f}"),
        ("disk", lambda value: f"{value:,.1f}"),
    )
    for figure, show in ways:
        shown += [(f"{figure}_plan", show), (f"{figure}_was", show)]
    return [name_cell(records, name), *(_mean(figures, figure, show) for figure, show in shown)]


def plan_and_reality(records: Records) -> list[Table]:
    """Trainings of models whose shape is known, a row a checkpoint; no table where none has run."""
    rows: list[list[Cell]] = []
    for name in records.made():
        figures = [one for one in map(_compared, records.of("train", checkpoint=name)) if one]
        if figures:
            rows.append(_row(records, name, figures))
    return [Table(list(HEAD), rows, CAPTION)] if rows else []
