"""The retention gate against figures by hand, planted losses and everything that it must refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from prismlab.errors import DataError, SpecError
from prismlab.evaluate.retention import differing, overall, read_rows, retention, run, sentence
from prismlab.run.step import Artifact, Silent
from prismlab.stats import paired_items, power_items


def rows(scores: Any, task: str = "t", **more: Any) -> list[dict[str, Any]]:
    """Rows of a task: one list of scores an item."""
    return [
        {"task": task, "item_id": str(i), "problem": str(i), "sample": s, "score": score, "question": f"q{i}", **more}
        for i, item in enumerate(scores)
        for s, score in enumerate(item)
    ]


def single(right: int, n: int) -> list[list[float]]:
    return [[1.0]] * right + [[0.0]] * (n - right)


def test_one_benchmark_by_hand() -> None:
    """400 items: 300 right, 20 of them lost, 12 others gained: Bonett and Price's interval from its formula."""
    base = rows(single(300, 400))
    new = rows([[0.0]] * 20 + [[1.0]] * 280 + [[1.0]] * 12 + [[0.0]] * 88)
    found = retention(base, new, 5.0)["tasks"]["t"]
    lost, gained = 21 / 402, 13 / 402
    half = 1.959964 * math.sqrt((lost + gained - (gained - lost) ** 2) / 402)
    assert (found["base"], found["new"], found["difference"]) == pytest.approx((75.0, 73.0, -2.0))
    assert (found["lo"], found["hi"]) == pytest.approx(
        (100 * (gained - lost - half), 100 * (gained - lost + half)), abs=1e-4
    )
    assert (found["better"], found["worse"], found["items"]) == (12, 20, 400)
    z = (gained - lost + 0.05) / (half / 1.959964)
    assert found["p_retained"] == pytest.approx(scipy.stats.norm.sf(z), rel=1e-4)
    assert found["verdict"] == "retained"


def test_undecided_says_how_many_items_decide() -> None:
    """The number stated is the number at which the test's power is 80%, were the difference the one seen."""
    base = rows(single(300, 400))
    new = rows([[0.0]] * 20 + [[1.0]] * 280 + [[1.0]] * 12 + [[0.0]] * 88)
    found = retention(base, new, 2.5)["tasks"]["t"]
    assert found["verdict"] == "undecided"
    variance = paired_items(
        [r["score"] for r in new], [r["score"] for r in base], [r["item_id"] for r in base]
    ).variance
    assert power_items(0.005, found["items_needed"], variance) == pytest.approx(0.8, abs=1e-3)
    assert power_items(0.025, found["items_if_equal"], variance) == pytest.approx(0.8, abs=1e-2)
    # The very margin lost: no number of items tells.
    assert retention(base, new, 2.0)["tasks"]["t"]["items_needed"] is None


def test_an_average_hides_no_benchmark() -> None:
    base = [row for k in range(6) for row in rows(single(1000, 2000), f"t{k}")]
    new = rows(single(800, 2000), "t0") + [row for k in range(1, 6) for row in rows(single(1100, 2000), f"t{k}")]
    found = retention(base, new, 2.0)
    assert found["average"] == pytest.approx((5 * 5 - 10) / 6)
    assert found["verdict"] == "regressed"
    assert [entry["verdict"] for entry in found["tasks"].values()] == ["regressed"] + ["retained"] * 5
    assert sentence(found).startswith("regressed t0 (-10.0); retained t1 (+5.0)")


def test_a_loss_is_held_to_holm_and_retention_is_not() -> None:
    """A p-value of 2% shows a loss alone and not among six."""
    base = rows(single(1500, 3000))
    n = next(n for n in range(60, 200) if retention(base, rows(single(1500 - n, 3000)), 2.0)["verdict"] == "regressed")
    alone, new = retention(base, rows(single(1500 - n, 3000)), 2.0), rows(single(1500 - n, 3000))
    assert alone["tasks"]["t"]["p_regressed"] < 0.025
    others = [row for k in range(5) for row in rows(single(1500, 3000), f"u{k}")]
    found = retention(base + others, new + others, 2.0)
    assert found["tasks"]["t"]["p_regressed_holm"] == pytest.approx(6 * alone["tasks"]["t"]["p_regressed"])
    assert found["tasks"]["t"]["verdict"] == "undecided"
    assert found["verdict"] == "undecided"
    assert all(found["tasks"][f"u{k}"]["verdict"] == "retained" for k in range(5))
    assert overall(["retained", "undecided"]) == "undecided"


