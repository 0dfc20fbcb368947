from __future__ import annotations

import pytest

from prismlab.data.templates import get_template
from prismlab.errors import DataError, SpecError


def test_forms() -> None:
    think = get_template("think")
    assert think.prompt("1+1?") == "1+1?\n"
    assert think.worked("1+1?", "1 and 1", "2") == "1+1?\n<think> 1 and 1 </think> 2"
    assert think.direct("1+1?", "2") == "1+1?\n2"
    assert think.worked("q", "c", "a").startswith(think.prompt("q"))
    assert think.direct("q", "a").startswith(think.prompt("q"))


def test_chat() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "prompter", "content": " Hi\n"},
        {"role": "Assistant", "content": "Hello", "extra": 1},
    ]
    assert get_template("think").chat(messages) == "System: Be kind.\nUser: Hi\nAssistant: Hello"
    with pytest.raises(DataError, match="role 'tool'"):
        get_template("think").chat([{"role": "tool", "content": "x"}])


def test_unknown_template() -> None:
    with pytest.raises(SpecError, match="'thinks' is not known; there are think"):
        get_template("thinks")
