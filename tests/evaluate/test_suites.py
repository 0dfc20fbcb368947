"""Suites as facts, sets as items, scores as functions of rows, and fetching from a stand-in for the hub."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from prismlab.errors import DataError, SpecError
from prismlab.evaluate import fetch, ruler
from prismlab.evaluate.harness_scores import CHOICES, normalised, scaled, scores_of
from prismlab.evaluate.judged import choice_row, measures, sample_row, suite_scores, without
from prismlab.evaluate.questions import load_questions
from prismlab.evaluate.sampled import task_score
from prismlab.evaluate.sets import ChoiceItem, items_hash, load_set, read_items
from prismlab.evaluate.suites import SUITES, suite_named
from prismlab.evaluate.work import CHUNK_CHARACTERS, CHUNK_ITEMS, chunks_of
from prismlab.model.generate import prompt_ids
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Silent
from prismlab.score import SCHEMA
from prismlab.verify.answers import verify

BENCHMARKS = {one.name: one for one in SUITES["retention"].benchmarks}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_facts_are_there_without_torch_and_are_whole() -> None:
    code = "import sys, prismlab.evaluate.suites; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(SUITES) == {"retention", "reasoning", "leaderboard-v1", "leaderboard-v2", "ruler", "long", "micro"}
    for suite in SUITES.values():
        names = [one.name for one in suite.benchmarks]
        assert len(set(names)) == len(names)
        for one in suite.benchmarks:
            assert one.licence
            assert one.source
            assert one.metric
            assert one.hub is None or not one.hub.verified, "no id could be looked up when this was written"
    reasoning = {one.name: one.sampling for one in SUITES["reasoning"].benchmarks}
    assert (reasoning["math500"].samples, reasoning["math500"].temperature, reasoning["math500"].top_p) == (
        64,
        0.6,
        0.95,
    )  # type: ignore[union-attr]
    assert (reasoning["codeforces"].samples, reasoning["codeforces"].temperature) == (3, 0.7)  # type: ignore[union-attr]
    with pytest.raises(SpecError, match="there are retention"):
        suite_named("retentoin")
    with pytest.raises(SpecError, match="no benchmark 'mmul'"):
        SUITES["retention"].named(("mmul",))


def test_what_the_harness_needs_is_pinned() -> None:
    """CI installs with ``constraints.txt``: a release of one of the harness's packages moves no number by itself."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    pinned = dict(re.sub(r"[-_.]+", "-", line.lower()).split("==") for line in lines if "==" in line)
    asked = [re.split(r"[^\w.-]", one)[0] for one in requires("lm_eval") or () if "extra ==" not in one]
    missing = [name for name in asked if re.sub(r"[-_.]+", "-", name.lower()) not in pinned]
    assert asked
    assert not missing


