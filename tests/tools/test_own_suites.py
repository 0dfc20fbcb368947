"""Suites that the user puts together: local files and tasks of lm-evaluation-harness, by command and in studies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from prismlab.cli import app
from prismlab.errors import DataError, SpecError, StageError
from prismlab.evaluate.retention import retention
from prismlab.evaluate.sampled import task_score
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Silent
from prismlab.score import read_rows
from prismlab.study.suites import SuiteSpec
from prismlab.tools.evaluate import Place, Wish, evaluate

EXAMPLES = Path(__file__).parents[2] / "examples" / "suites"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "m"
    save_checkpoint(build_model(tiny_config("llama", 32, 2, 258), 0), build_byte_tokenizer(), folder)
    return folder


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {name: one["value"] for name, one in found["metrics"]["tasks"].items()}


def test_local_files_and_the_harness_give_one_number(model: Path, tmp_path: Path, caches: None) -> None:
    """The example of the docs: the same file by our own code and as a task of the harness."""
    own = evaluate(str(model), str(EXAMPLES / "own.yaml"), Wish(), Place(out=tmp_path / "own"), as_json=True)
    theirs = evaluate(str(model), str(EXAMPLES / "harness.yaml"), Wish(), Place(out=tmp_path / "theirs"), as_json=True)
    assert scores(own)["capitals"] == scores(theirs)["my_capitals"]
    facts = theirs["config"]["benchmarks"]["my_capitals"]
    assert (facts["metric"], facts["items"], facts["shots"]) == ("acc_norm", 12, 0)
    rows = {name: read_rows(tmp_path / name / "samples.parquet") for name in ("own", "theirs")}
    mine = {row["item_id"].removeprefix("capital-"): row["score"] for row in rows["own"] if row["task"] == "capitals"}
    assert len(mine) == 12
    assert [row["score"] for row in rows["theirs"]] == [mine[f"{k:02d}"] for k in range(12)]
    assert {row["task"] for row in rows["theirs"]} == {"my_capitals"}
    assert [row["item_id"] for row in rows["theirs"]] == [f"my_capitals:{k:05d}" for k in range(12)]
    sums = [row for row in rows["own"] if row["task"] == "sums"]
    assert len(sums) == 16
    assert own["config"]["benchmarks"]["sums"]["sampling"] == {
        "samples": 2,
        "temperature": 0.6,
        "top_p": 1.0,
        "max_new_tokens": 16,
    }
    assert scores(own)["sums"] == pytest.approx(task_score(sums)["value"])


def test_tasks_by_name_without_a_file(model: Path, caches: None) -> None:
    arguments = ["eval", str(model), "--suite", "harness", "--tasks", "my_capitals", "--include"]
    done = CliRunner().invoke(app, [*arguments, str(EXAMPLES / "tasks"), "--limit", "5", "--json"])
    assert done.exception is None
    assert json.loads(done.stdout)["metrics"]["tasks"]["my_capitals"]["items"] == 5


def suite_file(folder: Path, text: str, rows: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows or [{"q": "Is it so?", "a": "no", "b": "yes", "right": "B"}]), folder / "x.parquet")  # fmt: skip  # noqa: E501
    (folder / "s.yaml").write_text(text)
    return folder / "s.yaml"


def test_fields_prompt_and_worked_examples(model: Path, tmp_path: Path) -> None:
    """What is asked is what the file says: seen in the rows behind the scores."""
    text = (
        'name: own\nown:\n  x: {file: x.parquet, question: q, choices: [a, b], answer: right, prompt: "Q {question}", '
        "examples: e.jsonl, shots: 1}\n"
    )
    file = suite_file(tmp_path / "s", text)
    (tmp_path / "s" / "e.jsonl").write_text(json.dumps({"q": "And this?", "a": "never", "b": "always", "right": 0}))
    from prismlab.evaluate.sets import load_set
    from prismlab.tools.suite_file import read_suite

    suite, wish, _, files = read_suite(file, Wish(), Place())
    (item,) = load_set(suite.benchmarks[0], files, suite.name, suite.benchmarks[0].shots)
    assert item.pairs == [("Q And this? never\n\nQ Is it so?", " no"), ("Q And this? never\n\nQ Is it so?", " yes")]
    assert item.right == (1,)
    assert wish.limit is None
    found = evaluate(str(model), str(file), Wish(), Place(), as_json=True)
    assert found["metrics"]["tasks"]["x"]["items"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: own\nown: {x: {file: none.jsonl, choices: c}}", "no file matches 'none.jsonl'"),
        ("name: own\nown: {x: {file: x.parquet}}", "give 'choices' .* or a 'verifier'"),
        ("name: own\nown: {x: {file: x.parquet, choices: c, samples: 3}}", "'samples' is for responses"),
        ("name: own\nown: {x: {file: x.parquet, verifier: number, shots: 3}}", "'shots' is for choices"),
        ("name: own\nown: {x: {file: x.parquet, verifier: numbr}}", "own.x.verifier"),
        ("name: own\nown: {x: {file: x.parquet, choices: c, prompt: Q}}", "must hold '{question}'"),
        ("name: own\nown: {x: {file: x.parquet, choices: c, shots: 2}}", "'examples' .* and 'shots' go together"),
        ("name: own", "'own' .* and 'name: own' go together"),
        ("name: harness", "needs 'benchmarks'"),
        ("name: harness\nbenchmarks: [a]\nsamples: 3", "'samples': the harness's tasks"),
        ("name: retention\nfiles: [x.parquet]\ninclude: [t]", "are for the suite 'harness'"),
        ("name: mine", "suite 'mine' is not one of retention"),
        ("name: retention\nfiles: [x.parquet]\nexclude: [helaswag/1]", "no such benchmark; it has hellaswag"),
        ("name: harness\nbenchmarks: [a]\nexclude: [a/3]", "no '<benchmark>/<task>:<number>'"),
        ("nam: own", "nam"),
    ],
)
def test_wrong_suite_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        evaluate("nowhere", str(suite_file(tmp_path / "s", text)), Wish(), Place())


def test_wrong_rows_and_tasks_are_told(model: Path, tmp_path: Path, caches: None) -> None:
    file = suite_file(tmp_path / "s", "name: own\nown: {x: {file: x.parquet, question: nothing, choices: [a, b]}}")
    with pytest.raises(DataError, match=r"x.parquet:1: no field .*the fields are q, a, b, right"):
        evaluate(str(model), str(file), Wish(), Place())
    with pytest.raises(SpecError, match="no task 'my_capital'"):
        evaluate(str(model), "harness", Wish(benchmarks=("my_capital",)), Place(include=(EXAMPLES / "tasks",)))
    with pytest.raises(DataError, match="prism eval fetch harness --tasks openbookqa --to DIR"):
        evaluate(str(model), "harness", Wish(benchmarks=("openbookqa",)), Place())
    with pytest.raises(SpecError, match="--include goes with --suite harness"):
        evaluate(str(model), "retention", Wish(), Place(include=(EXAMPLES / "tasks",)))
    with pytest.raises(SpecError, match="takes no --samples"):
        evaluate(str(model), str(EXAMPLES / "harness.yaml"), Wish(samples=3), Place())
    spec = {"name": "harness", "benchmarks": ["my_capitals"], "include": [str(EXAMPLES / "tasks")]}
    (tmp_path / "h.yaml").write_text(json.dumps({**spec, "metrics": {"my_capitals": "bleu"}}))
    with pytest.raises(
        StageError, match=r"metric 'bleu' is no number from 0 to 1 a sample \(the task has acc, acc_norm"
    ):
        evaluate(str(model), str(tmp_path / "h.yaml"), Wish(), Place())


STUDY = """
name: suites
bases:
  a: {checkpoint: m}
  b: {checkpoint: m2}
