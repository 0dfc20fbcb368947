"""Advice against numbers by hand: the front, merges, what to run next, and that nothing is said without an interval."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
import yaml
from built_study import build, sample_rows, write_study
from typer.testing import CliRunner

from prismlab.built import Built, built
from prismlab.cli import app
from prismlab.errors import SpecError
from prismlab.stats import mean_t, paired_items, seeds_to_decide
from prismlab.study.checkpoints import MergeSpec
from prismlab.tools.advise import advise, cited
from prismlab.tools.advise_merge import FIRST_SHARES
from prismlab.tools.advise_next import claims, seeds_of_part

N = 200
LEVEL = {"base": 0.2, "mid": 0.6, "other": 0.4, "merge-20": 0.55, "merge-60": 0.3}
"""Share of right answers, both tasks."""
BITS = {"base": 2.0, "mid": 2.2, "other": 2.3, "merge-20": 2.1, "merge-60": 2.01}
"""Bits per byte."""


def numbers(level: Any = LEVEL, bits: Any = BITS, jitter: float = 0.01, wide: float = 3.0) -> Any:
    """Figures of every checkpoint, with a scatter over seeds that pairs of checkpoints do not share."""

    def of(checkpoint: str, seed: int) -> Any:
        rng = np.random.default_rng([seed, sum(checkpoint.encode())])
        right = round(N * (level[checkpoint] + wide * jitter * float(rng.uniform(-1, 1))))
        scores = {task: [[float(i < right)] for i in range(N)] for task in ("addition", "elements")}
        nll = bits[checkpoint] + jitter * float(rng.uniform(-1, 1))
        return scores, [nll * math.log(2) * 100 + k for k in (-4, -2, 0, 2, 4)]

    return of


def again(there: Built, **options: Any) -> dict[str, Any]:
    """Advice on what is built."""
    found = advise(there.plain, there.entries, there.arms, there.inputs, **options)
    found["inputs"] = there.inputs
    return found


def made(tmp_path: Path, seeds: Any = (0, 1, 2), of: Any = None, without: Any = (), more: str = "") -> Built:
    file = write_study(tmp_path / "study.yaml", seeds, more=more)
    build(file, tmp_path / "run", of or numbers(), without)
    return built(file, out=tmp_path / "run")


def advised(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return again(made(tmp_path, **options))


def arm(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["arms"] if row["checkpoint"] == name)


def kinds(found: dict[str, Any], kind: str) -> list[str]:
    return [line["text"] for line in found["advice"] if line["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return made(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def three(run: Built) -> dict[str, Any]:
    return again(run)


def test_gain_and_loss_are_students_t_over_seeds(three: dict[str, Any]) -> None:
    def per_seed(name: str, key: str) -> list[float]:
        metrics = [three["inputs"][f"evaluation/core@{name}/s{seed}"].metrics for seed in (0, 1, 2)]
        return [m["average"]["value"] if key == "gain" else m["text"]["facts"]["bits_per_byte"] for m in metrics]

    for key in ("gain", "loss"):
        values = np.array(per_seed("mid", key)) - np.array(per_seed("base", key))
        lo, hi = scipy.stats.t.interval(0.95, 2, loc=values.mean(), scale=scipy.stats.sem(values))
        found = arm(three, "mid")[key]
        assert (found["value"], found["lo"], found["hi"]) == pytest.approx((values.mean(), lo, hi))
    assert three["over"] == "seeds"


def test_the_front_and_what_is_shown_to_lie_behind_it(three: dict[str, Any]) -> None:
    """Gain 40, 35, 10 points at a loss of 0.2, 0.1, 0.01 bits: a front; other gains 20 at 0.3, behind both."""
    assert {row["checkpoint"] for row in three["arms"] if row["front"]} == {"base", "mid", "merge-20", "merge-60"}
    behind = arm(three, "other")["behind"]
    assert behind["shown"]
    assert behind["by"] == "mid"
    assert behind["gain"]["lo"] > 0 > behind["loss"]["hi"]
    assert len(kinds(three, "dominated")) == 1
    assert kinds(three, "dominated")[0].startswith(f"Drop other: {behind['by']} gains +")


def test_what_is_seen_but_not_shown_is_called_so(tmp_path: Path) -> None:
    """Other gains 2 points less than mid and loses a little more, with a scatter of 5 points: nothing is dropped."""
    level, bits = {**LEVEL, "other": 0.58}, {**BITS, "other": 2.21}
    found = advised(tmp_path, of=numbers(level, bits, jitter=0.05, wide=1.0))
    behind = [row["behind"] for row in found["arms"] if row["behind"]]
    assert behind
    assert not any(one["shown"] for one in behind)
    assert not kinds(found, "dominated")
    assert all("not shown" in text for text in kinds(found, "undecided"))


def test_the_level_of_comparisons_is_shared(tmp_path: Path) -> None:
    """Two arms lie behind mid, so each is held against it at 97.5%."""
    found = advised(tmp_path, of=numbers(bits={**BITS, "merge-60": 2.25}))
    for name in ("other", "merge-60"):
        behind = arm(found, name)["behind"]
        assert (behind["by"], behind["confidence"]) == ("mid", pytest.approx(0.975))
        average = {
            one: np.array(
                [found["inputs"][f"evaluation/core@{one}/s{s}"].metrics["average"]["value"] for s in (0, 1, 2)]
            )
            for one in (name, "mid")
        }
        expected = mean_t(average["mid"] - average[name], 0.975)
        assert (behind["gain"]["lo"], behind["gain"]["hi"]) == pytest.approx((expected.lo, expected.hi))


def test_the_merge_that_retains_at_least_cost(run: Built) -> None:
    """A margin of 0.15 holds for 20% (0.1) and 60% (0.01), not for mid (0.2): 20% costs 5 points, 60% costs 30."""
    found = again(run, margin=0.15)
    (text,) = kinds(found, "merge")
    assert "Merge 20% of the reference into mid (merge-20)" in text
    retention = {row["checkpoint"]: row["retention"] for row in found["merges"]["mid"]}
    assert retention == {"mid": "regressed", "merge-20": "retained", "merge-60": "retained"}
    cost = {row["checkpoint"]: row["cost"] for row in found["merges"]["mid"]}
    assert cost["mid"] is None
    assert cost["merge-20"]["value"] == pytest.approx(5.0, abs=4)
    # Between mid, which does not retain, and a fifth, which does, the next shares lie.
    assert [spec["weights"]["base"] for spec in yaml.safe_load(found["sweep"])["checkpoints"].values()] == [
        0.05,
        0.1,
        0.15,
    ]


def test_no_merge_is_advised_of_what_is_not_shown_to_gain(tmp_path: Path) -> None:
    """Mid gains 1 point with a scatter of 3: a merge that retains has nothing to keep."""
    level = {**LEVEL, "base": 0.6, "mid": 0.605, "merge-20": 0.6, "merge-60": 0.6}
    found = advised(tmp_path, of=numbers(level))
    assert any(row["retention"] == "retained" for row in found["merges"]["mid"])
    (text,) = kinds(found, "merge")
    assert text.startswith("No merge of mid is advised")
    assert "mid itself is not shown to gain" in text


def test_no_share_retains_and_the_sweep_goes_beyond(run: Built) -> None:
    found = again(run, margin=0.002)
    assert kinds(found, "merge") == [
        "No measured share of the reference in mid is shown to lose less than 0.002 bits per byte."
    ]
    shares = [spec["weights"]["base"] for spec in yaml.safe_load(found["sweep"])["checkpoints"].values()]
    assert shares == [0.7, 0.8, 0.9]


def test_the_sweep_can_be_pasted(tmp_path: Path) -> None:
    """Without a measured merge of the best arm: the sweep parses, is valid, and names nothing that is there."""
    level = {**LEVEL, "other": 0.9}
    found = advised(tmp_path, of=numbers(level))
    pasted = yaml.safe_load(found["sweep"])["checkpoints"]
    assert [spec["weights"]["base"] for spec in pasted.values()] == list(FIRST_SHARES)
    for spec in pasted.values():
        assert sum(MergeSpec.model_validate(spec).weights.values()) == pytest.approx(1.0)
    assert not set(pasted) & set(LEVEL)
    more = "\n".join(found["sweep"].splitlines()[1:])
    file = write_study(tmp_path / "again.yaml", (0, 1, 2), more)
    assert set(pasted) <= {
        entry["checkpoint"] for entry in built(file, out=tmp_path / "run").entries if "checkpoint" in entry
    }


def test_one_seed_is_compared_over_its_items(tmp_path: Path) -> None:
    found = advised(tmp_path, seeds=(0,))
    assert found["over"] == "items"
    scores = [numbers()(name, 0)[0] for name in ("mid", "base")]
    new, old = ([row["score"] for row in sample_rows(side) if row["task"] == "addition"] for side in scores)
    one = paired_items(new, old, range(N)).interval
    assert one.value is not None
    assert one.lo is not None
    # Two tasks with the same answers: half of the root of two squares.
    half = 100 * (one.value - one.lo) / math.sqrt(2)
    gain = arm(found, "mid")["gain"]
    assert gain["value"] == pytest.approx(100 * one.value)
    assert gain["value"] - gain["lo"] == pytest.approx(half)


def test_without_an_interval_there_is_no_advice(tmp_path: Path) -> None:
    """All seeds agree exactly: values are shown, and nothing is dropped, merged or swept."""
    found = advised(tmp_path, of=numbers(jitter=0.0))
    assert arm(found, "other")["gain"]["lo"] is None
    assert not kinds(found, "dominated")
    assert not kinds(found, "sweep")
    assert found["sweep"] is None
    assert all(row["retention"] == "undecided" for row in found["merges"]["mid"])


def test_every_line_cites_rows_that_are_there(three: dict[str, Any]) -> None:
    assert three["advice"]
    for line in three["advice"]:
        assert line["rows"], line
        for one in line["rows"]:
            for step in one["steps"]:
                artifact = three["inputs"][step]
                assert (artifact.path / one["file"]).is_file()
                for column in one["columns"]:
                    _find(artifact.path / one["file"], column)
        assert cited(line["rows"])


def _find(file: Path, column: str) -> None:
    if file.suffix == ".parquet":
        assert column in pq.read_schema(file).names
        return
    found: Any = json.loads(file.read_text())
    for part in column.split("."):
        found = next(c for c in found if c["id"] == part) if isinstance(found, list) else found[part]
    assert found is not None


def test_a_partial_run_names_what_is_missing(tmp_path: Path) -> None:
    found = advised(tmp_path, without=("evaluation/core@other/", "evaluation/core@mid/s1"))
    assert found["missing"] == [{"checkpoint": "other", "reason": "not built yet"}]
    assert arm(found, "mid")["gain"]["n"] == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="base: the reference has no figures"):
        advised(tmp_path / "empty", without=("evaluation/core@base/",))


def test_claims_that_are_open_say_how_many_seeds(three: dict[str, Any]) -> None:
    ledger = json.loads(
        (next(a for a in three["inputs"].values() if a.kind == "claims").path / "ledger.json").read_text()
    )
    lines = {line["claim"]: line for line in claims(ledger, "claims/judged")}
    assert lines["C7"]["kind"] == "missing"
    assert "no arm mid[MCS]>rl[MCS]" in lines["C7"]["text"]
    open_claims = {c["id"] for c in ledger["claims"] if c["verdict"] in ("inconclusive", "not_tested")}
    assert set(lines) == open_claims


def part(values: list[float], bounds: tuple[float | None, float | None] = (0.0, None)) -> dict[str, Any]:
    mean = sum(values) / len(values)
    seeds = {str(k): value for k, value in enumerate(values)}
    return {"label": "x", "seeds": seeds, "bounds": list(bounds), "effect": {"value": mean}}


def test_seeds_of_a_part_by_hand() -> None:
    n, text = seeds_of_part(part([1.0, -1.0, 3.0]), 0.95)
    assert n == seeds_to_decide(1.0, 2.0)
    assert "for it" in text
    assert seeds_of_part(part([-1.0, 1.0, -3.0]), 0.95) == (n, f"x: {n} seeds would decide against it")
    # Within -2 to 2 the nearest bound counts: 1 is 1 away from it.
    assert seeds_of_part(part([1.0, -1.0, 3.0], (-2.0, 2.0)), 0.95)[0] == n
    assert seeds_of_part(part([2.0]), 0.95)[0] is None
    assert "agree exactly" in seeds_of_part(part([2.0, 2.0, 2.0]), 0.95)[1]


def test_an_undecided_gate_says_how_many_items_or_samples(tmp_path: Path) -> None:
    """Samples of an item differ, so more of them help; the line repeats the gate's own number of items."""

    def of(checkpoint: str, seed: int) -> Any:
        rng = np.random.default_rng([seed, sum(checkpoint.encode())])
        scores = {task: (rng.random((60, 4)) < 0.5).astype(float).tolist() for task in ("addition", "elements")}
        return scores, [100.0, 110.0, 120.0]

    more = "gates: {kept: {evaluation: core, reference: base, checkpoints: [mid], margin: 5.0}}"
    found = advised(tmp_path, seeds=(3, 4), of=of, more=more)
    undecided = [
        (key, task, entry["items_needed"])
        for key, artifact in found["inputs"].items() if artifact.kind == "gate"
        for task, entry in artifact.metrics["tasks"].items() if entry["verdict"] == "undecided"
    ]  # fmt: skip
    lines = [line for line in found["advice"] if line["kind"] == "items"]
    assert {line["task"] for line in lines} == {task for _, task, _ in undecided}
    for line in lines:
        assert line["items"] == max(needed for _, task, needed in undecided if task == line["task"])
    assert any(line["samples"] is not None and line["samples"] > 4 for line in lines)
    assert all(f"{line['items']:,} items would decide it" in line["text"] for line in lines if line["items"])


