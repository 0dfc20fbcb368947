"""Rows that hold several documents, computed as if each document stood alone.

Attention gets an explicit block-diagonal mask and positions that begin anew (position resets alone are not enough:
granitemoehybrid does not hand positions to its mask, so that even its dense form would leak). Mamba mixers carry state
along the row: their GPU kernels are told where documents begin (``seq_idx``), and without kernels the mixer runs on the
documents side by side, of like length together, and the results are put back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismlab.errors import CheckpointError, shown
from prismlab.model.families import DOCUMENTS_APART

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MARK = "_prism_by_document"
_BY_KIND = ("granitemoehybrid", "nemotron_h")
"""Classes that take masks by kind of layer; one for all they would hand to their Mamba layers, too."""


@dataclass(frozen=True)
class _Group:
    """Documents of like length, side by side."""

    index: torch.Tensor
    """Which token of the flat batch [rows * seq_len] stands at each place, int64 [documents, longest]; what is behind
    a document repeats its last token, which nothing before it can see."""
    keep: torch.Tensor
    """Places of the flat group that hold a document's own tokens, int64 [tokens]."""


@dataclass(frozen=True)
class Packed:
    """Where the documents of a batch of rows lie."""

    ids: torch.Tensor
    """Number of each token's document in its row, from 0, int32 [rows, seq_len]; never falls along a row."""
    positions: torch.Tensor
    """Place of each token in its document, from 0, int64 [rows, seq_len]."""

    @classmethod
    def of(cls, ids: NDArray[np.int32], device: torch.device | None = None) -> Packed | None:
        """From the documents' numbers [rows, seq_len]; None where each row is one document: nothing is needed then."""
        if not (ids[:, -1] != ids[:, 0]).any():
            return None
        return cls(*(torch.as_tensor(part).to(device) for part in (ids, positions(ids))))

    @cached_property
    def groups(self) -> tuple[list[_Group], torch.Tensor]:
        """The documents by length (of a group the longest has less than twice the shortest's), and for each token its
        place in the groups' tokens one after another, int64 [rows * seq_len]."""
        flat = self.positions.flatten().cpu().numpy()
        starts = np.flatnonzero(flat == 0)
        lengths = np.diff(np.append(starts, flat.size))
        classes = np.frexp(lengths)[1]
        groups: list[_Group] = []
        seen: list[NDArray[np.int64]] = []
        for size in np.unique(classes):
            chosen = classes == size
            longest = int(lengths[chosen].max())
            ahead = np.arange(longest)
            inside = ahead < lengths[chosen][:, None]
            index = starts[chosen][:, None] + np.minimum(ahead, lengths[chosen][:, None] - 1)
            seen.append(index[inside])
            places = (torch.as_tensor(part).to(self.ids.device) for part in (index, np.flatnonzero(inside)))
            groups.append(_Group(*places))
        order = np.empty(flat.size, np.int64)
        order[np.concatenate(seen)] = np.arange(flat.size)
        return groups, torch.as_tensor(order).to(self.ids.device)


