"""``prism trajectory``: how a run moves away from its start, checkpoint by checkpoint, and how two runs differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.analyse.trajectory import difference, metrics
from prismlab.arith import trace
from prismlab.arith.parts import one_type
from prismlab.arith.sums import threshold_key
from prismlab.arith.trace import ACTIVE, Trace
from prismlab.errors import CheckpointError, SpecError, shown
from prismlab.model.folder import CONFIG
from prismlab.model.tensors import model_type
from prismlab.run.step import Json, Progress
from prismlab.tools import show
from prismlab.tools.show import NONE, Table, digits, percent

if TYPE_CHECKING:
    import pyarrow as pa

    from prismlab.report.figures import Line
    from prismlab.report.sections import Drawing

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Relative changes by default: those of the reference study (table 22)."""
_STEP = re.compile(r"(?:checkpoint|ckpt|global_step|step|iter)[-_]?(\d{1,12})(?!\d)", re.IGNORECASE)
_FOLDER = re.compile(r"(?:checkpoint|ckpt|global_step|step|iter)[-_]?(\d{1,12})", re.IGNORECASE)
_TINTS = ("#3b7dd8", "#b5703a")


@dataclass(frozen=True, kw_only=True)
class Series:
    """A start and the checkpoints made from it."""

    name: str
    start: Path
    snapshots: Mapping[int, Path]
    """Folder by step, in rising order."""
    numbered: bool = True
    """Whether the names told the steps; else they are counted from 1."""


