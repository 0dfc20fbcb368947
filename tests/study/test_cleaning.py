"""Which sources get a step of cleaning, and the mixtures of the reference study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prismlab.data.recipe_list import RECIPES
from prismlab.errors import SpecError
from prismlab.study.arms import infer_arms
from prismlab.study.load import load_mixtures, load_study
from prismlab.study.plan import plan_study
from prismlab.study.steps import Plan

STUDIES = Path(__file__).parents[2] / "studies"
TOKENS = 25_000 * 128 * 8192
"""Of the reference study's mid-training (its table 16)."""
ROWS = '{"text": "one", "q": "a?", "a": "b"}\n{"text": "two", "q": "c?", "a": "d"}\n'


def study(tmp_path: Path, **more: Any) -> Path:
    for name in ("web", "chat", "quiz"):
        (tmp_path / f"{name}.jsonl").write_text(ROWS, encoding="utf-8")
    whole: dict[str, Any] = {
        "name": "s",
        "seeds": [0, 1],
        "bases": {"tiny": {"arch": "llama", "width": 32, "layers": 2}},
        "sources": {
            "web": {"files": ["web.jsonl"], "domain": "web", "dedup": "exact"},
            "chat": {"files": ["chat.jsonl"], "domain": "chat"},
            "sums": {"micro": {"domain": "math"}, "filters": {"min_chars": 3}},
        },
        "mixtures": {"all": {"weights": {"web": 1, "chat": 1, "sums": 1}}},
        "checkpoints": {
            "base": {"stage": "pretrain", "from": "tiny", "mixture": "all", "steps": 2, "rows": 2, "seq_len": 8}
        },
        "tasks": {
            "quiz": {
                "files": ["quiz.jsonl"],
                "domain": "math",
                "fields": {"question": "q", "answer": "a"},
                "verifier": "exact",
            },
            "addition": {"micro": {"domain": "math"}},
        },
        "evaluations": {"core": {"tasks": ["quiz", "addition"], "items": 7, "text": ["web", "chat"]}},
        "analyses": {"cka": {"sources": ["web"]}},
    }
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(whole | more), encoding="utf-8")
    return file


def plan(file: Path) -> Plan:
    return plan_study(load_study(file), machine_text=lambda: "hash")


def test_sources_that_ask_for_it_are_cleaned_once_for_all_seeds(tmp_path: Path) -> None:
    found = plan(study(tmp_path))
    cleaning = {step.id: step for step in found.steps if step.kind == "clean"}
    assert sorted(cleaning) == ["clean/sums/s0", "clean/sums/s1", "clean/web"]
    for seed in (0, 1):
        (corpus,) = found.step(f"corpus/all-4x8/s{seed}")
        assert {key: step for key, step in corpus.inputs.items() if key != "tokenizer"} == {
            "web": "clean/web",
            "sums": f"clean/sums/s{seed}",
        }
        (evaluation,) = found.step(f"evaluation/core@base/s{seed}")
        assert evaluation.inputs["web"] == "clean/web"
        assert "chat" not in evaluation.inputs
    web = cleaning["clean/web"]
    assert web.config["decontaminate"] is None
    assert web.config["content"]["web"][0]["name"] == "web.jsonl"
    assert list(web.paths) == ["web"]
    assert web.facts == {"source": "web"}
    order = [step.id for step in found.steps]
    assert order.index("clean/web") < order.index("corpus/all-4x8/s0")


def test_a_study_without_such_sources_has_no_such_step(tmp_path: Path) -> None:
    file = study(tmp_path, sources={"web": {"files": ["web.jsonl"], "domain": "web"}}, analyses={})
    whole = yaml.safe_load(file.read_text())
    whole["mixtures"] = {"all": {"weights": {"web": 1}}}
    whole["evaluations"]["core"]["text"] = ["web"]
    file.write_text(yaml.safe_dump(whole))
    assert not [step for step in plan(file).steps if step.kind == "clean"]


