"""The training loop: next-token prediction on the rows of a corpus, in the corpus's own order.

One process, or several started by ``torchrun`` that split each step's rows and average gradients. The rows of a step
and their order are a matter of the corpus alone, so a run is the same whatever the number of processes, up to the order
of float sums.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from prismlab.data.corpus import rank_rows
from prismlab.errors import StageError
from prismlab.model.boundaries import Packed
from prismlab.train.context import Context, share_rows, shared_row_losses
from prismlab.train.loss import row_losses
from prismlab.train.optim import adamw, schedule_factor
from prismlab.train.parallel import Parallel, World, resolve_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_SKIPPED = 10
"""Steps in a row that ``on_nonfinite: skip`` passes over before it stops: what goes on so long does not mend itself."""
NAMED_ROWS = 5
"""Rows that a message names."""


class Rows(Protocol):
    """What the loop needs of a corpus (``train.boundaries.TrainingRows``)."""

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

    def documents(self, start: int, stop: int) -> Any:
        """Number of each token's document in its row, int32 [stop - start, seq_len]; None where documents may see one
        another.
        """
        ...

    def row_domains(self, start: int, stop: int) -> list[str]:
        """Domain of each of these rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimizer step did. ``loss`` is the mean over all tokens of the step that are learned, nats a token.

    A step whose loss or gradient was no number, and that was passed over for it, has ``skipped``: the reason.
    """

    step: int
    tokens: int
    loss: float
    domains: Mapping[str, float]
    lr: float
    grad_norm: float
    tokens_per_second: float
    skipped: str | None = None


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


def _slices(rows: int, world: World, micro: int | None, sharing: int) -> list[tuple[int, int]]:
    """This rank's rows of a step as micro-batches [start, stop); ``sharing`` ranks in a row have the same ones."""
    if rows % (world.size // sharing):
        raise StageError(
            f"{rows} rows a step cannot be split over {world.size // sharing} processes: choose a multiple"
        )
    mine = rank_rows(0, rows, world.rank // sharing, world.size // sharing)
    size = micro or len(mine)
    return [(at, min(at + size, mine.stop)) for at in range(mine.start, mine.stop, size)]


def _all_losses(mine: torch.Tensor, world: World, sharing: int) -> torch.Tensor:
    """Row losses of all ranks, in row order; those that share rows know the same ones."""
    if world.size == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(parts, mine)
    return torch.cat(parts[::sharing])


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


def _bad_losses(losses: Sequence[float], domains: Sequence[str], first: int) -> str | None:
    """What is wrong with losses that are not all numbers: which rows of the corpus; None where they are."""
    if math.isfinite(sum(losses)):
        return None
    bad = [row for row, loss in enumerate(losses) if not math.isfinite(loss)]
    named = ", ".join(f"{first + row} ({domains[row]})" for row in bad[:NAMED_ROWS])
    more = f" and {len(bad) - NAMED_ROWS} more" if len(bad) > NAMED_ROWS else ""
    return f"loss is {sum(losses) / len(losses)}, on the corpus's rows {named}{more}"


class Guard:
    """What becomes of steps whose loss or gradient is no number, by the rule of ``on_nonfinite``.

    Args:
        rule: ``stop`` or ``skip``.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self.in_a_row = 0
        """Steps passed over one after another up to now; a run that goes on takes up its save's number."""

    def passes(self, step: int, fault: str | None) -> bool:
        """Whether the weights may be changed.

        Raises:
            StageError: there is a fault, and the rule is to stop, or too many steps in a row were passed over.
        """
        self.in_a_row = self.in_a_row + 1 if fault else 0
        if fault and self._rule == "stop":
            raise StageError(
                f"step {step}: {fault}; lower 'optimizer.lr', clip harder or train in float32, look at those rows with "
                "'prism data show', or set 'on_nonfinite: skip'"
            )
        if self.in_a_row > MOST_SKIPPED:
            raise StageError(f"step {step}: {fault}; the {MOST_SKIPPED} steps before were passed over too, so it stops")
        return fault is None


class _Steps:
    """One step after another: gradients of its rows, what they are worth, weights changed."""

    def __init__(
        self, model: PreTrainedModel, corpus: Rows, spec: Mapping[str, Any], world: World, parallel: Parallel | None
    ) -> None:
        self._corpus, self._spec, self._world = corpus, spec, world
        self._rows, sharing = int(spec["rows"]), int(spec.get("context_parallel", 1))
        self._context: Context | None = share_rows(world.rank, world.size, sharing)
        self._slices = _slices(self._rows, world, spec["micro_rows"], sharing)
        self._parallel = parallel or Parallel(model, world, resolve_mesh(None, world.size), spec["precision"])
        self.optimizer = adamw(model, spec["optimizer"])

    def _batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor | None, Packed | None]:
        """Tokens of these rows of the corpus, which of them are learned, and where documents lie."""
        device, learned, documents = self._world.device, None, None
        batch = torch.as_tensor(self._corpus.tokens(start, stop)).to(device)
        if self._corpus.masked:
            learned = torch.as_tensor(self._corpus.loss_mask(start, stop)).to(device)
        if (ids := self._corpus.documents(start, stop)) is not None:
            documents = Packed.of(ids, device)
        return batch, learned, documents

    def _losses(self, *batch: Any) -> torch.Tensor:
        """Loss of each row of a batch, with its graph."""
        kind = self._world.device.type
        with torch.autocast(kind, torch.bfloat16) if self._spec["precision"] == "bf16" else nullcontext():
            if self._context is None:
                return self._parallel.within(row_losses, *batch)
            return self._parallel.within(shared_row_losses, *batch, self._context)

    def _backward(self, first: int, weights: Sequence[float]) -> list[float]:
        """Gradients of the step whose rows begin at ``first``, averaged over ranks; the losses of all its rows."""
        mine: list[torch.Tensor] = []
        size = self._world.size
        for start, stop in self._slices:
            batch = self._batch(first + start, first + stop)
            self._parallel.last_of_step((start, stop) == self._slices[-1])
            losses = self._losses(*batch)
            if batch[1] is None:
                (losses.sum() * (size / self._rows)).backward()
            else:
                (losses @ losses.new_tensor(weights[start:stop]) * size).backward()
            mine.append(losses.detach())
        self._parallel.reduce_gradients()
        sharing = 1 if self._context is None else self._context.size
        return _all_losses(torch.cat(mine), self._world, sharing).tolist()

    def _rate(self, step: int) -> float:
        """Set and return the learning rate of ``step`` (from 0)."""
        given = self._spec["optimizer"]
        lr = given["lr"] * schedule_factor(step, int(self._spec["steps"]), given)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def take(self, step: int, guard: Guard) -> StepReport:
        """Carry out ``step`` (from 0).

        Raises:
            StageError: as ``train``.
        """
        began = time.perf_counter()
        first, tokens = step * self._rows, self._rows * int(self._spec["seq_len"])
        lr = self._rate(step)
        weights = row_weights(step + 1, self._corpus, first, self._rows)
        losses = self._backward(first, weights)
        domains = self._corpus.row_domains(first, first + self._rows)
        fault, norm = _bad_losses(losses, domains, first), math.nan
        if fault is None:
            # Clipping makes every gradient NaN where the norm is; after the last step no further loss would tell.
            norm = self._parallel.clip(self._spec["optimizer"]["clip"] or math.inf)
            fault = None if math.isfinite(norm) else f"the gradient's norm is {norm}"
        if guard.passes(step + 1, fault):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        return StepReport(
            step=step + 1,
            tokens=(step + 1) * tokens,
            loss=sum(loss * weight for loss, weight in zip(losses, weights, strict=True)),
            domains=_by_domain(losses, domains, weights),
            lr=lr,
            grad_norm=norm,
            tokens_per_second=tokens / seconds,
            skipped=fault,
        )


def train(
    model: PreTrainedModel,
    corpus: Rows,
    spec: Mapping[str, Any],
    world: World,
    after_step: Callable[[int], None] = lambda step: None,
    parallel: Parallel | None = None,
    begin: Callable[[torch.optim.Optimizer], int] = lambda optimizer: 0,
    guard: Guard | None = None,
) -> Iterator[StepReport]:
    """Train ``model`` in place and yield a report after every step.

    Args:
        model: float32 weights, on ``world.device``; ``boundaries.prepare`` was called on it unless they are ignored.
        corpus: at least ``steps * rows`` rows.
        spec: JSON of ``TrainSpec``.
        world: this process among its fellows.
        after_step: called with the number of steps done, for snapshots.
        parallel: the model split over the processes; made here unless given.
        begin: given the optimizer, puts back what a stopped run had saved; returns the number of steps it had done.
        guard: of steps whose loss or gradient is no number; made here unless given.

    Raises:
        StageError: a loss or gradient that is not finite (unless such steps are skipped), a step without a learned
            token, or rows that do not divide among the processes.
    """
    guard = guard or Guard(spec["on_nonfinite"])
    steps = _Steps(model, corpus, spec, world, parallel)
    first = begin(steps.optimizer)
    model.train()
    for step in range(first, int(spec["steps"])):
        report = steps.take(step, guard)
        after_step(step + 1)
        yield report
