"""Directions and trajectories on the page: what stands in which cell, and the difference between two starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import scipy.stats
from synthetic import World, complete

from prismlab.report.heat import HeatMap, heat_maps
from prismlab.report.paths import directions, trajectories
from prismlab.report.records import Records


def records(world: World) -> Records:
    return Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs)


def figure(world: World, name: str, make: Any = trajectories) -> dict[str, Any]:
    return {drawing.id: drawing.figure for drawing in make(records(world)).drawings}[name]


def test_a_heat_map_shows_rows_in_order_and_says_what_is_missing() -> None:
    empty = HeatMap(title="nothing", names=["x"], values=[[None]])
    found = heat_maps([empty, HeatMap(title="t", names=["a<b", "c"], values=[[1.0, -0.256], [None, 1.0]])])
    go.Figure(found)
    (trace,) = found["data"]
    assert (trace["x"], trace["z"]) == (["a&lt;b", "c"], [[1.0, -0.256], [None, 1.0]])
    assert trace["text"] == [["1.00", "−0.26"], ["–", "1.00"]]
    assert (trace["zmin"], trace["zmax"]) == (-1.0, 1.0)
    assert found["layout"]["yaxis"]["autorange"] == "reversed"
    assert heat_maps([empty])["data"] == []


def test_names_of_a_right_map_have_room_beside_the_left_one() -> None:
    def gap(left: str, right: str) -> float:
        found = heat_maps([HeatMap(title="t", names=[name], values=[[1.0]]) for name in (left, right)])
        return found["layout"]["xaxis2"]["domain"][0] - found["layout"]["xaxis"]["domain"][1]

    assert gap("a", "mid[MCS]>finetune[MCS]") * 900 > 22 * 6.5  # pixels of a page of full width, of 22 letters
    assert gap("mid[MCS]>finetune[MCS]", "a") == pytest.approx(gap("a", "a"))
    assert gap("a", "a" * 200) <= 0.3


def test_directions_are_means_over_seeds_by_pair_and_component() -> None:
    world = complete()
    cosines = [world.inputs[f"direction/base/s{seed}"].metrics["cosine"][0][2] for seed in world.seeds]
    assert len(set(cosines)) == 3
    (trace,) = figure(world, "direction", directions)["data"]
    assert trace["x"] == ["mid[MC]", "another", "mid[MCS]"]
    assert trace["z"][0][2] == trace["z"][2][0] == pytest.approx(np.mean(cosines))
    (table,) = directions(records(world)).tables
    assert table.head == ["updates", "from", "whole model", "attention", "mlp", "embedding"]
    assert [(row[0].text, row[0].small) for row in table.rows] == [
        ("mid[MC]", "and another"),
        ("mid[MC]", "and mid[MCS]"),
        ("another", "and mid[MCS]"),
    ]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(cosines), scipy.stats.sem(cosines))
    assert table.rows[1][2].text == f"{np.mean(cosines):.3f}"
    assert table.rows[1][2].small == f"[{low:.3f}, {high:.3f}]"
    assert table.rows[1][4].text == f"{np.mean(cosines) - 0.02:.3f}"


def test_the_difference_between_starts_is_paired_by_seed() -> None:
    world = complete()
    traces = {trace["name"]: trace for trace in figure(world, "trajectory-difference")["data"] if trace["xaxis"] == "x"}
    name = "mid[MCS]>rl[MCS] minus base>rl[MCS]"
    assert set(traces) == {name, f"{name}, interval"}
    curves = [
        [100 * np.array(world.inputs[f"trajectory/{run}/s{seed}"].metrics["changed"]["0.01"]) for seed in world.seeds]
        for run in ("rl-mcs-mcs", "rl-base-mcs")
    ]
    difference = np.array(curves[0]) - np.array(curves[1])
    assert traces[name]["x"] == [4, 8, 12, 16, 20]
    assert traces[name]["y"] == pytest.approx(difference.mean(axis=0))
    bounds = [
        trace["y"]
        for trace in figure(world, "trajectory-difference")["data"]
        if trace["xaxis"] == "x" and trace["name"] != name
    ]
    expected = scipy.stats.t.interval(0.95, 2, difference.mean(axis=0), scipy.stats.sem(difference, axis=0))
    assert bounds == [pytest.approx(side) for side in expected]


def test_one_seed_gives_a_difference_without_an_interval() -> None:
    figures = figure(complete((0,)), "trajectory-difference")
    assert {trace["name"] for trace in figures["data"]} == {"mid[MCS]>rl[MCS] minus base>rl[MCS]"}


def test_without_a_run_from_the_base_there_is_no_difference() -> None:
    world = complete()
    world.forget("trajectory", checkpoint="rl-base-mcs")
    section = trajectories(records(world))
    assert [drawing.id for drawing in section.drawings] == ["trajectory"]
    assert len({row[0].small for row in section.tables[0].rows}) == 1


def test_trajectories_by_component_name_what_has_no_value() -> None:
    table = trajectories(records(complete())).tables[1]
    rows = {(row[0].text, row[1].text): row for row in table.rows}
    attention, norm = (rows["mid[MCS]>rl[MCS]", part] for part in ("attention", "norm"))
    assert (attention[2].text, attention[4].text, attention[5].text) == ("0.00200", "5.0", "11.0")
    assert 4.5 < float(attention[3].text) < 5.5
    assert [cell.text for cell in norm[2:]] == ["–"] * 4
