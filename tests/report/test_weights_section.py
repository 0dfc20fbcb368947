"""The weights section: what its figures and tables say of records whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from synthetic import World, complete

from prismlab.report.records import Records
from prismlab.report.sections import Table
from prismlab.report.weights import STEPS, divergence

STEP = "weights/mid-mcs:rl-mcs-mcs"
LABEL = "mid[MCS] → mid[MCS]>rl[MCS]"


def section(world: World) -> Any:
    return divergence(Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs))


def metrics(world: World, seed: int) -> dict[str, Any]:
    found = world.inputs[f"{STEP}/s{seed}"].metrics
    assert isinstance(found, dict)
    return found


def table(world: World, start: str) -> Table | None:
    return next((one for one in section(world).tables if one.caption.startswith(start)), None)


def row(found: Table | None, label: str) -> dict[str, tuple[str, str]]:
    assert found is not None
    (cells,) = [cells for cells in found.rows if cells[0].text == label]
    return {head: (cell.text, cell.small) for head, cell in zip(found.head, cells, strict=True)}


def mean(world: World, *path: str) -> float:
    values: list[Any] = [metrics(world, seed) for seed in world.seeds]
    for key in path:
        values = [value[key] for value in values]
    return float(np.mean(values))


def test_bars_of_steps_are_means_over_seeds_and_add_up() -> None:
    world = complete()
    figure = {drawing.id: drawing.figure for drawing in section(world).drawings}["steps"]
    go.Figure({key: figure[key] for key in ("data",)})
    bars = {trace["name"]: dict(zip(trace["y"], trace["x"], strict=True)) for trace in figure["data"]}
    assert list(bars) == [*STEPS.values(), "unchanged at 1%"]
    for key, told in STEPS.items():
        assert bars[told][LABEL] == pytest.approx(100 * mean(world, "total", "ulp", key))
    assert sum(bars[told][LABEL] for told in STEPS.values()) == pytest.approx(100)
    assert bars["unchanged at 1%"][LABEL] == pytest.approx(100 * (1 - mean(world, "total", "changed", "0.01")))


def test_records_without_steps_give_no_bars() -> None:
    world = complete()
    for key, artifact in world.inputs.items():
        if key.startswith("weights/"):
            artifact.metrics["total"]["ulp"] = None  # type: ignore[index]
    figure = {drawing.id: drawing.figure for drawing in section(world).drawings}["steps"]
    assert figure["data"] == []
    assert row(table(world, "Whole model"), LABEL)["one step, %"] == ("–", "")


def test_the_whole_model_in_numbers() -> None:
    world = complete()
    found = row(table(world, "Whole model"), LABEL)
    share = mean(world, "total", "changed", "0.01")
    assert found["changed by over 1%, %"][0] == f"{100 * share:.2f}"
    assert found["one step, %"][0] == f"{100 * mean(world, 'total', 'ulp', '1'):.2f}"
    assert found["sign flips, %"][0] == f"{100 * mean(world, 'total', 'sign_flips'):.2f}"
    ratios = [
        metrics(world, seed)["total"]["equal"] / (1 - metrics(world, seed)["total"]["changed"]["0.01"])
        for seed in world.seeds
    ]
    assert found["equal of the unchanged, %"][0] == f"{min(100.0, 100 * float(np.mean(ratios))):.2f}"


def test_rounding_is_told_where_masters_were_kept() -> None:
    world = complete()
    assert table(world, "Saved bf16") is None
    for seed, hidden in zip(world.seeds, (0.20, 0.25, 0.30), strict=True):
        metrics(world, seed)["rounding"] = {
            "equal_saved": 0.8,
            "equal_master": 0.6,
            "hidden": 0.2,
            "hidden_of_unchanged": hidden,
            "changed_saved": {"0.01": 0.1},
            "changed_master": {"0.01": 0.11},
        }
    found = table(world, "Saved bf16")
    assert found is not None
    assert found.caption.endswith(f"So 25.0% of what looks untouched in {LABEL} is rounding.")
    cells = row(found, LABEL)
    assert (cells["equal as saved, %"][0], cells["equal in float32, %"][0]) == ("80.00", "60.00")
    assert cells["hidden of the equal, %"][0] == "25.00"
    assert cells["over 1% in float32, %"][0] == "11.00"
    assert len(found.rows) == 1


def test_spectra_are_told_where_they_were_asked_for() -> None:
    world = complete()
    assert table(world, "Spectra") is None
    for seed in world.seeds:
        still = {"name": "q", "subcomponent": "attention.q", "layer": 0, "shape": [2, 2], "stable_rank": None}
        moving = {"frobenius": 5.0, "singular": [4.0, 2.0], "stable_rank": (5 / 4) ** 2 + seed}
        up = {"name": "<b>\x1b", "subcomponent": "mlp.up", "layer": 0, "shape": [8, 4], **moving}
        metrics(world, seed)["spectra"] = [{**still, "singular": [], "frobenius": 0.0}, up]
    found = table(world, "Spectra")
    assert found is not None
    assert len(found.rows) == 1
    cells = row(found, LABEL)
    assert cells["update of"][0] == "<b>\\x1b"
    assert cells["shape"][0] == "8 × 4"
    assert cells["stable rank"][0] == f"{(5 / 4) ** 2 + float(np.mean(world.seeds)):.1f}"
    assert cells["held by the top 8, %"][0] == f"{100 * (16 + 4) / 25:.1f}"


def test_parts_of_direct_transitions_stand_in_a_table() -> None:
    world = complete()
    found = table(world, "Steps of the saved format and sign flips")
    assert found is not None
    assert found.folded
    rows = {(cells[0].text, cells[1].text): cells for cells in found.rows}
    cells = rows[LABEL, "attention.q"]
    assert cells[3].text == f"{100 * mean(world, 'subcomponents', 'attention.q', 'equal'):.2f}"
    assert cells[4].text == f"{100 * mean(world, 'subcomponents', 'attention.q', 'ulp', '1'):.2f}"
    assert not any(label.startswith("base → mid[MCS]>rl") for label, _ in rows)
