"""Next-token loss, without the whole logits of a large vocabulary where these would be large.

``logits = scale * (hidden @ head.T)``, capped where the class caps them, and the loss of a token is
``logsumexp(logits) - logits[label]``. In one piece that takes tokens x vocabulary floats several times over (8,192 x
128,256 are 4.2 GB); here it is done for some tokens at a time, and the backward pass computes each piece anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from prismlab.model import boundaries
from prismlab.model.boundaries import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
"""Label of a token on which no loss is taken."""
LARGE = 2**26
"""Logits (tokens x vocabulary) of one forward pass above which they are computed in pieces, and of one piece: 256 MiB
in float32."""
_CHECKED = "_prism_head"
_SAME = 1e-4


@dataclass(frozen=True)
class Head:
    """How a class makes logits of its last hidden states."""

    weight: torch.Tensor
    """[vocabulary, width]."""
    scale: float
    """Factor of the product: granite divides by its ``logits_scaling``."""
    cap: float | None
    """``cap * tanh(logits / cap)`` is applied; None for none."""


def head_of(model: PreTrainedModel) -> Head | None:
    """The output head, where it is a plain product as far as its config tells; None where it is more than that."""
    config: Any = model.config
    head: Any = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None or type(head) is not torch.nn.Linear:
        return None
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(head.weight, scale, None if cap is None else float(cap))


def _decoder(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix)


def splits(model: PreTrainedModel, tokens: torch.Tensor) -> bool:
    """Whether the logits of ``model`` can be computed in pieces: tried once a model, on a few of these tokens.

    What a class does between its hidden states and its logits is its own affair, so the pieces are held against them.
    """
    known = getattr(model, _CHECKED, None)
    if known is None:
        head, few = head_of(model), tokens[:1, :8]
        known = False
        if head is not None and hasattr(_decoder(model), "forward"):
            # Without dropout, which would make two passes differ and draw random numbers.
            was_training = model.training
            model.eval()
            with torch.no_grad():
                logits = model(input_ids=few, use_cache=False).logits.float()
                hidden = _decoder(model)(input_ids=few, use_cache=False).last_hidden_state
                again = _logits(hidden.flatten(0, 1), head).view(logits.shape)
            model.train(was_training)
            # Autocast remembers the weights that these passes cast. A checkpointed layer that finds them cast already
            # would, computed anew behind the autocast, meet casts that its first pass had not.
            torch.clear_autocast_cache()
            # Two passes of one model differ by no more than rounding, in bf16 by some of its 2^-8.
            room = _SAME if hidden.dtype == torch.float32 and not torch.is_autocast_enabled(few.device.type) else 0.05
            known = bool(torch.allclose(logits, again, rtol=room, atol=room * float(logits.abs().max())))
        setattr(model, _CHECKED, known)
    return known


def _logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """float32 logits [tokens, vocabulary] of hidden states [tokens, width]."""
    logits = F.linear(hidden, head.weight).float()
    if head.scale != 1.0:
        logits *= head.scale
    return logits if head.cap is None else logits.div_(head.cap).tanh_().mul_(head.cap)


class _Pieces(torch.autograd.Function):
    """Loss of each token [tokens], float32, of hidden states [tokens, width] and labels [tokens], none ignored."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        rest: tuple[float, float | None, int],
    ) -> torch.Tensor:
        scale, cap, size = rest
        head = Head(weight, scale, cap)
        losses = torch.empty(len(labels), device=hidden.device)
        sums = torch.empty_like(losses)
        for at in range(0, len(labels), size):
            logits = _logits(hidden[at : at + size], head)
            sums[at : at + size] = torch.logsumexp(logits, dim=1)
            picked = logits.gather(1, labels[at : at + size, None])[:, 0]
            losses[at : at + size] = sums[at : at + size] - picked
        ctx.save_for_backward(hidden, weight, labels, sums)
        ctx.rest, ctx.compute = rest, _compute_type(hidden)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        hidden, weight, labels, sums = ctx.saved_tensors
        (scale, cap, size), compute = ctx.rest, ctx.compute
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        head = Head(weight.to(compute), scale, cap)
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for at in range(0, len(labels), size):
            part = hidden[at : at + size].to(compute)
            logits = _logits(part, head)
            # d loss / d logit is softmax minus the label's one; the cap's slope is 1 - (logit / cap)^2.
            slope = None if cap is None else 1 - (logits / cap).square_()
            logits = logits.sub_(sums[at : at + size, None]).exp_()
            logits[torch.arange(len(part), device=part.device), labels[at : at + size]] -= 1
            logits *= gradients[0][at : at + size, None] * scale
            if slope is not None:
                logits *= slope
            down = logits.to(compute)
            if to_hidden is not None:
                to_hidden[at : at + size] = down @ head.weight
            if to_weight is not None:
                to_weight += down.T @ part
        return to_hidden, None if to_weight is None else to_weight.to(weight.dtype), None, None


