"""Divergence and sparsity of a run's snapshots against its start (stage ``trajectory``).

The active set of a snapshot is the set of elements that changed: by more than 1% (the reference study's measure), or at
all. Its overlap with that of the snapshot before is Jaccard's: elements in both over elements in either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prismlab.analyse import kernels
from prismlab.analyse.kernels import Array, Sums, threshold_key
from prismlab.analyse.parts import component_order, match, one_type
from prismlab.errors import StageError
from prismlab.model.tensors import model_type, open_checkpoint
from prismlab.run.step import Artifact, Json, Progress, Result

ACTIVE = 0.01
"""Relative change beyond which an element is in the active set."""
EARLY = 0.4
"""Share of the steps at which ``front_share`` is read."""
_STEP = re.compile(r"step-(\d{1,9})")

Mask = NDArray[np.bool_]


def snapshot_folders(run: Path) -> dict[int, Path]:
    """Folders with the weights of a run's snapshots, by step, in rising order."""
    found = {
        int(match[1]): folder
        for folder in (run / "snapshots").glob("step-*")
        if (match := _STEP.fullmatch(folder.name)) and any(folder.glob("*.safetensors"))
    }
    return dict(sorted(found.items()))


@dataclass
class Overlap:
    """Sizes of the intersection and the union of two sets."""

    both: int = 0
    either: int = 0

    def take(self, a: Mask, b: Mask) -> None:
        """Count one chunk of both sets."""
        self.both += int(np.count_nonzero(a & b))
        self.either += int(np.count_nonzero(a | b))

    @property
    def jaccard(self) -> float | None:
        """None if both sets are empty."""
        return self.both / self.either if self.either else None


def active_sets(start: Array, now: Array) -> tuple[Mask, Mask]:
    """Elements that changed by more than 1%, and elements that changed at all; what is not finite is in neither."""
    old, new = start.astype(np.float64), now.astype(np.float64)
    with np.errstate(invalid="ignore"):
        relative = np.abs(new - old) > ACTIVE * np.abs(old)
        finite = np.isfinite(old) & np.isfinite(new)
    return relative & finite, (old != new) & finite


@dataclass
class Measured:
    """Sums of every snapshot and overlaps of every two consecutive ones."""

    total: list[Sums]
    components: dict[str, list[Sums]] = field(default_factory=dict)
    relative: list[Overlap] = field(default_factory=list)
    exact: list[Overlap] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


def measure(
    start: Path, snapshots: Sequence[Path], labels: Sequence[str], kind: str, thresholds: Sequence[float], bar: Progress
) -> tuple[Measured, str]:
    """One pass over the start and all snapshots, and the name of the kernel that ran."""
    files = [open_checkpoint(folder) for folder in (start, *snapshots)]
    parts, skipped = match(files, ["start", *labels], kind)
    kernel = kernels.choose(sum(part.elements for part in parts) * len(snapshots))
    levels = tuple(thresholds)
    done = Measured([Sums(levels) for _ in snapshots], skipped=skipped)
    done.relative, done.exact = ([Overlap() for _ in snapshots[1:]] for _ in range(2))
    bar.start(len(parts), "tensors")
    for part in parts:
        own = done.components.setdefault(part.component, [Sums(levels) for _ in snapshots])
        for old, *rest in part.chunks():
            before: tuple[Mask, Mask] | None = None
            for k, now in enumerate(rest):
                sums = kernels.divergence(old, now, levels, kernel)
                done.total[k].add(sums)
                own[k].add(sums)
                active = active_sets(old, now)
                if before is not None:
                    done.relative[k - 1].take(before[0], active[0])
                    done.exact[k - 1].take(before[1], active[1])
                before = active
        bar.advance()
    return done, kernel


