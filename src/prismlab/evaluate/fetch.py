"""Benchmark sets from the hub to local files, on a machine with network: rows as they are, with what they are.

``manifest.json`` beside the files records id, configuration, split, revision as asked and the commit that it was then,
rows and a hash of each file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from prismlab.errors import DataError, MissingExtra, in_a_line
from prismlab.evaluate.suite_base import Benchmark, Hub, Suite
from prismlab.run.step import Progress

MANIFEST = "manifest.json"


class Rows(Protocol):
    """A data set that can be written, as the package ``datasets`` has it."""

    def to_parquet(self, path_or_buf: str) -> Any: ...
    def __len__(self) -> int: ...


Loader = Callable[[Hub], Rows]


def hub_loader(hub: Hub) -> Rows:
    """A split of a data set on the hub.

    Raises:
        MissingExtra: the package ``datasets`` is not installed.
        DataError: it cannot be had.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtra("datasets", "hub", f"the data set {hub.id}") from error
    try:
        if hub.files:
            places = [f"hf://datasets/{hub.id}@{hub.revision}/{name}" for name in hub.files]
            return datasets.load_dataset("json", data_files=places, split="train")
        found: Any = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"data set {hub.id!r} ({hub.config or 'no configuration'}, split {hub.split}, revision {hub.revision}) "
            f"cannot be had: {in_a_line(error, 200)}; check network and login (gated sets need one)"
        ) from error
    return found


def commit_of(hub: Hub) -> str | None:
    """The commit that a revision is now; None where the hub does not tell."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(hub.id, revision=hub.revision).sha
    except Exception:  # the commit is a note: without it the hash of the rows still says what was fetched
        return None


def file_hash(path: Path) -> str:
    """BLAKE2b (16 bytes, hexadecimal) of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def told_of(hub: Hub) -> dict[str, Any]:
    """A data set as the manifest has it; files only where it is read by them."""
    told = asdict(hub)
    files = list(told.pop("files"))
    return {**told, "files": files} if files else told


def keep(rows: Rows, path: Path) -> dict[str, Any]:
    """Write rows to a Parquet file, whole or not at all; what the manifest says of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    rows.to_parquet(str(draft))
    draft.replace(path)
    return {"file": path.name, "rows": len(rows), "blake2b": file_hash(path)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was fetched to a folder; empty where nothing was.

    Raises:
        DataError: the manifest cannot be read.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {in_a_line(error, 120)}; fetch the suite again") from error
    if not isinstance(found, dict):
        raise DataError(f"{file}: no object; fetch the suite again")
    return found


def write_manifest(folder: Path, told: Mapping[str, Any]) -> None:
    """Write what is in a folder, the new beside the old."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**read_manifest(folder), **told}
    draft = folder / f"{MANIFEST}.tmp"
    draft.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(folder / MANIFEST)


def fetch(
    suite: Suite,
    benchmarks: Iterable[Benchmark],
    folder: Path,
    progress: Progress,
    load: Loader = hub_loader,
    commit: Callable[[Hub], str | None] = commit_of,
) -> dict[str, Any]:
    """Fetch the sets of benchmarks to ``folder/<suite>``; sets that lie there whole are not fetched again.

    Args:
        suite: names the folder.
        benchmarks: of this suite, with a place on the hub.
        folder: made if it is not there.
        progress: advanced by one a set.
        load: gives the rows of a set.
        commit: tells the commit of a set.

    Returns:
        ``{name: {file, rows, blake2b, hub, commit}}`` of the sets, worked examples under ``<name>-examples``.

    Raises:
        DataError, MissingExtra: as ``load``.
    """
    place, told = folder / suite.name, dict[str, Any]()
    known = read_manifest(place)
    wanted = [(one.files[0], one.hub) for one in benchmarks if one.hub is not None]
    wanted += [(one.example_files[0], one.examples) for one in benchmarks if one.examples is not None]
    progress.start(len(wanted), "sets")
    for name, hub in wanted:
        path, old = place / f"{name}.parquet", known.get(name, {})
        where = told_of(hub)
        same = path.is_file() and old.get("hub") == where and old.get("blake2b") == file_hash(path)
        told[name] = old if same else {**keep(load(hub), path), "hub": where, "commit": commit(hub)}
        write_manifest(place, told)
        progress.advance()
    return told
