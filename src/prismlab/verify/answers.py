"""Verifiers: is the answer in a response the right one? Four kinds: number, choice, exact, program.

A verifier says *right*, *wrong*, *no answer* (nothing in the response could be read as one; scored as wrong) or *no
verdict* (the item itself cannot be judged; scored as missing, never as zero). No text of a model makes it raise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

from prismlab.errors import DataError, SandboxError
from prismlab.verify.format import answer_part, check_format

MAX_DIGITS = 1000
"""Numbers of more characters are not read: no item's answer is one, and exact arithmetic has its price."""

SHOWN = 60
"""Characters of an answer that a reason quotes."""


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


def _wrong(reason: str) -> Verdict:
    return Verdict(score=0.0, verdict="wrong", reason=reason)


def _no_answer(reason: str) -> Verdict:
    return Verdict(score=0.0, verdict="no_answer", reason=reason)


def _no_verdict(reason: str) -> Verdict:
    return Verdict(score=None, verdict="no_verdict", reason=reason)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


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
        return _no_verdict(f"the item's answer {_shown(item.answer)} is a formula, no number")
    written_gold = last_number(item.answer)
    gold = None if written_gold is None else read_number(written_gold)
    if gold is None:
        return _no_verdict(f"the item's answer {_shown(item.answer)} holds no number")
    written = last_number(answer)
    if written is None:
        return _no_answer("no number in the answer")
    value = read_number(written)
    if value is None:
        return _wrong(f"{_shown(written)} cannot be read as a number")
    return RIGHT if value == gold else _wrong(f"{_shown(written)} is not {_shown(written_gold or '')}")


def _plain(text: str) -> str:
    """White space as single blanks, no full stop at the end, no case."""
    return " ".join(text.split()).rstrip(".").casefold()


_ONE_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])\)?[.:)]?\s+(.+)", re.DOTALL)
_ANSWER_LETTER = re.compile(r"(?i:\banswer(?:\s+is)?)\s*:?\s*\(?([A-Z])(?![A-Za-z0-9])")
_ANY_LETTER = re.compile(r"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’])")


def _choices_in(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the choices whose text stands in ``text`` as whole words, but for those within a longer one."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for place, choice in enumerate(choices):
        words = re.escape(_plain(choice))
        if words:
            found = re.finditer(rf"(?<!\w){words}(?!\w)", _plain(text))
            spans[chr(ord("A") + place)] = [match.span() for match in found]
    everything = [span for some in spans.values() for span in some]

    def alone(span: tuple[int, int]) -> bool:
        return not any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in everything)

    return {letter for letter, some in spans.items() if any(map(alone, some))}


def chosen_letters(answer: str, choices: Sequence[str]) -> set[str]:
    """Which choices ``answer`` names, by the first of these readings that finds any.

    The answer is one letter (``b``, ``B.``, ``(B)``); a letter and that choice's text; exactly a choice's text; it says
    "answer" and a letter; it holds capital letters that stand alone; it holds the texts of choices.
    """
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    text = answer.strip()
    if match := _ONE_LETTER.fullmatch(text):
        return {match[1].upper()}
    if match := _LETTER_AND_TEXT.fullmatch(text):
        named = dict(zip(letters, choices, strict=True)).get(match[1].upper())
        if named is not None and _plain(match[2]) == _plain(named):
            return {match[1].upper()}
    exactly = {letter for letter, choice in zip(letters, choices, strict=True) if _plain(choice) == _plain(text)}
    if len(exactly) == 1:
        return exactly
    for pattern in (_ANSWER_LETTER, _ANY_LETTER):
        if found := {letter for letter in pattern.findall(text) if letter in letters}:
            return found
    return _choices_in(text, choices)


def _choice(item: Judgeable, answer: str) -> Verdict:
    choices = item.choices or ()
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    gold = item.answer.strip().upper()
    if gold not in letters:
        same = [letter for letter, choice in zip(letters, choices, strict=True) if _plain(choice) == _plain(gold)]
        if len(same) != 1:
            return _no_verdict(f"the item's answer {_shown(item.answer)} is none of its {len(choices)} choices")
        gold = same[0]
    named = chosen_letters(answer, choices)
    if not named:
        return _no_answer("no choice is named")
    if len(named) > 1:
        return _wrong(f"ambiguous: {', '.join(sorted(named))} are named")
    return RIGHT if named == {gold} else _wrong(f"{min(named)} is not {gold}")


def _exact(item: Judgeable, answer: str) -> Verdict:
    if not answer:
        return _no_answer("the answer is empty")
    same = answer.split() == item.answer.split()
    return RIGHT if same else _wrong(f"{_shown(answer)} is not {_shown(item.answer)}")


def _program(item: Judgeable, answer: str) -> Verdict:
    # Late, so that a task of numbers does not load the grammar.
    from prismlab.micro.program import ProgramError, evaluate, parse

    points = item.meta.get("points")
    if not points:
        return _no_verdict("the item has no points to run a program on")
    try:
        program = parse(answer)
    except ProgramError as error:
        return _no_answer(f"{_shown(answer)} is not a program: {error}")
    for x, y in points:
        try:
            value = evaluate(program, int(x))
        except ProgramError as error:
            return _wrong(f"at x={x}: {error}")
        if value != int(y):
            return _wrong(f"at x={x} it gives {value}, not {y}")
    return RIGHT


_VERIFIERS: dict[str, Callable[[Judgeable, str], Verdict]] = {
    "number": _number,
    "choice": _choice,
    "exact": _exact,
    "program": _program,
}


def verifier_of(name: str) -> Callable[[Judgeable, str], Verdict]:
    """The verifier of this name, a function of item and answer: to refuse a task before anything is sampled.

    Raises:
        SandboxError: ``tests``, which runs programs.
        DataError: there is no such verifier.
    """
    if name == "tests":
        raise SandboxError(
            "verifier 'tests' runs programs and needs a sandbox, which this version does not have: "
            f"take one of {', '.join(_VERIFIERS)}, or leave the task out"
        )
    if name not in _VERIFIERS:
        raise DataError(f"verifier {name!r} does not exist; take one of {', '.join(_VERIFIERS)}")
    return _VERIFIERS[name]


def verify(item: Judgeable, response: str, strict_format: bool) -> Verdict:
    """Judge ``response``.

    Args:
        item: its ``verifier`` says how: ``number`` compares the last number exactly, as rationals (an item whose answer
            is a formula has no verdict); ``choice`` the one choice that is named; ``exact`` the text but for white
            space; ``program`` runs the answer on ``meta["points"]``, a list of (x, y).
        response: text of a model, whatever it holds.
        strict_format: only an answer inside the think format counts. Otherwise the answer is what follows the last
            ``</think>``, or the whole response where there is none.

    Raises:
        DataError, SandboxError: the item names a verifier that there is not.
    """
    judge = verifier_of(item.verifier)
    if strict_format:
        form = check_format(response)
        if form.answer is None:
            return _no_answer(form.reason)
        return judge(item, form.answer)
    return judge(item, answer_part(response))
