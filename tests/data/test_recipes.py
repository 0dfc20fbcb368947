"""Recipes on rows in the published schema of each data set (``fixtures/recipes``), written for these tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prismlab.data.filters import COMPARISONS, conditions, length_filter, row_filter
from prismlab.data.recipe_list import RECIPES
from prismlab.data.recipes import document_maker, recipes
from prismlab.data.rows import BadRow, Row, file_rows
from prismlab.data.sources import row_documents
from prismlab.data.templates import get_template
from prismlab.errors import DataError, SpecError
from prismlab.study.load import load_study
from prismlab.study.spec import SourceSpec

FIXTURES = Path(__file__).parent / "fixtures" / "recipes"
TABLES = Path(__file__).parents[3] / "shared" / "paper" / "tables.json"
EXPECTED: dict[str, list[Any]] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


def spec(**values: Any) -> dict[str, Any]:
    return SourceSpec.model_validate(values).model_dump(mode="json", by_alias=True)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_recipe_keeps_drops_and_refuses_what_it_should(name: str) -> None:
    source = spec(recipe=name)
    why, make = row_filter(conditions(source)), document_maker(source, get_template("think"))
    found: list[Any] = []
    for row in file_rows(FIXTURES / f"{name}.jsonl"):
        try:
            reason = why(row)
            found.append(make(row).text if reason is None else ["dropped", reason])
        except BadRow as error:
            found.append(["broken", error.reason])
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_fixture_has_the_columns_that_the_table_names(name: str) -> None:
    rows = [row.values for row in file_rows(FIXTURES / f"{name}.jsonl")]
    recipe = RECIPES[name]
    assert set(recipe.columns) <= set(rows[0])
    used = [*recipe.fields.values(), *(field for field, *_ in recipe.keep), *([recipe.id] if recipe.id else [])]
    assert {field.partition(".")[0] for field in used} <= set(recipe.columns)
    assert all(comparison in COMPARISONS for _, comparison, _ in recipe.keep)


@pytest.mark.skipif(not TABLES.is_file(), reason="the reference study's tables are not beside the repository")
def test_sizes_are_those_of_table_1() -> None:
    table = {name: 1e9 * size for name, _, size in json.loads(TABLES.read_text())["table1_midtraining_sources"]}
    one_to_one = {
        "DCLM-EDU": "dclm-edu",
        "Open-R1 MoT math": "mot-math",
        "Open-R1 MoT code": "mot-code",
        "Open-R1 MoT science": "mot-science",
        "Nemotron Post-Training v1 math": "nemotron-math",
        "MegaMath-Web-Pro": "megamath-web-pro",
        "RefineCode": "refinecode",
        "StarCoder2 data": "starcoder2-stackoverflow",
        "OpenThoughts3": "openthoughts3",
    }
    for title, name in one_to_one.items():
        assert RECIPES[name].tokens == pytest.approx(table.pop(title)), name
    # Two figures stand for several sets; our division of them is marked and adds up.
    together = {"OpenCodeReasoning-2": ("ocr2-python", "ocr2-cpp")}
    together["WildChat-1M + Tulu-3 SFT Personas + UltraChat-200k"] = ("wildchat", "tulu3-personas", "ultrachat")
    for title, names in together.items():
        assert sum(RECIPES[name].tokens or 0 for name in names) == pytest.approx(table.pop(title))
        assert all(
            "our division" in RECIPES[name].tokens_note or "by us" in RECIPES[name].tokens_note for name in names
        )
    assert not table


def test_what_is_not_verified_or_ours_says_so() -> None:
    told = {one["name"]: one for one in recipes()}
    assert list(told) == list(RECIPES)
    assert not told["codex-long"]["verified"]
    assert "ours" in told["codex-long"]["rule"]
    assert "ours" in told["openthoughts3"]["rule"]
    assert json.loads(json.dumps(told)) == told, "plain JSON"


def test_loss_on_answers_begins_where_the_answer_does() -> None:
    source = spec(recipe="openthoughts3", loss="answer")
    (row,) = list(file_rows(FIXTURES / "openthoughts3.jsonl"))[:1]
    made = document_maker(source, get_template("think"))(row)
    assert (made.text[: made.prompt], made.text[made.prompt :]) == ("Why?\n", "<think>..</think> So.")
    assert made.where == made.id == "openthoughts3.jsonl:1"


def test_a_source_by_recipe_reads_a_downloaded_copy() -> None:
    source = spec(recipe="wildchat", files=["x"])
    assert source["hub"] is None
    assert source["domain"] == "chat"
    found = list(row_documents("chat", source, [FIXTURES / "wildchat.jsonl"], "think"))
    assert [one.id for one in found] == ["hgpt-4-0314", "hgpt-4-1106-preview"]
    assert spec(recipe="megamath-web-pro")["hub"]["folder"] == "megamath-web-pro"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "dclm"}, "recipe 'dclm' is not known; there are dclm-edu"),
        ({"recipe": "dclm-edu", "fields": {"text": "t"}}, "exclude one another"),
        ({"recipe": "ultrachat", "loss": "answer"}, "needs 'question' and 'answer'"),
        ({"files": ["a"], "domain": "web", "loss": "answer"}, "needs 'question' and 'answer'"),
        ({"recipe": "dclm-edu", "hub": {"id": "a/b", "revision": "c"}, "files": ["x"]}, "give exactly one"),
        ({"micro": {"domain": "math"}, "filters": {"where": {"a": ["b"]}}}, "has no rows"),
    ],
)
def test_wrong_specs_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SourceSpec.model_validate(values)


def test_own_filters_give_reasons_and_know_types() -> None:
    why = row_filter(
        conditions(spec(files=["x"], domain="web", filters={"where": {"ok": [True]}, "at_least": {"n": 2}}))
    )
    assert why(Row("f:1", {"ok": True, "n": 2})) is None
    assert why(Row("f:1", {"ok": True, "n": "2.5"})) is None
    assert why(Row("f:1", {"ok": True, "n": 1})) == "n is below 2.0"
    assert why(Row("f:1", {"ok": 1, "n": 5})) == "ok is none of [True]", "1 is no truth value"
    for bad in ({"ok": True}, {"ok": True, "n": None}, {"ok": True, "n": float("nan")}, {"ok": True, "n": True}):
        with pytest.raises(BadRow):
            why(Row("f:1", bad))
    long = length_filter(spec(files=["x"], domain="web", filters={"min_chars": 2, "max_chars": 3}))
    assert [long("a" * n) is None for n in (1, 2, 3, 4)] == [False, True, True, False]


def test_check_names_the_nearest_recipe(tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    study.write_text("name: s\nbases: {t: {arch: llama}}\nsources: {web: {recipe: dclm-edo}}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"sources\.web: recipe 'dclm-edo' is not known"):
        load_study(study)


def test_a_recipe_of_pairs_without_fields_is_told() -> None:
    with pytest.raises(DataError, match="needs the fields"):
        document_maker({"loss": "answer", "fields": {"text": "t"}}, get_template("think"))