def test_hub_rows_and_text_copies_give_the_same_items(tmp_path: Path) -> None:
    pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "hellaswag": (
            {"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "label": "1"}
            | {"endings": ["goes [x] up.", "sings."]},
            {"query": "Roof: A man sits. He", "choices": ["goes up.", "sings."], "gold": 1},
        ),
        "arc-easy": (
            {"id": "q", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
            {"id": "q", "query": "Question: Why?\nAnswer:", "choices": ["a", "b"], "gold": 1},
        ),
        "openbookqa": (
            {"id": "q", "question_stem": "The sun", "answerKey": "A"}
            | {"choices": {"text": ["a", "b"], "label": ["A", "B"]}},
            {"id": "q", "query": "Question: The sun\nAnswer:", "choices": ["a", "b"], "gold": 0},
        ),
        "mmlu": (
            {"subject": "anatomy", "question": "Which? ", "choices": ["w", "x", "y", "z"], "answer": 2},
            {"subject": "anatomy", "question": "Which?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"},
        ),
        "boolq": (
            {"question": "is it so", "passage": "It is.", "answer": True},
            {"question": "is it so", "passage": "It is.", "label": 1},
        ),
    }  # fmt: skip
    for name, rows in pairs.items():
        made = [read_items(name, written(tmp_path / f"{name}-{k}.jsonl", [row])) for k, row in enumerate(rows)]
        assert made[0] == made[1], name
        assert items_hash(made[0]) == items_hash(made[1])
    # HellaSwag's second space goes only where the harness takes it: known from its own code.
    item = read_items("hellaswag", tmp_path / "hellaswag-0.jsonl")[0]
    assert item.pairs == [("Roof: A man sits. He", " goes up."), ("Roof: A man sits. He", " sings.")]


def test_the_hash_knows_every_change_and_no_order() -> None:
    one = ChoiceItem("a", "q", ("c",), (" x", " y"), ("x", "y"), (0,))
    two = replace(one, id="b")
    assert items_hash([one, two]) == items_hash([two, one])
    changed = [replace(one, contexts=("d",)), replace(one, right=(1,)), replace(one, continuations=(" x", " z")), two]
    assert len({items_hash([item]) for item in (one, *changed)}) == 5


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "right choice is 2 of 2"),
        ({"query": "q", "choices": ["a"], "gold": 0}, "two or more"),
        ({"query": "q", "choices": ["a", 3], "gold": 0}, "each with text"),
        ({"query": "q", "choices": "ab", "gold": 0}, "must be a list"),
        ({"choices": ["a", "b"], "gold": 0}, "no field 'query'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"query": "q", "choices": ["a", "b"], "gold": 0}
    with pytest.raises(DataError, match=reason) as caught:
        read_items("hellaswag", written(tmp_path / "x.jsonl", [good, row]))
    assert "x.jsonl:2" in str(caught.value)


def test_a_missing_set_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prism eval fetch retention --to DIR"):
        load_set(BENCHMARKS["mmlu"], [], "retention", 0)
    row = {"subject": "anatomy", "question": "Which?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"}
    files = [written(tmp_path / "mmlu_test.jsonl", [row]), written(tmp_path / "mmlu_dev.jsonl", [row])]
    asked = load_set(BENCHMARKS["mmlu"], files, "retention", 1)[0].contexts[0]
    question = "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    head = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    assert asked == f"{head}{question} C\n\n{question}"
    with pytest.raises(DataError, match="2 worked examples of anatomy were asked for, there are 1"):
        load_set(BENCHMARKS["mmlu"], files, "retention", 2)


def test_measures_are_the_formulas() -> None:
    loglik, choices = [-4.0, -6.0, -9.0], ["ab", "äbcd", "abcdefg"]
    found = measures(loglik, choices, (1,))
    # By characters -2, -1.5, -1.29; by bytes -2, -1.2, -1.29.
    assert (found["acc"], found["acc_norm"], found["acc_bytes"]) == (0.0, 0.0, 1.0)
    for right in ((0,), (0, 2), (1, 2)):
        assert measures(loglik, choices, right)["mc2"] == pytest.approx(softmax(loglik)[list(right)].sum(), abs=1e-12)
    # Where exp() of either is 0 there is a share all the same.
    far = measures([-2000.0, -2000.0 - math.log(3)], ["a", "b"], (0,))
    assert far["mc2"] == pytest.approx(0.75, abs=1e-12)
    assert measures([-1.0, -1.0], ["a", "b"], (1,))["acc"] == 0.0, "of equal choices the first is taken"


def rows_of(name: str, scores: list[float], domain: str = "math") -> list[dict[str, Any]]:
    item = ChoiceItem("", "q", ("c",), (" x", " y"), ("x", "y"), (0,))
    benchmark = replace(BENCHMARKS["winogrande"], name=name, domain=domain)
    values = {1.0: [(-1.0, 1), (-2.0, 1)], 0.0: [(-2.0, 1), (-1.0, 1)]}
    made = [choice_row(benchmark, replace(item, id=f"{k}"), values[score]) for k, score in enumerate(scores)]
    return [sample_row(row) for row in made]


def test_rows_are_sample_rows_and_items_in_training_data_are_told() -> None:
    rows = rows_of("one", [1.0, 0.0, 1.0, 1.0])
    assert set(rows[0]) == set(SCHEMA.names)
    assert [row["verdict"] for row in rows] == ["right", "wrong", "right", "right"]
    kept, told = without(rows, frozenset({("one", "1"), ("two", "0")}))
    assert [row["item_id"] for row in kept] == ["0", "2", "3"]
    assert told == {"one": {"items": 1, "score": task_score(rows)}}
    assert told["one"]["score"]["value"] == 75.0


def test_the_average_of_reasoning_is_the_study_s_and_needs_all_its_parts() -> None:
    suite = SUITES["reasoning"]
    scores = {"livecodebench": [1.0, 0.0], "codeforces": [0.0, 0.0], "aime24": [1.0, 1.0], "aime25": [1.0, 0.0]}
    scores |= {"math500": [0.0, 0.0], "gpqa-diamond": [1.0, 0.0], "aime26": [1.0, 1.0]}
    domains = {one.name: one.domain for one in suite.benchmarks}
    rows = [row for name, mine in scores.items() for row in rows_of(name, mine, domains[name])]
    # code (50 + 0)/2, math (100 + 50 + 0)/3 without AIME26, science 50.
    found = suite_scores(rows, suite)
    assert found["average"]["value"] == pytest.approx((25 + 50 + 50) / 3)
    less = suite_scores([row for row in rows if row["task"] != "codeforces"], suite)
    assert less["average"]["value"] is None
    assert "codeforces" in less["domains"]["code"]["reason"]


@pytest.mark.parametrize(
    ("value", "chance", "wanted"), [(0.6, 0.25, 46.6667), (0.2, 0.25, 0.0), (1.0, 0.5, 100.0), (0.3, 0.0, 30.0)]
)
def test_the_second_leaderboard_s_scale(value: float, chance: float, wanted: float) -> None:
    """The first is the example on the site's page."""
    assert normalised(value, chance) == pytest.approx(wanted, abs=1e-4)


def test_items_in_training_data_count_in_no_score_of_the_harness() -> None:
    """Two subtasks of the second leaderboard, by hand: pooled right answers, normalised, then their mean."""
    names = "leaderboard_musr_murder_mysteries", "leaderboard_musr_object_placements"
    rows = [
        {"item_id": f"{name}:{k:05d}", "problem": f"{name}:{k:05d}", "task": "musr", "finished": None, "score": score}
        for name, right in zip(names, (15, 8), strict=True)
        for k, score in enumerate([1.0] * right + [0.0] * (20 - right))
    ]
    suite, judged = SUITES["leaderboard-v2"], {"musr": rows}
    whole = scores_of(suite, judged)
    assert "contaminated" not in whole
    excluded = frozenset(("musr", f"{names[0]}:{k:05d}") for k in range(10))
    found = scores_of(suite, judged, excluded | {("elsewhere", "x")})
    by_hand = (normalised(5 / 10, 1 / 2) + normalised(8 / 20, 1 / 5)) / 2
    assert found["tasks"]["musr"]["value"] == pytest.approx(by_hand)
    assert found["tasks"]["musr"]["items"] == 30
    assert found["contaminated"] == {"musr": {"items": 10, "score": whole["tasks"]["musr"]}}
    # Nothing is left of a subtask: a mean over the others would be another one under the same name.
    gone = scores_of(suite, judged, frozenset(("musr", f"{names[1]}:{k:05d}") for k in range(20)))
    assert (gone["tasks"]["musr"]["value"], gone["average"]["value"]) == (None, None)
    assert names[1] in gone["tasks"]["musr"]["reason"]


def test_scaled_bounds_and_choices() -> None:
    score = {"value": 70.0, "lo": 45.0, "hi": 90.0, "items": 10}
    assert scaled(score, 0.5) == {"value": pytest.approx(40.0), "lo": 0.0, "hi": pytest.approx(80.0), "items": 10}
    assert scaled({**score, "value": None, "lo": None, "hi": None}, 0.5)["value"] is None
    assert len(CHOICES) == 24 + 3 + 2


def test_chunks_hold_every_item_once_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    items = [
        ChoiceItem(f"{k}", "q", ("x" * int(rng.integers(1, 4000)),), (" a", " b"), ("a", "b"), (0,))
        for k in range(1500)
    ]
    chunks = list(chunks_of(items))
    assert sorted(item.id for chunk in chunks for item in chunk) == sorted(item.id for item in items)
    assert chunks == list(chunks_of(items[::-1]))
    assert max(map(len, chunks)) <= CHUNK_ITEMS
    assert max(sum(len(item.contexts[0]) + 4 for item in chunk) for chunk in chunks) <= CHUNK_CHARACTERS


class Fake:
    """A data set as the package ``datasets`` has it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def to_parquet(self, path_or_buf: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(self.rows), path_or_buf)


def test_what_is_fetched_can_be_read_and_is_not_fetched_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def load(hub: Any) -> Fake:
        asked.append(f"{hub.id} {hub.config} {hub.split} {hub.revision}")
        row = {"id": "q1", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
        return Fake([row, {**row, "id": "q2"}])

    chosen = SUITES["retention"].named(("arc-easy",))
    told = fetch.fetch(SUITES["retention"], chosen, tmp_path, Silent(), load, lambda hub: "c0ffee")
    assert asked == ["allenai/ai2_arc ARC-Easy test main", "allenai/ai2_arc ARC-Easy train main"]
    assert told["arc-easy"]["rows"] == 2
    manifest = json.loads((tmp_path / "retention" / "manifest.json").read_text())
    assert manifest["arc-easy"]["commit"] == "c0ffee"
    assert manifest["arc-easy"]["blake2b"] == fetch.file_hash(tmp_path / "retention" / "arc-easy.parquet")
    files = sorted((tmp_path / "retention").glob("*.parquet"))
    items = load_set(chosen[0], files, "retention", 1)
    assert items[0].contexts == ("Question: Why?\nAnswer: b\n\nQuestion: Why?\nAnswer:",)
    assert [item.right for item in items] == [(1,), (1,)]
    fetch.fetch(SUITES["retention"], chosen, tmp_path, Silent(), load, lambda hub: "c0ffee")
    assert len(asked) == 2
    # A file that was changed since is fetched again.
    (tmp_path / "retention" / "arc-easy.parquet").write_bytes(b"torn")
    fetch.fetch(SUITES["retention"], chosen, tmp_path, Silent(), load, lambda hub: "c0ffee")
    assert len(asked) == 3


def test_gpqa_choices_are_in_an_order_of_their_own_and_the_right_one_is_known(tmp_path: Path) -> None:
    rows = [
        {
            "Question": f"Which of {k}?",
            "Correct Answer": "right",
            **{f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)},
        }
        for k in range(40)
    ]
    benchmark = SUITES["reasoning"].named(("gpqa-diamond",))[0]
    items = load_questions(benchmark, [written(tmp_path / "gpqa-diamond.jsonl", rows)], "reasoning")
    assert all(item.right == "right" for item in items)
    assert {item.answer for item in items} == set("ABCD")
    assert verify(items[0], f"Answer: {items[0].answer}", False).score == 1.0
    again = load_questions(benchmark, [tmp_path / "gpqa-diamond.jsonl"], "reasoning")
    assert again == items


@pytest.mark.parametrize("task", list(ruler.TASKS))
def test_long_items_fill_their_length_and_hold_their_answer(task: str) -> None:
    tokenizer = build_byte_tokenizer()
    for length in (700, 3000):
        items = ruler.items(task, length, tokenizer, 5, 6)
        sizes = [len(prompt_ids(tokenizer, item.question + "\n")) for item in items]
        # A sentence of the filling is under 80 bytes.
        assert all(length - ruler.ANSWER_ROOM - 80 < size <= length - ruler.ANSWER_ROOM for size in sizes)
        assert items == ruler.items(task, length, tokenizer, 5, 6)
        assert items != ruler.items(task, length, tokenizer, 6, 6)
        for item in items:
            parts = item.answer.split("; ")
            assert all(part in item.question for part in parts)
            assert verify(item, f"It is {', '.join(parts)}.", False).score == 1.0
            assert verify(item, " ".join(parts[:-1]) or "1", False).score == 0.0
    with pytest.raises(SpecError, match=r"ask for [0-9]+ or more"):
        ruler.items(task, 40, tokenizer, 0, 1)


def test_the_answers_of_long_items_are_the_only_ones() -> None:
    tokenizer = build_byte_tokenizer()
    keys = ruler.items("keys", 2000, tokenizer, 1, 5)
    assert [item.meta["depth"] for item in keys] == [0.1, 0.3, 0.5, 0.7, 0.9]
    for item in keys:
        lines = [line.split(": ") for line in item.question.splitlines() if ": " in line]
        asked = item.question.rpartition("value of ")[2].partition("?")[0]
        assert [value for key, value in lines if key == asked] == [item.answer]
        assert len({key for key, _ in lines}) == len(lines)
    for item in ruler.items("tracking", 2000, tokenizer, 1, 5):
        held: dict[str, str] = {}
        for new, old, number in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))\.", item.question):
            held[new] = held[old] if old else number
        value = item.question.rpartition("value ")[2].partition("?")[0]
        assert sorted(name for name, one in held.items() if one == value) == sorted(item.answer.split("; "))
    for item in ruler.items("common-words", 3000, tokenizer, 1, 5):
        words = item.question.splitlines()[1].split()
        counts = sorted(((words.count(word), word) for word in set(words)), reverse=True)
        assert sorted(word for _, word in counts[:3]) == sorted(item.answer.split("; "))
        assert counts[2][0] > counts[3][0]
