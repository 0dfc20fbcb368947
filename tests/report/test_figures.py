"""Figures, numbers and the small plots of the cards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import complete

from prismlab.claims.ledger import build
from prismlab.errors import DataError
from prismlab.report.cards import EDGE, WIDTH, card, plot
from prismlab.report.figures import Bars, Line, Panel, draw, grid, legend_height, mean_line, safe, stacked, thin
from prismlab.report.graph import layout
from prismlab.report.records import Records, over_seeds
from prismlab.report.samples import LONGEST, read_samples
from prismlab.report.text import duration, p_value, short
from prismlab.stats import Interval


@given(st.integers(1, 3000), st.integers(2, 400))
def test_thin_keeps_both_ends_and_the_order(n: int, most: int) -> None:
    points = [(float(i), float(-i)) for i in range(n)]
    kept = thin(points, most)
    assert len(kept) == min(n, most)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(set(kept))


def test_mean_line_is_over_the_steps_that_all_seeds_have() -> None:
    assert mean_line({0: [(1, 2.0), (2, 4.0), (3, 9.0)], 1: [(1, 4.0), (2, 8.0)]}) == [(1, 3.0), (2, 6.0)]


def test_lines_show_mean_and_seeds_and_one_legend_entry() -> None:
    line = Line(name="a", colour="#123456", seeds={0: [(1, 1.0), (2, 2.0)], 1: [(1, 3.0), (2, 4.0)]})
    figure = draw([Panel(title="x", lines=[line]), Panel(title="y", lines=[line])])
    assert [t["y"] for t in figure["data"][:3]] == [[2.0, 3.0], [1.0, 2.0], [3.0, 4.0]]
    assert [t["showlegend"] for t in figure["data"]] == [True] + [False] * 5
    assert [t["meta"]["seed"] for t in figure["data"][:3]] == [None, 0, 1]
    assert figure["data"][3]["xaxis"] == "x2"


def test_many_lines_are_thinned_further() -> None:
    points = [(float(i), 0.0) for i in range(2000)]
    lines = [Line(name=str(k), colour="#000000", seeds=dict.fromkeys(range(3), points)) for k in range(100)]
    figure = draw([Panel(title="", lines=lines)])
    assert sum(len(t["x"]) for t in figure["data"]) <= 41_000


def test_bars_carry_their_intervals_and_leave_out_what_is_missing() -> None:
    values = {
        "a": Interval(5.0, 3.0, 8.0, 3, "t"),
        "b": Interval(None, None, None, 0, "t"),
        "c": Interval(1.0, None, None, 1, "t"),
    }
    trace = draw([Panel(title="", bars=[Bars(name="x", colour="#000000", values=values)])])["data"][0]
    assert (trace["x"], trace["y"]) == (["a", "c"], [5.0, 1.0])
    assert (trace["error_y"]["array"], trace["error_y"]["arrayminus"]) == ([3.0, None], [2.0, None])
    assert trace["customdata"] == ["interval 3 to 8 (3 seeds)", "no interval"]


def test_panels_without_points_are_left_out() -> None:
    empty = Panel(title="none", lines=[Line(name="a", colour="#000000", seeds={0: []})])
    full = Panel(title="one", lines=[Line(name="a", colour="#000000", seeds={0: [(1, 1.0)]})])
    figure = draw([empty, full])
    assert [a["text"] for a in figure["layout"]["annotations"]] == ["<b>one</b>"]
    assert draw([empty])["data"] == []


@given(st.integers(1, 13), st.integers(1, 4))
def test_panels_do_not_overlap(n: int, columns: int) -> None:
    places = grid(n, columns)
    assert len(places) == n
    for i, ((x0, x1), (y0, y1)) in enumerate(places):
        assert 0 <= x0 < x1 <= 1 + 1e-9
        assert 0 <= y0 < y1 <= 1 + 1e-9
        for (a0, a1), (b0, b1) in places[:i]:
            assert x0 >= a1 or x1 <= a0 or y0 >= b1 or y1 <= b0


def test_stacked_rows_and_legend() -> None:
    figure = stacked(
        {"mc": {"web": 40.0, "math": 60.0}, "web": {"web": 100.0}}, {"web": "#000", "math": "#fff"}, "percent"
    )
    assert [t["x"] for t in figure["data"]] == [[40.0, 100.0], [60.0, None]]
    assert legend_height(["x" * 40] * 30) > legend_height(["x"])


def test_markup_in_names_is_shown_as_written() -> None:
    assert safe("<b>&amp;</b>") == "&lt;b>&amp;amp;&lt;/b>"
    assert safe("mid[MCS]>rl[MCS]") == "mid[MCS]>rl[MCS]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (25.2118, "25.2"), (-0.000492, "−0.000492"), (26214400000, "2.62e+10"), (1234.5, "1,234"),
     (0.99942, "0.999"), (5e-7, "5.00e-07"), (99.96, "100.0")],
)  # fmt: skip
def test_short_numbers(value: float | None, text: str) -> None:
    assert short(value) == text


def test_durations_and_p_values() -> None:
    assert [duration(s) for s in (None, 2.34, 61.0, 3600 * 5 + 120)] == ["–", "2.3 s", "1 min 01 s", "5 h 02 min"]
    assert [p_value(p) for p in (None, 0.01234, 3e-6)] == ["–", "= 0.012", "< 0.0001"]


def test_seeds_without_spread_have_no_bounds_and_one_seed_falls_back_on_items() -> None:
    assert over_seeds({0: 3.0, 1: 3.0}, 0.95).lo is None
    inside = Interval(4.0, 1.0, 7.0, 100, "items")
    assert over_seeds({0: 4.0}, 0.95, inside) is inside
    assert over_seeds({0: 4.0, 1: 5.0}, 0.95, inside).n == 2


def part(value: float, lo: float | None, hi: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    effect = {"label": "x", "value": value, "lo": lo, "hi": hi, "n": 3, "unit": "points"}
    return {"effect": effect, "bounds": [low, high], "seeds": {"0": value}}


def test_the_small_plot_puts_interval_and_threshold_where_they_belong() -> None:
    found = plot(part(5.0, 4.0, 6.0, 0.0, None))
    assert found is not None
    assert found.lo is not None
    assert found.hi is not None
    assert found.value is not None
    (bound,) = found.bounds
    assert EDGE < bound < found.lo < found.value < found.hi < WIDTH - EDGE
    assert found.region == (bound, pytest.approx(WIDTH - EDGE - bound))
    assert (found.value - bound) / (found.lo - bound) == pytest.approx(5 / 4, rel=0.01)
    assert found.zero is None


def test_the_small_plot_of_an_upper_bound_and_of_equivalence() -> None:
    upper = plot(part(-1.0, -2.0, 0.5, None, 0.3))
    assert upper is not None
    assert upper.region is not None
    assert upper.region[0] == EDGE
    assert upper.zero is not None
    both = plot(part(0.2, -0.1, 0.5, -1.8, 1.8))
    assert both is not None
    assert both.region is not None
    assert both.region[0] == both.bounds[0]
    assert both.region[0] + both.region[1] == pytest.approx(both.bounds[1], abs=0.02)


def test_a_single_value_can_be_drawn() -> None:
    lone = plot({**part(0.0, None, None, 0.0, None)})
    assert lone is not None
    assert lone.value == lone.bounds[0]
    assert plot({"effect": {"value": None}, "bounds": [0.0, None], "seeds": {}}) is None


def test_cards_sign_differences_and_not_levels() -> None:
    claims = build(complete().table)["claims"]
    cards = {c["id"]: card(c) for c in claims}
    assert cards["C1"].effect.startswith("+")
    assert cards["C1"].effect.endswith(" points")
    assert re.fullmatch(r"\d\.\d+", cards["C10"].effect)
    assert cards["C7"].effect.endswith(" percent")
    assert not cards["C7"].effect.startswith("+")
    unknown = {**claims[0], "effect": {**claims[0]["effect"], "value": None}}
    assert card(unknown).effect == "–"
    assert cards["C11"].interval.startswith("[0.999")


def test_graph_places_children_right_of_their_start_and_nothing_on_top_of_another() -> None:
    world = complete()
    graph = layout(Records(study=world.study, entries=world.entries, arms=world.arms, inputs=world.inputs))
    places = {node.name: node for node in graph.nodes}
    assert set(places) == {"tiny", *world.study["checkpoints"]}
    for name, spec in world.study["checkpoints"].items():
        assert places[spec["from"]].x < places[name].x
    assert len({(n.x, n.y) for n in graph.nodes}) == len(graph.nodes)
    assert max(n.x for n in graph.nodes) < graph.width
    assert max(n.y for n in graph.nodes) < graph.height
    assert len(graph.edges) == len(world.study["checkpoints"])


def rows(n: int, **changes: object) -> list[dict[str, object]]:
    base = {
        "task": "t", "domain": "math", "question": "q", "answer": "a", "response": "r", "score": 1.0, "tokens": 3,
        "verdict": "right", "reason": "", "item_id": "i", "sample": 0,
    }  # fmt: skip
    return [{**base, **changes} for _ in range(n)]


def test_samples_are_the_first_of_each_sort_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    data = [
        *rows(600, score=None, response="unscored"),
        *rows(1, score=0.0, response="w" * (LONGEST + 10)),
        *rows(1, score=1.0, response="first right"),
        *rows(1, score=1.0, response="second right"),
    ]
    pq.write_table(pa.Table.from_pylist(data), path)
    right, wrong = read_samples(path, 1)
    assert (right.right, right.response) == (True, "first right")
    assert wrong.response.endswith("… (10 more characters)")


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=re.escape("samples.parquet")):
        read_samples(path, 1)
    pq.write_table(pa.Table.from_pylist([{"score": 1.0}]), path)
    with pytest.raises(DataError):
        read_samples(path, 1)


def test_bars_without_any_interval_have_no_whiskers_and_a_zero_is_drawn() -> None:
    values = {"a": Interval(0.0, None, None, 3, "t"), "b": Interval(2.0, None, None, 3, "t")}
    figure = draw([Panel(title="one", bars=[Bars(name="x", colour="#123456", values=values)])])
    trace = figure["data"][0]
    assert "error_y" not in trace
    assert trace["y"] == [0.0, 2.0]
    assert trace["marker"]["line"] == {"color": "#123456", "width": 1}


def test_a_single_name_stands_in_the_legend() -> None:
    """Nothing else on the figure says which checkpoint is drawn."""
    figure = draw([Panel(title="loss", lines=[Line(name="mid[M]", colour="#123456", seeds={0: [(1, 2), (2, 1)]})])])
    assert figure["layout"]["showlegend"] is True
    assert [t["showlegend"] for t in figure["data"]] == [True]
