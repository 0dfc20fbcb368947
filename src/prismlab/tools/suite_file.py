"""Suites that the user puts together: a suite file, or tasks of lm-evaluation-harness by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prismlab.errors import SpecError
from prismlab.evaluate.suite_base import Suite, Wish
from prismlab.evaluate.suites import TASKS, suite_named, suite_of
from prismlab.study.document import read_document
from prismlab.study.load import suite_files
from prismlab.study.suites import SuiteSpec

if TYPE_CHECKING:
    from prismlab.tools.evaluate import Place

SUFFIXES = (".yaml", ".yml")


def chosen_suite(name: str, wish: Wish, place: Place) -> Suite:
    """The suite of a name; ``harness`` holds the tasks that ``wish`` names.

    Raises:
        SpecError: there is none.
    """
    if name == TASKS and wish.benchmarks:
        return suite_of({"name": TASKS, "benchmarks": list(wish.benchmarks)})
    if place.include:
        raise SpecError("--include goes with --suite harness: your own tasks of lm-evaluation-harness")
    return suite_named(name)


def read_spec(file: Path) -> SuiteSpec:
    """What a suite file says.

    Raises:
        SpecError: it is no YAML, or a key or value is wrong.
    """
    given = read_document(file)
    try:
        return SuiteSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = str(first["msg"]).removeprefix("Value error, ")
        raise SpecError(f"{file}: {where + ': ' if where else ''}{what}") from error


def read_suite(file: Path, wish: Wish, place: Place) -> tuple[Suite, Wish, Place, list[Path]]:
    """A suite file: the suite, what of it, where from, and its files. What the command line says goes first.

    Raises:
        SpecError: the file is wrong, names files that are not there, or an option has no place beside it.
    """
    spec = read_spec(file)
    if place.source is not None and not spec.files and not spec.by_harness:
        raise SpecError(f"--from: {file} names its own files")
    found = suite_files(spec, file.resolve().parent, str(file))
    files = found.get(str(file), [])
    if place.source is not None:
        from prismlab.tools.evaluate import files_in

        files = spec.wanted(files_in(place.source))
    given: dict[str, Any] = {
        name: getattr(spec, name) if getattr(wish, name) is None else getattr(wish, name)
        for name in ("limit", "shots", "samples", "temperature", "top_p", "max_new_tokens")
    }
    given["lengths"] = wish.lengths or tuple(spec.lengths)
    given["benchmarks"] = wish.benchmarks or tuple(spec.benchmarks)
    whole: Mapping[str, Any] = spec.model_dump(mode="json")
    folders = tuple((file.resolve().parent / Path(one).expanduser()) for one in spec.include)
    if spec.exclude:
        raise SpecError(f"{file}: 'exclude' is for studies; name a file of ids with --exclude")
    asked = replace(wish, **given)
    return suite_of(whole), asked, replace(place, include=(*place.include, *folders)), list(files)
