"""Real text through the step of cleaning, from the files that lie beside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("datatrove")

from prismlab.data.clean import clean_source
from prismlab.data.sources import cleaned_documents
from prismlab.study.load import load_study
from prismlab.study.plan import plan_cleaning

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data files are not beside the repository"),
]
PAIR = {"question": "question", "answer": "answer"}
EXAM = {"question": "query", "choices": "choices", "answer": "gold"}
SOURCES: dict[str, dict[str, Any]] = {
    "peps": {"files": ["text/python_peps.jsonl.gz"], "domain": "web"},
    "books": {"files": ["text/public_domain_books.jsonl.gz"], "domain": "web"},
    "wikipedia": {"files": ["text/wikipedia_30_articles.txt.gz"], "domain": "web"},
    "gsm8k": {"files": ["math/gsm8k_train.jsonl.gz"], "domain": "math", "fields": PAIR, "loss": "answer"},
    "mbpp": {"files": ["code/mbpp.jsonl"], "domain": "code", "fields": {"question": "text", "answer": "code"}},
    "p3": {
        "files": ["code/p3_puzzles.jsonl.gz"],
        "domain": "code",
        "fields": {"question": "sat", "answer": "sol_bodies.0"},
        "max_bad": 1.0,
        "dedup": "exact",  # Its puzzles come in families that are near copies of one another, and meant to be.
    },
    "arc": {
        "files": ["science/arc_easy_train.jsonl", "science/arc_challenge_train.jsonl"],
        "domain": "science",
        "fields": EXAM,
    },
    "openbookqa": {"files": ["science/openbookqa_train.jsonl.gz"], "domain": "science", "fields": EXAM},
    "oasst": {"files": ["chat/oasst1_en_validation.jsonl.gz"], "domain": "chat", "filters": {"min_chars": 20}},
}
TASKS: dict[str, dict[str, Any]] = {
    "gsm8k-test": {"files": ["math/gsm8k_test.jsonl"], "domain": "math", "fields": PAIR, "verifier": "number"},
    "humaneval": {
        "files": ["code/humaneval.jsonl.gz"],
        "domain": "code",
        "fields": {"question": "prompt", "answer": "canonical_solution"},
        "verifier": "tests",
    },
    "arc-test": {
        "files": ["science/arc_easy_test.jsonl", "science/arc_challenge_test.jsonl"],
        "domain": "science",
        "fields": EXAM,
        "verifier": "choice",
    },
    "mmlu": {
        "files": ["retention/mmlu_test.jsonl.gz"],
        "domain": "science",
        "fields": {**PAIR, "choices": ["A", "B", "C", "D"]},
        "verifier": "choice",
    },
}
ROWS = {
    "peps": 597,
    "books": 5,
    "wikipedia": 30,
    "gsm8k": 7473,
    "mbpp": 724,
    "p3": 1715,
    "arc": 3370,
    "openbookqa": 4957,
}
ROWS["oasst"] = 2022
KEPT = {**ROWS, "peps": 595, "mbpp": 710, "p3": 1661, "arc": 3332, "openbookqa": 4948, "oasst": 1956}
"""Documents that are left; docs/data.md says why the others are not, judged by hand."""
HELD = {"arc": {"arc-test": 36, "mmlu": 1}, "openbookqa": {"arc-test": 1}}
"""Documents that hold an item, by task."""


def study(folder: Path, more: Mapping[str, Any], **source: Any) -> Path:
    def placed(spec: dict[str, Any]) -> dict[str, Any]:
        return {**spec, "files": [str(SHARED / name) for name in spec["files"]]}

    whole = {
        "name": "own",
        "bases": {"tiny": {"arch": "llama", "width": 32, "layers": 2}},
        "sources": {name: {**source, **placed(spec)} for name, spec in SOURCES.items()},
        "tasks": {name: placed(spec) for name, spec in TASKS.items()},
        "decontaminate": {"tasks": list(TASKS), "action": "drop"},
        **more,
    }
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", list(SOURCES))
def test_real_sources_are_cleaned_with_every_row_accounted_for(name: str, tmp_path: Path) -> None:
    step = plan_cleaning(load_study(study(tmp_path, {}, dedup="minhash")), name)
    assert step is not None
    metrics = clean_source({**step.config, "files": step.paths}, tmp_path / "w")
    print(json.dumps({"source": name, **metrics}))
    lost = sum(metrics["bad"].values()) + sum(metrics["dropped"].values()) + metrics["empty"]
    assert metrics["rows"] == ROWS[name] == lost + metrics["documents"]
    assert metrics["documents"] == KEPT[name]
    assert metrics["contamination"]["items_searched"] == 18_780
    assert metrics["contamination"]["tasks"] == {task: HELD.get(name, {}).get(task, 0) for task in sorted(TASKS)}
    found = list(cleaned_documents(tmp_path / "w"))
    assert len({document.text for document in found}) == len(found) == metrics["documents"]
    if name == "gsm8k":
        assert all(document.text[document.prompt - 1] == "\n" for document in found)
        assert all("#### " in document.text[document.prompt :] for document in found)
    for example in pq.read_table(tmp_path / "w" / "dropped.parquet").to_pylist():
        assert example["where"].partition(":")[0] in {Path(file).name for file in SOURCES[name]["files"]}
        assert example["detail"] or example["reason"].startswith("fewer")


def test_a_corpus_of_cleaned_sources_is_built_and_trained_on(tmp_path: Path) -> None:
    weights = dict.fromkeys(SOURCES, 1)
    steps = {"stage": "pretrain", "from": "tiny", "mixture": "mcs", "steps": 4, "rows": 8, "seq_len": 256}
    exam = {"tasks": ["arc-test"], "items": 4, "max_new_tokens": 8, "text": ["wikipedia", "gsm8k"], "text_tokens": 128}
    more = {
        "heldout": 0.1,
        "mixtures": {"mcs": {"weights": weights}},
        "checkpoints": {"base": steps},
        "evaluations": {"exam": exam},
        "decontaminate": {"tasks": ["arc-test", "gsm8k-test"], "action": "drop"},
    }
    file, out = study(tmp_path, more, dedup="exact"), tmp_path / "run"
    arguments = [sys.executable, "-m", "prismlab", "run", str(file), "--out", str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {record["name"]: record for record in map(_json, out.glob("artifacts/*/record.json"))}
    cleaned = {name.partition("/")[2]: record for name, record in found.items() if name.startswith("clean/")}
    assert set(cleaned) == set(SOURCES)
    assert cleaned["arc"]["metrics"]["dropped"]["holds an item of arc-test"] > 30
    corpus = found["corpus/mcs-32x256/s0"]
    assert set(corpus["inputs"]) == {"tokenizer", *SOURCES}
    assert all(abs(one["rows"] - 32 / 9) < 1 for one in corpus["metrics"]["sources"].values())
    assert found["evaluation/exam@base/s0"]["metrics"]["text"]["wikipedia"]["documents"] >= 1
    assert not list((out / "scratch").glob("*"))
    page = next(out.glob("artifacts/report-*/report.html")).read_text(encoding="utf-8")
    assert "clean/arc" in page


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
