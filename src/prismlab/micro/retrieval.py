"""Key-value retrieval at a stated length: which value a key was given, among other keys and idle sentences.

A question of ``tokens`` characters (of the byte tokenizer a token each) gives every key its value, some of them again
later, and asks for one. In training the repetitions teach to look back; the answer alone is what a test scores. The
manner is RULER's (Hsieh et al. 2024), the text is ours: scores of checkpoints at one length can be compared with one
another, not with published ones.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from prismlab.errors import DataError
from prismlab.micro.world import Question, Split, split_of
from prismlab.seeds import derive_seed

DOMAIN = "retrieval"
KEYS = 5
"""Keys of a question, of capital letters; each value has two digits, no two of a question the same."""
REPEATED = 5
"""Further statements, of keys that were given already."""
FEWEST_TOKENS = 96
MOST_TOKENS = 2**20
IDLE = (
    "the grass is green.",
    "the sky is blue.",
    "the sun is warm.",
    "here we go.",
    "there and back again.",
)


def _statements(rng: random.Random) -> tuple[list[str], dict[str, str]]:
    """Statements in order, and the value of each key."""
    keys = rng.sample(string.ascii_uppercase, KEYS)
    values = rng.sample(range(100), KEYS)
    given = {key: f"{value:02d}" for key, value in zip(keys, values, strict=True)}
    order = list(keys)
    for _ in range(REPEATED):
        # Behind its first statement: a key cannot be known before.
        key = rng.choice(keys)
        order.insert(rng.randint(order.index(key) + 1, len(order)), key)
    return [f"{key}={given[key]}." for key in order], given


def _question(rng: random.Random, tokens: int) -> Question:
    statements, given = _statements(rng)
    asked = rng.choice(sorted(given))
    idle: list[str] = []
    # The question itself takes two characters, every sentence before it one more for the space.
    room = tokens - 2 - sum(len(one) + 1 for one in statements)
    while room > 1:
        sentence = rng.choice(IDLE)[: room - 1]
        idle.append(sentence)
        room -= len(sentence) + 1
    idle[-1] += "." * room
    places = sorted(rng.randint(0, len(idle)) for _ in statements)
    for number, (place, statement) in enumerate(zip(places, statements, strict=True)):
        idle.insert(place + number, statement)
    text = f"{' '.join(idle)} {asked}?"
    key = f"{tokens}:{' '.join(statements)}:{asked}"
    return Question(domain=DOMAIN, key=key, id=key, question=text, chain=f"{asked}={given[asked]}", answer=given[asked])


def retrieval_questions(split: Split, seed: int, tokens: int) -> Iterator[Question]:
    """Questions of a split, without end, in an order that the seed decides.

    Args:
        split: training and test share no question, whatever the seeds.
        seed: decides which questions and their order.
        tokens: characters of each question.

    Raises:
        DataError: ``tokens`` is too few to hold the statements, or too many.
    """
    if not FEWEST_TOKENS <= tokens <= MOST_TOKENS:
        raise DataError(f"retrieval over {tokens:,} tokens: {FEWEST_TOKENS} to {MOST_TOKENS:,} can be asked for")
    return _endless(split, seed, tokens)


def _endless(split: Split, seed: int, tokens: int) -> Iterator[Question]:
    rng = random.Random(derive_seed(seed, DOMAIN, tokens))
    while True:
        question = _question(rng, tokens)
        if split_of(DOMAIN, question.key) == split:
            yield question
