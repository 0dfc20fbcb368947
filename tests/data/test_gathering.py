"""What was found of evaluation items in all shards, put together a few hits at a time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from prismlab.data.contamination import HITS, Gather


def found_at(drawn: random.Random) -> dict[str, Any]:
    kind, aside = drawn.choice(["exact", "near-duplicate", "answer-key"]), drawn.choice(["", "common"])
    numbers = [["1", "2"]] * drawn.randrange(2)
    words = {"words": drawn.randrange(9, 40), "share": drawn.random(), "longest": 9, "start": 0, "stop": 60}
    item = {"task": drawn.choice("ab"), "item": str(drawn.randrange(9)), "part": "question"}
    told = {"text": "as the document has it", "item_text": "as the item has it", "numbers": numbers, "aside": aside}
    return {"kind": kind, **item, **words, **told, "counts": kind == "exact" and not aside}


@pytest.mark.parametrize(("documents", "at_a_time"), [(0, 7), (1, 7), (90, 1), (90, 7), (90, 10_000)])
def test_evidence_is_put_together_whatever_is_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: int, at_a_time: int
) -> None:
    monkeypatch.setattr("prismlab.data.contamination.ROWS", at_a_time)
    looked = SimpleNamespace(views=SimpleNamespace(items=[0] * 9), not_searched=[0] * 2)
    monkeypatch.setattr("prismlab.data.contamination.finder", lambda folder, asked: looked)
    drawn, told = random.Random(documents), list[tuple[int, int, list[dict[str, Any]]]]()
    (tmp_path / "items").mkdir()
    for shard in range(3):
        held = [(at, [found_at(drawn) for _ in range(drawn.randrange(1, 4))]) for at in range(0, documents, shard + 1)]
        lines = [
            json.dumps({"number": at, "where": f"f:{at}", "id": f"{shard}-{at}", "hits": hits}) for at, hits in held
        ]
        text = "\n".join([*lines, json.dumps({"documents": documents})]) + "\n"
        (tmp_path / "items" / f"{shard:05d}.jsonl").write_text(text, encoding="utf-8")
        told += [(shard, at, hits) for at, hits in held]
    asked = {"n": 13, "allow": [], "action": "drop", "tasks": ["a", "b", "c"]}
    assert list(Gather(tmp_path, asked).run()) == []

    rows = pq.read_table(tmp_path / "hits.parquet")
    assert rows.schema.equals(HITS)
    wanted = [(f"{shard}-{at}", hit["kind"], hit["item"], hit["share"]) for shard, at, hits in told for hit in hits]
    assert [(row["id"], row["kind"], row["item"], row["share"]) for row in rows.to_pylist()] == wanted
    summary = json.loads((tmp_path / "hits.json").read_text(encoding="utf-8"))
    holding = [(shard, at, [hit for hit in hits if hit["counts"]]) for shard, at, hits in told]
    holding = [one for one in holding if one[2]]
    assert summary["documents"]["exact"] == len(holding)
    assert sum(summary["documents"].values()) == 3 * documents
    assert summary["documents"]["clean"] == 3 * documents - len(told)
    assert summary["tasks"] == {
        task: sum(any(hit["task"] == task for hit in hits) for _, _, hits in holding) for task in ("a", "b", "c")
    }
    assert summary["items_found"] == len({(hit["task"], hit["item"]) for _, _, hits in holding for hit in hits})
    for shard in range(3):
        places = json.loads((tmp_path / "contaminated" / f"{shard:05d}.json").read_text(encoding="utf-8"))
        best = {str(at): max(hits, key=lambda hit: hit["share"]) for where, at, hits in holding if where == shard}
        assert places == {at: f"{hit['task']}/{hit['item']}" for at, hit in best.items()}
