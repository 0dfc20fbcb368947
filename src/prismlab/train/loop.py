"""The training loop: next-token prediction on the rows of a corpus, in the corpus's own order.

One process, or several started by ``torchrun`` that split each step's rows and average gradients. The rows of a step
and their order are a matter of the corpus alone, so a run is the same whatever the number of processes, up to the order
of float sums.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F

from prismlab.data.corpus import rank_rows
from prismlab.errors import StageError
from prismlab.train.optim import adamw, schedule_factor


class Rows(Protocol):
    """What the loop needs of a corpus (``data.corpus.Corpus``)."""

    @property
    def masked(self) -> bool:
        """Whether there is a token on which no loss is taken."""
        ...

    def loss_mask(self, start: int, stop: int) -> Any:
        """Whether a loss is taken on each token, bool [stop - start, seq_len]; asked for only where ``masked``."""
        ...

    def tokens(self, start: int, stop: int) -> Any:
        """Token ids [stop - start, seq_len], int64, in training order."""
        ...

    def row_domains(self, start: int, stop: int) -> list[str]:
        """Domain of each of these rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the processes of a step."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls) -> World:
        """Join the processes that ``torchrun`` started; alone where it did not."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank=int(os.environ.get("RANK", "0")), size=size, device=device)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did. ``loss`` is the mean over all tokens of the step that are learned, nats a token."""

    step: int
    tokens: int
    loss: float
    domains: Mapping[str, float]
    lr: float
    grad_norm: float
    tokens_per_second: float


IGNORED = -100
"""Label of a token on which no loss is taken."""


def row_losses(model: torch.nn.Module, tokens: torch.Tensor, learned: torch.Tensor | None = None) -> torch.Tensor:
    """Mean next-token cross-entropy of each row over the tokens that are learned, nats a token, float32.

    Args:
        model: a causal language model.
        tokens: ids [rows, seq_len]; position t predicts t + 1, so a row holds seq_len - 1 predictions.
        learned: whether a loss is taken on each token, bool [rows, seq_len]; None for all. A row without has loss 0.
    """
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    labels = tokens if learned is None else tokens.masked_fill(~learned, IGNORED)
    flat = logits.reshape(-1, logits.shape[-1])
    loss = F.cross_entropy(flat, labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="none")
    loss = loss.view(tokens.shape[0], -1)
    return loss.mean(dim=1) if learned is None else loss.sum(dim=1) / learned[:, 1:].sum(dim=1).clamp(min=1)


def row_weights(step: int, corpus: Rows, first: int, rows: int) -> list[float]:
    """What each row of a step counts for in its loss: its share of the step's learned tokens.

    Raises:
        StageError: no token of the step is learned.
    """
    if not corpus.masked:
        return [1 / rows] * rows
    counts = corpus.loss_mask(first, first + rows)[:, 1:].sum(axis=1).tolist()
    if not sum(counts):
        raise StageError(f"step {step}: no token of its rows is learned; more 'rows' a step, or 'loss: all'")
    return [count / sum(counts) for count in counts]


def _slices(rows: int, world: World, micro: int | None) -> list[tuple[int, int]]:
    """This rank's rows of a step as micro-batches [start, stop)."""
    if rows % world.size:
        raise StageError(f"{rows} rows a step cannot be split over {world.size} processes: choose a multiple")
    mine = rank_rows(0, rows, world.rank, world.size)
    size = micro or len(mine)
    return [(at, min(at + size, mine.stop)) for at in range(mine.start, mine.stop, size)]


def _average_gradients(model: torch.nn.Module, world: World) -> None:
    if world.size == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size


def _all_losses(mine: torch.Tensor, world: World) -> torch.Tensor:
    """Row losses of all ranks, in row order."""
    if world.size == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(parts, mine)
    return torch.cat(parts)


