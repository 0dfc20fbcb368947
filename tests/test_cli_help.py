"""Every page of ``--help``: it fits a terminal of 80 columns, cuts no summary short and names no Python types."""

from __future__ import annotations

import re
import sys
from typing import Any, cast

import pytest
import typer.main

from prismlab.cli import app, main


def _pages() -> list[tuple[str, ...]]:
    """The words of every command and group, the program itself among them."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found.append(words)
        for name, one in cast("dict[str, Any]", getattr(command, "commands", {})).items():
            walk(one, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


PAGES = _pages()


def test_there_is_a_page_for_every_command() -> None:
    assert {("run",), ("data",), ("data", "build"), ("sandbox", "check"), ("eval",)} <= set(PAGES)
    assert len(PAGES) > 25


@pytest.mark.parametrize("words", PAGES, ids=lambda words: " ".join(words) or "prism")
def test_a_page_of_help_reads_well(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["prism", *words, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert [line for line in page.splitlines() if len(line) > 80] == []
    assert re.findall(r"<(?:int|float|str|list)\b[^>]*>", page.partition("Options:")[2]) == [], "a name, not a type"
    assert not re.search(r"\[\[|\]\]", page), "brackets around brackets"
    assert [line for line in page.partition("Commands:")[2].splitlines() if line.endswith("...")] == []
    if words not in ((), ("data",), ("sandbox",)):
        assert re.search(r"^  Examples?:  prism ", page, re.MULTILINE), "an example"
