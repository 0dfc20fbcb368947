"""Rewards against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from prismlab.data.items import Item
from prismlab.model.generate import Completion
from prismlab.rl.rewards import Penalties, Reward, repeated_share, reward_of

PENALTIES = Penalties(no_stop=0.1, repetition=0.2, ngram=2)


def completion(text: str, tokens: list[int], finished: bool = True) -> Completion:
    return Completion(token_ids=tokens, text=text, logprobs=None, sampler_logprobs=None, finished=finished)


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [
        ([], 2, 0.0),
        ([5], 2, 0.0),
        ([5, 5], 2, 0.0),  # one 2-gram
        ([1, 2, 1, 2, 1], 2, 0.5),  # 12 21 12 21
        ([3, 3, 3, 3, 3], 2, 0.75),  # 33 four times
        ([1, 2, 3, 1, 2, 3, 1], 3, 0.4),  # 123 231 312 123 231
        (list(range(40)), 16, 0.0),
        ([1, 2, 1, 2, 1], 6, 0.0),  # shorter than an n-gram
    ],
)
def test_share_of_repeated_ngrams(tokens: list[int], n: int, share: float) -> None:
    assert repeated_share(tokens, n) == pytest.approx(share)


def judged(
    item: Item, ok: bool, score: float | None, tokens: list[int], finished: bool, penalties: Penalties = PENALTIES
) -> Reward:
    def judge(item: Item, text: str, *, strict_format: bool) -> Any:
        assert ok, "a response outside the format must not reach the verifier"
        assert strict_format
        return SimpleNamespace(score=score, verdict="no_verdict" if score is None else "right", reason=None)

    check = lambda text: SimpleNamespace(ok=ok, reason=None if ok else "no think block")  # noqa: E731
    return reward_of(item, completion("text", tokens, finished), penalties, check, judge)


@pytest.mark.parametrize(
    ("ok", "score", "tokens", "finished", "reward"),
    [
        (True, 1.0, [1, 2, 3], True, 1.0),
        (True, 1.0, [1, 2, 3], False, 0.9),
        (True, 1.0, [1, 2, 1, 2, 1], True, 1.0 - 0.2 * 0.5),
        (True, 0.0, [1, 2, 1, 2, 1], False, -0.1 - 0.2 * 0.5),
        # The gate takes the score, not the penalties: rambling outside the format is no way around them.
        (False, 1.0, [1, 2, 3], True, 0.0),
        (False, 1.0, [3, 3, 3, 3, 3], False, -0.1 - 0.2 * 0.75),
    ],
)
def test_reward_by_hand(
    make_item: Callable[..., Item], ok: bool, score: float, tokens: list[int], finished: bool, reward: float
) -> None:
    got = judged(make_item("a"), ok, score, tokens, finished)
    assert got.reward == pytest.approx(reward)
    assert got.form_ok is ok
    assert got.score == (score if ok else 0.0)
    assert got.reward == pytest.approx((got.score or 0.0) - got.no_stop - got.repetition)


def test_no_verdict_is_no_reward(make_item: Callable[..., Item]) -> None:
    got = judged(make_item("a"), True, None, [3, 3, 3], False)
    assert got.reward is None
    assert got.score is None
    assert got.no_stop == 0.1
    # Outside the format the gate decides alone, and that is a verdict.
    assert judged(make_item("a"), False, None, [1], True).reward == 0.0


@pytest.mark.parametrize(
    ("text", "reward", "verdict"),
    [
        ("<think> 3 + 4 </think> 7", 1.0, "right"),
        ("<think> 3 + 4 </think> 8", 0.0, "wrong"),
        ("7", 0.0, "no_answer"),
        ("<think> 3 + 4 = 7", 0.0, "no_answer"),
    ],
)
def test_with_the_verifier(make_item: Callable[..., Item], text: str, reward: float, verdict: str) -> None:
    got = reward_of(make_item("a"), completion(text, [1, 2, 3]), PENALTIES)
    assert got.reward == reward
    assert got.verdict == verdict


def test_penalties_of_a_spec(rl_spec: Callable[..., dict[str, Any]]) -> None:
    spec = rl_spec(no_stop_penalty=0.3, repetition_penalty=0.4, repetition_ngram=5)
    assert Penalties.of(spec) == Penalties(no_stop=0.3, repetition=0.4, ngram=5)
