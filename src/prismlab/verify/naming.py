"""Which of an item's choices a text names, by letter, by text, or by both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prismlab.verify.math_text import FULLWIDTH, last_box

_ONE_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])\)?[.:)]?\s+(.+)", re.DOTALL)
# "A method" and "I think" begin with words, "A is right" and "A because" with a letter that is chosen.
_NO_WORD = r"(?!(?<=[AI])\s+(?!(?:is|was|as|and|or|but|because|since|for|would|should|seems|fits)\b)[a-z])"
_ANSWER_LETTER = re.compile(rf"(?i:\banswer(?:\s+is)?)\s*:?\s*\(?([A-Z])(?![A-Za-z0-9]){_NO_WORD}")
# A small letter is one only where nothing follows it that could make a word or an article of it.
_SMALL_LETTER = re.compile(
    r"(?:\b(?:answer(?:\s+is)?|option|choice)[\"']?\s*[:=]?\s*[\"'*]*\(?|\\boxed\{\(?)([a-z])(?=[)\"'*}]|\s*[.,;]?\s*(?:$|\n))",
    re.IGNORECASE,
)
_ANY_LETTER = re.compile(rf"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’]){_NO_WORD}")
_JOINED = re.compile(
    r"[)\"'*]*\s*(?:or|and|&|/|,(?=\s*\(?[A-Z]\)?\s*(?:[.,;]|$)))\s*[(\"'*]*([A-Z])(?![A-Za-z0-9'’])" + _NO_WORD
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|except(?:\s+for)?|(?:anything|everything|any|all)\s+but)|n['’]t)"
    r"(?:\s+(?:be|the|an?|option|choice|answer|letter|really))*\s*[(\"'*]*$",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """White space as single blanks, no full stop at the end, no case."""
    return " ".join(text.split()).rstrip(".").casefold()


def whole_words(words: str) -> re.Pattern[str]:
    """A pattern that finds ``words`` as whole ones: ``4`` neither in ``4.2`` nor in ``-4`` or ``1/4``."""
    before = r"(?<!\w)" + (r"(?<![\w.][-\u2212])(?<!\d[.,/:^])(?<!\.)(?<![-\u2212+])" if words[:1].isdigit() else "")
    behind = r"(?!\w)" + (r"(?![.,/:^]\d)" if words[-1:].isdigit() else "")
    return re.compile(f"{before}{re.escape(words)}{behind}")


def _denied(text: str, place: int) -> bool:
    return _DENIED.search(text[max(0, place - 60) : place]) is not None


def _choices_in(text: str, choices: Sequence[str]) -> set[str]:
    """Letters of the choices whose text stands in ``text`` as whole words, but for those within a longer one and those
    that it denies."""
    said = plain(text)
    spans: dict[str, list[tuple[int, int]]] = {}
    for place, choice in enumerate(choices):
        if words := plain(choice):
            spans[chr(ord("A") + place)] = [match.span() for match in whole_words(words).finditer(said)]
    everything = [span for some in spans.values() for span in some]

    def counts(span: tuple[int, int]) -> bool:
        alone = not any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in everything)
        return alone and not _denied(said, span[0])

    return {letter for letter, some in spans.items() if any(map(counts, some))}


def _letters_in(found: Iterable[re.Match[str]], text: str, named: dict[str, str]) -> set[str]:
    """Letters that are found and not denied, with those that "or" adds, and the choice whose text stands behind one."""
    letters: set[str] = set()
    longest, joined = max(map(len, named.values()), default=0) + 20, 0
    for match in found:
        if match[1].upper() not in named or _denied(text, match.start(1)):
            continue
        letters.add(match[1].upper())
        if match.end(1) <= joined:  # "A, B, C" is followed to its end once, not from each of its letters
            continue
        place = match.end(1)
        while (more := _JOINED.match(text, place)) and more[1] in named:
            letters.add(more[1])
            place = more.end(1)
        joined = place
        line, _, rest = text[place : place + longest].partition("\n")
        behind = plain(line.lstrip(" .:)-*\"'")) if rest or place + longest >= len(text) else ""
        letters |= {letter for letter, choice in named.items() if behind and plain(choice) == behind}
    return letters


def chosen_letters(answer: str, choices: Sequence[str]) -> set[str]:
    """Which choices ``answer`` names, by the first of these readings that finds any.

    What its last ``\\boxed{}`` names; the answer is one letter (``b``, ``B.``, ``(B)``); a letter and a choice's text,
    which are two choices where they are not of one; exactly a choice's text; it says "answer" and a letter (a small one
    also behind "option" or "choice"); it holds capital letters that stand alone, but for A and I where they begin a
    phrase ("A method"); it holds the texts of choices. "B or C" names both; a letter or text behind "not" is not named.
    """
    named = {chr(ord("A") + place): choice for place, choice in enumerate(choices)}
    text = answer.translate(FULLWIDTH).strip()
    boxed = last_box(text)
    if boxed is not None and (found := chosen_letters(boxed, choices)):
        return found
    if match := _ONE_LETTER.fullmatch(text):
        return {match[1].upper()}
    if (match := _LETTER_AND_TEXT.fullmatch(text)) and match[1].upper() in named:
        same = {letter for letter, choice in named.items() if plain(choice) == plain(match[2])}
        if match[1].upper() in same:
            return {match[1].upper()}
        if same:
            return {match[1].upper(), *same}
    exactly = {letter for letter, choice in named.items() if plain(choice) == plain(text)}
    if len(exactly) == 1:
        return exactly
    for pattern in (_ANSWER_LETTER, _SMALL_LETTER, _ANY_LETTER):
        if found := _letters_in(pattern.finditer(text), text, named):
            return found
    return _choices_in(text, choices)
