r"""Which part of a response is its mathematical answer, and how it is cleaned before it is compared.

The rules, in this order; docs/sandbox.md has them with examples:

1. **Several answers**: the last ``\boxed{...}`` (or ``\fbox``) counts, however many there are. Without one, what
   stands behind the last ``####``; else behind the last "answer is" or "answer:", to the end of its line; else the
   last formula between dollar signs (or ``\(...\)``, ``\[...\]``) of the last line; else a last line that is nothing
   but a number or formula; else its last number.
2. **Characters**: fullwidth forms of ASCII are read as ASCII, and the minus sign U+2212 as ``-``. No other character
   is changed: what looks like a digit or a letter but is none stays what it is.
3. **Units**: a unit behind a value (``\text{cm}``, ``cm``, ``degrees``, ``^\circ``, a currency sign) is taken off, see
   ``math_units``. Where both answers have one and they differ, the answer is wrong; where one lacks it, only the values
   count.
4. **Percent**: a percent sign is such a unit: 50% is 50, and not 0.5.
5. **Thousands**: commas between groups of three digits of a single number are dropped. A decimal comma is not read.
6. **Names**: ``x = 5`` is 5 where the reference has no equation; each side that is a value must be the reference.
7. **Hedges**: a relation (``\geq 42``), words between values (``42 \text{ or } 43``), a denial, dots or two numbers
   side by side are wrong where the reference has none of them. In prose, what stands behind "not" or "41 or" keeps
   that word.
8. **Bases**: ``52_8`` is 42.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from prismlab.verify.math_units import degrees_in_radians, without_unit

LONGEST = 2000
"""Characters of an answer; a longer one is wrong."""

FULLWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x2212: 0x2D}
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?", re.ASCII)
_MATH_SIGNS = re.compile(r"[-+*/^=(){}\[\]\\\w.,\s|!$%<>]+", re.ASCII)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SPACES = re.compile(r"(?<!\\)\\[!,;:> ]|\\q?quad\b|~")
_SIDES = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_RELATION = re.compile(
    r"[<>≤≥≠≈]|\\(?:[lg]eq?q?|[lg]eqslant|lt|gt|neq?|approx|sim|in|ni|to|mp|not|neg|lnot|l?or|l?and|vee|wedge|mapsto"
    r"|implies|iff|[Rr]ightarrow|[Ll]eftarrow|[Ll]eftrightarrow|longrightarrow)(?![A-Za-z])"
)
_ARROW = re.compile(r"\\(?:implies|iff|mapsto|(?:long)?(?:[Rr]ight|[Ll]eft|[Ll]eftright)arrow)(?![A-Za-z])")
_EITHER_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_AND_SO_ON = re.compile(r"\\(?:[lc]?dots|dots[cbmio])(?![A-Za-z])|\.\.\.|…")
_WORDS = re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{([^{}]*)\}")
_HEDGE = re.compile(
    r"\d|\b(?:or|and|not|to|any|either|is|than|but|except|wrong|incorrect|false|plus|minus|negative)\b", re.IGNORECASE
)
_PLAIN_HEDGE = re.compile(
    r"\b(?:not|n['’]t|either|wrong|incorrect|false|between|minus|plus|squared|cubed|factorial)\b", re.I
)
_APART = re.compile(r"\d\s+\d")
_GROUPS = re.compile(r"[-+]?\$?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?", re.ASCII)
_PLAIN = re.compile(r"[-+]?(?:\d{1,15}(?:\.\d{0,6})?|\.\d{1,6})", re.ASCII)
_LONG = re.compile(r"[-+]?\d{0,100}\.\d{7,100}", re.ASCII)
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s+(\d)\s+(\d)", re.ASCII)
_BARE_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_REPEATING = re.compile(r"([-+]?)(\d{0,15})\.(\d{0,15})\\(?:overline|bar)\s*(?:\{(\d{1,15})\}|(\d))", re.ASCII)
_MIXED = re.compile(r"([-+]?)(\d{1,9})\s+(\d{1,9})/(\d{1,9})", re.ASCII)
_EXPONENT = re.compile(r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})", re.ASCII)
_BASED = re.compile(r"\(?((?=[A-Z]*[0-9])[0-9A-Z]{1,200})\)?\s*_\s*(?:\{\s*(\d{1,2})\s*\}|(\d{1,2}))", re.ASCII)
_LISTED = re.compile(
    r"\s*,?\s*(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*"
)
_MEMBER = re.compile(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*(?=[(\[\\])")
_DENIED = re.compile(r"(?:\bnot|n['’]t|\d\s+or|\bbetween\s+\S+\s+and)(?:\s+(?:be|equal\s+to|exactly))*\s*[*`]*$", re.I)
_NEGATIVE = re.compile(r"(?:^|[^\d\s])\s*\b(?:negative|minus)\s*[*`]*$", re.IGNORECASE)
_RATIO = re.compile(r"([-+]?)(?:\\[dt]?frac\{([-+]?\d{1,15})\}\{(\d{1,15})\}|(\d{1,15})/(\d{1,15}))", re.ASCII)


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

    @property
    def places(self) -> int:
        """Decimals behind its point where it is a number with more than six of them; else 0."""
        return len(self.text.partition(".")[2]) if _LONG.fullmatch(self.text) else 0

    @property
    def based(self) -> tuple[str, int] | None:
        """Digits and base of a number that names its base (``1010_2``)."""
        found = _BASED.fullmatch(self.text)
        return (found[1], int(found[2] or found[3])) if found else None


def last_box(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, braces matched; None without a whole one. Linear in the text."""
    boxes = [found.end() for found in _BOX.finditer(text)]
    if not boxes:
        return None
    depth, place, end = 1, boxes[-1], min(len(text), boxes[-1] + 4 * LONGEST)
    while place < end:
        if text[place] == "\\":
            place += 2  # with what it escapes: a brace, or another backslash
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[boxes[-1] : place]
        place += 1
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
    """The answer in a line of prose. What is denied, or left open, comes with the words that say so."""
    line = _bare(line.translate(FULLWIDTH))
    formulas = list(_FORMULA.finditer(line))
    if formulas:
        return _with_its_words(line, formulas[-1].start(), next(part for part in formulas[-1].groups() if part).strip())
    if any(c.isdigit() or c == "\\" for c in line) and _MATH_SIGNS.fullmatch(line) and not _WORD.search(line):
        return line
    numbers = list(_NUMBER.finditer(line))
    if numbers:
        return _with_its_words(line, numbers[-1].start(), numbers[-1][0])
    return line if 0 < len(line) <= 40 else None


