"""YAML to Study: everything that can be known about a study before anything is run."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from prismlab.errors import SpecError
from prismlab.study.check import cross_problems
from prismlab.study.document import read_document
from prismlab.study.explain import problem, problems_of, raise_first
from prismlab.study.study import Study

TASK_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""Files that a task can be read from."""
SOURCE_SUFFIXES = (*TASK_SUFFIXES, ".txt", ".txt.gz", ".txt.zst")
"""Files that a source can be read from."""
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")


@dataclass(frozen=True, kw_only=True)
class LoadedStudy:
    """A study whose references all exist, and the files it reads."""

    study: Study
    path: Path
    """The study file, absolute."""
    files: Mapping[str, Sequence[Path]]
    """Absolute paths by key path: ``sources.NAME``, ``tasks.NAME``; ``bases.NAME`` for a checkpoint folder."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the study start from."""
        return self.path.parent


def _matches(folder: Path, patterns: Sequence[str], suffixes: Sequence[str], where: str) -> list[Path]:
    """Files that the patterns name: patterns in the given order, each one's files by name, none twice.

    Of a pattern that names folders alone, all files in and below them that can be read; others lie there, too.
    """
    found: dict[Path, None] = {}
    for number, pattern in enumerate(patterns):
        full = str(folder / Path(pattern).expanduser())
        matches = sorted(glob.glob(full, recursive=True))  # noqa: PTH207 (Path.glob refuses absolute patterns)
        files = [Path(match).resolve() for match in matches if Path(match).is_file()]
        if not files:
            within = (file for match in matches for file in sorted(Path(match).rglob("*")))
            files = [file.resolve() for file in within if file.is_file() and file.name.endswith(tuple(suffixes))]
        if not files:
            raise SpecError(f"{where}[{number}]: no file matches {pattern!r}; it was looked for from {folder}")
        for file in files:
            if not file.name.endswith(tuple(suffixes)):
                raise SpecError(problem(f"{where}[{number}]", f"{file.name!r} has no known ending", suffixes))
        found |= dict.fromkeys(files)
    return list(found)


def _folder(folder: Path, checkpoint: str, where: str) -> Path | None:
    """The checkpoint folder, or None for a hub id."""
    path = (folder / Path(checkpoint).expanduser()).resolve()
    if path.is_dir():
        return path
    if not HUB_ID.match(checkpoint):
        raise SpecError(
            problem(
                where,
                f"no folder {checkpoint!r} from {folder}",
                "a checkpoint folder or a hub id 'owner/name@revision'",
            )
        )
    return None


def _resolve(study: Study, folder: Path) -> dict[str, Sequence[Path]]:
    files: dict[str, Sequence[Path]] = {}
    for name, source in study.sources.items():
        if source.files is not None:
            where = f"sources.{name}"
            files[where] = _matches(folder, source.files, SOURCE_SUFFIXES, f"{where}.files")
    for name, task in study.tasks.items():
        if task.files is not None:
            files[f"tasks.{name}"] = _matches(folder, task.files, TASK_SUFFIXES, f"tasks.{name}.files")
    for name, base in study.bases.items():
        if base.checkpoint is not None:
            found = _folder(folder, base.checkpoint, f"bases.{name}.checkpoint")
            files |= {} if found is None else {f"bases.{name}": [found]}
    return files


def load_study(path: Path | str) -> LoadedStudy:
    """Read and check a study file.

    Raises:
        SpecError: in at most two lines: file, key path, what is wrong, what is allowed, the nearest right spelling.
    """
    path = Path(path)
    document = read_document(path)
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        raise_first(path, problems_of(error))
        raise
    raise_first(path, cross_problems(study))
    try:
        files = _resolve(study, path.resolve().parent)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    return LoadedStudy(study=study, path=path.resolve(), files=files)
