"""IFEval's instructions by our rules: known cases, the harness's own checkers, the real prompts, and scores of rows."""

from __future__ import annotations

import importlib
import json
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prismlab.errors import DataError
from prismlab.evaluate.ifeval import instruction_scores, read_prompts
from prismlab.evaluate.suites import SUITES
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.score import read_rows
from prismlab.tools.evaluate import Place, Wish, evaluate, summary_tables
from prismlab.verify.answers import verify
from prismlab.verify.instructions import CHECKS, followed, sentences

(BENCHMARK,) = (one for one in SUITES["retention"].benchmarks if one.name == "ifeval")
PROMPTS = Path(__file__).parents[2] / ".." / "shared" / "data" / "retention" / "ifeval_prompts.jsonl"
needs_data = pytest.mark.skipif(not PROMPTS.is_file(), reason="the real prompts (../shared/data) are not here")

KNOWN: list[tuple[str, dict[str, Any], str, str]] = [
    ("punctuation:no_comma", {}, "One two.", "One, two."),
    ("keywords:existence", {"keywords": ["sun", "moon"]}, "Sunny moon", "Sunny"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocks", "Rock on"),
    ("keywords:frequency", {"keyword": "a", "relation": "less than", "frequency": 2}, "a b", "a a"),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "at least", "let_frequency": 2}, "# #", "#"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two-"),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}, "I am. Dr. No is.",
     "A. b. c! d?"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a *** *** b"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "We"},
     "a\n\nwe, b", "we\n\na"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a] b"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "x\np. p. s y", "P.S. y"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, " My answer is maybe. ", "maybe"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 a Day2", "Day 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<a b>>", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, " say IT then", "then say it"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'so "the end."', "The end. Or not"),
    ("startend:quotation", {}, ' "so" ', '"so'),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "A B-C d", "AB c"),
    ("change_case:english_capital", {}, "ALL OF IT 1", "All"),
    ("change_case:english_lowercase", {}, "all of it", "All"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), KNOWN, ids=[one[0] for one in KNOWN])