@pytest.mark.parametrize(
    ("asked", "tasks"),
    [
        ({}, {"quiz": 7, "addition": 7}),
        ({"evaluations": ["core"]}, {"quiz": 7, "addition": 7}),
        ({"tasks": ["quiz"]}, {"quiz": 7}),
        ({"evaluations": [], "tasks": ["addition"]}, {"addition": 7}),
    ],
)
def test_decontamination_cleans_every_source_against_the_items(
    tmp_path: Path, asked: dict[str, Any], tasks: dict[str, int]
) -> None:
    found = plan(study(tmp_path, decontaminate={**asked, "action": "drop"}))
    cleaning = {step.id: step for step in found.steps if step.kind == "clean"}
    assert sorted(cleaning) == ["clean/chat", "clean/sums/s0", "clean/sums/s1", "clean/web"]
    for step in cleaning.values():
        assert step.config["decontaminate"] == {"n": 13, "action": "drop", "allow": [], "tasks": tasks}
        assert set(step.config["tasks"]) == set(tasks)
        assert ("quiz" in step.paths) == ("quiz" in tasks)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"decontaminate": {"tasks": ["quizz"]}}, "decontaminate.tasks: no task 'quizz'.*\ndid you mean 'quiz'"),
        ({"decontaminate": {"evaluations": ["cor"]}}, "decontaminate.evaluations: no evaluation with tasks 'cor'"),
        ({"decontaminate": {"n": 5}}, "decontaminate.n: 5 is out of range"),
        (
            {"decontaminate": {}, "evaluations": {"core": {"text": ["web"]}}},
            "decontaminate: no evaluation samples tasks",
        ),
        (
            {
                "sources": {"tokenizer": {"files": ["web.jsonl"], "domain": "web", "dedup": "exact"}},
                "mixtures": {"all": {"weights": {"tokenizer": 1}}},
                "evaluations": {},
                "analyses": {},
            },
            "sources.tokenizer: a source that is cleaned cannot be called so",
        ),
    ],
)
def test_what_cannot_be_cleaned_is_told(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_study(study(tmp_path, **more))


def test_folders_and_compressed_files_are_found(tmp_path: Path) -> None:
    for name in ("d/b.jsonl.zst", "d/a.parquet", "d/sub/c.txt.gz", "d/README.md", "d/e.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    more = {
        "sources": {"own": {"files": ["d", "d/e.jsonl"], "domain": "web"}},
        "mixtures": {"all": {"weights": {"own": 1}}},
    }
    loaded = load_study(study(tmp_path, **more, evaluations={}, analyses={}))
    found = [path.relative_to(tmp_path.resolve()).as_posix() for path in loaded.files["sources.own"]]
    assert found == ["d/a.parquet", "d/b.jsonl.zst", "d/e.jsonl", "d/sub/c.txt.gz"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SpecError, match=r"sources\.own\.files\[0\]: no file matches 'none'"):
        load_study(
            study(tmp_path, **json.loads(json.dumps(more).replace('"d"', '"none"')), evaluations={}, analyses={})
        )


@pytest.mark.parametrize("name", ["math", "mc", "mcs"])
def test_the_mixtures_of_the_reference_study_keep_their_own_rules(name: str) -> None:
    """Those that studies/mixtures/math.yaml states: nothing twice, the web largest, sizes of the recipes."""
    path = STUDIES / "mixtures" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    assert "weights are OURS" in text
    assert "paper's percentages" not in text
    loaded = load_mixtures(path)
    mixture = loaded.spec.mixtures[name]
    assert sum(mixture.weights.values()) == pytest.approx(100)
    sizes = mixture.tokens_in_source or {}
    assert set(sizes) == set(mixture.weights)
    for source, weight in mixture.weights.items():
        recipe = RECIPES[str(loaded.spec.sources[source].recipe)]
        assert sizes[source] == recipe.tokens
        assert weight / 100 * TOKENS / sizes[source] <= 2
    assert max(mixture.weights, key=lambda source: mixture.weights[source]) == "dclm-edu"
    domains = {loaded.spec.sources[source].domain_name for source in mixture.weights}
    assert (
        domains
        == {
            "math": {"web", "math", "chat"},
            "mc": {"web", "math", "chat", "code", "code-text"},
            "mcs": {"web", "math", "chat", "code", "code-text", "science"},
        }[name]
    )


def test_the_study_at_full_size_uses_them() -> None:
    loaded = load_study(STUDIES / "prism-granite-3.3-8b.yaml")
    arms = infer_arms(loaded.study)
    assert (arms["mid[MC]"], arms["mid[MCS]"]) == ("mid-mc", "mid-mcs")
    found = plan_study(loaded, machine_text=lambda: "hash")
    cleaning = [step for step in found.steps if step.kind == "clean"]
    assert {step.name for step in cleaning} == set(loaded.study.mixtures["mcs"].weights)
    assert all(set(step.config["decontaminate"]["tasks"]) == {"math500", "aime24", "aime25"} for step in cleaning)
