"""A run's snapshots measured against its start: all at once, or one by one while the run saves them.

Both ways add up the same sums in the same order, so that a run which keeps no snapshots gives the very numbers of one
which keeps them. The active set of a snapshot is the set of elements that changed: by more than 1% (the reference
study's measure), or at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.arith import kernels
from prismlab.arith.fold import fold
from prismlab.arith.kernels import Stored
from prismlab.arith.parts import Skipped, component_order, lay_out
from prismlab.arith.sums import ULP_CLASSES, Overlap, Sums, rising, threshold_key
from prismlab.errors import CheckpointError
from prismlab.run.step import Progress, Silent

ACTIVE = 0.01
"""Relative change beyond which an element is in the active set."""
FILE = "trajectory.parquet"
"""Where a run's measurements lie in its artifact."""
TOTAL = "total"
_HEADER = b"prismlab.trace"
_COUNTS = ("elements", "nonfinite", "equal", "zeros_old", "zeros_changed", "sign_flips", "ulp_elements")
_REALS = ("difference2", "old2")
_OVERLAPS = ("both", "either", "both_moved", "either_moved")


@dataclass
class Measured:
    """One snapshot, or a part of it."""

    sums: Sums
    active: Overlap | None = None
    """Of the elements beyond 1% here and in the snapshot before; None for the first snapshot."""
    moved: Overlap | None = None
    """The same of the elements that changed at all."""

    def add(self, other: Measured) -> None:
        """Take in another part of the same snapshot."""
        self.sums.add(other.sums)
        for mine, its in ((self.active, other.active), (self.moved, other.moved)):
            if mine is not None and its is not None:
                mine.add(its)

    def copy(self) -> Measured:
        """One to which others can be added, this left as it is."""
        out = Measured(
            Sums(self.sums.thresholds), *(None if one is None else Overlap() for one in (self.active, self.moved))
        )
        out.add(self)
        return out


@dataclass
class Column:
    """One part of every snapshot."""

    measured: list[Measured]

    def add(self, other: Column) -> None:
        """Take in another part of every snapshot."""
        for mine, its in zip(self.measured, other.measured, strict=True):
            mine.add(its)


@dataclass
class Trace:
    """What is known of a run's snapshots."""

    thresholds: tuple[float, ...]
    points: dict[int, dict[str, Measured]] = field(default_factory=dict[int, dict[str, Measured]])
    """Step to component to what was measured, in rising order of steps."""
    skipped: Skipped = field(default_factory=Skipped)
    """What was not compared, as ``parts.match`` has it."""
    kernel: str = "numpy"

    @property
    def steps(self) -> list[int]:
        """Steps of the snapshots."""
        return list(self.points)

    @property
    def components(self) -> list[str]:
        """Components that the snapshots have, in the order of tables."""
        return component_order(list(dict.fromkeys(name for point in self.points.values() for name in point)))

    def series(self, component: str) -> list[Measured]:
        """One component, or ``TOTAL``, over the snapshots."""
        if component != TOTAL:
            return [point[component] for point in self.points.values()]
        return [_total(point) for point in self.points.values()]

    def extend(self, later: Trace) -> None:
        """Take in later snapshots."""
        self.points |= later.points
        self.skipped += [line for line in later.skipped if line not in self.skipped]
        self.kernel = later.kernel


def _total(point: Mapping[str, Measured]) -> Measured:
    # In one order, so that the last bit does not depend on which component came first.
    first, *rest = (point[name] for name in component_order(list(point)))
    out = first.copy()
    for one in rest:
        out.add(one)
    return out


@dataclass(frozen=True)
class _Visit:
    """Measures one chunk of the start, the snapshot before the first (unless there is none) and the snapshots."""

    thresholds: tuple[float, ...]
    kernel: str
    first: bool
    """Whether there is no snapshot before the first."""

    def __call__(self, start: Stored, *others: Stored) -> Column:
        before, snapshots = (None, others) if self.first else (others[0], others[1:])
        out: list[Measured] = []
        for now in snapshots:
            sums = kernels.divergence(start, now, self.thresholds, self.kernel)
            sets = () if before is None else kernels.overlap(start, before, now, ACTIVE, self.kernel)
            out.append(Measured(sums, *sets))
            before = now
        return Column(out)


