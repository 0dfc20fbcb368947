"""Which n-grams of many texts are n-grams of the items: an index of hashes, and texts read together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prismlab.data.normalise import BREAK_CHAR
from prismlab.data.words import END, NUMBER_HASH, Hashes, Ints, Places, compiled, grams, words_of

BITS_A_KEY = 16
"""Size of the table that refuses most n-grams: three bits a key, all in one word of 64, let about one in 150 through
(Putze, Sanders, Singler, "Cache-, hash- and space-efficient Bloom filters", 2007)."""
_6, _12, _63, _1 = map(np.uint64, (6, 12, 63, 1))


def together(texts: Sequence[str]) -> str:
    """Texts as one, with a character between them that none of them has."""
    return BREAK_CHAR.join(text.replace(BREAK_CHAR, " ") if BREAK_CHAR in text else text for text in texts)


class Batch:
    """Texts read together, so that a call's cost is shared: words of all of them, each text behind the end of another.

    Args:
        texts: any number.
        joined: as of ``normalise.table``.
        whole: ``together(texts)``, where it is at hand already.
    """

    def __init__(self, texts: Sequence[str], joined: str | None = None, whole: str | None = None) -> None:
        self.words = words_of(together(texts) if whole is None else whole, joined)
        ends = np.flatnonzero(self.words.kinds == END)
        self.first = np.append(0, ends + 1)[: len(texts)]
        """First word of each text [n]."""
        self.last = np.append(ends, len(self.words))[: len(texts)]
        """Word behind the last one of each [n]."""
        self.begin = np.append(0, np.cumsum([len(text) + 1 for text in texts], dtype=np.int64))[: len(texts)]
        """Place of each text in what was read [n]."""

    def keep(self) -> None:
        """Let go of what only indexing needs; bounds are settled first."""
        _ = self.template_first, self.template_last
        self.words = self.words.kept()

    def text_of(self, words: Places) -> Ints:
        """The text that each word stands in."""
        return np.searchsorted(self.first, words, side="right") - 1

    @cached_property
    def template_first(self) -> Ints:
        """First word of each text among the words of the template [n]."""
        return np.searchsorted(self.words.template[1], self.first)

    @cached_property
    def template_last(self) -> Ints:
        """Template word behind the last one of each [n]."""
        return np.searchsorted(self.words.template[1], self.last)


@dataclass(frozen=True)
class Found:
    """n-grams of a text that are n-grams of items, one entry an item's place."""

    places: Ints
    """Word of the text [k], ascending."""
    views: NDArray[np.int32]
    """Which sequence of the index [k]."""
    at: NDArray[np.int32]
    """Word of that sequence [k]."""
    rare: NDArray[np.bool_]
    """Whether few enough items have this n-gram for it to tell which one it is from [k]."""


def three_bits(keys: Hashes) -> Hashes:
    """Bits of each key in its word of the table; the word is taken from the key's other end."""
    return (_1 << (keys & _63)) | (_1 << (keys >> _6 & _63)) | (_1 << (keys >> _12 & _63))


