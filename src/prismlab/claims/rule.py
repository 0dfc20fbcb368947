"""What a decision rule is, and the names of the arms that the rules speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prismlab.claims.arms import Table
from prismlab.claims.decide import Part, Verdict, conjunction, conjunction_p

BASE = "base"
MC = "mid[MC]"
MCS = "mid[MCS]"
CONTROL = "mid[MCS]>finetune[MCS]"
"""Fine-tuning from mid[MCS] at the learning rate, steps and precision of RL: the control of C7."""


def rl(start: str, mix: str) -> str:
    """Name of the arm that RL on the prompts of ``mix`` makes of ``start``."""
    return f"{start}>rl[{mix}]"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A verdict with the parts that it follows from."""

    verdict: Verdict
    parts: tuple[Part, ...] = ()
    p: float | None = None
    """p-value for the claim; None without a test."""
    p_against: float | None = None
    """p-value for its contradiction."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the reference study with the rule that decides it."""

    id: str
    """C1 to C18."""
    title: str
    """The claim in one sentence."""
    rule: str
    """The decision rule, word for word as in the documentation."""
    arms: tuple[str, ...]
    """Arms that the rule reads."""
    reads: tuple[str, ...]
    """Evaluations and analyses of them that the rule reads."""
    decide: Callable[[Table], Decision]
    """The rule as code."""


def all_of(parts: Sequence[Part], notes: Sequence[str] = ()) -> Decision:
    """Decision of a claim that holds if all deciding parts hold."""
    p, against = conjunction_p(parts)
    return Decision(verdict=conjunction(parts), parts=tuple(parts), p=p, p_against=against, notes=tuple(notes))
