from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prismlab.data.items import Item, load_items
from prismlab.errors import DataError
from prismlab.micro.program import agrees
from prismlab.micro.world import ELEMENTS, split_of
from prismlab.study.spec import TaskSpec
from prismlab.study.world import MicroSpec

MICRO = MicroSpec().model_dump(mode="json")
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data files are not beside the repository")


def task(**values: Any) -> dict[str, Any]:
    return TaskSpec.model_validate(values).model_dump(mode="json", by_alias=True)


def load(
    spec: dict[str, Any], n: int, split: Any = "test", seed: int = 0, name: str = "t", files: Any = None
) -> list[Item]:
    return load_items(name, spec, MICRO, split, n, files, seed)


@pytest.mark.parametrize(("domain", "verifier"), [("math", "number"), ("code", "program"), ("science", "choice")])
def test_micro_items_survive_json_and_can_be_verified(domain: str, verifier: str) -> None:
    for item in load(task(micro={"domain": domain}), 60):
        assert Item.from_json(json.loads(json.dumps(item.to_json()))) == item
        assert (item.task, item.domain, item.verifier) == ("t", domain, verifier)
        if domain == "code":
            assert len(item.meta["points"]) == 6
            assert agrees(item.answer, item.meta["points"])
        elif domain == "science":
            assert item.choices is not None
            numbers = {symbol: at for at, (symbol, _) in enumerate(ELEMENTS)}
            assert item.choices["ABCD".index(item.answer)] == max(item.choices, key=numbers.__getitem__)


def test_test_items_are_the_same_for_every_seed_and_train_items_follow_it() -> None:
    spec = task(micro={"domain": "math"})
    assert load(spec, 50, seed=1) == load(spec, 50, seed=2)
    assert {item.id for item in load(spec, 50)} != {item.id for item in load(spec, 50, name="other")}
    assert load(spec, 50)[:20] == load(spec, 20), "fewer items are a part of more"
    assert load(spec, 50, "train", seed=1) != load(spec, 50, "train", seed=2)
    keys = {
        split: {"+".join(sorted(i.id.split("+"), key=int)) for i in load(spec, 500, split)}
        for split in ("train", "test")
    }
    assert not keys["train"] & keys["test"]
    assert all(split_of("math", key) == split for split in keys for key in keys[split])


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_items_of_files(tmp_path: Path) -> None:
    rows = [{"q": f"Q{at}?", "o": ["x", "y", "z"], "g": at % 3, **({"id": f"r{at}"} if at else {})} for at in range(9)]
    file = write(tmp_path / "mc.jsonl", *rows)
    fields = {"question": "q", "answer": "g", "choices": "o"}
    spec = task(files=["x"], domain="science", verifier="choice", fields=fields)
    found = load(spec, 9, files=[file])
    by_id = {item.id: item for item in found}
    assert set(by_id) == {"mc.jsonl:1", *(f"r{at}" for at in range(1, 9))}
    assert by_id["r4"].question == "Q4?\nA. x\nB. y\nC. z"
    assert (by_id["r4"].answer, by_id["r5"].answer, by_id["r4"].choices) == ("B", "C", ("x", "y", "z"))
    assert load(spec, 4, files=[file], seed=1) == load(spec, 4, files=[file], seed=2)
    assert load(spec, 4, "train", seed=1, files=[file]) != load(spec, 4, "train", seed=2, files=[file])


def test_choices_may_stand_in_a_field_each(tmp_path: Path) -> None:
    """As MMLU has them; two of its questions have a choice that is another one's letter."""
    rows = [
        {"q": "A?", "A": "one", "B": "two", "C": 3, "answer": "B"},
        {"q": "B?", "A": "L", "B": "C", "C": "1/C", "answer": "C"},
        {"q": "C?", "A": "L", "B": "R", "C": "both", "answer": "R"},
    ]
    spec = task(
        files=["x"],
        domain="science",
        verifier="choice",
        fields={"question": "q", "choices": ["A", "B", "C"], "answer": "answer"},
    )
    found = {item.question[0]: item for item in load(spec, 3, files=[write(tmp_path / "m.jsonl", *rows)])}
    assert found["A"].question == "A?\nA. one\nB. two\nC. 3"
    assert {name: item.answer for name, item in found.items()} == {"A": "B", "B": "C", "C": "B"}
    with pytest.raises(DataError, match=r"n\.jsonl:1: no field 'C'; the fields are q, A, B, answer"):
        load(spec, 1, files=[write(tmp_path / "n.jsonl", {"q": "?", "A": "a", "B": "b", "answer": "A"})])
    with pytest.raises(ValueError, match="at least 2 items"):
        task(files=["x"], domain="a", verifier="choice", fields={"question": "q", "choices": ["A"], "answer": "g"})


def test_refusals(tmp_path: Path) -> None:
    spec = task(files=["x"], domain="math", verifier="number", fields={"question": "q", "answer": "a"})
    file = write(tmp_path / "a.jsonl", {"q": "1+1", "a": 2}, {"q": "1+2", "a": "3"})
    assert {item.answer for item in load(spec, 2, files=[file])} == {"2", "3"}
    with pytest.raises(DataError, match="task 't' has 2 items, 3 were asked for"):
        load(spec, 3, files=[file])
    with pytest.raises(DataError, match="no file was found"):
        load(spec, 1)
    with pytest.raises(DataError, match="share the id 'same'"):
        load(spec, 1, files=[write(tmp_path / "b.jsonl", *({"id": "same", "q": "a", "a": "b"} for _ in range(2)))])
    with pytest.raises(DataError, match=r"c\.jsonl:1: the answer is empty"):
        load(spec, 1, files=[write(tmp_path / "c.jsonl", {"q": "a", "a": " "})])
    with pytest.raises(DataError, match=r"d\.jsonl:1: no field 'a'; the fields are q"):
        load(spec, 1, files=[write(tmp_path / "d.jsonl", {"q": "a"})])
    with pytest.raises(DataError, match="missing or not known: extra"):
        Item.from_json({**load(spec, 1, files=[file])[0].to_json(), "extra": 1})


@needs_shared
def test_gsm8k_keeps_the_text_of_its_answers() -> None:
    spec = task(files=["x"], domain="math", verifier="number", fields={"question": "question", "answer": "answer"})
    found = load(spec, 200, files=[SHARED / "math" / "gsm8k_test.jsonl"])
    assert len({item.id for item in found}) == 200
    assert all("\n#### " in item.answer for item in found)


@needs_shared
def test_arc_answers_are_letters() -> None:
    fields = {"question": "query", "answer": "gold", "choices": "choices"}
    spec = task(files=["x"], domain="science", verifier="choice", fields=fields)
    rows = [json.loads(line) for line in (SHARED / "science" / "arc_challenge_test.jsonl").read_text().splitlines()]
    by_id = {row["id"]: row for row in rows}
    for item in load(spec, 300, files=[SHARED / "science" / "arc_challenge_test.jsonl"]):
        row = by_id[item.id]
        assert item.choices is not None
        assert item.choices["ABCDE".index(item.answer)] == row["choices"][row["gold"]]
