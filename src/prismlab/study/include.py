"""Files that a study includes: sources, mixtures and tasks that several studies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from prismlab.errors import SpecError
from prismlab.study.document import read_document
from prismlab.study.explain import problem, problems_of, raise_first
from prismlab.study.spec import DecontaminateSpec, MixtureSpec, Name, SourceSpec, TaskSpec
from prismlab.study.world import Spec

SECTIONS = ("sources", "mixtures", "tasks")
"""What an included file may define, by name; and ``decontaminate``, which is one thing."""
MAX_DEPTH = 8
"""Files that include files that include files."""


class MixtureFile(Spec):
    """A file to be included, or to be given to ``prism data`` by itself."""

    description: str = ""
    """What it is for."""
    include: list[str] = []
    """Further files, relative to this one."""
    sources: dict[Name, SourceSpec] = {}
    """Sources of training text."""
    mixtures: dict[Name, MixtureSpec] = {}
    """Token shares of sources."""
    tasks: dict[Name, TaskSpec] = {}
    """Verifiable tasks."""
    decontaminate: DecontaminateSpec | None = None
    """Look for the items of tasks in every source."""


@dataclass
class Merged:
    """A document with what it includes, and where each name comes from."""

    document: dict[str, Any]
    origins: dict[str, Path] = field(default_factory=dict[str, Path])
    """File of each ``sources.NAME``, ``mixtures.NAME``, ``tasks.NAME`` and of ``decontaminate``."""

    def folder(self, key: str, default: Path) -> Path:
        """The folder that relative paths of a name start from."""
        return self.origins.get(key, default).resolve().parent


def is_study(document: Mapping[str, Any]) -> bool:
    """Whether a document is a study rather than a file to be included."""
    return "bases" in document or "name" in document


def read_merged(path: Path) -> Merged:
    """The document of a study or of a file to be included, with everything that it includes in its place.

    An included file is checked by itself, so that a message names the file that is wrong.

    Raises:
        SpecError: a file cannot be read, holds something else, includes itself, or defines a name that another one
            defines; the message names both.
    """
    merged = Merged({})
    _take(path, merged, [])
    return merged


def _take(path: Path, merged: Merged, above: list[Path]) -> None:
    document = read_document(path)
    if above:
        _check_included(path, document)
    here = path.resolve()
    for name in _included(path, document):
        found = (here.parent / Path(name).expanduser()).resolve()
        chain = [*above, here]
        if found in chain:
            circle = " -> ".join(one.name for one in [*chain[chain.index(found) :], found])
            raise SpecError(f"{path}: include goes in a circle: {circle}; take one of them out")
        if len(chain) > MAX_DEPTH:
            raise SpecError(f"{path}: files include one another more than {MAX_DEPTH} deep; name them in one place")
        if not found.is_file():
            raise SpecError(f"{path}: include: no file {name!r}; it was looked for from {here.parent}")
        _take(found, merged, chain)
    _merge(path, document, merged, top=not above)


def _included(path: Path, document: Mapping[str, Any]) -> list[str]:
    found = cast(object, document.get("include") or [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in cast(list[object], found)):
        raise SpecError(f"{path}: include: a list of file names is wanted, for example [mixtures/mcs.yaml]")
    return cast(list[str], found)


def _check_included(path: Path, document: Mapping[str, Any]) -> None:
    if is_study(document):
        raise SpecError(
            f"{path}: a whole study cannot be included; an included file holds {', '.join(SECTIONS)}, decontaminate"
        )
    wrong = sorted(set(document) - set(MixtureFile.model_fields))
    if wrong:
        raise SpecError(f"{path}: {problem(wrong[0], 'not for an included file', MixtureFile.model_fields, wrong[0])}")
    try:
        MixtureFile.model_validate(document)
    except ValidationError as error:
        raise_first(path, problems_of(error))
        raise


def _merge(path: Path, document: Mapping[str, Any], merged: Merged, top: bool) -> None:
    for key, value in document.items():
        if key in SECTIONS and isinstance(value, dict) and isinstance(merged.document.get(key, {}), dict):
            section: dict[str, Any] = merged.document.setdefault(key, {})
            for name, spec in cast(dict[str, Any], value).items():
                _claim(f"{key}.{name}", path, merged)
                section[name] = spec
        elif key != "include" and (top or key != "description"):
            if key == "decontaminate":
                _claim(key, path, merged)
            merged.document[key] = value


def _claim(key: str, path: Path, merged: Merged) -> None:
    """Note where a name is defined; the file itself may be met twice, by two ways."""
    known = merged.origins.get(key)
    if known is not None and known.resolve() != path.resolve():
        raise SpecError(f"{path}: {key} is also defined in {known}; define it once, or under another name")
    merged.origins[key] = path
