"""Rule of the claim on prompts that RL's start never solved: C15."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from prismlab.claims.arms import Table
from prismlab.claims.decide import above, shown
from prismlab.claims.rule import MCS, Claim, Decision, all_of, rl
from prismlab.claims.series import Series

RL = rl(MCS, "MCS")
ASKED = 16
"""Samples a prompt of the first draw, and the fewest of the second: the rule's number."""
UNSOLVED = "0"
"""The group of prompts without a correct sample in the first draw."""


def _unsolved(table: Table, field: str) -> Series:
    """A figure of the unsolved prompts; a frontier of other sample sizes is another measurement and has none."""

    def read(metrics: Mapping[str, Any]) -> object:
        samples = cast("Mapping[str, int]", metrics.get("samples", {}))
        if samples.get("first") != ASKED or samples.get("fresh", 0) < ASKED:
            return None
        return metrics.get("groups", {}).get(UNSOLVED, {}).get(field)

    without = (
        f"no prompt with 0 correct of {ASKED} samples, or not {ASKED} samples in its first draw and as many or more in "
        "the second ('analyses.frontier')"
    )
    return table.frontier(RL, read, without)


def _c15(table: Table) -> Decision:
    level = table.confidence
    return all_of(
        [
            above("0 of 16 at the start: RL minus a fresh draw", _unsolved(table, "difference"), 0.0, "points", level),
            shown("fresh draw of the start (regression to the mean)", _unsolved(table, "fresh"), "percent", level),
            shown("after RL", _unsolved(table, "after"), "percent", level),
            shown("prompts with 0 correct of 16", _unsolved(table, "prompts"), "prompts", level),
        ]
    )


FRONTIER_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C15",
        title="RL solves prompts that were unsolved at its start",
        rule="Training prompts with 0 correct of 16 samples at the start of mid[MCS]>rl[MCS]: their pass rate "
        "at the last snapshot minus the rate of a fresh 16 samples at the start (so that no gain comes "
        "from selecting on the first ones). Supported if the interval lies above 0; contradicted if it "
        "lies below 0.",
        arms=("mid[MCS]>rl[MCS]",),
        reads=("analysis frontier of mid[MCS]>rl[MCS], 16 samples in the first draw and 16 or more in the second",),
        decide=_c15,
    ),
)
