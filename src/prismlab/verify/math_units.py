r"""Units and number words behind a value: taken off, or counted in.

One unit has many spellings (``cm^2``, ``\text{ cm}^2``, ``square centimeters``); :func:`unit_name` gives them one name,
so that two answers differ in their unit only where the units do.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SHORT = "mm|cm|dm|km|m|mg|kg|g|ms|s|h|hr|hrs|min|sec|in|ft|yd|mi|mph|ml|L|l|V|W|N|J|Hz|Pa|K|C|F"
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_TEXT_UNIT = re.compile(rf"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{{([^{{}}]*)\}}({_POWER})\s*$")
_WORD_UNIT = re.compile(
    rf"(?<=[\d}}])\s*(?:\^\s*\{{?\s*\\circ\s*\}}?|\\degree|°|\\?%|[€£¥]|(?:\s(?:sq|square|cubic))?(?:\s[A-Za-z]{{4,}}"
    rf"|\s?(?:{_SHORT}))(?:\s[A-Za-z]{{2,}})?(?:\s?(?:/|\bper\b)\s?(?:{_SHORT}|[A-Za-z]{{4,}}))?{_POWER})$"
)
_TEMPERATURE = re.compile(
    r"(?<=\d)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*(?:\\(?:text|mathrm)\s*\{\s*([CF])\s*\}|([CF]))$"
)
_ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)[\s}]*$")
_UNIT_POWER = re.compile(r"\^\s*-?\d")
_HEDGE = re.compile(r"\d|\b(?:or|and|not|to|any|either)\b", re.IGNORECASE)
_MONEY = re.compile(r"^([-+]?)\s*([$€£¥])\s*(?=[-+.\d])|(?<=\d)\s*\$$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|°)")
_NO_UNITS = frozenset({"or", "and", "pi", "to", "mod", "sqrt", "frac", "infty", "not", "is", "than", "wrong", "plus"})
_NO_UNITS |= {"incorrect", "false", "minus", "over", "squared", "cubed", "factorial"}
"""Words behind a value that say something else than what it is counted in."""
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SAME = {
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "in": "inch inche",
    "ft": "feet foot",
    "yd": "yard",
    "mi": "mile",
    "mi/h": "mph",
    "g": "gram",
    "kg": "kilogram",
    "mg": "milligram",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "°": "degree deg \\degree ^\\circ \\circ",
    "%": "percent percentage",
    "$": "dollar",
    "€": "euro",
    "/": "per",
}
_NAMES = {spelling: name for name, spellings in _SAME.items() for spelling in spellings.split()}
_PARTS = re.compile(r"\^\d|\^?\\[a-z]+|[^\W\d_]+|[/°%$€£¥]")


def unit_name(written: str) -> str:
    """One name for all spellings of a unit, in small letters without blanks."""
    parts = [_part(part) for part in _PARTS.findall(re.sub(r"[\s{}]+", " ", written.casefold()).replace("^ ", "^"))]
    for place, part in enumerate(parts[:-1]):
        if part in ("sq", "square", "cubic"):
            parts[place : place + 2] = ["", parts[place + 1] + ("^3" if part == "cubic" else "^2")]
    return "".join(part for part in parts if part != "old")  # years old are years


def _part(word: str) -> str:
    if word.isalpha() and len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word.removesuffix("s")
    return _NAMES.get(word, word)


def degrees_in_radians(text: str) -> str:
    """Angles in degrees within a trigonometric function, which a parser would take for as many radians."""
    return _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text) if _TRIGONOMETRIC.search(text) else text


def without_unit(text: str) -> tuple[str, str]:
    """A value and the name of its unit, which is empty where it has none; a million is part of the value."""
    money = _MONEY.search(text)
    if money is not None:
        text = f"{money[1] or ''}{text[money.end() :]}" if money.start() == 0 else text[: money.start()]
    if found := _TEMPERATURE.search(text):
        return text[: found.start()], f"°{(found[1] or found[2]).casefold()}"
    head, unit = _behind(_ORDINAL.sub("", text))
    return head, unit or unit_name((money[2] or "$") if money is not None else "")


def _behind(text: str) -> tuple[str, str]:
    for pattern in (_TEXT_UNIT, _WORD_UNIT):
        found = pattern.search(text)
        if found is None or not text[: found.start()].strip():
            continue
        head, unit = text[: found.start()].strip(), found[0]
        if pattern is _TEXT_UNIT:
            unit = found[1] + found[2]
            if _HEDGE.search(_UNIT_POWER.sub("", found[1])) or (not head[-1].isdigit() and head[-1] not in ")}!"):
                return text, ""
        words = re.findall(r"[^\W\d_]+", found[0].casefold())
        if _NO_UNITS.intersection(words):
            return text, ""
        words = re.findall(r"[^\W\d_]+", unit.casefold())
        if words and words[0] in _SCALES and (number := _number(head)) is not None:
            return str(number * 10 ** _SCALES[words[0]]), unit_name(" ".join(words[1:]))
        return head, unit_name(unit)
    return text, ""


def _number(text: str) -> Fraction | None:
    plain = text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text, re.ASCII) else text
    return Fraction(plain) if re.fullmatch(r"[-+]?\d{1,15}(?:\.\d{1,6})?", plain, re.ASCII) else None
