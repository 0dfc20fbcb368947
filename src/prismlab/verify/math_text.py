r"""Which part of a response is its mathematical answer, and how it is cleaned before it is compared.

The rules, in this order; docs/sandbox.md has them with examples:

1. **Several answers**: the last ``\boxed{...}`` (or ``\fbox``) counts, however many there are. Without one, what
   stands behind the last ``####``; else behind the last "answer is" or "answer:", to the end of its line; else the
   last formula between dollar signs (or ``\(...\)``, ``\[...\]``) of the last line; else a last line that is nothing
   but a number or formula; else its last number.
2. **Characters**: fullwidth forms of ASCII are read as ASCII, and the minus sign U+2212 as ``-``. No other character
   is changed: what looks like a digit or a letter but is none stays what it is.
3. **Units**: a unit behind a value (``\text{cm}``, ``cm``, ``degrees``, ``^\circ``, a currency sign before it) is
   taken off. Where both answers have one and they differ, the answer is wrong; where one lacks it, only the values
   count.
4. **Percent**: a percent sign is such a unit: 50% is 50, and not 0.5.
5. **Thousands**: commas between groups of three digits of a single number are dropped. A decimal comma is not read.
6. **Names**: ``x = 5`` is 5 where the reference has no equation.
7. **Hedges**: a relation (``\geq 42``), words between values (``42 \text{ or } 43``) or two numbers side by side are
   wrong where the reference has none of them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 2000
"""Characters of an answer; a longer one is wrong."""

_FULLWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x2212: 0x2D}
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?", re.ASCII)
_MATH_SIGNS = re.compile(r"[-+*/^=(){}\[\]\\\w.,\s|!$%<>]+", re.ASCII)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SPACES = re.compile(r"\\[!,;:> ]|\\q?quad\b|~")
_TEXT_UNIT = re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{([^{}]*)\}\s*(?:\^\{?\d\}?)?\s*$")
_SHORT = "mm|cm|dm|km|m|mg|kg|g|ms|s|h|hr|hrs|min|sec|in|ft|yd|mi|mph|ml|L|l|V|W|N|J|Hz|Pa|K|C|F"
_WORD_UNIT = re.compile(
    rf"(?<=[\d}}])\s*(?:\^\s*\{{?\s*\\circ\s*\}}?|\\degree|\\?%|(?:\s(?:sq|square|cubic))?(?:\s[A-Za-z]{{4,}}|\s?(?:{_SHORT}))"
    rf"(?:\s[A-Za-z]{{2,}})?(?:\^\{{?[23]\}}?)?)$"
)
_RELATION = re.compile(r"[<>]|\\(?:[lg]eq?q?|[lg]eqslant|lt|gt|neq?|approx|sim|in|ni|to|pm|mp)(?![A-Za-z])")
_WORDS = re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{([^{}]*)\}")
_HEDGE = re.compile(r"\d|\b(?:or|and|not|to|any|either)\b", re.IGNORECASE)
_APART = re.compile(r"\d\s+\d")
_GROUPS = re.compile(r"[-+]?\$?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?", re.ASCII)
_PLAIN = re.compile(r"[-+]?(?:\d{1,15}(?:\.\d{0,6})?|\.\d{1,6})", re.ASCII)
_RATIO = re.compile(r"([-+]?)(?:\\[dt]?frac\{([-+]?\d{1,15})\}\{(\d{1,15})\}|(\d{1,15})/(\d{1,15}))", re.ASCII)
_WORDS_THAT_ARE_NO_UNITS = {"or", "and", "pi", "to", "mod", "sqrt", "frac", "infty", "not"}


@dataclass(frozen=True)
class Answer:
    """A cleaned answer."""

    text: str
    """LaTeX or a number."""
    unit: str
    """What stood behind it, in small letters without blanks; empty if nothing did."""

    @property
    def value(self) -> Fraction | None:
        """Its value where it is a number that nothing can be said of but its value: a short decimal, or a ratio of
        integers."""
        if _PLAIN.fullmatch(self.text):
            return Fraction(self.text)
        ratio = _RATIO.fullmatch(self.text)
        if ratio is None:
            return None
        sign, above, below, above_too, below_too = ratio.groups()
        bottom = int(below or below_too)
        return None if not bottom else Fraction(int(above or above_too), bottom) * (-1 if sign == "-" else 1)


def last_box(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, braces matched; None without a whole one. Linear in the text."""
    for found in reversed(list(_BOX.finditer(text))):
        depth = 1
        for place in range(found.end(), min(len(text), found.end() + 4 * LONGEST)):
            if text[place] == "\\":
                continue
            if text[place - 1] == "\\" and text[place] in "{}":
                continue
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[found.end() : place]
        return None
    return None


