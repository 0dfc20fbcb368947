"""Choices as tokens, cut as lm-evaluation-harness cuts them.

What a model is given is what lm-evaluation-harness gives it (its ``TemplateLM.loglikelihood`` and ``HFLM``): context
and continuation are encoded together and cut where the context's own tokens end; white space at a context's end goes
over to the continuation; an empty context is the start token; what is longer than the model's positions loses tokens
on the left. So the numbers can be laid beside any that were made with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from prismlab.errors import CheckpointError, StageError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokens:
    """One choice."""

    ids: tuple[int, ...]
    """Context and continuation, cut on the left to the model's positions and one more (the last is only predicted)."""
    scored: int
    """How many tokens at the end are the continuation."""

    @property
    def first(self) -> int:
        """Place of the token that predicts the first scored one."""
        return len(self.ids) - self.scored - 1


class Encoder:
    """Pairs of context and continuation to tokens, many at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, positions: int | None) -> None:
        """
        Args:
            tokenizer: the model's.
            positions: of the model; None for no limit.

        Raises:
            CheckpointError: the tokenizer has neither a start nor an end token to stand before an empty context.
        """
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise CheckpointError("the tokenizer has no start and no end token; set 'eos_token' in its config")
        self._tokenizer = tokenizer
        self._start = cast("int", start)
        self._start_text = cast("str", tokenizer.decode([self._start]))
        self._positions = positions

    def _encode(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Tokens of each distinct text; one that begins with the start token's text gets no second one."""
        known: dict[str, list[int]] = {}
        distinct = list(dict.fromkeys(texts))
        for special in (True, False):
            some = [text for text in distinct if text.startswith(self._start_text) != special]
            if some:
                ids = cast("Any", self._tokenizer(some, add_special_tokens=special))["input_ids"]
                known |= dict(zip(some, ids, strict=True))
        return known

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
        """Each (context, continuation) as tokens.

        Raises:
            StageError: a continuation has no token, or more than the model has positions.
        """
        settled: list[tuple[str, str]] = []
        for context, continuation in pairs:
            bare = context.rstrip()
            settled.append((bare, context[len(bare) :] + continuation) if context else ("", continuation))
        known = self._encode([text for c, t in settled for text in ((c, c + t) if c else ())])
        # Behind the start token the harness encodes a continuation bare.
        alone = {t for c, t in settled if not c}
        bare_ids = {t: cast("Any", self._tokenizer(t, add_special_tokens=False))["input_ids"] for t in alone}
        return [self._one(c, t, known, bare_ids) for c, t in settled]

    def _one(
        self, context: str, continuation: str, known: Mapping[str, list[int]], bare: Mapping[str, list[int]]
    ) -> Tokens:
        if context:
            head = known[context]
            tail = known[context + continuation][len(head) :]
        else:
            head, tail = [self._start], bare[continuation]
            if tail[:1] == head:
                tail = tail[1:]
        if not tail or not head:
            raise StageError(f"the choice {shown(continuation, 60)!r} has no token of its own; leave its item out")
        if self._positions is not None and len(tail) > self._positions:
            raise StageError(
                f"a choice has {len(tail)} tokens, the model {self._positions} positions; leave such items out or take "
                "a model with more positions"
            )
        tokens = [*head, *tail]
        kept = tokens if self._positions is None else tokens[-(self._positions + 1) :]
        return Tokens(tuple(kept), len(tail))


def shared_beginning(choices: Sequence[Tokens]) -> int:
    """How many tokens all choices of an item begin with and give to the model."""
    shortest = min((choice.ids for choice in choices), key=len)
    end = len(shortest) - 1
    for choice in choices:
        if choice.ids[:end] != shortest[:end]:
            end = next(at for at in range(end) if choice.ids[at] != shortest[at])
    return end
