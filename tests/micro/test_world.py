from __future__ import annotations

import re
import time
from collections import Counter
from itertools import islice, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.errors import DataError
from prismlab.micro import world
from prismlab.micro.program import agrees
from prismlab.micro.world import (
    ELEMENTS,
    Question,
    addition_chain,
    check_disjoint,
    fact_documents,
    questions,
    task_questions,
)
from prismlab.study.world import MicroSpec

SMALL = MicroSpec(math_min_digits=1, math_max_digits=1, code_k=4, code_m=4, science_elements=8, science_choices=3)
PROTONS = {symbol: at + 1 for at, (symbol, _) in enumerate(ELEMENTS)}


def solve(domain: str, text: str) -> tuple[str, str]:
    """Key and answer, worked out from the text of a question alone."""
    if domain == "math":
        a, b = map(int, re.findall(r"\d+", text))
        return "+".join(map(str, sorted((a, b)))), str(a + b)
    if domain == "code":
        (x1, y1), (x2, y2), (x3, y3) = (map(int, p) for p in re.findall(r"f\((\d+)\)=(\d+)", text))
        k, remainder = divmod(y2 - y1, x2 - x1)
        assert remainder == 0
        assert k * x3 + y1 - k * x1 == y3
        return f"{k}*x+{y1 - k * x1}", f"{k}*x+{y1 - k * x1}"
    pairs = re.findall(r"([A-E]) ([A-Z][a-z]?)", text.removeprefix("Most protons? "))
    return " ".join(sorted(symbol for _, symbol in pairs)), max(pairs, key=lambda pair: PROTONS[pair[1]])[0]


@pytest.mark.parametrize("domain", world.TASK_DOMAINS)
@pytest.mark.parametrize("spec", [MicroSpec(), SMALL, MicroSpec(science_elements=118, science_choices=5)])
def test_questions_are_right_short_and_distinct(domain: str, spec: MicroSpec) -> None:
    found = list(islice(questions(domain, "train", 3, spec), 400))
    for one in found:
        assert (one.key, one.answer) == solve(domain, one.question)
        assert len(one.question) <= 45
        assert world.split_of(domain, one.key) == "train"
    assert len({one.question for one in found}) == len(found) == len({one.id for one in found})


def test_worked_responses_are_short_at_default_difficulty() -> None:
    for domain in world.TASK_DOMAINS:
        for one in islice(questions(domain, "train", 0, MicroSpec()), 500):
            assert len(f"<think> {one.chain} </think> {one.answer}") <= 60


@pytest.mark.parametrize("domain", world.TASK_DOMAINS)
def test_splits_share_no_problem_and_make_up_the_whole(domain: str) -> None:
    train, test = (list(questions(domain, split, 5, SMALL)) for split in ("train", "test"))
    assert not {solve(domain, one.question)[0] for one in train} & {solve(domain, one.question)[0] for one in test}
    texts = {one.question for one in (*train, *test)}
    if domain == "math":
        assert texts == {f"Add {a}+{b}=?" for a, b in product(range(10), repeat=2)}
    elif domain == "science":
        symbols = [symbol for symbol, _ in ELEMENTS[:8]]
        wanted = {
            "Most protons? " + " ".join(f"{letter} {s}" for letter, s in zip("ABC", chosen, strict=True))
            for chosen in permutations(symbols, 3)
        }
        assert texts == wanted
    else:
        assert {one.key for one in (*train, *test)} == {f"{k}*x+{m}" for k in range(1, 5) for m in range(1, 5)}
        assert len(texts) == 16 * 22
    assert len(texts) == len(train) + len(test)


def test_a_split_does_not_depend_on_knobs_or_seeds() -> None:
    wide = {one.key for one in islice(questions("math", "test", 1, MicroSpec(math_min_digits=1)), 3000)}
    assert not wide & {one.key for one in questions("math", "train", 2, SMALL)}


def test_a_fifth_is_for_testing() -> None:
    splits = Counter(world.split_of("math", f"{a}+{b}") for a in range(100) for b in range(a, 100))
    share = splits["test"] / splits.total()
    # Five standard errors of a binomial share of 0.2 among 5,050 keys.
    assert abs(share - 0.2) < 5 * (0.2 * 0.8 / 5050) ** 0.5


@given(st.integers(0, 999_999), st.integers(0, 999_999))
@settings(max_examples=100, deadline=None)
def test_addition_chain_leads_to_the_sum(a: int, b: int) -> None:
    columns = [re.fullmatch(r"(\d)\+(\d)\+(\d)=(\d)(\d)", column) for column in addition_chain(a, b).split()]
    carry, digits = 0, ""
    for column in columns:
        assert column is not None
        x, y, carried, tens, units = map(int, column.groups())
        assert carried == carry
        assert x + y + carried == 10 * tens + units
        carry, digits = tens, f"{units}{digits}"
    assert int(f"{carry}{digits}") == a + b


