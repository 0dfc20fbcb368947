"""The page: whole, safe, valid, and with the numbers that the records hold."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import scipy.stats
from study_on_disk import HOSTILE, build, decide, page
from synthetic import World

from prismlab.errors import DataError
from prismlab.report.page import script_json

VOID = {"meta", "link", "br", "input", "img", "hr"}


@dataclass
class Parsed(HTMLParser):
    """Every element with its attributes, and the text of the elements that a test asks for."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts[self.stack[-1]][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parse(text: str) -> Parsed:
    parsed = Parsed()
    parsed.feed(text)
    parsed.close()
    assert parsed.stack == [], "every element is closed"
    return parsed


def figures(parsed: Parsed) -> dict[str, Any]:
    return json.loads(parsed.texts["script"][0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def text(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(world, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    return parse(text)


def test_nothing_outside_the_file_is_named_for_loading(parsed: Parsed) -> None:
    for tag, attributes in parsed.elements:
        assert "src" not in attributes, tag
        assert "srcset" not in attributes, tag
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:,")), (tag, href)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    style = "".join(parsed.texts["style"])
    assert not re.search(r"@import|url\(|@font-face", style)


def test_the_policy_allows_exactly_the_pages_own_scripts(parsed: Parsed) -> None:
    policy = next(m["content"] for m in parsed.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    scripts = parsed.texts["script"]
    assert [s.get("type") for s in parsed.of("script")] == ["application/json", None, None]
    hashes = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts[1:]}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert "unsafe-eval" not in policy


def test_generated_text_is_text(parsed: Parsed) -> None:
    """The response that tries to break out stands on the page letter by letter, and made no element."""
    assert parsed.of("img") == []
    responses = [text for text in parsed.texts["pre"] if HOSTILE in text]
    assert len(responses) == 10 * 6
    assert len(parsed.of("script")) == 3


def test_hostile_names_are_text_too(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=3)
    evil = "</script><img src=x onerror=alert(1)>"
    world.arms[evil] = "control"
    del world.arms["mid[MCS]>finetune[MCS]"]
    world.study["report"]["title"] = world.study["description"] = evil
    world.lose("trajectory", evil, checkpoint="rl-base-mcs")
    decide(world, tmp_path / "study")
    parsed = parse(page(world, tmp_path / "out"))
    assert len(parsed.of("script")) == 3
    assert parsed.of("img") == []
    assert parsed.texts["h1"] == [evil]
    assert "<" not in parsed.texts["script"][0]
    names = {trace.get("name") for trace in figures(parsed)["scores"]["data"]}
    assert "&lt;/script>&lt;img src=x onerror=alert(1)>" in names


def test_json_in_a_script_element_cannot_end_it() -> None:
    value = {"a": "</script><!-- \u2028 & >"}
    assert json.loads(script_json(value)) == value
    assert not set("<>&\u2028\u2029") & set(script_json(value))
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_every_figure_is_valid_plotly_and_has_its_place(parsed: Parsed) -> None:
    drawn = figures(parsed)
    places = [d["data-figure"] for d in parsed.of("div") if "data-figure" in d]
    assert sorted(drawn) == sorted(places)
    assert set(drawn) == {
        "scores", "mixtures", "training", "divergence", "steps", "layers", "thresholds", "direction", "cka",
        "cka-pairs", "rl", "trajectory", "trajectory-difference", "landscape", "behaviour", "time",
    }  # fmt: skip
    for figure in drawn.values():
        go.Figure(figure)
        assert figure["data"]
        assert all(len(trace["x"]) <= 400 for trace in figure["data"])


def test_scores_are_means_over_seeds_with_t_intervals(world: World, text: str) -> None:
    values = [
        world.inputs[f"evaluation/core@mid-mcs/s{s}"].metrics["domains"]["math"]["value"] for s in world.seeds
    ]  # fmt: skip
    interval = scipy.stats.t.interval(0.95, 2, sum(values) / 3, scipy.stats.sem(values))
    cell = f"{sum(values) / 3:.1f}<small>[{interval[0]:.1f}, {interval[1]:.1f}]</small>"
    row = text[text.index("<small>mid-mcs</small></th><td", text.index('id="scores"')) :]
    assert cell in row[: row.index("</tr>")]


def test_best_of_a_column_is_marked_lowest_for_loss(text: str) -> None:
    table = text[text.index('id="scores"') : text.index('id="mixtures"')]
    rows = {
        r.split("<small>")[1].split("<")[0]: r for r in re.findall(r"<tr><th.*?</tr>", table, re.S) if "<small>" in r
    }
    best = {name: [c.split(">")[1].split("<")[0] for c in re.findall(r'<td class="n best"[^>]*>[^<]*<', row)]
            for name, row in rows.items()}  # fmt: skip
    marked = {name: values for name, values in best.items() if values}
    assert sum(len(v) for v in marked.values()) == 6
    bits = [re.findall(r"<td[^>]*>([\d.]+)<", row)[5] for row in rows.values()]
    assert min(bits) in [v for values in marked.values() for v in values]


def test_every_claim_has_a_chip_a_card_and_its_evidence(world: World, parsed: Parsed) -> None:
    ids = {a["id"] for _, a in parsed.elements if "id" in a}
    links = [a["href"] for a in parsed.of("a")]
    assert {f"C{n}" for n in range(1, 19)} <= ids
    for href in links:
        assert href is not None
        assert href[1:] in ids, href
    chips = [a["class"] for a in parsed.of("a") if (a.get("class") or "").startswith("chip")]
    assert chips.count("chip supported") == 14
    assert chips.count("chip not_tested") == 4
    evidence = {href[3:] for href in links if href and href.startswith("#a-")}
    ledger = json.loads((world.inputs["claims/synthetic/s0"].path / "ledger.json").read_text())
    assert evidence == {e["fingerprint"] for claim in ledger["claims"] for e in claim["evidence"]}


def test_the_page_is_light_and_the_same_every_time(world: World, text: str, tmp_path: Path) -> None:
    assert len(text.encode()) < 8e6
    assert page(world, tmp_path) == text


def test_one_seed_shows_item_intervals_and_says_so(tmp_path: Path) -> None:
    world = build(tmp_path / "study", seeds=(0,), steps=5)
    text = page(world, tmp_path / "out")
    assert "over items inside the one seed" in text
    value = world.inputs["evaluation/core@mid-mcs/s0"].metrics["domains"]["math"]["value"]
    assert f"{value:.1f}<small>[{value - 3:.1f}, {value + 3:.1f}]</small>" in text
    assert "1 seed gives no interval" in text
    assert "data-seed" not in text.split("<script")[0]


def test_a_study_without_rl_analyses_or_claims_leaves_sections_out_with_a_note(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=5)
    for kind in ("rl", "weights", "cka", "direction", "behaviour", "trajectory", "landscape", "claims", "corpus"):
        world.forget(kind)
    parsed = parse(page(world, tmp_path / "out"))
    assert set(figures(parsed)) == {"scores", "training", "time"}
    notes = " ".join(parsed.texts["p"])
    for words in (
        "No RL run",
        "'weights' was not part",
        "'cka' was not part",
        "'landscape' was not part",
        "no verdicts",
        "No corpus",
    ):
        assert words in notes
    links = {a["href"] for a in parsed.of("a")}
    assert "#rl" not in links
    assert "#scores" in links


def test_an_empty_study_still_gives_a_page(tmp_path: Path) -> None:
    parsed = parse(page(World(arms={}), tmp_path / "out"))
    assert figures(parsed) == {}
    assert "–" in parsed.texts["dd"]


def test_lost_steps_are_named_with_their_reason(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=3)
    world.lose("rl", "no group had a signal", checkpoint="rl-mcs-mcs", seed=1)
    text = page(world, tmp_path / "out")
    assert "rl/rl-mcs-mcs/s1 (no group had a signal)" in text
    assert "2 of 3 seeds; no rl: no group had a signal" in text
    assert 'class="lost"' in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=3)
    (world.inputs["train/mid-mcs/s0"].path / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"train/mid-mcs/s0: metrics\.jsonl"):
        page(world, tmp_path / "out")


def test_a_section_whose_steps_logged_nothing_says_so(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=0)
    parsed = parse(page(world, tmp_path / "out"))
    assert not {"training", "rl"} & set(figures(parsed))
    assert sum("recorded nothing that could be drawn" in p for p in parsed.texts["p"]) == 2


def test_checkpoints_stand_in_the_order_of_the_steps_and_arms_from_base_to_rl(tmp_path: Path) -> None:
    """The config has sorted keys; the page must not."""
    world = build(tmp_path / "study", steps=3)
    world.study = json.loads(json.dumps(world.study, sort_keys=True))
    world.arms = dict(sorted(world.arms.items(), reverse=True))
    text = page(world, tmp_path / "out")
    table = text[text.index('id="scores"') : text.index('id="mixtures"')]
    order = [name.replace("&gt;", ">") for name in re.findall(r'<th scope="row">([^<]+)<', table)]
    assert order[:4] == ["base", "mid[M]", "mid[MC]", "mid[MCS]"]
    assert order[-2:] == ["base>rl[MCS]", "mid[MCS]>finetune[MCS]"]
    pipeline = text[text.index('id="pipeline"') : text.index('id="scores"')]
    made = [name.replace("&gt;", ">") for name in re.findall(r'<th scope="row">([^<]+)<', pipeline)]
    assert made[0] == "base"


def test_no_score_is_best_where_all_are_equal(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=3)
    for artifact in world.inputs.values():
        if artifact.kind == "evaluation":
            artifact.metrics["domains"]["code"]["value"] = 0.0
    text = page(world, tmp_path / "out")
    table = text[text.index('id="scores"') : text.index('id="mixtures"')]
    assert not re.search(r'class="n best"[^>]*>0\.0<', table)


def test_an_axis_of_percents_ends_where_percents_do(parsed: Parsed) -> None:
    """A t interval of three seeds reaches past 0 and 100; the picture does not."""
    figure = figures(parsed)["scores"]
    whiskers = [y + up for t in figure["data"] for y, up in zip(t["y"], t["error_y"]["array"], strict=True) if up]
    ranges = [axis["range"] for key, axis in figure["layout"].items() if key.startswith("yaxis")]
    assert len(ranges) == 3
    assert all(low == 0 and 0 < high <= 104 for low, high in ranges)
    assert max(high for _, high in ranges) == pytest.approx(1.04 * min(100, max(whiskers)))


def test_the_head_counts_the_tokens_that_were_trained_on_alone(world: World, parsed: Parsed) -> None:
    """Packing a corpus and sampling an evaluation train nothing."""
    trained = [a for a in world.inputs.values() if a.kind in ("train", "rl")]
    others = [a for a in world.inputs.values() if a.kind not in ("train", "rl")]
    tokens = sum(a.record.get("tokens") or 0 for a in trained)
    assert tokens > 0
    assert sum(a.record.get("tokens") or 0 for a in others) > 0
    facts = dict(zip(parsed.texts["dt"], parsed.texts["dd"], strict=True))
    assert facts["tokens trained on"] == f"{tokens:,}"


def test_every_tested_chip_says_which_part_its_number_is_of(world: World, text: str) -> None:
    ledger = json.loads((world.inputs["claims/synthetic/s0"].path / "ledger.json").read_text())
    about = {c["id"]: c["effect"]["label"] for c in ledger["claims"] if c["effect"] is not None}
    assert len(about) >= 13
    strip = html.unescape(text[text.index('<ul class="strip">') : text.index('id="pipeline"')])
    for label in about.values():
        assert f'<small class="about">{label}, must be ' in strip
