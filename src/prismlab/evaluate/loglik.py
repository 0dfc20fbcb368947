"""Log-likelihoods of choices, with the computation of what choices share done once.

The choices of one item mostly begin alike. Where the model allows it (``trees``), items run as trees of tokens, several
in a row, none of their tokens twice. Else a forward pass over the beginning that all choices share fills a cache, the
cache is repeated for the choices, and each choice's own rest is run on it. Items whose shared beginnings are about
equally long run together, and share exactly as many tokens as the shortest of them: so no beginning is padded, and
neither masks nor positions need be told to a model. Rests are padded at their end, where a causal model cannot look.

Sums, and the logarithms of the sums of exponents, are made in float64: of a hundred tokens added up in float32 the last
digits are noise, and TruthfulQA's mc2 takes an exponent of that sum.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from prismlab.errors import StageError
from prismlab.evaluate import trees
from prismlab.evaluate.encoded import Encoder, Tokens, shared_beginning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORWARD_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens a forward pass over rests, by kind of device; beginnings, which are equally long, get four times as many."""
TREE_TOKENS = 1024
"""Tokens a forward pass over trees: of so many a layer's numbers stay in a core's cache at a width of some hundreds."""
FORWARD_LOGITS = 2**24
"""Logits a forward pass (128 MiB in float64), unless one item or row alone needs more."""
SIDE_BY_SIDE = 8
"""Forward passes over trees at once: each has logits of its own in memory, and Python runs for one at a time."""
SLACK = 24
"""Tokens by which shared beginnings of one group may differ: so many are run again for each choice."""
SHORTEST = 8
"""A shared beginning of fewer tokens is not worth a pass of its own."""


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions the model has; None where its configuration does not say."""
    config = model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return None


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
            forward_tokens: most tokens a forward pass over trees or rests, unless one item or row alone has more; None
                for ``TREE_TOKENS`` and ``FORWARD_TOKENS``.

        Raises:
            CheckpointError: the tokenizer has neither a start nor an end token.
        """
        self.model = model
        self.encoder = Encoder(tokenizer, positions_of(model))
        self.tokens_run = 0
        """Tokens that went through the model so far, padding included."""
        self._keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._shares = not getattr(type(model), "_is_stateful", False)
        self._window = trees.window_of(model) if trees.fits(model) else 0
        """Tokens of the longest text that may be part of a tree."""
        if self._window:
            trees.keep_freed_memory()
        vocabulary = int(model.config.get_text_config().vocab_size)
        self._tree_tokens, self._tree_rows = forward_tokens or TREE_TOKENS, max(1, FORWARD_LOGITS // vocabulary)
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
        short = [all(len(choice.ids) - 1 <= self._window for choice in item) for item in encoded]
        self._run_packs([trees.planted(at, encoded[at]) for at, fits in enumerate(short) if fits], found)
        for at, item in enumerate(encoded):
            # Of choices that are equal one was run, so that they are equally likely to the last bit.
            found[at] = [found[at][item.index(choice)] for choice in item]
        for split, group in self._groups(encoded, [at for at, fits in enumerate(short) if not fits]):
            self._run(split, group, encoded, found)
        if not all(math.isfinite(value) for values in found for value in values):
            raise StageError("a log-likelihood is NaN or infinite: the model's weights are broken")
        return [
            [(value, choice.scored) for value, choice in zip(values, item, strict=True)]
            for values, item in zip(found, encoded, strict=True)
        ]

    def _run_packs(self, items: Sequence[trees.Planted], found: list[list[float]]) -> None:
        """Set the log-likelihoods of items that are trees.

        Forward passes run side by side, on one thread each up to ``SIDE_BY_SIDE``: attention of a tree is many small
        products, which do not gain by being split over threads. So up to that many threads change no bit of a result.
        """
        packs, threads = list(self._packs(items)), torch.get_num_threads()
        workers = min(threads, SIDE_BY_SIDE)
        self.tokens_run += sum(item.tree.tokens for item in items)

        def run(pack: Sequence[trees.Planted]) -> None:
            with torch.no_grad():  # a matter of each thread
                self._run_trees(pack, found)

        try:
            with (
                trees.attending(self.model),
                ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool,
            ):
                for _ in pool.map(run, packs):
                    pass
        finally:
            torch.set_num_threads(threads)

    def _packs(self, items: Sequence[trees.Planted]) -> Iterator[list[trees.Planted]]:
        """Items that run together as trees, in their order: how long they are does not matter."""
        pack: list[trees.Planted] = []
        tokens = rows = 0
        for item in items:
            more, wanted = item.tree.tokens, sum(len(places) for _, places, _ in item.scored)
            if pack and (tokens + more > self._tree_tokens or rows + wanted > self._tree_rows):
                yield pack
                pack, tokens, rows = [], 0, 0
            pack.append(item)
            tokens, rows = tokens + more, rows + wanted
        if pack:
            yield pack

    def _run_trees(self, pack: Sequence[trees.Planted], found: list[list[float]]) -> None:
        """Set the log-likelihoods of the items of one forward pass."""
        scored: list[tuple[int, int, np.ndarray[Any, Any], tuple[int, ...]]] = []
        start = 0
        for item in pack:
            scored += [(item.item, place, start + places, targets) for place, places, targets in item.scored]
            start += item.tree.tokens
        # What predicts the first token of several choices is one row of logits.
        wanted, rows = np.unique(np.concatenate([places for _, _, places, _ in scored]), return_inverse=True)
        logits = trees.logits_of(self.model, [item.tree for item in pack], torch.from_numpy(wanted))
        sums = torch.cat([part.double().logsumexp(dim=-1) for part in logits.split(self._tree_rows)])
        row = torch.from_numpy(rows)
        targets = torch.tensor([target for *_, some in scored for target in some])
        values = (logits[row, targets].double() - sums[row]).split([len(some) for *_, some in scored])
        for (item_at, place, _, _), value in zip(scored, values, strict=True):
            found[item_at][place] = float(value.sum())

    def _groups(self, encoded: Sequence[Sequence[Tokens]], items: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Items that run together, with the number of tokens that each shares among its choices (0: all run whole)."""
        shared = {at: shared_beginning(encoded[at]) if self._shares else 0 for at in items}
        alone = [at for at, n in shared.items() if n < SHORTEST]
        if alone:
            yield 0, alone
        group: list[int] = []
        for at in sorted((at for at, n in shared.items() if n >= SHORTEST), key=lambda at: shared[at]):
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
        """Logits, in float64, of the last ``keep`` positions, [rows, keep, vocabulary]; the cache grows."""
        self.tokens_run += ids.numel()
        given: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        if cache is not None and cache.get_seq_length() and all(type(layer) is DynamicLayer for layer in cache.layers):
            given["attention_mask"] = _causal(ids.shape[1], cache.get_seq_length(), self.model)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **given)
        return out.logits[:, -keep:].double()

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
            values = logs[index[:, 0], index[:, 1], index[:, 2]].tolist()
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
        sums = logs.masked_fill(~scored, 0.0).sum(dim=1).tolist()
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
