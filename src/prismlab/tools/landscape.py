"""``prism landscape``: scores on the plane of three checkpoints, or on the line between two, for any task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prismlab.errors import SpecError, shown
from prismlab.run.step import Progress
from prismlab.tools import show

if TYPE_CHECKING:
    from prismlab.analyse.landscape import Rows, Walker
    from prismlab.evaluate.draw import Draw
    from prismlab.report.landscape import Walk
    from prismlab.report.sections import Drawing
    from prismlab.stats import Interval

DTYPES = ("float32", "bfloat16", "float16")
CUT = 5.0
"""Percent of responses cut at their longest from which on the record says so in words."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the numbers, besides checkpoints and items."""

    points: int = 5
    grid: int | None = None
    samples: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_new_tokens: int = 512
    template: str = "think"
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0

    def check(self, checkpoints: int) -> None:
        """Refuse what cannot be measured.

        Raises:
            SpecError: a value is out of its range, or there are not two or three checkpoints.
        """
        if checkpoints not in (2, 3):
            raise SpecError(f"landscape: {checkpoints} checkpoints; name two (A B) or three (BASE MID RL)")
        if self.grid is not None and checkpoints == 2:
            raise SpecError("--grid needs three checkpoints: two span a line, and no plane")
        ranges: list[tuple[str, float, float, float]] = [
            ("points", self.points, 2, 1000),
            ("grid", self.grid or 2, 2, 100),
            ("samples", self.samples, 1, 1e9),
            ("max-new-tokens", self.max_new_tokens, 1, 1e9),
            ("temperature", self.temperature, 0, 100),
        ]
        for name, value, least, most in ranges:
            if not least <= value <= most:
                raise SpecError(f"--{name} {value:g}: {least:g} to {most:g} are possible")
        if not 0 < self.top_p <= 1:
            raise SpecError(f"--top-p {self.top_p:g}: above 0, at most 1")
        for name, given, known in (("device", self.device, ("auto", "cpu", "cuda")), ("dtype", self.dtype, DTYPES)):
            if given not in known:
                raise SpecError(f"--{name} {shown(given, 40)}: one of {', '.join(known)}")


def _draw(items: Sequence[Any], settings: Settings) -> Draw:
    from prismlab.evaluate.draw import Draw
    from prismlab.model.generate import SamplingSettings
    from prismlab.seeds import derive_seed

    return Draw(
        items=tuple(items),
        n=settings.samples,
        settings=SamplingSettings(
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p
        ),
        seed=derive_seed(settings.seed, "samples"),
        template=settings.template,
    )


def _cache(out: Path | None, folders: Sequence[Path], draw: Draw, settings: Settings, device: str) -> Path | None:
    """Where points' rows lie, by all that they depend on: the checkpoints' content, the items and the sampling.

    Which points there are is left out: a finer path goes on from a coarser one.
    """
    if out is None:
        return None
    from prismlab import __version__
    from prismlab.study.content import FileHashes

    out.mkdir(parents=True, exist_ok=True)
    hashes = FileHashes(out / "hashes.json")
    content = [hashes.checkpoint(folder.resolve()) for folder in folders]
    hashes.save()
    how = {key: value for key, value in asdict(settings).items() if key not in ("points", "grid", "device")}
    whole = [__version__, content, [item.to_json() for item in draw.items], how, device]
    key = hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=8).hexdigest()
    return out / "points" / key


