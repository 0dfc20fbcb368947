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
from prismlab.study.explain import problem, problems_of, raise_first
from prismlab.study.include import Merged, MixtureFile, is_study, read_merged
from prismlab.study.spec import BaseSpec, SourceSpec, TaskSpec
from prismlab.study.study import Study
from prismlab.study.suites import FILE_SUFFIXES, INCLUDED, OWN_SUFFIXES, SuiteSpec

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
            variables = "; variables such as $HOME stay as they are written" if "$" in pattern else ""
            raise SpecError(
                f"{where}[{number}]: no file matches {pattern!r}; it was looked for from {folder}{variables}"
            )
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


def _named_files(
    merged: Merged, path: Path, sources: Mapping[str, SourceSpec], tasks: Mapping[str, TaskSpec]
) -> dict[str, Sequence[Path]]:
    """Files of sources and tasks, looked for from the file that names them."""
    files: dict[str, Sequence[Path]] = {}
    given = [(f"sources.{name}", spec.files, SOURCE_SUFFIXES) for name, spec in sources.items()]
    given += [(f"tasks.{name}", spec.files, TASK_SUFFIXES) for name, spec in tasks.items()]
    for where, patterns, suffixes in given:
        if patterns is not None:
            try:
                files[where] = _matches(merged.folder(where, path), patterns, suffixes, f"{where}.files")
            except SpecError as error:
                raise SpecError(f"{merged.origins.get(where, path)}: {error}") from error
    return files


def _checkpoints(study: Study, folder: Path) -> dict[str, Sequence[Path]]:
    files: dict[str, Sequence[Path]] = {}
    for name, base in study.bases.items():
        if base.checkpoint is not None:
            found = _folder(folder, base.checkpoint, f"bases.{name}.checkpoint")
            files |= {} if found is None else {f"bases.{name}": [found]}
    return files


def _suites(study: Study, folder: Path) -> dict[str, Sequence[Path]]:
    """Files of suites, as far as a chosen benchmark may be read from them."""
    files: dict[str, Sequence[Path]] = {}
    for name, spec in study.evaluations.items():
        if spec.suite is not None:
            files |= suite_files(spec.suite, folder, f"evaluations.{name}")
    return files


def suite_files(suite: SuiteSpec, folder: Path, key: str) -> dict[str, list[Path]]:
    """Files of a suite, under ``key``, and those of tasks of one's own, under ``key.include``.

    Args:
        suite: as a study or a suite file describes it.
        folder: where relative paths start.
        key: place of its evaluation in the study, for messages, too.

    Raises:
        SpecError: a path names no file, or two files of one name, which a record could not tell apart.
    """
    found: dict[str, list[Path]] = {}
    here = f"{key}.suite"
    if suite.files:
        found[key] = suite.wanted(_matches(folder, suite.files, FILE_SUFFIXES, f"{here}.files"))
        if suite.by_harness and not found[key]:
            raise SpecError(
                f"{here}.files: no rows of {suite.name} are there; on a machine with network run 'prism eval fetch "
                f"{suite.name} --to DIR', then name that folder"
            )
    elif suite.own:
        found[key] = _matches(folder, suite.own_files, OWN_SUFFIXES, f"{here}.own")
        names = [file.name for file in found[key]]
        twice = [name for at, name in enumerate(names) if name in names[:at]]
        if twice or len(names) != len(suite.own_files):
            raise SpecError(
                f"{here}.own: {twice[0]!r} is the name of two files; rename one"
                if twice
                else f"{here}.own: a 'file' is one file, no pattern and no folder; a benchmark each"
            )
    if suite.include:
        found[f"{key}.include"] = _matches(folder, suite.include, INCLUDED, f"{here}.include")
    return found


def load_study(path: Path | str) -> LoadedStudy:
    """Read and check a study file with what it includes.

    Raises:
        SpecError: in at most two lines: file, key path, what is wrong, what is allowed, the nearest right spelling.
    """
    path = Path(path)
    return _load(path, read_merged(path))


def _load(path: Path, merged: Merged) -> LoadedStudy:
    try:
        study = Study.model_validate(merged.document)
    except ValidationError as error:
        raise_first(path, problems_of(error))
        raise
    raise_first(path, cross_problems(study))
    files = _named_files(merged, path, study.sources, study.tasks)
    try:
        files |= _checkpoints(study, path.resolve().parent) | _suites(study, path.resolve().parent)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    return LoadedStudy(study=study, path=path.resolve(), files=files)


@dataclass(frozen=True, kw_only=True)
class LoadedMixtures:
    """What is said of data in a study or in a file by itself."""

    path: Path
    spec: MixtureFile
    study: Study | None
    """The study, if the file is one."""
    files: Mapping[str, Sequence[Path]]
    """Absolute paths by key path: ``sources.NAME``, ``tasks.NAME``."""

    def shares(self, mixture: str) -> dict[str, float]:
        """Share of tokens of each source of a mixture; they sum to 1.

        Raises:
            SpecError: there is no such mixture, it names a source that is not there, or its weights do not fit.
        """
        spec = self.spec.mixtures.get(mixture)
        where = f"mixtures.{mixture}"
        if spec is None:
            known = list(self.spec.mixtures)
            raise SpecError(f"{self.path}: {problem(where, 'there is no such mixture', known or 'none', mixture)}")
        for key, names in ((where, spec.names), (f"{where}.tokens_in_source", spec.tokens_in_source or ())):
            for name in names:
                if name not in self.spec.sources:
                    raise SpecError(f"{self.path}: {problem(key, f'no source {name!r}', self.spec.sources, name)}")
        try:
            return spec.shares({name: self.spec.sources[name].domain_name for name in spec.names})
        except ValueError as error:
            raise SpecError(f"{self.path}: {where}: {error}") from error

    def as_study(self) -> LoadedStudy:
        """A study of these sources and mixtures whose base is a stand-in, so that no checkpoint need be read.

        It has the other settings of the study, if the file is one, else a study's defaults.
        """
        base = {"none": BaseSpec(arch="llama")}
        if self.study is not None:
            study = self.study.model_copy(update={"bases": base, "tokenizer": None})
        else:
            study = Study(
                name="data",
                bases=base,
                sources=self.spec.sources,
                mixtures=self.spec.mixtures,
                tasks=self.spec.tasks,
                decontaminate=self.spec.decontaminate,
            )
        return LoadedStudy(study=study, path=self.path, files=self.files)


def load_mixtures(path: Path | str) -> LoadedMixtures:
    """Read and check what a study, or a file that studies include, says of sources, mixtures and tasks.

    Raises:
        SpecError: as ``load_study``.
    """
    path = Path(path)
    merged = read_merged(path)
    if is_study(merged.document):
        study = _load(path, merged)
        spec = MixtureFile(
            sources=study.study.sources,
            mixtures=study.study.mixtures,
            tasks=study.study.tasks,
            decontaminate=study.study.decontaminate,
        )
        return LoadedMixtures(path=path.resolve(), spec=spec, study=study.study, files=study.files)
    try:
        spec = MixtureFile.model_validate(merged.document)
    except ValidationError as error:
        raise_first(path, problems_of(error))
        raise
    files = _named_files(merged, path, spec.sources, spec.tasks)
    return LoadedMixtures(path=path.resolve(), spec=spec, study=None, files=files)
