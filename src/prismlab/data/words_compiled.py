"""The passes of ``words`` and ``grams``, compiled; imported only where numba is installed.

Everything is in uint64, which wraps: an int64 beside it would make numba count in floats.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from prismlab.data import normalise, words

_B, _C, _C_INVERSE = np.uint64(words.B), np.uint64(words.C), np.uint64(words.C_INVERSE)
_MIX_1, _MIX_2 = map(np.uint64, words.MIX)
_BREAK_HASH, _NUMBER_HASH = np.uint64(words.BREAK_HASH), np.uint64(words.NUMBER_HASH)
_MASK = np.uint32(normalise.CODE_MASK)
_BITS = np.uint32(normalise.CODE_BITS)
_SEPARATOR, _LETTER, _DIGIT = normalise.SEPARATOR, normalise.LETTER, normalise.DIGIT
_IGNORED, _BREAK, _SEVERAL, _UNKNOWN = normalise.IGNORED, normalise.BREAK, normalise.SEVERAL, normalise.UNKNOWN
NOT_KNOWN, NO_ROOM = -1, -2
_WORD, _NUMBER, _END = words.WORD, words.NUMBER, words.END
_0, _1, _6, _12 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(12)
_S30, _S27, _S31, _S54, _63 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(54), np.uint64(63)


@numba.njit(cache=True, nogil=True)
def _mix(h: Any) -> Any:  # pragma: no cover - runs compiled
    h = (h ^ (h >> _S30)) * _MIX_1
    h = (h ^ (h >> _S27)) * _MIX_2
    return h ^ (h >> _S31)


@numba.njit(cache=True, nogil=True)
def split(
    codes: Any, table: Any, expansions: Any, starts: Any, stops: Any, hashes: Any, kinds: Any
) -> int:  # pragma: no cover - runs compiled
    """Fill in the words of a text; how many there are, ``NOT_KNOWN`` or ``NO_ROOM``."""
    n = 0
    current = _SEPARATOR
    h, power = _0, _1
    room = len(starts) - 1
    for i in range(len(codes)):
        value = table[codes[i]]
        kind = np.int64(value >> _BITS)
        if kind == current and kind in (_LETTER, _DIGIT):
            power *= _B
            h += np.uint64((value & _MASK) + np.uint32(1)) * power
            stops[n] = i + 1
            continue
        if kind == _IGNORED:
            continue
        place, several = np.int64(0), np.int64(1)
        if kind == _SEVERAL:
            place = np.int64(value & _MASK)
            several = np.int64(expansions[place])
        elif kind == _UNKNOWN:
            return NOT_KNOWN
        for k in range(several):
            if place:
                value = expansions[place + 1 + k]
                kind = np.int64(value >> _BITS)
                if kind == current and kind in (_LETTER, _DIGIT):
                    power *= _B
                    h += np.uint64((value & _MASK) + np.uint32(1)) * power
                    stops[n] = i + 1
                    continue
            if current != _SEPARATOR:
                hashes[n] = _BREAK_HASH if current == _BREAK else _mix(h)
                n += 1
                if n > room:
                    return NO_ROOM
            current = kind
            if kind != _SEPARATOR:
                starts[n], stops[n] = i, i + 1
                kinds[n] = _NUMBER if kind == _DIGIT else _END if kind == _BREAK else _WORD
                h, power = np.uint64((value & _MASK) + np.uint32(1)), _1
    if current != _SEPARATOR:
        hashes[n] = _BREAK_HASH if current == _BREAK else _mix(h)
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def template(
    hashes: Any, kinds: Any, spelled: Any, odd: Any, out: Any, first: Any
) -> int:  # pragma: no cover - runs compiled
    """Fill in the words with numbers in a row as one; how many there are."""
    n = 0
    before = False
    for i in range(len(hashes)):
        h = hashes[i]
        number = kinds[i] == _NUMBER or spelled[(h * odd) >> _S54] == h
        if number and before:
            continue
        out[n] = _NUMBER_HASH if number else h
        first[n] = i
        n += 1
        before = number
    return n


@numba.njit(cache=True, nogil=True)
def grams(hashes: Any, n: int) -> Any:  # pragma: no cover - runs compiled
    """Hashes of all n-grams of at least n words."""
    out = np.empty(len(hashes) - n + 1, np.uint64)
    h, power = _0, _1
    for j in range(n):
        h += hashes[j] * power
        if j < n - 1:
            power *= _C
    for i in range(len(out)):
        out[i] = h
        if i + n < len(hashes):
            h = (h - hashes[i]) * _C_INVERSE + hashes[i + n] * power
    return out


@numba.njit(cache=True, nogil=True)
def candidates(
    hashes: Any, n: int, bits: Any, shift: Any, mask: Any, numbers: bool, places: Any, found: Any
) -> int:  # pragma: no cover - runs compiled
    """Fill in the places of n-grams whose bits are set, and their hashes; how many there are.

    With ``numbers`` only of n-grams that a number is in: most of a table too large for a cache is then not touched.
    """
    count = 0
    if len(hashes) < n:
        return count
    h, power = _0, _1
    number = -1
    for j in range(n):
        h += hashes[j] * power
        if j < n - 1:
            power *= _C
            if hashes[j] == _NUMBER_HASH:
                number = j
    last = len(hashes) - n
    for i in range(last + 1):
        if hashes[i + n - 1] == _NUMBER_HASH:
            number = i + n - 1
        if number >= i or not numbers:
            key = h & mask
            wanted = (_1 << (key & _63)) | (_1 << (key >> _6 & _63)) | (_1 << (key >> _12 & _63))
            if bits[key >> shift] & wanted == wanted:
                places[count] = i
                found[count] = key
                count += 1
        if i < last:
            h = (h - hashes[i]) * _C_INVERSE + hashes[i + n] * power
    return count
