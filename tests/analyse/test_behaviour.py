"""Behaviour against sums by hand, and its intervals against the item as unit."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismlab.analyse.behaviour import describe, read_rows, run
from prismlab.errors import DataError
from prismlab.run.step import Artifact, Silent


def row(item: str, tokens: int, nll: float | None, score: float | None, task: str = "t", done: bool = True) -> Any:
    return {
        "item_id": item,
        "problem": item,
        "task": task,
        "tokens": tokens,
        "finished": done,
        "nll": nll,
        "score": score,
    }


ROWS = [
    row("a", 10, 0.5, 1.0),
    row("a", 20, 1.5, 0.0),
    row("b", 30, 0.1, 1.0),
    row("b", 40, None, 0.0, done=False),
    row("c", 100, 2.5, None),
]


def test_values_by_hand() -> None:
    found = describe(ROWS)
    assert found["n"] == 5
    values = {name: found[name]["value"] for name in found if name != "n"}
    assert values == pytest.approx(
        {
            "pass": 0.5,
            "length_median": 30,
            "length_mean": 40,
            "nll": (0.5 + 1.5 + 0.1 + 2.5) / 4,
            "nll_correct": 0.3,
            "nll_incorrect": 1.5,
            "truncation": 0.2,
        }
    )
    assert (found["nll_incorrect"]["lo"], found["nll_incorrect"]["hi"]) == (None, None)
    assert "one cluster" in found["nll_incorrect"]["reason"]


def test_what_there_is_none_of_is_null_with_a_reason() -> None:
    found = describe([row("a", 3, 0.5, 0.0), row("b", 4, float("nan"), None)])
    assert found["nll_correct"] == {
        "value": None,
        "lo": None,
        "hi": None,
        "reason": "no correct sample has a log-probability",
    }
    assert found["nll"]["value"] == 0.5
    assert describe([])["pass"]["value"] is None


def test_items_of_one_id_in_two_tasks_are_two_items() -> None:
    rows = [row("0", 10, 0.1, 1.0, task="x"), row("0", 20, 0.2, 0.0, task="y")]
    assert describe(rows)["length_mean"]["lo"] is not None


def test_samples_of_an_item_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 40)
    once = [row(str(i), int(n), 0.1, 1.0) for i, n in enumerate(lengths)]
    often = [r for r in once for _ in range(25)]
    for name in ("length_mean", "length_median"):
        a, b = describe(once)[name], describe(often)[name]
        assert a["value"] == b["value"]
        assert (b["hi"] - b["lo"]) == pytest.approx(a["hi"] - a["lo"], rel=0.15)
        assert b["lo"] < b["value"] < b["hi"]
    assert describe(once)["length_median"]["value"] == statistics.median(lengths)


def test_stage_by_task_and_over_all(tmp_path: Path) -> None:
    rows = [*ROWS, row("z", 7, 0.2, 1.0, task="u"), row("y", 9, 0.4, 0.0, task="u")]
    pq.write_table(pa.Table.from_pylist([r | {"response": "x"} for r in rows]), tmp_path / "samples.parquet")
    inputs = {"evaluation": Artifact(kind="evaluation", fingerprint="0", path=tmp_path, record={})}
    found = run({"seed": 4}, inputs, tmp_path, Silent()).metrics
    assert set(found["tasks"]) == {"t", "u"}
    assert found["tasks"]["t"] == describe(ROWS, seed=4)
    assert found["all"]["n"] == 7
    assert found["all"]["length_median"]["value"] == 20
    assert run({"seed": 4}, inputs, tmp_path, Silent()).metrics == found


def test_rows_that_are_no_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(path)
    pq.write_table(pa.table({"item_id": ["a"]}), path)
    with pytest.raises(DataError, match="'problem' is missing"):
        read_rows(path)
