"""Prompt sets beside their counts: no evaluation item, wordings at random, the study's mixes, resumed scoring."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prismlab import score as score_module
from prismlab.data.items import Item
from prismlab.errors import EndBranch
from prismlab.model.generate import TransformersSampler
from prismlab.rl.instructions import CHOICE, OPEN, with_instruction
from prismlab.rl.prompts import run_prompts, run_scoring
from prismlab.run.step import Artifact, Silent
from prismlab.score import read_rows, write_rows
from prismlab.study.rl import PromptSpec, ScoringSpec
from prismlab.study.spec import TaskSpec
from prismlab.study.world import MicroSpec
from prismlab.verify.answers import verify

LONG = (
    "A train leaves the northern harbour at dawn carrying forty crates of copper wire and returns at dusk with half of "
    "them; how many crates were sold on the way?"
)


def spec(**changes: Any) -> dict[str, Any]:
    return PromptSpec.model_validate({"scoring": "all", "tasks": ["sums"], **changes}).model_dump(mode="json")


@pytest.fixture
def scored(
    tmp_path: Path, make_item: Callable[..., Item], artifact: Callable[..., Artifact]
) -> Callable[[Sequence[Item], Sequence[int], int], Artifact]:
    """A scoring of these items with so many correct of ``n``."""

    def make(items: Sequence[Item], correct: Sequence[int], n: int) -> Artifact:
        folder = tmp_path / "scoring"
        folder.mkdir()
        blank: dict[str, Any] = dict.fromkeys(score_module.SCHEMA.names, "")
        blank |= {"tokens": 1, "finished": True, "nll": 0.0, "form_ok": True}
        rows = [
            {**blank, "item_id": item.id, "task": item.task, "sample": s, "score": float(s < right)}
            for item, right in zip(items, correct, strict=True)
            for s in range(n)
        ]
        write_rows(rows, folder / "samples.parquet")
        (folder / "items.jsonl").write_text("".join(json.dumps(item.to_json()) + "\n" for item in items))
        return artifact("scoring", folder)

    return make


def chosen_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


def test_the_study_s_mixes(scored: Callable[..., Artifact], make_item: Callable[..., Item], tmp_path: Path) -> None:
    """Math with exactly 1 of 16, code with at least 1; balanced: topped up with prompts at 0 of 16; one scoring."""
    counts = [0, 0, 0, 1, 1, 2, 9, 16]
    items = [make_item(f"{task}{at}", task=task) for task in ("math", "code") for at in range(8)]
    scoring = scored(items, counts * 2, 16)
    mixes = {
        "unbalanced": {"max_correct": 16, "overrides": {"math": (1, 1)}},
        "balanced": {"max_correct": 16, "overrides": {"math": (1, 1)}, "mix": "balanced", "per_task": 7},
    }
    found: dict[str, Counter[tuple[str, int]]] = {}
    for name, changes in mixes.items():
        out = tmp_path / name
        out.mkdir()
        config = {"spec": spec(tasks=["math", "code"], **changes), "samples": 16, "seed": 1}
        metrics = run_prompts(config, {"scoring": scoring}, out, Silent()).metrics
        found[name] = Counter((row["task"], row["correct"]) for row in chosen_of(out))
        assert all(row["samples"] == 16 for row in chosen_of(out))
    code = {("code", 1): 2, ("code", 2): 1, ("code", 9): 1, ("code", 16): 1}
    assert found["unbalanced"] == {("math", 1): 2, **code}
    assert found["balanced"] == {("math", 1): 2, ("math", 0): 3, **code, ("code", 0): 2}
    assert (metrics["math"]["topped_up"], metrics["code"]["topped_up"]) == (3, 2)


def leaky(tmp_path: Path, action: str) -> dict[str, Any]:
    """Config of a prompt set whose study evaluates a file's items."""
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"q": LONG, "a": "20"}) + "\n" + json.dumps({"q": "2+2?", "a": "4"}) + "\n")
    task = {"files": ["test.jsonl"], "domain": "math", "fields": {"question": "q", "answer": "a"}, "verifier": "number"}
    return {
        "spec": spec(max_correct=2),
        "samples": 2,
        "seed": 1,
        "decontaminate": {"n": 13, "action": action, "allow": [], "tasks": {"test": 0}},
        "tasks": {"test": TaskSpec.model_validate(task).model_dump(mode="json")},
        "micro": MicroSpec().model_dump(mode="json"),
        "files": {"test": [str(file)]},
    }


