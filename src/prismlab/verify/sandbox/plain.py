"""Plain values as JSON text: what crosses between a confined program and its judge.

A value is None, a bool, an int, a float, a complex, a str, a bytes, or a list, tuple, set, frozenset or dict of such.
An instance of a class derived from one of these is written by the methods of the plain class, so that nothing that it
overrides counts, and comes back plain. Whatever else it is stays behind and is known by a number.

The text goes into every confined process in front of ``inside.py``, so it imports nothing but what that does.
"""

from __future__ import annotations

import json

LARGEST_PLAIN_INT = 1 << 1000
"""Larger whole numbers are written in hexadecimal, whose reading takes linear time and has no limit of digits."""
MAX_DEPTH = 100
TYPES = {kind.__name__: kind for kind in (bool, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)}
"""The plain types themselves are plain too: a test may hand one over."""


class NotPlain(Exception):
    """A value holds something that is no plain value, or is nested too deeply."""


def to_plain(value, refer=None, depth=0):
    """``value`` as lists, texts and numbers that ``json`` writes. ``refer(object)`` gives a number for what is not
    plain.

    Raises:
        NotPlain: it is not plain (and ``refer`` is None), or is nested more than ``MAX_DEPTH`` deep.
    """
    if value is None or value is True or value is False:
        return value
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested more than {MAX_DEPTH} deep")
    kinds = type.__dict__["__mro__"].__get__(type(value))
    if int in kinds:
        number = int.__index__(value)
        return number if -LARGEST_PLAIN_INT < number < LARGEST_PLAIN_INT else ["h", int.__format__(number, "x")]
    if float in kinds:
        return float.__add__(value, 0.0) if float.__ne__(value, 0.0) else ["f", float.hex(value)]
    if str in kinds:
        return str.__str__(value) if type(value) is str else str.__getitem__(value, slice(None))
    if complex in kinds:
        return ["c", complex.__add__(value, 0).real, complex.__add__(value, 0).imag]
    if bytes in kinds or bytearray in kinds:
        return ["b", (bytes if bytes in kinds else bytearray).hex(value)]
    for kind, mark in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
        if kind in kinds:
            return [mark, *(to_plain(one, refer, depth + 1) for one in kind.__iter__(value))]
    if dict in kinds:
        pairs = dict.items(value)
        return ["d", *([to_plain(k, refer, depth + 1), to_plain(v, refer, depth + 1)] for k, v in pairs)]
    for name, kind in TYPES.items():
        if value is kind:
            return ["y", name]
    if refer is None:
        raise NotPlain("no plain value")
    return ["r", refer(value)]


def from_plain(text, referred=None, depth=0):
    """The value that :func:`to_plain` wrote; of exactly the plain types, whatever was sent.

    Raises:
        NotPlain: it is not what :func:`to_plain` writes.
    """
    if text is None or type(text) in (bool, int, float, str):
        return text
    if type(text) is not list or not text or type(text[0]) is not str or depth > MAX_DEPTH + 1:
        raise NotPlain("no plain value")
    mark, *rest = text
    try:
        if mark == "h":
            return int(rest[0], 16)
        if mark == "f":
            return float.fromhex(rest[0])
        if mark == "c":
            return complex(float(rest[0]), float(rest[1]))
        if mark == "b":
            return bytes.fromhex(rest[0])
        if mark == "r" and referred is not None and type(rest[0]) is int:
            return referred(rest[0])
        if mark == "y":
            return TYPES[rest[0]]
        if mark == "d":
            return {from_plain(k, referred, depth + 1): from_plain(v, referred, depth + 1) for k, v in rest}
        kind = {"l": list, "t": tuple, "s": set, "z": frozenset}[mark]
        return kind([from_plain(one, referred, depth + 1) for one in rest])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise NotPlain("no plain value") from error


def write(value, refer=None):
    """``value`` as one line of JSON. Errors: as of :func:`to_plain`."""
    return json.dumps(to_plain(value, refer))


def read(line, referred=None):
    """The value of a line of JSON.

    Raises:
        NotPlain: it is no JSON, or not what :func:`write` writes.
    """
    try:
        return from_plain(json.loads(line), referred)
    except (ValueError, RecursionError) as error:
        raise NotPlain("no plain value") from error
