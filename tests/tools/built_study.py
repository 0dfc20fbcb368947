"""A study whose evaluations hold numbers that a test chooses, in a real store: no model, but real gates and ledger."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.errors import EndBranch
from prismlab.evaluate.sampled import aggregate
from prismlab.evaluate.text import bits_per_byte
from prismlab.run.step import Artifact, Silent
from prismlab.run.store import Store
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study
from prismlab.study.steps import Missing, Outcome, Settled, outcome_of, settle

STUDY = """
name: judged
seeds: {seeds}
bases: {{tiny: {{arch: llama, width: 32, layers: 2}}}}
sources: {{math-worked: {{micro: {{domain: math, form: worked}}}}, facts: {{micro: {{domain: science, form: facts}}}}}}
mixtures: {{m: {{weights: {{math-worked: 1}}}}, s: {{weights: {{facts: 1}}}}}}
checkpoints:
  base: {{stage: pretrain, from: tiny, mixture: s, steps: 2, rows: 1, seq_len: 16}}
  mid: {{stage: midtrain, from: base, mixture: m, steps: 2, rows: 1, seq_len: 16}}
  other: {{stage: midtrain, from: base, mixture: m, steps: 3, rows: 1, seq_len: 16}}
  merge-20: {{stage: merge, weights: {{base: 0.2, mid: 0.8}}}}
  merge-60: {{stage: merge, weights: {{base: 0.6, mid: 0.4}}}}
{checkpoints}
tasks: {{addition: {{micro: {{domain: math}}}}, elements: {{micro: {{domain: science}}}}}}
evaluations: {{core: {{tasks: [addition, elements], items: 8, text: [facts]}}}}
{more}
"""
Numbers = Callable[[str, int], tuple[Mapping[str, Sequence[Sequence[float]]], Sequence[float]]]
"""Checkpoint and seed to scores (task: a list of sample scores an item) and nll a document of 100 bytes."""


def write_study(path: Path, seeds: Sequence[int], checkpoints: str = "", more: str = "") -> Path:
    path.write_text(STUDY.format(seeds=list(seeds), checkpoints=checkpoints, more=more), encoding="utf-8")
    return path


def sample_rows(scores: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    return [
        {
            "task": task, "domain": {"addition": "math", "elements": "science"}[task], "item_id": f"i{i}",
            "problem": f"i{i}", "sample": s, "score": score, "question": f"q{i}", "answer": "1", "finished": True,
        }
        for task, items in scores.items()
        for i, item in enumerate(items)
        for s, score in enumerate(item)
    ]  # fmt: skip


def _evaluated(draft: Path, numbers: Any) -> dict[str, Any]:
    rows = sample_rows(numbers[0])
    text = [{"source": "facts", "document": i, "bytes": 100, "tokens": 25, "nll": v} for i, v in enumerate(numbers[1])]
    pq.write_table(pa.Table.from_pylist(rows), draft / "samples.parquet")
    pq.write_table(pa.Table.from_pylist(text), draft / "text.parquet")
    return {**aggregate(rows), "text": {"facts": bits_per_byte(text)}}


def build(
    file: Path, root: Path, numbers: Numbers, without: Sequence[str] = (), notes: Any = None
) -> dict[str, Artifact]:
    """Every step of the plan in a store; evaluations from ``numbers``, gates and ledger by their stages.

    Args:
        without: front parts of the ids of steps that are left out, as if they were not built yet.
        notes: progress for the stages that really run.
    """
    store = Store(root)
    store.prepare()
    outcomes: dict[str, Outcome] = {}
    built: dict[str, Artifact] = {}
    for step in plan_study(load_study(file), hash_cache=store.hash_cache).steps:
        settled = settle(step, outcomes)
        if isinstance(settled, Missing) or step.id.startswith(tuple(without)):
            outcomes[step.id] = settled if isinstance(settled, Missing) else Missing("not built yet")
            continue
        built[step.id] = _one(store, settled, built, numbers, notes or Silent())
        outcomes[step.id] = outcome_of(step, settled.fingerprint, built[step.id].record)
    return built


def _one(store: Store, settled: Settled, built: Mapping[str, Artifact], numbers: Numbers, notes: Any) -> Artifact:
    step, ended, metrics = settled.step, None, {}
    draft = store.draft(step.kind, settled.fingerprint)
    if step.kind == "evaluation":
        metrics = _evaluated(draft, numbers(step.facts["checkpoint"], step.seed or 0))
    elif step.kind in ("gate", "claims"):
        module, _, function = step.entry.partition(":")
        inputs = {key: built[step.inputs[key]] for key, found in settled.inputs.items() if isinstance(found, str)}
        try:
            run = getattr(importlib.import_module(module), function)
            metrics = dict(run(settled.config, inputs, draft, notes).metrics)
        except EndBranch as end:
            ended = end.reason
    record = {
        "kind": step.kind, "version": step.version, "name": step.id, "fingerprint": settled.fingerprint,
        "config": json.loads(json.dumps(settled.config)), "inputs": {}, "seed": step.seed, "threads": 1, "versions": {},
        "git": None, "started": "2026-01-01T00:00:00+00:00", "seconds": 0.1, "tokens": None, "metrics": metrics,
        "status": "complete" if ended is None else "ended", **({} if ended is None else {"reason": ended}),
    }  # fmt: skip
    return store.commit(draft, record)
