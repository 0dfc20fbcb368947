"""``prism diff``: how far checkpoints are from the first, part by part, and whether they went the same way."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.analyse import weights
from prismlab.analyse.weights import Found
from prismlab.arith.fold import default_threads
from prismlab.errors import SpecError, shown
from prismlab.model.hub import resolve, revision
from prismlab.tools import diff_text as text
from prismlab.tools import show

if TYPE_CHECKING:
    import pyarrow as pa

    from prismlab.report.sections import Drawing

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Those of the reference study (table 22)."""
BY = ("component", "subcomponent", "layer", "tensor")


def diff(
    checkpoints: Sequence[str],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    by: str | None = None,
    svd: str | None = None,
    master: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Compare checkpoints with the first, show what was found and write it below ``out``.

    Args:
        checkpoints: two or more folders or model ids (``@revision`` allowed); the first is the old one.
        thresholds: relative changes, above 0.
        by: one of ``BY``; None for sub-components of one checkpoint, and for the whole of each of several.
        svd: a regular expression on tensors' names whose updates' spectra are measured.
        master: float32 weights before they were rounded, of the only new checkpoint.
        device: ``cpu``, or a device of torch.
        threads: of the CPU; None for as many as the process may use, at most 8.
        out: folder for ``diff.json``, ``tensors.parquet`` and ``diff.html``.
        as_json: the record on standard output instead of the tables.

    Returns:
        The record: ``old``, ``new`` ({name: what ``analyse.weights.diff`` returns}), ``direction`` of several (what
        ``analyse.direction.cosines`` returns), ``thresholds``, ``seconds``.

    Raises:
        SpecError: an option is not sound, or fewer than two checkpoints are named.
        CheckpointError: a checkpoint cannot be had, is damaged, or does not fit the first.
    """
    _check(checkpoints, by, master, device)
    show.check_out(out)
    names = show.labels(checkpoints)
    folders = dict(zip(names, map(resolve, checkpoints), strict=True))
    old, *rest = names
    news = {name: folders[name] for name in rest}
    with show.progress("diff") as progress:
        begun = time.perf_counter()
        found = weights.compare(folders[old], news, thresholds, progress, device=device, threads=threads, svd=svd)
        seconds = round(time.perf_counter() - begun, 3)
        direction = _direction(folders[old], news, progress, device)
        if master is not None:
            from prismlab.analyse.rounding import rounding

            found[rest[0]].metrics["rounding"] = rounding(folders[old], news[rest[0]], master, thresholds, progress)
    record = _record(folders, found, direction, {"thresholds": sorted(thresholds), "seconds": seconds}, by)
    notes = text.notes(found, thresholds)
    if svd is None:
        notes.append(text.speed_note(found, seconds, threads or default_threads()))
    show.emit(
        "diff",
        record,
        text.tables(old, found, thresholds, by) + text.direction_tables(direction) + text.spectra_tables(found),
        title=f"{old} → {', '.join(rest)}",
        notes=notes,
        figures=partial(_figures, found, direction),
        parquet=partial(_parquet, found),
        out=out,
        as_json=as_json,
    )
    return record


def _figures(found: Mapping[str, Found], direction: Mapping[str, Any] | None) -> list[Drawing]:
    from prismlab.tools.diff_figures import drawings

    return drawings(found, direction)


def _check(checkpoints: Sequence[str], by: str | None, master: Path | None, device: str) -> None:
    if len(checkpoints) < 2:
        raise SpecError("diff: name two or more checkpoints: the old one, then those compared with it")
    if by is not None and by not in BY:
        raise SpecError(f"--by {shown(by, 40)}: one of {', '.join(BY)}")
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", device) is None:
        raise SpecError(f"--device {shown(device, 40)}: cpu, cuda, or cuda and a number (cuda:1)")
    if master is not None and len(checkpoints) > 2:
        raise SpecError("--master belongs to one new checkpoint: compare the others without it")


def _direction(old: Path, news: Mapping[str, Path], progress: Any, device: str) -> dict[str, Any] | None:
    if len(news) < 2:
        return None
    from prismlab.analyse.direction import cosines

    return cosines(old, news, progress, device=device)


def _record(
    folders: Mapping[str, Path],
    found: Mapping[str, Found],
    direction: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    by: str | None,
) -> dict[str, Any]:
    from prismlab import __version__

    def place(name: str) -> dict[str, Any]:
        return {"name": name, "folder": str(folders[name]), "revision": revision(folders[name])}

    record: dict[str, Any] = {"tool": "diff", "prism": __version__, "old": place(next(iter(folders))), **facts}
    record["new"] = [{**place(name), **one.metrics} for name, one in found.items()]
    if by == "tensor":
        for entry, one in zip(record["new"], found.values(), strict=True):
            entry["tensors"] = text.tensors(one)
    return record if direction is None else {**record, "direction": direction}


def _parquet(found: Mapping[str, Found]) -> dict[str, pa.Table]:
    import pyarrow as pa

    tables = [
        table.add_column(0, "checkpoint", pa.array([name] * len(table)))
        for name, table in ((name, one.table()) for name, one in found.items())
    ]
    return {"tensors": pa.concat_tables(tables)}
