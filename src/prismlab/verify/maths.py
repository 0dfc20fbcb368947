"""The verifier ``math``: numbers and formulas, compared by math-verify in processes that can be killed.

Plain numbers are compared here, exactly, which gives what math-verify gives (``tests/verify/test_maths.py`` compares
them) at a thousandth of the cost.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from prismlab.verify.math_pool import MathPool, shared_pool
from prismlab.verify.math_text import (
    LONGEST,
    Answer,
    answer_text,
    clean,
    foreign_digits,
    hedges,
    listed,
    odd_characters,
    same_arrows,
    sides,
)
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
    answer = listed(clean(written), reference)
    if not answer.text:
        return no_answer("the answer is empty")
    if answer.unit and reference.unit and answer.unit != reference.unit:
        return wrong(f"unit {quoted(answer.unit)} is not {quoted(reference.unit)}")
    if hedges(answer.text, reference.text):
        return wrong(f"{quoted(written)} is more than one value")
    said = "wrong" if foreign_digits(answer.text) else _said(reference, answer, seconds, pool)
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


def _said(reference: Answer, answer: Answer, seconds: float, pool: MathPool | None) -> str:
    """What the comparison says; of an equation, each of its sides that is a value must be the reference."""
    values = sides(answer.text, reference.text)
    for value in values:
        said = _same(reference, Answer(text=value, unit=""), seconds, pool)
        if said != "right":
            return said
    return "right" if values else _same(reference, answer, seconds, pool)


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
    for known in (_by_places(reference, answer), _by_base(reference, answer), _by_text(reference, answer)):
        if known is not None:
            return "right" if known else "wrong"
    return (pool or shared_pool()).ask(reference.text, answer.text, seconds)


def _terminates(value: Fraction) -> bool:
    """Whether six decimal places hold all of it."""
    return 10**6 % value.denominator == 0


def _by_places(reference: Answer, answer: Answer) -> bool | None:
    """Decimals of more than six places on both sides: exact if they have equally many, else to the shorter's last."""
    if not (reference.places and answer.places):
        return None
    apart = abs(Fraction(reference.text) - Fraction(answer.text))
    return (
        not apart
        if reference.places == answer.places
        else apart < Fraction(1, 10 ** min(reference.places, answer.places))
    )


def _by_base(reference: Answer, answer: Answer) -> bool | None:
    """An answer that names its base is the number that it then is; so is a reference, beside such an answer."""
    if answer.based is None:
        return None
    if reference.based is None and reference.value is None:
        return None
    if answer.based[1] < 2:
        return False
    try:
        return int(*answer.based) == (reference.value if reference.based is None else int(*reference.based))
    except ValueError:
        return False  # a digit that this base does not have


def _by_text(reference: Answer, answer: Answer) -> bool | None:
    """What a parser takes for a product of letters, and is none: words, and what has arrows between."""
    ours, theirs = reference.text, answer.text
    if ours.isascii() and ours.isalpha() and theirs.isascii() and theirs.isalpha() and len(ours) == len(theirs) > 3:
        return ours.casefold() == theirs.casefold()
    return same_arrows(theirs, ours)
