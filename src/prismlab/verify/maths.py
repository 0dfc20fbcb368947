"""The verifier ``math``: numbers and formulas, compared by math-verify in processes that can be killed.

Plain numbers are compared here, exactly, which gives what math-verify gives (``tests/verify/test_maths.py`` compares
them) at a thousandth of the cost.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from prismlab.verify.math_pool import MathPool, shared_pool
from prismlab.verify.math_text import LONGEST, Answer, answer_text, clean, foreign_digits, hedges, odd_characters
from prismlab.verify.verdict import RIGHT, Verdict, no_answer, no_verdict, quoted, wrong

SECONDS = 5.0
"""A comparison that takes longer is decided against the answer."""


@lru_cache(maxsize=1 << 16)
def _reference(gold: str) -> Answer | None:
    text = answer_text(gold) if "####" in gold or "\\boxed" in gold else gold.strip()
    return clean(text) if text and len(text) <= LONGEST else None


def judge_math(gold: str, response: str, *, seconds: float = SECONDS, pool: MathPool | None = None) -> Verdict:
    """Is the answer in ``response`` equal to ``gold``? ``math_text`` states which part counts and how it is read.

    Decimals are compared to six places where one side has no exact value (math-verify's rule: 0.333333 is 1/3). A
    formula is right if it is equal, simplified or not. An answer of more than 2,000 characters is wrong; so is one
    that is not decided within ``seconds``.
    """
    reference = _reference(gold)
    if reference is None or not reference.text:
        return no_verdict(f"the item's answer {quoted(gold)} cannot be read")
    written = answer_text(response)
    if written is None:
        return no_answer("no answer: no box, no number, no formula")
    if len(written) > LONGEST:
        return wrong(f"an answer of {len(written):,} characters")
    answer = clean(written)
    if not answer.text:
        return no_answer("the answer is empty")
    if answer.unit and reference.unit and answer.unit != reference.unit:
        return wrong(f"unit {quoted(answer.unit)} is not {quoted(reference.unit)}")
    if hedges(answer.text, reference.text):
        return wrong(f"{quoted(written)} is more than one value")
    said = "wrong" if foreign_digits(answer.text) else _same(reference, answer, seconds, pool)
    if said == "right":
        return RIGHT
    if said == "gold":
        return no_verdict(f"the item's answer {quoted(gold)} cannot be read as mathematics")
    if said == "fault":
        return no_verdict("the math verifier's process failed")
    if said == "time":
        return wrong(f"{quoted(written)} was not decided within {seconds:g} s")
    odd = odd_characters(written)
    return wrong(f"{quoted(written)} is not {quoted(reference.text)}" + (f" (holds {odd})" if odd else ""))


def _same(reference: Answer, answer: Answer, seconds: float, pool: MathPool | None) -> str:
    ours, theirs = reference.value, answer.value
    if ours is not None and theirs is not None:
        # Both decimal or both ratios: exact, as math-verify has it. One of each: only where they are equal.
        if ours == theirs:
            return "right"
        if _terminates(ours) and _terminates(theirs):
            return "wrong"
    elif reference.text == answer.text:
        return "right"
    return (pool or shared_pool()).ask(reference.text, answer.text, seconds)


def _terminates(value: Fraction) -> bool:
    """Whether six decimal places hold all of it."""
    return 10**6 % value.denominator == 0
