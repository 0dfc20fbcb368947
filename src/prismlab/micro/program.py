"""The program grammar of the micro world: integer expressions in one variable ``x``, parsed and run by our own code.

    expression = term { ("+" | "-") term }
    term       = factor { "*" factor }
    factor     = number | "x" | "(" expression ")" | "-" factor

Nothing else is a program: no names, no calls, no division, no powers. What a model writes reaches no ``eval``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

LONGEST = 200
"""Characters of a program."""
DEEPEST = 32
"""Nested parentheses and minus signs."""
LARGEST = 10**15
"""Bound on the absolute value of every number, input and intermediate result."""

_TOKEN = re.compile(r"[ \t]*(?:([0-9]+)|([x+*()\-]))")


class ProgramError(ValueError):
    """The text is no program of the grammar, or it leaves the bounds when it runs."""


@dataclass(frozen=True, slots=True)
class Number:
    """A written number."""

    value: int


@dataclass(frozen=True, slots=True)
class Variable:
    """The input ``x``."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Two expressions under an operator; ``-y`` is ``0-y``."""

    operator: Literal["+", "-", "*"]
    left: Node
    right: Node


Node = Number | Variable | Operation


def _tokens(text: str) -> list[str]:
    if len(text) > LONGEST:
        raise ProgramError(f"{len(text)} characters; a program has at most {LONGEST}")
    tokens: list[str] = []
    at, end = 0, len(text.rstrip(" \t"))
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise ProgramError(f"{text[at:].lstrip()[:1]!r} at character {at + 1} is not part of the grammar")
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent over the tokens of one program."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def program(self) -> Node:
        node = self._expression(0)
        if self._peek():
            raise ProgramError(f"{self._peek()!r} follows a complete program")
        return node

    def _expression(self, depth: int) -> Node:
        node = self._term(depth)
        while (token := self._peek()) in ("+", "-"):
            self._take()
            node = Operation("+" if token == "+" else "-", node, self._term(depth))
        return node

    def _term(self, depth: int) -> Node:
        node = self._factor(depth)
        while self._peek() == "*":
            self._take()
            node = Operation("*", node, self._factor(depth))
        return node

    def _factor(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise ProgramError(f"nested deeper than {DEEPEST}")
        token = self._take()
        if token == "x":
            return Variable()
        if token.isdigit():
            return Number(_bounded(int(token)))
        if token == "-":
            return Operation("-", Number(0), self._factor(depth + 1))
        if token == "(":
            node = self._expression(depth + 1)
            if self._take() != ")":
                raise ProgramError("a parenthesis is not closed")
            return node
        raise ProgramError(f"{token!r} where a number, 'x' or '(' is wanted" if token else "the program ends too early")


def _bounded(value: int) -> int:
    if abs(value) > LARGEST:
        raise ProgramError(f"a value is beyond {LARGEST}")
    return value


def parse(text: str) -> Node:
    """The expression that ``text`` writes.

    Raises:
        ProgramError: it is not a program of the grammar, or longer, deeper or larger than the bounds.
    """
    return _Parser(text).program()


def evaluate(node: Node, x: int) -> int:
    """The value of an expression at ``x``; exact integers.

    Raises:
        ProgramError: ``x`` or a value on the way is beyond ``LARGEST``.
    """
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Variable):
        return _bounded(x)
    left, right = evaluate(node.left, x), evaluate(node.right, x)
    if node.operator == "+":
        return _bounded(left + right)
    return _bounded(left - right if node.operator == "-" else left * right)


def agrees(text: str, points: Iterable[Sequence[int]]) -> bool:
    """Whether the program ``text`` gives ``y`` at ``x`` for every ``(x, y)`` of ``points``.

    Raises:
        ProgramError: it is not a program, or leaves the bounds at one of the points.
        ValueError: no point is given, so that anything would agree.
    """
    checks = [(int(x), int(y)) for x, y in points]
    if not checks:
        raise ValueError("no point to check a program on")
    node = parse(text)
    return all(evaluate(node, x) == y for x, y in checks)
