"""Text as it is compared: what case, width, accents, look-alikes and invisible characters hide is taken away.

Every character is folded by itself, so that a place in the folded text is a place in the text:

- compatibility forms become what they stand for (full width, ligatures, superscripts, mathematical letters; NFKD of the
  Unicode standard, annex 15), capitals become small letters, combining marks go;
- letters of other scripts that look like a Latin one as capitals become it (Cyrillic ``О``, Greek ``Ρ``), digits of any
  script become 0 to 9;
- soft hyphens, zero-width characters and marks of direction are passed over, inside a word too;
- everything else that is neither letter nor digit parts words: space, line ends, punctuation, symbols.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODE_BITS = 21
CODE_MASK = (1 << CODE_BITS) - 1
UNKNOWN, SEPARATOR, LETTER, DIGIT, SINGLE, IGNORED, BREAK, SEVERAL = range(8)
"""What a character is, above the bits of its folded code. ``SINGLE`` is a word of its own, ``BREAK`` ends a document,
``SEVERAL`` becomes more than one character."""
BREAK_CHAR = "\x1f"
"""Stands between documents that are read at once; in a document it is a space."""
_LOOK_ALIKES = dict(
    zip(
        # Cyrillic, Greek, and Latin letters that no decomposition takes apart.
        "авекмнорстухіјѕһԁԛԝ" + "αβεζηικμνορτυχϲ" + "ıłøđħŧɡ",
        "abekmhopctyxijshdqw" + "abezhikmnoptyxc" + "ilodhtg",
        strict=True,
    )
) | {"æ": "ae", "œ": "oe", "þ": "th", "ð": "d"}
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
"""Letters or symbols by their category, blank to the eye."""
_NO_SPACES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x312F), (0x3190, 0x9FFF)),
    *((0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
"""Blocks of scripts that put no space between words (Thai, Lao, Burmese, Khmer, Chinese, Japanese)."""


_WORD = re.compile("[a-z]+|[0-9]+")
_NO_MARK = re.compile(r"[^a-z0-9\s]")


def _class(char: str) -> tuple[int, str]:
    """Class of a decomposed character, and the character it counts as."""
    category = unicodedata.category(char)
    if char in _FILLERS or category in ("Mn", "Me", "Mc", "Cf"):
        return IGNORED, char
    if category == "Nd":
        return DIGIT, str(unicodedata.decimal(char))
    if category[0] in "LN":
        return (SINGLE if any(low <= ord(char) <= high for low, high in _NO_SPACES) else LETTER), char
    return SEPARATOR, " "


def fold(char: str) -> list[tuple[int, str]]:
    """What one character becomes: classes and folded characters, those passed over left out."""
    small = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    alike = "".join(_LOOK_ALIKES.get(one, one) for one in small)
    return [found for found in map(_class, alike) if found[0] != IGNORED]


class Table:
    """Folded code and class of every character, found when it is first met."""

    def __init__(self, joined: str | None) -> None:
        self.values = np.zeros(0x110000, np.uint32)
        """Class and folded code of each character; of ``SEVERAL`` the place in ``expansions``."""
        self.expansions = np.zeros(1, np.uint32)
        """Of each character that becomes several: how many, then their values."""
        self._joined = joined
        self._lock = Lock()
        self.learn(np.arange(128, dtype=np.uint32))

    def _value(self, found: tuple[int, str], char: str) -> int:
        kind, small = found
        if kind == SEPARATOR and self._joined is not None and not char.isspace():
            kind = IGNORED if self._joined == "" or char in self._joined else kind
        return kind << CODE_BITS | ord(small)

    def _values(self, char: str) -> list[int]:
        """What a character becomes; marks in a row are one, since they part words no further."""
        if char == BREAK_CHAR:
            return [BREAK << CODE_BITS]
        found = [value for value in (self._value(one, char) for one in fold(char)) if value >> CODE_BITS != IGNORED]
        return [
            value for at, value in enumerate(found) if value >> CODE_BITS != SEPARATOR or found[at - 1 : at] != [value]
        ]

    def learn(self, codes: NDArray[np.integer[Any]]) -> None:
        """Find out what characters become."""
        with self._lock:
            grown = self.expansions.tolist()
            learned: dict[int, int] = {}
            for code in np.unique(codes).tolist():
                found = self._values(chr(code))
                learned[code] = found[0] if len(found) == 1 else IGNORED << CODE_BITS
                if len(found) > 1:
                    learned[code] = SEVERAL << CODE_BITS | len(grown)
                    grown += [len(found), *found]
            # Before the values, which point into it and are read without the lock.
            self.expansions = np.array(grown, np.uint32)
            self.values[list(learned)] = list(learned.values())


@cache
def table(joined: str | None = None) -> Table:
    """The table of characters.

    Args:
        joined: marks that are passed over instead of parting words, space never: ``""`` for all, None for none.
    """
    return Table(joined)


def codes_of(text: str) -> NDArray[Any]:
    """The characters of a text as numbers, uint8 where all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def folded(text: str, joined: str | None = None) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Values (class and folded code) of what a text's characters become [m], and the place of each in the text [m].

    Args:
        text: any text; halves of surrogate pairs part words.
        joined: as of ``table``.
    """
    known, codes = table(joined), codes_of(text)
    values = known.values[codes]
    if not values.all():
        known.learn(codes[values == 0])
        values = known.values[codes]
    several = np.flatnonzero(values >> CODE_BITS == SEVERAL)
    places = (values[several] & CODE_MASK).astype(np.int64)
    lengths = np.ones(len(codes), np.int64)
    lengths[several] = known.expansions[places]
    origin = np.repeat(np.arange(len(codes)), lengths)
    out, starts, wide = values[origin], np.cumsum(lengths) - lengths, lengths[several]
    within = np.arange(int(wide.sum())) - np.repeat(np.cumsum(wide) - wide, wide)
    out[np.repeat(starts[several], wide) + within] = known.expansions[np.repeat(places, wide) + 1 + within]
    return out, origin


def word_texts(text: str, joined: str | None = None) -> list[str]:
    """The words of a short text, folded."""
    if text.isascii() and BREAK_CHAR not in text:
        # Nearly all of what is compared word by word; the table would say the same, at a hundred times the cost.
        small = text.lower()
        if joined is not None:
            small = _NO_MARK.sub("", small) if joined == "" else small.translate(dict.fromkeys(map(ord, joined)))
        return _WORD.findall(small)
    return folded_words(text, joined)


def folded_words(text: str, joined: str | None = None) -> list[str]:
    """``word_texts`` by the table of characters, for any text."""
    found: list[str] = []
    before = SEPARATOR
    for value in folded(text, joined)[0].tolist():
        kind, char = value >> CODE_BITS, chr(value & CODE_MASK)
        if kind == IGNORED:
            continue
        if kind == before and kind in (LETTER, DIGIT):
            found[-1] += char
        elif kind != SEPARATOR:
            found.append(char)
        before = kind
    return found
