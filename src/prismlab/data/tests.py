"""Tests of programming tasks, as data sets publish them, in the form that the verifier ``tests`` takes
(``verify.code``).

Known by what the field named as ``answer`` holds: Python code (HumanEval; with ``entry_point`` and ``prompt`` beside
it), a list of ``assert`` statements (MBPP; with ``test_setup_code``), or cases: ``{"inputs": [...], "outputs":
[...]}`` (CodeContests, APPS, TACO; with ``fn_name`` they are calls) and ``[{"input": ..., "output": ...}, ...]``
(LiveCodeBench, DeepCoder; ``testtype`` or ``type`` ``functional`` are calls). Cases may stand as text, in JSON or as
a Python literal.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from prismlab.data.rows import Row
from prismlab.errors import DataError

SOLUTIONS = ("canonical_solution", "code", "solution")
"""Fields that may hold a reference program."""
LONGEST = 4000
"""Characters of tests that stand for an answer where there is no reference program."""


def _literal(text: str) -> Any:
    """What a text of cases holds; None where it is none."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _text_of(values: Mapping[str, Any], *names: str) -> str:
    return next((values[name] for name in names if isinstance(values.get(name), str)), "")


def _entry(values: Mapping[str, Any], cases: Any) -> str:
    first = cases[0] if isinstance(cases, list) and cases else cases
    inner = first.get("fn_name") if isinstance(first, Mapping) else None
    metadata = values.get("metadata")
    metadata = _literal(metadata) if isinstance(metadata, str) else metadata
    named = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return str(inner or _text_of(values, "entry_point", "fn_name") or named or "").rpartition(".")[2]


def _called(given: Any, expected: Any) -> list[Any]:
    """A call: arguments as a list, or as lines of JSON."""
    if isinstance(given, str):
        given = [json.loads(line) for line in given.splitlines()]
        expected = json.loads(expected) if isinstance(expected, str) else expected
    return [list(given), expected]


def _cases(values: Mapping[str, Any], cases: Any) -> dict[str, Any] | None:
    entry = _entry(values, cases)
    if isinstance(cases, Mapping) and isinstance(cases.get("inputs"), list) and isinstance(cases.get("outputs"), list):
        pairs = list(zip(cases["inputs"], cases["outputs"], strict=True))
        if cases.get("fn_name"):
            # These sets wrap the one value that a call gives in a list.
            unwrapped = [(i, o[0] if isinstance(o, list) and len(o) == 1 else o) for i, o in pairs]
            return {"kind": "calls", "entry": entry, "cases": [_called(i, o) for i, o in unwrapped]}
        return {
            "kind": "stdin",
            "cases": [["\n".join(map(str, i)) if isinstance(i, list) else str(i), str(o)] for i, o in pairs],
        }
    if (
        isinstance(cases, list)
        and cases
        and all(isinstance(one, Mapping) and {"input", "output"} <= one.keys() for one in cases)
    ):
        kinds = {str(one.get("testtype", one.get("type", "stdin"))) for one in cases}
        if kinds <= {"functional", "function_call"}:
            return {"kind": "calls", "entry": entry, "cases": [_called(one["input"], one["output"]) for one in cases]}
        return {"kind": "stdin", "cases": [[str(one["input"]), str(one["output"])] for one in cases]}
    return None


def read_tests(row: Row, field: str) -> tuple[str, dict[str, Any]]:
    """A row's reference program (or its tests, cut, where it has none) and its tests for ``Item.meta``.

    Raises:
        DataError: the field holds no tests of a known form.
    """
    values, found = row.values, row.field(field)
    cases = _literal(found) if isinstance(found, str) else found
    tests: dict[str, Any] | None = None
    try:
        if isinstance(cases, list) and cases and all(isinstance(one, str) for one in cases):
            setup = _text_of(values, "test_setup_code")
            imports = values.get("test_imports")
            lines = [*(imports if isinstance(imports, list) else []), setup, *cases]
            tests = {"kind": "python", "tests": "\n".join(lines), "entry": "", "prelude": ""}
        elif cases is not None:
            tests = _cases(values, cases)
        elif isinstance(found, str) and found.strip():
            prompt = _text_of(values, "prompt")
            tests = {
                "kind": "python",
                "tests": found,
                "entry": _entry(values, None),
                "prelude": prompt,
                "prompt": prompt,
            }
    except (ValueError, TypeError) as error:
        raise DataError(f"{row.where}: the tests in field {field!r} cannot be read: {error}") from error
    if tests is None:
        raise DataError(
            f"{row.where}: field {field!r} holds no tests; wanted are Python code, a list of asserts, or inputs with "
            "outputs"
        )
    return (_text_of(values, *SOLUTIONS).strip() or str(found)[:LONGEST]), tests
