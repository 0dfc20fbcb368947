"""Key-value retrieval at a stated length: what value a key was given, among other keys and idle sentences.

A question of ``tokens`` characters (of the byte tokenizer a token each) gives each key a value, some of them twice, and
asks for one. Each key takes its values from an alphabet of its own, so that a small model can learn in minutes to look
back for it; matching keys that it has never seen takes such a model far longer. The manner is RULER's (Hsieh et al.
2024), the text is ours: scores of checkpoints at one length can be compared with one another, not with published ones.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from prismlab.errors import DataError
from prismlab.micro.world import Question, Split, split_of
from prismlab.seeds import derive_seed

DOMAIN = "retrieval"
KEYS = {"digit": "0123456789", "first": "ABCDEFGH", "middle": "IJKLMNOP", "last": "QRSTUVWXYZ"}
"""Key to its alphabet, a character a value."""
REPEATED = 2
"""Further statements, of keys that are given, too."""
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
    """Statements in a random order, and the value of each key."""
    given = {key: rng.choice(alphabet) for key, alphabet in KEYS.items()}
    order = [*given, *(rng.choice(list(given)) for _ in range(REPEATED))]
    rng.shuffle(order)
    return [f"{key}={given[key]}." for key in order], given


def _question(rng: random.Random, tokens: int) -> Question:
    statements, given = _statements(rng)
    asked = rng.choice(list(given))
    idle: list[str] = []
    # Every sentence before the question takes one more, for the space.
    room = tokens - len(asked) - 1 - sum(len(one) + 1 for one in statements)
    while room > 1:
        sentence = rng.choice(IDLE)[: room - 1]
        idle.append(sentence)
        room -= len(sentence) + 1
    idle[-1] += "." * room
    places = sorted(rng.randint(0, len(idle)) for _ in statements)
    for number, (place, statement) in enumerate(zip(places, statements, strict=True)):
        idle.insert(place + number, statement)
    text = f"{' '.join(idle)} {asked}?"
    key = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
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