def _bare(text: str) -> str:
    """Without Markdown's signs and the stops around it."""
    text = text.strip().strip("*`").strip()
    short = text.rstrip(".,;")
    if short.endswith("\\"):  # a thin space's comma belongs to it
        short = text[: len(short) + 1]
    return short.strip().strip("*`").strip()


def _with_its_words(line: str, place: int, value: str) -> str:
    before = line[max(0, place - 60) : place]
    if denied := _DENIED.search(before):
        return f"{denied[0].strip()} {value}"
    return f"-{value}" if value[:1] not in "-+" and _NEGATIVE.search(before) else value


def clean(written: str) -> Answer:
    """An answer without dollar signs, thin spaces, unit and percent sign; see the rules at the top."""
    text = _bare(written.translate(FULLWIDTH))
    if _PLAIN.fullmatch(text):
        return Answer(text=text.removeprefix("+"), unit="")
    text = text.removeprefix("$$").removesuffix("$$").removeprefix("\\(").removesuffix("\\)").strip()
    if text.count("$") == 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = text.replace("\\!", "").replace("\\$", "$").replace("{,}", ",").replace("\\%", "%")
    text = " ".join(_SPACES.sub(" ", _SIDES.sub("", text)).split())
    text, unit = without_unit(degrees_in_radians(text))
    text = text.replace("$", "").strip()
    if _GROUPS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    return Answer(text=_as_parsed(text).removeprefix("+"), unit=unit)


