"""Samples of lm-evaluation-harness without a number: counted as unscored, never averaged."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prismlab.errors import StageError
from prismlab.evaluate.harness_run import rows_of
from prismlab.evaluate.sampled import task_score
from prismlab.evaluate.suites import SUITES


def sample(number: int, acc: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "filter": "none",
        "arguments": [("Q: why?\nA:", " so")],
        "filtered_resps": [(-800.0, False), (-900.0, False)],
        "prompt_hash": "0" * 64,
        "target": "0",
        "metrics": ["acc"],
        "acc": acc,
    }


def test_a_nan_of_the_harness_is_unscored() -> None:
    benchmark = next(one for one in SUITES["leaderboard-v1"].benchmarks if one.metric == "acc")
    rows = rows_of(benchmark, "some", [sample(0, 0.25), sample(1, math.nan), sample(2, 0.75)])
    assert [row["score"] for row in rows] == [0.25, None, 0.75]
    assert (rows[1]["verdict"], rows[1]["reason"]) == ("no_verdict", "lm-evaluation-harness gives nan")
    score = task_score(rows)
    assert (score["value"], score["unscored"], score["samples"]) == (pytest.approx(50.0), 1, 3)


@pytest.mark.parametrize("acc", [math.inf, 1.5, -0.1, "right", None])
def test_what_is_no_share_is_refused(acc: Any) -> None:
    benchmark = next(one for one in SUITES["leaderboard-v1"].benchmarks if one.metric == "acc")
    with pytest.raises(StageError, match="is no number from 0 to 1"):
        rows_of(benchmark, "some", [sample(0, acc)])
