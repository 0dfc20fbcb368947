"""Attention of many samples to one prompt: its keys and values are kept once, those of the responses by row.

A row attends to its prompt and to its own response. The queries of all samples of a prompt meet the prompt's keys in
one matrix product, where a cache that was repeated is read as many times as there are samples (Hydragen, Juravsky et
al. 2024). Both parts share one softmax, so nothing is approximated. All rows of a batch have drawn equally many tokens:
their own part has no padding and needs no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "prismlab_shared_prompts"
"""By which the library knows this attention."""
CLASSES = ("llama", "mistral", "granite", "granitemoehybrid", "nemotron_h")
"""Model types whose attention hands queries, keys and further arguments to the library's interface unchanged."""

BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that go by the longest position of a pass, and change the model's buffers in it."""
ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers that a ``SharedLayer`` can take the place of, the second as long as its window holds everything."""


class Groups:
    """Which prompt each row continues; rows of one prompt stand side by side.

    Args:
        prompts: [rows], the prompt's index, ascending, without a gap.
        bias: [prompts, 1, tokens], 0 at a prompt's tokens and minus infinity at its padding; None without padding.
    """

    def __init__(self, prompts: torch.Tensor, bias: torch.Tensor | None) -> None:
        counts = torch.bincount(prompts)
        self.prompts, self.bias = prompts, bias
        self.count, self.width = len(counts), int(counts.max())
        self.places: torch.Tensor | None = None
        """[rows], the row's place among ``count * width`` places, ``width`` a prompt; None where all are taken."""
        if self.count * self.width > len(prompts):
            first = counts.cumsum(0) - counts
            self.places = prompts * self.width + torch.arange(len(prompts), device=prompts.device) - first[prompts]

    def keep(self, rows: torch.Tensor) -> tuple[Groups, torch.Tensor | None]:
        """The groups of some rows, and which prompts have any (None: all)."""
        left, prompts = torch.unique_consecutive(self.prompts[rows], return_inverse=True)
        if len(left) == self.count:
            return Groups(prompts, self.bias), None
        return Groups(prompts, None if self.bias is None else self.bias[left]), left

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[heads, rows, a, b] to [heads * prompts, width * a, b], zeros at places that no row has."""
        heads, _, a, b = rows.shape
        if self.places is not None:
            full = rows.new_zeros(heads, self.count * self.width, a, b)
            full[:, self.places] = rows
            rows = full
        return rows.view(heads * self.count, self.width * a, b)

    def gather(self, spread: torch.Tensor, heads: int) -> torch.Tensor:
        """What ``spread`` undoes: [heads * prompts, width * a, b] to [heads, rows, a, b]."""
        every = spread.view(heads, self.count * self.width, -1, spread.shape[-1])
        return every if self.places is None else every[:, self.places]


class SharedLayer(DynamicLayer):
    """Keys and values of one layer. Until ``open`` is called it is the library's own, a row a prompt."""

    opened = False

    def open(self, rows: int) -> None:
        """From here on hold the prompts once, and what ``update`` brings by row."""
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        _, self._heads, self._before, self._size = keys.shape
        # Heads come first, so that neither a prompt's rows nor all rows have to be moved to stand side by side.
        self._prompt_keys, self._prompt_values = (part.transpose(0, 1).contiguous() for part in (keys, values))
        self.keys, self.values = (keys.new_empty(self._heads, rows, 0, self._size) for _ in range(2))
        self.length, self.opened = 0, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states [rows, heads, 1, size] of one token a row; ``attend`` reads them."""
        if not self.opened:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None
        assert self.values is not None
        if self.length == self.keys.shape[2]:
            self.keys, self.values = self._longer(self.keys), self._longer(self.values)
        self.keys[:, :, self.length] = key_states[:, :, 0].transpose(0, 1)
        self.values[:, :, self.length] = value_states[:, :, 0].transpose(0, 1)
        self.length += 1
        return key_states, value_states

    def _longer(self, old: torch.Tensor) -> torch.Tensor:
        new = old.new_empty(*old.shape[:2], self.length + max(64, self.length // 4), self._size)
        new[:, :, : self.length] = old
        return new

    def get_seq_length(self) -> int:
        """Tokens before the next one, the prompt's included."""
        return self._before + self.length if self.opened else super().get_seq_length()

    def keep(self, rows: torch.Tensor, prompts: torch.Tensor | None) -> None:
        """Drop all rows but these, and all prompts but these (None: none)."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        if prompts is not None:
            self._prompt_keys = self._prompt_keys.index_select(1, prompts)
            self._prompt_values = self._prompt_values.index_select(1, prompts)

    def attend(self, query: torch.Tensor, groups: Groups) -> torch.Tensor:
        """Softmax attention to prompt and response.

        Args:
            query: [rows, heads, size], scaled; several heads may share those of the keys (Ainslie et al. 2023).
            groups: the prompt of each row.

        Returns:
            [rows, heads * size].
        """
        assert self.keys is not None
        assert self.values is not None
        rows, heads, size, before = len(query), self._heads, self._size, self._before
        flat = (heads * rows, -1, size)
        asked = query.view(rows, heads, -1, size).transpose(0, 1).contiguous()
        keys, values = (part[:, :, : self.length].view(flat) for part in (self.keys, self.values))
        prompt_keys, prompt_values = (part.view(-1, before, size) for part in (self._prompt_keys, self._prompt_values))
        shared = torch.bmm(groups.spread(asked), prompt_keys.transpose(1, 2))
        if groups.bias is not None:
            shared.view(heads, groups.count, -1, before).add_(groups.bias)
        own = torch.bmm(asked.view(flat), keys.transpose(1, 2))
        scores = torch.cat([groups.gather(shared, heads).reshape(heads * rows, -1, before), own], dim=-1)
        weights = scores.softmax(dim=-1)
        to_prompt = groups.spread(weights.view(heads, rows, -1, weights.shape[-1])[..., :before])
        found = groups.gather(torch.bmm(to_prompt, prompt_values), heads).reshape(flat)
        found = torch.baddbmm(found, weights[:, :, before:], values)
        return found.view(heads, rows, -1, size).transpose(0, 1).reshape(rows, -1)


class SharedCache(DynamicCache):
    """The library's cache for a model, with attention layers that hold each prompt once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self.layers = [SharedLayer() if type(layer) in ATTENTION else layer for layer in self.layers]
        self.groups: Groups | None = None

    def open(self, groups: Groups) -> None:
        """After the prompts were read: give each row a response of its own."""
        self.groups = groups
        for layer in self.layers:
            if isinstance(layer, SharedLayer):
                layer.open(len(groups.prompts))
            else:
                layer.reorder_cache(cast("torch.LongTensor", groups.prompts))

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these."""
        assert self.groups is not None
        self.groups, prompts = self.groups.keep(rows)
        for layer in self.layers:
            if isinstance(layer, SharedLayer):
                layer.keep(rows, prompts)
            else:
                layer.reorder_cache(cast("torch.LongTensor", rows))


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shared_prompts: SharedCache | None = None,
    **_rest: Any,
) -> tuple[torch.Tensor, None]:
    """The library's interface: ``query`` [rows, heads, 1, size]; returns [rows, 1, heads, size]."""
    if shared_prompts is None or shared_prompts.groups is None:
        raise TypeError(f"{type(module).__name__} does not hand 'shared_prompts' on to its attention")
    rows, heads, _one, size = query.shape
    scaled = query[:, :, 0] * (size**-0.5 if scaling is None else scaling)
    layer: Any = shared_prompts.layers[module.layer_idx]
    return layer.attend(scaled, shared_prompts.groups).view(rows, 1, heads, size), None


AttentionInterface.register(NAME, _attention)


def fits(model: PreTrainedModel, tokens: int) -> bool:
    """Whether responses can be sampled so: a known class in float32 on a CPU, whose windows hold ``tokens`` tokens.

    On a GPU the library's fused kernels are faster than these products, and this path was never measured there.
    """
    config: Any = model.config
    weight = next(model.parameters())
    layers = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicLayer)]
    return (
        config.model_type in CLASSES
        and config._attn_implementation in ("sdpa", "eager")
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and all(type(layer) in ATTENTION for layer in layers)
        and all(tokens <= getattr(layer, "sliding_window", tokens) for layer in layers)
    )


def fixed_rotations(model: PreTrainedModel) -> bool:
    """Whether the model's rotary embeddings are the same in every forward pass."""
    config: Any = model.config
    rope: Any = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type", "default") not in BY_LENGTH


@contextmanager
def attending(model: PreTrainedModel, name: str = NAME) -> Iterator[None]:
    """Have the model attend, inside the block, by what the library knows by ``name``.

    By default that is ``shared_prompts``, an argument of its forward pass.
    """
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
