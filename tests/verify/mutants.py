"""Broken variants of correct functions, made from their syntax trees.

One change a variant: a comparison, an arithmetic or a boolean operator, a constant, a returned value, a condition. A
variant counts as **broken** only if it is shown to be: on some call that the item's own tests make it gives another
value (or raises, or does not end) than the original. Variants that agree on all those calls are equivalent as far as
the tests can tell, and are left out; the rule is applied by running both here, apart from the verifier.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def _places(tree: ast.AST) -> list[tuple[int, str]]:
    """Numbers of nodes (in the order of ``ast.walk``) and what can be done to them."""
    found = []
    for number, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            found.append((number, "compare"))
        elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            found.append((number, "operator"))
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            found.append((number, "constant"))
        elif isinstance(node, ast.Return) and node.value is not None:
            found.append((number, "return"))
        elif isinstance(node, (ast.If, ast.While)):
            found.append((number, "condition"))
    return found


def _changed(tree: ast.AST, number: int, kind: str) -> ast.AST:
    tree = copy.deepcopy(tree)
    node = next(one for at, one in enumerate(ast.walk(tree)) if at == number)
    if kind == "compare":
        assert isinstance(node, ast.Compare)
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
    elif kind == "operator":
        assert isinstance(node, (ast.BinOp, ast.BoolOp))
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif kind == "constant":
        assert isinstance(node, ast.Constant)
        node.value += 1  # type: ignore[operator]
    elif kind == "return":
        assert isinstance(node, ast.Return)
        node.value = ast.Constant(None)
    else:
        assert isinstance(node, (ast.If, ast.While))
        node.test = ast.UnaryOp(ast.Not(), node.test)
    return ast.fix_missing_locations(tree)


def variants(program: str, entry: str, most: int, seed: int) -> Iterator[str]:
    """Up to ``most`` variants of a program, chosen at random; changes are made within the function ``entry`` alone.

    What stands beside it in an item's prompt is the tests' own, and a change there breaks nothing under test.
    """
    tree = ast.parse(program)
    inside = {id(node) for top in tree.body if getattr(top, "name", "") == entry for node in ast.walk(top)}
    numbers = {number for number, node in enumerate(ast.walk(tree)) if id(node) in inside}
    places = [(number, kind) for number, kind in _places(tree) if number in numbers]
    random.Random(seed).shuffle(places)
    for number, kind in places[:most]:
        yield ast.unparse(_changed(tree, number, kind))
