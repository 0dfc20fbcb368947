from __future__ import annotations

import json
import pickle
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismlab.data import grams as grams_module
from prismlab.data import words
from prismlab.data.decontaminate import Decontaminator
from prismlab.data.evidence import Hit, tally
from prismlab.data.items import Item, all_items
from prismlab.errors import SpecError
from prismlab.study.spec import TaskSpec

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data files are not beside the repository")
VOCABULARY = [a + b + c for a in "bdfgklmnprst" for b in ("a", "e", "i", "ou") for c in ("lin", "ter", "", "mon", "sk")]


def item(question: str, answer: str = "17", name: str = "one", choices: tuple[str, ...] | None = None) -> Item:
    return Item(id=name, task="t", domain="math", question=question, answer=answer, verifier="number", choices=choices)


def sentence(rng: random.Random, length: int, numbers: int = 0) -> str:
    found = rng.choices(VOCABULARY, k=length)
    for at in rng.sample(range(1, length - 1), numbers):
        found[at] = str(rng.randint(2, 99_999))
    return " ".join(found).capitalize() + "."


def prose(rng: random.Random, words_: int) -> str:
    return " ".join(sentence(rng, rng.randint(6, 20)) for _ in range(words_ // 13))


def made_items(rng: random.Random, count: int = 200) -> list[Item]:
    """Questions of 8 to 70 words, half of them of two sentences, with two or more numbers."""
    out: list[Item] = []
    for at in range(count):
        length = rng.choice([8, 9, 12, 13, 14, 20, 40, 70])
        text = sentence(rng, length, numbers=2 if length < 13 else length // 6)
        if at % 2:
            text = f"{text[:-1]}, if {rng.choice(VOCABULARY)}'s well-{rng.choice(VOCABULARY)} {sentence(rng, 6)[:-1]}?"
        out.append(item(text, str(rng.randint(1, 999)), f"q{at}"))
    return out


def upper(text: str, rng: random.Random) -> str:
    return text.upper()


def spread(text: str, rng: random.Random) -> str:
    return "".join(rng.choice(["  ", "\n", "\t", "\r\n", "\u00a0", " \u2009"]) if c == " " else c for c in text)


def bare(text: str, rng: random.Random) -> str:
    return "".join(c for c in text if c.isalnum() or c.isspace())


def spaced(text: str, rng: random.Random) -> str:
    return "".join(c if c.isalnum() else " " for c in text)


def other_marks(text: str, rng: random.Random) -> str:
    return text.translate(str.maketrans({"'": "’", "-": "‑", ",": " ;", ".": " …", "?": "？！", '"': "“"}))


def wide(text: str, rng: random.Random) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and rng.random() < 0.3 else c for c in text)


def decomposed(text: str, rng: random.Random) -> str:
    return unicodedata.normalize("NFD", "".join(c + "\u0301" if c in "aeo" and rng.random() < 0.2 else c for c in text))


def look_alike(text: str, rng: random.Random) -> str:
    table = str.maketrans("aeopcxAEOTB", "аеорсхΑΕΟΤΒ")
    return "".join(c.translate(table) if rng.random() < 0.5 else c for c in text)


def hidden(text: str, rng: random.Random) -> str:
    return "".join(c + rng.choice(["", "", "", "\u200b", "\u00ad", "\ufeff"]) for c in text)


CHANGES: list[Callable[[str, random.Random], str]] = [
    *(upper, spread, bare, spaced, other_marks, wide, decomposed, look_alike, hidden)
]


def other_numbers(text: str) -> str:
    return re.sub(r"\d+", lambda found: str(int(found[0]) * 3 + 11), text)


def planted(items: list[Item], change: Callable[[str], str], rng: random.Random) -> list[str]:
    return [f"{prose(rng, 120)}\n\n{change(one.stem)}\n{prose(rng, 80)}" for one in items]


def recall(finder: Decontaminator, items: list[Item], documents: list[str], wanted: Callable[[Hit], bool]) -> float:
    found = finder.find_many(documents)
    hits = [any(wanted(hit) and hit.item == one.id for hit in held) for one, held in zip(items, found, strict=True)]
    return sum(hits) / len(hits)


@pytest.fixture(scope="module")
def made() -> tuple[list[Item], Decontaminator]:
    items = made_items(random.Random(7))
    return items, Decontaminator(items)


def test_every_planted_item_is_found_verbatim(made: tuple[list[Item], Decontaminator]) -> None:
    items, finder = made
    documents = planted(items, lambda text: text, random.Random(1))
    assert recall(finder, items, documents, lambda hit: hit.counts and hit.share == 1.0) == 1.0
    for one, document, hits in zip(items, documents, finder.find_many(documents), strict=True):
        hit = next(hit for hit in hits if hit.item == one.id)
        assert document[hit.start : hit.stop] == hit.text == one.stem.strip(".?") == hit.item_text
        assert all(hit.item == one.id for hit in hits), "and no other item in it"


@pytest.mark.parametrize("change", CHANGES)
def test_planted_items_are_found_in_another_dress(
    change: Callable[[str, random.Random], str], made: tuple[list[Item], Decontaminator]
) -> None:
    items, finder = made
    rng = random.Random(2)
    documents = planted(items, lambda text: change(text, rng), rng)
    assert recall(finder, items, documents, lambda hit: hit.counts) >= 0.99


def test_other_numbers_make_a_near_duplicate(made: tuple[list[Item], Decontaminator]) -> None:
    items, finder = made
    telling = [one for one in items if len(re.findall(r"[a-z]+", one.stem)) >= 8]
    assert len(telling) > 150
    documents = planted(telling, other_numbers, random.Random(3))
    assert recall(finder, telling, documents, lambda hit: hit.kind == "near-duplicate") == 1.0
    near = [hit for held in finder.find_many(documents) for hit in held]
    assert not any(hit.counts for hit in near)
    assert all(one != other for hit in near for one, other in hit.numbers)


def test_clean_text_has_nothing_of_them(made: tuple[list[Item], Decontaminator]) -> None:
    rng = random.Random(4)
    report = made[1].scan(prose(rng, 400) for _ in range(100))
    assert report.counts == {"exact": 0, "near-duplicate": 0, "answer-key": 0, "aside": 0, "clean": 100}
    assert report.documents == 100
    assert report.characters > 100_000


def shared_items() -> list[Item]:
    """200 real items: of GSM8K, HumanEval and ARC."""
    fields: dict[str, Any] = {"question": "query", "answer": "gold", "choices": "choices"}
    asked = {
        "math/gsm8k_test.jsonl": ("number", {"question": "question", "answer": "answer"}, 80),
        "code/humaneval.jsonl.gz": ("tests", {"question": "prompt", "answer": "canonical_solution"}, 40),
        "science/arc_challenge_test.jsonl": ("choice", fields, 80),
    }
    out: list[Item] = []
    for name, (verifier, names, count) in asked.items():
        spec = TaskSpec.model_validate({"files": [name], "domain": "math", "verifier": verifier, "fields": names})
        found = all_items(name, spec.model_dump(mode="json", by_alias=True), {}, [SHARED / name], 0)
        out += random.Random(5).sample([one for one in found if len(words.words_of(one.stem)) >= 8], count)
    return out


@needs_shared
def test_200_real_items_verbatim_changed_and_with_other_numbers() -> None:
    items, rng = shared_items(), random.Random(6)
    finder = Decontaminator(items)
    assert recall(finder, items, planted(items, lambda text: text, rng), lambda hit: hit.counts) == 1.0
    found = [
        recall(finder, items, planted(items, lambda text, c=change: c(text, rng), rng), lambda hit: hit.counts)
        for change in CHANGES
    ]
    assert min(found) >= 0.99
    math = [one for one in items if one.task.startswith("math") and len(re.findall(r"\d+", one.stem)) > 1]
    near = planted(math, other_numbers, rng)
    assert recall(finder, math, near, lambda hit: hit.kind == "near-duplicate") >= 0.99


def test_numpy_alone_finds_the_same(made: tuple[list[Item], Decontaminator], monkeypatch: pytest.MonkeyPatch) -> None:
    items, finder = made
    documents = planted(items[:40], lambda text: text, random.Random(8)) + planted(
        items[:40], other_numbers, random.Random(9)
    )
    wanted = finder.find_many(documents)
    assert sum(map(len, wanted)) >= 60
    monkeypatch.setattr(words, "compiled", lambda: None)
    monkeypatch.setattr(grams_module, "compiled", lambda: None)
    assert Decontaminator(items).find_many(documents) == wanted


def test_clashes_of_hashes_raise_no_alarm(made: tuple[list[Item], Decontaminator]) -> None:
    items, finder = made
    documents = [*planted(items[:20], lambda text: text, random.Random(10)), prose(random.Random(11), 1000)]
    weak = Decontaminator(items, key_bits=17)
    batch = grams_module.Batch(documents)
    by_hash = weak.views.exact.find(batch.words.hashes, 4)
    true = finder.views.exact.find(batch.words.hashes, 4)
    assert len(by_hash.places) > len(true.places) + 100, "they clash indeed"

    def told(found: list[list[Hit]]) -> list[list[tuple[Any, ...]]]:
        return [[(hit.kind, hit.item, hit.share, hit.start, hit.stop) for hit in held] for held in found]

    assert told(weak.find_many(documents)) == told(finder.find_many(documents))


def test_threads_batches_and_pickle_change_nothing(made: tuple[list[Item], Decontaminator]) -> None:
    items, finder = made
    documents = planted(items[:60], lambda text: text, random.Random(12)) * 2 + [prose(random.Random(1), 2**18)]
    one = finder.scan(documents)
    assert one == finder.scan(iter(documents), threads=3)
    assert one == pickle.loads(pickle.dumps(finder)).scan(documents)
    assert one.hits == dict(enumerate(map(finder.find, documents[:-1])))
    assert finder.find_many([]) == []
    assert finder.find_many(["", " \x1f "]) == [[], []]


def test_what_reaches_over_two_documents_is_no_hit() -> None:
    text = "the quick grey heron crossed seven muddy rivers before it found the oldest nest of all"
    finder = Decontaminator([item(text)])
    assert finder.find(text)[0].counts
    low, high = text[:40], text[40:]
    assert finder.find_many([low, high]) == [[], []]
    assert finder.find(f"{low}\x1f{high}")[0].counts, "a control character in a text only parts words"


def test_a_short_question_needs_its_answer() -> None:
    choices = ("wool", "copper wire that carries current", "glass", "dry pine wood")
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=True))
    short = item(f"Question: Which conducts best?\nAnswer:\n{lines}", "B", choices=choices)
    assert (short.stem, short.right) == ("Which conducts best?", choices[1])
    finder = Decontaminator([short])
    assert not finder.find("They asked: which conducts best? Nobody knew what to say about it at all.")
    assert finder.find("Which conducts best? Copper wire that carries current, of course.")[0].counts
    assert finder.find(
        "Which conducts best?  (A) wool (B) copper wire that carries current (C) glass (D) dry pine wood"
    )
    assert not finder.not_searched
    assert Decontaminator([short, item("2 + 2?", "4", "sum")]).not_searched[0].id == "sum"


