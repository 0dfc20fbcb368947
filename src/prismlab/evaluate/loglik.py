"""Log-likelihoods of choices, with the computation of what choices share done once.

What a model is given is what lm-evaluation-harness gives it (its ``TemplateLM.loglikelihood`` and ``HFLM``): context
and continuation are encoded together and cut where the context's own tokens end; white space at a context's end goes
over to the continuation; an empty context is the start token; what is longer than the model's positions loses tokens
on the left. So the numbers can be laid beside any that were made with it.

The choices of one item mostly begin alike. A forward pass over the beginning that all of them share fills a cache, the
cache is repeated for the choices, and each choice's own rest is run on it. Items whose shared beginnings are about
equally long run together, and share exactly as many tokens as the shortest of them: so no beginning is padded, and
neither masks nor positions need be told to a model. Rests are padded at their end, where a causal model cannot look.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from prismlab.errors import CheckpointError, StageError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORWARD_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens a forward pass over rests, by kind of device; beginnings, which are equally long, get four times as many."""
FORWARD_LOGITS = 2**25
"""Logits a forward pass (128 MiB in float32), unless one row alone needs more."""
SLACK = 24
"""Tokens by which shared beginnings of one group may differ: so many are run again for each choice."""
SHORTEST = 8
"""A shared beginning of fewer tokens is not worth a pass of its own."""


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


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions the model has; None where its configuration does not say."""
    config = model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return None


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


@dataclass(frozen=True, slots=True)
class _Row:
    """A choice that is run."""

    row: int
    """Which row of the group's cache its beginning is in."""
    item: int
    place: int
    """Place among the item's choices."""
    choice: Tokens


