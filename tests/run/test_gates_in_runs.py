"""Steps that wait for a gate: not an input, and yet nothing starts before it, or at all where it ended."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fake_plans import fake, plan_of, prepared

from prismlab.run.launch import InProcess
from prismlab.run.runner import Runner, priorities
from prismlab.run.store import Store
from prismlab.study.steps import Plan

GATE = "gate/kept@a/s0"


def gated(counter: Path, **gate: Any) -> Plan:
    """a, its gate, what is made of a (listed before the gate's rivals), and something else."""
    told = {"counter": str(counter)}
    made = dataclasses.replace(fake("made", ("train/a/s0",), **told), waits=(GATE,))
    judge = fake("kept@a", ("train/a/s0",), kind="gate", **told, **gate)
    return plan_of(fake("a", **told), judge, made, fake("after", ("train/made/s0",), **told), fake("else", **told))


def states(plan: Plan, store: Store, **options: Any) -> dict[str, str]:
    done = Runner(plan, store, launcher=lambda slots, threads: InProcess(), **options).run()
    return {step["id"]: step["status"] for step in done.steps}


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_waits_starts_after_the_gate(tmp_path: Path, jobs: int) -> None:
    counter = tmp_path / "calls"
    found = states(gated(counter), prepared(tmp_path / "run"), jobs=jobs)
    assert set(found.values()) == {"complete"}
    calls = counter.read_text().split()
    assert calls.index("kept@a") < calls.index("made") < calls.index("after")


def test_a_gate_that_ended_skips_what_waits_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = prepared(tmp_path / "run")
    found = states(gated(tmp_path / "calls", end="the gate stops"), store)
    assert found == {
        "train/a/s0": "complete",
        GATE: "ended",
        "train/made/s0": "skipped",
        "train/after/s0": "skipped",
        "train/else/s0": "complete",
        "report/test": "complete",
    }
    again = states(gated(tmp_path / "calls", end="the gate stops"), store)
    assert (again["train/a/s0"], again["train/made/s0"]) == ("cached", "skipped")


def test_a_gate_that_lets_through_later_finds_what_was_made(tmp_path: Path) -> None:
    """A stop comes from the margin, so made, stopped and made again give one artifact, built once."""
    store, counter = prepared(tmp_path / "run"), tmp_path / "calls"
    states(gated(counter), store)
    assert states(gated(counter, end="the gate stops"), store)["train/made/s0"] == "skipped"
    assert states(gated(counter), store)["train/made/s0"] == "cached"
    assert counter.read_text().split().count("made") == 1


def test_a_chain_through_a_gate_is_as_long_as_it_is(tmp_path: Path) -> None:
    plan = gated(tmp_path / "calls")
    weight = priorities(plan)
    assert weight[GATE] > weight["train/made/s0"]
    assert GATE in {step.id for step in plan.until("train/after/s0").steps}
