"""The paper's tables by our rules: the numbers are the tables', the arithmetic is right, contradictions are found."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from prismlab.claims import reference_tables as ours
from prismlab.claims.reference_checks import averages, disagreements
from prismlab.claims.reference_ledger import aime_error, decide_reference
from prismlab.claims.reference_study import MODELS, arm_scores
from prismlab.tools.claims import show_reference

TABLES = Path(__file__).parents[2] / ".." / "shared" / "paper" / "tables.json"
KEYS = {
    "table 3": "table3_when",
    "table 4": "table4_leaderboards_granite33",
    "table 7": "table7_long_context_granite33",
    "table 8": "table8_context_length_granite4micro",
    "table 19": "table19_domain_granite33",
    "table 20": "table20_token_budget_granite4micro",
}


@pytest.fixture(scope="module")
def ledger() -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in decide_reference()["claims"]}


def part(claim: dict[str, Any], model: str, label: str) -> dict[str, Any]:
    one = next(one for one in claim["models"] if one["model"] == model)
    return next(part for part in one["parts"] if part["label"] == label)


@pytest.fixture
def theirs() -> dict[str, Any]:
    if not TABLES.is_file():
        pytest.skip(f"the paper's tables are not here: {TABLES}")
    return json.loads(TABLES.read_text(encoding="utf-8"))


def test_tables_of_scores_are_the_papers(theirs: dict[str, Any]) -> None:
    for name, key in KEYS.items():
        rows = {row: tuple(v) for row, v in theirs[key].items() if isinstance(v, list) and row != "columns"}
        assert (ours.SCORES[name].columns, ours.SCORES[name].rows) == (tuple(theirs[key]["columns"]), rows)
    six = theirs["table6_families"]
    cells = {f"{m}, {stage}": tuple(row) for m, rows in six.items() if m != "columns" for stage, row in rows.items()}
    assert ours.SCORES["table 6"].rows == cells
    found = sum(len(rows) for rows in theirs["table11_pipeline"]["rows"].values())
    assert len(ours.SCORES["table 11"].rows) == found
    for model, rows in theirs["table11_pipeline"]["rows"].items():
        for mid, run, *row in rows:
            label = "base" if mid is None else f"mid[{mid}]" + (f">rl[{run}]" if run else "")
            assert ours.SCORES["table 11"].rows[f"{model}, {label}"] == tuple(row)


def test_other_tables_are_the_papers(theirs: dict[str, Any]) -> None:
    twelve = {m: rows for m, rows in theirs["table12_weight_divergence"].items() if isinstance(rows, dict)}
    assert {m: {k: list(v) for k, v in rows.items()} for m, rows in ours.DIVERGENCE.items()} == twelve
    assert [list(row) for row in ours.UNCHANGED] == theirs["table22_threshold_sensitivity_granite33"]["rows"]
    parts = theirs["table23_subcomponents_percent_changed_over_1pct"]
    assert {k: list(v) for k, v in ours.SUBCOMPONENTS.items()} == {k: v for k, v in parts.items() if k != "columns"}
    behaviour = {m: rows for m, rows in theirs["table15_behaviour_math500_200"].items() if isinstance(rows, dict)}
    assert {m: {k: list(v) for k, v in rows.items()} for m, rows in ours.BEHAVIOUR.items()} == behaviour
    for model, sets in ours.CKA.items():
        assert list(sets.values()) == theirs["table14_cka_mid_vs_rl_min_layer"][model]
    for model, corners in ours.LANDSCAPE.items():
        assert corners == theirs["landscape_path_math500_200"][model]
    assert theirs["trajectory"]["share of final divergence by step 400"] == ours.FRONT
    assert theirs["rl_on_base_deficit_granite33_vs_full_pipeline"] == ours.RL_ON_BASE_DEFICIT


def test_every_average_is_recomputed_from_the_file(theirs: dict[str, Any]) -> None:
    """The number of averages and each mean, from the file itself and not from our numbers."""
    found = {(a.table, a.row, a.column): a for a in averages()}
    count = 0
    for name, key in KEYS.items():
        columns = theirs[key]["columns"]
        for row, values in theirs[key].items():
            if not isinstance(values, list) or row == "columns":
                continue
            cells = dict(zip(columns, values, strict=True))
            means = {"Code avg": ["LiveCodeBench", "Codeforces"], "Math avg": ["AIME24", "AIME25", "MATH500"]}
            means |= {"LB-V1 avg": columns[:6], "LB-V2 avg": columns[7:13]}
            for column, terms in means.items():
                if column in cells:
                    count += 1
                    assert found[name, row, column].printed == cells[column]
                    assert found[name, row, column].recomputed == pytest.approx(
                        statistics.fmean(cells[t] for t in terms)
                    )
    assert count == sum(a.table in KEYS for a in found.values())
    assert len(found) == 131
    assert all(a.agrees for a in found.values())
    one = found["table 11", "Granite-3.3 8B, mid[MCS]", "AVG"]
    assert one.recomputed == pytest.approx((10.575 + (37.18 + 27.96 + 81.11) / 3 + 29.12) / 3)


def test_disagreements_that_are_known_are_found() -> None:
    found = "\n".join(disagreements())
    for said in (
        "Math avg: an appendix table prints 44.33",
        "MCS base->mid: table 12's total 0.175 repeats its attention column",
        "9.3% of the total in table 12, 3.5% in table 22",
        "mid[MCS], 8k, AIME24: 23.59 in table 3; 27.19 in table 6 and table 8",
        "LLaMA-3.1 8B, rl, pass rate on 200 MATH500 problems: 64.6 in table 15, 66 on the path",
    ):
        assert said in found
    # Attention alone is 9.35% by the mean of four matrices, so the total of table 12 cannot be the whole model's.
    assert "table 23 average 9.35%" in found


def test_no_claim_is_decided_by_one_run_of_each_model(ledger: dict[str, dict[str, Any]]) -> None:
    assert list(ledger) == [f"C{k}" for k in range(1, 19)]
    verdicts = {name: claim["verdict"] for name, claim in ledger.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "not_tested"} == {"C2", "C13", "C15"}
    assert set(verdicts.values()) == {"inconclusive", "not_tested"}
    for claim in ledger.values():
        for one in claim["models"]:
            assert all(part["lo"] is None and part["hi"] is None for part in one["parts"])


def test_arithmetic_by_hand(ledger: dict[str, dict[str, Any]]) -> None:
    granite = "Granite-3.3 8B"
    assert part(ledger["C1"], granite, "science")["value"] == pytest.approx(29.12 - 22.56)
    assert part(ledger["C1"], "Mistral-7B v0.1", "science")["side"] == "against"
    assert part(ledger["C3"], granite, "code: mid[MC] minus mid[M]")["value"] == pytest.approx(10.705 - 2.805)
    science = part(ledger["C6"], granite, "gain in RL after MCS minus gain after MC")["value"]
    assert science == pytest.approx((51.52 - 29.12) - (35.69 - 19.02))
    lost = part(ledger["C4"], granite, "AVG: mid[MCS]>rl[MCS] minus base>rl[MCS]")["value"]
    assert lost == pytest.approx((37 + 14 + 5) / 3)
    assert part(ledger["C7"], granite, "dense: changed by mid-training")["value"] == pytest.approx(96.5)
    assert part(ledger["C9"], granite, "attn.v")["side"] == "on the bound"
    repair = part(ledger["C16"], granite, "repair minus half of the damage")["value"]
    assert repair == pytest.approx((42.16 - 6.46) - (59.09 - 6.46) / 2)
    late = part(ledger["C18"], "Granite-4 Micro 3B", "after long context minus phase 3")["value"]
    assert late == pytest.approx(((10.39 + 6.18 - 7.05 - 8.61) / 2 + (121.97 - 91.35) / 3 + 25.93 - 19.53) / 3)
    wide = part(ledger["C17"], "Granite-4 Micro 3B", "16k minus 32k")
    assert wide["value"] == pytest.approx(((12.19 + 8.9 - 14.93 - 7.5) / 2 + (139.55 - 135.55) / 3 + 38.89 - 39.89) / 3)
    assert wide["side"] == "against"


def test_over_models_is_students_t(ledger: dict[str, dict[str, Any]]) -> None:
    gains = [arm_scores(model)["mid[MCS]"]["science"] - arm_scores(model)["base"]["science"] for model in MODELS]
    found = next(p for p in ledger["C1"]["over_models"]["parts"] if p["label"] == "science")
    lo, hi = scipy.stats.t.interval(0.95, 6, loc=statistics.fmean(gains), scale=scipy.stats.sem(gains))
    assert (found["value"], found["lo"], found["hi"]) == pytest.approx((statistics.fmean(gains), lo, hi))
    assert ledger["C1"]["over_models"]["verdict"] == "inconclusive"


def test_the_error_of_an_aime_score() -> None:
    least, most = aime_error(37.18)
    assert most == pytest.approx(100 * math.sqrt(0.3718 * 0.6282 / 30))
    assert least == pytest.approx(100 * math.sqrt(0.3718 * 0.6282 / (30 * 64)))


def test_the_command_prints_all_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    show_reference(out=tmp_path)
    shown = capsys.readouterr().out
    assert "Averages recomputed: 131 of 131 agree" in shown
    assert "Disagreements inside the paper's tables:" in shown
    assert all(f"C{k}:" in shown for k in range(1, 19))
    written = json.loads((tmp_path / "claims.json").read_text())
    assert len(written["claims"]) == 18
    assert len(written["averages"]) == 131
