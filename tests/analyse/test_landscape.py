"""The landscape: numbers against sums by hand and a brute-force bootstrap; the stage against its checkpoints."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prismlab.analyse import landscape
from prismlab.analyse.surface import all_places, deviation, grid_points, path_points, place_name, summarise
from prismlab.errors import CheckpointError, StageError
from prismlab.evaluate.draw import draw_of
from prismlab.evaluate.sampled import aggregate
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from prismlab.model.interpolate import open_sources, plane, set_weights
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Artifact, Result, Silent
from prismlab.score import read_rows
from prismlab.study.spec import TaskSpec
from prismlab.study.world import MicroSpec

torch.set_num_threads(1)
TOKENIZER = build_byte_tokenizer()
BASE, MID, RL = (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)


def rows_of(scores: Sequence[float | None], task: str = "t", domain: str = "math", per_item: int = 1) -> list[Any]:
    return [
        {
            "task": task, "domain": domain, "item_id": str(k // per_item), "problem": str(k // per_item),
            "sample": k % per_item, "score": score, "finished": True,
        }
        for k, score in enumerate(scores)
    ]  # fmt: skip


def deviate(at: list[Any], start: list[Any], end: list[Any], t: float = 0.5) -> dict[str, Any]:
    rows = {(t, 0.0): at, BASE: start, MID: end}
    scores = {place: aggregate(mine) for place, mine in rows.items()}
    return deviation(rows, scores, (t, 0.0), (BASE, MID), t, 7)


def test_points_of_path_and_grid_stand_once() -> None:
    path = path_points(5, 2)
    assert [point.place for point in path] == [
        (0, 0), (0.25, 0), (0.5, 0), (0.75, 0), (1, 0), (1, 0.25), (1, 0.5), (1, 0.75), (1, 1)
    ]  # fmt: skip
    assert [(point.leg, point.t) for point in path][3:6] == [(1, 0.75), (1, 1.0), (2, 0.25)]
    assert len(all_places(5, 2, None)) == 9
    assert len(all_places(5, 2, 5)) == 25, "every point of the path lies on the grid"
    assert len(all_places(3, 2, 4)) == 16 + 5 - 3
    assert [len(path_points(n, 1)) for n in (2, 5)] == [2, 5]
    assert grid_points(3)[2] == [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0)]
    names = [place_name(place) for place in all_places(100, 2, 30)]
    assert len(set(names)) == len(names)
    assert place_name((0.25, 1.0)) == "0.25-1"
    assert place_name((1 / 3, 0.0)) == "0.333333-0"


def test_a_deviation_is_the_point_minus_the_straight_line() -> None:
    """By hand: 0.75 at a quarter of the way from 0.25 to 0.5 is 0.75 - 0.3125."""
    found = deviate(rows_of([1, 1, 1, 0]), rows_of([1, 0, 0, 0]), rows_of([1, 1, 0, 0]), t=0.25)
    assert found["value"] == pytest.approx(100 * (0.75 - 0.3125))
    assert found["items"] == 4
    assert found["lo"] < found["value"] < found["hi"]
    assert "reason" not in found


def test_a_sample_without_a_score_leaves_its_pair() -> None:
    found = deviate(rows_of([1, None, 0, 1]), rows_of([0, 0, 0, None]), rows_of([0, 1, 0, 1]))
    assert found["value"] == pytest.approx(100 * (1 + 0) / 2)
    nothing = deviate(rows_of([None, 1]), rows_of([1, None]), rows_of([1, 1]))
    assert (nothing["value"], nothing["lo"]) == (None, None)
    assert "no sample has a score" in nothing["reason"]


def test_domains_count_alike_whatever_their_number_of_tasks() -> None:
    """Two math tasks at +1 and 0 make +0.5, one code task -1: the average is -0.25."""
    one, nil = [1.0] * 6, [0.0] * 6
    at = [*rows_of(one, "a"), *rows_of(nil, "b"), *rows_of(nil, "c", "code")]
    ends = [*rows_of(nil, "a"), *rows_of(nil, "b"), *rows_of(one, "c", "code")]
    assert deviate(at, ends, ends)["value"] == pytest.approx(-25.0)


def test_the_interval_is_that_of_paired_problems() -> None:
    """Against a bootstrap written out here, and far narrower than if the three points were independent."""
    dice = np.random.default_rng(3)
    start = dice.integers(0, 2, 300).astype(float)
    at = np.where(dice.random(300) < 0.1, 1 - start, start)
    found = deviate(*(rows_of(list(x)) for x in (at, start, start)))
    differences = at - start
    draws = [differences[dice.integers(0, 300, 300)].mean() for _ in range(4000)]
    lo, hi = np.quantile(draws, [0.025, 0.975])
    assert found["lo"] == pytest.approx(100 * lo, abs=0.5)
    assert found["hi"] == pytest.approx(100 * hi, abs=0.5)
    independent = 2 * 1.96 * math.sqrt(1.5 * start.var() / 300) * 100
    assert found["hi"] - found["lo"] < 0.6 * independent


def test_samples_of_one_problem_are_resampled_together() -> None:
    dice = random.Random(1)
    problems = [float(dice.random() < 0.4) for _ in range(60)]
    once = deviate(rows_of(problems), rows_of([0.0] * 60), rows_of([1.0] * 60))
    often = [score for score in problems for _ in range(20)]
    many = deviate(rows_of(often, per_item=20), rows_of([0.0] * 1200, per_item=20), rows_of([1.0] * 1200, per_item=20))
    assert many["value"] == pytest.approx(once["value"])
    assert many["hi"] - many["lo"] == pytest.approx(once["hi"] - once["lo"], rel=0.1)


def test_at_a_floor_the_bounds_come_from_the_scores_own_intervals() -> None:
    """All three at 0 of 20: resampling shows no spread, where 0 of 20 surely is no knowledge of 0."""
    nil = rows_of([0.0] * 20)
    found = deviate(nil, nil, nil)
    wilson = aggregate(nil)["tasks"]["t"]["hi"]
    assert wilson > 10
    assert found["value"] == 0.0
    assert found["hi"] == pytest.approx(wilson)
    assert found["lo"] == pytest.approx(-math.hypot(wilson / 2, wilson / 2))
    lone = deviate(*[rows_of([1.0])] * 3)
    assert (lone["value"], lone["lo"], lone["reason"]) == (0.0, None, "a task has one problem")


def test_summary_finds_the_lowest_point_of_each_leg() -> None:
    heights = {0: 0.2, 0.25: 0.3, 0.5: 0.1, 0.75: 0.6, 1: 0.8}
    rows = {(a, 0.0): rows_of([1.0] * round(50 * h) + [0.0] * round(50 * (1 - h))) for a, h in heights.items()}
    rows |= {(1.0, b): rows_of([1.0] * (40 + k) + [0.0] * (10 - k)) for k, b in enumerate((0.25, 0.5, 0.75, 1.0), 1)}
    found = summarise(rows, 5, 2, None, 0)
    assert [row["average"]["value"] for row in found["path"]] == pytest.approx([20, 30, 10, 60, 80, 82, 84, 86, 88])
    assert [row["deviation"] and row["deviation"]["value"] for row in found["path"]] == pytest.approx(
        [None, -5, -40, -5, None, 0, 0, 0, None]
    )
    first, second = found["barrier"]
    assert (first["leg"], first["t"], first["a"], first["b"]) == (1, 0.5, 0.5, 0.0)
    assert first["value"] == pytest.approx(-40)
    assert first["hi"] < -20
    assert second["leg"] == 2
    assert found["grid"] is None
    assert (found["points"], found["samples"]) == (9, 450)


def save(folder: Path, seed: int, arch: str = "llama") -> Path:
    save_checkpoint(build_model(tiny_config(arch, 32, 2, len(TOKENIZER)), seed), TOKENIZER, folder)
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    for seed, name in enumerate(("base", "mid", "rl")):
        save(tmp_path / name / "model", seed)
    return {
        name: Artifact(kind="train", fingerprint=name, path=tmp_path / name, record={})
        for name in ("base", "mid", "rl")
    }


def config(**changes: Any) -> dict[str, Any]:
    tasks = {domain: TaskSpec.model_validate({"micro": {"domain": domain}}) for domain in ("math", "science")}
    spec = {
        "tasks": list(tasks), "items": 4, "samples": 2, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 6,
        "points": 3, "grid": None,
    }  # fmt: skip
    return {
        "spec": {**spec, **changes},
        "name": "core",
        "template": "think",
        "micro": MicroSpec().model_dump(mode="json"),
        "content": {},
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
        "seed": 11,
    }


def go(given: dict[str, Any], inputs: dict[str, Artifact], out: Path, **extra: Any) -> Result:
    out.mkdir()
    return landscape.run({**given, **extra}, inputs, out, Silent())


def test_every_point_answers_the_same_items_and_the_ends_are_the_checkpoints(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    given = config(grid=2)
    result = go(given, inputs, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    places = list(dict.fromkeys((row["a"], row["b"]) for row in table))
    assert places == [(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0, 1)]
    rows = {p: [{k: v for k, v in r.items() if k not in "ab"} for r in table if (r["a"], r["b"]) == p] for p in places}
    asked = [[(r["task"], r["item_id"], r["sample"], r["prompt_hash"]) for r in mine] for mine in rows.values()]
    assert all(one == asked[0] for one in asked)
    assert len(asked[0]) == result.metrics["samples"] / 6 == 2 * 4 * 2
    draw = draw_of(given)
    for place, name in ((BASE, "base"), (MID, "mid"), (RL, "rl")):
        assert rows[place] == draw.rows(load_model(inputs[name].model), TOKENIZER), "as the checkpoint itself answers"
    middle = load_model(inputs["mid"].model)
    set_weights(middle, open_sources([inputs[n].model for n in ("base", "mid", "rl")]), plane(0.0, 1.0))
    assert rows[0.0, 1.0] == draw.rows(middle, load_tokenizer(inputs["mid"].model))
    assert len({tuple(r["response"] for r in mine) for mine in rows.values()}) == 6
    assert result.tokens == sum(row["tokens"] for row in table)
    grid = result.metrics["grid"]
    assert (grid["a"], grid["b"]) == ([0.0, 1.0], [0.0, 1.0])
    again = summarise(rows, 3, 2, 2, 0)
    assert [[s["value"] for s in row] for row in again["grid"]["average"]] == [
        [s["value"] for s in row] for row in grid["average"]
    ]
    assert grid["average"][1][0] == result.metrics["path"][2]["average"], "the grid and the path share their points"


def test_a_stopped_run_goes_on_from_its_points(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config()
    whole = go(given, inputs, tmp_path / "whole")
    scratch, sampled = tmp_path / "scratch", []
    rows = landscape.Walker.rows

    def stops(self: Any, place: Any, *rest: Any) -> Any:
        if len(sampled) == 3:
            raise StageError("stopped")
        sampled.append(place)
        return rows(self, place, *rest)

    monkeypatch.setattr(landscape.Walker, "rows", stops)
    with pytest.raises(StageError, match="stopped"):
        go(given, inputs, tmp_path / "first", scratch=str(scratch))
    files = sorted(path.name for path in (scratch / "points").iterdir())
    assert files == ["0-0.parquet", "0.5-0.parquet", "1-0.parquet"]
    assert [place_name(place) for place in sampled] == ["0-0", "0.5-0", "1-0"]
    torn = scratch / "points" / "0.5-0.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    sampled.clear()
    monkeypatch.setattr(
        landscape.Walker, "rows", lambda self, place, *rest: (sampled.append(place), rows(self, place, *rest))[1]
    )
    result = go(given, inputs, tmp_path / "second", scratch=str(scratch))
    assert [place_name(place) for place in sampled] == ["0.5-0", "1-0.5", "1-1"]
    assert result.metrics == whole.metrics
    left, right = (pq.read_table(tmp_path / name / "samples.parquet") for name in ("whole", "second"))
    assert left.equals(right)
    sampled.clear()
    go(given, inputs, tmp_path / "third", scratch=str(scratch))
    assert sampled == [], "no model is even loaded"
    go(config(items=5), inputs, tmp_path / "fourth", scratch=str(scratch))
    assert len(sampled) == 5, "rows of other items are not taken for these"


def test_two_checkpoints_have_one_leg(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    walker = landscape.Walker([inputs["base"].model, inputs["rl"].model])
    draw = draw_of(config())
    places = all_places(3, walker.legs, None)
    rows = landscape.sample_points(walker, draw, places, tmp_path / "points")
    assert list(rows) == [(0, 0), (0.5, 0), (1, 0)]
    assert rows[MID] == draw.rows(load_model(inputs["rl"].model), TOKENIZER)
    assert read_rows(tmp_path / "points" / "0.5-0.parquet") == rows[0.5, 0.0]
    assert [row["leg"] for row in summarise(rows, 3, 1, None, 0)["path"]] == [1, 1, 1]
    with pytest.raises(ValueError):
        landscape.Walker([inputs["base"].model])


def test_checkpoints_that_do_not_fit_are_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    save(tmp_path / "granite" / "model", 0, "granite")
    other = Artifact(kind="train", fingerprint="x", path=tmp_path / "granite", record={})
    with pytest.raises(CheckpointError, match="different architectures"):
        go(config(), {**inputs, "rl": other}, tmp_path / "out")
