"""CKA on the page: lines by layer, the map of pairs, layers crossed, and what the table says of missing numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from synthetic import World, complete

from prismlab.report.heat import NEAR_ONE, HeatMap, heat_maps
from prismlab.report.records import Records
from prismlab.report.representations import representations


def section(world: World) -> Any:
    return representations(Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs))


def drawn(world: World) -> dict[str, Any]:
    return {drawing.id: drawing.figure for drawing in section(world).drawings}


def metrics(world: World, key: str) -> list[Any]:
    return [world.inputs[f"cka/{key}/s{seed}"].metrics["sets"] for seed in world.seeds]


def test_the_map_shows_every_pair_once_it_was_compared() -> None:
    world = complete()
    web, worked = drawn(world)["cka-pairs"]["data"]
    assert web["x"] == web["y"] == ["base", "mid[MC]", "mid[MCS]", "mid[MC]>rl[MCS]", "mid[MCS]>rl[MCS]"]
    expected = np.mean([sets["math-worked"]["min"] for sets in metrics(world, "base:mid-mcs")])
    assert worked["z"][0][2] == worked["z"][2][0] == pytest.approx(expected)
    assert [worked["z"][k][k] for k in range(5)] == [1.0] * 5
    assert worked["z"][0][1] is None
    assert worked["text"][0][1] == "–"
    assert worked["zmin"] == min(value for row in worked["z"] for value in row if value is not None)
    assert web["text"][0][2] == f"{web['z'][0][2]:.4f}"


def test_one_pair_has_no_map() -> None:
    world = complete()
    for pair in (("mid[MC]", "mid[MC]>rl[MCS]"), ("mid[MCS]", "mid[MCS]>rl[MCS]")):
        old, new = (world.arms[arm] for arm in pair)
        for seed in world.seeds:
            del world.inputs[f"cka/{old}:{new}/s{seed}"]
    assert set(drawn(world)) == {"cka"}


def test_bootstrap_means_and_crossed_layers() -> None:
    world = complete()
    for seed, sets in zip(world.seeds, metrics(world, "base:mid-mcs"), strict=True):
        for row in sets["web"]["layers"]:
            row["mean"] = 0.5 + row["layer"] / 10 + seed / 100
        sets["web"] |= {"cross": {"cka": [[1.0, 0.25], [0.75, None], [0.5, 0.9]], "debiased": None}, "reason": "short"}
    found = section(world)
    figures = {drawing.id: drawing.figure for drawing in found.drawings}
    (trace,) = figures["cka-cross"]["data"]
    assert (trace["x"], trace["y"]) == (["0", "1"], ["0", "1", "2"])
    assert trace["z"][1] == [0.75, None]
    assert (trace["zmin"], trace["zmax"]) == (0.25, 1.0)
    names = {line["name"] for line in figures["cka"]["data"]}
    assert {"base → mid[MCS]", "base → mid[MCS], debiased"} <= names
    (table,) = found.tables
    assert table.head[:4] == ["pair", "web, smallest", "web, bootstrap", "web, debiased"]
    row = next(row for row in table.rows if row[0].text == "base → mid[MCS]")
    assert row[2].text == f"{0.5 + np.mean(world.seeds) / 100:.5f}"
    assert "base → mid[MCS], web: short." in table.caption
    for figure in figures.values():
        go.Figure(figure)


def test_a_wide_map_has_no_numbers_and_fits_the_page() -> None:
    names = [str(n) for n in range(41)]
    wide = HeatMap(title="t", names=names, values=np.ones((41, 41)).tolist(), look=NEAR_ONE)
    found = heat_maps([wide])
    assert found["data"][0]["texttemplate"] == ""
    assert found["layout"]["height"] < 700
    assert found["data"][0]["zmin"] < 1
