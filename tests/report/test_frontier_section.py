"""The section on the frontier: numbers of the records, the second draw beside RL, pass@k drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from synthetic import World, complete

from prismlab.report.frontier import GROUPS, frontier
from prismlab.report.records import Records
from prismlab.rl.frontier import frontier as metrics_of


def metrics(gain: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.4, 1.2, size=120)

    def rows(n: int, more: float) -> list[dict[str, Any]]:
        about = [{"task": "t", "item_id": f"p{at}", "problem": f"p{at}", "domain": "math"} for at in range(120)]
        hits = rng.random((120, n)) < np.minimum(1, rates + more)[:, None]
        return [{**one, "sample": s, "score": float(hits[at, s])} for at, one in enumerate(about) for s in range(n)]

    return metrics_of(rows(16, 0.0), rows(16, 0.0), rows(16, gain))


@pytest.fixture
def world() -> World:
    world = complete((0, 1), sweeps=False)
    world.entries = [entry for entry in world.entries if entry["kind"] != "frontier"]
    for seed in (0, 1):
        world.add("frontier", "rl-mcs-mcs", seed, metrics(0.1, seed), {}, checkpoint="rl-mcs-mcs", start="mid-mcs")
    return world


def section(world: World) -> Any:
    return frontier(Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs))


def test_gains_are_means_over_seeds(world: World) -> None:
    (table,) = section(world).tables
    assert [row[1].text for row in table.rows] == list(GROUPS.values())
    both = [metrics(0.1, seed)["groups"]["0"] for seed in (0, 1)]
    unsolved = table.rows[0]
    assert unsolved[2].text == str(sum(one["prompts"] for one in both))
    assert float(unsolved[3].text) == pytest.approx(np.mean([one["difference"]["value"] for one in both]), abs=0.06)
    assert 5 < float(unsolved[3].text) < 15


def test_the_second_draw_stands_beside_rl(world: World) -> None:
    groups, passes = section(world).drawings
    names = [trace["name"] for trace in groups.figure["data"]]
    assert {"start, drawn again", "after RL"} == set(names)
    lines = [trace for trace in passes.figure["data"] if trace["name"] == "after RL" and trace.get("x")]
    assert any(list(trace["x"]) == [1, 2, 4, 8, 16] for trace in lines)


def test_without_the_analysis(world: World) -> None:
    world.entries = [entry for entry in world.entries if entry["kind"] != "frontier"]
    empty = section(world)
    assert empty.empty
    assert "not part of this study" in empty.note
