"""The section on retention gates: numbers of the records, margins drawn, warnings and stops said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_on_disk import build, page
from synthetic import World, complete

from prismlab.evaluate.retention import retention
from prismlab.report.gates import gates
from prismlab.report.records import Records


def rows(right: int, task: str, n: int = 400) -> list[dict[str, Any]]:
    return [{"task": task, "item_id": str(i), "sample": 0, "score": float(i < right)} for i in range(n)]


def metrics(lost: int) -> dict[str, Any]:
    base = [*rows(300, "addition"), *rows(200, "elements")]
    return retention(base, [*rows(300 - lost, "addition"), *rows(200, "elements")], 5.0, {"elements": 8.0})


def gate(world: World, checkpoint: str, seed: int, lost: int, action: str = "warn") -> None:
    config = {"spec": {"margin": 5.0, "margins": {}, "action": action}}
    entry = {"checkpoint": checkpoint, "reference": "base", "evaluation": "core", "step": f"kept@{checkpoint}"}
    world.add("gate", "kept", seed, metrics(lost), config, **entry)


def records(world: World) -> Records:
    return Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs)


@pytest.fixture
def world() -> World:
    world = complete((0, 1), sweeps=False)
    for seed in (0, 1):
        gate(world, "mid-mcs", seed, 60)
        gate(world, "mid-mc", seed, 0)
    return world


def test_every_benchmark_of_every_seed_is_a_row(world: World) -> None:
    (table,) = gates(records(world)).tables
    assert len(table.rows) == 2 * 2 * 2
    first = [cell.text for cell in table.rows[0]]
    expected = metrics(60)["tasks"]["addition"]
    assert first[:5] == ["mid[MCS]", "base", "addition", "0", "regressed"]
    assert first[5:9] == ["75.0", "60.0", "-15.0", "5"]
    assert table.rows[0][7].small == f"{expected['lo']:+.1f} to {expected['hi']:+.1f}"
    assert [row[8].text for row in table.rows if row[2].text == "elements"] == ["8"] * 4


def test_the_margin_of_each_benchmark_is_drawn(world: World) -> None:
    (drawing,) = gates(records(world)).drawings
    lines = {shape["yref"]: shape["y0"] for shape in drawing.figure["layout"]["shapes"]}
    assert lines == {"y": -5.0, "y2": -8.0}
    bars = [trace for trace in drawing.figure["data"] if trace["yaxis"] == "y" and trace["name"] == "mid[MCS]"]
    assert bars[0]["y"] == pytest.approx([-15.0, -15.0])
    assert bars[0]["x"] == ["mid[MCS], seed 0", "mid[MCS], seed 1"]
    entry = metrics(60)["tasks"]["addition"]
    assert bars[0]["error_y"]["arrayminus"] == pytest.approx([entry["difference"] - entry["lo"]] * 2)


def test_warnings_and_stops_are_said(world: World) -> None:
    note = gates(records(world)).note
    assert note == "Gate kept warns: mid-mcs against base is regressed (seed 0, 1)."
    world.lose("gate", "gate/kept@mid-mcs/s0 ended: the gate stops", checkpoint="mid-mcs", seed=0)
    found = gates(records(world))
    assert "Gate kept, seed 0: gate/kept@mid-mcs/s0 ended: the gate stops." in found.note
    assert len(found.tables[0].rows) == 6


def test_a_gate_that_records_does_not_warn() -> None:
    world = complete((0,), sweeps=False)
    gate(world, "mid-mcs", 0, 60, "record")
    assert gates(records(world)).note == ""


def test_a_study_without_gates_says_so_and_one_with_gates_has_them_on_its_page(tmp_path: Path) -> None:
    assert gates(records(complete((0,), sweeps=False))).note == "This study has no retention gate."
    whole = build(tmp_path / "study", steps=3)
    gate(whole, "mid-mcs", 0, 60)
    html = page(whole, tmp_path / "out")
    assert "Retention gates" in html
    assert "Changes under gate kept" in html
