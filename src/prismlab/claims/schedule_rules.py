"""Rules of the claims on when, how long and at which context to mid-train: C16 to C18."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from prismlab.claims.arms import Table
from prismlab.claims.decide import above, shown, within
from prismlab.claims.rule import BASE, MC, MCS, Claim, Decision, all_of
from prismlab.claims.series import Series, absent

REPAIRED = "mid[MC]>merge>extend"
"""Mid-trained, merged with the base, then trained at long context."""
CONTEXTS = ("8k", "16k", "32k")
BUDGETS = ("16B", "26B")
SATURATED = 1.0
"""Points between two budgets that count as none (a convention of the rule)."""
LATE, EARLY = "extend>mid[MCS]", ("phase3>mid[MCS]", "phase4>mid[MCS]")


def trained_length(table: Table) -> int | None:
    """Longest length in tokens that the base was trained for: ``claims.long_context``, else what the study trained it
    at; None for a base from outside of which the study does not say."""
    given = table.study.get("claims", {}).get("long_context")
    if given is not None:
        return int(given)
    specs = cast("Mapping[str, Mapping[str, Any]]", table.study.get("checkpoints", {}))
    name, longest = table.arms.get(BASE, ""), 0
    while name in specs:
        longest = max(longest, int(specs[name].get("seq_len") or 0))
        name = str(specs[name].get("from", ""))
    return longest or None


def _c16(table: Table) -> Decision:
    level, length = table.confidence, trained_length(table)

    def score(arm: str) -> Series:
        if arm not in table.arms:
            return absent(f"the study has no arm {arm}")
        if length is None:
            return absent("how long the base was trained for is not known; name its tokens in 'claims.long_context'")
        return table.long_score(arm, length)

    base, mid, repaired = score(BASE), score(MC), score(REPAIRED)
    at = "" if length is None else f", at {length:,} tokens"
    half = (repaired - mid) - (base - mid).scaled(0.5)
    return all_of(
        [
            above(f"damage: base minus {MC}{at}", base - mid, 0.0, "points", level),
            above("repair minus half of the damage", half, 0.0, "points", level),
            *(shown(arm, values, "percent", level) for arm, values in ((BASE, base), (MC, mid), (REPAIRED, repaired))),
        ]
    )


def _c17(table: Table) -> Decision:
    level = table.confidence
    short, best, long = (table.score(f"{MCS}@{context}") for context in CONTEXTS)
    early, late = (table.score(f"{MC}@{budget}") for budget in BUDGETS)
    return all_of(
        [
            above("16k minus 8k", best - short, 0.0, "points", level),
            above("16k minus 32k", best - long, 0.0, "points", level),
            within("26B minus 16B tokens", late - early, -SATURATED, SATURATED, "points", level),
        ]
    )


def _c18(table: Table) -> Decision:
    late = table.score(LATE)
    return all_of(
        [above(f"{LATE} minus {arm}", late - table.score(arm), 0.0, "points", table.confidence) for arm in EARLY]
    )


SCHEDULE_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C16",
        title="Short-context mid-training damages long context; merge and extension restore most of it",
        rule="Long-context score at the longest length that the base was trained for. Damage: base minus "
        "mid[MC] above 0 points. Repair: (mid[MC]>merge>extend minus mid[MC]) minus half of (base minus "
        "mid[MC]) above 0: most of the damage (a convention: more than half). Supported if both "
        "intervals lie above 0; contradicted if either lies below 0.",
        arms=(
            "base",
            "mid[MC]",
            "mid[MC]>merge>extend",
        ),
        reads=("an evaluation that scores by length ('lengths'), at the longest length that the base was trained for",),
        decide=_c16,
    ),
    Claim(
        id="C17",
        title="16k context is the sweet spot; gains saturate by 15B to 27B tokens",
        rule="Average score: mid[MCS]@16k minus mid[MCS]@8k and minus mid[MCS]@32k above 0 points; and over "
        "token budgets, mid[MC]@26B minus mid[MC]@16B within -1 to 1 point (a convention). Supported if "
        "all three hold; contradicted if any interval lies wholly on the other side.",
        arms=(
            "mid[MCS]@8k",
            "mid[MCS]@16k",
            "mid[MCS]@32k",
            "mid[MC]@16B",
            "mid[MC]@26B",
        ),
        reads=("an evaluation with tasks",),
        decide=_c17,
    ),
    Claim(
        id="C18",
        title="Mid-training after long-context extension works best",
        rule="Average score of extend>mid[MCS] minus that of mid[MCS] from each earlier pretraining phase "
        "(phase3>mid[MCS], phase4>mid[MCS]). Supported if every interval lies above 0; contradicted if "
        "any lies below 0.",
        arms=(
            "phase3>mid[MCS]",
            "phase4>mid[MCS]",
            "extend>mid[MCS]",
        ),
        reads=("an evaluation with tasks",),
        decide=_c18,
    ),
)
