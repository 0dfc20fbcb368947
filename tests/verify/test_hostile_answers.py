"""Answers that try to be right without being it, and honest ones in odd notation."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismlab.data.items import Item
from prismlab.verify.answers import verify
from prismlab.verify.math_pool import MathPool
from prismlab.verify.math_text import clean
from prismlab.verify.math_units import unit_name
from prismlab.verify.maths import judge_math

pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'prismlab[verify]'")
METALS = ("iron", "lithium", "gold", "iron oxide")
NUMBERS = ("4", "42", "420")


@pytest.fixture(scope="module")
def pool() -> Iterator[MathPool]:
    made = MathPool()
    made.ask("1", "x", 60.0)
    yield made
    made.close()


FALSE = [
    # An equation whose other side is another value.
    ("5", "3=5"),
    ("5", "x=4=5"),
    ("5", "7-1=5"),
    ("5", "x=5,y=6"),
    # Another base.
    ("42", "42_8"),
    ("42", "42_{7}"),
    ("42", "42_{43}"),
    ("42", "42_0"),
    ("10", "A_{12}"),
    ("123_5", "123_6"),
    # More than the value, or its denial.
    ("42", r"\not 42"),
    ("42", r"\neg 42"),
    ("42", r"42\text{ million}"),
    ("42", "42 thousand"),
    ("42", "42 squared"),
    ("42", r"42\text{ factorial}"),
    ("42", r"42\text{ minus one}"),
    ("42", r"42\text{ is wrong}"),
    ("42", "42 wrong"),
    ("42", r"42,\ldots"),
    ("42", r"\ldots42"),
    ("42", r"41 \rightarrow 42"),
    (r"p \rightarrow q", r"q \rightarrow p"),
    ("42", r"42\lor43"),
    # Digits beyond the sixth.
    ("0.1234567", "0.1234568"),
    ("0.123456789", "0.123456788"),
    ("0.0000001", "0.0000002"),
    # Letters are no factors in a word, degrees no radians.
    ("east", "seat"),
    (r"\sin 1", r"\sin(1^\circ)"),
    # Units that differ.
    ("5 m", "5 km"),
    (r"5\text{ m}^2", r"5\text{ m}"),
    ("\\$5", "5 euros"),
    (r"37^\circ\text{C}", "37 °F"),
    ("42", r"42\text{ 43}^2"),
    ("2", r"x \in 2"),
]
HONEST = [
    ("90", "90°"),
    (r"90^\circ", r"90\text{ degrees}"),
    ("50%", "50 percent"),
    (r"5\text{ m}", r"5\text{ meters}"),
    ("42 apples", r"42\text{ apple}"),
    (r"12\text{ cm}^2", "12 square centimeters"),
    (r"12\text{ cm}^{2}", "12 cm^2"),
    ("5", "5 km/h"),
    ("60 mph", r"60\text{ miles per hour}"),
    ("5", "€5"),
    ("5 dollars", "\\$5"),
    ("42000000", r"42\text{ million}"),
    ("1,500,000", "1.5 million dollars"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    ("1,2", r"1\text{ and }2"),
    ("1,2", r"x=1 \text{ or } x=2"),
    ("5,-5", r"\pm 5"),
    ("1200", "1.2e3"),
    ("1/3", r"0.\overline{3}"),
    ("-12/99", r"-0.\bar{12}"),
    ("3/2", "1 1/2"),
    ("1/2", r"\frac 1 2"),
    (r"\pi", "pi"),
    (r"\emptyset", r"\varnothing"),
    ("5", "5=x"),
    ("42", "40+2=42"),
    ("42", "52_8"),
    ("42", "42_{10}"),
    ("101_2", "101_{2}"),
    ("42", "2A_{16}"),
    ("1/2", r"\sin 30^\circ"),
    ("1.41421356", "1.4142136"),
    ("42", r"\,42\,"),
    ("42", "**42**"),
    ("42", "42;"),
    (r"\sum_{i=1}^{n} i", r"\sum_{i=1}^{n} i"),
    ("0", "-0.0"),
    ("6", "6th"),
    ("42", r"42^{\text{nd}}"),
    (r"37^\circ\text{C}", "37 °C"),
    (r"9.8\text{ m/s}^2", r"9.8\ \mathrm{m/s^2}"),
    ("20 years", "20 years old"),
    ("[-2,7]", r"x \in [-2,7]"),
]


@pytest.mark.parametrize(("gold", "answer"), FALSE)
def test_what_is_not_the_value_is_wrong(gold: str, answer: str, pool: MathPool) -> None:
    assert judge_math(gold, rf"\boxed{{{answer}}}", pool=pool, seconds=30.0).verdict == "wrong"


@pytest.mark.parametrize(("gold", "answer"), HONEST)
def test_what_is_the_value_is_right(gold: str, answer: str, pool: MathPool) -> None:
    said = judge_math(gold, rf"\boxed{{{answer}}}", pool=pool, seconds=30.0)
    assert said.verdict == "right", said.reason


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("42", "The answer is not 42", "wrong"),
        ("42", "The answer isn't $42$", "wrong"),
        ("42", "The answer is 41, not 42", "wrong"),
        ("42", "The answer is either 41 or 42", "wrong"),
        ("42", "The answer is between 41 and 42", "wrong"),
        ("5", "Answer: negative 5", "wrong"),
        ("5", "The answer is \u22125.", "wrong"),
        ("-5", "The answer is \u22125.", "right"),
        ("-5", "The answer is minus 5.", "right"),
        ("42", "Answer: **42**", "right"),
        ("42", "**Answer: 42**", "right"),
        ("42", "The answer is `42`.", "right"),
        ("49", "It takes 7 weeks or 49 days", "right"),
        ("42", "\\boxed{42} and \\boxed{42\\}", "no_answer"),
    ],
)
def test_answers_in_prose(gold: str, response: str, verdict: str, pool: MathPool) -> None:
    assert judge_math(gold, response, pool=pool, seconds=30.0).verdict == verdict


PIECES = [
    r"\text{",
    r"\boxed{",
    "}",
    "{",
    "=",
    "_",
    "^",
    "1",
    "42",
    "0",
    ".",
    ",",
    "x",
    " or ",
    "million",
    "°",
    r"\in",
    "$",
]


@given(
    st.lists(st.sampled_from([*PIECES, r"\overline{", "/", "-", "e", "%", "not ", "(", r"\circ", r"\sin"])).map("".join)
)
def test_no_answer_raises(text: str) -> None:
    class Pool:
        def ask(self, *_: object) -> str:
            return "wrong"

    for gold, response in (("1,2", text), ("42", rf"\boxed{{{text}}}"), (text, r"\boxed{1 = 2}"), (r"\{1\}", text)):
        assert judge_math(gold, response, pool=Pool()).verdict in ("right", "wrong", "no_answer", "no_verdict")  # type: ignore[arg-type]


def test_a_unit_has_one_name() -> None:
    assert unit_name(" square  feet") == unit_name("ft^{2}") == unit_name(" ft ^ 2") == "ft^2"
    assert unit_name(r"\text{ meters per second}".removeprefix(r"\text{")) == unit_name("m/s") == "m/s"
    assert unit_name(r"^{\circ}") == unit_name("degrees") == unit_name("°") == "°"
    assert len({unit_name(one) for one in ("m", "km", "mm", "m^2", "m^3", "s", "%", "$", "€")}) == 9
    assert (clean("3 boxes of apples").unit, clean("glass").unit) == ("", "")


def choice(gold: str, response: str, choices: tuple[str, ...] = METALS) -> str:
    item = Item(id="1", task="t", domain="d", question="?", answer=gold, verifier="choice", choices=choices, meta={})
    return verify(item, response, strict_format=False).verdict


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("Answer: C or B", "wrong"),
        ("Answer: C/B", "wrong"),
        ("Answer: (C), (B)", "wrong"),
        ("C. iron", "wrong"),
        ("C iron", "wrong"),
        ("The answer is C: iron", "wrong"),
        ("not C", "no_answer"),
        ("The answer is not C", "no_answer"),
        ("The answer isn't C", "no_answer"),
        ("Anything but C", "no_answer"),
        ("It is not gold", "no_answer"),
        ("Neither A nor C", "no_answer"),
        ("C, not A", "right"),
        ("gold, not iron", "right"),
        ("answer: c", "right"),
        ("The answer is (c).", "right"),
        ("option c", "right"),
        ('{"answer": "c"}', "right"),
        (r"\boxed{c}", "right"),
        (r"A is iron and B is lithium, so \boxed{C}", "right"),
        (r"The answer is C. No: \boxed{A}", "wrong"),
        ("the answer is a metal", "no_answer"),
        ("\uff23", "right"),
        ("\u0421", "no_answer"),
        ("Option A is wrong, B too. Final answer: C", "right"),
    ],
)
def test_which_choice_is_named(response: str, verdict: str) -> None:
    assert choice("C", response) == verdict


@pytest.mark.parametrize("response", ["4.2", "0.4", "-4", "\u22124", "1/4", "4/2", "4,2", "1.4"])
def test_a_number_is_not_found_in_another(response: str) -> None:
    assert choice("A", response, NUMBERS) == "no_answer"
    contains = Item(id="1", task="t", domain="d", question="?", answer="4", verifier="contains", choices=None, meta={})
    assert verify(contains, response, strict_format=False).verdict == "wrong"
    assert verify(contains, "It is 4, or so.", strict_format=False).verdict == "right"


def test_naming_takes_linear_time() -> None:
    began = time.process_time()
    for text in ("A " * 100_000 + "C", "not " * 50_000 + "C", "answer is C or " * 20_000, "gold, " * 20_000):
        choice("C", text)
    assert time.process_time() - began < 30.0, "a search that began anew at every word would take hours"
