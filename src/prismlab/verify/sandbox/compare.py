"""Are two plain values the same? Compared as the trees that ``plain.to_plain`` writes: nothing is hashed, no class is
asked."""

from __future__ import annotations

import json
import math
from typing import Any


def same_value(expected: Any, given: Any) -> bool:
    """Whether ``given``, a tree that a program has sent, is the value ``expected``, a tree of ours.

    Numbers by their value (1 is 1.0 is True, as in Python), NaN to nothing; lists and tuples alike, since JSON knows
    no tuple; sets and dicts without order. What is no such tree is not the same.
    """
    try:
        return _same(expected, given)
    except (RecursionError, ValueError, TypeError, IndexError, OverflowError):
        return False


def same_output(expected: bytes, given: bytes) -> bool:
    """Whether two outputs are the same: line by line, white space within a line as one blank, none at its ends, and
    no empty lines at the end."""
    return _lines(expected) == _lines(given)


def _lines(text: bytes) -> list[list[bytes]]:
    lines = [line.split() for line in text.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _number(tree: Any) -> int | float | None:
    if type(tree) in (bool, int, float):
        return tree
    if type(tree) is list and len(tree) == 2 and type(tree[1]) is str:
        if tree[0] == "h":
            return int(tree[1], 16)
        if tree[0] == "f":
            return float.fromhex(tree[1])
    return None


def _same(a: Any, b: Any) -> bool:
    number = _number(a)
    if number is not None:
        other = _number(b)
        return other is not None and number == other
    if a is None or type(a) is str:
        return type(a) is type(b) and a == b
    if type(b) is not list or not b:
        return False
    if a[0] in ("l", "t"):
        return b[0] in ("l", "t") and len(a) == len(b) and all(map(_same, a[1:], b[1:]))
    if a[0] in ("s", "z"):
        return b[0] in ("s", "z") and _in_order(a[1:]) == _in_order(b[1:])
    if a[0] == "d":
        if b[0] != "d" or len(a) != len(b):
            return False
        both = zip(_pairs(a[1:]), _pairs(b[1:]), strict=True)
        return all(k == q and _same(v, w) for (k, v), (q, w) in both)
    if a[0] == "c":
        return b[0] == "c" and all(_same(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    return a[0] in ("b", "y") and b == a


def _key(tree: Any) -> str:
    """A text that is the same for trees of the same value; of sets' members and dicts' keys, which hold no list."""
    number = _number(tree)
    if number is not None:
        whole = type(number) is not float or (math.isfinite(number) and number == int(number))
        return f"n{int(number):x}" if whole else f"f{float(number).hex()}"
    if type(tree) is list:
        mark = {"l": "t", "s": "z"}.get(tree[0], tree[0])
        inner = _in_order(tree[1:]) if mark == "z" else [_key(one) for one in tree[1:]]
        return json.dumps([mark, inner])
    return json.dumps(tree)


def _in_order(trees: list[Any]) -> list[str]:
    return sorted(_key(tree) for tree in trees)


def _pairs(pairs: list[Any]) -> list[tuple[str, Any]]:
    return sorted(((_key(k), v) for k, v in pairs), key=lambda pair: pair[0])