def landscape(
    checkpoints: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    micro: Sequence[str] = (),
    items: int = 200,
    settings: Settings | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Sample tasks along the path between checkpoints (and on a grid), show the scores and write them below ``out``.

    W(a, b) = base + a (mid - base) + b (RL - mid), after arXiv 2603.17074. The weights of one model in memory are moved
    from point to point; nothing of them is written.

    Args:
        checkpoints: base, mid and RL, or the two ends of one leg: folders or model ids (``@revision`` allowed).
        tasks: ``FILE:question=FIELD,answer=FIELD,verifier=number``, see ``tools.tasks``.
        micro: generated tasks: ``math``, ``code``, ``science``.
        items: items a task, at most.
        settings: see ``Settings``.
        out: folder for ``landscape.json``, ``landscape.html``, ``samples.parquet`` and ``points/``, which lets a run
            that was stopped go on.
        as_json: the record on standard output instead of the table.

    Returns:
        The record: the metrics of the stage ``landscape``, and what it was made from.

    Raises:
        SpecError: an option is out of range.
        CheckpointError: a checkpoint cannot be had, or they do not fit one another.
        DataError: a task's file cannot be read.
        StageError: no GPU where one is asked for, a prompt fills the model's positions, or weights are broken.
    """
    from prismlab.model.hub import resolve
    from prismlab.tools.tasks import read_tasks

    settings = settings or Settings()
    settings.check(len(checkpoints))
    show.check_out(out)
    made, found, notes = read_tasks(tasks, micro, items)
    folders = dict(zip(show.labels(checkpoints), map(resolve, checkpoints), strict=True))
    draw = _draw(found, settings)
    with show.progress("landscape") as progress:
        rows, device, known = _measured(list(folders.values()), draw, settings, out, progress)
    record = {
        "tool": "landscape",
        "checkpoints": [{"name": name, "folder": str(folder)} for name, folder in folders.items()],
        "tasks": [task.json() for task in made],
        "items": len(found),
        "settings": {**asdict(settings), "device": device},
        "points_found": known,
        **_metrics(rows, len(folders) - 1, settings),
    }
    _show(record, rows, [*notes, *_notes(record)], out, as_json)
    return record


def _measured(
    folders: Sequence[Path], draw: Draw, settings: Settings, out: Path | None, progress: Progress
) -> tuple[Rows, str, int]:
    """Sample rows of all points, the device, and how many points were found below ``out``."""
    from prismlab.analyse.landscape import Walker, sample_points
    from prismlab.analyse.states import Device, choose_device
    from prismlab.analyse.surface import all_places, place_name

    device = choose_device(cast("Device", settings.device))
    walker: Walker = Walker(folders, settings.dtype, device)
    progress.start(None, "checkpoints read")
    cache = _cache(out, folders, draw, settings, device.type)
    places = all_places(settings.points, walker.legs, settings.grid)
    there = [place for place in places if cache is not None and (cache / f"{place_name(place)}.parquet").is_file()]
    return sample_points(walker, draw, places, cache, progress), device.type, len(there)


def _metrics(rows: Rows, legs: int, settings: Settings) -> dict[str, Any]:
    from prismlab.analyse.surface import summarise
    from prismlab.seeds import derive_seed

    return summarise(rows, settings.points, legs, settings.grid, derive_seed(settings.seed, "landscape"))


def _walk(record: Mapping[str, Any]) -> Walk:
    from prismlab.report.landscape import Walk

    names = [one["name"] for one in record["checkpoints"]]
    return Walk(title=" → ".join(names), names=names, seeds={0: record})


def _show(record: Mapping[str, Any], rows: Rows, notes: Sequence[str], out: Path | None, as_json: bool) -> None:
    def drawings() -> list[Drawing]:
        from prismlab.report import landscape as page

        return page.drawings([_walk(record)], "The band is the average's 95% interval over items.")

    def parquet() -> dict[str, Any]:
        from prismlab.analyse.landscape import surface_table

        return {"samples": surface_table(rows)}

    names = ", ".join(one["name"] for one in record["checkpoints"])
    show.emit(
        "landscape", record, _tables(record), title=f"Landscape: {names}", notes=notes, figures=drawings,
        parquet=parquet, out=out, as_json=as_json,
    )  # fmt: skip


def _cell(interval: Interval) -> str:
    if interval.value is None:
        return show.NONE
    from prismlab.report.text import minus, span

    return f"{minus(f'{interval.value:.1f}')} {span(interval, 1)}".rstrip()


def _tables(record: Mapping[str, Any]) -> list[show.Table]:
    from prismlab.report.landscape import path_rows

    walk = _walk(record)
    rows = [
        [where, _cell(average), _cell(above), *(_cell(domain).partition(" ")[0] for domain in domains)]
        for where, average, above, domains in path_rows(walk)
    ]
    note = (
        f"Percent correct of {record['items']} items with 95% intervals over items; 'above the line': points above the "
        "straight line between the leg's ends."
    )
    tables = [show.Table(head=["point", "correct, %", "above the line", *walk.domains], rows=rows, note=note)]
    grid = record["grid"]
    if grid is not None:
        cells = [
            [f"a = {a:.3g}", *(show.NONE if s["value"] is None else f"{s['value']:.1f}" for s in line)]
            for a, line in zip(grid["a"], grid["average"], strict=True)
        ]
        title = "base + a (mid − base) + b (RL − mid), percent correct"
        # Heads break at spaces, but not at these.
        heads = (f"b\u00a0=\u00a0{b:.3g}" for b in grid["b"])
        tables.append(show.Table(head=["", *heads], rows=cells, title=title))
    return tables


def _notes(record: Mapping[str, Any]) -> list[str]:
    from prismlab.report.records import item_interval
    from prismlab.report.text import minus, span

    names, notes = [one["name"] for one in record["checkpoints"]], list[str]()
    for one in record["barrier"]:
        where = f"{one['t']:.3g} of the way from {names[one['leg'] - 1]} to {names[one['leg']]}"
        interval = item_interval(one)
        bounds = "" if interval is None else span(interval, 1)
        value = minus(f"{one['value']:+.1f}")
        notes.append(f"lowest against the straight line: {value} points {bounds}, {where}")
    cut = [row["average"]["truncation"] for row in record["path"] if row["average"]["truncation"] is not None]
    if cut and max(cut) > CUT:
        longest = record["settings"]["max_new_tokens"]
        notes.append(f"up to {max(cut):.0f}% of a point's responses were cut at {longest} tokens (--max-new-tokens)")
    unscored = sum(row["average"]["unscored"] for row in record["path"])
    if unscored:
        notes.append(f"{unscored} responses on the path got no verdict and count neither way")
    if record["points_found"]:
        notes.append(f"{record['points_found']} of {record['points']} points were found in points/")
    return notes
