"""Epochs of a plan against sums done by hand, on the reference study's own budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismlab.study.check import cross_problems
from prismlab.study.cost import passes
from prismlab.study.load import load_study

STUDY = Path(__file__).parents[2] / "studies" / "prism-granite-3.3-8b.yaml"


def test_epochs_of_the_reference_budget() -> None:
    study = load_study(STUDY).study
    found = {(one.checkpoint, one.source): one for one in passes(study)}
    # 25,000 steps of 128 rows of 8,192 tokens; mot-math has 4 of 100 shares and 0.6e9 tokens.
    assert found["mid-mc", "mot-math"].tokens == pytest.approx(26_214_400_000 * 0.04)
    assert found["mid-mc", "mot-math"].epochs == pytest.approx(26_214_400_000 * 0.04 / 0.6e9)
    assert ("mid-mc", "mot-science") not in found


def test_a_source_that_would_repeat_too_often_is_refused_before_any_work() -> None:
    study = load_study(STUDY).study
    tight = study.mixtures["mc"].model_copy(update={"max_epochs": 1.0})
    study = study.model_copy(update={"mixtures": {**study.mixtures, "mc": tight}})
    found = cross_problems(study)
    assert any(line.startswith("checkpoints.mid-mc: source 'mot-math' would be repeated 1.75 times") for line in found)