def test_nothing_changed_on_few_items_is_not_shown_to_be_retained() -> None:
    few = retention(rows(single(20, 30)), rows(single(20, 30)), 2.0)["tasks"]["t"]
    assert (few["difference"], few["verdict"]) == (0.0, "undecided")
    assert few["lo"] == pytest.approx(-100 * 1.959964 * math.sqrt(2) / 32, rel=1e-4)
    many = retention(rows(single(200, 300)), rows(single(200, 300)), 2.0)["tasks"]["t"]
    assert many["verdict"] == "retained"


def test_unscored_pairs_may_have_been_lost() -> None:
    """3% of the answers have no verdict: they could hide a loss of 3 points, so 2 are not shown to be kept."""
    base, new = rows(single(1000, 2000)), rows(single(1000, 2000))
    assert retention(base, new, 2.0)["verdict"] == "retained"
    for row in new[:60]:
        row["score"] = None
    found = retention(base, new, 2.0)["tasks"]["t"]
    assert (found["verdict"], found["unscored"], found["difference"]) == ("undecided", 60, 0.0)
    assert "60 of 2000 pairs are unscored" in found["reason"]
    assert retention(base, new, 4.0)["verdict"] == "retained"


def test_what_is_said_holds_however_the_unscored_pairs_would_have_been_scored() -> None:
    """Of 4,000 pairs many have no score: each verdict is checked with all of them lost, and with all of them won."""
    told: set[str] = set()
    for unscored, better, worse, margin in (
        (1200, 980, 0, 2.0),  # 35 points up in the others: if the rest is lost, 5.5 points are lost in all
        (1200, 1300, 0, 2.0),
        (1200, 0, 1092, 2.0),  # 39 points down in the others: if the rest is won, 2.7 points are won in all
        (1200, 0, 1500, 2.0),
        (40, 0, 20, 2.0),
    ):
        n = 4000 - unscored
        base = rows([[0.0]] * better + [[1.0]] * worse + [[1.0]] * (n - better - worse) + [[None]] * unscored)
        new = rows([[1.0]] * better + [[0.0]] * worse + [[1.0]] * (n - better - worse) + [[1.0]] * unscored)
        found = retention(base, new, margin)["tasks"]["t"]
        told.add(found["verdict"])
        seen = (better - worse) / 4000
        if found["verdict"] == "retained":
            assert seen - unscored / 4000 > -margin / 100
        if found["verdict"] == "regressed":
            assert seen + unscored / 4000 < -margin / 100
        if found["verdict"] == "undecided" and found["items_needed"] is not None:
            assert seen - unscored / 4000 > -margin / 100 or seen + unscored / 4000 < -margin / 100
    assert told == {"retained", "regressed", "undecided"}


def test_samples_and_problems_are_one_unit() -> None:
    """Eight equal samples of an item are worth one; so are eight items that ask one thing."""
    base, new = single(60, 120), [[0.0]] * 12 + [[1.0]] * 48 + [[0.0]] * 60
    one = retention(rows(base), rows(new), 5.0)["tasks"]["t"]
    eight = retention(rows([s * 8 for s in base]), rows([s * 8 for s in new]), 5.0)["tasks"]["t"]
    assert (one["lo"], one["hi"]) == pytest.approx((eight["lo"], eight["hi"]), rel=1e-9)
    copies = [[{**r, "item_id": f"{r['item_id']}-{k}"} for r in rows(side) for k in range(8)] for side in (base, new)]
    asked = retention(copies[0], copies[1], 5.0)["tasks"]["t"]
    assert (asked["lo"], asked["items"]) == (pytest.approx(one["lo"]), 120)


def test_margins_of_single_benchmarks() -> None:
    base = rows(single(1000, 2000)) + rows(single(1000, 2000), "u")
    new = rows(single(930, 2000)) + rows(single(1000, 2000), "u")
    found = retention(base, new, 1.0, {"t": 6.0})
    assert found["verdict"] == "retained"
    assert [entry["margin"] for entry in found["tasks"].values()] == [6.0, 1.0]
    with pytest.raises(SpecError, match="no such benchmark; there are t, u"):
        retention(base, new, 1.0, {"v": 1.0})
    with pytest.raises(SpecError, match="margin 0"):
        retention(base, new, 0.0)


