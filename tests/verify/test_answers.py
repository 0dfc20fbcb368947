"""Verifiers on known answers, and on anything at all."""

from __future__ import annotations

import gzip
import json
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismlab.data.items import Item
from prismlab.errors import DataError
from prismlab.verify.answers import Verdict, in_threads, last_number, read_number, verify
from prismlab.verify.naming import chosen_letters

METALS = ("iron", "lithium", "gold", "iron oxide")


def item(verifier: str, answer: str, choices: tuple[str, ...] | None = None, **meta: Any) -> Item:
    return Item(
        id="1",
        task="t",
        domain="d",
        question="?",
        answer=answer,
        verifier=verifier,
        choices=choices,
        meta=meta,
    )


def lenient(judged: Item, response: str) -> Verdict:
    return verify(judged, response, strict_format=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("432", 432),
        ("It is 432.", 432),
        ("47+385=432", 432),
        ("5-3", 3),
        ("x = -3", -3),
        ("(-3)", -3),
        ("\u22127", -7),
        ("$1,234,567.50", Fraction("1234567.5")),
        ("-$5", -5),
        ("12.5%", Fraction("12.5")),
        ("1,23", 23),
        ("12,345,6", 6),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("3.", 3),
        ("1.2.3", 3),
        ("1/3", Fraction(1, 3)),
        ("-6/4", Fraction(-3, 2)),
        ("2e3", 2000),
        ("10 apples, 20 pears", 20),
        ("so #### 72\n", 72),
        ("1 #### 2 #### 1,003", 1003),
        ("007", 7),
    ],
)
def test_number_is_read_exactly(text: str, value: Fraction | int) -> None:
    written = last_number(text)
    assert written is not None
    assert read_number(written) == value


@pytest.mark.parametrize("text", ["", "none", "7 #### no idea", "####", "-", "$", "."])
def test_no_number(text: str) -> None:
    assert last_number(text) is None
    assert lenient(item("number", "7"), text).verdict == "no_answer"


def test_number_verdicts() -> None:
    gsm = item("number", "Half of 48 is 24.\n48+24 = <<48+24=72>>72\n#### 72")
    assert lenient(gsm, "that makes $72.00.").verdict == "right"
    assert lenient(gsm, "72 or 71").verdict == "wrong"
    assert lenient(item("number", "0.3"), "3/10").score == 1.0
    # Exact: the sum of binary floats would say otherwise.
    assert lenient(item("number", "0.3"), "0.30000000000000004").score == 0.0
    assert lenient(item("number", "no number"), "7") == Verdict(
        score=None, verdict="no_verdict", reason="the item's answer 'no number' holds no number"
    )
    assert lenient(item("number", "7"), "1/0").verdict == "wrong"
    assert lenient(item("number", "7"), "9" * 100_000).verdict == "wrong"
    assert len(lenient(item("number", "7"), "9" * 100_000).reason) < 200


@pytest.mark.parametrize(
    "gold", [r"\frac{1}{2}", r"2\sqrt{3}", r"10,\!080", r"\left( 3, \frac{\pi}{2} \right)", "x^2", r"#### 3\pi"]
)
def test_a_formula_is_not_judged_by_its_last_number(gold: str) -> None:
    written = last_number(gold)
    assert written is not None
    assert lenient(item("number", gold), f"The answer is {written}.") == Verdict(
        score=None, verdict="no_verdict", reason=f"the item's answer {gold!r} is a formula, no number"
    )


def test_money_and_worked_answers_are_numbers() -> None:
    assert lenient(item("number", r"\$32,348"), "32348").verdict == "right"
    assert lenient(item("number", r"12\%"), "12%").verdict == "right"
    assert lenient(item("number", r"\(7\)"), "7").verdict == "right"
    assert lenient(item("number", "Since 2^3 = 8, she has\n#### 8"), "8").verdict == "right"