def first_reached(steps: Sequence[int], l2: Sequence[float], share: float) -> float | None:
    """The step at which the divergence first reaches ``share`` of its final value, by linear interpolation from (0, 0).

    None if the run did not move.
    """
    if l2[-1] == 0:
        return None
    goal, before, height = share * l2[-1], 0.0, 0.0
    for step, value in zip(steps, l2, strict=True):
        if value >= goal:
            return before + (step - before) * (goal - height) / (value - height)
        before, height = float(step), value
    raise AssertionError("the last value reaches every share of itself")


def front_share(steps: Sequence[int], l2: Sequence[float]) -> float | None:
    """Share of the final divergence that reached at 40% of the steps, by linear interpolation; None if it is 0."""
    if l2[-1] == 0:
        return None
    return float(np.interp(EARLY * steps[-1], [0, *steps], [0.0, *l2])) / l2[-1]


def _rows(steps: Sequence[int], done: Measured) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    named = {"total": done.total, **{name: done.components[name] for name in component_order(list(done.components))}}
    for name, series in named.items():
        for step, sums in zip(steps, series, strict=True):
            n = sums.elements
            row: dict[str, Any] = {"step": step, "component": name, "elements": n, "l2": sums.l2}
            row["equal"] = sums.equal / n if n else None
            for t, count in zip(sums.thresholds, sums.changed, strict=True):
                row[f"changed_{threshold_key(t)}"] = count / n if n else None
            rows.append(row)
    return rows


def _metrics(steps: list[int], done: Measured, kernel: str, thresholds: Sequence[float]) -> dict[str, Json]:
    l2 = [sums.l2 for sums in done.total]
    known = [value for value in l2 if value is not None]
    whole = len(known) == len(l2)
    reason = None if whole and known[-1] > 0 else "the run did not move" if whole else "the start's norm is 0"
    out: dict[str, Json] = {
        "steps": steps,
        "l2": l2,
        "changed": {
            threshold_key(t): [s.changed[k] / s.elements if s.elements else None for s in done.total]
            for k, t in enumerate(thresholds)
        },
        "equal": [s.equal / s.elements if s.elements else None for s in done.total],
        "overlap": [None, *(o.jaccard for o in done.relative)],
        "overlap_exact": [None, *(o.jaccard for o in done.exact)],
        "step50": first_reached(steps, known, 0.5) if whole else None,
        "step80": first_reached(steps, known, 0.8) if whole else None,
        "front_share": front_share(steps, known) if whole else None,
        "skipped": done.skipped,
        "nonfinite": sum(s.nonfinite for s in done.total),
        "kernel": kernel,
    }
    return out if reason is None else {**out, "reason": reason}


def _final_step(run: Artifact) -> int:
    """The step of the run's final checkpoint: what it did if it says so, else what it was asked to do."""
    steps = run.metrics.get("steps")
    return int(steps if steps is not None else run.config["spec"]["steps"])


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``trajectory``: see the house plan for its config, inputs and metrics.

    The final checkpoint is the last point, unless a snapshot was saved after the last step. ``overlap`` has null for
    the first snapshot, which has none before it; ``overlap_exact`` is the same of elements that changed at all.

    Raises:
        StageError: the run has no snapshots.
        CheckpointError: weights are damaged or do not correspond.
    """
    start, ran = inputs["start"], inputs["run"]
    folders = snapshot_folders(ran.path)
    if not folders:
        raise StageError("the run has no snapshots; set 'snapshots' of its stage to the number of points wanted")
    folders.setdefault(_final_step(ran), ran.model)
    folders = dict(sorted(folders.items()))
    thresholds = sorted({float(t) for t in config["thresholds"]})
    kind = one_type({"start": model_type(start.model), "run": model_type(ran.model)})
    labels = [f"step {step}" for step in folders]
    done, kernel = measure(start.model, list(folders.values()), labels, kind, thresholds, progress)
    rows = _rows(list(folders), done)
    pq.write_table(pa.Table.from_pylist(rows), out / "trajectory.parquet")
    return Result(metrics=_metrics(list(folders), done, kernel, thresholds))