def positions(ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Place of each token in its document, from 0, int64 of the shape of ``ids`` ([rows, seq_len])."""
    at = np.arange(ids.shape[1], dtype=np.int64)
    begins = np.ones(ids.shape, np.bool_)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return at - np.maximum.accumulate(np.where(begins, at, 0), axis=1)


def document_mask(
    ids: torch.Tensor, window: int | None = None, first: int = 0, count: int | None = None
) -> torch.Tensor:
    """Whether a query (axis 2) sees a key (axis 3): not later, of its document, within the window; bool [b, 1, q, k].

    Args:
        ids: documents of the keys [b, k].
        window: how many tokens a query looks back, itself included; None for all.
        first: place of the first query among the keys.
        count: number of queries; None for all from ``first``.
    """
    keys = torch.arange(ids.shape[1], device=ids.device)
    queries = keys[first:] if count is None else keys[first : first + count]
    seen = queries[:, None] >= keys
    if window is not None:
        seen &= queries[:, None] - keys < window
    return (ids[:, queries, None] == ids[:, None, :]).logical_and_(seen)[:, None]


def kernels_know_documents(device: torch.device) -> bool:
    """Whether Mamba mixers run by kernels that take document boundaries themselves."""
    return device.type == "cuda" and all(importlib.util.find_spec(name) for name in ("mamba_ssm", "causal_conv1d"))


def mamba_mixers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The Mamba-2 mixers of a model."""
    return [module for module in model.modules() if hasattr(module, "A_log") and hasattr(module, "conv1d")]


def _by_document(mixer: Any) -> Callable[..., torch.Tensor]:
    original, chunk = mixer.forward, int(mixer.chunk_size)

    def forward(hidden_states: torch.Tensor, *rest: Any, documents: Packed | None = None, **more: Any) -> torch.Tensor:
        if documents is None:
            return original(hidden_states, *rest, **more)
        groups, order = documents.groups
        flat = hidden_states.flatten(0, 1)
        parts: list[torch.Tensor] = []
        for group in groups:
            # The scan fills each document up to a whole chunk; a chunk longer than the document would be for nothing.
            mixer.chunk_size = min(chunk, group.index.shape[1])
            try:
                out = original(flat[group.index], *rest, **more)
            finally:
                mixer.chunk_size = chunk
            parts.append(out.flatten(0, 1)[group.keep])
        return torch.cat(parts)[order].view(hidden_states.shape)

    return forward


def check_known(model: PreTrainedModel) -> None:
    """Raise CheckpointError where it is not known how a class keeps documents apart."""
    kind = str(model.config.model_type)
    layers = {str(kind) for kind in getattr(model.config, "layer_types", None) or ()}
    # One mask is handed to all attention layers: a class that mixes full and sliding ones would need two.
    mixed = {"full_attention", "sliding_attention"} <= layers
    if kind not in DOCUMENTS_APART or mixed:
        why = "mixes full and sliding attention layers" if mixed else f"is none of {', '.join(DOCUMENTS_APART)}"
        raise CheckpointError(
            f"boundaries: respect: the class '{shown(kind, 40)}' {why}, so nobody has shown that its documents stay "
            "apart; set 'boundaries: ignore' to let them see one another"
        )


def prepare(model: PreTrainedModel, device: torch.device | None = None) -> None:
    """Make ``model`` ready for ``arguments``: without kernels its Mamba mixers learn to run document by document.

    Args:
        model: changed in place.
        device: where it will run; None for where it lies.

    Raises:
        CheckpointError: a class for which it is not known how to keep documents apart.
    """
    check_known(model)
    if kernels_know_documents(model.device if device is None else device):
        return
    for mixer in mamba_mixers(model):
        if not hasattr(mixer, _MARK):
            mixer.forward = _by_document(mixer)
            setattr(mixer, _MARK, True)


def window_of(model: PreTrainedModel) -> int | None:
    """Tokens that attention looks back, itself included; None for all."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    uses = getattr(config, "use_sliding_window", True)
    return int(window) if window is not None and uses else None


def arguments(model: PreTrainedModel, packed: Packed) -> dict[str, Any]:
    """What a forward pass of a prepared ``model`` must be given so that no document sees another.

    Args:
        model: ``prepare`` was called on it.
        packed: the documents of the batch.

    Returns:
        Keywords of ``model(input_ids=..., use_cache=False, **arguments)``.
    """
    kind, window = str(model.config._attn_implementation), window_of(model)
    if kind == "flex_attention":
        mask: Any = _block_mask(packed.ids, window)
    else:
        mask = document_mask(packed.ids, window)
        if kind == "eager":
            # The plain implementation adds its mask to the scores.
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
        elif kind != "sdpa":
            raise CheckpointError(f"attention '{kind}' takes no document mask; use sdpa, eager or flex_attention")
    if model.config.model_type in _BY_KIND:
        mask = {"full_attention": mask, "linear_attention": None}
    given: dict[str, Any] = {"attention_mask": mask, "position_ids": packed.positions}
    if mamba_mixers(model):
        if kernels_know_documents(packed.ids.device):
            given["seq_idx"] = packed.ids
        else:
            given["documents"] = packed
    return given


def _block_mask(ids: torch.Tensor, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        del head
        inside = (query >= key) & (ids[row, query] == ids[row, key])
        return inside if window is None else inside & (query - key < window)

    rows, length = ids.shape
    # Uncompiled, it would first make the whole mask, of rows x length^2 bytes.
    make = torch.compile(create_block_mask) if ids.device.type == "cuda" else create_block_mask
    return make(seen, rows, None, length, length, device=ids.device)