def test_a_short_question_is_found_as_it_is_shown_and_by_no_choices_alone() -> None:
    choices = ("sand that rivers carry", "humus of fallen leaves", "clay under the meadow", "iron from a mine")
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=True))
    short = item(f"Question: The finest soils hold\nAnswer:\n{lines}", "C", choices=choices)
    finder = Decontaminator([short])
    assert any(hit.counts and hit.part == "question" for hit in finder.find(f"Here: {short.question} And so on."))
    assert {hit.part for hit in finder.find(f"What do farmers like?\n{lines}")} == {"choices"}


def test_verbatim_items_that_repeat_themselves_are_copies_and_no_near_duplicates() -> None:
    """Template words line up with themselves a line further on, where the numbers are others."""
    calls = "\n".join(f"is_sorted({list(range(1, at))}) gives {at % 2 == 0}" for at in range(2, 9))
    code = item(f"def is_sorted(lst): tells whether the list is in ascending order\n{calls}", name="code")
    sums = item("Which expression shows prime factors?", "B", "sums", ("2 9 11", "2 5 7 3", "1 11 13", "2 2 2 3 11"))
    finder = Decontaminator([code, sums])
    for one in (code, sums):
        shown = one.stem if one.choices is None else f"{one.stem}\n{one.texts()['choices'][0]}"
        (hit,) = [hit for hit in finder.find(f"Some page.\n{shown}\nAnd more.") if hit.part == "question"]
        assert (hit.item, hit.kind, hit.counts, hit.numbers) == (one.id, "exact", True, ())
    changed = finder.find(other_numbers(code.stem))
    assert [hit.kind for hit in changed if hit.part == "question"] == ["near-duplicate"]


