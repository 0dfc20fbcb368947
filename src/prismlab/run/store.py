"""Artifact folders on disk: built aside, hashed, recorded last, renamed in place.

```
ROOT/lock
ROOT/artifacts/<kind>-<fingerprint>/record.json, files of the stage
ROOT/tmp/       what is being built; emptied when a run starts
ROOT/scratch/<kind>-<fingerprint>/  what a stage keeps of a step under way, so that a stopped one goes on from there
ROOT/damaged/   artifacts whose files no longer have their hashes, moved aside
ROOT/logs/<step>.log
```
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from prismlab.errors import StoreError
from prismlab.run.lock import holder, is_lock, locked
from prismlab.run.step import Artifact
from prismlab.run.sums import listed, what_changed
from prismlab.study.content import hash_file
from prismlab.study.steps import canonical

RECORD = "record.json"
SCHEMA = 1
"""Version of the record's own layout."""
NOT_BUILT = "not built yet"
"""Why a step that was not to be built has no artifact."""
OLDER = "not built for this version of the study: what is there was made by another version of it or of prism"
"""The same, where the step was built once from another configuration, other inputs or by an older stage."""
_OURS = re.compile(
    r"lock|artifacts|tmp|tmp\.\d+|scratch|damaged|logs|run\.json|run\.json\.tmp|hashes\.json|hashes\.json\.\d+"
)
_ARTIFACT = re.compile(r"[a-z]+-[0-9a-f]+")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(record: Mapping[str, Any]) -> str:
    """Hash of a record without its own seal: a flipped byte in the record itself must not go unnoticed either."""
    rest = {key: value for key, value in record.items() if key != "seal"}
    return hashlib.blake2b(canonical(rest), digest_size=16).hexdigest()


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``record.json`` so that it is either absent, or old, or new and whole."""
    draft = folder / f"{RECORD}.tmp"
    plain = json.loads(json.dumps(record, allow_nan=False))
    sealed = {**plain, "seal": _seal(plain)}
    with draft.open("w", encoding="utf-8") as file:
        json.dump(sealed, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / RECORD)
    _fsync(folder)


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Size, hash and sums of every file below ``folder``, each forced to disk."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != f"{RECORD}.tmp":
            _fsync(path)
            files[path.relative_to(folder).as_posix()] = listed(path)
    for path in folder.rglob("*"):
        if path.is_dir():
            _fsync(path)
    return files


class Store:
    """The artifacts below one folder.

    Args:
        root: the run folder; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.artifacts = self.root / "artifacts"
        self.building = self.root / "tmp"
        self.scratches = self.root / "scratch"
        self.damaged = self.root / "damaged"
        self.logs = self.root / "logs"
        self._names: set[str] | None = None

    @contextmanager
    def lock(self) -> Generator[None]:
        """Hold the lock of the whole store.

        Raises:
            StoreError: another run has it (the message names the holder), or the folder is one of somebody else's, in
                which clearing up would delete what is not ours.
        """
        names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        foreign = [name for name in names if not _OURS.fullmatch(name)]
        if foreign and not is_lock(self.root / "lock"):
            raise StoreError(
                f"{self.root}: no run folder, it holds {foreign[0]!r}; take a new or empty folder with --out"
            )
        with locked(self.root / "lock"):
            yield

    def holder(self) -> str | None:
        """Who holds the lock; None if nobody does."""
        return holder(self.root / "lock")

    @property
    def hash_cache(self) -> Path | None:
        """Where hashes of input files are remembered; None in a folder that no run has used yet."""
        return self.root / "hashes.json" if is_lock(self.root / "lock") else None

    def prepare(self) -> None:
        """Make the folders and remove what a stopped run left half built. Call it under the lock."""
        for folder in (self.artifacts, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if self.building.exists():
            # Workers of a killed run may write for an instant longer: what is moved away cannot grow back here.
            # A name of its own: in a container every run may have the same process id.
            number = 0
            while (leftover := self.root / f"tmp.{number}").exists():
                number += 1
            self.building.rename(leftover)
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob("tmp.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.building.mkdir(exist_ok=True)

    def path(self, kind: str, fingerprint: str) -> Path:
        """Where an artifact lies or will lie."""
        return self.artifacts / f"{kind}-{fingerprint}"

    def draft(self, kind: str, fingerprint: str) -> Path:
        """An empty folder to build an artifact in."""
        folder = self.building / f"{kind}-{fingerprint}.{os.getpid()}"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def scratch(self, kind: str, fingerprint: str) -> Path:
        """Where a stage may keep what is done of a step; it makes the folder itself. Gone once the step is complete.

        The fingerprint is in its name, so what a stopped run left there was made by an equal configuration.
        """
        return self.scratches / f"{kind}-{fingerprint}"

    def read(self, folder: Path) -> Artifact:
        """The artifact in ``folder``, its record checked against its seal, its files not yet.

        Raises:
            StoreError: no record, or one that is damaged or of another schema.
        """
        path = folder / RECORD
        try:
            record = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
            schema, seal = record["schema"], record["seal"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path}: damaged or missing; the next run moves the artifact aside and rebuilds it"
            ) from error
        if schema != SCHEMA:
            raise StoreError(f"{path}: schema {schema}, this version reads {SCHEMA}; take another folder with --out")
        if seal != _seal(record):
            raise StoreError(f"{path}: damaged (its seal does not fit); the next run moves the artifact aside")
        return Artifact(kind=record["kind"], fingerprint=record["fingerprint"], path=folder, record=record)

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact if there is one with a readable record; None also for a damaged one, which is to be rebuilt."""
        try:
            artifact = self.read(self.path(kind, fingerprint))
        except StoreError:
            return None
        return artifact if (artifact.kind, artifact.fingerprint) == (kind, fingerprint) else None

    def record(self, kind: str, fingerprint: str) -> Mapping[str, Any] | None:
        """The record of ``find``."""
        found = self.find(kind, fingerprint)
        return None if found is None else found.record

    def not_built(self, step: str) -> str:
        """Why there is no artifact of a step: ``OLDER`` where one of the same id lies there, else ``NOT_BUILT``."""
        if self._names is None:
            self._names = {record["name"] for folder in self.all() if (record := self._told(folder)) is not None}
        return OLDER if step in self._names else NOT_BUILT

    def _told(self, folder: Path) -> Mapping[str, Any] | None:
        try:
            return self.read(folder).record
        except StoreError:
            return None

    def verify(self, artifact: Artifact) -> None:
        """Check every file against the record.

        Raises:
            StoreError: naming the first file that is missing, too short, too long or changed, and the tensors in it.
        """
        self.read(artifact.path)
        for name, known in artifact.record["files"].items():
            path = artifact.path / name
            if not path.is_file():
                raise StoreError(f"{path}: missing; the artifact is damaged and the next run rebuilds it")
            size = path.stat().st_size
            if size != known["bytes"]:
                raise StoreError(
                    f"{path}: not what was written ({size} bytes, not {known['bytes']}); the next run rebuilds the "
                    "artifact"
                )
            if hash_file(path) != known["blake2b"]:
                where = what_changed(path, known)
                raise StoreError(
                    f"{path}: not what was written (hash differs{f', in {where}' if where else ''}); "
                    "the next run rebuilds the artifact"
                )

    def all(self) -> Iterator[Path]:
        """Folders of all artifacts, damaged ones included."""
        if self.artifacts.is_dir():
            yield from sorted(p for p in self.artifacts.iterdir() if p.is_dir() and _ARTIFACT.fullmatch(p.name))

    def commit(self, draft: Path, record: Mapping[str, Any]) -> Artifact:
        """Hash the files of ``draft``, write its record last and move it in place.

        Args:
            draft: a folder from ``draft``; gone afterwards.
            record: everything of the record but ``schema``, ``files`` and ``seal``.
        """
        whole = {"schema": SCHEMA, **record, "files": _listing(draft)}
        _write_record(draft, whole)
        target = self.path(record["kind"], record["fingerprint"])
        old = self.find(record["kind"], record["fingerprint"])
        if old is not None and "dropped" in old.record:
            self.remove(target)
        elif target.exists():
            self.set_aside(target)
        draft.rename(target)
        _fsync(self.artifacts)
        return self.read(target)

    def set_aside(self, folder: Path) -> Path:
        """Move a damaged artifact to ``damaged/``, under a name not yet taken there; returns where it lies now."""
        self.damaged.mkdir(parents=True, exist_ok=True)
        number = 0
        while (target := self.damaged / f"{folder.name}.{number}").exists():
            number += 1
        folder.rename(target)
        return target

    def drop(self, artifact: Artifact, prefix: str) -> int:
        """Delete the files whose relative path starts with ``prefix``; the record keeps them under ``dropped``.

        Returns:
            Bytes freed. The record is rewritten first: killed in between, some files are left over, none is missed.
        """
        files = dict(artifact.record["files"])
        gone = {name: known for name, known in files.items() if name.startswith(prefix)}
        if not gone:
            return 0
        kept = {name: known for name, known in files.items() if name not in gone}
        dropped = {**artifact.record.get("dropped", {}), **gone}
        _write_record(artifact.path, {**artifact.record, "files": kept, "dropped": dropped})
        for name in gone:
            (artifact.path / name).unlink(missing_ok=True)
        for folder in sorted((p for p in artifact.path.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        return sum(int(known["bytes"]) for known in gone.values())

    def remove(self, folder: Path) -> int:
        """Delete an artifact, first moved out of sight so that a kill leaves no half of it; returns the bytes freed."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.building.mkdir(parents=True, exist_ok=True)
        hidden = self.building / f"removed-{folder.name}"
        folder.rename(hidden)
        shutil.rmtree(hidden)
        return size
