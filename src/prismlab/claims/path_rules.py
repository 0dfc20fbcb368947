"""Rule of the claim on the path between checkpoints: C13."""

from __future__ import annotations

from prismlab.claims.arms import Table
from prismlab.claims.decide import Part, above
from prismlab.claims.rule import BASE, MCS, Claim, Decision, all_of, rl
from prismlab.claims.series import Series

RL = rl(MCS, "MCS")
FEWEST = 5
"""Points a leg, its ends among them."""
BARRIER = -5.0
"""Points below the straight line that count as a barrier (a convention of the rule)."""
LEGS = {1: ("base", "mid"), 2: ("mid", "RL")}


def _leg(table: Table, leg: int) -> list[Part]:
    """The inner points of one leg against the straight line between its ends."""
    inner = sorted(x - (leg - 1) for x in table.path_points(BASE, MCS, RL) if leg - 1 < x < leg)
    name = " to ".join(LEGS[leg])
    if len(inner) + 2 < FEWEST:
        few = f"the landscape has {len(inner) + 2} points from {name}, the rule asks for {FEWEST} or more"
        there = table.path_score(BASE, MCS, RL, leg)
        lacking = Series(missing=(few,) if there.values else there.missing, evidence=there.evidence)
        return [above(f"{name}: inner points minus the straight line", lacking, BARRIER, "points", table.confidence)]
    start, end = (table.path_score(BASE, MCS, RL, x) for x in (leg - 1, leg))
    parts: list[Part] = []
    for t in inner:
        straight = start.scaled(1 - t) + end.scaled(t)
        drop = table.path_score(BASE, MCS, RL, leg - 1 + t) - straight
        label = f"{name}, at {t:.3g} of the way: minus the straight line"
        parts.append(above(label, drop, BARRIER, "points", table.confidence))
    return parts


def _c13(table: Table) -> Decision:
    base, mid, run = (table.path_score(BASE, MCS, RL, x) for x in (0, 1, 2))
    rises = [
        above("mid minus base", mid - base, 0.0, "points", table.confidence),
        above("RL minus mid", run - mid, 0.0, "points", table.confidence),
    ]
    return all_of([*rises, *_leg(table, 1), *_leg(table, 2)])


PATH_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C13",
        title="Pass rate rises along base, mid and RL without a barrier",
        rule="Pass rates, in points, on the path W(a,b) = base + a (mid - base) + b (RL - mid), a from 0 to 1 "
        "at b = 0, then b from 0 to 1 at a = 1, at 5 or more points a leg. Supported if mid minus base "
        "and RL minus mid lie above 0 and, at every inner point, the pass rate minus the straight line "
        "between its leg's ends lies above -5 (a convention); contradicted if any interval lies below its bound.",
        arms=(
            "base",
            "mid[MCS]",
            "mid[MCS]>rl[MCS]",
        ),
        reads=("analysis landscape of base, mid[MCS] and mid[MCS]>rl[MCS], with 5 or more points a leg",),
        decide=_c13,
    ),
)
