"""The landscape on the page: bands, reference lines and the map's orientation, against the records' own numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import scipy.stats
from synthetic import World, complete

from prismlab.report.landscape import Walk, drawings, landscape, path_rows
from prismlab.report.records import Records

CHAIN = ("base", "mid[MCS]", "mid[MCS]>rl[MCS]")
ALONG = {k / 4: [10.0 + 5 * k, 12.0 + 5 * k, 17.0 + 5 * k] for k in range(9)}


def section(world: World) -> Any:
    return landscape(Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs))


def figures(world: World) -> dict[str, Any]:
    found = {drawing.id: drawing.figure for drawing in section(world).drawings}
    for figure in found.values():
        go.Figure(figure)
    return found


def walked(seeds: tuple[int, ...] = (0, 1, 2), grid: int = 0) -> World:
    world = complete(seeds)
    world.walk(*CHAIN, ALONG, grid)
    return world


def test_several_seeds_show_their_mean_their_lines_and_the_interval_over_seeds() -> None:
    data = figures(walked())["landscape"]["data"]
    band, mean, *rest = data
    assert band["fill"] == "toself"
    assert mean["x"] == sorted(ALONG)
    assert mean["y"] == pytest.approx([np.mean(values) for values in ALONG.values()])
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(ALONG[0.5]), scipy.stats.sem(ALONG[0.5]))
    assert band["y"][2] == pytest.approx(high)
    assert band["y"][-3] == pytest.approx(low)
    assert min(band["y"]) >= 0
    assert [trace["y"][0] for trace in rest[:3]] == ALONG[0.0]
    straight = next(trace for trace in data if trace["name"].startswith("straight"))
    assert straight["x"] == [0.0, 1.0, 2.0]
    assert straight["y"] == pytest.approx([13, 33, 53])
    hidden = [trace["name"] for trace in data if trace.get("visible") == "legendonly" and trace["showlegend"]]
    assert hidden == ["math", "code", "science"]


def test_one_seed_shows_the_interval_over_items() -> None:
    band, line, *_ = figures(walked((0,)))["landscape"]["data"]
    assert line["y"] == [values[0] for values in ALONG.values()]
    assert band["y"][:9] == pytest.approx([value + 3 for value in line["y"]])
    assert band["y"][9:] == pytest.approx([value - 3 for value in reversed(line["y"])])
    assert "over items inside the one seed" in section(walked((0,))).drawings[0].caption


def test_ticks_name_the_checkpoints() -> None:
    axis = figures(walked())["landscape"]["layout"]["xaxis"]
    assert axis["ticktext"] == ["base", "0.25", "0.5", "0.75", "mid", "0.25", "0.5", "0.75", "RL"]


def test_a_runs_from_left_to_right_on_the_map_and_b_upwards() -> None:
    surface, path, numbers = figures(walked(grid=3))["landscape-grid"]["data"]
    assert (surface["x"], surface["y"]) == ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    assert surface["z"] == [[1.0, 46.0, 91.0], [2.5, 47.5, 92.5], [4.0, 49.0, 94.0]], "means over seeds, rows are b"
    assert (path["x"], path["y"]) == ([0, 1, 1], [0, 0, 1])
    assert numbers["text"][:3] == ["1", "46", "91"]
    assert "landscape-grid" not in figures(walked())


def test_the_table_has_a_row_for_each_point() -> None:
    (table,) = section(walked()).tables
    assert table.head == ["point", "average", "above the straight line", "math", "code", "science"]
    assert [row[0].text for row in table.rows] == [
        "base", "0.25 of the way to mid[MCS]", "0.5 of the way to mid[MCS]", "0.75 of the way to mid[MCS]", "mid[MCS]",
        *(f"{t} of the way to mid[MCS]>rl[MCS]" for t in (0.25, 0.5, 0.75)), "mid[MCS]>rl[MCS]",
    ]  # fmt: skip
    assert [row[2].text for row in table.rows] == ["–", "−1.0", "−1.0", "−1.0", "–", "−1.0", "−1.0", "−1.0", "–"]
    assert table.rows[4][1].text == "33.0"


def test_two_checkpoints_have_one_leg() -> None:
    path = [{"leg": 1, "t": t, "domains": {"math": {"value": 9 * t}}, "average": {"value": 9 * t, "lo": 0, "hi": 10,
             "items": 4}, "deviation": None} for t in (0.0, 0.5, 1.0)]  # fmt: skip
    walk = Walk(title="A → B", names=["A", "B"], seeds={0: {"path": path, "grid": None}})
    assert [row[0] for row in path_rows(walk)] == ["A", "0.5 of the way to B", "B"]
    (drawing,) = drawings([walk], "")
    assert drawing.figure["layout"]["xaxis"]["ticktext"] == ["start", "0.5", "end"]
    assert [t["name"] for t in drawing.figure["data"]] == [
        "average",
        "average",
        "straight line between the checkpoints",
    ]


def test_several_landscapes_have_a_panel_each_and_none_has_a_note() -> None:
    world = walked()
    world.walk("base", "mid[MC]", "mid[MC]>rl[MCS]", {x: [20.0, 20.0, 20.0] for x in ALONG})
    figure = figures(world)["landscape"]
    assert {trace["yaxis"] for trace in figure["data"]} == {"y", "y2"}
    assert len(section(world).tables) == 2
    world.forget("landscape")
    assert section(world).empty
    assert "not part of this study" in section(world).note
