"""Rows that are too long for one process: each holds a part of every row, and sees the keys and values of all.

Before attention the parts of keys and values are gathered over the processes of a row, and each process computes the
attention of its own queries under the mask of documents; the gradients go back to whoever made the keys. All else in a
dense model is done token by token. torch's own context parallelism takes no document masks and runs on GPUs alone.
Parts are equal and in order, so that the process with a row's end has most to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from prismlab.errors import CheckpointError, StageError
from prismlab.model.boundaries import Packed, check_known, document_mask, mamba_mixers, window_of
from prismlab.train.loss import IGNORED, LARGE, label_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "prism_context"
"""Under this name transformers knows the attention of this module."""


@dataclass(frozen=True)
class Context:
    """The processes that share rows with this one."""

    group: dist.ProcessGroup
    rank: int
    """Place of this process's part in a row."""
    size: int


def share_rows(rank: int, processes: int, size: int) -> Context | None:
    """The processes with which one shares its rows: ``size`` in a row of the ranks; None for 1. All have to call it.

    Raises:
        StageError: the number of processes is no multiple of ``size``.
    """
    if size == 1:
        return None
    if processes % size:
        raise StageError(
            f"{processes} processes cannot share rows by {size}: set 'nproc' to a multiple of 'context_parallel'"
        )
    mine: Any = None
    for first in range(0, processes, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= rank < first + size:
            mine = group
    return Context(mine, rank % size, size)


class _Gathered(torch.autograd.Function):
    """Parts [parts, batch, heads, tokens, width] of all processes, one after another along the tokens."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, context: Context) -> torch.Tensor:
        ctx.context = context
        mine = part.contiguous()
        parts = [torch.empty_like(mine) for _ in range(context.size)]
        dist.all_gather(parts, mine, group=context.group)
        return torch.cat(parts, dim=-2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        context: Context = ctx.context
        whole = gradients[0].contiguous()
        # Everybody's queries looked at these keys: their gradients are added up, and each takes its own part.
        dist.all_reduce(whole, group=context.group)
        return whole.chunk(context.size, dim=-2)[context.rank].contiguous(), None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    context: Context | None = rest.pop("context", None)
    if context is not None:
        both: Any = _Gathered.apply(torch.stack([key, value]), context)
        key, value = both.unbind(0)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


def attach(model: PreTrainedModel) -> None:
    """Have the attention of ``model`` gather keys and values wherever it is given a ``context``.

    Raises:
        CheckpointError: a hybrid, whose Mamba layers would need the state of the part before, or an unknown class.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if mamba_mixers(model):
        raise CheckpointError(
            f"context_parallel: {type(model).__name__} has Mamba layers, which carry a state along the row: a part of "
            "it cannot begin before the part in front of it has ended; set 'context_parallel: 1'"
        )
    check_known(model)
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def shared_row_losses(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    learned: torch.Tensor | None,
    documents: Packed | None,
    context: Context,
    large: int = LARGE,
) -> torch.Tensor:
    """``loss.row_losses`` by processes that share the rows.

    Args:
        model: ``attach`` was called on it.
        tokens: whole rows [rows, seq_len], the same in all processes of ``context``; so are ``learned`` and
            ``documents``.
        learned: whether a loss is taken on each token, bool [rows, seq_len]; None for all.
        documents: where documents lie that must not see one another; None where each row is one.
        context: who shares them.
        large: logits above which they are computed in pieces.

    Returns:
        The loss of each whole row [rows], the same in all processes. Its gradient is that of this process's part alone:
        the sum over processes is the row's.

    Raises:
        StageError: a row cannot be shared out evenly.
    """
    rows, length = tokens.shape
    if length % context.size:
        raise StageError(f"rows of {length} tokens cannot be shared by {context.size} processes; choose a multiple")
    part = length // context.size
    first = context.rank * part
    span = slice(first, first + part)
    ids = tokens.new_zeros(tokens.shape) if documents is None else documents.ids
    places = torch.arange(length, device=tokens.device).expand(rows, -1) if documents is None else documents.positions
    given = {
        "attention_mask": document_mask(ids, window_of(model), first, part),
        "position_ids": places[:, span],
        "context": context,
    }
    labels = tokens.new_full(tokens.shape, IGNORED)
    labels[:, :-1] = tokens[:, 1:] if learned is None else tokens[:, 1:].masked_fill(~learned[:, 1:], IGNORED)
    count = (labels != IGNORED).sum(dim=1).clamp(min=1)
    mine = label_losses(model, tokens[:, span], labels[:, span], given, large).sum(dim=1) / count
    whole = mine.detach().clone()
    dist.all_reduce(whole, group=context.group)
    return mine + (whole - mine.detach())