def test_a_short_question_that_items_share_needs_what_follows() -> None:
    stem = "Which of the following statements is surely true here?"
    items = [item(stem, "the moon circles the earth each month", "a"), item(stem, "no fish can breathe dry air", "b")]
    finder = Decontaminator(items)
    assert not finder.find(f"A page. {stem} We do not say.")
    assert [hit.item for hit in finder.find(f"{stem} No fish can breathe dry air.")] == ["b"]


def test_a_phrase_of_many_items_and_a_small_part_are_put_aside() -> None:
    rng = random.Random(13)
    phrase = "use the information in the table below to answer the question that follows it"
    items = [item(f"{phrase} {sentence(rng, 20)}", name=f"q{at}") for at in range(5)]
    finder = Decontaminator(items)
    hits = finder.find(f"Please {phrase} now.")
    assert {hit.aside for hit in hits} == {"common"}
    assert len(hits) == 5
    assert not any(hit.counts for hit in hits)
    long = item(sentence(rng, 60), name="long")
    part = " ".join(long.question.split()[10:25])
    hit = Decontaminator([long]).find(f"{prose(rng, 50)} {part} {prose(rng, 50)}")[0]
    assert (hit.aside, hit.words, hit.counts) == ("part", 15, False)
    half = " ".join(long.question.split()[10:45])
    assert Decontaminator([long]).find(half)[0].counts


