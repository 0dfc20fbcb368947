"""Samplers: prompts in, completions with log-probabilities out.

:class:`TransformersSampler` needs no server: a prompt is read once for its samples, ended rows leave the batch, and
each row draws from a random stream of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch

from prismlab.cost.rl import BATCH_ROWS, CPU_CACHE_BYTES, GPU_SHARE
from prismlab.errors import CheckpointError, StageError
from prismlab.model.caches import bytes_a_token
from prismlab.model.draws import draw, uniforms
from prismlab.model.passes import passes, without_gradients
from prismlab.run.step import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEEP_ENDED = 0.875
"""Rows that have ended stay in the batch until only this share is left: taking them out copies the whole cache."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How responses are drawn."""

    max_new_tokens: int
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches this (nucleus sampling, Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; at least one token must be drawn")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One response. Log-probabilities are in nats, one a token of ``token_ids``, the stop token included."""

    token_ids: list[int]
    """Tokens drawn; the last one is the stop token if ``finished``."""
    text: str
    """The tokens as text, without the stop token; other special tokens are shown as they are."""
    logprobs: list[float] | None
    """Under the model's own distribution: temperature 1, all tokens. None from a sampler that does not tell."""
    sampler_logprobs: list[float] | None
    """Under the distribution that was sampled from, after temperature and top-p; zeros when greedy."""
    finished: bool
    """Whether the stop token was drawn. False: the response was cut at its longest."""
    counted: int | None = None
    """Tokens by the count of a server that does not tell which they are; None where ``token_ids`` holds them."""

    @property
    def tokens(self) -> int:
        """Tokens of the response, the stop token included."""
        return len(self.token_ids) if self.counted is None else self.counted


class Sampler(Protocol):
    """Anything that draws completions from a model."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        settings: SamplingSettings,
        seed: int | Sequence[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """``n`` completions of each prompt, in the order of ``prompts``.

        Args:
            prompts: token ids, as :func:`prompt_ids` gives them.
            n: samples a prompt.
            settings: how to draw.
            seed: one number for all: the stream of a row is named by seed, place of the prompt and sample. Or one
                number a prompt: the stream is named by that number and the sample, wherever the prompt stands.
            progress: advanced by the number of completions done; the caller has called ``start``.
        """
        ...


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids that a model is given for ``prompt``: the one rule for evaluation, scoring and RL.

    Training joins documents by the end-of-sequence token, so a tokenizer without a start token of its own gets that one
    in front, unless it puts it there itself. Text that spells a special token stays text, as it does in training.
    """
    ids = cast("list[int]", tokenizer(prompt, split_special_tokens=True)["input_ids"])
    eos, bos = cast("int | None", tokenizer.eos_token_id), tokenizer.bos_token_id
    own_start = bos is not None and bos != eos
    if own_start or eos is None or (ids and ids[0] == eos):
        return ids
    return [eos, *ids]


def stop_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a response.

    Raises:
        CheckpointError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise CheckpointError("the tokenizer has no end-of-sequence token; set 'eos_token' in its config")
    return cast("int", tokenizer.eos_token_id)


def seeds_of(prompts: int, seed: int | Sequence[int], one: Callable[[int, int], int]) -> list[int]:
    """A seed for each prompt: those given, or ``one`` of the seed of all and the prompt's place."""
    seeds = [one(seed, place) for place in range(prompts)] if isinstance(seed, int) else list(seed)
    if len(seeds) != prompts:
        raise ValueError(f"{prompts} prompts need {prompts} seeds, not {len(seeds)}")
    return seeds


_Rows = list[tuple[int, int]]
"""The rows of one batch as (place of the prompt, sample), a prompt's rows side by side."""


class TransformersSampler:
    """Samples with a transformers model in this process; gradients, mode and weights of the model are left as they are.

    Works with attention, sliding-window and hybrid Mamba models, since every cache layer of the library can take rows
    by index. A model that carries a recurrent state gets batches of equally long prompts only, without padding: padding
    in front would have to be masked out of the state in each model class, which cannot be taken for granted.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_rows: int = BATCH_ROWS
    ) -> None:
        """
        Args:
            model: a causal language model; it is used where it lies, so a trainer may pass the model it trains.
            tokenizer: its end-of-sequence token is the stop token.
            batch_rows: most rows sampled side by side, fewer where memory does not bear the longest responses of so
                many; results do not depend on it.

        Raises:
            CheckpointError: the tokenizer has no end-of-sequence token.
        """
        stop = stop_token(tokenizer)
        if batch_rows < 1:
            raise ValueError(f"batch_rows is {batch_rows}; at least one row must be sampled at a time")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_rows = batch_rows
        self.stop = stop
        self.equal_lengths = bool(getattr(type(model), "_is_stateful", False))
        self._told = False
        self.positions: int | None = getattr(model.config, "max_position_embeddings", None)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        settings: SamplingSettings,
        seed: int | Sequence[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """See :class:`Sampler`. A response also ends, unfinished, where the model's positions end.

        Raises:
            StageError: a prompt is empty, or leaves no position for a response.
        """
        self._check(prompts, n)
        longest = max(map(len, prompts), default=0)
        if self.positions is not None and longest + settings.max_new_tokens > self.positions:
            self._tell(longest, progress)
        seeds = seeds_of(len(prompts), seed, lambda one, _place: one)
        places = range(len(prompts)) if isinstance(seed, int) else [0] * len(prompts)
        done: list[list[Completion | None]] = [[None] * n for _ in prompts]
        training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(prompts, n, self._most_rows(longest + settings.max_new_tokens)):
                streams = [(seeds[p], places[p], s) for p, s in batch]
                with without_gradients(self.model):
                    completions = self._run(batch, prompts, settings, streams)
                for (p, s), completion in zip(batch, completions, strict=True):
                    done[p][s] = completion
                if progress is not None:
                    progress.advance(len(completions))
        finally:
            self.model.train(training)
        return [[c for c in row if c is not None] for row in done]

    def _check(self, prompts: Sequence[Sequence[int]], n: int) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; at least one sample a prompt must be drawn")
        for place, prompt in enumerate(prompts):
            if not prompt:
                raise StageError(f"prompt {place} has no tokens; a model needs at least one to continue from")
            if self.positions is not None and len(prompt) >= self.positions:
                raise StageError(
                    f"prompt {place} has {len(prompt)} tokens, but the model has {self.positions} positions for prompt "
                    "and response together; leave out such items or take a model with more positions"
                )

    def _tell(self, longest: int, progress: Progress | None) -> None:
        """Say once that some responses cannot become as long as was asked for."""
        if progress is None or self._told:
            return
        self._told = True
        progress.note(
            f"the longest prompt has {longest} tokens, and with its response it exceeds the model's {self.positions} "
            "positions: such responses are cut there and counted as truncated"
        )

    def _most_rows(self, tokens: int) -> int:
        """Rows of ``tokens`` tokens each that memory bears side by side, at most ``batch_rows``, at least one."""
        if self.model.device.type == "cuda":
            free = GPU_SHARE * torch.cuda.mem_get_info(self.model.device)[0]
        else:
            free = CPU_CACHE_BYTES
        if self.positions is not None:
            tokens = min(tokens, self.positions)
        return max(1, min(self.batch_rows, int(free // (tokens * bytes_a_token(self.model)))))

    def _batches(self, prompts: Sequence[Sequence[int]], n: int, most: int) -> Iterator[_Rows]:
        """Prompts of like length together, a prompt's samples split only where they alone exceed ``most`` rows."""
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
        batch: _Rows = []
        for p in order:
            for first in range(0, n, most):
                part = [(p, s) for s in range(first, min(n, first + most))]
                other = self.equal_lengths and batch and len(prompts[batch[0][0]]) != len(prompts[p])
                if other or len(batch) + len(part) > most:
                    yield batch
                    batch = []
                batch += part
        if batch:
            yield batch

    def _run(
        self,
        batch: _Rows,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        streams: Sequence[tuple[int, int, int]],
    ) -> list[Completion]:
        """Sample one batch to its end."""
        device = self.model.device
        limits = self._limits(batch, prompts, settings)
        limit, steps = torch.tensor(limits, device=device), max(limits)
        numbers = uniforms(streams, steps if settings.temperature else 0).to(device)
        ids = torch.zeros(len(streams), steps, dtype=torch.long, device=device)
        logs = torch.zeros(2, len(streams), steps, device=device)
        lengths = torch.zeros(len(streams), dtype=torch.long, device=device)
        rows = torch.arange(len(streams), device=device)
        running = torch.ones(len(streams), dtype=torch.bool, device=device)
        samples = Counter(p for p, _ in batch)
        model = passes(self.model, [prompts[p] for p in samples], list(samples.values()), steps)
        logits = model.begin()
        with model.steps():
            for step in range(steps):
                tokens, own, sampled = draw(logits, settings, numbers[rows, step] if settings.temperature else None)
                ids[rows, step], logs[0, rows, step], logs[1, rows, step] = tokens, own, sampled
                lengths[rows[running]] = step + 1
                running &= (tokens != self.stop) & (limit[rows] > step + 1)
                left = int(running.sum())
                if left == 0:
                    break
                if left <= KEEP_ENDED * len(rows):
                    keep = running.nonzero()[:, 0]
                    model.keep(keep)
                    rows, tokens, running = rows[keep], tokens[keep], running[keep]
                logits = model.step(tokens)
        return self._completions(ids.cpu(), logs.cpu(), lengths.tolist())

    def _limits(self, batch: _Rows, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> list[int]:
        """Most new tokens of each row: what was asked for, or the positions that the prompt leaves."""
        most = settings.max_new_tokens
        if self.positions is None:
            return [most] * len(batch)
        return [min(most, self.positions - len(prompts[p])) for p, _ in batch]

    def _completions(self, ids: torch.Tensor, logs: torch.Tensor, lengths: list[int]) -> list[Completion]:
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        finished = [row[-1] == self.stop for row in rows]
        spoken = [row[:-1] if end else row for row, end in zip(rows, finished, strict=True)]
        texts = self.tokenizer.batch_decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return [
            Completion(
                token_ids=row,
                text=text,
                logprobs=logs[0, i, : len(row)].tolist(),
                sampler_logprobs=logs[1, i, : len(row)].tolist(),
                finished=end,
            )
            for i, (row, text, end) in enumerate(zip(rows, texts, finished, strict=True))
        ]