def _by_domain(losses: Sequence[float], domains: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Loss of each domain that has a learned token."""
    groups: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for loss, domain, weight in zip(losses, domains, weights, strict=True):
        groups[domain].append((loss, weight))
    return {
        domain: sum(loss * weight for loss, weight in values) / sum(weight for _, weight in values)
        for domain, values in sorted(groups.items())
        if any(weight for _, weight in values)
    }


def _backward(
    model: torch.nn.Module,
    corpus: Rows,
    first: int,
    slices: Sequence[tuple[int, int]],
    weights: Sequence[float],
    spec: Mapping[str, Any],
    world: World,
) -> list[float]:
    """Gradients of the step whose rows begin at ``first``, averaged over ranks; the losses of all its rows."""
    mine: list[torch.Tensor] = []
    for start, stop in slices:
        batch = torch.as_tensor(corpus.tokens(first + start, first + stop)).to(world.device)
        learned = None
        if corpus.masked:
            learned = torch.as_tensor(corpus.loss_mask(first + start, first + stop)).to(world.device)
        with torch.autocast(world.device.type, torch.bfloat16) if spec["precision"] == "bf16" else nullcontext():
            losses = row_losses(model, batch, learned)
        if learned is None:
            (losses.sum() * (world.size / int(spec["rows"]))).backward()
        else:
            (losses @ losses.new_tensor(weights[start:stop]) * world.size).backward()
        mine.append(losses.detach())
    _average_gradients(model, world)
    return _all_losses(torch.cat(mine), world).tolist()


def _check_losses(step: int, losses: Sequence[float], domains: Sequence[str]) -> None:
    if math.isfinite(sum(losses)):
        return
    bad = sorted({domain for domain, value in zip(domains, losses, strict=True) if not math.isfinite(value)})
    loss, where = sum(losses) / len(losses), ", ".join(bad)
    raise StageError(f"step {step}: loss is {loss} on rows of {where}; lower 'optimizer.lr' or clip harder")


def _clip(step: int, model: torch.nn.Module, clip: float | None) -> float:
    """Clip the gradient's norm and return what it was."""
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
    if not math.isfinite(norm):
        # Clipping makes every gradient NaN then; after the last step no further loss would tell.
        raise StageError(f"step {step}: the gradient's norm is {norm}; lower 'optimizer.lr' or train in float32")
    return norm


def train(
    model: torch.nn.Module,
    corpus: Rows,
    spec: Mapping[str, Any],
    world: World,
    after_step: Callable[[int], None] = lambda step: None,
) -> Iterator[StepReport]:
    """Train ``model`` in place and yield a report after every step.

    Args:
        model: float32 weights, on ``world.device``.
        corpus: at least ``steps * rows`` rows.
        spec: JSON of ``TrainSpec``.
        world: this process among its fellows.
        after_step: called with the number of steps done, for snapshots.

    Raises:
        StageError: a loss or gradient that is not finite, a step without a learned token, or rows that do not divide
            among the processes.
    """
    steps, rows, optimizer_spec = int(spec["steps"]), int(spec["rows"]), spec["optimizer"]
    optimizer = adamw(model, optimizer_spec)
    slices = _slices(rows, world, spec["micro_rows"])
    model.train()
    for step in range(steps):
        began = time.perf_counter()
        lr = optimizer_spec["lr"] * schedule_factor(step, steps, optimizer_spec)
        for group in optimizer.param_groups:
            group["lr"] = lr
        weights = row_weights(step + 1, corpus, step * rows, rows)
        losses = _backward(model, corpus, step * rows, slices, weights, spec, world)
        domains = corpus.row_domains(step * rows, (step + 1) * rows)
        _check_losses(step + 1, losses, domains)
        norm = _clip(step + 1, model, optimizer_spec["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        after_step(step + 1)
        yield StepReport(
            step=step + 1,
            tokens=(step + 1) * rows * int(spec["seq_len"]),
            loss=sum(loss * weight for loss, weight in zip(losses, weights, strict=True)),
            domains=_by_domain(losses, domains, weights),
            lr=lr,
            grad_norm=norm,
            tokens_per_second=rows * int(spec["seq_len"]) / seconds,
        )