def test_other_items_are_refused() -> None:
    base, new = rows(single(5, 10)), rows(single(5, 10))
    with pytest.raises(DataError, match="only new has the task u"):
        retention(base, new + rows(single(1, 2), "u"), names=("base", "new"))
    with pytest.raises(DataError, match="only base has the item t / 9; a gate needs"):
        retention(base, new[:-1], names=("base", "new"))
    with pytest.raises(DataError, match="its question has changed"):
        retention(base, [{**row, "question": "other"} for row in new])
    with pytest.raises(DataError, match="base has 1 samples, new 2"):
        retention(base, rows([[0.0, 1.0], *single(5, 10)[1:]]), names=("base", "new"))
    with pytest.raises(DataError, match="stands there twice"):
        retention(base, new + new[:1])
    with pytest.raises(DataError, match="no sample rows"):
        retention([], [])
    with pytest.raises(DataError, match=r"\\x1b"):
        retention(base, new + rows(single(1, 2), "\x1b[2J"))


@pytest.mark.parametrize("score", [math.nan, 1.5, -0.1])
def test_broken_scores_are_refused(score: float) -> None:
    with pytest.raises(DataError, match="is not from 0 to 1"):
        retention(rows(single(5, 10)), rows([[score], *single(5, 10)[1:]]))


def test_one_item_decides_nothing() -> None:
    found = retention(rows([[1.0] * 8]), rows([[0.0] * 8]))["tasks"]["t"]
    assert (found["verdict"], found["difference"]) == ("undecided", None)
    assert "fewer than 2 items" in found["reason"]


def test_files_are_read_or_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(single(1, 2))), tmp_path / "good.parquet")
    assert [row["score"] for row in read_rows(tmp_path / "good.parquet")] == [1.0, 0.0]
    pq.write_table(pa.table({"task": ["t"], "item_id": ["1"], "sample": [0]}), tmp_path / "lacks.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("task", "item_id", "sample", "score")}),
                   tmp_path / "empty.parquet")  # fmt: skip
    good = {"task": ["t", "t"], "item_id": ["1", "2"], "sample": [0, 0], "score": [1.0, 0.0]}
    broken = {"words": {"score": ["1.0", "0.0"]}, "lists": {"score": [[1.0], [0.0]]}, "gap": {"sample": [0, None]},
              "letters": {"sample": ["a", "b"]}, "nameless": {"task": ["t", None]}}  # fmt: skip
    for name, columns in broken.items():
        pq.write_table(pa.table({**good, **columns}), tmp_path / f"{name}.parquet")
    for name, said in (
        ("words", "column score is of type string"),
        ("lists", "column score is of type list"),
        ("gap", "1 rows have no sample"),
        ("letters", "column sample is of type string"),
        ("nameless", "1 rows have no task"),
        ("lacks", "no column score"),
        ("text", "cannot be read"),
        ("gone", "cannot be read"),
        ("empty", "no sample row"),
    ):
        with pytest.raises(DataError, match=said):
            read_rows(tmp_path / f"{name}.parquet")


def test_settings_that_differ_are_named() -> None:
    one = {"spec": {"temperature": 0.6, "samples": 4}, "template": "think", "files": {"a": ["/x"]}}
    other = {"spec": {"temperature": 1.0, "samples": 4}, "template": "think", "files": {"a": ["/y"]}}
    assert differing(one, one, ("a", "b")) == []
    assert differing(one, other, ("a", "b")) == ["spec.temperature is 0.6 for a, 1.0 for b"]


def artifact(folder: Path, scores: Any, **config: Any) -> Artifact:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows(scores)), folder / "samples.parquet")
    record = {"config": {"spec": {"temperature": 0.6}, **config}}
    return Artifact(kind="evaluation", fingerprint=folder.name, path=folder, record=record)


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("action", ["record", "warn"])
def test_the_stage_writes_what_the_function_finds(tmp_path: Path, action: str) -> None:
    inputs = {"base": artifact(tmp_path / "b", single(600, 1000)), "new": artifact(tmp_path / "n", single(450, 1000))}
    spec = {"margin": 2.0, "margins": {}, "action": action}
    config = {"spec": spec, "reference": "base", "checkpoint": "mid", "seed": 1}
    progress = Notes()
    (tmp_path / "out").mkdir()
    result = run(config, inputs, tmp_path / "out", progress)
    written = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert written == retention(rows(single(600, 1000)), rows(single(450, 1000)))
    assert result.metrics == {key: written[key] for key in ("verdict", "tasks", "average")}
    assert result.metrics["verdict"] == "regressed"
    assert progress.notes == ([] if action == "record" else ["warning: mid against base: regressed t (-15.0)"])


