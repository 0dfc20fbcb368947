"""Words of a text as hashes, with their places; sums over n of them as hashes of n-grams.

A word is a longest run of letters or of digits (``H2O`` is three); a character of a script without spaces is one too. A
word's hash is ``mix(sum (code_k + 1) * B^k)``, an n-gram's ``sum hash_j * C^j``, both modulo 2^64 with odd B and C, so
that either can be had from sums from the start: by numpy here, by rolling sums in ``words_compiled``; the results are
the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.data.normalise import (
    BREAK,
    CODE_BITS,
    CODE_MASK,
    DIGIT,
    IGNORED,
    SEPARATOR,
    SINGLE,
    codes_of,
    folded,
    table,
    word_texts,
)

B, C = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95
B_INVERSE, C_INVERSE = pow(B, -1, 2**64), pow(C, -1, 2**64)
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Multipliers of the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014)."""
BREAK_HASH, NUMBER_HASH = 1, 2
"""Hashes of the end of a document and, in a template, of numbers in a row."""
WORD, NUMBER, END = 0, 1, 2
SMALL = 256
"""Shorter texts are not worth a compiled pass."""
Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]
Places = NDArray[np.int64] | NDArray[np.int32]
"""Places in a text: 64 bits while they are looked for, 32 where they are kept and fit."""

_SPELLED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty"),
    *("fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million", "billion"),
)


def compiled() -> ModuleType | None:
    """The compiled passes, where numba is installed."""
    try:
        from prismlab.data import words_compiled
    except ImportError:
        return None
    return words_compiled