def test_chains_spelt_out() -> None:
    assert addition_chain(47, 385) == "7+5+0=12 4+8+1=13 0+3+1=04"
    one = world._program(3, 4, (1, 2, 4))
    assert one.question == "f(1)=7 f(2)=10 f(4)=16 f?"
    assert one.chain == "10-7=3 1*3=3 7-3=4"
    assert one.points == ((1, 7), (2, 10), (4, 16), (0, 4), (10, 34), (25, 79))
    other = world._most_protons([25, 2, 78, 7])
    assert other.question == "Most protons? A Fe B Li C Au D O"
    assert other.chain == "A Fe26 B Li3 C Au79 D O8 max 79"
    assert other.answer == "C"


def test_only_the_program_meets_shown_and_hidden_points() -> None:
    for one in islice(questions("code", "test", 0, MicroSpec()), 50):
        assert one.points is not None
        assert agrees(one.answer, one.points)
        k, m = map(int, one.answer.split("*x+"))
        # A polynomial through the shown points that is not the program is told apart by the hidden ones.
        a, b, c = (x for x, _ in one.points[:3])
        bent = f"{k}*x+{m}+(x-{a})*(x-{b})*(x-{c})"
        assert agrees(bent, one.points[:3])
        assert not agrees(bent, one.points)


def test_positions_of_right_choices_are_uniform() -> None:
    letters = Counter(one.answer for one in islice(questions("science", "train", 9, MicroSpec()), 4000))
    for letter in "ABCD":
        assert abs(letters[letter] / 4000 - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_digit_counts_are_equally_likely() -> None:
    spec = MicroSpec(math_min_digits=1, math_max_digits=6)
    sizes: Counter[int] = Counter()
    for one in islice(questions("math", "train", 0, spec), 3600):
        sizes[len(re.findall(r"\d+", one.question)[0])] += 1
    # One pair in six has each length, but the single-digit numbers are soon used up.
    for digits in (3, 4, 5, 6):
        assert abs(sizes[digits] / 3600 - 1 / 6) < 0.03


def test_order_depends_on_the_seed_alone() -> None:
    def first(domain: str, seed: int) -> list[Question]:
        return list(islice(questions(domain, "train", seed, MicroSpec()), 50))

    for domain in world.TASK_DOMAINS:
        assert first(domain, 1) == first(domain, 1)
        assert first(domain, 1) != first(domain, 2)


def test_large_spaces_are_drawn_without_repeats_and_fast() -> None:
    started = time.process_time()
    spec = MicroSpec(math_min_digits=6, math_max_digits=6)
    found = list(islice(questions("math", "train", 0, spec), 20_000))
    assert len({one.id for one in found}) == 20_000
    assert time.process_time() - started < 20, "a draw that looks for what is left takes minutes"


def test_distinct_draws_every_index_on_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(world._distinct(500, 1)) == list(range(500))
    monkeypatch.setattr(world, "PERMUTED", 10)
    assert sorted(world._distinct(500, 1)) == list(range(500))


def test_too_many_questions_are_refused_with_their_number() -> None:
    have = sum(1 for _ in questions("math", "test", 0, SMALL))
    assert len(task_questions("math", "test", have, 0, SMALL)) == have
    with pytest.raises(DataError, match=f"has {have} test questions in math, {have + 1} were asked for"):
        task_questions("math", "test", have + 1, 0, SMALL)
    with pytest.raises(DataError, match="no micro task 'history'"):
        questions("history", "train", 0, SMALL)


def test_check_disjoint_counts_and_catches(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = check_disjoint(SMALL)
    assert counts["math"][0] + counts["math"][1] == 55
    assert counts["code"][0] + counts["code"][1] == 16

    # The split is taken away: every question is in both.
    monkeypatch.setattr(world, "questions", lambda domain, split, seed, spec: world._SPACES[domain](seed, spec))
    with pytest.raises(AssertionError, match="in both splits"):
        check_disjoint(SMALL)


def test_elements_and_facts_are_true() -> None:
    assert len(ELEMENTS) == 118
    assert len({symbol for symbol, _ in ELEMENTS}) == len({name for _, name in ELEMENTS}) == 118
    known = {"H": 1, "C": 6, "Na": 11, "Fe": 26, "Ag": 47, "I": 53, "W": 74, "Au": 79, "Pb": 82, "U": 92, "Og": 118}
    assert {symbol: PROTONS[symbol] for symbol in known} == known
    names = {name: PROTONS[symbol] for symbol, name in ELEMENTS}
    for document in islice(fact_documents(0, MicroSpec(science_elements=118)), 300):
        numbers = [int(number) for number in re.findall(r"\d+", document)]
        said = [PROTONS[w] for w in re.findall(r"[A-Za-z]+", document) if w in PROTONS]
        said += [names[w] for w in re.findall(r"[A-Za-z]+", document) if w in names]
        assert set(numbers) <= set(said)
    assert set("".join(islice(fact_documents(0, SMALL), 200)).split()) & {"Oxygen", "O"}
    assert "Fluorine" not in " ".join(islice(fact_documents(0, SMALL), 500))