def run_folders(run: Path) -> dict[int, Path]:
    """The checkpoints in a run's folder by step: ``step-000020``, ``checkpoint-500``, ``global_step40`` and the like.

    Raises:
        CheckpointError: there are none, or two of one step.
    """
    place = run / "snapshots" if (run / "snapshots").is_dir() else run
    if not place.is_dir():
        raise CheckpointError(f"{shown(run, 300)}: no such folder; --run takes one with folders like checkpoint-500")
    found: dict[int, Path] = {}
    for folder in sorted(place.iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match is None or not any(folder.glob("*.safetensors")):
            continue
        step = int(match[1])
        if step in found:
            both = f"{shown(found[step].name)} and {shown(folder.name)}"
            raise CheckpointError(f"{shown(place, 300)}: {both} are of one step; move one of them away")
        found[step] = folder
    if not found:
        raise CheckpointError(
            f"{shown(place, 300)}: no folder like step-000020 or checkpoint-500 with *.safetensors in it; name the "
            "checkpoints one by one after the start instead"
        )
    return dict(sorted(found.items()))


def step_of(text: str) -> int | None:
    """The step that a folder's name or a model id's revision tells; None if it tells none."""
    found = _STEP.findall(text.rstrip("/").rpartition("/")[2])
    return int(found[-1]) if found else None


def read_series(start: str, snapshots: Sequence[str], run: Path | None, name: str) -> Series:
    """The checkpoints that the command line names.

    Raises:
        SpecError: neither or both of ``snapshots`` and ``run`` are given, or the order of steps is not theirs.
        CheckpointError: a checkpoint cannot be had.
    """
    from prismlab.model.hub import resolve

    if bool(snapshots) == (run is not None):
        raise SpecError("trajectory: name checkpoints after the start, or the folder of a run with --run; one of them")
    origin = resolve(start)
    if run is not None:
        return Series(name=name, start=origin, snapshots=run_folders(run))
    steps = [step_of(text) for text in snapshots]
    told = [step for step in steps if step is not None]
    numbered = len(told) == len(snapshots)
    if numbered and any(a >= b for a, b in pairwise(told)):
        raise SpecError(f"trajectory: steps {', '.join(map(str, told))}; name checkpoints in rising order, each once")
    numbers = told if numbered else list(range(1, len(snapshots) + 1))
    folders = dict(zip(numbers, map(resolve, snapshots), strict=True))
    return Series(name=name, start=origin, snapshots=folders, numbered=numbered)


def trajectory(
    start: str,
    snapshots: Sequence[str] = (),
    *,
    run: Path | None = None,
    against: tuple[str, Path] | None = None,
    thresholds: Sequence[float] = (),
    device: str = "cpu",
    out: Path | None = None,
    as_json: bool = False,
) -> dict[str, Json]:
    """Measure a series of checkpoints against its start, show what was found and write it below ``out``.

    Args:
        start: a folder or model id (``@revision`` allowed).
        snapshots: checkpoints made from it in the order of the run; the steps are read from names such as
            ``checkpoint-500`` and counted from 1 where a name tells none.
        run: instead of ``snapshots``, a folder that holds such checkpoints.
        against: start and run folder of a second series, for the difference of the two.
        thresholds: relative changes, to which 1% is added; none for those of the reference study.
        device: ``cpu``, or a device of torch.
        out: folder for ``trajectory.json``, ``trajectory.html`` and ``trajectory.parquet`` (a row a step and part).
        as_json: the record on standard output instead of the tables.

    Returns:
        The record: ``series``, a list of ``{name, start, checkpoints, numbered}`` with the metrics of the stage
        ``trajectory``, and ``difference`` (null without a second series) with the names of ``first`` and ``second``,
        see ``analyse.trajectory.difference``.

    Raises:
        SpecError: options contradict one another, or a threshold is not between 0 and 1.
        CheckpointError: a checkpoint cannot be had, is damaged, or does not correspond to its start.
    """
    levels = tuple(sorted({ACTIVE, *(thresholds or THRESHOLDS)}))
    for level in levels:
        if not 0 < level < 1:
            raise SpecError(f"--threshold {level:g}: a relative change above 0 and below 1, for example 0.01")
    show.check_out(out)
    ends = [run or Path("run"), *([] if against is None else [Path(against[1])])]
    names = show.labels(ends)
    series = [read_series(start, snapshots, run, names[0])]
    if against is not None:
        series.append(read_series(against[0], (), Path(against[1]), names[1]))
    with show.progress("trajectory") as bar:
        traces = [_measured(one, levels, device, bar) for one in series]
    record = _record(series, traces)
    show.emit(
        "trajectory",
        record,
        [table for one in record["series"] for table in _tables(one)] + _difference_tables(record["difference"]),
        title="Trajectory of " + " and ".join(names),
        notes=_notes(record),
        figures=lambda: _drawings(record),
        parquet=lambda: {"trajectory": _parquet(series, traces)},
        out=out,
        as_json=as_json,
    )
    return record


def _measured(series: Series, levels: Sequence[float], device: str, bar: Progress) -> Trace:
    # A snapshot needs no config; one that has a config must not be of another architecture.
    kinds = {f"step {step}": folder for step, folder in series.snapshots.items() if (folder / CONFIG).exists()}
    one_type({"start": model_type(series.start), **{name: model_type(folder) for name, folder in kinds.items()}})
    return trace.measure(series.start, series.snapshots, levels, progress=bar, device=device)


def _record(series: Sequence[Series], traces: Sequence[Trace]) -> dict[str, Any]:
    found = [metrics(one) for one in traces]
    listed = [
        {
            "name": one.name,
            "start": str(one.start),
            "checkpoints": [str(folder) for folder in one.snapshots.values()],
            "numbered": one.numbered,
            **measured,
        }
        for one, measured in zip(series, found, strict=True)
    ]
    both = None
    if len(series) == 2:
        both = {"first": series[0].name, "second": series[1].name, **difference(found[0], found[1])}
    return {"tool": "trajectory", "series": listed, "difference": both}


def _tables(one: Mapping[str, Any]) -> list[Table]:
    keys = list(one["changed"])
    head = ["step", "L2", *(f">{100 * float(key):g}%" for key in keys), "equal", "1 ULP", "overlap", "overlap exact"]
    rows = [
        [
            str(step),
            digits(one["l2"][k]),
            *(percent(one["changed"][key][k]) for key in keys),
            percent(one["equal"][k]),
            percent(one["ulp"]["1"][k]),
            digits(one["overlap"][k]),
            digits(one["overlap_exact"][k]),
        ]
        for k, step in enumerate(one["steps"])
    ]
    note = (
        "Against the start: distance over its norm; percent of elements changed by more than each relative threshold, "
        "exactly equal, and one step of the format away; overlap (Jaccard) of the elements beyond 1%, and of all that "
        "moved, with those of the checkpoint before."
    )
    key = threshold_key(ACTIVE)
    parts = {"whole model": one, **one["components"]}
    ends = [
        [name, digits(m["l2"][-1]), percent(m["changed"][key][-1]), *(digits(m[f]) for f in ("step50", "step80"))]
        for name, m in parts.items()
    ]
    columns = ["component", "L2 at the end", "changed >1%", "steps to 50%", "steps to 80%"]
    return [
        Table(head=head, rows=rows, title=f"{one['name']}, from {shown(one['start'])}.", note=note),
        Table(
            head=columns, rows=ends, strong=(0,), note="Steps at which half and 80% of the last distance are reached."
        ),
    ]


def _difference_tables(found: Mapping[str, Any] | None) -> list[Table]:
    if found is None or not found["steps"]:
        return []
    key = threshold_key(ACTIVE)
    rows = [
        [
            str(step),
            _signed(found["l2"][k]),
            _signed(found["relative"][k]),
            _signed(_points(found["changed"][key][k])),
            *(_signed(_points(one["changed"][key][k])) for one in found["components"].values()),
        ]
        for k, step in enumerate(found["steps"])
    ]
    head = [
        "step",
        "L2",
        "share of last L2",
        "changed >1%, points",
        *(f"{name}, points" for name in found["components"]),
    ]
    title = f"{found['first']} minus {found['second']}."
    note = "At the steps that both have; shares changed by more than 1% in points."
    return [Table(head=head, rows=rows, title=title, note=note)]


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _signed(value: float | None) -> str:
    return NONE if value is None else digits(value) if value <= 0 else f"+{digits(value)}"


def _notes(record: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []
    for one in record["series"]:
        if not one["numbered"]:
            notes.append(f"{one['name']}: not every name tells its step, so they are counted from 1")
        if "reason" in one:
            notes.append(f"{one['name']}: {one['reason']}")
        notes += [f"{one['name']}: {line['name']}: {line['reason']}" for line in one["skipped"][:5]]
        if len(one["skipped"]) > 5:
            notes.append(f"{one['name']}: {len(one['skipped']) - 5} more tensors were not compared in full: see --json")
        if one["nonfinite"]:
            notes.append(f"{one['name']}: {one['nonfinite']:,} elements are NaN or infinite and were left out")
    if record["difference"] is not None and not record["difference"]["steps"]:
        notes.append("the two series have no step in common, so there is no difference to show")
    return notes


def _parquet(series: Sequence[Series], traces: Sequence[Trace]) -> pa.Table:
    import pyarrow as pa

    tables: list[pa.Table] = []
    for one, found in zip(series, traces, strict=True):
        rows = trace.table(found).replace_schema_metadata(None)
        tables.append(rows.add_column(0, "series", pa.array([one.name] * rows.num_rows, pa.string())))
    return pa.concat_tables(tables)


def _points_of(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(float(step), value) for step, value in zip(steps, values, strict=True) if value is not None]


def _values(curves: Mapping[str, Any], field: str) -> list[float | None]:
    """One curve; the shares changed by more than 1% in percent."""
    if field != "changed":
        return curves[field]
    return [_points(share) for share in curves["changed"][threshold_key(ACTIVE)]]


def _lines(record: Mapping[str, Any], field: str) -> list[Line]:
    from prismlab.report.figures import Line

    return [
        Line(name=one["name"], colour=tint, seeds={0: _points_of(one["steps"], _values(one, field))}, markers=True)
        for one, tint in zip(record["series"], _TINTS, strict=False)
    ]


def _components(record: Mapping[str, Any], field: str) -> list[Line]:
    from prismlab.report.figures import COMPONENT_COLOURS, Line

    out: list[Line] = []
    for one, dash in zip(record["series"], ("solid", "dot"), strict=False):
        for name, found in one["components"].items():
            points = _points_of(one["steps"], _values(found, field))
            label = name if len(record["series"]) == 1 else f"{name}, {one['name']}"
            tint = COMPONENT_COLOURS[name]
            out.append(Line(name=label, colour=tint, seeds={0: points}, dash=dash, markers=True))
    return out


def _drawings(record: Mapping[str, Any]) -> list[Drawing]:
    from prismlab.report.figures import Panel, draw
    from prismlab.report.sections import Drawing

    whole = [
        Panel(title="distance ‖now − start‖ / ‖start‖", x="step", y="L2", lines=_lines(record, "l2")),
        Panel(title="elements changed by more than 1%", x="step", y="percent", lines=_lines(record, "changed")),
        Panel(title="overlap with the checkpoint before", x="step", y="share", lines=_lines(record, "overlap")),
    ]
    parts = [
        Panel(title="distance by component", x="step", y="L2", lines=_components(record, "l2")),
        Panel(title="changed by more than 1%", x="step", y="percent", lines=_components(record, "changed")),
    ]
    drawings = [
        Drawing("trajectory", draw(whole, height=290), "Checkpoints against their start.", "Trajectory"),
        Drawing("components", draw(parts, columns=2, height=290), "The same by component.", "By component"),
    ]
    return drawings + _difference_drawings(record["difference"])


def _difference_drawings(found: Mapping[str, Any] | None) -> list[Drawing]:
    from prismlab.report.figures import Line, Panel, draw
    from prismlab.report.sections import Drawing

    if found is None or not found["steps"]:
        return []
    panels: list[Panel] = []
    for title, unit, field in (
        ("changed by more than 1%: difference", "points", "changed"),
        ("share of the last distance: difference", "share", "relative"),
    ):
        points = _points_of(found["steps"], _values(found, field))
        name = f"{found['first']} minus {found['second']}"
        line = Line(name=name, colour=_TINTS[0], seeds={0: points}, markers=True)
        panels.append(Panel(title=title, x="step", y=unit, lines=[line]))
    how = "At the steps that both have; 0 is a path that does not depend on its start."
    return [Drawing("difference", draw(panels, columns=2, height=290), how, "Difference")]