def _as_parsed(text: str) -> str:
    """Notations that the parser does not read, written as it does."""
    if exponent := _EXPONENT.fullmatch(text):
        return rf"{exponent[1]}\times 10^{{{int(exponent[2])}}}"
    if mixed := _MIXED.fullmatch(text):
        sign, whole, above, below = mixed.groups()
        return text if not int(below) else _ratio(sign, int(whole) + Fraction(int(above), int(below)))
    if repeating := _REPEATING.fullmatch(text):
        sign, whole, fixed, *period = repeating.groups()
        again = period[0] or period[1]
        nines = 10 ** len(fixed) * (10 ** len(again) - 1)
        return _ratio(sign, Fraction(int(f"{whole}{fixed}{again}") - int(f"0{whole}{fixed}"), nines))
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).replace("\\varnothing", "\\emptyset")
    return _BARE_PI.sub(r"\\pi ", text).strip()


def _ratio(sign: str, value: Fraction) -> str:
    whole = value.denominator == 1
    return f"{sign}{value}" if whole else rf"{sign}\frac{{{value.numerator}}}{{{value.denominator}}}"


def listed(answer: Answer, reference: Answer) -> Answer:
    """An answer with commas for "and" and "or" where the reference is a list of values, and without ``x \\in`` where it
    is a set."""
    if "\\in" not in reference.text.replace("\\infty", "") and reference.text[0] in "([\\":
        answer = Answer(text=_MEMBER.sub("", answer.text), unit=answer.unit)
    if "," not in reference.text or reference.text[0] in "([":
        return answer
    return Answer(text=_LISTED.sub(", ", answer.text), unit=answer.unit)


def sides(answer: str, reference: str) -> list[str]:
    """The values that an equation says its answer is: its sides without a name (of ``x = 4 = 5`` the 4 and the 5). None
    where the answer is no equation, or the reference is one, or several values."""
    if "=" not in answer or "=" in reference or "," in reference:
        return []
    parts = [clean(part) for part in _parted(answer)]
    bare = [re.sub(r"\\[A-Za-z]+", "", part.text) for part in parts]
    named = (any(c.isalpha() for c in text) or not any(c.isdigit() for c in text) for text in bare)
    values = [part.text for part, skip in zip(parts, named, strict=True) if not skip and not part.unit]
    return values if len(parts) > 1 else []


def _parted(text: str) -> list[str]:
    """A text parted at the equals signs that stand in no brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "{([") - (c in "})]")
        if c == "=" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def hedges(answer: str, reference: str) -> bool:
    """Whether an answer says more than a value where the reference is one: a relation, words between values, two
    numbers side by side. A parser may pass over these."""
    if _RELATION.search(answer) and not _RELATION.search(reference):
        return True
    if _EITHER_SIGN.search(answer) and not _EITHER_SIGN.search(reference) and "," not in reference:
        return True
    if _AND_SO_ON.search(answer) and not _AND_SO_ON.search(reference):
        return True
    if _APART.search(answer) and not _APART.search(reference):
        return True
    if (found := _PLAIN_HEDGE.search(answer)) and found[0].casefold() not in reference.casefold():
        return True
    words = [found for found in _WORDS.finditer(answer) if found[0] != answer]
    return any(_HEDGE.search(found[1]) for found in words) and not _WORDS.search(reference)


def same_arrows(answer: str, reference: str) -> bool | None:
    """Whether two texts with arrows are the same, as texts: a parser takes an arrow for a factor. None without one."""
    if not (_ARROW.search(answer) or _ARROW.search(reference)):
        return None
    return "".join(answer.split()) == "".join(reference.split())


def foreign_digits(text: str) -> bool:
    """Whether a text holds digits of another script, or a fraction or power in one character: parsers may read them."""
    return any(ord(c) > 127 and c.isnumeric() for c in text)


def odd_characters(text: str) -> str:
    """The first character that is not ASCII, by its name, for a reason; empty if there is none."""
    found = next((c for c in text if ord(c) > 127), "")
    return f"U+{ord(found):04X} {unicodedata.name(found, '')}".strip() if found else ""
