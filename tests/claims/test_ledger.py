"""The stage ``claims``: file, metrics, multiplicity, reference numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import complete

from prismlab.claims.ledger import build, run
from prismlab.claims.reference import REFERENCE
from prismlab.errors import StageError
from prismlab.run.step import Silent

TABLES = Path(__file__).parents[2] / ".." / "shared" / "paper" / "tables.json"


def test_the_stage_writes_a_ledger_whose_verdicts_are_its_metrics(tmp_path: Path) -> None:
    world = complete()
    config = {"study": world.study, "entries": world.entries, "arms": world.arms, "seed": 0}
    result = run(config, world.inputs, tmp_path, Silent())
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert result.metrics["verdicts"] == {c["id"]: c["verdict"] for c in ledger["claims"]}
    assert ledger["counts"] == {"supported": 18, "contradicted": 0, "inconclusive": 0, "not_tested": 0}
    for claim in ledger["claims"]:
        for one in claim["evidence"]:
            assert world.inputs[one["key"]].fingerprint == one["fingerprint"]
    keys = {one["key"] for claim in ledger["claims"] if claim["id"] == "C4" for one in claim["evidence"]}
    assert {key.split("/")[1] for key in keys} == {"core@rl-mcs-mcs", "core@rl-base-mcs"}


def test_holm_over_the_tested_claims() -> None:
    """Step-down by hand: sorted p times the number still standing, never falling, at most 1."""
    world = complete()
    world.lose("direction", "ended")
    claims: list[dict[str, Any]] = build(world.table)["claims"]
    tested = sorted((c for c in claims if c["p"] is not None), key=lambda c: c["p"])
    assert len(tested) == 17
    running = 0.0
    for rank, claim in enumerate(tested):
        running = max(running, min(1.0, claim["p"] * (17 - rank)))
        assert claim["p_holm"] == pytest.approx(running)
    assert all(c["p_holm"] is None for c in claims if c["p"] is None)


def test_only_the_claims_asked_for_and_no_unknown_ones() -> None:
    table = complete().table
    assert [c["id"] for c in build(table, ["C4", "C1"])["claims"]] == ["C1", "C4"]
    with pytest.raises(StageError, match="C19"):
        build(table, ["C19"])


def test_confidence_of_the_study_sets_the_level() -> None:
    world = complete()
    narrow = build(world.table, ["C1"])["claims"][0]["effect"]
    world.study["claims"]["confidence"] = 0.999
    ledger = build(world.table, ["C1"])
    wide = ledger["claims"][0]["effect"]
    assert wide["hi"] - wide["lo"] > 5 * (narrow["hi"] - narrow["lo"])
    assert ledger["level"] == pytest.approx(0.0005)


def test_the_papers_numbers_are_the_papers() -> None:
    """Each literal against the transcribed tables."""
    if not TABLES.exists():
        pytest.skip("the transcribed tables (../shared/paper/tables.json) are not on this machine")
    paper = json.loads(TABLES.read_text())

    def figures(claim: str) -> list[float]:
        return [figure.value for figure in REFERENCE[claim].figures]

    family = paper["table6_families"]
    column = {name: i for i, name in enumerate(family["columns"])}

    def gain(model: str, name: str) -> float:
        return round(family[model]["mid"][column[name]] - family[model]["base"][column[name]], 2)

    granite = "Granite-3.3 8B"
    assert figures("C1") == [
        gain(granite, "Math avg"), gain(granite, "Code avg"), gain(granite, "GPQA-D"), gain("LLaMA-3.1 8B", "GPQA-D"),
        gain("Mistral-7B v0.1", "GPQA-D"), gain("Nemotron-H 8B (8k)", "GPQA-D"),
    ]  # fmt: skip
    boards = paper["table4_leaderboards_granite33"]
    where = [boards["columns"].index(name) for name in ("LB-V1 avg", "HellaSwag")]
    assert figures("C2") == [round(boards["Math+Code+Science"][i] - boards["Base"][i], 2) for i in where]
    t19 = paper["table19_domain_granite33"]
    rows = [t19[name] for name in ("Base", "Math", "Math+Code", "Math+Code+Science")]
    columns = [t19["columns"].index(name) for name in ("Math avg", "Code avg", "GPQA-D")]
    assert figures("C3") == [round(rows[i + 1][c] - rows[i][c], 2) for i, c in enumerate(columns)]
    pipeline = {
        (model, row[0], row[1]): row for model, rows in paper["table11_pipeline"]["rows"].items() for row in rows
    }
    models = ("LLaMA-3.1 8B", granite, "Mistral-7B v0.1")

    def of(model: str, mid: str, rl: str | None, column: int = -1) -> float:
        return pipeline[model, mid, rl][column]

    assert figures("C4") == [of(m, "MCS", "MCS") for m in models]
    mid = [round(of(m, "MCS", "MCS") - of(m, "MC", "MCS"), 2) for m in models]
    assert figures("C5") == mid + [round(of(m, "MCS", "MCS") - of(m, "MCS", "MC"), 2) for m in models]
    assert figures("C6") == [
        round(of(m, "MCS", "MCS", -2) - of(m, "MCS", None, -2) - of(m, "MC", "MCS", -2) + of(m, "MC", None, -2), 2)
        for m in models
    ]
    weights = paper["table12_weight_divergence"]
    pairs = [(m, t) for m in (granite, "Nemotron-H 8B (8k)") for t in ("MCS base->mid", "MCS mid->RL")]
    assert figures("C7") == [weights[m][t][-1] for m, t in pairs]
    t22 = {row[0]: row[1:] for row in paper["table22_threshold_sensitivity_granite33"]["rows"]}
    assert figures("C8") == [*t22[0.1], *t22[10.0]]
    t23 = paper["table23_subcomponents_percent_changed_over_1pct"]
    assert figures("C9") == [
        round(t23["attn.v"][2] - t23["attn.v"][1], 1), round(t23["norm"][2] - t23["norm"][1], 1),
        round(t23["attn.v"][5] - t23["attn.v"][4], 1),
    ]  # fmt: skip
    cosine = paper["update_cosine_MC_vs_MCS"]
    assert figures("C10") == [
        weights[granite]["MC base->mid"][0], weights[granite]["MCS base->mid"][0], cosine[granite],
        cosine["Nemotron-H 8B (8k)"],
    ]  # fmt: skip
    cka = paper["table14_cka_mid_vs_rl_min_layer"]
    assert figures("C11") == [cka[m][2] for m in (granite, "LLaMA-3.1 8B", "Nemotron-H 8B (8k)")]
    assert figures("C12") == [paper["trajectory"]["share of final divergence by step 400"]]
    path = paper["landscape_path_math500_200"][granite]
    assert figures("C13") == [path["base"], path["mid"], path["rl"]]
    behaviour = paper["table15_behaviour_math500_200"][granite]
    assert figures("C14") == [
        behaviour["base"][1], behaviour["mid"][1], behaviour["base"][2], behaviour["mid"][2], behaviour["mid"][3],
        behaviour["mid"][4],
    ]  # fmt: skip
    ruler = paper["table7_long_context_granite33"]
    at_128k = ruler["columns"].index("RULER 128k")
    assert figures("C16") == [ruler[r][at_128k] for r in ("Base", "Mid (Math+Code)", "Merge + LC (full)")]
    t8, t20 = paper["table8_context_length_granite4micro"], paper["table20_token_budget_granite4micro"]
    aime = t8["columns"].index("AIME24")
    budgets = [t20[b][-1] for b in ("10.49B", "15.73B", "26.21B", "31.46B")]
    assert figures("C17") == [t8[c][aime] for c in ("8k", "16k", "32k")] + budgets
    t3 = paper["table3_when"]
    when = t3["columns"].index("AIME24")
    assert figures("C18") == [t3[r][when] for r in ("Phase 3", "Phase 4", "After long-context")]
