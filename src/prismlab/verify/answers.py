"""Verifiers: is the answer in a response the right one? Kinds: number, math, choice, exact, contains, program,
tests, instructions.

A verifier says *right*, *wrong*, *no answer* (nothing in the response could be read as one; scored as wrong) or *no
verdict* (the item itself cannot be judged; scored as missing, never as zero). No text of a model makes it raise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, Protocol, TypeVar

from prismlab.errors import DataError
from prismlab.verify.format import answer_part, check_format
from prismlab.verify.math_text import odd_characters
from prismlab.verify.naming import chosen_letters, plain, whole_words
from prismlab.verify.verdict import RIGHT, SHOWN, Verdict, no_answer, no_verdict, quoted, wrong

T = TypeVar("T")
MAX_DIGITS = 1000
"""Numbers of more characters are not read: no item's answer is one, and exact arithmetic has its price."""


class Judgeable(Protocol):
    """The part of an item that a verifier reads (``prismlab.data.items.Item``)."""

    @property
    def answer(self) -> str: ...
    @property
    def verifier(self) -> str: ...
    @property
    def choices(self) -> Sequence[str] | None: ...
    @property
    def meta(self) -> Mapping[str, Any]: ...


# A sign belongs to a number unless it stands between two operands; a point needs digits behind it, so that the full
# stop of a sentence is none. Commas count only between groups of three digits.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]])[-+\u2212])?"
    r"\$?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z])|/[0-9]+(?![0-9/]))?"
)


def last_number(text: str) -> str | None:
    """The last number of ``text`` as it is written, after the last ``####`` if there is one; None without a number."""
    found = _NUMBER.findall(text.rpartition("####")[2])
    return found[-1] if found else None


def read_number(written: str) -> Fraction | None:
    """The exact value of a number as :func:`last_number` gives it; None if it is too long or divides by zero."""
    if len(written) > MAX_DIGITS:
        return None
    plain = written.replace(",", "").replace("$", "").replace("\u2212", "-")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


_FORMULA = re.compile(r"\\[A-Za-z!,;:{]|\^")
"""What only a formula holds: a command or a thin space of LaTeX, a power."""


def _number(item: Judgeable, answer: str) -> Verdict:
    if _FORMULA.search(item.answer.rpartition("####")[2]):
        # Its last number is not its value: that of \frac{1}{2} is 2, and any answer that ends in 2 would be right.
        return no_verdict(f"the item's answer {quoted(item.answer)} is a formula, no number")
    written_gold = last_number(item.answer)
    gold = None if written_gold is None else read_number(written_gold)
    if gold is None:
        return no_verdict(f"the item's answer {quoted(item.answer)} holds no number")
    written = last_number(answer)
    if written is None:
        return no_answer("no number in the answer")
    value = read_number(written)
    if value is None:
        return wrong(f"{quoted(written)} cannot be read as a number")
    return RIGHT if value == gold else wrong(f"{quoted(written)} is not {quoted(written_gold or '')}")


def _choice(item: Judgeable, answer: str) -> Verdict:
    choices = item.choices or ()
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    gold = item.answer.strip().upper()
    if gold not in letters:
        same = [letter for letter, choice in zip(letters, choices, strict=True) if plain(choice) == plain(gold)]
        if len(same) != 1:
            return no_verdict(f"the item's answer {quoted(item.answer)} is none of its {len(choices)} choices")
        gold = same[0]
    named = chosen_letters(answer, choices)
    if not named:
        odd = odd_characters(answer) if len(answer) <= SHOWN else ""
        return no_answer("no choice is named" + (f" (holds {odd})" if odd else ""))
    if len(named) > 1:
        return wrong(f"ambiguous: {', '.join(sorted(named))} are named")
    return RIGHT if named == {gold} else wrong(f"{min(named)} is not {gold}")


def _exact(item: Judgeable, answer: str) -> Verdict:
    if not answer:
        return no_answer("the answer is empty")
    same = answer.split() == item.answer.split()
    return RIGHT if same else wrong(f"{quoted(answer)} is not {quoted(item.answer)}")


def _contains(item: Judgeable, answer: str) -> Verdict:
    """Every part of the item's answer (parted by ``; ``) stands in the answer as whole words, whatever the case."""
    if not answer:
        return no_answer("the answer is empty")
    parts = [part for part in item.answer.split("; ") if part.strip()]
    if not parts:
        return no_verdict("the item has no answer")
    found = plain(answer)
    missing = [part for part in parts if not whole_words(plain(part)).search(found)]
    return wrong(f"{quoted(missing[0])} is not in it") if missing else RIGHT