def _compute_type(hidden: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def token_losses(hidden: torch.Tensor, head: Head, labels: torch.Tensor, piece: int = LARGE) -> torch.Tensor:
    """Cross-entropy of each token, computed in pieces, nats, float32 [tokens]; 0 where the label is ``IGNORED``.

    Args:
        hidden: last hidden states [tokens, width].
        head: how they become logits.
        labels: token ids [tokens].
        piece: most logits at a time.
    """
    learned = labels != IGNORED
    places = learned.nonzero()[:, 0]
    size = max(1, piece // head.weight.shape[0])
    found: torch.Tensor = _Pieces.apply(hidden[places], head.weight, labels[places], (head.scale, head.cap, size))  # pyright: ignore[reportAssignmentType]
    return torch.zeros(len(labels), device=hidden.device).index_put((places,), found)


def row_losses(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    learned: torch.Tensor | None = None,
    documents: Packed | None = None,
    large: int = LARGE,
) -> torch.Tensor:
    """Mean next-token cross-entropy of each row over the tokens that are learned, nats a token, float32.

    Args:
        model: a causal language model; ``boundaries.prepare`` was called on it where ``documents`` are given.
        tokens: ids [rows, seq_len]; position t predicts t + 1, so a row holds seq_len - 1 predictions.
        learned: whether a loss is taken on each token, bool [rows, seq_len]; None for all. A row without has loss 0.
        documents: where documents lie that must not see one another; None where each row is one.
        large: logits above which they are computed in pieces.
    """
    given = boundaries.arguments(model, documents) if documents is not None else {}
    labels = (tokens if learned is None else tokens.masked_fill(~learned, IGNORED))[:, 1:]
    loss = label_losses(model, tokens, labels, given, large)
    return loss.mean(dim=1) if learned is None else loss.sum(dim=1) / learned[:, 1:].sum(dim=1).clamp(min=1)


def label_losses(
    model: PreTrainedModel, tokens: torch.Tensor, labels: torch.Tensor, given: Mapping[str, Any], large: int
) -> torch.Tensor:
    """Cross-entropy of the labels of a pass over ``tokens``, float32 [rows, labels]; 0 where a label is ``IGNORED``.

    Args:
        model: a causal language model.
        tokens: ids [rows, seq_len].
        labels: what the first places of each row should say [rows, labels], as many as ``tokens`` or fewer.
        given: further keywords of the pass.
        large: logits above which they are computed in pieces.
    """
    flat, kept = labels.reshape(-1), labels.shape[1]
    vocabulary = int(model.config.get_text_config().vocab_size)
    head = head_of(model) if tokens.numel() * vocabulary > large and splits(model, tokens) else None
    if head is None:
        logits = model(input_ids=tokens, use_cache=False, **given).logits[:, :kept].float()
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), flat, ignore_index=IGNORED, reduction="none")
    else:
        hidden = _decoder(model)(input_ids=tokens, use_cache=False, **given).last_hidden_state[:, :kept]
        loss = token_losses(hidden.reshape(-1, hidden.shape[-1]), head, flat, large)
    return loss.view(labels.shape)