def test_known_cases(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert followed([(kind, arguments)], good) == [True]
    assert followed([(kind, arguments)], bad) == [False]
    assert followed([(kind, arguments)], " \n") == [False], "an empty response follows nothing"


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, *_ in KNOWN} == set(CHECKS)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("Mr. A. Smith paid 3.50 dollars, e.g. in cash. He left...", 2),
        ('He said "Go." Then he left.', 2),
        ("1. First thing.\n2. Second thing.", 2),
        ("What?! No way!!! Yes", 3),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """The harness's checkers. What they need besides is not at hand: any language is English, and nltk splits words."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    nltk = pytest.importorskip("nltk", reason="nltk is not installed")
    from nltk.tokenize import NLTKWordTokenizer

    with pytest.MonkeyPatch.context() as patch:
        detect = types.ModuleType("langdetect")
        detect.detect = lambda text: "en"  # type: ignore[attr-defined]
        detect.LangDetectException = ValueError  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "langdetect", detect)
        frozen = types.ModuleType("immutabledict")
        frozen.immutabledict = dict  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "immutabledict", frozen)
        patch.setattr(nltk.data, "find", lambda name, *more: name)
        patch.setattr(nltk, "word_tokenize", NLTKWordTokenizer().tokenize)
        yield importlib.import_module("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT


def responses(prompt: str, arguments: dict[str, Any], seed: int) -> list[str]:
    """Made responses: parts that instructions speak of, put together at random, so that both outcomes occur."""
    draw = random.Random(seed)
    words = [str(value) for value in arguments.values() if isinstance(value, str)]
    for value in arguments.values():
        words += [str(one) for one in value] if isinstance(value, list) else []
    parts = [
        *words, "one two three", "ALL CAPS WORDS HERE", "a, b", "* point", "- point", "** bold **", "*high*", "**low**",
        "[name]", "<<title>>", "P.S. more", "P.P.S more", "***", "******", "\n", "\n\n", "\n\n", prompt,
        "My answer is yes.", "Section 1", "SECTION 2", "PARAGRAPH 3", "word " * 60, "e e e e a a", '{"k": [1]}',
    ]  # fmt: skip
    made = [
        "", '"' + "quoted" + '"', '```json\n{"a": 1}\n```', "a\n***\nb", "ALL UPPER", "all lower", "x ****** y",
        prompt.lower() + " then", "* a\n* b\n* c", "- a\n- b",
    ]  # fmt: skip
    for _ in range(20):
        glue = draw.choice([" ", "\n", "\n\n"])
        text = glue.join(draw.choices(parts, k=draw.randint(1, 14)))
        made.append(draw.choice([str.lower, str.upper, str])(text) if draw.random() < 0.4 else text)
    return made


@needs_data
def test_the_harness_s_own_checkers_agree_on_the_real_prompts(theirs: Any) -> None:
    """Every scorable instruction of the 541 prompts, 30 made responses each; sentences are a rule of our own."""
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    seen: dict[str, set[bool]] = {}
    wrong: list[tuple[str, Any, str]] = []
    for number, row in enumerate(rows):
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            given = {key: value for key, value in arguments.items() if value}
            # The harness takes another letter at random where the item's is none of a to z.
            odd = kind == "keywords:letter_frequency" and not given["letter"].lower().isalpha()
            if kind not in CHECKS or kind == "length_constraints:number_sentences" or odd:
                continue
            checker = theirs[kind](kind)
            checker.build_description(**given)
            for text in responses(row["prompt"], given, number):
                if (
                    kind == "change_case:capital_word_frequency"
                    and not text.replace("\n", " ").replace(" ", "").isalpha()
                ):
                    continue  # its words are those of a tokenizer that parts signs in another way
                mine = followed([(kind, arguments)], text)[0]
                seen.setdefault(kind, set()).add(mine)
                if mine != bool(text.strip() and checker.check_following(text)):
                    wrong.append((kind, given, text))
    assert not wrong, f"{len(wrong)}, the first: {wrong[0]}"
    assert len(seen) == len(CHECKS) - 1
    one_sided = {kind for kind, both in seen.items() if len(both) < 2}
    assert one_sided <= {"combination:two_responses"}, f"never both followed and not: {one_sided}"


@needs_data
def test_real_prompts_are_read_and_those_of_a_language_are_left_out() -> None:
    items, aside = read_prompts(BENCHMARK, PROMPTS)
    assert aside == {"language:response_language": 31}
    assert len(items) == 541 - 31
    assert len({item.id for item in items}) == len(items)
    first = items[0]
    assert first.id == "1000"
    good = "*a* *b* *c* " + "word " * 300
    assert verify(first, good, False).score == 1.0
    told = verify(first, f"{good},", False)
    assert (told.score, told.reason) == (0.0, "not followed: punctuation:no_comma")
    assert verify(first, f"a, b <think></think>{good}", False).score == 1.0, "what follows the thinking is judged"
    assert verify(first, "", False).verdict == "no_answer"


def prompts(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_the_hub_have_every_argument(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "Go", "instruction_id_list": ["punctuation:no_comma", "keywords:existence"]}
    full = {"keywords": None, "num_words": None, "relation": None}
    file = prompts(tmp_path / "x.jsonl", [{**row, "kwargs": [full, {**full, "keywords": ["sun"]}]}])
    ((item,), aside) = read_prompts(BENCHMARK, file)
    assert (aside, json.loads(item.answer)) == ({}, [["punctuation:no_comma", {}], ["keywords:existence", {"keywords": ["sun"]}]])  # fmt: skip  # noqa: E501
    for kwargs, message in (([full], "as many 'kwargs'"), ([full, full], "arguments of .* are missing or wrong")):
        with pytest.raises(DataError, match=message):
            read_prompts(BENCHMARK, prompts(tmp_path / "y.jsonl", [{**row, "kwargs": kwargs}]))
    with pytest.raises(DataError, match="no prompt whose instructions"):
        read_prompts(BENCHMARK, prompts(tmp_path / "z.jsonl", [{**row, "instruction_id_list": ["new:kind"], "kwargs": [{}]}]))  # fmt: skip  # noqa: E501


def test_instructions_are_counted_from_the_rows() -> None:
    answer = json.dumps([["punctuation:no_comma", {}], ["startend:quotation", {}]])
    said = ['"a"', '"a, b"', "a", "a, b"]
    rows = [
        {"task": "ifeval", "item_id": str(k), "problem": str(k), "answer": answer, "response": text, "finished": True}
        for k, text in enumerate(said)
    ]
    found = instruction_scores(rows)
    assert found["all"]["value"] == pytest.approx(50.0)
    assert (found["all"]["items"], found["all"]["samples"]) == (4, 8)
    assert found["kinds"] == {
        "punctuation:no_comma": {"followed": 2, "of": 4},
        "startend:quotation": {"followed": 2, "of": 4},
    }


def test_in_the_suite_by_prompt_and_by_instruction(tmp_path: Path) -> None:
    """From the command's function to its notes: what no rule can judge is not asked, and said."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, data = tmp_path / "m", tmp_path / "data"
    save_checkpoint(build_model(tiny_config("llama", 32, 2, 258), 0), build_byte_tokenizer(), folder)
    data.mkdir()
    row = {
        "prompt": "Go on.",
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
    }
    spoken = {"prompt": "Va.", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "it"}]}
    prompts(data / "ifeval_prompts.jsonl", [{"key": k, **row} for k in range(3)] + [{"key": 3, **spoken}])
    place = Place(source=data, out=tmp_path / "out")
    record = evaluate(str(folder), "retention", Wish(benchmarks=("ifeval",), max_new_tokens=8), place, as_json=True)
    torch.set_num_threads(threads)
    rows = read_rows(tmp_path / "out" / "samples.parquet")
    assert [len(rows), record["metrics"]["tasks"]["ifeval"]["samples"]] == [3, 3]
    assert record["config"]["benchmarks"]["ifeval"]["not_scorable"] == {"language:response_language": 1}
    met = [one for r in rows for one in followed(json.loads(r["answer"]), r["response"])]
    told = record["metrics"]["instructions"]["ifeval"]["all"]
    assert told["value"] == pytest.approx(100 * sum(met) / 6)
    assert told["lo"] < told["value"] < told["hi"] or told["value"] in (0.0, 100.0)
    _, notes = summary_tables(record["metrics"], record["config"], SUITES["retention"])
    assert "ifeval: 1 items are not asked, no rule can judge them (language:response_language)." in notes
    assert any(note.startswith(f"ifeval: of single instructions {told['value']:.2f}") for note in notes)