def measure(
    start: Path,
    snapshots: Mapping[int, Path],
    thresholds: Sequence[float],
    before: Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Trace:
    """One pass over the start and all snapshots.

    Args:
        start: a checkpoint in the Hugging Face layout.
        snapshots: folders with safetensors by step, in rising order; they need no config.
        thresholds: relative changes, above 0.
        before: the snapshot before the first of these; None if there is none.
        progress: told of every tensor.
        device: where to compute, see ``kernels.choose``.

    Raises:
        CheckpointError: weights are damaged or do not correspond, or there is no snapshot.
        SpecError: a threshold is not sound.
    """
    if not snapshots:
        raise CheckpointError(f"{start}: no snapshot was given to compare it with")
    bar, levels = progress or Silent(), rising(thresholds)
    earlier = {} if before is None else {"the snapshot before": before}
    found = lay_out({"start": start, **earlier, **{f"step {n}": folder for n, folder in snapshots.items()}}, start)
    # By the size of one snapshot: which kernel runs must not depend on how many are measured at once.
    kernel = kernels.choose(found.elements, device)
    trace = Trace(levels, {step: {} for step in snapshots}, _skipped(start, snapshots), kernel)
    bar.start(len(found.parts), "tensors")
    visit = _Visit(levels, kernel, before is None)
    for part, column in fold(found.parts, visit, bar, size=kernels.chunk_size(kernel)):
        for point, measured in zip(trace.points.values(), column.measured, strict=True):
            if part.component in point:
                point[part.component].add(measured)
            else:
                point[part.component] = measured
    return trace


def _skipped(start: Path, snapshots: Mapping[int, Path]) -> Skipped:
    """What is not compared, snapshot by snapshot, so that the words do not depend on how many are measured at once."""
    found: Skipped = []
    for folder in snapshots.values():
        found += [line for line in lay_out({"start": start, "the run": folder}, start).skipped if line not in found]
    return found


class Recorder:
    """Measures snapshots as they are saved and keeps none but the last.

    Args:
        start: the checkpoint that the run starts from.
        thresholds: relative changes, above 0.
    """

    def __init__(self, start: Path, thresholds: Sequence[float]) -> None:
        self._start = start
        self.trace = Trace(rising(thresholds))
        self._before: Path | None = None

    @property
    def before(self) -> Path | None:
        """The snapshot that was measured last."""
        return self._before

    def go_on(self, trace: Trace, before: Path) -> None:
        """Take up what was measured before, the last snapshot of it being in ``before``."""
        self.trace, self._before = trace, before

    def take(self, step: int, folder: Path) -> None:
        """Measure the snapshot in ``folder``, saved after ``step``, and delete the one before it."""
        before = self._before
        self.trace.extend(measure(self._start, {step: folder}, self.trace.thresholds, before))
        if before is not None:
            shutil.rmtree(before)
        self._before = folder

    def close(self) -> Trace:
        """Delete the last snapshot, and the folder around it if it holds nothing else; returns what was measured."""
        if self._before is not None:
            shutil.rmtree(self._before)
            if not any(self._before.parent.iterdir()):
                self._before.parent.rmdir()
            self._before = None
        return self.trace


def _schema(trace: Trace) -> pa.Schema:
    whole, real = pa.int64(), pa.float64()
    kinds: dict[str, pa.DataType] = {"step": whole, "component": pa.string(), "l2": real}
    kinds |= dict.fromkeys(_REALS, real) | dict.fromkeys(_COUNTS, whole)
    kinds |= {f"changed_{threshold_key(t)}": whole for t in trace.thresholds}
    kinds |= {f"ulp_{name}": whole for name in ULP_CLASSES} | dict.fromkeys(_OVERLAPS, whole)
    header = {"thresholds": list(trace.thresholds), "skipped": trace.skipped, "kernel": trace.kernel}
    return pa.schema(list(kinds.items()), {_HEADER: json.dumps(header).encode()})


def _row(step: int, component: str, one: Measured) -> dict[str, Any]:
    sums = one.sums
    row: dict[str, Any] = {"step": step, "component": component, "l2": sums.l2}
    row |= {name: getattr(sums, name) for name in (*_COUNTS, *_REALS)}
    row |= {f"changed_{threshold_key(t)}": n for t, n in zip(sums.thresholds, sums.changed, strict=True)}
    row |= {f"ulp_{name}": n for name, n in zip(ULP_CLASSES, sums.ulp, strict=True)}
    sets = [None] * 4 if one.active is None or one.moved is None else [*_sizes(one.active), *_sizes(one.moved)]
    return row | dict(zip(_OVERLAPS, sets, strict=True))


def _sizes(one: Overlap) -> tuple[int, int]:
    return one.both, one.either


def rows(trace: Trace) -> list[dict[str, Any]]:
    """A row a step of the whole (``total``) and of each component: counts and sums, and ``l2``, which follows."""
    names = [TOTAL, *trace.components]
    return [_row(step, name, one) for name in names for step, one in zip(trace.steps, trace.series(name), strict=True)]


def table(trace: Trace) -> pa.Table:
    """``rows`` as a table."""
    return pa.Table.from_pylist(rows(trace), schema=_schema(trace))


def write(trace: Trace, file: Path) -> None:
    """Write ``table``, from which ``read`` makes the same trace again."""
    pq.write_table(table(trace), file)


def _measured(row: Mapping[str, Any], thresholds: tuple[float, ...]) -> Measured:
    changed = [row[f"changed_{threshold_key(t)}"] for t in thresholds]
    sums = Sums(thresholds, changed=changed, ulp=[row[f"ulp_{name}"] for name in ULP_CLASSES])
    for name in (*_COUNTS, *_REALS):
        setattr(sums, name, row[name])
    a, b, c, d = (row[name] for name in _OVERLAPS)
    return Measured(sums) if a is None else Measured(sums, Overlap(a, b), Overlap(c, d))


def read(file: Path) -> Trace:
    """What ``write`` wrote, to the last bit.

    Raises:
        CheckpointError: the file is not one of ``write``'s.
    """
    try:
        table = pq.read_table(file)
        header = json.loads((table.schema.metadata or {})[_HEADER])
        trace = Trace(tuple(header["thresholds"]), skipped=header["skipped"], kernel=header["kernel"])
        for row in table.to_pylist():
            if row["component"] != TOTAL:
                trace.points.setdefault(row["step"], {})[row["component"]] = _measured(row, trace.thresholds)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: no measurements of snapshots can be read from it: {error}") from error
    trace.points = dict(sorted(trace.points.items()))
    return trace
