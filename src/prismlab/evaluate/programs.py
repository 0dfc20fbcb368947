"""Rows of LiveCodeBench and Codeforces, as the hub has them, to items that the verifier ``tests`` judges.

The columns are those that the sets publish (livecodebench/code_generation_lite; open-r1/codeforces, configuration
``verifiable``); no row could be looked at from a machine without network, so both are ``verified: false``.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prismlab.data.items import Item
from prismlab.data.rows import BadRow, Row, encodable
from prismlab.data.tests import read_tests
from prismlab.errors import DataError
from prismlab.evaluate.sets import set_rows
from prismlab.evaluate.suite_base import Benchmark

LARGEST = 512 * 2**20
"""Bytes that packed tests may unfold to."""
SECONDS, ALL_SECONDS = 6.0, 60.0
"""Wall clock of a case on standard input, and of all calls of a function: ours, the study states none."""
SCRIPT = "Write a Python program that reads standard input and writes standard output."
STARTER = "Complete this Python program:"


class _NoObjects(pickle.Unpickler):
    """Reads plain values; a pickle that would build anything else is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it would build {module_name}.{global_name}")


def unpacked(text: str) -> Any:
    """LiveCodeBench's private tests: JSON, or JSON in a pickle, compressed by zlib and written in base64.

    Raises:
        ValueError: it is neither, unfolds to more than ``LARGEST`` bytes, or would build objects.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        unfold = zlib.decompressobj()
        whole = unfold.decompress(base64.b64decode(text.encode(), validate=True), LARGEST)
        if unfold.unconsumed_tail:
            raise ValueError(f"more than {LARGEST // 2**20} MiB")
        inner = _NoObjects(io.BytesIO(whole)).load()
        return json.loads(inner)
    except (
        binascii.Error,
        zlib.error,
        pickle.UnpicklingError,
        EOFError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise ValueError(f"neither JSON nor packed JSON: {error}") from error


def _item(benchmark: Benchmark, row: Row, name: str, question: str, values: Mapping[str, Any]) -> Item:
    answer, tests = read_tests(Row(row.where, {**row.values, **values}), "tests")
    seconds = SECONDS if tests["kind"] == "stdin" else ALL_SECONDS
    return Item(
        id=name,
        task=benchmark.name,
        domain=benchmark.domain,
        question=encodable(row.where, question.strip()),
        answer=encodable(row.where, answer),
        verifier="tests",
        meta={"tests": {**tests, "limits": {"seconds": seconds}}},
    )


def _livecodebench(benchmark: Benchmark, row: Row) -> Item | str:
    try:
        cases = [*unpacked(row.text("public_test_cases")), *unpacked(row.text("private_test_cases"))]
    except (ValueError, TypeError) as error:
        raise BadRow(row.where, "tests", f"its tests cannot be read: {error}") from error
    starter = row.text("starter_code").strip()
    task = f"{STARTER}\n```python\n{starter}\n```" if starter else SCRIPT
    question = f"{row.text('question_content').strip()}\n\n{task}"
    return _item(benchmark, row, row.text("question_id"), question, {"tests": cases})


def _codeforces(benchmark: Benchmark, row: Row) -> Item | str:
    """An item, or why its answers cannot be judged by comparing output."""
    if row.values.get("generated_checker"):
        return "needs a checker of its own"
    if row.values.get("input_mode", "stdio") != "stdio":
        return "reads files"
    if not row.values.get("official_tests") or not row.values.get("official_tests_complete", False):
        return "its tests are not all there"
    parts = [row.text("title"), row.text("description")]
    for name, head in (("input_format", "Input"), ("output_format", "Output"), ("note", "Note")):
        if isinstance(row.values.get(name), str) and row.text(name).strip():
            parts.append(f"{head}\n{row.text(name)}")
    for one in row.values.get("examples") or ():
        parts.append(f"Example input\n{one['input']}\nExample output\n{one['output']}")
    question = "\n\n".join(part.strip() for part in (*parts, SCRIPT))
    return _item(benchmark, row, row.text("id"), question, {"tests": list(row.field("official_tests"))})


PROGRAMS: Mapping[str, Callable[[Benchmark, Row], Item | str]] = {
    "livecodebench": _livecodebench,
    "codeforces": _codeforces,
}
"""Readers of rows by benchmark: an item, or why it cannot be judged."""


def read_programs(benchmark: Benchmark, path: Path) -> tuple[list[Item], dict[str, int]]:
    """Items of a file, and how many problems were left out, by reason. Rows that are items already are taken as such.

    Raises:
        DataError: a row is broken, an id stands there twice, or no problem is left.
    """
    items: dict[str, Item] = {}
    aside: Counter[str] = Counter()
    for row in set_rows(path):
        if "verifier" in row.values:
            found = Item.from_json({**row.values, "task": benchmark.name, "domain": benchmark.domain})
        else:
            found = PROGRAMS[benchmark.name](benchmark, row)
        if isinstance(found, str):
            aside[found] += 1
            continue
        if found.id in items:
            raise BadRow(row.where, "an id twice", f"the id {found.id!r} stands there twice; give each its own")
        items[found.id] = found
    if not items:
        raise DataError(f"{path}: holds no problem that can be judged")
    return list(items.values()), dict(sorted(aside.items()))
