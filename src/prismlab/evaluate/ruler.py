"""Tasks over long contexts, generated without network, in the manner of RULER (Hsieh et al. 2024).

The kinds are RULER's (a needle in other text, one value among many keys, assignments to be followed, words to be
counted), the text is our own, so **scores cannot be compared with published RULER figures**; those of checkpoints at
one length can be compared with one another, and lengths with one another.

An item's ``length_tokens`` is what a model must hold: prompt and room for the answer. Every item of a length is filled
up to it as far as whole sentences go.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prismlab.data.items import Item
from prismlab.data.templates import get_template
from prismlab.errors import SpecError
from prismlab.model.generate import prompt_ids
from prismlab.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_ROOM = 32
"""Tokens that an item leaves for the answer."""
LONGEST = 2**21
"""Most tokens of an item."""

_NOUNS = (
    "anchor", "apple", "arrow", "basket", "beacon", "bell", "bottle", "branch", "bridge", "bucket", "button",
    "candle", "canvas", "carpet", "castle", "chain", "chalk", "circle", "clock", "cloud", "coat", "copper",
    "cotton", "crown", "curtain", "desert", "diamond", "drum", "eagle", "engine", "falcon", "feather", "fence",
    "flag", "forest", "fountain", "garden", "glove", "hammer", "harbour", "hinge", "island", "jacket", "kettle",
    "ladder", "lantern", "lemon", "marble", "meadow", "mirror", "needle", "ocean", "orchard", "paper", "pebble",
    "pencil", "pepper", "pillow", "planet", "pocket", "ribbon", "river", "saddle", "sailor", "shadow", "silver",
    "spoon", "stable", "statue", "stone", "summer", "temple", "thread", "timber", "tower", "tunnel", "valley",
    "vessel", "village", "violin", "wagon", "walnut", "water", "willow", "window", "winter",
)  # fmt: skip
_ADJECTIVES = (
    "amber", "ancient", "brave", "bright", "broad", "calm", "careful", "clean", "clever", "cold", "curious",
    "distant", "dry", "early", "eager", "empty", "faint", "gentle", "golden", "grey", "heavy", "hidden",
    "hollow", "honest", "humble", "keen", "late", "light", "little", "lonely", "loud", "narrow", "noble", "old",
    "open", "pale", "patient", "plain", "proud", "quick", "quiet", "rare", "rough", "round", "sharp", "silent",
    "simple", "slow", "small", "smooth", "soft", "steady", "strange", "tall", "thin", "tidy", "warm", "wide",
    "wild", "young",
)  # fmt: skip
_VERBS = (
    "carries", "covers", "crosses", "finds", "follows", "guards", "holds", "keeps", "leaves", "meets", "moves",
    "paints", "passes", "reaches", "sees",
)  # fmt: skip


@dataclass(frozen=True)
class _Draft:
    """An item before it is filled up."""

    opening: str
    needles: tuple[str, ...]
    """Sentences that must stand somewhere, in this order."""
    closing: str
    answers: tuple[str, ...]
    filler: Callable[[], str]
    """One more sentence that decides nothing."""


def _phrase(rng: random.Random) -> str:
    return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"


def _sentence(rng: random.Random) -> str:
    return f"The {_phrase(rng)} {rng.choice(_VERBS)} the {_phrase(rng)}. "


def _number(rng: random.Random) -> str:
    return str(rng.randrange(1_000_000, 10_000_000))


def _names(rng: random.Random, met: set[str]) -> str:
    """A two-word name that was not met before; a number is added once most are."""
    name = _phrase(rng).replace(" ", "-")
    while name in met:
        name = f"{_phrase(rng).replace(' ', '-')}-{rng.randrange(10_000)}"
    met.add(name)
    return name


def _needle(rng: random.Random) -> _Draft:
    name, value = _phrase(rng), _number(rng)
    return _Draft(
        opening="A secret number is hidden in this text. Remember it.\n",
        needles=(f"The secret number of the {name} is {value}. ",),
        closing=f"\nWhat is the secret number of the {name}? Answer with the number.",
        answers=(value,),
        filler=lambda: _sentence(rng),
    )


def _keys(rng: random.Random) -> _Draft:
    met: set[str] = set()
    key, value = _names(rng, met), _number(rng)
    return _Draft(
        opening="Each line has a key and its value.\n",
        needles=(f"{key}: {value}\n",),
        closing=f"What is the value of {key}? Answer with the number.",
        answers=(value,),
        filler=lambda: f"{_names(rng, met)}: {_number(rng)}\n",
    )


HOPS = 4
"""Variables that hold the asked value in ``tracking``: one gets it, each of the others takes it from the one before."""


def _tracking(rng: random.Random) -> _Draft:
    met: set[str] = set()

    def name() -> str:
        made = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(5))
        while made in met:
            made = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(5))
        met.add(made)
        return made

    value, chain = _number(rng), [name() for _ in range(HOPS)]
    needles = [f"VAR {chain[0]} = {value}. "]
    needles += [f"VAR {new} = VAR {old}. " for old, new in itertools.pairwise(chain)]
    return _Draft(
        opening="Follow the assignments in this text.\n",
        needles=tuple(needles),
        closing=f"\nWhich {HOPS} variables have the value {value}? Answer with their names.",
        answers=tuple(chain),
        filler=lambda: _sentence(rng),
    )


COMMON = 3
"""Words that are asked for in ``common-words``; each stands there several times, every other word once or twice."""
TIMES = 8


def _common_words(rng: random.Random) -> _Draft:
    met: set[str] = set()
    common = [_names(rng, met) for _ in range(COMMON)]
    needles = [f"{word} " for word in common * TIMES]
    rng.shuffle(needles)
    return _Draft(
        opening="This is a list of words.\n",
        needles=tuple(needles),
        closing=f"\nWhich {COMMON} words stand in the list most often? Answer with the words.",
        answers=tuple(common),
        filler=lambda: f"{_names(rng, met)} ",
    )


TASKS: dict[str, Callable[[random.Random], _Draft]] = {
    "needle": _needle,
    "keys": _keys,
    "tracking": _tracking,
    "common-words": _common_words,
}
"""What makes an item of each task."""


def _count(tokenizer: PreTrainedTokenizerBase, question: str, template: str) -> int:
    return len(prompt_ids(tokenizer, get_template(template).prompt(question)))


def _laid(draft: _Draft, filling: Sequence[str], places: Sequence[float]) -> str:
    """The item's text: needles at their places (0 to 1) among the filling."""
    at = [round(place * len(filling)) for place in places]
    parts: list[str] = []
    for number in range(len(filling) + 1):
        parts += [needle for needle, spot in zip(draft.needles, at, strict=True) if spot == number]
        parts += filling[number : number + 1]
    return draft.opening + "".join(parts) + draft.closing


