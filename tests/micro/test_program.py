from __future__ import annotations

import ast
import operator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prismlab.micro.program import DEEPEST, LARGEST, LONGEST, ProgramError, agrees, evaluate, parse

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def reference(text: str, x: int) -> int:
    """The same expression through Python's own parser."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Name):
            return x
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return node.value

    return value(ast.parse(text.strip(), mode="eval").body)


programs = st.recursive(
    st.one_of(st.integers(0, 99).map(str), st.just("x")),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", " + ", " * "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=6,
).filter(lambda text: len(text) <= LONGEST)


@given(programs, st.integers(-20, 20))
@settings(max_examples=200, deadline=None)
def test_agrees_with_pythons_own_arithmetic(text: str, x: int) -> None:
    # Six factors of at most 99 stay within the bounds, which are tested on their own.
    assume(text.count("(") + text.count("-") <= DEEPEST)
    assert evaluate(parse(text), x) == reference(text, x)


@pytest.mark.parametrize(
    ("text", "x", "value"),
    [("3*x+4", 5, 19), (" 2*(x-1)*x ", 4, 24), ("7-2-1", 0, 4), ("-x*x", 3, -9), ("2+3*x", 1, 5), ("007", 1, 7)],
)
def test_known_values(text: str, x: int, value: int) -> None:
    assert evaluate(parse(text), x) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3x",
        "x**2",
        "x//2",
        "x/2",
        "x^2",
        "__import__('os')",
        "f(x)",
        "x+",
        "(x",
        "x)",
        "x x",
        "+x",
        "1.5",
        "1e3",
        "y",
        "x\n+1",
        "٣*x",
        "lambda x: x",
        "x if x else 1",
    ],
)
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ProgramError):
        parse(text)


def test_bounds() -> None:
    with pytest.raises(ProgramError, match="characters"):
        parse("x+" * LONGEST + "x")
    with pytest.raises(ProgramError, match="deeper"):
        parse("(" * (DEEPEST + 1) + "x" + ")" * (DEEPEST + 1))
    with pytest.raises(ProgramError, match="deeper"):
        parse("-" * (DEEPEST + 1) + "x")
    parse("(" * DEEPEST + "x" + ")" * DEEPEST)
    with pytest.raises(ProgramError, match="beyond"):
        parse(str(LARGEST + 1))
    with pytest.raises(ProgramError, match="beyond"):
        evaluate(parse("x*x*x*x*x*x"), 10_000)
    # A product that comes back into bounds is refused as well: every step is bounded, not the end alone.
    with pytest.raises(ProgramError, match="beyond"):
        evaluate(parse(f"{LARGEST}*{LARGEST}*0"), 0)


def test_agrees_needs_every_point() -> None:
    points = [(1, 7), (2, 10), (4, 16)]
    assert agrees("3*x+4", points)
    assert agrees("4+x+2*x", points)
    assert not agrees("3*x+4", [*points, (5, 18)])
    assert not agrees("7", points)
    with pytest.raises(ValueError, match="no point"):
        agrees("x", [])
