"""Verifier ``instructions``: does a response follow instructions that a rule can check? The kinds are IFEval's.

IFEval (Zhou et al. 2023, arXiv 2311.07911) names an instruction by its kind and a few arguments. The rules here are
those of its strict score, but for three: sentences are told by a rule of ours (the original asks a trained splitter),
"in English" is not looked at where capitals or small letters are asked for, and keywords are texts, no patterns. The
language of a response cannot be told by rule: prompts that ask for one are not scorable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Arguments = Mapping[str, Any]
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SHORT = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|Inc|Ltd|Co|No|[A-Z])\.$")
_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")


def sentences(text: str) -> int:
    """Sentences of a text: what ends in ``.``, ``!`` or ``?`` before white space, but for short forms and initials, and
    what is left at the end.
    """
    count, since = 0, 0
    for end in _END.finditer(text):
        part = text[since : end.end()]
        if end[0] == "." and (_SHORT.search(part) or re.fullmatch(r"\s*\d+\.", part.rpartition("\n")[2])):
            continue
        count += bool(re.search(r"\w", part))
        since = end.end()
    return count + bool(re.search(r"\w", text[since:]))


def _related(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _highlights(text: str) -> int:
    """``*such*`` and ``**such**`` parts with text in them."""
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in found)


def _bullets(text: str) -> int:
    """Lines that begin with ``-``, or with ``*`` and no second one."""
    lines = [line.lstrip() for line in text.split("\n")]
    return sum(line.startswith("-") or (line.startswith("*") and line[1:2] not in ("", "*")) for line in lines)


def _filled(parts: Sequence[str]) -> list[str] | None:
    """Parts with text; None where one within, neither first nor last, has none."""
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part.strip() for part in parts if part.strip()]


def _paragraphs(text: str, wanted: int) -> bool:
    found = _filled(re.split(r"\s?\*\*\*\s?", text))
    return found is not None and len(found) == wanted


def _two(text: str) -> bool:
    found = _filled(text.split("******"))
    return found is not None and len(found) == 2 and found[0] != found[1]


def _nth(text: str, a: Arguments) -> bool:
    """Paragraphs parted by an empty line: as many as asked for, and the n-th begins with a word."""
    parts, nth = text.split("\n\n"), int(a["nth_paragraph"])
    count = sum(bool(part.strip()) for part in parts)
    if nth > count or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    return count == int(a["num_paragraphs"]) and re.split(r"[.,?!'\"]", word)[0].lower() == str(a["first_word"]).lower()


def _json(text: str) -> bool:
    inner = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```").strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _postscript(text: str, marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker.strip(), re.escape(marker.strip().lower())), text.lower()) is not None


def _title(text: str) -> bool:
    return any(part.lstrip("<").rstrip(">").strip() for part in re.findall(r"<<[^\n]+>>", text))


def _quoted(text: str) -> bool:
    return len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


def _whole_word(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


CHECKS: Mapping[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda t, a: all(word.lower() in t.lower() for word in a["keywords"]),
    "keywords:forbidden_words": lambda t, a: not any(_whole_word(word, t) for word in a["forbidden_words"]),
    "keywords:frequency": lambda t, a: _related(
        t.lower().count(a["keyword"].strip().lower()), a["relation"], a["frequency"]
    ),
    "keywords:letter_frequency": lambda t, a: _related(
        t.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"]
    ),
    "length_constraints:number_words": lambda t, a: _related(len(re.findall(r"\w+", t)), a["relation"], a["num_words"]),
    "length_constraints:number_sentences": lambda t, a: _related(sentences(t), a["relation"], a["num_sentences"]),
    "length_constraints:number_paragraphs": lambda t, a: _paragraphs(t, a["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _nth,
    "detectable_content:number_placeholders": lambda t, a: len(re.findall(r"\[.*?\]", t)) >= a["num_placeholders"],
    "detectable_content:postscript": lambda t, a: _postscript(t, a["postscript_marker"]),
    "detectable_format:number_bullet_lists": lambda t, a: _bullets(t) == a["num_bullets"],
    "detectable_format:constrained_response": lambda t, a: any(option in t for option in OPTIONS),
    "detectable_format:number_highlighted_sections": lambda t, a: _highlights(t) >= a["num_highlights"],
    "detectable_format:multiple_sections": lambda t, a: (
        len(re.findall(re.escape(a["section_spliter"].strip()) + r"\s?\d+", t)) >= a["num_sections"]
    ),
    "detectable_format:json_format": lambda t, a: _json(t),
    "detectable_format:title": lambda t, a: _title(t),
    "combination:two_responses": lambda t, a: _two(t),
    "combination:repeat_prompt": lambda t, a: t.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": lambda t, a: t.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": lambda t, a: _quoted(t),
    "change_case:capital_word_frequency": lambda t, a: _related(
        sum(word.isupper() for word in _WORD.findall(t)), a["capital_relation"], a["capital_frequency"]
    ),
    "change_case:english_capital": lambda t, a: t.isupper(),
    "change_case:english_lowercase": lambda t, a: t.islower(),
    "punctuation:no_comma": lambda t, a: "," not in t,
}
"""Checks of a response (first argument) by kind of instruction; arguments are called as IFEval calls them."""


def read_instructions(answer: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Instructions of an item's answer, ``[[kind, arguments], ...]`` as JSON; None where that is no such list."""
    try:
        found = [(str(kind), dict(arguments)) for kind, arguments in json.loads(answer)]
    except (ValueError, TypeError, RecursionError):
        return None
    return found if found and all(kind in CHECKS for kind, _ in found) else None


def followed(instructions: Sequence[tuple[str, Arguments]], response: str) -> list[bool]:
    """Which instructions a response follows; an empty one follows none.

    Raises:
        KeyError: an instruction lacks an argument, or its kind is unknown.
    """
    return [bool(response.strip()) and CHECKS[kind](response, arguments) for kind, arguments in instructions]
