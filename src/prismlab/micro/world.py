"""Generated, verifiable tasks of the micro world: addition, finding a program, and a question about the elements.

Each task is an indexed space of questions, drawn without replacement in a seeded order. A question belongs to the test
split if the hash of its canonical key says so (one in five), so the splits are disjoint whatever the knobs and seeds.
The key is what makes two questions the same problem: the unordered addends, the program (a tested program is never
trained on, at whichever points), the unordered set of elements.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from prismlab.errors import DataError
from prismlab.seeds import derive_seed
from prismlab.study.world import MicroSpec

Split = Literal["train", "test"]
TASK_DOMAINS = ("math", "code", "science")
TEST_SHARE = 5
"""One key in this many is for testing."""
LETTERS = "ABCDE"
HIDDEN_X = (0, 10, 25)
"""Inputs that a program is judged at besides those shown."""
FACTS_A_DOCUMENT = 3
PERMUTED = 1 << 20
"""Spaces up to this size are permuted at once; larger ones are drawn from with a memory of what was drawn."""

_TABLE = """
H Hydrogen He Helium Li Lithium Be Beryllium B Boron C Carbon N Nitrogen O Oxygen F Fluorine Ne Neon Na Sodium Mg
Magnesium Al Aluminium Si Silicon P Phosphorus S Sulfur Cl Chlorine Ar Argon K Potassium Ca Calcium Sc Scandium Ti
Titanium V Vanadium Cr Chromium Mn Manganese Fe Iron Co Cobalt Ni Nickel Cu Copper Zn Zinc Ga Gallium Ge Germanium As
Arsenic Se Selenium Br Bromine Kr Krypton Rb Rubidium Sr Strontium Y Yttrium Zr Zirconium Nb Niobium Mo Molybdenum Tc
Technetium Ru Ruthenium Rh Rhodium Pd Palladium Ag Silver Cd Cadmium In Indium Sn Tin Sb Antimony Te Tellurium I
Iodine Xe Xenon Cs Caesium Ba Barium La Lanthanum Ce Cerium Pr Praseodymium Nd Neodymium Pm Promethium Sm Samarium Eu
Europium Gd Gadolinium Tb Terbium Dy Dysprosium Ho Holmium Er Erbium Tm Thulium Yb Ytterbium Lu Lutetium Hf Hafnium Ta
Tantalum W Tungsten Re Rhenium Os Osmium Ir Iridium Pt Platinum Au Gold Hg Mercury Tl Thallium Pb Lead Bi Bismuth Po
Polonium At Astatine Rn Radon Fr Francium Ra Radium Ac Actinium Th Thorium Pa Protactinium U Uranium Np Neptunium Pu
Plutonium Am Americium Cm Curium Bk Berkelium Cf Californium Es Einsteinium Fm Fermium Md Mendelevium No Nobelium Lr
Lawrencium Rf Rutherfordium Db Dubnium Sg Seaborgium Bh Bohrium Hs Hassium Mt Meitnerium Ds Darmstadtium Rg
Roentgenium Cn Copernicium Nh Nihonium Fl Flerovium Mc Moscovium Lv Livermorium Ts Tennessine Og Oganesson
"""
ELEMENTS: tuple[tuple[str, str], ...] = tuple(zip(_TABLE.split()[::2], _TABLE.split()[1::2], strict=True))
"""Symbol and name; the element at index i has i + 1 protons."""

FACT_FORMS = (
    "{symbol} has {n} protons.",
    "{name} ({symbol}) has {n} protons.",
    "{name} is element {n}.",
    "The symbol of {name} is {symbol}.",
    "{symbol} is {name}, number {n}.",
    "Element {n} is {symbol}.",
    "An atom of {symbol} holds {n} protons.",
    "{symbol} {n}",
)


@dataclass(frozen=True, slots=True)
class Question:
    """One problem with its reasoning."""

    domain: str
    key: str
    """What decides the split; questions that are the same problem share it."""
    id: str
    """Distinct for each question of a domain."""
    question: str
    chain: str
    """The worked reasoning, without ``<think>``."""
    answer: str
    choices: tuple[str, ...] | None = None
    """For science: the symbols, in the order of their letters."""
    points: tuple[tuple[int, int], ...] | None = None
    """For code: the points that the program must meet, shown ones first, then hidden ones."""


def split_of(domain: str, key: str) -> Split:
    """The split that a key belongs to; a matter of the key alone."""
    digest = hashlib.blake2b(f"{domain}\x1f{key}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def _distinct(total: int, seed: int) -> Iterator[int]:
    """Every index below ``total`` once, in an order that the seed decides."""
    rng = np.random.default_rng(seed)
    if total <= PERMUTED:
        yield from rng.permutation(total).tolist()
        return
    seen: set[int] = set()
    while len(seen) < total:
        for index in rng.integers(total, size=4096).tolist():
            if index not in seen:
                seen.add(index)
                yield index


def addition_chain(a: int, b: int) -> str:
    """Column sums from the right, each ``digit+digit+carry=two digits``; the last digits backwards are the sum."""
    width = max(len(str(a)), len(str(b)))
    columns: list[str] = []
    carry = 0
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        columns.append(f"{x}+{y}+{carry}={x + y + carry:02d}")
        carry = (x + y + carry) // 10
    return " ".join(columns)


def _addition(a: int, b: int) -> Question:
    small, large = sorted((a, b))
    return Question(
        domain="math",
        key=f"{small}+{large}",
        id=f"{a}+{b}",
        question=f"Add {a}+{b}=?",
        chain=addition_chain(a, b),
        answer=str(a + b),
    )


def _numbers(digits: int) -> range:
    """The numbers with this many digits; 0 has one."""
    return range(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _math_questions(seed: int, spec: MicroSpec) -> Iterator[Question]:
    """Pairs of digit counts are equally likely until used up, else nearly all numbers would have the most digits."""
    span = range(spec.math_min_digits, spec.math_max_digits + 1)
    pools = [
        (_numbers(i), _numbers(j), _distinct(len(_numbers(i)) * len(_numbers(j)), derive_seed(seed, "math", i, j)))
        for i in span
        for j in span
    ]
    chooser = random.Random(derive_seed(seed, "math"))
    while pools:
        at = chooser.randrange(len(pools))
        first, second, indices = pools[at]
        index = next(indices, None)
        if index is None:
            del pools[at]
        else:
            yield _addition(first[index // len(second)], second[index % len(second)])


_SHOWN_X = tuple((x, x + 1, z) for x in range(1, 5) for z in range(x + 2, 10))
"""Inputs that are shown: two neighbours, whose difference is k, and a third to check against."""


def _program(k: int, m: int, shown: tuple[int, int, int]) -> Question:
    values = [k * x + m for x in shown]
    first = shown[0]
    return Question(
        domain="code",
        key=f"{k}*x+{m}",
        id=f"{k}*x+{m}@{','.join(map(str, shown))}",
        question=" ".join(f"f({x})={y}" for x, y in zip(shown, values, strict=True)) + " f?",
        chain=f"{values[1]}-{values[0]}={k} {first}*{k}={first * k} {values[0]}-{first * k}={m}",
        answer=f"{k}*x+{m}",
        points=tuple((x, k * x + m) for x in (*shown, *HIDDEN_X)),
    )


def _code_questions(seed: int, spec: MicroSpec) -> Iterator[Question]:
    """Programs with k from 1 to ``code_k`` and m from 1 to ``code_m``, each at 22 triples of inputs."""
    total = spec.code_k * spec.code_m * len(_SHOWN_X)
    for index in _distinct(total, derive_seed(seed, "code")):
        rest, shown = divmod(index, len(_SHOWN_X))
        k, m = divmod(rest, spec.code_m)
        yield _program(k + 1, m + 1, _SHOWN_X[shown])


def _arrangement(index: int, n: int, size: int) -> list[int]:
    """The ``index``-th ordered choice of ``size`` out of ``n`` (factorial number system)."""
    left = list(range(n))
    chosen: list[int] = []
    for options in range(n, n - size, -1):
        index, at = divmod(index, options)
        chosen.append(left.pop(at))
    return chosen


def _most_protons(chosen: list[int]) -> Question:
    symbols = tuple(ELEMENTS[at][0] for at in chosen)
    lettered = list(zip(LETTERS, symbols, chosen, strict=False))
    return Question(
        domain="science",
        key=" ".join(sorted(symbols)),
        id="-".join(symbols),
        question="Most protons? " + " ".join(f"{letter} {symbol}" for letter, symbol, _ in lettered),
        chain=" ".join(f"{letter} {symbol}{at + 1}" for letter, symbol, at in lettered) + f" max {max(chosen) + 1}",
        answer=LETTERS[chosen.index(max(chosen))],
        choices=symbols,
    )


def _science_questions(seed: int, spec: MicroSpec) -> Iterator[Question]:
    """Every ordered choice of elements is equally likely, and so is the position of the right one."""
    n, size = spec.science_elements, spec.science_choices
    for index in _distinct(math.perm(n, size), derive_seed(seed, "science")):
        yield _most_protons(_arrangement(index, n, size))


_SPACES: dict[str, Callable[[int, MicroSpec], Iterator[Question]]] = {
    "math": _math_questions,
    "code": _code_questions,
    "science": _science_questions,
}


def questions(domain: str, split: Split, seed: int, spec: MicroSpec) -> Iterator[Question]:
    """Every question of a split once, in an order that the seed decides; generated as it is asked for.

    Raises:
        DataError: there is no such task domain.
    """
    if domain not in _SPACES:
        raise DataError(f"no micro task {domain!r}; there are {', '.join(TASK_DOMAINS)}")
    return (question for question in _SPACES[domain](seed, spec) if split_of(domain, question.key) == split)


def task_questions(domain: str, split: Split, n: int, seed: int, spec: MicroSpec) -> list[Question]:
    """``n`` distinct questions of a split.

    Raises:
        DataError: the world has fewer; the message says how many.
    """
    found = list(islice(questions(domain, split, seed, spec), n))
    if len(found) < n:
        raise DataError(
            f"the micro world has {len(found)} {split} questions in {domain}, {n} were asked for: ask for fewer or "
            "widen the world under 'micro'"
        )
    return found


def fact_documents(seed: int, spec: MicroSpec) -> Iterator[str]:
    """Documents of ``FACTS_A_DOCUMENT`` sentences about different elements, without end (they may repeat)."""
    rng = random.Random(derive_seed(seed, "facts"))
    while True:
        picked = rng.sample(range(spec.science_elements), FACTS_A_DOCUMENT)
        sentences = (
            rng.choice(FACT_FORMS).format(symbol=ELEMENTS[at][0], name=ELEMENTS[at][1], n=at + 1) for at in picked
        )
        yield " ".join(sentences)


def check_disjoint(spec: MicroSpec, n: int = 2000, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Check on up to ``n`` questions a split that training and test share no problem.

    Returns:
        Per domain the number of distinct keys seen in training and in test.

    Raises:
        DataError: a domain has no question in one of the splits.
        AssertionError: a key is in both, which would be our fault.
    """
    counts: dict[str, tuple[int, int]] = {}
    for domain in TASK_DOMAINS:
        train = {question.key for question in islice(questions(domain, "train", seed, spec), n)}
        test = {question.key for question in islice(questions(domain, "test", seed, spec), n)}
        if not train or not test:
            raise DataError(
                f"the micro world is too small: no {'test' if train else 'train'} question in {domain}; widen it"
            )
        if train & test:
            raise AssertionError(f"{domain}: {sorted(train & test)[:3]} are in both splits")
        counts[domain] = (len(train), len(test))
    return counts