class LogLikelihoods:
    """Computes log-likelihoods of choices with a model in this process; the model is left as it is.

    A model with a recurrent state runs every choice in full: not every model class goes on from a state by more than
    one token.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, forward_tokens: int | None = None
    ) -> None:
        """
        Args:
            model: a causal language model in evaluation mode.
            tokenizer: the model's.
            forward_tokens: most tokens a forward pass over rests, unless one row alone has more; None for
                ``FORWARD_TOKENS``.

        Raises:
            CheckpointError: the tokenizer has neither a start nor an end token.
        """
        self.model = model
        self.encoder = Encoder(tokenizer, positions_of(model))
        self.tokens_run = 0
        """Tokens that went through the model so far, padding included."""
        self._keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._shares = not getattr(type(model), "_is_stateful", False)
        vocabulary = int(model.config.get_text_config().vocab_size)
        most = forward_tokens or FORWARD_TOKENS.get(model.device.type, FORWARD_TOKENS["cpu"])
        self._rest_tokens = max(1, min(most, FORWARD_LOGITS // vocabulary))
        self._beginning_tokens = 4 * most if self._keeps else self._rest_tokens

    # Not inference mode: a buffer that a model makes in it (some rotary embeddings do) could not be trained through.
    @torch.no_grad()
    def of(self, items: Sequence[Sequence[tuple[str, str]]]) -> list[list[tuple[float, int]]]:
        """Log-likelihood in nats and number of tokens of each choice of each item, in the given order.

        Args:
            items: of each item its choices as (context, continuation).

        Raises:
            StageError: a choice has no tokens or too many, or a log-likelihood is not finite.
        """
        flat = iter(self.encoder.pairs([pair for item in items for pair in item]))
        encoded = [[next(flat) for _ in item] for item in items]
        found = [[0.0] * len(item) for item in encoded]
        for split, group in self._groups(encoded):
            self._run(split, group, encoded, found)
        if not all(math.isfinite(value) for values in found for value in values):
            raise StageError("a log-likelihood is NaN or infinite: the model's weights are broken")
        return [
            [(value, choice.scored) for value, choice in zip(values, item, strict=True)]
            for values, item in zip(found, encoded, strict=True)
        ]

    def _groups(self, encoded: Sequence[Sequence[Tokens]]) -> Iterator[tuple[int, list[int]]]:
        """Items that run together, with the number of tokens that each shares among its choices (0: all run whole)."""
        shared = [shared_beginning(item) if self._shares else 0 for item in encoded]
        alone = [at for at, n in enumerate(shared) if n < SHORTEST]
        if alone:
            yield 0, alone
        group: list[int] = []
        for at in sorted((at for at, n in enumerate(shared) if n >= SHORTEST), key=lambda at: shared[at]):
            split = shared[group[0]] if group else 0
            if group and (shared[at] > split + SLACK or (len(group) + 1) * split > self._beginning_tokens):
                yield split, group
                group = []
            group.append(at)
        if group:
            yield shared[group[0]], group

    def _run(
        self, split: int, group: Sequence[int], encoded: Sequence[Sequence[Tokens]], found: list[list[float]]
    ) -> None:
        """Add to ``found`` the log-likelihoods of the items of one group."""
        rows: list[_Row] = []
        same: list[tuple[_Row, int]] = []
        for row, item in enumerate(group):
            met: dict[Tokens, _Row] = {}
            for place, choice in enumerate(encoded[item]):
                # Of choices that are equal one is run, so that they are equally likely to the last bit.
                if choice in met:
                    same.append((met[choice], place))
                else:
                    met[choice] = _Row(row, item, place, choice)
            rows += met.values()
        cache = (
            self._beginnings(split, rows, [encoded[item][0].ids[:split] for item in group], found) if split else None
        )
        self._rests(split, rows, cache, found)
        for row, place in same:
            found[row.item][place] = found[row.item][row.place]

    def _logits(self, ids: torch.Tensor, cache: DynamicCache | None, keep: int) -> torch.Tensor:
        """Logits, in float32 at least, of the last ``keep`` positions, [rows, keep, vocabulary]; the cache grows."""
        self.tokens_run += ids.numel()
        given: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        if cache is not None and cache.get_seq_length() and all(type(layer) is DynamicLayer for layer in cache.layers):
            given["attention_mask"] = _causal(ids.shape[1], cache.get_seq_length(), self.model)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **given)
        logits = out.logits[:, -keep:]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _beginnings(
        self, split: int, rows: Sequence[_Row], starts: Sequence[tuple[int, ...]], found: list[list[float]]
    ) -> DynamicCache:
        """Run what choices share; adds what it tells of scored tokens within it."""
        cache = DynamicCache(config=self.model.config)
        keep = max(1, split - min(row.choice.first for row in rows))
        ids = torch.tensor(starts, device=self.model.device)
        logs = torch.log_softmax(self._logits(ids, cache, keep), dim=-1)
        wanted = [(row, at) for row in rows for at in range(row.choice.first, split)]
        if wanted:
            index = torch.tensor(
                [(row.row, at - split + keep, row.choice.ids[at + 1]) for row, at in wanted], device=ids.device
            )
            values = logs[index[:, 0], index[:, 1], index[:, 2]].double().tolist()
            for (row, _), value in zip(wanted, values, strict=True):
                found[row.item][row.place] += value
        return cache

    def _rests(self, split: int, rows: Sequence[_Row], cache: DynamicCache | None, found: list[list[float]]) -> None:
        """Run what each choice has of its own behind ``split``."""
        batch: list[_Row] = []
        longest = 0
        own = sorted((row for row in rows if len(row.choice.ids) - 1 > split), key=lambda row: -len(row.choice.ids))
        for row in own:
            longest = longest or len(row.choice.ids) - 1 - split
            # A repeated cache is memory, too, though no computation.
            full = (len(batch) + 1) * longest > self._rest_tokens
            full |= (len(batch) + 1) * (split + longest) > 4 * self._beginning_tokens
            if batch and full:
                self._rest(split, batch, cache, found)
                batch, longest = [], len(row.choice.ids) - 1 - split
            batch.append(row)
        if batch:
            self._rest(split, batch, cache, found)

    def _rest(self, split: int, batch: Sequence[_Row], cache: DynamicCache | None, found: list[list[float]]) -> None:
        device = self.model.device
        longest = len(batch[0].choice.ids) - 1 - split
        padded = [[*row.choice.ids[split:], *[0] * (split + longest + 1 - len(row.choice.ids))] for row in batch]
        ids = torch.tensor(padded, device=device)
        own = None if cache is None else _repeated(cache, torch.tensor([row.row for row in batch], device=device))
        first = min(max(0, row.choice.first - split) for row in batch)
        logits = self._logits(ids[:, :-1], own, longest - first)
        targets = ids[:, 1 + first :]
        logs = logits.gather(2, targets[:, :, None])[:, :, 0] - logits.logsumexp(dim=-1)
        places = torch.arange(first, longest, device=device)
        starts = torch.tensor([row.choice.first - split for row in batch], device=device)
        ends = torch.tensor([len(row.choice.ids) - 1 - split for row in batch], device=device)
        scored = (places >= starts[:, None]) & (places < ends[:, None])
        sums = logs.double().masked_fill(~scored, 0.0).sum(dim=1).tolist()
        for row, value in zip(batch, sums, strict=True):
            found[row.item][row.place] += value


def _causal(new: int, old: int, model: PreTrainedModel) -> torch.Tensor:
    """What ``new`` tokens behind ``old`` ones may look at, as summands, [1, 1, new, old + new].

    No row is padded in front, so one mask serves all rows; the library would make one for each, in each layer.
    """
    mask = torch.full((new, old + new), -math.inf, dtype=model.dtype, device=model.device)
    return mask.triu(old + 1)[None, None]


def _repeated(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of these rows; the given one stays as it is, since taking rows makes new tensors."""
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    taken.reorder_cache(cast("torch.LongTensor", rows))
    return taken
