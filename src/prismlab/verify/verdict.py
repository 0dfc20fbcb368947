"""What a verifier says, and how it shows a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHOWN = 60
"""Characters of an answer that a reason quotes."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verifier says."""

    score: float | None
    """1.0 right, 0.0 wrong or no answer, None without a verdict."""
    verdict: Literal["right", "wrong", "no_answer", "no_verdict"]
    """The same in a word."""
    reason: str
    """Why, in a few words; empty if right."""


RIGHT = Verdict(score=1.0, verdict="right", reason="")


def wrong(reason: str) -> Verdict:
    """There is an answer, and it is not the right one."""
    return Verdict(score=0.0, verdict="wrong", reason=reason)


def no_answer(reason: str) -> Verdict:
    """Nothing in the response could be read as an answer."""
    return Verdict(score=0.0, verdict="no_answer", reason=reason)


def no_verdict(reason: str) -> Verdict:
    """The item, or the machine, does not allow a verdict: it counts as missing."""
    return Verdict(score=None, verdict="no_verdict", reason=reason)


def quoted(text: str) -> str:
    """The beginning of a text, as a literal."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
