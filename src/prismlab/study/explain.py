"""From a validation error to two lines that a user can act on."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prismlab.errors import SpecError
from prismlab.study.study import Study

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of names",
    "model": "a mapping",
    "model_attributes": "a mapping",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
}
_NAME_RULE = "small letters, digits, '.', '_' and '-', 64 at most, a letter or digit first"


def shown(value: object) -> str:
    """A value as it may stand in a one-line message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def key_path(loc: Sequence[int | str]) -> str:
    """``('seeds', 0)`` as ``seeds[0]``."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known spelling nearest to ``word``, if any is near."""
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def problem(where: str, what: str, allowed: Iterable[str] | str | None = None, word: object = None) -> str:
    """One problem in at most two lines: what is wrong and what is allowed, then the nearest right spelling."""
    known = [allowed] if isinstance(allowed, str) else list(allowed or [])
    text = f"{where}: {what}"
    if allowed is not None:
        text += f"; allowed: {', '.join(known) if known else 'none, the study names no such thing'}"
    guess = nearest(word, known) if word is not None else None
    return f"{text}\ndid you mean {guess!r}?" if guess and guess != word else text


def raise_first(file: object, problems: Sequence[str]) -> None:
    """Raise the first problem and count the others; return if there is none."""
    if problems:
        more = f" (+{len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SpecError(f"{file}: {problems[0]}{more}")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every model among the alternatives of an annotation."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def _inner(annotation: Any) -> Any:
    """What a mapping or a list holds, through ``Annotated`` and ``| None``."""
    if get_origin(annotation) is Annotated:
        return _inner(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next((_inner(part) for part in get_args(annotation) if part is not type(None)), None)
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def _tag_of(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("stage")
    return get_args(field.annotation) if field else ()


def keys_at(loc: Sequence[int | str]) -> list[str]:
    """Keys that the mapping at ``loc`` (with pydantic's union tags in it) may have."""
    annotation: Any = Study
    for part in loc:
        models = _models(annotation)
        tagged = [model for model in models if part in _tag_of(model)]
        if tagged:
            annotation = tagged[0]
        elif models:
            fields = {field.alias or name: field for name, field in models[0].model_fields.items()}
            annotation = fields[str(part)].annotation if str(part) in fields else None
        else:
            annotation = _inner(annotation)
    return [field.alias or name for model in _models(annotation)[:1] for name, field in model.model_fields.items()]


def _plain(loc: Sequence[int | str]) -> list[int | str]:
    """``loc`` without the tags that pydantic adds for a discriminated union and for keys."""
    tags = {"pretrain", "midtrain", "finetune", "extend", "merge", "rl"}
    return [
        part
        for position, part in enumerate(loc)
        if part != "[key]" and not (position == 2 and loc[0] == "checkpoints" and part in tags)
    ]


def _options(expected: str) -> list[str]:
    return [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",")]


def _explain(error: Mapping[str, Any]) -> str:
    loc, kind, context, value = error["loc"], str(error["type"]), error.get("ctx", {}), error.get("input")
    where = key_path(_plain(loc)) or "top level"
    if kind == "extra_forbidden":
        parent = key_path(_plain(loc[:-1])) or "top level"
        return problem(parent, f"unknown key {shown(loc[-1])}", keys_at(loc[:-1]), loc[-1])
    if kind == "missing" and isinstance(loc[-1], int):
        return f"{key_path(_plain(loc[:-1]))}: too few entries, number {loc[-1] + 1} is missing"
    if kind == "missing":
        return problem(key_path(_plain(loc[:-1])) or "top level", f"the key {loc[-1]!r} is missing")
    if kind == "union_tag_not_found":
        return problem(where, "the key 'stage' is missing", _stages())
    if kind == "union_tag_invalid":
        return problem(f"{where}.stage", f"unknown stage {shown(context['tag'])}", _stages(), context["tag"])
    if kind == "literal_error":
        return problem(where, f"{shown(value)} is not known", _options(context["expected"]), value)
    if kind in _BOUNDS:
        return problem(where, f"{shown(value)} is out of range", _BOUNDS[kind].format(**context))
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        rule = _NAME_RULE if pattern.startswith("^[a-z0-9]") else f"text that matches {pattern}"
        return problem(where, f"{shown(value)} is not allowed here", rule)
    if kind in ("too_short", "too_long"):
        size = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return problem(where, f"{context['actual_length']} entries", f"{size} entries")
    if kind == "value_error":
        return f"{where}: {str(error['msg']).removeprefix('Value error, ')}"
    for suffix in ("_type", "_parsing", "_from_float"):
        if kind.endswith(suffix) and kind.removesuffix(suffix) in _TYPES:
            return problem(where, f"{shown(value)} is of the wrong type", _TYPES[kind.removesuffix(suffix)])
    return f"{where}: {error['msg']}"


def _stages() -> list[str]:
    models = _models(_inner(Study.model_fields["checkpoints"].annotation))
    return [tag for model in models for tag in _tag_of(model)]


def problems_of(error: ValidationError) -> list[str]:
    """Every problem, the ones that explain others first: a misspelt key also looks like a missing one."""
    order = {"extra_forbidden": 0, "union_tag_invalid": 0, "missing": 2}
    found = sorted(error.errors(include_url=False), key=lambda item: order.get(str(item["type"]), 1))
    return [_explain(item) for item in found]
