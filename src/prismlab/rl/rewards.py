"""The reward of RL: format gate, verifier and two penalties, as one number a response.

    reward = gate * score - no_stop - repetition * share of repeated n-grams

The gate is 1 inside the think format and 0 outside, the score is the verifier's. The penalties are taken from every
response, also from one that fails the gate: were those exempt, an endless response would do better outside the format
(0) than inside it with a wrong answer (minus the penalty), and the penalty would teach to leave the format. So a
reward lies between -(no_stop + repetition) and 1, and rewards of 0 and below all mean "not solved".

A response that could not be judged has no reward at all (None): it never counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismlab.data.items import Item
from prismlab.model.generate import Completion
from prismlab.verify.answers import verify
from prismlab.verify.format import check_format

FormatCheck = Callable[[str], Any]
"""Judges the form of a response: an object with ``ok`` and ``reason`` (``verify.format.check_format``)."""

Verify = Callable[..., Any]
"""Judges an answer: an object with ``score``, ``verdict`` and ``reason`` (``verify.answers.verify``)."""


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """What is taken from a reward.

    Attributes:
        no_stop: taken from a response without a stop token.
        repetition: taken from a response in proportion to its share of repeated n-grams.
        ngram: tokens in an n-gram.
    """

    no_stop: float
    repetition: float
    ngram: int

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Penalties:
        """The penalties of an ``RLSpec`` in JSON."""
        return cls(
            no_stop=float(spec["no_stop_penalty"]),
            repetition=float(spec["repetition_penalty"]),
            ngram=int(spec["repetition_ngram"]),
        )


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of one response and its parts.

    Attributes:
        reward: the sum, or None where there is no verdict.
        form_ok: whether the response is inside the think format.
        score: the verifier's score behind the gate: 1.0, 0.0, or None where there is no verdict.
        verdict: right, wrong, no_answer or no_verdict.
        reason: why, in a few words.
        no_stop: what was taken for the missing stop token.
        repetition: what was taken for repetition.
    """

    reward: float | None
    form_ok: bool
    score: float | None
    verdict: str
    reason: str
    no_stop: float
    repetition: float


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of repeated n-grams: 1 - distinct / total over the n-grams of ``tokens``; 0 below n tokens."""
    total = len(tokens) - n + 1
    if total < 1:
        return 0.0
    return 1.0 - len({tuple(tokens[at : at + n]) for at in range(total)}) / total


def reward_of(
    item: Item,
    completion: Completion,
    penalties: Penalties,
    check: FormatCheck = check_format,
    judge: Verify = verify,
) -> Reward:
    """Judge one response; see the top of this module for the formula.

    Args:
        item: the question with its verifier.
        completion: the response; its tokens hold the stop token where there was one.
        penalties: what is taken away.
        check: judge of the form.
        judge: judge of the answer, called for responses of the right form only.
    """
    form = check(completion.text)
    if form.ok:
        verdict = judge(item, completion.text, strict_format=True)
        score, word, reason = verdict.score, verdict.verdict, verdict.reason
    else:
        score, word, reason = 0.0, "no_answer", form.reason
    no_stop = 0.0 if completion.finished else penalties.no_stop
    repetition = penalties.repetition * repeated_share(completion.token_ids, penalties.ngram)
    return Reward(
        reward=None if score is None else score - no_stop - repetition,
        form_ok=form.ok,
        score=score,
        verdict=word,
        reason=reason or "",
        no_stop=no_stop,
        repetition=repetition,
    )
