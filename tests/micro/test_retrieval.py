"""Retrieval questions read back by an independent parser; their length, splits and specs; scores by length."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

import pytest
from pydantic import ValidationError

from prismlab.data.items import load_items
from prismlab.data.sources import documents, micro_prompt
from prismlab.errors import DataError
from prismlab.evaluate.sampled import aggregate
from prismlab.micro.retrieval import IDLE, KEYS, REPEATED, retrieval_questions
from prismlab.micro.world import split_of
from prismlab.study.spec import MicroSource, MicroTask, SourceSpec
from prismlab.study.world import MicroSpec

MICRO: dict[str, Any] = MicroSpec().model_dump(mode="json")


def test_alphabets_tell_keys_apart_and_from_idle_text() -> None:
    letters = "".join(KEYS.values())
    assert len(set(letters)) == len(letters)
    assert not set(letters) & set("".join(IDLE))


@pytest.mark.parametrize("tokens", [96, 97, 131, 512, 2000])
def test_the_answer_stands_in_the_question(tokens: int) -> None:
    for one in islice(retrieval_questions("train", 3, tokens), 200):
        stated = re.findall(r"\b(\w+)=(\w)\.", one.question)
        assert len(stated) == len(KEYS) + REPEATED
        values = dict(stated)
        assert all(values[key] == value for key, value in stated), "a key has one value"
        assert values.keys() == KEYS.keys()
        assert all(value in KEYS[key] for key, value in values.items())
        asked = re.fullmatch(r".* (\w+)\?", one.question, re.DOTALL)
        assert asked
        assert one.answer == values[asked[1]]
        assert len(one.question.encode()) == tokens


def test_statements_lie_all_over_the_question() -> None:
    places = [
        m.start() for one in islice(retrieval_questions("test", 0, 1000), 200) for m in re.finditer("=", one.question)
    ]
    quarters = [sum(at * 250 <= place < (at + 1) * 250 for place in places) / len(places) for at in range(4)]
    assert all(0.2 < share < 0.3 for share in quarters)


def test_seeds_splits_and_bounds() -> None:
    first, again, other = (
        [one.id for one in islice(retrieval_questions("train", seed, 128), 300)] for seed in (0, 0, 1)
    )
    assert first == again
    assert not set(first) & set(other)
    tested = [one.key for one in islice(retrieval_questions("test", 0, 128), 300)]
    assert {split_of("retrieval", key) for key in tested} == {"test"}
    assert not set(tested) & set(first)
    with pytest.raises(DataError, match="retrieval over 95 tokens: 96 to"):
        retrieval_questions("train", 0, 95)


@pytest.mark.parametrize("spec", [MicroSource, MicroTask])
def test_a_length_is_for_retrieval_and_needed_there(spec: Any) -> None:
    assert spec(domain="retrieval", tokens=256).tokens == 256
    for wrong in ({"domain": "retrieval"}, {"domain": "math", "tokens": 256}):
        with pytest.raises(ValidationError, match="which needs it"):
            spec(**wrong)
    with pytest.raises(ValidationError, match="greater than or equal to 96"):
        spec(domain="retrieval", tokens=50)


def test_a_source_and_a_task_of_retrieval() -> None:
    source = {"micro": {"domain": "retrieval", "form": "direct", "tokens": 128}}
    found = list(islice(documents("long", source, MICRO, None, "think", 0), 20))
    assert all(re.search(r"\?\n\w$", text) and len(text) == 130 for text in found)
    items = load_items("far", {"micro": {"domain": "retrieval", "tokens": 200}}, MICRO, "test", 5, None, 0)
    assert [len(item.question) for item in items] == [200] * 5
    assert {item.verifier for item in items} == {"exact"}


@pytest.mark.parametrize(("loss", "prompt"), [("answer", 129), ("all", 0)])
def test_the_loss_may_be_taken_on_answers_alone(loss: str, prompt: int) -> None:
    source = {"micro": {"domain": "retrieval", "form": "direct", "tokens": 128}, "loss": loss}
    assert micro_prompt(source, "think") == prompt
    text = next(documents("long", source, MICRO, None, "think", 0))
    assert prompt == 0 or re.fullmatch(r"\w", text[prompt:])
    assert SourceSpec.model_validate({"micro": {"domain": "retrieval", "tokens": 128}, "loss": loss}).loss == loss
    with pytest.raises(ValidationError, match="or retrieval"):
        SourceSpec.model_validate({"micro": {"domain": "math"}, "loss": "answer"})


def test_scores_by_length() -> None:
    def row(task: str, item: int, score: float) -> dict[str, Any]:
        shared = {"domain": "retrieval", "finished": True, "score": score}
        return {"task": task, "item_id": str(item), "problem": str(item), **shared}

    rows = [row(task, n, float(n < right)) for task, right in (("a", 2), ("b", 6), ("c", 8)) for n in range(8)]
    found = aggregate(rows, {"a": 128, "b": 128, "c": 512})
    assert list(found["lengths"]) == ["128", "512"]
    assert found["lengths"]["128"]["value"] == pytest.approx((25 + 75) / 2)
    assert found["lengths"]["512"]["value"] == 100
    assert found["lengths"]["128"]["items"] == 16
    assert "lengths" not in aggregate(rows)