def _filled(
    draft: _Draft, places: Sequence[float], length: int, tokenizer: PreTrainedTokenizerBase, template: str
) -> str:
    """The text with as much filling as ``length`` tokens hold.

    Raises:
        SpecError: not even the item without filling fits.
    """
    filling: list[str] = []

    def size(count: int) -> int:
        return _count(tokenizer, _laid(draft, filling[:count], places), template)

    fits, small = 0, size(0)
    if small > length:
        raise SpecError(
            f"length {length + ANSWER_ROOM}: the question alone takes {small} tokens and the answer {ANSWER_ROOM}; ask "
            f"for {small + ANSWER_ROOM} or more"
        )
    large = small
    while large <= length:
        fits, small = len(filling), large
        filling += [draft.filler() for _ in range(max(8, len(filling)))]
        large = size(len(filling))
    too_many = len(filling)
    while too_many - fits > 1:
        # Sentences are about equally long, so the line between the two ends says where to look.
        guess = fits + round((too_many - fits) * (length - small) / (large - small))
        guess = min(max(guess, fits + 1), too_many - 1)
        now = size(guess)
        if now <= length:
            fits, small = guess, now
        else:
            too_many, large = guess, now
    return _laid(draft, filling[:fits], places)


def items(
    task: str, length_tokens: int, tokenizer: PreTrainedTokenizerBase, seed: int, n: int, template: str = "think"
) -> list[Item]:
    """``n`` items of a task at a length; equal arguments give equal items, whatever the checkpoint.

    Args:
        task: a key of ``TASKS``.
        length_tokens: tokens of the prompt (as the template puts it, start token included) and ``ANSWER_ROOM`` for the
            answer; the prompt is shorter than it allows by less than a sentence.
        tokenizer: the model's: items of one length differ between tokenizers.
        seed: names the items.
        n: how many.
        template: prompt template that the question will be put in.

    Returns:
        Items with ``task`` ``<task>-<length>``, ``domain`` ``long-context``, verifier ``contains`` (every part of the
        answer stands in the response) and ``meta`` ``{length, depth}``: depth is the place of the needle, 0 to 1,
        spread evenly over the items.

    Raises:
        SpecError: no such task, or a length that holds no item, or that is past ``LONGEST``.
    """
    if task not in TASKS:
        raise SpecError(f"long-context task {task!r} is not known; there are {', '.join(TASKS)}")
    if not ANSWER_ROOM < length_tokens <= LONGEST:
        raise SpecError(f"length {length_tokens}: from {ANSWER_ROOM + 1} to {LONGEST} tokens")
    made: list[Item] = []
    for number in range(n):
        rng = random.Random(derive_seed(seed, "long", task, length_tokens, number))
        draft = TASKS[task](rng)
        # Of one needle the places are spread evenly; several stand at random places, in order.
        depth = (number + 0.5) / n
        places = [depth] if len(draft.needles) == 1 else sorted(rng.random() for _ in draft.needles)
        question = _filled(draft, places, length_tokens - ANSWER_ROOM, tokenizer, template)
        made.append(
            Item(
                id=f"{number:05d}",
                task=f"{task}-{length_tokens}",
                domain="long-context",
                question=question,
                answer="; ".join(draft.answers),
                verifier="contains",
                meta={"length": length_tokens, "depth": round(places[0], 6)},
            )
        )
    return made