def test_the_stage_refuses_mixed_settings(tmp_path: Path) -> None:
    inputs = {
        "base": artifact(tmp_path / "b", single(6, 10)),
        "new": artifact(tmp_path / "n", single(6, 10), template="x"),
    }
    config = {"spec": {"margin": 2.0, "margins": {}, "action": "record"}, "reference": "base", "checkpoint": "mid"}
    with pytest.raises(DataError, match='not evaluated alike: template is null for base, "x" for mid'):
        run(config, inputs, tmp_path, Silent())


def test_the_stage_refuses_a_suite_whose_items_changed(tmp_path: Path) -> None:
    """The configuration is one and the same: what was judged stands in the evaluation's metrics."""

    def side(name: str, digest: str) -> Artifact:
        one = artifact(tmp_path / name, single(6, 10))
        metrics = {"benchmarks": {"hellaswag": {"items": 10, "hash": digest}}}
        return Artifact(kind=one.kind, fingerprint=name, path=one.path, record={**one.record, "metrics": metrics})

    config = {"spec": {"margin": 2.0, "margins": {}, "action": "record"}, "reference": "base", "checkpoint": "mid"}
    with pytest.raises(DataError, match=r'benchmarks\.hellaswag\.hash is "1f" for base, "2e" for mid'):
        run(config, {"base": side("b", "1f"), "new": side("n", "2e")}, tmp_path, Silent())
    run(config, {"base": side("c", "1f"), "new": side("d", "1f")}, tmp_path, Silent())


def drawn(rng: np.random.Generator, n: int, kept: float, rate: float, loss: float) -> tuple[Any, Any]:
    """Right answers of two checkpoints: a share ``kept`` answers alike, the rest anew with the rate less the loss."""
    base = rng.random(n) < rate
    again = rng.random(n) < rate - loss / (1 - kept)
    new = np.where(rng.random(n) < kept, base, again)
    return base[:, None].astype(float), new[:, None].astype(float)


def test_a_planted_loss_is_caught_at_the_stated_power_and_a_retained_model_passes() -> None:
    """Six benchmarks of 1,500 items, margin 1 point, 3 points lost on one: the power is the formula's."""
    rng, n, kept, rate, trials = np.random.default_rng(5), 1500, 0.9, 0.6, 60
    met = {"caught": 0, "passed": 0, "false alarms": 0}
    for _ in range(trials):
        sides = {f"t{k}": drawn(rng, n, kept, rate, 0.03 if k == 0 else 0.0) for k in range(6)}
        ok = sides["t1"], drawn(rng, n, kept, rate, 0.0)
        base = [row for task, (old, _) in sides.items() for row in rows(old, task)]
        new = [row for task, (_, fresh) in sides.items() for row in rows(fresh, task)]
        found = retention(base, new, 1.0)["tasks"]
        met["caught"] += found["t0"]["verdict"] == "regressed"
        met["false alarms"] += any(found[f"t{k}"]["verdict"] == "regressed" for k in range(1, 6))
        met["passed"] += retention(rows(ok[1][0]), rows(ok[1][1]), 2.0)["verdict"] == "retained"
    anew = rate - 0.03 / (1 - kept)
    moved = (1 - kept) * (rate * (1 - anew) + (1 - rate) * anew)
    stated = power_items(0.02, n, moved - 0.03**2, 0.025 / 6)
    kept_moved = (1 - kept) * 2 * rate * (1 - rate)
    passes = power_items(0.02, n, kept_moved)
    spread = 3 * math.sqrt(0.25 / trials)
    assert met["caught"] / trials == pytest.approx(stated, abs=spread)
    assert met["passed"] / trials == pytest.approx(passes, abs=spread)
    assert met["false alarms"] <= 3
