"""The gate on judged samples of tiny checkpoints: a planted loss is caught, a checkpoint against itself passes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismlab.evaluate.retention import retention
from prismlab.stats import power_items, variance_parts

FILE = Path(__file__).parent / "micro_samples.json"
ITEMS, MARGIN, LOSS, TRIALS = 2500, 0.5, 0.03, 12
Halves = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, Halves]:
    """Six benchmarks by problem: two samples as the reference's, two others of the same checkpoint as the new one's.

    The truth is known: nothing was lost, and the two sides differ as two draws of one checkpoint do.
    """
    found: dict[str, Halves] = {}
    for name, items in json.loads(FILE.read_text(encoding="utf-8"))["benchmarks"].items():
        by_problem: defaultdict[int, list[str]] = defaultdict(list)
        for problem, samples in items:
            by_problem[problem].append(samples)
        samples = [list(map(int, same[0])) for same in by_problem.values()]
        whole = np.array(samples, dtype=float)
        found[name] = whole[:, :2], whole[:, 2:]
    return found


def rows(scores: np.ndarray, task: str) -> list[dict[str, Any]]:
    return [
        {"task": task, "item_id": str(i), "sample": s, "score": float(value)}
        for i, item in enumerate(scores)
        for s, value in enumerate(item)
    ]


def drawn(rng: np.random.Generator, halves: Halves, loss: float) -> Halves:
    """Items drawn again from the real ones, sides exchanged at random (so nothing is lost), then a loss planted."""
    picked = rng.integers(0, len(halves[0]), ITEMS)
    swapped = rng.random(ITEMS) < 0.5
    old = np.where(swapped[:, None], halves[1][picked], halves[0][picked])
    new = np.where(swapped[:, None], halves[0][picked], halves[1][picked])
    # So many right samples become wrong that the mean falls by the loss.
    gone = (rng.random(new.shape) < loss / new.mean()) & (new == 1)
    return old, np.where(gone, 0.0, new)


def test_the_rows_are_real_and_of_six_benchmarks(benchmarks: dict[str, Halves]) -> None:
    assert len(benchmarks) == 6
    for old, new in benchmarks.values():
        assert len(old) >= 40
        assert 0.15 < np.concatenate([old, new]).mean() < 0.45
        assert (old != new).any()


def test_a_planted_loss_is_caught_and_two_draws_of_one_checkpoint_pass(benchmarks: dict[str, Halves]) -> None:
    """Three points lost on one benchmark of six; power and pass rate are what the planning formulas state."""
    rng, met, stated = np.random.default_rng(6), {"caught": 0, "alarms": 0, "passed": 0}, {}
    for _ in range(TRIALS):
        sides = [drawn(rng, halves, LOSS if k == 0 else 0.0) for k, halves in enumerate(benchmarks.values())]
        base, new = ([row for k, pair in enumerate(sides) for row in rows(pair[at], f"t{k}")] for at in (0, 1))
        found = retention(base, new, MARGIN)["tasks"]
        met["caught"] += found["t0"]["verdict"] == "regressed"
        met["alarms"] += any(found[f"t{k}"]["verdict"] == "regressed" for k in range(1, 6))
        met["passed"] += retention(rows(sides[1][0], "t"), rows(sides[1][1], "t"), 5 * MARGIN)["verdict"] == "retained"
        for k in (0, 1):
            labels = np.repeat(np.arange(ITEMS), 2)
            parts = variance_parts((sides[k][1] - sides[k][0]).ravel(), labels)
            assert parts is not None
            stated.setdefault(k, []).append(parts[0] + parts[1] / 2)
    caught = power_items(LOSS - MARGIN / 100, ITEMS, float(np.mean(stated[0])), 0.025 / 6)
    passed = power_items(5 * MARGIN / 100, ITEMS, float(np.mean(stated[1])))
    assert 0.4 < caught < 0.99, "an informative test has a power that can be missed"
    for name, share in (("caught", caught), ("passed", passed)):
        assert met[name] / TRIALS == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / TRIALS) + 0.02), name
    assert met["alarms"] <= 2


def test_a_real_loss_is_found_and_named(benchmarks: dict[str, Halves]) -> None:
    """All of one benchmark's answers are lost, as science is by mid-training without science: one line says so."""
    names = list(benchmarks)
    base = [row for name in names for row in rows(benchmarks[name][0], name)]
    new = [row for name in names[1:] for row in rows(benchmarks[name][1], name)]
    new += rows(np.zeros_like(benchmarks[names[0]][0]), names[0])
    found = retention(base, new, 3.0)
    assert found["verdict"] == "regressed"
    assert [task for task, entry in found["tasks"].items() if entry["verdict"] == "regressed"] == [names[0]]
