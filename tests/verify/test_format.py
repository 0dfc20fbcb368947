"""The think format."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismlab.verify.format import answer_part, check_format

PIECES = st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "7", "a < b", "<think", "think>", ""]), max_size=8)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think> 1+1=2 </think> 2", "2"),
        ("<think></think>x", "x"),
        (" \n<think>a\nb</think>\n\n 3*x+4 \n", "3*x+4"),
    ],
)
def test_kept(response: str, answer: str) -> None:
    verdict = check_format(response)
    assert (verdict.ok, verdict.reason, verdict.answer) == (True, "", answer)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "<think> appears 0 times"),
        ("7", "<think> appears 0 times"),
        ("<think> a", "</think> appears 0 times"),
        ("a </think> 7", "<think> appears 0 times"),
        ("<think> a </think>", "nothing follows </think>"),
        ("<think> a </think> \n", "nothing follows </think>"),
        ("<think> a <think> b </think> 7", "<think> appears 2 times"),
        ("<think> a </think> 7 </think> 8", "</think> appears 2 times"),
        ("well <think> a </think> 7", "does not start with <think>"),
        ("</think> a <think> 7", "does not start with <think>"),
    ],
)
def test_broken(response: str, reason: str) -> None:
    verdict = check_format(response)
    assert not verdict.ok
    assert verdict.answer is None
    assert reason in verdict.reason


@given(PIECES.map("".join) | st.text())
def test_against_a_regular_expression(response: str) -> None:
    inner = r"((?!</?think>)[\s\S])*"
    wanted = re.fullmatch(rf"\s*<think>{inner}</think>({inner})", response)
    verdict = check_format(response)
    assert verdict.ok == (
        wanted is not None and wanted.group(2) is not None and response.partition("</think>")[2].strip() != ""
    )
    assert verdict.ok == (verdict.reason == "") == (verdict.answer is not None)
    if verdict.ok:
        assert verdict.answer == answer_part(response)


def test_answer_part() -> None:
    assert answer_part(" 7 ") == "7"
    assert answer_part("<think> 1 </think> 2 </think> 3") == "3"
    assert answer_part("<think> 1 </think>") == ""
