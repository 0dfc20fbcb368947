"""Stage ``evaluation`` from a checkpoint on disk to metrics, rows and text loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prismlab.errors import DataError
from prismlab.evaluate import stage
from prismlab.evaluate.sampled import aggregate
from prismlab.evaluate.text import bits_per_byte
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Artifact, Silent
from prismlab.score import read_rows
from prismlab.seeds import derive_seed
from prismlab.study.spec import EvaluationSpec, Fields, MicroSource, MicroTask, SourceSpec, TaskSpec
from prismlab.study.world import MicroSpec

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(folder: Path, seed: int) -> Artifact:
    save_checkpoint(build_model(tiny_config("llama", 32, 1, 258), seed), build_byte_tokenizer(), folder / "model")
    return Artifact(kind="base", fingerprint=f"{seed:016x}", path=folder, record={"config": {}, "metrics": {}})


def configuration(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    quiz = tmp_path / "quiz.jsonl"
    rows = [{"id": f"q{i}", "question": f"{i}+1=?", "answer": f"#### {i + 1}"} for i in range(9)]
    quiz.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = tmp_path / "notes.txt"
    notes.write_text("\n\n".join(f"Note {i}: " + "light bends. " * (i % 7 + 1) for i in range(60)))
    spec = EvaluationSpec(
        tasks=["code", "quiz", "sums"],
        items=6,
        samples=2,
        max_new_tokens=10,
        text=["notes", "chats"],
        text_documents=5,
        **changes,
    )
    tasks = {
        "sums": TaskSpec(micro=MicroTask(domain="math")),
        "code": TaskSpec(micro=MicroTask(domain="code")),
        "quiz": TaskSpec(
            files=["quiz.jsonl"], domain="math", fields=Fields(question="question", answer="answer"), verifier="number"
        ),
    }
    sources = {
        "notes": SourceSpec(files=["notes.txt"], domain="web"),
        "chats": SourceSpec(micro=MicroSource(domain="science", form="facts")),
    }
    return {
        "spec": spec.model_dump(mode="json", by_alias=True),
        "tasks": {name: task.model_dump(mode="json", by_alias=True) for name, task in tasks.items()},
        "sources": {name: source.model_dump(mode="json", by_alias=True) for name, source in sources.items()},
        "micro": MicroSpec().model_dump(mode="json"),
        "heldout": 0.3,
        "template": "think",
        "name": "all",
        "seed": 11,
        "files": {"quiz": [str(quiz)], "notes": [str(notes)]},
    }


class Counting(Silent):
    def __init__(self) -> None:
        self.counts: list[list[int | None]] = []

    def start(self, total: int | None, unit: str) -> None:
        self.counts.append([total, 0])

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self.counts[-1][1] = (self.counts[-1][1] or 0) + n


def evaluate(tmp_path: Path, out: str, model_seed: int, config: dict[str, Any]) -> tuple[Path, Any, Counting]:
    folder = tmp_path / out
    folder.mkdir()
    progress = Counting()
    result = stage.run(config, {"checkpoint": checkpoint(tmp_path / f"model-{out}", model_seed)}, folder, progress)
    return folder, result, progress


def test_metrics_can_be_computed_again_from_the_rows(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    out, result, progress = evaluate(tmp_path, "one", 1, config)
    rows = read_rows(out / "samples.parquet")
    assert len(rows) == 3 * 6 * 2
    found = json.loads(json.dumps(result.metrics, allow_nan=False))
    text_rows = pq.read_table(out / "text.parquet").to_pylist()
    again = aggregate(rows)
    assert {key: found[key] for key in again} == again
    assert set(found) == {"tasks", "domains", "average", "text"}
    assert set(found["tasks"]) == {"code", "quiz", "sums"}
    assert set(found["domains"]) == {"math", "code"}
    for name in ("notes", "chats"):
        mine = [row for row in text_rows if row["source"] == name]
        assert len(mine) == 5
        assert found["text"][name] == bits_per_byte(mine, derive_seed(11, "text", name))
    # A fresh model knows nothing: about the 8 bits a byte of the uniform distribution, and what its noise costs.
    assert 7.5 < found["text"]["notes"]["bits_per_byte"] < 10
    assert result.tokens == sum(r["tokens"] for r in rows) + sum(r["tokens"] for r in text_rows)
    assert progress.counts == [[36, 36], [10, 10]]


def test_checkpoints_meet_the_same_items_and_runs_repeat(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    first, result, _ = evaluate(tmp_path, "one", 1, config)
    again, repeated, _ = evaluate(tmp_path, "again", 1, config)
    other, _, _ = evaluate(tmp_path, "other", 2, config)
    rows = {name: read_rows(folder / "samples.parquet") for name, folder in (("a", first), ("b", again), ("c", other))}
    assert rows["a"] == rows["b"]
    assert result.metrics == repeated.metrics
    assert (first / "samples.parquet").read_bytes() == (again / "samples.parquet").read_bytes()
    same = ("task", "item_id", "sample", "prompt_hash", "question", "answer")
    assert [[row[key] for key in same] for row in rows["a"]] == [[row[key] for key in same] for row in rows["c"]]
    assert [row["response"] for row in rows["a"]] != [row["response"] for row in rows["c"]]


def test_text_alone(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    config["spec"] = {**config["spec"], "tasks": []}
    out, result, _ = evaluate(tmp_path, "one", 1, config)
    assert read_rows(out / "samples.parquet") == []
    assert result.metrics["tasks"] == {}
    assert result.metrics["average"]["value"] is None
    assert set(result.metrics["text"]) == {"notes", "chats"}


def test_a_missing_file_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    (tmp_path / "notes.txt").unlink()
    nowhere = Artifact(kind="base", fingerprint="0", path=tmp_path / "nowhere", record={})
    with pytest.raises(DataError, match=r"notes\.txt"):
        stage.run(config, {"checkpoint": nowhere}, tmp_path, Silent())
