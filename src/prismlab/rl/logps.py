"""Log-probabilities of responses under a model in training, without the padding that trl's batches carry.

trl pads prompts on the left and responses on the right. Here a row is moved to the left border, rows are sorted by
length, and rows of like length go through the model together, without an attention mask: a causal model does not see
what follows, and what follows is never read. That saves the padding, takes the fast attention kernel, and keeps
state-space models from reading padding before the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from prismlab.cost.rl import DENSE_VOCABULARY, TOKENS_A_CHUNK, TOKENS_A_CHUNK_ELSEWHERE


def _chunks(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Rows in chunks of like length, longest first, at most ``tokens`` tokens with padding (or one row)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    at = 0
    while at < len(order):
        rows = max(1, tokens // lengths[order[at]])
        yield order[at : at + rows]
        at += rows


def _as_many_as_others(chunks: list[list[int]], device: torch.device) -> list[list[int]]:
    """The same rows in as many chunks as the process with the most has; chunks of many rows are halved first.

    A pass of a model that is shared by processes is a collective operation (of its buffers, or of weights that are
    spread), so a process that makes fewer passes than another would leave it waiting for ever.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return chunks
    most = torch.tensor(len(chunks), device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    while len(chunks) < int(most):
        at = max(range(len(chunks)), key=lambda place: len(chunks[place]))
        rows = chunks[at]
        if len(rows) == 1:
            raise ValueError(f"{len(chunks)} rows for {int(most)} passes: processes have different numbers of rows")
        chunks = [*chunks[:at], rows[: len(rows) // 2], rows[len(rows) // 2 :], *chunks[at + 1 :]]
    return chunks


def response_logps(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, keep: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of response tokens; 0 on padding.

    Args:
        model: a causal language model with trl's tiled head.
        ids: prompts padded on the left and responses padded on the right [batch, tokens].
        mask: 1 on prompt and response, 0 on padding, of the same shape; prompt and response touch.
        keep: width of the responses' part.
        temperature: what logits are divided by.

    Returns:
        Log-probabilities (with gradient, where enabled) and entropies (without), each [batch, keep], in nats.
    """
    total = mask.sum(dim=1)
    first = mask.argmax(dim=1)
    response = mask[:, -keep:].sum(dim=1)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    places: list[torch.Tensor] = []
    column = torch.arange(ids.shape[1], device=ids.device)
    chunks = list(_chunks(total.tolist(), TOKENS_A_CHUNK.get(ids.device.type, TOKENS_A_CHUNK_ELSEWHERE)))
    for rows in _as_many_as_others(chunks, ids.device):
        at = torch.tensor(rows, device=ids.device)
        width = int(total[at].max())
        index = (first[at, None] + column[:width]).clamp(max=ids.shape[1] - 1)
        labels = ids[at].gather(1, index)
        prompt = (total - response)[at, None]
        inside = (column[:width] >= prompt) & (column[:width] < total[at, None])
        parts.append(_token_logps(model, labels, inside, temperature))
        places.append((at[:, None] * keep + column[:width] - prompt)[inside])
    place = torch.cat(places)
    flat = [torch.cat(values) for values in zip(*parts, strict=True)]
    logps, entropies = (value.new_zeros(len(ids) * keep).index_copy(0, place, value).view(-1, keep) for value in flat)
    return logps, entropies


def _token_logps(
    model: torch.nn.Module, ids: torch.Tensor, inside: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy [inside.sum()] of the tokens of ``ids`` [rows, tokens] where ``inside`` is true."""
    # A model that averages gradients with other processes is wrapped, and only its forward pass is passed on.
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    # By the configuration: of a head whose weights are spread over processes this one may hold none.
    if inner.config.get_text_config().vocab_size > DENSE_VOCABULARY:
        labels = ids.masked_fill(~inside, -100)
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        entropy = output.entropy if output.entropy is not None else torch.zeros_like(output.log_probs)
        wanted = inside[:, 1:]
        return output.log_probs[wanted], entropy[wanted].detach()
    start = int(inside.int().argmax(dim=1).min())
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - start + 1).logits[:, :-1]
    wanted = inside[:, start:]
    every = torch.log_softmax(logits[wanted].float() / temperature, dim=-1)
    logps = every.gather(1, ids[:, start:][wanted].unsqueeze(1)).squeeze(1)
    free = every.detach()
    return logps, -(free.exp() * free).sum(dim=-1)