def test_what_unscored_pairs_leave_open_is_not_laid_to_the_margin(tmp_path: Path) -> None:
    def of(checkpoint: str, seed: int) -> Any:
        lost = 30 if checkpoint == "mid" else 0
        return {"addition": [[None]] * lost + [[1.0]] * (60 - lost), "elements": [[1.0]] * 60}, [100.0, 110.0, 120.0]

    more = "gates: {kept: {evaluation: core, reference: base, checkpoints: [mid], margin: 5.0}}"
    found = advised(tmp_path, seeds=(3,), of=of, more=more)
    line = next(line for line in found["advice"] if line["kind"] == "items" and line["task"] == "addition")
    assert line["items"] is None
    assert "30 of 60 pairs are unscored and may go either way, so no number of items like these decides" in line["text"]
    assert "margin itself" not in line["text"]


def test_options_that_are_wrong(run: Built) -> None:
    with pytest.raises(SpecError, match="--gain nosuch: no evaluation is called so; there are core"):
        again(run, gain="nosuch")
    with pytest.raises(SpecError, match="--reference nosuch"):
        again(run, reference="nosuch")
    with pytest.raises(SpecError, match="--margin -1"):
        again(run, margin=-1.0)
    scoreless = [entry for entry in run.entries if entry["kind"] != "evaluation"]
    with pytest.raises(SpecError, match="the study has no evaluation, so there is no gain to weigh"):
        advise(run.plain, scoreless, run.arms, run.inputs)
    scores = again(run, loss="core", margin=2.0)
    assert scores["loss"]["unit"] == "points"
    assert arm(scores, "mid")["loss"]["value"] == pytest.approx(-arm(scores, "mid")["gain"]["value"])


def test_the_command_shows_writes_and_decides_the_ledger(tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.yaml", (0, 1, 2))
    build(file, tmp_path / "run", numbers(), without=("claims/", "report/"))
    arguments = ["advise", str(file), "--runs", str(tmp_path / "run"), "--margin", "0.15"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Drop other" in done.stdout
    assert "evaluation/core@other" in done.stdout
    assert "C7 cannot be tested" in done.stdout
    record = json.loads((tmp_path / "out" / "advise.json").read_text())
    page = (tmp_path / "out" / "advise.html").read_text()
    assert "Gain against loss" in page
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout) == record