def test_lists_of_numbers_tell_nothing() -> None:
    numbers = item("Count: one 1, two 2, three 3, four 4, five 5, six 6, seven 7, eight 8, nine 9, ten 10")
    assert (
        Decontaminator([numbers, item("a " * 20 + "real question stands here with enough words to be found")]).find(
            "one 1, two 2, three 3, four 4, five 5, six 6, seven 7, eight 8, nine 9, ten 10"
        )
        == []
    )


def test_the_solution_alone_is_found_with_or_without_its_notes() -> None:
    answer = (
        "He walks 15/3=<<15/3=5>>5 hours each day of the week.\nThen he rests for twice as long, so he is away for "
        "5*3=<<5*3=15>>15 hours before supper.\n#### 15"
    )
    finder = Decontaminator([item("A short one?", answer)])
    for text in (answer, re.sub(r"<<.*?>>", "", answer)):
        hit = finder.find(f"Some page. {text}")[0]
        assert (hit.part, hit.counts, hit.share) == ("answer", True, 1.0)


def test_what_is_allowed_is_put_aside(made: tuple[list[Item], Decontaminator]) -> None:
    items = made[0]
    text = f"Intro. {items[7].stem} {items[8].stem} Outro."
    for allow in ([items[7].id], [f"t/{items[7].id}"], [f"It says: {items[7].stem.upper()} - and so on"]):
        hits = {hit.item: hit for hit in Decontaminator(items, allow=allow).find(text)}
        assert (hits[items[7].id].aside, hits[items[7].id].counts) == ("allowed", False)
        assert hits[items[8].id].counts


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Q17: B; Q18: D", ["Q17: B; Q18: D"]),
        ("Answers\n1. C\n2. A\n3. D\n4. B\n5. E", ["1. C\n2. A\n3. D\n4. B\n5. E"]),
        ("Question 3 - A, Question 4 - C", ["Question 3 - A, Question 4 - C"]),
        ("1. C\n2. A\n3. D", []),
        ("Q17: B; Q19: D", []),
        ("1. A dog barks.\n2. A cat sleeps.\n3. A cow eats.\n4. A hen lays.", []),
        ("Section 1: Data\nSection 2: Cases", []),
    ],
)
def test_answer_keys_are_listed_and_drop_nothing(text: str, wanted: list[str]) -> None:
    finder = Decontaminator([item("one question of quite enough words to be searched for")])
    document = f"Some words before it.\n{text}\nand some behind."
    hits = finder.find(document)
    assert [hit.text for hit in hits] == wanted
    assert all(hit.kind == "answer-key" and not hit.counts for hit in hits)
    assert [document[hit.start : hit.stop] for hit in hits] == wanted


@needs_shared
def test_the_hostile_samples_are_found() -> None:
    rows = map(json.loads, (SHARED / "hostile" / "sample.jsonl").read_text(encoding="utf-8").splitlines())
    keys = [row["payload"] for row in rows if row["name"] == "contamination_answer_only"]
    finder = Decontaminator(shared_items())
    assert keys
    assert [hit.kind for hit in finder.find(f"<html>{keys[0]}</html>")] == ["answer-key"]


def test_documents_are_told_by_the_strongest_thing_in_them(made: tuple[list[Item], Decontaminator]) -> None:
    items, finder = made
    long = next(one for one in items if len(one.stem.split()) > 30)
    documents = [long.stem, other_numbers(long.stem), f"{long.stem} Q1: A, Q2: B", "Q1: A, Q2: B", "nothing"]
    counts = tally(finder.find_many(documents))
    assert counts == {"exact": 2, "near-duplicate": 1, "answer-key": 1, "aside": 0, "clean": 1}
    found = finder.find(long.stem)[0].to_json()
    assert json.loads(json.dumps(found))["counts"] is True


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(SpecError, match="n is 7"):
        Decontaminator([item("words")], n=7)
    with pytest.raises(SpecError, match="no item"):
        Decontaminator([])