@given(st.integers(-(10**12), 10**12), st.integers(0, 6), st.sampled_from(["{}", "= {}.", "${} dollars", "so #### {}"]))
def test_any_written_number_is_found_again(whole: int, places: int, frame: str) -> None:
    value = Fraction(whole, 10**places)
    written = f"{'-' if whole < 0 else ''}{abs(whole) // 10**places:,}"
    if places:
        written += f".{abs(whole) % 10**places:0{places}d}"
    text = frame.format(written)
    found = last_number(text)
    assert found is not None
    # "$-5" is written so by nobody, but must still be read as minus five.
    assert read_number(found) == value
    assert lenient(item("number", str(value)), text).score == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "C",
        "c",
        "C.",
        "(C)",
        "C)",
        "Answer: C",
        "The answer is (C).",
        "C. gold",
        "C gold",
        "gold",
        "Gold.",
        "It must be gold",
        r"\boxed{C}",
    ],
)
def test_choice_right(text: str) -> None:
    assert lenient(item("choice", "C", METALS), text).verdict == "right"
    assert lenient(item("choice", "gold", METALS), text).verdict == "right"
    assert lenient(item("choice", "B", METALS), text).verdict == "wrong"


@pytest.mark.parametrize("text", ["A or C", "(A) (C)", "answer: A, no, answer: C", "iron or gold", "C B"])
def test_ambiguous_choice_is_wrong_and_says_so(text: str) -> None:
    verdict = lenient(item("choice", "C", METALS), text)
    assert (verdict.score, verdict.verdict) == (0.0, "wrong")
    assert "ambiguous" in verdict.reason


def test_choice_edges() -> None:
    assert lenient(item("choice", "D", METALS), "it is iron oxide").verdict == "right"
    assert lenient(item("choice", "A", METALS), "ironing").verdict == "no_answer"
    assert lenient(item("choice", "A", METALS), "E").verdict == "wrong"
    assert lenient(item("choice", "A", METALS), "").verdict == "no_answer"
    assert lenient(item("choice", "E", METALS), "A").verdict == "no_verdict"
    assert lenient(item("choice", "A", None), "A").verdict == "no_verdict"
    # Chemical symbols are letters too: a letter alone is a letter, a letter and its text are one choice.
    symbols = ("C", "B", "Fe", "O")
    assert lenient(item("choice", "C", symbols), "C").verdict == "right"
    assert lenient(item("choice", "A", symbols), "A C").verdict == "right"
    assert lenient(item("choice", "D", symbols), "D. O").verdict == "right"


def test_exact() -> None:
    exact = item("exact", "to be  or\nnot")
    assert lenient(exact, " to be or not ").verdict == "right"
    assert lenient(exact, "To be or not").verdict == "wrong"
    assert lenient(exact, "<think> x </think>").verdict == "no_answer"


def test_program() -> None:
    judged = item("program", "3*x+4", points=[[1, 7], [2, 10], [9, 31]])
    for text in ("3*x+4", " 4+x*3 ", "(x+1)*3+1", "<think> k=3 </think> 3*x+4"):
        assert lenient(judged, text).verdict == "right", text
    wrong = lenient(judged, "5*x+2")
    assert (wrong.verdict, wrong.reason) == ("wrong", "at x=2 it gives 12, not 10")
    # Right on the points that were shown, wrong on the hidden one.
    assert lenient(judged, "3*x+4+(x-1)*(x-2)").reason == "at x=9 it gives 87, not 31"
    for text in ("", "import os", "3*y", "x**2", "(" * 500, "__import__('os')"):
        assert lenient(judged, text).verdict == "no_answer", text
    assert lenient(judged, "*".join(["9999999"] * 9)).verdict == "wrong"
    assert lenient(item("program", "x"), "x").verdict == "no_verdict"


def test_strict_format_gates_the_answer() -> None:
    judged = item("number", "7")
    assert verify(judged, "<think> 3+4 </think> 7", strict_format=True).score == 1.0
    outside = verify(judged, "7", strict_format=True)
    assert (outside.score, outside.verdict) == (0.0, "no_answer")
    assert "<think>" in outside.reason
    # An answer in the chain is none; without the gate, text that never closes its chain is read as a whole.
    assert verify(judged, "<think> 7 </think> 8", strict_format=False).score == 0.0
    assert verify(judged, "<think> 7", strict_format=False).score == 1.0


def test_the_article_is_no_letter() -> None:
    cooking = ("A method of cooking", "iron", "gold", "I think so")
    assert lenient(item("choice", "B", cooking), "A method that uses iron").verdict == "right"
    assert lenient(item("choice", "A", cooking), "A method of cooking").verdict == "right"
    assert lenient(item("choice", "A", METALS), "A method of doing it").verdict == "no_answer"
    assert lenient(item("choice", "B", METALS), "The answer is A method: (B)").verdict == "right"
    for text in ("A is right", "The answer is A because of this", "A, since", "I would say A.", "I think (A)"):
        assert lenient(item("choice", "A", METALS), text).verdict == "right", text
    assert "U+0410 CYRILLIC" in lenient(item("choice", "A", METALS), "\u0410").reason


