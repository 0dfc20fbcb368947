"""A training's sums: speed by the time that the tokens took, and a run that goes on."""

from __future__ import annotations

import json

import pytest

from prismlab.train.loop import StepReport
from prismlab.train.totals import Totals


def report(step: int, seconds: float, skipped: str | None = None) -> StepReport:
    """A step of 1,200 tokens."""
    return StepReport(
        step=step,
        tokens=1200 * step,
        loss=float(step),
        domains={"web": float(step)},
        lr=1e-3,
        grad_norm=1.0,
        tokens_per_second=1200 / seconds,
        skipped=skipped,
    )


def test_speed_is_all_tokens_over_all_seconds() -> None:
    totals = Totals(4)
    for step, seconds in enumerate((1.0, 1.0, 4.0, 2.0), start=1):
        totals.add(report(step, seconds, skipped="NaN" if step == 2 else None))
    found = totals.metrics()
    assert found["tokens_per_second"] == pytest.approx(4 * 1200 / 8.0)
    assert (found["loss_first"], found["loss_last"], found["steps"], found["skipped_steps"]) == (1.0, 4.0, 4, 1)


def test_a_run_that_goes_on_sums_up_the_same() -> None:
    whole, first, second = Totals(6), Totals(6), Totals(6)
    reports = [report(step, 0.1 * step) for step in range(1, 7)]
    for one in reports:
        whole.add(one)
    for one in reports[:3]:
        first.add(one)
    second.go_on(json.loads(json.dumps(first.state())))
    for one in reports[3:]:
        second.add(one)
    assert second.metrics() == whole.metrics()


def test_a_save_of_an_earlier_version_is_taken_up() -> None:
    """It held the sum of the steps' speeds."""
    totals = Totals(4)
    totals.go_on({"first": 1.0, "tail": [[1.0, {"web": 1.0}]], "taken": 2, "done": 2, "speeds": 2 * 600.0})
    totals.add(report(3, 8.0))
    assert totals.metrics()["tokens_per_second"] == pytest.approx(3 * 1200 / (2 + 2 + 8))
