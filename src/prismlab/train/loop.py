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

from prismlab.errors import StageError
from prismlab.train.optim import adamw, schedule_factor


class Rows(Protocol):
    """What the loop needs of a corpus (``data.corpus.Corpus``)."""

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
    """What one optimizer step did. ``loss`` is the mean over all tokens of the step, nats a token."""

    step: int
    tokens: int
    loss: float
    domains: Mapping[str, float]
    lr: float
    grad_norm: float
    tokens_per_second: float


def row_losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of each row, nats a token, float32.

    Args:
        model: a causal language model.
        tokens: ids [rows, seq_len]; position t predicts t + 1, so a row holds seq_len - 1 predictions.
    """
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    loss = F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none")
    return loss.view(tokens.shape[0], -1).mean(dim=1)


def _slices(rows: int, world: World, micro: int | None) -> list[tuple[int, int]]:
    """This rank's rows of a step as micro-batches [start, stop)."""
    if rows % world.size:
        raise StageError(f"{rows} rows a step cannot be split over {world.size} processes: choose a multiple")
    share = rows // world.size
    first = world.rank * share
    size = micro or share
    return [(at, min(at + size, first + share)) for at in range(first, first + share, size)]


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


def _by_domain(losses: Sequence[float], domains: Sequence[str]) -> dict[str, float]:
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for loss, domain in zip(losses, domains, strict=True):
        groups[domain].append(loss)
    return {domain: sum(values) / len(values) for domain, values in sorted(groups.items())}


def _backward(
    model: torch.nn.Module,
    corpus: Rows,
    first: int,
    slices: Sequence[tuple[int, int]],
    spec: Mapping[str, Any],
    world: World,
) -> list[float]:
    """Gradients of the step whose rows begin at ``first``, averaged over ranks; the losses of all its rows."""
    mine: list[torch.Tensor] = []
    for start, stop in slices:
        batch = torch.as_tensor(corpus.tokens(first + start, first + stop)).to(world.device)
        with torch.autocast(world.device.type, torch.bfloat16) if spec["precision"] == "bf16" else nullcontext():
            losses = row_losses(model, batch)
        (losses.sum() * (world.size / int(spec["rows"]))).backward()
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
        StageError: a loss or gradient that is not finite, or rows that do not divide among the processes.
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
        losses = _backward(model, corpus, step * rows, slices, spec, world)
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
            loss=sum(losses) / rows,
            domains=_by_domain(losses, domains),
            lr=lr,
            grad_norm=norm,
            tokens_per_second=rows * int(spec["seq_len"]) / seconds,
        )
