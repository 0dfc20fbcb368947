"""What a training's record says of its losses and speed, summed up as it goes, so that a save can hold it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from prismlab.errors import StageError
from prismlab.train.loop import StepReport


class Totals:
    """First and last loss, domains, speed.

    Args:
        steps: steps of the whole run; the last loss is the mean over the final tenth of those that were taken.
    """

    def __init__(self, steps: int) -> None:
        self._first: float | None = None
        self._tail: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=max(1, steps // 10))
        self._taken = self._done = 0
        self._pace = 0.0

    def add(self, report: StepReport) -> None:
        """A step. One that was passed over has no loss; it is counted."""
        self._done += 1
        # Seconds a token: every step has as many tokens, so the mean of the speeds themselves would be too high.
        self._pace += 1.0 / report.tokens_per_second
        if report.skipped is not None:
            return
        self._taken += 1
        self._first = report.loss if self._first is None else self._first
        self._tail.append((report.loss, dict(report.domains)))

    def state(self) -> dict[str, Any]:
        """What ``go_on`` takes, as JSON."""
        counts = {"taken": self._taken, "done": self._done, "pace": self._pace}
        return {"first": self._first, "tail": [list(one) for one in self._tail], **counts}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Take up what another process had summed up."""
        self._first, self._taken = state["first"], int(state["taken"])
        self._done = int(state["done"])
        # A save of an earlier version has the sum of the steps' speeds.
        self._pace = float(state["pace"] if "pace" in state else self._done**2 / state["speeds"])
        self._tail.extend((loss, domains) for loss, domains in state["tail"])

    def metrics(self) -> dict[str, Any]:
        """For the record.

        Raises:
            StageError: every step was passed over.
        """
        if self._first is None:
            raise StageError("every step was passed over, since its loss or gradient was no number")
        tail = list(self._tail)[-max(1, self._taken // 10) :]
        names = sorted({name for _, domains in tail for name in domains})
        return {
            "loss_first": self._first,
            "loss_last": fmean(loss for loss, _ in tail),
            "domains": {name: fmean(domains[name] for _, domains in tail if name in domains) for name in names},
            "tokens_per_second": self._done / self._pace,
            "steps": self._done,
            "skipped_steps": self._done - self._taken,
        }
