"""Plain values over JSON and their comparison, which must agree with Python's own where Python's can be trusted."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismlab.verify.sandbox.compare import same_output, same_value
from prismlab.verify.sandbox.plain import MAX_DEPTH, NotPlain, from_plain, read, to_plain, write

ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
    ),
    max_leaves=12,
)


def identical(a: Any, b: Any) -> bool:
    """Same types and values all the way down, NaN like NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    return repr(a) == repr(b) if isinstance(a, (float, complex)) else a == b


@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert identical(read(write(value)), value)


def has_nan(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(has_nan, value))
    if isinstance(value, dict):
        return any(has_nan(one) for pair in value.items() for one in pair)
    if isinstance(value, complex):
        return math.isnan(value.real) or math.isnan(value.imag)
    return isinstance(value, float) and math.isnan(value)


def lists_for_tuples(value: Any) -> Any:
    """As ``same_value`` sees it: lists and tuples alike."""
    if isinstance(value, (list, tuple)):
        return [lists_for_tuples(one) for one in value]
    if isinstance(value, dict):
        return {key: lists_for_tuples(one) for key, one in value.items()}
    return value


@given(VALUES, VALUES)
def test_sameness_is_pythons(a: Any, b: Any) -> None:
    for one, other in ((a, b), (a, a), (b, b)):
        if isinstance(one, complex) != isinstance(other, complex):
            continue  # Python has 1 == 1+0j; a complex number where a real one was wanted is another value here
        want = not has_nan(one) and not has_nan(other) and lists_for_tuples(one) == lists_for_tuples(other)
        found = same_value(to_plain(one), to_plain(other))
        if found != want:
            assert mixes_complex(one) or mixes_complex(other), (one, other)


def mixes_complex(value: Any) -> bool:
    return "j" in repr(value)


class Lies:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class LyingInt(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "5"

    def __index__(self) -> int:
        return 5

    __hash__ = int.__hash__


class LyingText(str):
    def __str__(self) -> str:
        return "right"

    def __getitem__(self, key: Any) -> str:
        return "right"

    __hash__ = str.__hash__


class LyingList(list[Any]):
    def __iter__(self) -> Any:
        return iter([5])


def test_derived_classes_are_what_their_plain_class_is() -> None:
    assert read(write(LyingInt(0))) == 0
    assert read(write(LyingText("wrong"))) == "wrong"
    assert read(write(LyingList([1, 2]))) == [1, 2]
    assert read(write(Counter("aab"))) == {"a": 2, "b": 1}
    assert read(write(defaultdict(list, {1: [2]}))) == {1: [2]}
    assert read(write(OrderedDict(a=1))) == {"a": 1}
    assert type(read(write(LyingInt(3)))) is int
    assert read(write(int)) is int
    assert read(write(10**400)) == 10**400
    with pytest.raises(NotPlain):
        write(Lies())
    assert to_plain([Lies()], lambda value: 7) == ["l", ["r", 7]]


def test_what_is_no_value_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(NotPlain):
            write(value)
    texts = [
        "{}",
        "[]",
        "[1]",
        '["q"]',
        '["l"',
        "nonsense",
        '["h","zz"]',
        '["h"]',
        '["d",[1]]',
        '["r",1]',
        '["s",["l",1]]',
        "[" * 9999,
    ]
    for text in [*texts, '["b","x"]', '["c","a","b"]', '["y","object"]', '{"l":1}', '["l",{}]']:
        with pytest.raises(NotPlain):
            read(text)
    for tree in (
        {},
        [],
        ["q"],
        ["l", {}],
        ["d", [1]],
        ["h", "zz"],
        ["r", 0],
        ["s", [["l"]]],
        3,
        "x",
        ["d", ["l", 1, 2]],
    ):
        assert not same_value(["l", 1], tree)
        assert not same_value(["d", [1, 2]], tree)
        assert not same_value(5, tree)


def test_sameness_at_the_edges() -> None:
    def same(a: Any, b: Any) -> bool:
        return same_value(to_plain(a), to_plain(b))

    nan = float("nan")
    assert not same(nan, nan)
    assert not same([nan], [nan])
    assert same(1, 1.0)
    assert same(True, 1)
    assert not same(1, "1")
    assert not same(None, False)
    assert not same([], {})
    assert not same(set(), [])
    assert same((1, [2]), [1, (2,)])
    assert same({1: "a", 2: "b"}, {2: "b", 1.0: "a"})
    assert not same({1: "a"}, {1: "b"})
    assert same({(1, 2), (3, 4)}, {(3, 4), (1, 2)})
    assert not same(0.1 + 0.2, 0.3)
    assert same(-0.0, 0)
    assert same(10**400, 10**400)
    assert not same(10**400, 10**400 + 1)
    # As many colliding keys as an answer can hold: nothing is hashed, so this takes no longer than any others.
    many = {(2**61 - 1) * n: n for n in range(300)}
    assert same(many, dict(reversed(many.items())))


def test_numbers_beyond_every_float() -> None:
    huge = 10**400
    for value, other in (({huge}, {huge + 1}), ({huge: 1}, {-huge: 1}), (huge, huge + 1), ({huge}, {math.inf})):
        assert same_value(to_plain(value), to_plain(value))
        assert not same_value(to_plain(value), to_plain(other))
        assert not same_value(to_plain(other), to_plain(value))
    # What no writer of ours makes, and float.fromhex refuses.
    assert not same_value(1.5, ["f", "0x1p999999"])
    assert not same_value(to_plain({1.5}), ["s", ["f", "0x1p999999"]])
    with pytest.raises(NotPlain):
        from_plain(["f", "0x1p999999"])


def test_json_that_a_program_may_send_does_no_harm() -> None:
    assert from_plain(json.loads("1e400")) == math.inf
    assert not same_value(5, json.loads("NaN"))
    assert isinstance(read("5"), Hashable)


@pytest.mark.parametrize(
    ("given_text", "same"),
    [
        (b"1 2\n3\n", True),
        (b"1 2\r\n3", True),
        (b"1  2 \n3\n\n \n", True),
        (b"  1\t2\n3", True),
        (b"1 2 3\n", False),
        (b"1 2\n\n3\n", False),
        (b"1 2\n3\n4", False),
        (b"\n1 2\n3", False),
        (b"12\n3", False),
        (b"1 2\n3.0", False),
        (b"", False),
        (b"1 2\n3\0", False),
    ],
)
def test_outputs_by_lines_and_words(given_text: bytes, same: bool) -> None:
    assert same_output(b"1 2\n3\n", given_text) is same
