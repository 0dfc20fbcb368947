"""Shares by source, by domain and by size; packing of a training."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prismlab.study.checkpoints import PackingSpec, TrainSpec
from prismlab.study.spec import MixtureSpec

DOMAINS = {"web": "web", "wiki": "web", "gsm": "math", "prose": "math", "code": "code"}


def shares(**given: Any) -> dict[str, float]:
    return MixtureSpec.model_validate(given).shares(DOMAINS)


def test_weights_are_normalised() -> None:
    assert shares(weights={"web": 3, "gsm": 1}) == {"web": 0.75, "gsm": 0.25}
    assert shares(by_size=["web", "gsm"], tokens_in_source={"web": 6e9, "gsm": 2e9, "code": 1}) == {
        "web": 0.75,
        "gsm": 0.25,
    }


def test_domains_part_the_tokens_and_their_sources_part_theirs() -> None:
    found = shares(
        domains={"web": 50, "math": 30, "code": 20},
        weights={"gsm": 1, "prose": 2, "code": 7},
        by_size=["web", "wiki"],
        tokens_in_source={"web": 9e9, "wiki": 1e9},
    )
    assert found == pytest.approx({"web": 0.45, "wiki": 0.05, "gsm": 0.1, "prose": 0.2, "code": 0.2})
    assert sum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {}}, "name at least one source"),
        ({"weights": {"web": 1}, "by_size": ["web"], "tokens_in_source": {"web": 1}}, "'web' is named twice"),
        ({"by_size": ["web", "web"], "tokens_in_source": {"web": 1}}, "'web' is named twice"),
        ({"weights": {"web": 1}, "by_size": ["gsm"], "tokens_in_source": {"gsm": 1}}, "need 'domains'"),
        ({"by_size": ["web"]}, "'web', whose size is not in 'tokens_in_source'"),
        ({"domains": {"web": 1, "math": 1}, "weights": {"web": 1}}, "no source of the domain 'math'"),
        ({"domains": {"web": 1}, "weights": {"web": 1, "gsm": 1}}, "'gsm' is of the domain 'math', which has no share"),
        (
            {
                "domains": {"web": 1},
                "weights": {"web": 1},
                "by_size": ["wiki"],
                "tokens_in_source": {"wiki": 1},
            },
            "sources of 'web' stand in 'weights' and in 'by_size'",
        ),
    ],
)
def test_mixtures_that_say_nothing_definite_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shares(**given)


def train(**given: Any) -> TrainSpec:
    return TrainSpec.model_validate({"stage": "midtrain", "from": "b", "mixture": "m", "steps": 1, **given})


def test_corpora_that_differ_in_packing_have_names_apart() -> None:
    assert PackingSpec().label == ""
    assert PackingSpec(method="best_fit").label == "best_fit"
    assert PackingSpec(min_tokens=9).label == "concat-min_tokens9"
    assert PackingSpec(method="best_fit", overlap=4, window=2048).label == "best_fit-overlap4-window2048"


@pytest.mark.parametrize(
    ("packing", "message"),
    [
        ({"overlap": 4}, "'overlap' is for 'method: best_fit'"),
        ({"method": "best_fit", "overlap": 33}, "more than half of 'seq_len'"),
        ({"window": 10}, "'packing.window' is for 'method: best_fit'"),
    ],
)
def test_packing_that_fits_nothing_is_refused(packing: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        train(seq_len=64, packing=packing)
