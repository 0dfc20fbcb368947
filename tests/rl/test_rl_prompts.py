"""Selection on counts made by hand, and both stages from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prismlab.data.items import Item
from prismlab.errors import DataError, EndBranch
from prismlab.rl.prompts import Chosen, Scored, count_correct, histogram, run_prompts, run_scoring, select
from prismlab.run.step import Artifact, Silent
from prismlab.score import read_rows, write_rows
from prismlab.study.rl import PromptSpec, ScoringSpec
from prismlab.study.spec import TaskSpec
from prismlab.study.world import MicroSpec

COUNTS = [0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4]
"""Correct of 4 samples, per candidate."""


class Notes(Silent):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def spec(**changes: Any) -> dict[str, Any]:
    given = {"scoring": "by-mid", "tasks": ["sums"]}
    return PromptSpec.model_validate({**given, **changes}).model_dump(mode="json", by_alias=True)


@pytest.fixture
def scored(make_item: Callable[..., Item]) -> list[Scored]:
    rows = [Scored(item=make_item(f"q{at}"), correct=c, samples=4, unscored=0) for at, c in enumerate(COUNTS)]
    return [*rows, Scored(item=make_item("odd"), correct=2, samples=4, unscored=1)]


def corrects(chosen: Chosen) -> list[int]:
    return [one.correct for one in chosen.prompts]


def test_unbalanced_takes_all_but_never_and_always(scored: list[Scored]) -> None:
    chosen = select(scored, "sums", spec(), 4, seed=0)
    assert corrects(chosen) == [1, 1, 2, 3]
    assert (chosen.available, chosen.set_aside, chosen.topped_up) == (4, 1, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"min_correct": 2}, [2, 3]),
        ({"max_correct": 1}, [1, 1]),
        ({"min_correct": 0, "max_correct": 4}, COUNTS),
        ({"overrides": {"sums": (1, 1)}}, [1, 1]),
        ({"overrides": {"other": (1, 1)}}, [1, 1, 2, 3]),
        ({"overrides": {"sums": (4, 4)}, "max_correct": 2}, [4, 4]),
        ({"min_correct": 3, "max_correct": 2}, []),
    ],
)
def test_range(scored: list[Scored], changes: dict[str, Any], expected: list[int]) -> None:
    assert corrects(select(scored, "sums", spec(**changes), 4, seed=0)) == expected


def test_limit_draws_by_seed(scored: list[Scored]) -> None:
    drawn = [select(scored, "sums", spec(per_task=2), 4, seed=seed) for seed in range(40)]
    assert all(len(chosen.prompts) == 2 and chosen.available == 4 for chosen in drawn)
    assert all(set(corrects(chosen)) <= {1, 2, 3} for chosen in drawn)
    picks = {tuple(one.item.id for one in chosen.prompts) for chosen in drawn}
    assert picks == {("q5", "q6"), ("q5", "q7"), ("q5", "q8"), ("q6", "q7"), ("q6", "q8"), ("q7", "q8")}
    assert drawn[3] == select(scored, "sums", spec(per_task=2), 4, seed=3)


def test_balanced_tops_up_with_unsolved(scored: list[Scored]) -> None:
    drawn = [select(scored, "sums", spec(mix="balanced", per_task=7), 4, seed=seed) for seed in range(20)]
    for chosen in drawn:
        assert sorted(corrects(chosen)) == [0, 0, 0, 1, 1, 2, 3]
        assert (chosen.available, chosen.topped_up) == (4, 3)
    assert len({tuple(one.item.id for one in chosen.prompts) for chosen in drawn}) > 1


def test_balanced_thins_and_does_not_repeat(scored: list[Scored]) -> None:
    few = select(scored, "sums", spec(mix="balanced", per_task=3), 4, seed=1)
    assert len(few.prompts) == 3
    assert min(corrects(few)) == 1
    everything = select(scored, "sums", spec(mix="balanced", per_task=50), 4, seed=1)
    assert sorted(corrects(everything)) == [0, 0, 0, 0, 0, 1, 1, 2, 3]
    assert everything.topped_up == 5
    # Where the range itself holds the unsolved, they are not taken twice.
    wide = select(scored, "sums", spec(mix="balanced", per_task=50, min_correct=0), 4, seed=1)
    assert sorted(corrects(wide)) == [0, 0, 0, 0, 0, 1, 1, 2, 3]
    assert wide.topped_up == 0


def rows_of(items: Sequence[Item], scores: Sequence[Sequence[float | None]]) -> list[dict[str, Any]]:
    """Sample rows with these scores."""
    return [
        {
            "item_id": item.id,
            "problem": item.id,
            "task": item.task,
            "domain": item.domain,
            "sample": sample,
            "prompt_hash": "0",
            "question": item.question,
            "answer": item.answer,
            "response": "",
            "tokens": 3,
            "finished": True,
            "nll": 1.0,
            "score": score,
            "verdict": "no_verdict" if score is None else "right" if score else "wrong",
            "reason": "",
            "form_ok": True,
        }
        for item, mine in zip(items, scores, strict=True)
        for sample, score in enumerate(mine)
    ]


def test_counting_keeps_missing_apart(make_item: Callable[..., Item]) -> None:
    # Two tasks may share an id.
    items = [make_item("a"), make_item("b"), make_item("a", task="quiz"), make_item("c", task="quiz")]
    scores = [[1.0, 0.0], [0.0, None], [1.0, 1.0], [0.0, 0.0]]
    counted = count_correct(items, rows_of(items, scores))
    assert [(one.correct, one.samples, one.unscored) for one in counted] == [(1, 2, 0), (0, 2, 1), (2, 2, 0), (0, 2, 0)]
    assert histogram(counted, 2) == [1, 1, 1]
    with pytest.raises(DataError, match="'lost' has no sample"):
        count_correct([*items, make_item("lost")], rows_of(items, scores))


@pytest.fixture
def scoring(tmp_path: Path, make_item: Callable[..., Item], artifact: Callable[..., Artifact]) -> Artifact:
    folder = tmp_path / "scoring"
    folder.mkdir()
    items = [make_item(f"q{at}") for at in range(4)] + [make_item("z", task="quiz", domain="science")]
    scores = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, None], [0.0, 0.0]]
    write_rows(rows_of(items, scores), folder / "samples.parquet")
    (folder / "items.jsonl").write_text("".join(json.dumps(item.to_json()) + "\n" for item in items))
    return artifact("scoring", folder)


def test_prompts_stage(scoring: Artifact, tmp_path: Path, make_item: Callable[..., Item]) -> None:
    notes = Notes()
    config = {"spec": spec(tasks=["sums", "quiz"]), "samples": 2, "seed": 1}
    result = run_prompts(config, {"scoring": scoring}, tmp_path, notes)
    (line,) = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert json.loads(line) == {**make_item("q0").to_json(), "correct": 1, "samples": 2}
    assert result.metrics == {
        "sums": {"available": 1, "chosen": 1, "mean_correct": 1.0, "set_aside": 1, "topped_up": 0},
        "quiz": {"available": 0, "chosen": 0, "mean_correct": None, "set_aside": 0, "topped_up": 0},
    }
    assert any("sums: 1 candidates set aside" in said for said in notes.said)
    assert any("quiz: no prompt selected" in said for said in notes.said)


def test_no_prompt_at_all_ends_the_branch(scoring: Artifact, tmp_path: Path) -> None:
    config = {"spec": spec(tasks=["quiz"]), "samples": 2, "seed": 1}
    with pytest.raises(EndBranch, match=r"no prompt .* quiz \[1, 0, 0\]"):
        run_prompts(config, {"scoring": scoring}, tmp_path, Silent())


def test_task_that_was_not_scored(scoring: Artifact, tmp_path: Path) -> None:
    config = {"spec": spec(tasks=["riddles"]), "samples": 2, "seed": 1}
    with pytest.raises(DataError, match="'riddles' was not scored"):
        run_prompts(config, {"scoring": scoring}, tmp_path, Silent())


def test_scoring_stage(start: Path, tmp_path: Path, artifact: Callable[..., Artifact]) -> None:
    """Tasks of the micro world and of a file, scored by the tiny model, then read by the next stage."""
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"q": f"{n}+1?", "a": str(n + 1)}) + "\n" for n in range(9)))
    given = {
        "files": ["sums.jsonl"],
        "domain": "math",
        "fields": {"question": "q", "answer": "a"},
        "verifier": "number",
    }
    tasks = {"own": TaskSpec.model_validate(given), "micro": TaskSpec.model_validate({"micro": {"domain": "science"}})}
    asked = ScoringSpec(by="mid", tasks=["own", "micro"], candidates=5, samples=3, max_new_tokens=4)
    config = {
        "spec": asked.model_dump(mode="json", by_alias=True),
        "tasks": {name: task.model_dump(mode="json", by_alias=True) for name, task in tasks.items()},
        "micro": MicroSpec().model_dump(mode="json"),
        "template": "think",
        "files": {"own": [str(file)]},
        "seed": 4,
    }
    outs = [tmp_path / name for name in ("first", "second")]
    for out in outs:
        out.mkdir()
        result = run_scoring(config, {"scorer": artifact("train", start)}, out, Silent())
    rows = read_rows(outs[0] / "samples.parquet")
    assert rows == read_rows(outs[1] / "samples.parquet")
    assert len(rows) == 2 * 5 * 3
    # A tiny random model never keeps the think format, and outside it nothing counts.
    assert {row["score"] for row in rows} == {0.0}
    assert result.metrics == {
        name: {"candidates": 5, "histogram": [5, 0, 0, 0], "set_aside": 0} for name in ("own", "micro")
    }
    assert result.tokens == sum(row["tokens"] for row in rows)
    next_config = {"spec": spec(tasks=["own", "micro"], mix="balanced", per_task=2), "samples": 3, "seed": 1}
    chosen = run_prompts(next_config, {"scoring": artifact("scoring", outs[0])}, tmp_path, Silent())
    assert [chosen.metrics[name]["chosen"] for name in ("own", "micro")] == [2, 2]
