"""The forward passes of one batch of responses: each prompt is read once, then a token of every row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch

from prismlab.errors import CheckpointError
from prismlab.model.caches import new_cache
from prismlab.model.shared import CLASSES, Groups, SharedCache, attending, fits, fixed_rotations

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


def passes(model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: Sequence[int], most: int) -> Passes:
    """The passes of a batch, by the faster way where the model allows it (``shared.fits``).

    Args:
        model: a causal language model.
        prompts: token ids.
        samples: rows of each prompt.
        most: longest response, in tokens.
    """
    longest = max(map(len, prompts))
    kind = SharedPasses if fits(model, longest + most) else Passes
    return kind(model, prompts, samples)


def without_gradients(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """What passes are made in: inference mode where it is safe, which spares 6% of a small model's time.

    Elsewhere gradients are only switched off. A buffer that a model makes in inference mode (some rotary embeddings do)
    could not be trained through later; the classes known here make none. Nor may weights be gathered from other
    processes in it.
    """
    weight = next(model.parameters())
    whole = type(weight) is torch.nn.Parameter and weight.device.type == "cpu"
    safe = whole and model.config.model_type in CLASSES and fixed_rotations(model)
    return torch.inference_mode() if safe else torch.no_grad()


class Passes:
    """A prompt's cache is repeated for its samples; this works with every cache whose rows can be taken by index."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], samples: Sequence[int]) -> None:
        self.model = model
        device = model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        padded = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self.ids = torch.tensor(padded, device=device)
        self.mask: torch.Tensor | None = None
        """[rows, tokens so far], 1 at tokens and 0 at the padding in front of them; None without padding."""
        if int(lengths.min()) < longest:
            before = torch.arange(longest, device=device)[None, :] >= longest - lengths[:, None]
            self.mask = before.to(torch.long)
        self.rows = torch.repeat_interleave(torch.tensor(samples, device=device))
        """[rows], the index of each row's prompt."""
        self.cache = self._new_cache()

    def _new_cache(self) -> DynamicCache:
        return new_cache(self.model)

    def steps(self) -> AbstractContextManager[None]:
        """What has to hold while ``step`` is called."""
        return nullcontext()

    def begin(self) -> torch.Tensor:
        """Read the prompts; logits [rows, vocabulary] of each row's first token."""
        given: dict[str, Any] = {}
        if self.mask is not None:
            # Positions count real tokens; those of padding are never looked at and only must not be negative.
            given = {"attention_mask": self.mask, "position_ids": (self.mask.cumsum(dim=1) - 1).clamp_min(0)}
        logits = self._forward(self.ids, **given)
        if len(self.rows) == len(self.ids):
            return logits
        self._repeat()
        return logits[self.rows]

    def _repeat(self) -> None:
        self.cache.reorder_cache(cast("torch.LongTensor", self.rows))
        self.mask = None if self.mask is None else self.mask[self.rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] of the token after ``tokens`` [rows], the last one drawn of each row."""
        if self.mask is None:
            return self._forward(tokens[:, None])
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        positions = self.mask.sum(dim=1, keepdim=True) - 1
        return self._forward(tokens[:, None], attention_mask=self.mask, position_ids=positions)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these, [rows that stay], ascending."""
        self.cache.reorder_cache(cast("torch.LongTensor", rows))
        self.mask = None if self.mask is None else self.mask[rows]

    def _forward(self, ids: torch.Tensor, **given: Any) -> torch.Tensor:
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **given)
        if output.past_key_values is not self.cache:
            raise CheckpointError(
                f"{type(self.model).__name__} does not keep its state in the cache of the library; it cannot be sampled"
            )
        return output.logits[:, -1]


class SharedPasses(Passes):
    """Each prompt's keys and values are held once, and all its samples attend to them together (``shared``)."""

    cache: SharedCache

    def _new_cache(self) -> SharedCache:
        return SharedCache(self.model)

    def begin(self) -> torch.Tensor:
        """See ``Passes.begin``."""
        logits = super().begin()
        bias = None
        if self.mask is not None:
            bias = torch.zeros(self.mask.shape).masked_fill(self.mask == 0, -torch.inf)[:, None]
        self.cache.open(Groups(self.rows, bias))
        lengths = torch.full((len(self.ids),), self.ids.shape[1]) if self.mask is None else self.mask.sum(dim=1)
        self._positions = lengths[self.rows]
        return logits

    def _repeat(self) -> None:
        """The cache is told by ``open``."""

    def steps(self) -> AbstractContextManager[None]:
        """See ``Passes.steps``."""
        return attending(self.model)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See ``Passes.step``."""
        logits = self._forward(tokens[:, None], position_ids=self._positions[:, None], shared_prompts=self.cache)
        self._positions = self._positions + 1
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """See ``Passes.keep``."""
        self.cache.keep(rows)
        self._positions = self._positions[rows]