def _program(item: Judgeable, answer: str) -> Verdict:
    # Late, so that a task of numbers does not load the grammar.
    from prismlab.micro.program import ProgramError, evaluate, parse

    points = item.meta.get("points")
    if not points:
        return no_verdict("the item has no points to run a program on")
    try:
        program = parse(answer)
    except ProgramError as error:
        return no_answer(f"{quoted(answer)} is not a program: {error}")
    for x, y in points:
        try:
            value = evaluate(program, int(x))
        except ProgramError as error:
            return wrong(f"at x={x}: {error}")
        if value != int(y):
            return wrong(f"at x={x} it gives {value}, not {y}")
    return RIGHT


def _math(item: Judgeable, answer: str) -> Verdict:
    from prismlab.verify.maths import judge_math

    return judge_math(item.answer, answer)


def _tests(item: Judgeable, answer: str) -> Verdict:
    from prismlab.verify.code import judge_tests

    return judge_tests(item.meta, answer)


def _instructions(item: Judgeable, answer: str) -> Verdict:
    from prismlab.verify.instructions import followed, read_instructions

    asked = read_instructions(item.answer)
    if asked is None:
        return no_verdict("the item has no instructions that can be checked by rule")
    if not answer.strip():
        return no_answer("the answer is empty")
    met = followed(asked, answer)
    not_met = [kind for (kind, _), one in zip(asked, met, strict=True) if not one]
    return wrong(f"not followed: {', '.join(not_met)}") if not_met else RIGHT


_VERIFIERS: dict[str, Callable[[Judgeable, str], Verdict]] = {
    "number": _number,
    "math": _math,
    "choice": _choice,
    "exact": _exact,
    "contains": _contains,
    "program": _program,
    "tests": _tests,
    "instructions": _instructions,
}


WAITS = {"math", "tests"}
"""Verifiers that wait for other processes: several answers at once take hardly longer than one."""
THREADS = 8


def in_threads(judge: Callable[..., T], waiting: Sequence[tuple[Any, ...]], slow: bool) -> list[T]:
    """``judge`` of every tuple of arguments, in their order; by several threads if that is ``slow``."""
    if not slow or len(waiting) < 2:
        return [judge(*arguments) for arguments in waiting]
    with ThreadPoolExecutor(min(THREADS, len(waiting))) as threads:
        return list(threads.map(lambda arguments: judge(*arguments), waiting))


def verifier_of(name: str) -> Callable[[Judgeable, str], Verdict]:
    """The verifier of this name, a function of item and answer: to refuse a task before anything is sampled.

    Raises:
        SandboxError: ``tests`` runs programs, and this machine has no sandbox; the message says what helps.
        MissingExtra: ``math`` without math-verify.
        DataError: there is no such verifier.
    """
    if name not in _VERIFIERS:
        raise DataError(f"verifier {name!r} does not exist; take one of {', '.join(_VERIFIERS)}")
    if name == "tests":
        from prismlab.verify.sandbox.probe import shared_sandbox

        shared_sandbox()
    if name == "math":
        from prismlab.verify.math_pool import need_math_verify

        need_math_verify()
    return _VERIFIERS[name]


def verify(item: Judgeable, response: str, strict_format: bool) -> Verdict:
    """Judge ``response``.

    Args:
        item: its ``verifier`` says how: ``number`` compares the last number exactly, as rationals (an item whose answer
            is a formula has no verdict); ``math`` compares numbers and formulas, see ``maths``; ``choice`` the one
            choice that is named; ``exact`` the text but for white space; ``program`` runs the answer on
            ``meta["points"]``, a list of (x, y); ``tests`` runs the program in the answer on ``meta["tests"]``, see
            ``code``; ``instructions`` checks those of the item by rule, see ``instructions``.
        response: text of a model, whatever it holds.
        strict_format: only an answer inside the think format counts. Otherwise the answer is what follows the last
            ``</think>``, or the whole response where there is none.

    Raises:
        DataError: the item names a verifier that there is not.
        SandboxError, MissingExtra: this machine lacks what the verifier needs.
    """
    judge = _VERIFIERS.get(item.verifier) or verifier_of(item.verifier)
    if strict_format:
        form = check_format(response)
        if form.answer is None:
            return no_answer(form.reason)
        return judge(item, form.answer)
    return judge(item, answer_part(response))
