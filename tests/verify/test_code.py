"""The verifier ``tests``: which program of a response is run, and that right ones pass and broken ones do not."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mutants import variants

from prismlab.data.items import Item, load_items
from prismlab.data.rows import Row
from prismlab.data.tests import read_tests
from prismlab.errors import DataError
from prismlab.verify.answers import verify
from prismlab.verify.code import judge_tests, program_text
from prismlab.verify.sandbox.box import Sandbox
from prismlab.verify.sandbox.outcome import Judged, Limits, Outcome
from prismlab.verify.verdict import Verdict

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NEEDS = pytest.mark.usefixtures("level_a")


def shared(name: str) -> list[dict[str, Any]]:
    file = SHARED / name
    if not file.is_file():
        pytest.skip(f"no {file}: real data is not beside this checkout")
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def box(level_a: None) -> Iterator[Sandbox]:
    with Sandbox("A") as made:
        yield made


def meta_of(row: dict[str, Any], field: str, seconds: float = 120.0) -> dict[str, Any]:
    _, tests = read_tests(Row(where="here", values=row), field)
    return {"tests": {**tests, "limits": {"seconds": seconds}}}


def all_of(box: Sandbox, work: list[tuple[dict[str, Any], str]]) -> list[Verdict]:
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda one: judge_tests(one[0], one[1], box), work))


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("```py\na\n```\ntext\n```python3\nb\n```", "b"),
        ("```python\ndef add(a,b):\n    return a+b\n```\n```\nresult: ok\n```", "def add(a,b):\n    return a+b"),
        ("```\na\n```\n```text\nb\n```", "a"),
        ("```\na\n```\n```\nb\n```", "b"),
        ("```json\n{}\n```", None),
        ("```Python\na\n", "a"),
        ("```python\n```", None),
        ("", None),
        ("  \n", None),
        ("  ```python title=x\n  a\n  ```", "  a"),
        ("say ```a``` so", "say ```a``` so"),
    ],
)
def test_which_program_of_an_answer_is_run(answer: str, program: str | None) -> None:
    assert program_text(answer) == program


class Scripted:
    """A box that says what it is told to."""

    record: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, outcome: Outcome | None = None, judged: Judged | None = None) -> None:
        self.outcome, self.judged, self.seen = outcome, judged, list[Any]()

    def run(self, *arguments: Any) -> Any:
        self.seen.append(arguments)
        return self.outcome

    def calls(self, *arguments: Any) -> Any:
        self.seen.append(arguments)
        return self.judged

    tests = calls

    def close(self) -> None: ...


def test_faults_are_no_verdict_and_failures_are_wrong() -> None:
    meta = {"tests": {"kind": "stdin", "cases": [["1", "1"]]}}
    fault = Scripted(Outcome(status="fault", reason="no keeper"))
    assert judge_tests(meta, "x", fault) == Verdict(score=None, verdict="no_verdict", reason="sandbox: no keeper")
    late = Scripted(Outcome(status="time", reason="it ran longer than 2 s", stdout=b"1\n"))
    assert judge_tests(meta, "x", late).reason == "case 0: it ran longer than 2 s"
    loud = Scripted(
        Outcome(status="failed", reason="exit status 1", code=1, stdout=b"1\n", stderr=b"a\nValueError: b\n")
    )
    assert judge_tests(meta, "x", loud).reason == "case 0: exit status 1 (ValueError: b)"
    for word, score in (("passed", 1.0), ("failed", 0.0), ("no_verdict", None)):
        said = Scripted(judged=Judged(verdict=word, reason="r" if word != "passed" else ""))
        for tests in ({"kind": "calls", "entry": "f", "cases": [[[1], 1]]}, {"kind": "python", "tests": "assert f()"}):
            assert judge_tests({"tests": tests}, "x", said).score == score
    for broken in ({}, {"tests": {}}, {"tests": {"kind": "?"}}, {"tests": {"kind": "stdin", "cases": []}}):
        assert judge_tests(broken, "x", fault).verdict == "no_verdict"
    assert judge_tests({"tests": {**meta["tests"], "limits": {"hours": 1}}}, "x", fault).verdict == "no_verdict"
    assert judge_tests(meta, "```json\n1\n```", fault).verdict == "no_answer"


def test_a_completion_goes_behind_its_prompt() -> None:
    said = Scripted(judged=Judged(verdict="passed", reason=""))
    tests = {"kind": "python", "tests": "t", "entry": "f", "prelude": "p", "prompt": "def f():\n"}
    judge_tests({"tests": tests}, "    return 1", said)
    judge_tests({"tests": tests}, "```python\ndef f():\n    return 2\n```", said)
    assert [one[0] for one in said.seen] == ["def f():\n    return 1", "def f():\n    return 2"]


def test_rows_of_data_sets_become_tests() -> None:
    def tests(field: str, **row: Any) -> dict[str, Any]:
        return read_tests(Row(where="a.jsonl:1", values=row), field)[1]

    pairs = {"inputs": ["1 2\n", "3"], "outputs": ["3\n", "4"]}
    stdin = {"kind": "stdin", "cases": [["1 2\n", "3\n"], ["3", "4"]]}
    assert (
        tests("tests", tests=pairs)
        == tests("tests", tests=json.dumps(pairs))
        == tests("tests", tests=repr(pairs))
        == stdin
    )
    assert tests("t", t=[{"input": "1", "output": "2", "testtype": "stdin"}]) == {
        "kind": "stdin",
        "cases": [["1", "2"]],
    }
    calls = {"kind": "calls", "entry": "f", "cases": [[[1, [2]], 3]]}
    assert tests("t", t={"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}) == calls
    lines = [{"input": "1\n[2]", "output": "3", "testtype": "functional"}]
    assert tests("t", t=lines, metadata='{"func_name": "Solution.f"}') == calls
    named = [{"input": [1, [2]], "output": 3, "type": "function_call", "fn_name": "f"}]
    assert tests("t", t=json.dumps(named)) == calls
    mbpp = tests("test_list", test_list=["assert f(1) == 2"], test_setup_code="x = 1")
    assert mbpp == {"kind": "python", "tests": "x = 1\nassert f(1) == 2", "entry": "", "prelude": ""}
    human = tests("test", test="def check(c): pass", prompt="def f(): ...", entry_point="f")
    assert (human["entry"], human["prelude"]) == ("f", "def f(): ...")
    for broken in ({"inputs": ["1"], "outputs": []}, [], 7, "", [{"input": "1"}], {"a": 1}):
        with pytest.raises(DataError, match=r"a.jsonl:1"):
            tests("t", t=broken)


@NEEDS
@pytest.mark.usefixtures("ample_time")
def test_a_task_of_tests_from_a_file(tmp_path: Path) -> None:
    rows = [
        {"id": "sum", "q": "Add.", "t": {"inputs": ["1 2"], "outputs": ["3"]}},
        {"id": "f", "q": "Write f.", "t": ["assert f(1) == 2"], "code": "f=lambda x:x+1"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"verifier": "tests", "domain": "code", "fields": {"question": "q", "answer": "t"}, "files": ["a.jsonl"]}
    items = {item.id: item for item in load_items("t", spec, {}, "test", 2, [tmp_path / "a.jsonl"], 0)}
    assert items["f"].answer == "f=lambda x:x+1"
    assert Item.from_json(json.loads(json.dumps(items["f"].to_json()))) == items["f"]
    assert (
        verify(items["sum"], "<think> x </think> print(sum(map(int,input().split())))", strict_format=True).score == 1.0
    )
    assert verify(items["sum"], "print(4)", strict_format=False).reason == "case 0: another output"
    assert verify(items["f"], "```python\nf=lambda x:x+1\n```", strict_format=False).score == 1.0
    assert verify(items["f"], "f=lambda x:x", strict_format=False).verdict == "wrong"


@NEEDS
def test_tests_reach_the_program_through_plain_values_alone(box: Sandbox) -> None:
    tests = partial(box.tests, limits=Limits(seconds=60.0))
    tree = (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "def total(n):\n    return n.v + (total(n.next) if n.next else 0)"
    )
    assert tests(tree, "a=Node(1)\na.next=Node(2)\nassert total(a)==3\nassert a.next.v==2").verdict == "passed"
    assert tests("def f(x): x.sort()", "a=[3,1]\nf(a)\nassert a==[1,3]").verdict == "passed"
    assert tests("def f(d): d['k']=1", "a={}\nf(a)\nassert a=={'k':1}").verdict == "passed"
    assert tests("def f(n):\n yield from range(n)", "assert list(f(3))==[0,1,2]").verdict == "passed"
    assert tests("def f(): raise ValueError", "try:\n f()\n assert False\nexcept ValueError: pass").verdict == "passed"
    assert tests("def f(x): return type(x)", "assert f(1) is int").verdict == "passed"
    # The standard library that the tests name is the tests' own, and so is what their prelude defines.
    cheat = "class math:\n    isclose=staticmethod(lambda *a: True)\ndef f(): return 0"
    assert tests(cheat, "assert math.isclose(f(), 5)").verdict == "failed"
    helper = "def poly(x): return x-1"
    assert tests("def poly(x): return 0\ndef f(): return 7", "assert poly(f()) == 0", "f", helper).verdict == "failed"
    assert tests("def poly(x): return 0\ndef f(): return 1", "assert poly(f()) == 0", "f", helper).verdict == "passed"
    # An object that is no plain value is never true, equal or ordered.
    for check in (
        "assert f()",
        "assert f() == 1",
        "assert f() != 1",
        "assert f() > 0",
        "assert 1 in f()",
        "assert not f()",
    ):
        assert tests("class A:\n    pass\ndef f(): return A()", check).verdict == "failed", check
    # A test that cannot be run is nobody's failure.
    for broken in ("assert f(lambda: 1)", "assert (", "1/0", "x = 1", "import nothing_of_that_name"):
        assert tests("def f(x): return 1", broken).verdict == "no_verdict", broken


@NEEDS
def test_human_eval_right_and_broken(box: Sandbox) -> None:
    rows = shared("code/humaneval.jsonl.gz")[::8]
    verdicts = all_of(box, [(meta_of(row, "test"), row["canonical_solution"]) for row in rows])
    assert [row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if verdict != verdicts[0]] == []
    assert verdicts[0].verdict == "right"
    work = [(meta_of(row, "test", 2.0), text) for row in rows[:7] for text in broken_of(row)]
    assert len(work) > 10
    assert {verdict.verdict for verdict in all_of(box, work)} == {"wrong"}


def broken_of(row: dict[str, Any], most: int = 3) -> list[str]:
    """Variants of a HumanEval solution that its own assertions tell from it, found without the verifier: by running
    them in a process of their own, whose exit status says whether the assertions held."""
    found = []
    for text in variants(row["prompt"] + row["canonical_solution"], row["entry_point"], most, seed=1):
        limit = "import resource\nresource.setrlimit(resource.RLIMIT_CPU,(2,2))"
        code = f"{limit}\n{text}\n{row['test']}\ncheck({row['entry_point']})\n"
        if subprocess.run([sys.executable, "-I", "-c", code], capture_output=True).returncode:
            found.append(text)
    return found


@NEEDS
def test_mbpp_right(box: Sandbox) -> None:
    rows = shared("code/mbpp.jsonl")
    some = [row for row in rows if row["test_setup_code"] or row["task_id"] % 40 == 0 or row["task_id"] in (533, 625)]
    verdicts = all_of(box, [(meta_of(row, "test_list"), row["code"]) for row in some])
    assert [(row["task_id"], one) for row, one in zip(some, verdicts, strict=True) if one.verdict != "right"] == []
