"""The frontier from rows made by hand, from a simulation without any learning, and from a stage on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import comb
from transformers import LlamaForCausalLM

from prismlab.errors import DataError
from prismlab.rl.frontier import frontier, passes, run
from prismlab.run.step import Artifact, Silent
from prismlab.score import read_rows


def rows(scores: Sequence[Sequence[float | None]], domain: str = "math") -> list[dict[str, Any]]:
    """Rows of prompts p0, p1, ...; only the columns that are read."""
    return [
        {"task": "t", "item_id": f"p{at}", "problem": f"p{at}", "domain": domain, "sample": s, "score": score}
        for at, mine in enumerate(scores)
        for s, score in enumerate(mine)
    ]


def test_by_hand() -> None:
    first = rows([[0, 0], [0, 0], [0, 1], [1, 1], [0, None]])
    fresh = rows([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    after = rows([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, None, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    found = frontier(first, fresh, after)
    assert (found["prompts"], found["set_aside"]) == (4, 1)
    assert found["samples"] == {"first": 2, "fresh": 4}
    zero, one, more = (found["groups"][name] for name in ("0", "1", "more"))
    assert (zero["prompts"], one["prompts"], more["prompts"]) == (2, 1, 1)
    assert zero["fresh"]["value"] == pytest.approx(12.5)
    assert zero["after"]["value"] == pytest.approx(37.5)
    assert zero["difference"]["value"] == pytest.approx(25.0)
    assert zero["difference"]["lo"] < 25.0 < zero["difference"]["hi"]
    assert (zero["solved_fresh"], zero["solved_after"], zero["unscored"]) == (1, 2, 0)
    # The pair with a missing verdict counts on neither side: 1 of 3 before, 2 of 3 after.
    assert one["fresh"]["value"] == pytest.approx(100 / 3)
    assert one["after"]["value"] == pytest.approx(200 / 3)
    assert one["unscored"] == 1
    assert (one["difference"]["lo"], one["difference"]["reason"]) == (None, "one problem shows no spread")
    assert found["groups"]["all"]["after"]["value"] == pytest.approx(100 * 9 / 15)
    assert list(found["domains"]) == ["math"]
    assert found["domains"]["math"]["0"] == zero


def test_a_group_without_prompts_is_null_not_zero() -> None:
    found = frontier(rows([[1, 1], [1, 0]]), rows([[1, 1], [1, 1]]), rows([[1, 1], [1, 1]]))
    empty = found["groups"]["0"]
    assert empty["prompts"] == 0
    assert empty["difference"] == {"value": None, "lo": None, "hi": None, "reason": "no prompt"}
    lost = frontier(rows([[0, 0]]), rows([[None, None]]), rows([[1, 1]]))["groups"]["0"]
    assert (lost["fresh"]["value"], lost["unscored"]) == (None, 2)


def test_luck_is_not_taken_for_learning() -> None:
    """Nothing is learnt: against the first draw the unsolved seem to gain, against the second they do not."""
    covered = first_covers = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rates = rng.beta(0.4, 1.2, size=200)
        draws = [rows((rng.random((200, n)) < rates[:, None]).astype(float).tolist()) for n in (16, 16, 16)]
        zero = frontier(*draws)["groups"]["0"]
        covered += zero["difference"]["lo"] <= 0 <= zero["difference"]["hi"]
        first_covers += zero["fresh"]["lo"] <= 0
    assert covered >= 26, "29 of 30 are to be expected of 95% intervals"
    assert first_covers <= 5, "against the first draw, exactly 0 by selection, luck would look like a gain"
    taught = rows((rng.random((200, 16)) < np.minimum(1, rates + 0.1)[:, None]).astype(float).tolist())
    gained = frontier(draws[0], draws[1], taught)["groups"]["0"]["difference"]
    assert gained["lo"] > 4
    assert gained["lo"] < 10 < gained["hi"]


def test_pass_at_k_against_the_closed_form() -> None:
    old, new = [0, 1, 3, 8], [1, 1, 8, 8]
    grouped = [
        {("t", f"p{at}"): [{"score": float(s < c)} for s in range(8)] for at, c in enumerate(counts)}
        for counts in (old, new)
    ]
    found = passes(*grouped)
    assert list(found) == ["1", "2", "4", "8"]
    for k, cell in found.items():
        for side, counts in (("before", old), ("after", new)):
            expected = np.mean([1 - comb(8 - c, int(k), exact=True) / comb(8, int(k), exact=True) for c in counts])
            assert cell[side]["value"] == pytest.approx(100 * expected)
        assert cell["difference"]["value"] == pytest.approx(cell["after"]["value"] - cell["before"]["value"])
    grouped[1]["t", "p0"][3]["score"] = None
    assert passes(*grouped)["1"]["before"]["value"] == pytest.approx(100 * np.mean([1 / 8, 3 / 8, 1])), "left out"


@pytest.fixture
def stage(
    tmp_path: Path, start: Path, prompts_artifact: Artifact, artifact: Callable[..., Artifact]
) -> Callable[..., Any]:
    trained = LlamaForCausalLM.from_pretrained(start / "model")
    with torch.no_grad():
        trained.model.embed_tokens.weight.add_(0.05)
    trained.save_pretrained(tmp_path / "run" / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run" / "model" / name).write_bytes((start / "model" / name).read_bytes())

    def go(out: Path, scratch: Path | None = None, **changes: Any) -> Any:
        out.mkdir(parents=True)
        asked = {"prompts": None, "samples": 2, "fresh": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5}
        config: dict[str, Any] = {"spec": {**asked, **changes}, "template": "think", "seed": 3}
        inputs = {"start": artifact("train", start), "run": artifact("rl", tmp_path / "run")}
        if scratch is not None:
            config["scratch"] = str(scratch)
        return run(config, {**inputs, "prompts": prompts_artifact}, out, Silent())

    return go


def test_stage(stage: Callable[..., Any], tmp_path: Path) -> None:
    result = stage(tmp_path / "out")
    draws = {name: read_rows(tmp_path / "out" / f"{name}.parquet") for name in ("first", "fresh", "after")}
    assert [len(draw) for draw in draws.values()] == [3 * 2, 3 * 4, 3 * 4]
    assert result.metrics == frontier(**draws)
    assert result.tokens == sum(row["tokens"] for draw in draws.values() for row in draw)
    texts = {name: [row["response"] for row in draw if row["sample"] < 2] for name, draw in draws.items()}
    assert texts["first"] != texts["fresh"], "the second draw is independent"
    assert texts["fresh"] != texts["after"], "two models"
    assert stage(tmp_path / "few", prompts=2).metrics["prompts"] == 2


def test_a_stopped_stage_goes_on(stage: Callable[..., Any], tmp_path: Path) -> None:
    whole = stage(tmp_path / "whole")
    stage(tmp_path / "one", tmp_path / "scratch")
    for name in ("fresh", "after"):
        for file in (tmp_path / "scratch" / name).iterdir():
            file.unlink()
    again = stage(tmp_path / "two", tmp_path / "scratch")
    assert again.metrics == whole.metrics
    for name in ("first", "fresh", "after"):
        assert read_rows(tmp_path / "two" / f"{name}.parquet") == read_rows(tmp_path / "whole" / f"{name}.parquet")


def test_without_prompts(stage: Callable[..., Any], prompts_artifact: Artifact, tmp_path: Path) -> None:
    (prompts_artifact.path / "prompts.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no prompt"):
        stage(tmp_path / "out")