def answer_text(response: str) -> str | None:
    """The answer that a response gives, as it is written; None where there is none."""
    boxed = last_box(response)
    if boxed is not None:
        return boxed.strip() or None
    if _BOX.search(response):
        return None
    if "####" in response:
        return response.rpartition("####")[2].strip() or None
    phrases = list(_PHRASE.finditer(response))
    if phrases:
        behind = response[phrases[-1].end() :].strip().split("\n", 1)[0]
        return _of_line(behind[: 4 * LONGEST])
    lines = response.strip().rsplit("\n", 1)
    return _of_line(lines[-1][-4 * LONGEST :])


def _of_line(line: str) -> str | None:
    line = line.strip().rstrip(".").strip()
    formulas = _FORMULA.findall(line)
    if formulas:
        return next(part for part in formulas[-1] if part).strip()
    if any(c.isdigit() or c == "\\" for c in line) and _MATH_SIGNS.fullmatch(line) and not _WORD.search(line):
        return line
    numbers = _NUMBER.findall(line)
    if numbers:
        return numbers[-1]
    return line if 0 < len(line) <= 40 else None


def clean(written: str) -> Answer:
    """An answer without dollar signs, thin spaces, unit and percent sign; see the rules at the top."""
    text = written.translate(_FULLWIDTH).strip().rstrip(".").strip()
    text = text.removeprefix("$$").removesuffix("$$").removeprefix("\\(").removesuffix("\\)").strip()
    if text.count("$") == 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = _SPACES.sub(
        " ",
        text.replace("\\!", "").replace("\\$", "$").replace("{,}", ",").replace("\\left", "").replace("\\right", ""),
    )
    text = " ".join(text.replace("\\%", "%").split())
    text, unit = _without_unit(text)
    text = text.replace("$", "").strip()
    if _GROUPS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    return Answer(text=text.removeprefix("+"), unit=unit)


def _without_unit(text: str) -> tuple[str, str]:
    for pattern in (_TEXT_UNIT, _WORD_UNIT):
        found = pattern.search(text)
        if found is None or not text[: found.start()].strip():
            continue
        head, unit = text[: found.start()].strip(), "".join((found[1] if pattern is _TEXT_UNIT else found[0]).split())
        if any(
            word in _WORDS_THAT_ARE_NO_UNITS for word in found[0].casefold().replace("{", " ").replace("}", " ").split()
        ):
            return text, ""
        if pattern is _TEXT_UNIT and _HEDGE.search(found[1]):
            return text, ""
        if pattern is _TEXT_UNIT and not head[-1].isdigit() and head[-1] not in ")}!":
            return text, ""
        return head, unit.strip("\\").casefold()
    return text, ""


def hedges(answer: str, reference: str) -> bool:
    """Whether an answer says more than a value where the reference is one: a relation, words between values, two
    numbers side by side. A parser may pass over these."""
    if _RELATION.search(answer) and not _RELATION.search(reference):
        return True
    if _APART.search(answer) and not _APART.search(reference):
        return True
    words = [found for found in _WORDS.finditer(answer) if found[0] != answer]
    return any(_HEDGE.search(found[1]) for found in words) and not _WORDS.search(reference)


def foreign_digits(text: str) -> bool:
    """Whether a text holds digits of another script, or a fraction or power in one character: parsers may read them."""
    return any(ord(c) > 127 and c.isnumeric() for c in text)


def odd_characters(text: str) -> str:
    """The first character that is not ASCII, by its name, for a reason; empty if there is none."""
    found = next((c for c in text if ord(c) > 127), "")
    return f"U+{ord(found):04X} {unicodedata.name(found, '')}".strip() if found else ""