def _powers(base: int, n: int) -> Hashes:
    powers = np.full(n, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


def mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(MIX[0])
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(MIX[1])
    return hashes ^ (hashes >> np.uint64(31))


def _split(text: str, joined: str | None) -> tuple[Ints, Ints, Hashes, NDArray[np.uint8]]:
    """Starts, stops, hashes and kinds of words, by numpy."""
    values, origin = folded(text, joined)
    kept = values >> CODE_BITS != IGNORED
    values, origin = values[kept], origin[kept]
    kinds = (values >> CODE_BITS).astype(np.int64)
    alone = (kinds == SINGLE) | (kinds == BREAK)
    first = np.append(True, (kinds[1:] != kinds[:-1]) | alone[1:])[: len(kinds)]
    runs = np.flatnonzero(first)
    ends = np.append(runs, len(kinds))[1:]
    words = kinds[runs] != SEPARATOR
    runs, ends = runs[words], ends[words]
    terms = ((values & CODE_MASK) + 1).astype(np.uint64) * _powers(B, len(values))
    sums = np.append(np.uint64(0), np.cumsum(terms, dtype=np.uint64))
    hashes = mix((sums[ends] - sums[runs]) * _powers(B_INVERSE, len(values))[runs])
    kind = np.select([kinds[runs] == DIGIT, kinds[runs] == BREAK], [NUMBER, END], WORD).astype(np.uint8)
    hashes[kind == END] = BREAK_HASH
    return origin[runs], origin[ends - 1] + 1, hashes, kind


def _split_fast(fast: Any, text: str, joined: str | None) -> tuple[Ints, Ints, Hashes, NDArray[np.uint8]]:
    known, codes = table(joined), codes_of(text)
    # Seldom more words than a third of the characters; a character may even become several.
    for most in (len(codes) // 3 + 2, len(codes) + 2, 32 * len(codes) + 2):
        starts, stops = np.empty(most, np.int64), np.empty(most, np.int64)
        hashes, kinds = np.empty(most, np.uint64), np.empty(most, np.uint8)
        while (n := fast.split(codes, known.values, known.expansions, starts, stops, hashes, kinds)) == fast.NOT_KNOWN:
            known.learn(codes[known.values[codes] == 0])
        if n != fast.NO_ROOM:
            break
    # Copies, since there was room for a word a character.
    return starts[:n].copy(), stops[:n].copy(), hashes[:n].copy(), kinds[:n].copy()


def grams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of all n-grams, [len - n + 1] or none."""
    if len(hashes) < n:
        return np.zeros(0, np.uint64)
    fast = compiled()
    if fast is not None:
        return fast.grams(hashes, n)
    sums = np.append(np.uint64(0), np.cumsum(hashes * _powers(C, len(hashes)), dtype=np.uint64))
    return (sums[n:] - sums[:-n]) * _powers(C_INVERSE, len(hashes))[: len(hashes) - n + 1]


def signatures(hashes: Hashes, first: Ints, last: Ints) -> Hashes:
    """A number for each stretch of words ``first`` to ``last`` (exclusive) that equal stretches share [n]."""
    sums = np.append(np.uint64(0), np.cumsum(hashes * _powers(C, len(hashes)), dtype=np.uint64))
    return (sums[last] - sums[first]) * _powers(C_INVERSE, len(hashes) + 1)[first]


def _template(hashes: Hashes, kinds: NDArray[np.uint8]) -> tuple[Hashes, Ints]:
    number = (kinds == NUMBER) | np.isin(hashes, spelled())
    kept = np.flatnonzero(~(number & np.append(False, number[:-1])))
    return np.where(number[kept], np.uint64(NUMBER_HASH), hashes[kept]), kept


@dataclass(frozen=True)
class Words:
    """The words of a text."""

    text: str
    joined: str | None
    starts: Places
    """Where each word begins in the text, in characters [n]."""
    stops: Places
    """Where it ends (exclusive) [n]. Words that one character stands for (``½``) share its place."""
    hashes: Hashes
    """Of each [n]; none of ``kept`` words."""
    kinds: NDArray[np.uint8]
    """``WORD``, ``NUMBER`` (of digits) or ``END`` (of a document) of each [n]; none of ``kept`` words."""

    def __len__(self) -> int:
        return len(self.starts)

    def kept(self) -> Words:
        """What evidence needs of them for as long as it is looked for, in half the memory: no hashes and kinds but
        those of the template, places in 32 bits."""
        hashes, first = self.template
        narrow: Any = np.int32 if len(self.text) < 2**31 else np.int64
        starts, stops = self.starts.astype(narrow), self.stops.astype(narrow)
        found = Words(self.text, self.joined, starts, stops, self.hashes[:0].copy(), self.kinds[:0].copy())
        found.__dict__["template"] = hashes.copy(), first.astype(narrow)
        return found

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Where words ``start`` to ``stop`` (exclusive) stand in the text, in characters."""
        return int(self.starts[start]), int(self.stops[stop - 1])

    def word(self, at: int) -> str:
        """One word, folded."""
        before = 0
        while before < at and self.stops[at - before - 1] > self.starts[at]:
            before += 1
        return word_texts(self.text[self.starts[at] : self.stops[at]], self.joined)[before]

    def texts(self, start: int, stop: int) -> list[str]:
        """Words ``start`` to ``stop`` (exclusive), folded."""
        low, high = self.span(start, stop)
        found = word_texts(self.text[low:high], self.joined)
        # Where the first or last character stands for several words, some of them may lie outside.
        return found if len(found) == stop - start else [self.word(at) for at in range(start, stop)]

    @cached_property
    def template(self) -> tuple[Hashes, Places]:
        """The words with all numbers in a row, digits or spelled, as one: their hashes and their first words."""
        fast = compiled()
        if fast is None or len(self) < SMALL // 8:
            return _template(self.hashes, self.kinds)
        hashes, first = np.empty(len(self), np.uint64), np.empty(len(self), np.int64)
        n = fast.template(self.hashes, self.kinds, *_spelled_table(), hashes, first)
        return hashes[:n], first[:n]

    def numbers(self, at: int) -> str:
        """The numbers that the template's word ``at`` stands for, written one after another; empty if none."""
        hashes, first = self.template
        if hashes[at] != NUMBER_HASH:
            return ""
        stop = int(first[at + 1]) if at + 1 < len(first) else len(self)
        return "".join(self.texts(int(first[at]), stop))


def words_of(text: str, joined: str | None = None) -> Words:
    """The words of a text.

    Args:
        text: any text.
        joined: marks that are passed over instead of parting words, space never: ``""`` for all, None for none.
    """
    fast = compiled()
    found = _split(text, joined) if fast is None or len(text) < SMALL else _split_fast(fast, text, joined)
    return Words(text, joined, *found)


_found: dict[str, Any] = {}


def spelled() -> Hashes:
    """Hashes of numbers that are spelled out, ascending."""
    if "spelled" not in _found:
        _found["spelled"] = np.sort(np.concatenate([_split(word, None)[2] for word in _SPELLED]))
    return _found["spelled"]


def _spelled_table() -> tuple[Hashes, np.uint64]:
    """Spelled numbers in a table without clashes: entry ``hash * odd >> 54`` of 1,024 holds the hash or 0."""
    if "table" not in _found:
        known = spelled()
        tried = (np.uint64(odd) for odd in range(1, 2**20, 2))
        odd = next(odd for odd in tried if len(np.unique(known * odd >> np.uint64(54))) == len(known))
        table = np.zeros(1024, np.uint64)
        table[known * odd >> np.uint64(54)] = known
        _found["table"] = table, odd
    return _found["table"]