checkpoints: {}
evaluations:
  mine: {suite: {name: own, own: {capitals: {file: capitals.jsonl, choices: choices, metric: acc_norm}}}}
  theirs: {suite: {name: harness, benchmarks: [my_capitals], include: [tasks]}}
  board: {suite: {name: leaderboard-v1, benchmarks: [winogrande], shots: 1, files: [sets],
    exclude: ["winogrande/winogrande:00004"]}}
gates:
  held: {evaluation: theirs, reference: a, margins: {my_capitals: 50}}
"""


def study(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder / "m")
    save_checkpoint(build_model(tiny_config("llama", 32, 2, 258), 1), build_byte_tokenizer(), folder / "m2")
    shutil.copytree(EXAMPLES / "tasks", folder / "tasks")
    shutil.copy(EXAMPLES / "capitals.jsonl", folder / "capitals.jsonl")
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def fetched(folder: Path) -> None:
    import datasets

    from prismlab.evaluate import harness
    from prismlab.evaluate.suites import SUITES

    def hub(name: str, config: str | None, splits: list[str]) -> dict[str, Any]:
        rows = [{"sentence": f"Ann met Bea and _ was {k} late.", "option1": "Ann", "option2": "Bea", "answer": "12"[k % 2]} for k in range(9)]  # fmt: skip  # noqa: E501
        return {split: datasets.Dataset.from_list(rows) for split in splits}

    v1 = SUITES["leaderboard-v1"]
    harness.fetch_tasks(v1, v1.named(("winogrande",)), folder, Silent(), load=hub)


def test_in_a_study_rows_scores_and_gates_are_there(model: Path, tmp_path: Path, caches: None) -> None:
    file = study(tmp_path, model)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "other.csv").write_text("a\n1\n")
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--jobs", "1"])
    assert "prism eval fetch leaderboard-v1 --to DIR" in done.output + str(done.exception)
    fetched(tmp_path / "sets")
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run"), "--jobs", "1"])
    assert done.exception is None, done.output
    records = {}
    for path in (tmp_path / "run" / "artifacts").glob("*/record.json"):
        record = json.loads(path.read_text())
        records[record["name"]] = (record, path.parent)
    mine = records["evaluation/mine@a/s0"][0]["metrics"]
    theirs, _ = records["evaluation/theirs@a/s0"]
    board = records["evaluation/board@b/s0"][0]["metrics"]
    assert mine["tasks"]["capitals"]["value"] == theirs["metrics"]["tasks"]["my_capitals"]["value"]
    assert theirs["metrics"]["benchmarks"]["my_capitals"]["metric"] == "acc_norm"
    assert {"name": "capitals.yaml"}.items() <= theirs["config"]["content"]["@tasks"][0].items()
    assert (board["tasks"]["winogrande"]["items"], board["contaminated"]["winogrande"]["items"]) == (8, 1)
    assert board["contaminated"]["winogrande"]["score"]["items"] == board["benchmarks"]["winogrande"]["items"] == 9
    apart = read_rows(records["evaluation/board@b/s0"][1] / "excluded.parquet")
    assert [row["item_id"] for row in apart] == ["winogrande:00004"]
    assert board["benchmarks"]["winogrande"]["shots"] == 1
    rows = {name: read_rows(records[f"evaluation/theirs@{name}/s0"][1] / "samples.parquet") for name in "ab"}
    assert theirs["metrics"]["tasks"]["my_capitals"]["value"] == pytest.approx(task_score(rows["a"])["value"])
    gate = next(record for name, (record, _) in records.items() if name.startswith("gate/held"))
    by_hand = retention(rows["a"], rows["b"], 2.0, {"my_capitals": 50.0})
    assert gate["metrics"]["tasks"]["my_capitals"]["difference"] == pytest.approx(
        by_hand["tasks"]["my_capitals"]["difference"]
    )
    ledger = json.loads((records["claims"][1] / "ledger.json").read_text()) if "claims" in records else None
    assert ledger is None or len(ledger["claims"]) == 18
    # Another task file is another step; what a suite does not use is in no configuration.
    assert "include" not in records["evaluation/mine@a/s0"][0]["config"]["spec"]["suite"]


def test_lengths_of_ruler_are_those_that_are_judged() -> None:
    with pytest.raises(ValueError, match="needs 'lengths'"):
        SuiteSpec.model_validate({"name": "ruler", "files": ["x"]})
    spec = SuiteSpec.model_validate({"name": "ruler", "files": ["x"], "benchmarks": ["vt"], "lengths": [4096, 8192]})
    assert spec.names == ["vt-4096", "vt-8192"]
    v2 = SuiteSpec.model_validate({"name": "leaderboard-v2", "files": ["x"], "benchmarks": ["ifeval", "bbh"]})
    assert v2.names == ["ifeval:prompts", "ifeval:instructions", "bbh"]