@pytest.mark.parametrize(("action", "left"), [("drop", ["clean"]), ("report", ["copy", "short", "clean"])])
def test_evaluation_items_among_the_candidates(
    action: str, left: list[str], scored: Callable[..., Artifact], make_item: Callable[..., Item], tmp_path: Path
) -> None:
    items = [
        make_item("copy", question=f"Please solve. {LONG}", answer="20"),
        make_item("short", question="2 + 2 ?", answer="4"),
        make_item("clean", question="A gardener plants nine rows of seven tulips; how many tulips?", answer="63"),
    ]
    notes: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    result = run_prompts(leaky(tmp_path, action), {"scoring": scored(items, [1, 1, 1], 2)}, tmp_path, Told())
    assert [row["id"] for row in chosen_of(tmp_path)] == left
    assert result.metrics["sums"]["contaminated"] == 2
    assert any("2 candidates hold an evaluation item" in text for text in notes)
    hits = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    kinds = {(hit["candidate"]["id"], hit["kind"], hit["item"] != "") for hit in hits if hit["counts"]}
    assert kinds == {("copy", "exact", True), ("short", "same", True)}


def test_nothing_left_after_decontamination(
    scored: Callable[..., Artifact], make_item: Callable[..., Item], tmp_path: Path
) -> None:
    with pytest.raises(EndBranch, match=r"sums \[0, 0, 0\]"):
        run_prompts(
            leaky(tmp_path, "drop"), {"scoring": scored([make_item("x", question=LONG)], [1], 2)}, tmp_path, Silent()
        )


def test_instructions_at_random(
    scored: Callable[..., Artifact], make_item: Callable[..., Item], tmp_path: Path
) -> None:
    items = [make_item(f"q{at}", question=f"{{x}} = {at}, what is x?", task="quiz") for at in range(60)]
    config = {"spec": spec(tasks=["quiz"], max_correct=2, randomise=["quiz"]), "samples": 2, "seed": 1}
    run_prompts(config, {"scoring": scored(items, [1] * 60, 2)}, tmp_path, Silent())
    rows = chosen_of(tmp_path)
    assert {row["meta"]["instruction"] for row in rows} == set(range(len(OPEN)))
    for row, item in zip(rows, items, strict=True):
        wording = OPEN[row["meta"]["instruction"]]
        assert row["question"] == wording.replace("{question}", item.question)
        assert (row["answer"], row["id"]) == (item.answer, item.id)
    assert with_instruction(items[3], 1) == with_instruction(items[3], 1)
    assert any(with_instruction(item, 1) != with_instruction(item, 2) for item in items)


def test_an_instruction_changes_no_verdict(make_item: Callable[..., Item]) -> None:
    plain = make_item("a", question="Pick.\nA. red\nB. blue", answer="B", verifier="choice", choices=("red", "blue"))
    for seed in range(12):
        shown = with_instruction(plain, seed)
        assert plain.question in shown.question
        assert shown.question == CHOICE[shown.meta["instruction"]].replace("{question}", plain.question)
        assert verify(shown, "<think> x </think> B", strict_format=True).score == 1.0
        assert verify(shown, "<think> x </think> A", strict_format=True).score == 0.0


def test_a_stopped_scoring_samples_nothing_twice(
    start: Path, tmp_path: Path, artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ScoringSpec(by="mid", tasks=["micro"], candidates=10, samples=2, max_new_tokens=4)
    config = {
        "spec": asked.model_dump(mode="json"),
        "tasks": {"micro": TaskSpec.model_validate({"micro": {"domain": "science"}}).model_dump(mode="json")},
        "micro": MicroSpec().model_dump(mode="json"),
        "template": "think",
        "seed": 4,
    }
    monkeypatch.setattr(score_module, "CHUNK_SAMPLES", 6)
    calls: list[int] = []
    sample = TransformersSampler.sample

    def counted(self: Any, prompts: Any, *args: Any) -> Any:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return sample(self, prompts, *args)

    monkeypatch.setattr(TransformersSampler, "sample", counted)
    inputs, scratch = {"scorer": artifact("train", start)}, tmp_path / "scratch"
    stop = -1
    for name in ("whole", "out"):
        (tmp_path / name).mkdir()
    run_scoring(config, inputs, tmp_path / "whole", Silent())
    assert calls == [10]
    calls, stop = [], 2
    with pytest.raises(KeyboardInterrupt):
        run_scoring({**config, "scratch": str(scratch)}, inputs, tmp_path / "out", Silent())
    torn = sorted((scratch / "samples").iterdir())[1]
    torn.write_bytes(torn.read_bytes()[:-9])
    done: list[int] = []

    class Counting(Silent):
        def advance(self, n: int = 1, **shown: float | str) -> None:
            done.append(n)

    calls, stop = [], -1
    run_scoring({**config, "scratch": str(scratch)}, inputs, tmp_path / "out", Counting())
    assert calls == [3, 3, 1], "the first chunk is there, the second was torn"
    assert sum(done) == 20
    rows = [read_rows(tmp_path / name / "samples.parquet") for name in ("whole", "out")]
    assert [{**row, "nll": None} for row in rows[1]] == [{**row, "nll": None} for row in rows[0]]