def test_a_row_of_letters_is_followed_once() -> None:
    choices = ["iron", "gold", "tin", "lead"]
    assert chosen_letters("A," * 50_000 + "C", choices) == {"A", "C"}  # many minutes, were it followed from each letter
    assert chosen_letters("A, B or D. Not C", choices) == {"A", "B", "D"}


def test_threads_keep_the_order_and_are_used_only_where_answers_wait() -> None:
    seen: set[int] = set()

    def judge(number: int) -> int:
        time.sleep(0.01 * (5 - number % 5))
        seen.add(threading.get_ident())
        return number

    assert in_threads(judge, [(number,) for number in range(20)], slow=True) == list(range(20))
    assert len(seen) > 1
    seen.clear()
    assert in_threads(judge, [(number,) for number in range(5)], slow=False) == list(range(5))
    assert seen == {threading.get_ident()}


def test_verifiers_that_there_are_not() -> None:
    with pytest.raises(DataError, match="'guess' does not exist; take one of number"):
        verify(item("guess", "7"), "7", strict_format=False)


ANYTHING = st.text() | st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "####",
            "7",
            "-",
            "$",
            ",",
            ".",
            "/",
            "0",
            "e9",
            "A",
            "(B)",
            "answer is ",
            "iron",
            "gold",
            "x",
            "*",
            "(",
            ")",
            "\u2212",
            "²",
            "٣",
            " ",
            "\n",
        ]
    )
).map("".join)


@given(ANYTHING, st.sampled_from(["number", "choice", "exact", "program"]), st.booleans())
def test_no_text_raises_and_verdict_and_score_agree(text: str, verifier: str, strict: bool) -> None:
    judged = item(verifier, "C" if verifier == "choice" else "7", METALS, points=[[1, 7]])
    verdict = verify(judged, text, strict_format=strict)
    assert verdict.score == {"right": 1.0, "wrong": 0.0, "no_answer": 0.0}[verdict.verdict]
    assert (verdict.reason == "") == (verdict.verdict == "right")
    # Any text as the item's own answer must not raise either.
    own = verify(item(verifier, text, METALS, points=[[1, 7]]), "7", strict_format=False)
    assert (own.score is None) == (own.verdict == "no_verdict")


def shared(name: str) -> list[dict[str, Any]]:
    file = Path(__file__).resolve().parents[2].parent / "shared" / "data" / name
    if not file.is_file():
        pytest.skip(f"no {file}: real data is not beside this checkout")
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_every_answer_of_gsm8k_is_read_and_is_right() -> None:
    rows = shared("math/gsm8k_train.jsonl.gz")
    assert len(rows) > 7000
    for row in rows:
        final = row["answer"].rpartition("####")[2].strip()
        judged = item("number", row["answer"])
        assert verify(judged, f"<think> {row['question']} </think> {final}.", strict_format=True).score == 1.0
        # Without commas, and as a sentence; and another number is wrong.
        assert lenient(judged, f"It is ${final.replace(',', '')}").score == 1.0
        assert lenient(judged, f"#### {float(final.replace(',', '')) + 1}").score == 0.0


def test_every_choice_of_arc_is_read_as_letter_and_as_text() -> None:
    rows = shared("science/arc_easy_test.jsonl")
    seen = 0
    for row in rows:
        choices = tuple(str(choice) for choice in row["choices"])
        if len({choice.casefold().strip(" .") for choice in choices}) < len(choices):
            continue
        for place, choice in enumerate(choices):
            letter = "ABCDE"[place]
            judged = item("choice", letter, choices)
            # A text of one letter is read as the letter, as it must be.
            texts = [letter, f"({letter})", f"Answer: {letter}", f"{letter}. {choice}"]
            if len(choice.strip(" .")) > 1:
                texts.append(choice)
            for text in texts:
                verdict = lenient(judged, text)
                assert verdict.score == 1.0, (choices, text, verdict)
            wrong = item("choice", "ABCDE"[(place + 1) % len(choices)], choices)
            assert all(lenient(wrong, text).score == 0.0 for text in texts)
            seen += 1
    assert seen > 5000
