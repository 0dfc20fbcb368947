"""Stage ``clean``: one source through recipe, filters, deduplication and decontamination into documents on disk.

What is lost has a reason and is counted: rows read = broken + dropped + empty + kept. ``documents/`` holds what is
kept, ``dropped.parquet`` examples of what was not, ``quarantine.jsonl`` every broken row with file and line,
``hits.parquet`` what was found of evaluation items.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismlab.errors import DataError, MissingExtra
from prismlab.run.step import Artifact, Progress, Result, Silent

ALWAYS_BAD = 10
"""So many broken rows are set aside whatever their share."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Clean a source; see docs/architecture.md for config and outputs.

    Raises:
        DataError: a file is missing or broken, too many rows are broken, or no document is left.
        MissingExtra: the package ``datatrove`` is not installed.
    """
    work = Path(config["scratch"]) if config.get("scratch") else out / "work"
    metrics = clean_source(config, work, progress)
    if bad := sum(metrics["bad"].values()):
        progress.note(f"{bad:,} of {metrics['rows']:,} rows are broken and set aside, listed in quarantine.jsonl")
    for name in ("documents", "dropped.parquet", "quarantine.jsonl", "hits.parquet"):
        _place(work / name, out / name)
    if not config.get("scratch"):
        shutil.rmtree(work)
    return Result(metrics=metrics)


def _place(source: Path, target: Path) -> None:
    """A file or folder beside itself: by link where one disk holds both, so that a stopped stage can do it again."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(source.glob("*.parquet")):
            _place(file, target / file.name)
    elif source.is_file():
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def clean_source(
    config: Mapping[str, Any],
    folder: Path,
    progress: Progress | None = None,
    workers: int = 1,
    executor: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Clean a source into a folder; called again on a folder where work was stopped, it goes on.

    Args:
        config: of a step of kind ``clean``, with ``files``.
        folder: for everything that is made.
        progress: told of each phase.
        workers: processes at a time on this machine. The documents do not depend on it.
        executor: options of ``data.executors.submit`` for a cluster; None for this machine.

    Returns:
        The step's metrics; of a cluster's work that is not done yet ``{"submitted": [phases]}``: call again then.

    Raises:
        DataError: as ``run``.
        MissingExtra: the package ``datatrove`` is not installed.
    """
    try:
        import datatrove  # noqa: F401
        import loguru  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "datatrove", "data", "cleaning a source") from error
    from prismlab.data import executors
    from prismlab.data.cleaning import Work

    work = Work(config, folder)
    work.begin()
    for phases in (work.reading, work.rest):
        asked = phases()
        if executors.done(asked, folder):
            continue
        if executor is not None and executor.get("kind") != "local":
            submitted = executors.submit(asked, folder, executor)
            if not executors.done(asked, folder):
                return {"submitted": submitted}
        else:
            executors.run_here(asked, folder, progress or Silent(), workers)
    return _checked(config, json.loads((folder / "metrics.json").read_text(encoding="utf-8")), folder)


def forget() -> None:
    """Give up what a process keeps between sources of one study: the index of their evaluation items."""
    from prismlab.data import contamination

    contamination.forget()


def _checked(config: Mapping[str, Any], metrics: dict[str, Any], folder: Path) -> dict[str, Any]:
    name, spec = config["source"], config["sources"][config["source"]]
    bad, rows = sum(metrics["bad"].values()), metrics["rows"]
    share = float(spec.get("max_bad", 0.01))
    if bad > max(ALWAYS_BAD, share * rows):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in Counter(metrics["bad"]).most_common(3))
        with (folder / "quarantine.jsonl").open(encoding="utf-8") as bad_rows:
            where = json.loads(bad_rows.readline())
        raise DataError(
            f"source {name!r}: {bad} of {rows} rows are broken ({reasons}), the first at {where['file']}:"
            f"{where['line']}: {where['detail']}; mend them, or raise 'max_bad' above {share:g}"
        )
    if not metrics["documents"]:
        lost = {**metrics["bad"], **metrics["dropped"]}
        why = ", ".join(f"{reason}: {count}" for reason, count in Counter(lost).most_common(3)) or "it is empty"
        raise DataError(f"source {name!r}: no document is left ({why})")
    return metrics
