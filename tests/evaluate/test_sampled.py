"""Scores from rows, against figures worked out by hand and intervals from elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from prismlab.evaluate.sampled import aggregate, mean_of, task_score


def rows(scores: list[list[float | None]], task: str = "t", domain: str = "d", cut: int = 0) -> list[dict[str, Any]]:
    """One list of scores an item; the first ``cut`` samples have no stop token."""
    flat = [
        {
            "item_id": str(i),
            "problem": str(i),
            "task": task,
            "domain": domain,
            "sample": s,
            "score": score,
            "finished": True,
        }
        for i, item in enumerate(scores)
        for s, score in enumerate(item)
    ]
    for row in flat[:cut]:
        row["finished"] = False
    return flat


def test_counts_and_value() -> None:
    score = task_score(rows([[1.0, 0.0], [1.0, 1.0], [None, 0.0], [None, None]], cut=2))
    assert score["value"] == pytest.approx(60.0)
    assert (score["items"], score["samples"], score["unscored"]) == (4, 8, 3)
    assert score["truncation"] == 25.0
    assert score["lo"] < 60 < score["hi"]


def test_samples_of_an_item_are_no_independent_trials() -> None:
    """Sixteen equal samples an item: the interval is that of 40 trials, not of 640."""
    rng = np.random.default_rng(0)
    one = [[float(rng.random() < 0.5)] for _ in range(40)]
    single, repeated = task_score(rows(one)), task_score(rows([scores * 16 for scores in one]))
    assert repeated["value"] == single["value"]
    assert (repeated["lo"], repeated["hi"]) == pytest.approx((single["lo"], single["hi"]))
    p = single["value"] / 100
    assert single["hi"] - single["lo"] == pytest.approx(2 * 1.96 * 100 * math.sqrt(p * (1 - p) / 40), rel=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_nothing_has_wilsons_interval_over_items(value: float) -> None:
    score = task_score(rows([[value] * 4] * 30))
    known = binomtest(30 if value else 0, 30).proportion_ci(method="wilson")
    assert score["value"] == 100 * value
    assert (score["lo"], score["hi"]) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-9)
    assert score["hi"] - score["lo"] > 10


def test_missing_is_not_zero() -> None:
    nothing = task_score(rows([[None], [None]]))
    assert (nothing["value"], nothing["lo"], nothing["hi"], nothing["unscored"]) == (None, None, None, 2)
    assert "no sample was scored" in nothing["reason"]
    both = rows([[1.0], [0.0]], "a") + rows([[None]], "b")
    found = aggregate(both)
    assert found["tasks"]["a"]["value"] == 50.0
    assert found["domains"]["d"]["value"] is None
    assert "task b has no score" in found["domains"]["d"]["reason"]
    assert found["average"]["value"] is None
    assert aggregate([])["average"]["value"] is None


def test_domains_are_means_of_tasks_and_the_average_of_domains() -> None:
    many = (
        rows([[1.0]] * 3 + [[0.0]], "a", "math")
        + rows([[1.0]] * 10 + [[0.0]] * 30, "b", "math", cut=4)
        + rows([[0.0], [1.0]], "c", "code")
    )
    found = aggregate(many)
    assert {name: s["value"] for name, s in found["tasks"].items()} == {"a": 75.0, "b": 25.0, "c": 50.0}
    # Not weighted by items: a has 4, b has 40.
    assert found["domains"]["math"]["value"] == pytest.approx(50.0)
    assert found["domains"]["math"]["items"] == 44
    assert found["domains"]["math"]["truncation"] == pytest.approx(100 * 4 / 44)
    assert found["domains"]["code"] == found["tasks"]["c"]
    assert found["average"]["value"] == pytest.approx(50.0)
    assert found["average"]["samples"] == 46


def test_interval_of_a_mean_against_a_stratified_bootstrap() -> None:
    rng = np.random.default_rng(1)
    chances = {"a": 0.3, "b": 0.6, "c": 0.8}
    drawn = {t: [[float(rng.random() < p) for _ in range(2)] for _ in range(150)] for t, p in chances.items()}
    found = aggregate([row for t, scores in drawn.items() for row in rows(scores, t)])["domains"]["d"]
    means = [np.array([np.mean(s) for s in scores]) for scores in drawn.values()]
    again = [np.mean([rng.choice(m, len(m)).mean() for m in means]) for _ in range(4000)]
    lo, hi = 100 * np.quantile(again, [0.025, 0.975])
    assert (found["lo"], found["hi"]) == pytest.approx((lo, hi), abs=0.5)


def test_a_task_at_zero_is_not_known_exactly() -> None:
    parts = {"zero": task_score(rows([[0.0]] * 20)), "half": task_score(rows([[0.0], [1.0]] * 10))}
    whole = mean_of(parts, rows([[0.0]] * 40), "task")
    assert whole["value"] == pytest.approx(25.0)
    alone = (parts["half"]["hi"] - parts["half"]["value"]) / 2
    above = math.hypot(parts["zero"]["hi"], parts["half"]["hi"] - 50.0) / 2
    assert whole["hi"] - whole["value"] == pytest.approx(above)
    assert above > alone
    # Below, the task at zero has nothing to give.
    assert whole["value"] - whole["lo"] == pytest.approx((50.0 - parts["half"]["lo"]) / 2)


def test_no_interval_from_one_item() -> None:
    found = aggregate(rows([[1.0, 0.0]], "a") + rows([[1.0], [0.0]], "b"))["domains"]["d"]
    assert (found["value"], found["lo"]) == (50.0, None)
    assert "task a has no interval" in found["reason"]


def test_same_rows_same_numbers() -> None:
    some = rows([[1.0], [0.0], [1.0], [1.0]]) + rows([[0.0]] * 5 + [[1.0]], "u", "e")
    assert aggregate(some) == aggregate(some)


def test_items_of_one_problem_are_one_unit() -> None:
    """Eight items that are two problems, each right or wrong as a whole, tell as much as two items."""
    alone = [row | {"problem": str(i)} for i, row in enumerate(rows([[1.0]] * 4 + [[0.0]] * 4))]
    paired = [row | {"problem": str(i // 4)} for i, row in enumerate(alone)]
    by_item, by_problem = task_score(alone), task_score(paired)
    assert by_item["value"] == by_problem["value"] == 50.0
    assert by_problem["hi"] - by_problem["lo"] > 1.2 * (by_item["hi"] - by_item["lo"])
    assert by_problem["items"] == 8
