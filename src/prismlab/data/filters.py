"""Which rows and documents are kept: conditions on fields, each of which tells why a row is dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prismlab.data.recipe_list import RECIPES
from prismlab.data.recipe_list_base import Condition
from prismlab.data.rows import BadRow, Row
from prismlab.errors import shown


def _number(value: object) -> float | None:
    """A finite number, also one that is written as text; truth values are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _at_least(value: object, bound: float) -> bool | None:
    number = _number(value)
    return None if number is None else number >= bound


def _other_number(value: object, number: float) -> bool | None:
    found = _number(value)
    return None if found is None else found != number


def _same(one: object, other: object) -> bool:
    # True == 1 in Python; a column of truth values is not one of numbers.
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _text(value: object, test: Callable[[str], bool]) -> bool | None:
    return test(value) if isinstance(value, str) else None


COMPARISONS: Mapping[str, tuple[Callable[[Any, Any], bool | None], str]] = {
    "==": (_same, "is not {bound}"),
    "in": (lambda value, bound: any(_same(value, one) for one in bound), "is none of {bound}"),
    "not in": (lambda value, bound: not any(_same(value, one) for one in bound), "is {value}"),
    ">=": (_at_least, "is below {bound}"),
    "is not the number": (_other_number, "is {bound}"),
    "starts with": (
        lambda value, bound: _text(value, lambda text: text.startswith(bound)),
        "does not begin with {bound}",
    ),
    "characters >=": (
        lambda value, bound: _text(value, lambda text: len(text) >= bound),
        "has fewer than {bound} characters",
    ),
}
"""Name: what a kept row's value fulfils (None: it is of a kind that cannot be compared), and the reason otherwise."""


def _why(condition: Condition, row: Row) -> str | None:
    field, name, bound = condition
    value = row.field(field)
    test, reason = COMPARISONS[name]
    kept = test(value, bound)
    if kept is None:
        kind = "null" if value is None else type(value).__name__
        detail = f"field {field!r} is {shown(repr(value), 40)}; it is to be compared with {bound!r}"
        raise BadRow(row.where, f"field {field!r} is a {kind}, not to be compared", detail)
    if kept:
        return None
    return f"{field} " + reason.format(bound=shown(repr(bound), 60), value=shown(repr(value), 40))


def conditions(spec_json: Mapping[str, Any]) -> list[Condition]:
    """Conditions of a source: its recipe's, then those of its ``filters``."""
    found: list[Condition] = []
    if spec_json.get("recipe") is not None:
        found += RECIPES[spec_json["recipe"]].keep
    own = spec_json.get("filters") or {}
    found += [(field, "in", values) for field, values in (own.get("where") or {}).items()]
    found += [(field, ">=", bound) for field, bound in (own.get("at_least") or {}).items()]
    return found


def row_filter(asked: Iterable[Condition]) -> Callable[[Row], str | None]:
    """A function that gives the reason why a row is dropped, or None for one that is kept.

    It raises ``BadRow`` where a field is missing or cannot be compared: that is no reason to drop a row, but a broken
    one.
    """
    asked = list(asked)

    def why(row: Row) -> str | None:
        return next((reason for condition in asked if (reason := _why(condition, row)) is not None), None)

    return why


def length_filter(spec_json: Mapping[str, Any]) -> Callable[[str], str | None]:
    """The same for a document's text: the bounds ``min_chars`` and ``max_chars`` of ``filters``."""
    own = spec_json.get("filters") or {}
    least, most = own.get("min_chars"), own.get("max_chars")

    def why(text: str) -> str | None:
        if least is not None and len(text) < least:
            return f"fewer than {least} characters"
        if most is not None and len(text) > most:
            return f"more than {most} characters"
        return None

    return why
