"""Tasks that a command puts to models, from options: files of questions, or the generated tasks of the micro world."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.data.items import Item, load_items
from prismlab.data.rows import file_rows
from prismlab.errors import SpecError, shown
from prismlab.study.spec import TaskSpec
from prismlab.study.world import MicroSpec

MICRO = ("math", "code", "science")
VERIFIERS = ("number", "choice", "exact")
KEYS = ("question", "answer", "choices", "verifier", "domain", "name")
TASK_RULE = "--task takes FILE:question=FIELD,answer=FIELD,verifier=number (or exact, or choice with choices=FIELD)"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: where its questions come from."""

    name: str
    spec: TaskSpec
    file: Path | None = None

    def json(self) -> dict[str, Any]:
        """What it is made of, for a record."""
        return {"name": self.name, "file": None if self.file is None else str(self.file), "spec": _json(self.spec)}


def _json(spec: TaskSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _settings(text: str, option: str) -> dict[str, str]:
    """``a=b,c=d`` as a mapping."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise SpecError(f"{option}: {shown(part, 60)!r} is not KEY=VALUE")
        if key.strip() in found:
            raise SpecError(f"{option}: {shown(key.strip(), 60)!r} stands there twice")
        found[key.strip()] = value.strip()
    return found


def _name(text: str) -> str:
    """A name that items can be known by, made of a file's."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:48] or "task"


def parse_task(text: str) -> Task:
    """A task from ``FILE:question=..,answer=..,verifier=..``; ``choices``, ``domain`` and ``name`` are optional.

    Raises:
        SpecError: no such file, or a key is missing or unknown.
    """
    # A path may hold a colon: the settings begin at the last one that a KEY= follows.
    cut = re.match(r"(.+):((?:\w+=)[^:]*)$", text, re.DOTALL)
    if cut is None:
        raise SpecError(f"--task {shown(text, 80)}: no fields; {TASK_RULE}")
    file, given = Path(cut[1]), _settings(cut[2], "--task")
    unknown = [key for key in given if key not in KEYS]
    if unknown:
        raise SpecError(f"--task: no key {shown(unknown[0], 40)!r}; there are {', '.join(KEYS)}")
    lacking = [key for key in ("question", "answer", "verifier") if key not in given]
    if lacking:
        raise SpecError(f"--task {shown(file, 80)}: {lacking[0]!r} is missing; {TASK_RULE}")
    if given["verifier"] not in VERIFIERS:
        raise SpecError(f"--task: verifier {shown(given['verifier'], 40)!r}; there are {', '.join(VERIFIERS)}")
    if (given["verifier"] == "choice") != ("choices" in given):
        raise SpecError("--task: verifier choice and choices=FIELD (the field with the list of choices) go together")
    if not file.is_file():
        raise SpecError(f"--task {shown(file)}: no such file")
    fields = {key: given[key] for key in ("question", "answer", "choices") if key in given}
    name = given.get("name") or _name(file.name.partition(".")[0])
    domain = _name(given.get("domain") or name).replace(".", "-")[:32]
    domain = domain if domain[0].isalpha() else f"t{domain}"[:32]
    spec = TaskSpec.model_validate(
        {"files": [file.name], "fields": fields, "verifier": given["verifier"], "domain": domain}
    )
    return Task(name=_name(name), spec=spec, file=file)


def parse_micro(texts: Sequence[str]) -> tuple[list[Task], MicroSpec]:
    """Tasks from ``math``, ``code`` or ``science``, each with settings of the micro world behind a colon if need be.

    Raises:
        SpecError: no such task, or a setting that is unknown or out of range.
    """
    tasks: list[Task] = []
    world: dict[str, int] = {}
    for text in texts:
        domain, _, rest = text.partition(":")
        if domain not in MICRO:
            raise SpecError(f"--micro {shown(domain, 40)!r}: one of {', '.join(MICRO)}")
        for key, value in _settings(rest, "--micro").items():
            if key not in MicroSpec.model_fields or not value.isdecimal():
                known = ", ".join(MicroSpec.model_fields)
                raise SpecError(f"--micro: {shown(key, 40)}={shown(value, 40)}; whole numbers can be set for {known}")
            world[key] = int(value)
        tasks.append(Task(name=f"micro-{domain}", spec=TaskSpec.model_validate({"micro": {"domain": domain}})))
    try:
        return tasks, MicroSpec.model_validate(world)
    except ValueError as error:
        told = " ".join(line.strip() for line in str(error).splitlines()[1:3]).partition(" [type=")[0]
        raise SpecError(f"--micro: {told}") from error


def read_tasks(files: Sequence[str], micro: Sequence[str], most: int) -> tuple[list[Task], list[Item], list[str]]:
    """The tasks of options, their items, and what is to be said of them.

    Args:
        files: values of ``--task``.
        micro: values of ``--micro``.
        most: items a task; a file with fewer gives all it has.

    Raises:
        SpecError: an option is wrong, or no task is named.
        DataError: a file cannot be read, or lacks a field.
    """
    made, world = parse_micro(micro)
    tasks = [*(parse_task(text) for text in files), *made]
    if not tasks:
        raise SpecError(f"no task: {TASK_RULE}; or --micro {'|'.join(MICRO)}")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"two tasks are called {name!r}: give one of them name=..., or name it once")
    items: list[Item] = []
    notes: list[str] = []
    for task in tasks:
        there = most if task.file is None else min(most, sum(1 for _ in file_rows(task.file)))
        if there < most:
            notes.append(f"{task.name}: {there} rows, where {most} items were asked for")
        found: Mapping[str, Any] = _whole(task.spec)
        paths = None if task.file is None else [task.file]
        items += load_items(task.name, found, world.model_dump(mode="json"), "test", there, paths, 0)
    return tasks, items, notes


def _whole(spec: TaskSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True)