@dataclass(frozen=True)
class Grams:
    """All n-grams of the items' sequences, by hash."""

    n: int
    keys: Hashes
    """Ascending, none twice [m]."""
    offsets: NDArray[np.uint32]
    """Entries of key k are ``offsets[k]:offsets[k + 1]`` [m + 1]."""
    views: NDArray[np.int32]
    at: NDArray[np.int32]
    spread: NDArray[np.uint8]
    """How many different questions have the n-gram, 255 for more [m]."""
    bits: Hashes
    shift: int
    mask: int

    @classmethod
    def build(cls, n: int, keys: Hashes, views: Places, at: Places, groups: Places, key_bits: int = 64) -> Grams:
        """An index.

        Args:
            n: words of an n-gram.
            keys: hash of each n-gram [k].
            views: sequence that it is from [k].
            at: its first word there [k].
            groups: question that it is from [k]; an n-gram's spread counts different ones.
            key_bits: bits of a hash that are used; fewer than 64 only to see that clashes do no harm.
        """
        mask = (2**64 - 1) ^ (2 ** (64 - key_bits) - 1)
        keys = keys & np.uint64(mask)
        order = np.lexsort((at, views, groups, keys))
        keys, views, at, groups = keys[order], views[order], at[order], groups[order]
        new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        first = np.flatnonzero(new)
        new_group = new | np.append(True, groups[1:] != groups[:-1])[: len(keys)]
        spread = np.add.reduceat(new_group.astype(np.int32), first) if len(first) else np.zeros(0, np.int32)
        unique = keys[first]
        size = max(16, int(np.ceil(np.log2(max(1, len(unique)) * BITS_A_KEY))))
        bits, shift = np.zeros(1 << (size - 6), np.uint64), 64 - size + 6
        np.bitwise_or.at(bits, unique >> np.uint64(shift), three_bits(unique))
        return cls(
            n=n,
            keys=unique,
            offsets=np.append(first, len(keys)).astype(np.uint32),
            views=views.astype(np.int32, copy=False),
            at=at.astype(np.int32, copy=False),
            spread=np.minimum(spread, 255).astype(np.uint8),
            bits=bits,
            shift=shift,
            mask=mask,
        )

    def _candidates(self, hashes: Hashes, numbers: bool = False) -> tuple[Ints, Hashes]:
        """Places whose n-gram may be in the index, and its hash."""
        fast = compiled()
        if fast is not None:
            places, found = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.uint64)
            shift, mask = np.uint64(self.shift), np.uint64(self.mask)
            count = fast.candidates(hashes, self.n, self.bits, shift, mask, numbers, places, found)
            return places[:count], found[:count]
        found = grams(hashes, self.n) & np.uint64(self.mask)
        wanted = three_bits(found)
        there = self.bits[found >> np.uint64(self.shift)] & wanted == wanted
        if numbers:
            before = np.append(0, np.cumsum(hashes == NUMBER_HASH))
            there &= before[self.n :][: len(there)] > before[: len(there)]
        places = np.flatnonzero(there)
        return places, found[places]

    def find(self, hashes: Hashes, common: int, numbers: bool = False) -> Found:
        """Places of a text's words at which an n-gram of the items begins, by hash alone.

        Args:
            hashes: words of the text.
            common: an n-gram of this many items or more is not rare.
            numbers: only n-grams that a number of a template is in.
        """
        places, found = self._candidates(hashes, numbers)
        at = np.searchsorted(self.keys, found)
        known = at < len(self.keys)
        known[known] = self.keys[at[known]] == found[known]
        places, at = places[known], at[known]
        first = self.offsets[at].astype(np.int64)
        counts = self.offsets[at + 1] - first
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = np.repeat(first, counts) + within
        rare = np.repeat(self.spread[at] < common, counts)
        return Found(np.repeat(places, counts), self.views[entries], self.at[entries], rare)


@dataclass(frozen=True)
class Runs:
    """Longest stretches of words that texts share with sequences, by hash, in order of text and sequence."""

    texts: Ints
    views: Ints
    places: Ints
    """First word in the text [k]."""
    at: Ints
    """First word in the sequence [k]."""
    words: Ints
    """How many words [k]."""
    rare: NDArray[np.bool_]
    """Whether one of its n-grams is [k]."""

    def only(self, kept: NDArray[np.bool_]) -> Runs:
        """Some of them."""
        return Runs(*(getattr(self, one.name)[kept] for one in fields(self)))


def runs(found: Found, n: int, texts: Ints) -> Runs:
    """Stretches of the n-grams that follow one another both in a text and in a sequence.

    Args:
        found: n-grams.
        n: words of each.
        texts: text of each of them.
    """
    diagonal = found.places - found.at
    order = np.lexsort((found.places, diagonal, found.views, texts))
    texts, views, diagonal, places = texts[order], found.views[order], diagonal[order], found.places[order]
    columns = ((texts, 0), (views, 0), (diagonal, 0), (places, 1))
    new = np.append(True, np.any([np.diff(column) != step for column, step in columns], axis=0))[: len(places)]
    first = np.flatnonzero(new)
    lengths = np.diff(np.append(first, len(places))) + n - 1
    rare = np.logical_or.reduceat(found.rare[order], first) if len(first) else np.zeros(0, np.bool_)
    at = found.at[order][first].astype(np.int64)
    return Runs(texts[first], views[first].astype(np.int64), places[first], at, lengths, rare)
