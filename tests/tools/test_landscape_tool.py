"""``prism landscape`` on tiny checkpoints: options, the record against the stage, going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from prismlab.analyse import landscape as stage
from prismlab.errors import CheckpointError, SpecError, StageError
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.tools.landscape import Settings, _draw, landscape
from prismlab.tools.tasks import parse_micro, parse_task, read_tasks

torch.set_num_threads(1)
TOKENIZER = build_byte_tokenizer()
FIELDS = "question=question,answer=answer,verifier=number"


def save(folder: Path, seed: int) -> Path:
    save_checkpoint(build_model(tiny_config("llama", 32, 2, len(TOKENIZER)), seed), TOKENIZER, folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "mid", "rl")):
        save(tmp_path / name, seed)
    rows = [{"question": f"What is {k} plus {k}?", "answer": str(2 * k)} for k in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


SETTINGS = Settings(points=3, max_new_tokens=5, temperature=1.0)


def test_the_record_is_what_the_stage_s_functions_give(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "walk"
    record = landscape(["base", "mid", "rl"], tasks=[f"sums.jsonl:{FIELDS}"], settings=SETTINGS, out=out)
    shown = capsys.readouterr()
    assert "0.5 of the way to mid" in shown.out
    assert "6 rows, where 200 items were asked for" in shown.out
    assert json.loads((out / "landscape.json").read_text()) == record
    assert [row["a"] + row["b"] for row in record["path"]] == [0, 0.5, 1, 1.5, 2]
    assert (record["items"], record["points"], record["points_found"]) == (6, 5, 0)
    assert record["path"][0]["average"]["items"] == 6
    table = pq.read_table(out / "samples.parquet").to_pylist()
    draw = _draw(read_tasks([f"sums.jsonl:{FIELDS}"], [], 200)[1], SETTINGS)
    rl = [{k: v for k, v in row.items() if k not in "ab"} for row in table if row["b"] == 1]
    assert rl == draw.rows(load_model(home / "rl"), TOKENIZER)
    page = (out / "landscape.html").read_text()
    assert "Landscape: base, mid, rl" in page
    assert 'src="http' not in page


def test_it_goes_on_where_it_was_stopped_and_a_finer_path_from_a_coarser(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, sampled = stage.Walker.rows, []

    def stops(self: Any, place: Any, *rest: Any) -> Any:
        if len(sampled) == 2:
            raise StageError("stopped")
        sampled.append(place)
        return rows(self, place, *rest)

    given: dict[str, Any] = {"micro": ["science"], "items": 4, "settings": SETTINGS, "out": home / "walk"}
    monkeypatch.setattr(stage.Walker, "rows", stops)
    with pytest.raises(StageError):
        landscape(["base", "mid", "rl"], **given)
    monkeypatch.setattr(stage.Walker, "rows", rows)
    record = landscape(["base", "mid", "rl"], **given)
    assert record["points_found"] == 2
    assert "2 of 5 points were found" in capsys.readouterr().out
    fresh = landscape(["base", "mid", "rl"], **{**given, "out": None})
    assert {k: v for k, v in fresh.items() if k != "points_found"} == {
        k: v for k, v in record.items() if k != "points_found"
    }
    finer = Settings(points=5, grid=3, max_new_tokens=5, temperature=1.0)
    found = landscape(["base", "mid", "rl"], **{**given, "settings": finer})
    assert (found["points"], found["points_found"]) == (13, 5)
    assert found["grid"]["average"][2][1] == next(r for r in found["path"] if r["b"] == 0.5)["average"]
    other = landscape(["base", "mid", "rl"], **{**given, "settings": Settings(points=3, max_new_tokens=5)})
    assert other["points_found"] == 0, "another temperature is another measurement"
    save(home / "rl", 7)
    assert landscape(["base", "mid", "rl"], **given)["points_found"] == 0, "a changed checkpoint is another one"


def test_two_checkpoints_and_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = landscape(["base", "rl"], micro=["math:math_max_digits=2"], items=3, settings=SETTINGS, as_json=True)
    assert json.loads(capsys.readouterr().out) == record
    assert [(row["leg"], row["t"]) for row in record["path"]] == [(1, 0.0), (1, 0.5), (1, 1.0)]
    assert record["grid"] is None
    assert not (home / "points").exists()


@pytest.mark.parametrize(
    ("checkpoints", "options", "settings", "message"),
    [
        (["base"], {"micro": ["math"]}, {}, "1 checkpoints; name two"),
        (["base", "rl"], {"micro": ["math"]}, {"grid": 3}, "--grid needs three checkpoints"),
        (["base", "rl"], {}, {}, "no task: --task takes FILE"),
        (["base", "rl"], {"micro": ["math"]}, {"points": 1}, "--points 1: 2 to 1000"),
        (["base", "rl"], {"micro": ["math"]}, {"top_p": 0.0}, "--top-p 0: above 0"),
        (["base", "rl"], {"micro": ["math"]}, {"dtype": "int8"}, "--dtype int8: one of float32"),
        (["base", "rl"], {"micro": ["math", "math"]}, {}, "two tasks are called 'micro-math'"),
        (["base", "base"], {"micro": ["math"]}, {}, "named twice"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    home: Path, checkpoints: list[str], options: dict[str, Any], settings: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(stage, "Walker", None)
    with pytest.raises(SpecError, match=message):
        landscape(checkpoints, settings=Settings(**settings), **options)


def test_checkpoints_that_do_not_fit_are_refused(home: Path) -> None:
    save_checkpoint(build_model(tiny_config("llama", 48, 2, len(TOKENIZER)), 0), TOKENIZER, home / "wide")
    with pytest.raises(CheckpointError, match="has shape"):
        landscape(["base", "wide"], micro=["math"], items=2, settings=SETTINGS)


def test_a_task_is_read_from_its_option(tmp_path: Path) -> None:
    file = tmp_path / "a:b=c.Test-set.jsonl"
    file.write_text("")
    task = parse_task(f"{file}:question=q,answer=a,choices=c,verifier=choice,domain=biology")
    assert task.file == file
    assert (task.name, task.spec.domain, task.spec.verifier) == ("a-b-c", "biology", "choice")
    assert task.spec.fields is not None
    assert (task.spec.fields.question, task.spec.fields.choices) == ("q", "c")
    assert parse_task(f"{file}:{FIELDS},name=mine").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f.jsonl", "no fields"),
        ("f.jsonl:question=q,answer=a", "'verifier' is missing"),
        ("f.jsonl:question=q,answer=a,verifier=tests", "verifier 'tests'"),
        ("f.jsonl:question=q,answer=a,verifier=choice", "choices=FIELD .* go together"),
        ("f.jsonl:question=q,answer=a,verifier=number,choices=c", "choices=FIELD .* go together"),
        ("f.jsonl:question=q,answer=a,verifier=number,split=x", "no key 'split'"),
        ("f.jsonl:question=q,question=r,answer=a,verifier=number", "stands there twice"),
        ("f.jsonl:question=,answer=a,verifier=number", "is not KEY=VALUE"),
        (f"f.jsonl:{FIELDS}", "no such file"),
    ],
)
def test_a_task_that_is_not_whole_is_explained(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_task(text)


def test_the_micro_world_takes_settings() -> None:
    tasks, world = parse_micro(["math:math_min_digits=1,math_max_digits=1", "science:science_choices=3"])
    assert [task.name for task in tasks] == ["micro-math", "micro-science"]
    assert (world.math_max_digits, world.science_choices) == (1, 3)
    for wrong, message in (
        ("maths", "one of math"), ("math:digits=3", "can be set for"), ("math:math_max_digits=9", "less than or equal"),
        ("math:math_max_digits=1.5", "whole numbers"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=message):
            parse_micro([wrong])
    tasks, items, notes = read_tasks([], ["math:math_min_digits=1,math_max_digits=1"], 5)
    assert len(items) == 5
    assert all(len(item.answer) <= 2 for item in items)
    assert notes == []
