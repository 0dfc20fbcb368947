"""The cache of keys and values that sampling fills: growing buffers in place of copies, and what it costs in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with room ahead, where the library's layer copies the whole cache at every token."""

    def _room(self, length: int, like: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
        """A buffer [batch, heads, length and room, head size] that starts with ``old``."""
        buffer = like.new_empty(like.shape[0], like.shape[1], length + max(64, length // 4), like.shape[-1])
        if old is not None and old.numel():
            buffer[:, :, : old.shape[-2]] = old
        return buffer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new states; returns all, as views [batch, heads, length, head size]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = None
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._buffers = self._room(end, key_states, self.keys), self._room(end, value_states, self.values)
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take rows by index; the result no longer lies in the buffer, so the next token makes a new one."""
        super().reorder_cache(beam_idx)
        self._buffers = None


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """The library's cache for this model, its plain attention layers replaced by growing ones."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def bytes_a_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values that one token of one row holds, over all attention layers.

    A layer with a sliding window holds less, the longer the row; it is counted in full. A recurrent state is not
    counted: it does not grow.
    """
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = next(model.parameters()).element_size()
    layers = sum(isinstance(layer, DynamicLayer) for layer in new_cache(model).layers)
    return 2 * layers * heads * size * width
