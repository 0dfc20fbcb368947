"""A complete synthetic study whose artifacts have files: metrics, samples, ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic import DOMAINS, SCORES, World, complete

from prismlab.claims import ledger
from prismlab.report import html
from prismlab.run.step import Silent

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & <b>bold</b> \u2028 \u202e'


def _train_rows(steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 2 + 3 * math.exp(-step / 150) + 0.03 * float(rng.normal())
        domains = {d: loss + k / 5 for k, d in enumerate(("web", *DOMAINS))}
        rows.append(
            {
                "step": step,
                "tokens": step * 256,
                "loss": loss,
                "domains": domains,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens_per_second": 1e4,
            }
        )
    return rows


def _rl_rows(steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        reward = 0.3 + 0.4 * step / steps + 0.04 * float(rng.normal())
        rows.append(
            {
                "step": step,
                "reward": reward,
                "reward_std": 0.4,
                "pass": {d: reward + k / 10 for k, d in enumerate(DOMAINS)},
                "format_ok": 0.9,
                "length": 40 + step / 10,
                "truncation": 0.02,
                "entropy": 0.6,
                "kl": 0.001 * step,
                "no_signal": 0.3,
                "lr": 5e-5,
                "grad_norm": 0.4,
            }
        )
    return rows


def _samples(path: Path, response: str) -> None:
    rows = [
        {
            "item_id": f"{domain}-{i}",
            "problem": f"{domain}-{i}",
            "task": task,
            "domain": domain,
            "sample": 0,
            "prompt_hash": "0",
            "question": f"What is {i} + 1?",
            "answer": str(i + 1),
            "response": f"<think> {i} and one </think> {i + (i % 2)} {response}",
            "tokens": 12,
            "finished": True,
            "nll": 0.2,
            "score": float(i % 2),
            "verdict": "right" if i % 2 else "wrong",
            "reason": "",
            "form_ok": True,
        }
        for domain, task in zip(DOMAINS, ("addition", "programs", "elements"), strict=True)
        for i in range(4)
    ]
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "samples.parquet")


def _stage_logs(world: World, root: Path, steps: int) -> None:
    for seed in world.seeds:
        rng = np.random.default_rng(seed)
        for name, spec in world.study["checkpoints"].items():
            kind = "rl" if spec["stage"] == "rl" else "train"
            path = root / f"{kind}-{name}-{seed}"
            path.mkdir(parents=True)
            rows = _rl_rows(steps, rng) if kind == "rl" else _train_rows(steps, rng)
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            world.add(kind, name, seed, {"steps": steps}, {"spec": spec}, path, checkpoint=name, start=spec["from"])
        for mixture, spec in world.study["mixtures"].items():
            total = sum(spec["weights"].values())
            sources = {
                s: {
                    "domain": s.split("-")[0],
                    "weight": w / total,
                    "rows": 10,
                    "tokens": int(1e5 * w / total),
                    "share": w / total,
                    "documents": 100,
                    "epochs": 0.4,
                }
                for s, w in spec["weights"].items()
            }
            world.add(
                "corpus", mixture, seed, {"tokens": 100_000, "sources": sources}, {"mixture": mixture}, mixture=mixture
            )


def build(root: Path, seeds: tuple[int, ...] = (0, 1, 2), steps: int = 900, response: str = HOSTILE) -> World:
    """The study with its ledger, ready for the stage ``report``."""
    world = complete(seeds, sweeps=False)
    for key, artifact in list(world.inputs.items()):
        if artifact.kind == "evaluation":
            entry = next(e for e in world.entries if e["key"] == key)
            path = root / key.replace("/", "-").replace(">", "")
            _samples(path, response)
            world.add(
                "evaluation",
                "core",
                entry["seed"],
                artifact.metrics,
                {"name": "core"},
                path,
                step=f"core@{entry['checkpoint']}",
            )
    assert set(world.arms) == set(SCORES)
    _stage_logs(world, root, steps)
    decide(world, root)
    return world


def decide(world: World, root: Path) -> None:
    """Runs the stage ``claims`` over the study as it is now."""
    path = root / "claims"
    path.mkdir(exist_ok=True)
    entries = [e for e in world.entries if e["kind"] != "claims"]
    result = ledger.run({"study": world.study, "entries": entries, "arms": world.arms}, world.inputs, path, Silent())
    world.add("claims", "synthetic", 0, result.metrics, path=path)


def page(world: World, out: Path) -> str:
    """Runs the stage ``report`` and returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    html.run({"study": world.study, "entries": world.entries, "arms": world.arms}, world.inputs, out, Silent())
    return (out / "report.html").read_text(encoding="utf-8")
