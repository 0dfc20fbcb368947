"""``prism merge``: a weighted sum of checkpoints on disk, written as a checkpoint."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prismlab import __version__
from prismlab.errors import SpecError, shown
from prismlab.merge.linear import merge_linear
from prismlab.merge.parents import Parent
from prismlab.model.hub import resolve
from prismlab.run.step import Json
from prismlab.tools import show


def parse_source(text: str) -> tuple[str, float]:
    """``folder=0.15`` or ``owner/name@revision=0.15`` taken apart at the last ``=``: a folder's name may hold others.

    Raises:
        SpecError: no weight follows, or nothing stands before it.
    """
    name, _, weight = text.rpartition("=")
    try:
        value = float(weight)
    except ValueError:
        value = None
    if not name or value is None:
        raise SpecError(
            f"'{shown(text, 300)}': a checkpoint and its weight are wanted, as in base=0.15 or owner/name@main=0.85"
        )
    return name, value


def merge(
    sources: Sequence[str],
    *,
    out: Path,
    dtype: str = "keep",
    max_shard_size: str = "5GB",
    unnormalised: bool = False,
    tokenizer_from: str | None = None,
    threads: int = 2,
    as_json: bool = False,
) -> dict[str, Json]:
    """Merge checkpoints into ``out`` and show what was written; options as in `prismlab.merge.linear.merge_linear`.

    Args:
        sources: ``checkpoint=weight`` each; a checkpoint is a folder or a model id.
        out: a folder that is not there, or empty.
        dtype: of the merged weights, or ``keep``.
        max_shard_size: of a file.
        unnormalised: accept weights that do not sum to 1.
        tokenizer_from: the checkpoint, as named in ``sources``, whose tokenizer is taken.
        threads: that read, add and write.
        as_json: the record on standard output instead of the table.

    Returns:
        The record that stands in ``merge.json``.

    Raises:
        CheckpointError: a checkpoint cannot be had, is damaged, or does not fit the others; ``out`` is taken.
        MissingExtra: a model id without the package ``huggingface_hub``.
        SpecError: a source, a weight or an option is wrong.
    """
    parsed = [parse_source(text) for text in sources]
    parents = [Parent(shown(name, 300), resolve(name), weight) for name, weight in parsed]
    about: dict[str, Json] = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"prismlab": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    with show.progress("merge") as progress:
        record = merge_linear(
            parents,
            out,
            dtype,
            max_shard_size=max_shard_size,
            allow_unnormalised=unnormalised,
            tokenizer_from=tokenizer_from,
            about=about,
            threads=threads,
            progress=progress,
        )
    show.emit("merge", record, [_table(record, out)], title="merge", notes=[_made(record)], as_json=as_json)
    return record


def _table(record: Mapping[str, Json], out: Path) -> show.Table:
    """What was merged, a row a checkpoint."""
    rows = [
        [
            source["name"],
            f"{source['weight']:g}",
            f"{sum(file['bytes'] for file in source['files']):,}",
            source["revision"] or show.NONE,
        ]
        for source in record["sources"]
    ]
    title = f"{show.count(record['elements'])} elements, {record['bytes']:,} bytes written to {out}"
    return show.Table(head=["checkpoint", "weight", "bytes", "revision"], rows=rows, title=title)


def _made(record: Mapping[str, Json]) -> str:
    """Which files were written, and whose config and tokenizer are beside them."""
    files = record["files"]
    some = files[0] if len(files) == 1 else f"{files[0]} to {files[-1]} and their index"
    taken = record["tokenizer"] or "no checkpoint"
    return f"weights: {some}; config from {record['config']}, tokenizer from {taken}; what it is made of: merge.json"
