"""One token for each row of logits, from random numbers that are a function of a row's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prismlab.errors import StageError

if TYPE_CHECKING:
    from prismlab.model.generate import SamplingSettings


def uniforms(seeds: Sequence[tuple[int, int, int]], count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), [rows, count], float64: each row from its own Philox stream.

    Philox (Salmon et al. 2011) is keyed, so that a stream is a function of its name (seed, prompt, sample) alone.
    """
    drawn = np.empty((len(seeds), count))
    for row, (seed, prompt, sample) in zip(drawn, seeds, strict=True):
        key = np.array([seed, (prompt << 32) | sample], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=row)
    return torch.from_numpy(drawn)


def draw(
    logits: torch.Tensor, settings: SamplingSettings, uniform: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens by the inverse of the cumulative distribution, and their log-probabilities.

    Args:
        logits: [rows, vocabulary].
        uniform: [rows], float64 in [0, 1); None takes the likeliest token.

    Returns:
        Tokens [rows]; log-probability at temperature 1 [rows]; log-probability under what was sampled from [rows].

    Raises:
        StageError: the weights hold NaN or infinity. One such logit makes its whole row NaN.
    """
    plain = torch.log_softmax(logits.float(), dim=-1)
    if torch.isnan(plain[:, 0]).any():
        raise StageError("the model's logits are NaN or infinite: its weights are broken")
    if uniform is None:
        tokens = plain.argmax(dim=-1)
        own = plain.gather(1, tokens[:, None])[:, 0]
        return tokens, own, torch.zeros_like(own)
    logs = plain if settings.temperature == 1 else torch.log_softmax(logits.float() / settings.temperature, dim=-1)
    # float64, since a cumulative sum over a large vocabulary in float32 shifts the borders between tokens.
    weights = logs.double().exp()
    order = None
    if settings.top_p < 1:
        weights, order = weights.sort(dim=-1, descending=True)
        before = weights.cumsum(dim=-1) - weights
        weights = weights.masked_fill(before >= settings.top_p, 0.0)
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, so that rounding never lands on a token of probability zero behind the last possible.
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True)
    sampled = (weights.gather(1, place) / total).log()[:, 0].float()
    tokens = place[:, 0] if order is None else order.gather(1, place)[:, 0]
    return tokens, plain.gather(1, tokens[:, None])[:, 0], sampled
