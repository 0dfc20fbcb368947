"""Rows of the reasoning suite in the schema that the sets publish, fetched by a stand-in for the hub, to items."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from prismlab.errors import DataError, SandboxError
from prismlab.evaluate.asked import ask
from prismlab.evaluate.fetch import fetch
from prismlab.evaluate.programs import read_programs, unpacked
from prismlab.evaluate.suite_base import Hub, Wish
from prismlab.evaluate.suites import SUITES
from prismlab.run.step import Silent
from prismlab.verify.answers import verify

REASONING = SUITES["reasoning"]


def packed(cases: list[dict[str, str]]) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given: str, wanted: str, kind: str) -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


LCB = {
    "question_title": "Double",
    "question_content": "Print twice the number.",
    "platform": "atcoder",
    "question_id": "abc301_a",
    "contest_id": "abc301",
    "contest_date": "2023-05-13T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps([case("2\n", "4\n", "stdin")]),
    "private_test_cases": packed([case("5\n", "10\n", "stdin")]),
    "metadata": "{}",
}
LCB_CALL = {
    **LCB,
    "question_id": "2824",
    "platform": "leetcode",
    "starter_code": "class Solution:\n    def double(self, n: int) -> int:\n        ",
    "public_test_cases": json.dumps([case("2", "4", "functional")]),
    "private_test_cases": packed([case("7", "14", "functional")]),
    "metadata": json.dumps({"func_name": "double"}),
}
CODEFORCES = {
    "id": "4/A",
    "contest_id": "4",
    "index": "A",
    "title": "Watermelon",
    "time_limit": 1.0,
    "memory_limit": 64.0,
    "description": "Say YES if w is even and above 2.",
    "input_format": "One number w.",
    "output_format": "YES or NO.",
    "note": None,
    "examples": [{"input": "8", "output": "YES"}],
    "official_tests": [{"input": "8\n", "output": "YES\n"}, {"input": "2\n", "output": "NO\n"}],
    "official_tests_complete": True,
    "generated_checker": None,
    "executable": True,
    "input_mode": "stdio",
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "livecodebench/code_generation_lite": [LCB, LCB_CALL],
    "open-r1/codeforces": [
        CODEFORCES,
        {**CODEFORCES, "id": "4/B", "generated_checker": "print(1)"},
        {**CODEFORCES, "id": "4/C", "official_tests_complete": False},
        {**CODEFORCES, "id": "4/D", "input_mode": "file"},
    ],
    "HuggingFaceH4/aime_2024": [
        {"id": 60, "problem": "Find x.", "solution": "x is 204.", "answer": "204", "url": "u", "year": "2024"}
    ],
    "math-ai/aime25": [{"problem": "Find y.", "answer": "70", "id": "0"}],
    "MathArena/aime_2026": [{"problem_idx": 1, "problem": "Find z.", "answer": 277, "problem_type": ["Algebra"]}],
    "HuggingFaceH4/MATH-500": [
        {
            "problem": "Convert.",
            "solution": "s",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        }
    ],
    "Idavidrein/gpqa": [
        {
            "Question": "Which?",
            "Correct Answer": "this",
            **{f"Incorrect Answer {n}": f"not {n}" for n in (1, 2, 3)},
            "Record ID": "rec1",
        }
    ],
}


class Rows:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def to_parquet(self, path_or_buf: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(self.rows), path_or_buf)


@pytest.mark.usefixtures("ample_time")
def test_every_set_of_the_suite_goes_from_the_hub_to_items(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")

    def load(hub: Hub) -> Rows:
        assert not hub.verified
        assert bool(hub.files) == (hub.id == "livecodebench/code_generation_lite")
        return Rows(ROWS[hub.id])

    fetch(REASONING, REASONING.benchmarks, tmp_path, Silent(), load, lambda hub: None)
    files = sorted((tmp_path / "reasoning").glob("*.parquet"))
    assert len(files) == 7
    try:
        asked = ask(REASONING, Wish(), files, {})
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")
    items = {one.name: list(some) for one, some in asked.sampled.items()}
    assert {name: [item.id for item in some] for name, some in items.items()} == {
        "livecodebench": ["abc301_a", "2824"],
        "codeforces": ["4/A"],
        "aime24": ["60"],
        "aime25": ["0"],
        "aime26": ["1"],
        "math500": ["test/algebra/1.json"],
        "gpqa-diamond": ["00000"],
    }
    assert asked.aside["codeforces"] == {
        "its tests are not all there": 1,
        "needs a checker of its own": 1,
        "reads files": 1,
    }
    assert asked.facts()["codeforces"]["not_scorable"] == asked.aside["codeforces"]
    assert items["aime26"][0].answer == "277"
    right = {
        "abc301_a": "print(2 * int(input()))",
        "2824": "class Solution:\n    def double(self, n):\n        return 2 * n",
        "4/A": "w = int(input())\nprint('YES' if w % 2 == 0 and w > 2 else 'NO')",
    }
    for item in (*items["livecodebench"], *items["codeforces"]):
        assert verify(item, f"```python\n{right[item.id]}\n```", False).score == 1.0, item.id
        wrong = right[item.id].replace("2 *", "3 *").replace("w > 2", "w > 0")
        assert verify(item, f"```python\n{wrong}\n```", False).score == 0.0, item.id


def test_questions_say_how_a_program_is_asked_for(tmp_path: Path) -> None:
    (lcb,) = REASONING.named(("livecodebench",))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (LCB, LCB_CALL)))
    (script, call), aside = read_programs(lcb, tmp_path / "x.jsonl")
    assert aside == {}
    assert script.question.endswith("reads standard input and writes standard output.")
    assert "def double(self, n: int)" in call.question
    assert call.meta["tests"]["entry"] == "double"
    assert [len(item.meta["tests"]["cases"]) for item in (script, call)] == [2, 2]
    (tmp_path / "y.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (LCB, LCB)))
    with pytest.raises(DataError, match="stands there twice"):
        read_programs(lcb, tmp_path / "y.jsonl")
    (tmp_path / "z.jsonl").write_text(json.dumps({**LCB, "private_test_cases": "%%"}))
    with pytest.raises(DataError, match=r"z.jsonl:1: its tests cannot be read: neither JSON nor packed"):
        read_programs(lcb, tmp_path / "z.jsonl")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def test_packed_tests_build_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(zlib.compress(pickle.dumps(Harmful()))).decode()
    with pytest.raises(ValueError, match=r"it would build .*system"):
        unpacked(text)
    assert not (tmp_path / "harmed").exists()
    monkeypatch.setattr("prismlab.evaluate.programs.LARGEST", 1000)
    with pytest.raises(ValueError, match="more than"):
        unpacked(packed([case("x" * 5000, "", "stdin")]))
    assert unpacked("[]") == []
