"""Rules of the claims on weights and representations: C7 to C12."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from prismlab.claims.arms import Table, at_threshold
from prismlab.claims.decide import Part, above, below, shown, within
from prismlab.claims.rule import BASE, CONTROL, MC, MCS, Claim, Decision, all_of, rl
from prismlab.claims.series import Series, absent, lowest

RL = rl(MCS, "MCS")
DENSE = 90.0
"""Percent of elements beyond 1% that "densely" means: the paper's "more than 90%"."""
SPARSE = 10.0
"""Percent that "sparsely" stays under: more than 90% unchanged, the mirror image; the paper has "about 5%"."""
THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
FOOTPRINT = 1.8
"""Points; the paper's figure for C9."""
EQUAL = 0.9
"""Equal distance: a ratio between this and its inverse (a convention; the paper's ratio is 1.01)."""
SAME_DIRECTION = 0.9
"""Cosine from which on updates count as of one direction (a convention; the paper has 0.52 and 0.62)."""
CKA_KEPT = 0.998
"""The paper's wording."""
FRONT = 0.5
""""Most change" by 40% of the steps."""


def _percent(table: Table, old: str, new: str, threshold: float = 0.01, part: str | None = None) -> Series:
    return table.changed(old, new, threshold, part).scaled(100.0)


def _mismatch(table: Table) -> list[str]:
    """What keeps the control from being one: settings in which it differs from the RL run."""
    run, control = table.spec(RL), table.spec(CONTROL)
    for arm, spec in ((RL, run), (CONTROL, control)):
        # A study may name a merge, or a checkpoint from outside, for an arm.
        if arm in table.arms and "optimizer" not in (spec or {}):
            return [f"the study file does not say how {table.arms[arm]!r} was trained"]
    if run is None or control is None:
        return []
    differing: list[str] = []
    if run.get("from") != control.get("from"):
        differing.append(f"it starts from {control.get('from')!r}, not from {run.get('from')!r}")
    pairs: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        (name, run, control) for name in ("steps", "precision")
    ]
    mine, its = cast("Mapping[str, Any]", run.get("optimizer", {})), cast("Mapping[str, Any]", control["optimizer"])
    pairs += [(f"optimizer.{name}", mine, its) for name in ("lr", "schedule", "warmup", "final_lr_factor")]
    for name, one, other in pairs:
        key = name.rpartition(".")[2]
        if one.get(key) != other.get(key):
            differing.append(f"its {name} is {other.get(key)!r}, the RL run's {one.get(key)!r}")
    return differing


def _attribution(table: Table) -> Part:
    label = "attributed: changed by the fine-tuning control minus RL"
    differing = _mismatch(table)
    if differing:
        series = absent(f"{CONTROL} is no control of {RL}: {'; '.join(differing)}")
    else:
        series = _percent(table, MCS, CONTROL) - _percent(table, MCS, RL)
    return above(label, series, 0.0, "points", table.confidence)


def _c7(table: Table) -> Decision:
    level = table.confidence
    mid, run = _percent(table, BASE, MCS), _percent(table, MCS, RL)
    observed = [
        above("changed by over 1%: mid-training minus RL", mid - run, 0.0, "points", level),
        above("dense: changed by mid-training", mid, DENSE, "percent", level),
        below("sparse: changed by RL", run, SPARSE, "percent", level),
    ]
    attribution = _attribution(table)
    ratio = table.l2(BASE, MCS).over(table.l2(MCS, RL), f"L2 of {MCS} -> RL")
    extra = shown("L2 of mid-training / L2 of RL", ratio, "times", level)
    decision = all_of([*observed, attribution, extra])
    if (
        attribution.verdict != "not_tested"
        or decision.verdict != "not_tested"
        or any(part.verdict == "not_tested" for part in observed)
    ):
        return decision
    note = (
        "The asymmetry holds or is undecided as the parts say, but without a matched fine-tuning control it cannot be "
        f"laid to RL, so the claim stays inconclusive. {' '.join(attribution.series.missing)}"
    )
    return replace(decision, verdict="inconclusive", notes=(note,))


def _c8(table: Table) -> Decision:
    return all_of(
        [
            above(
                f"changed by over {100 * t:g}%: mid-training minus RL",
                _percent(table, BASE, MCS, t) - _percent(table, MCS, RL, t),
                0.0,
                "points",
                table.confidence,
            )
            for t in THRESHOLDS
        ]
    )


def _c9(table: Table) -> Decision:
    from_base, from_mid = (BASE, rl(BASE, "MCS")), (MCS, RL)
    names = sorted(set(table.subcomponents(*from_base)) & set(table.subcomponents(*from_mid)))
    if not names:
        both = table.changed(*from_base, 0.01) - table.changed(*from_mid, 0.01)
        reasons = both.missing or ("the weight analyses share no sub-component",)
        series = {"sub-components": Series(missing=reasons, evidence=both.evidence)}
    else:
        series = {n: _percent(table, *from_mid, part=n) - _percent(table, *from_base, part=n) for n in names}
    return all_of([within(n, s, -FOOTPRINT, FOOTPRINT, "points", table.confidence) for n, s in series.items()])


def _c10(table: Table) -> Decision:
    level = table.confidence
    ratio = table.l2(BASE, MC).over(table.l2(BASE, MCS), f"L2 of {BASE} -> {MCS}")
    return all_of(
        [
            within("equal distance: L2 of MC / L2 of MCS", ratio, EQUAL, 1 / EQUAL, "ratio", level),
            below("different direction: cosine", table.direction(BASE, MC, MCS), SAME_DIRECTION, "cosine", level),
        ]
    )


def _c11(table: Table) -> Decision:
    level = table.confidence
    pairs = [(mid, rl(mid, mix)) for mid in (MCS, MC) for mix in ("MCS", "MC")]
    measured = [pair for pair in pairs if table.cka(*pair).values]
    if (MCS, RL) not in measured:
        return all_of([above("smallest CKA", table.cka(MCS, RL), CKA_KEPT, "CKA", level)])
    known = [pair for pair in measured if table.cka(*pair, debiased=True).values]
    debiased = lowest(*(table.cka(*pair, debiased=True) for pair in known)) if known else absent("no debiased CKA")
    smallest = lowest(*(table.cka(*pair) for pair in measured))
    parts = [
        above("smallest CKA over layers, input sets and pairs", smallest, CKA_KEPT, "CKA", level),
        shown("the same, debiased", debiased, "CKA", level),
    ]
    parts += [shown(f"{old} -> {new}", table.cka(old, new), "CKA", level) for old, new in measured]
    return all_of(parts)


def _growth(metrics: Mapping[str, Any]) -> float | None:
    curve = cast("list[float | None] | None", at_threshold(metrics.get("changed", {}), 0.01))
    if not curve or len(curve) < 2 or curve[0] is None or curve[-1] is None:
        return None
    return 100.0 * (curve[-1] - curve[0])


def _c12(table: Table) -> Decision:
    level = table.confidence
    front = table.trajectory(RL, lambda m: m.get("front_share"), "share of the distance at 40% of the steps")
    growth = table.trajectory(RL, _growth, "two snapshots with the share changed at 1%")
    note = (
        "A learning rate that falls linearly to 0 spends 64% of its sum in the first 40% of the steps: a front share "
        "above one half is in part the schedule's."
    )
    return all_of(
        [
            above("share of the final L2 by 40% of the steps", front, FRONT, "share", level),
            above("changed by over 1%: last snapshot minus first", growth, 0.0, "points", level),
        ],
        [note] if (table.spec(RL) or {}).get("optimizer", {}).get("schedule") == "linear" else [],
    )


_PAIR = "analysis weights of base -> mid[MCS] and mid[MCS] -> mid[MCS]>rl[MCS]"

WEIGHT_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C7",
        title="Mid-training changes weights densely, RL sparsely",
        rule="Percent of all elements that move by more than 1%, whole model. Observed (A): base -> mid[MCS] "
        "minus mid[MCS] -> mid[MCS]>rl[MCS] above 0; the first above 90 (dense, the paper's wording); "
        "the second below 10 (sparse: the mirror image; the paper has about 5). Attributed (B): mid[MCS] "
        "-> mid[MCS]>finetune[MCS], fine-tuning at RL's learning rate, schedule, steps and precision, "
        "minus mid[MCS] -> RL above 0. Supported if every interval of A and B lies on its side; "
        "contradicted if any lies on the other; without a matching control at most inconclusive.",
        arms=(
            "base",
            "mid[MCS]",
            "mid[MCS]>rl[MCS]",
        ),
        reads=(
            "arm mid[MCS]>finetune[MCS] (the control; without it at most inconclusive)",
            _PAIR + " and the control",
        ),
        decide=_c7,
    ),
    Claim(
        id="C8",
        title="The asymmetry holds at every threshold",
        rule="At each of 0.1, 0.5, 1, 2, 5 and 10%: percent of elements that move by more, base -> mid[MCS] "
        "minus mid[MCS] -> mid[MCS]>rl[MCS]. Supported if all six intervals lie above 0; contradicted if "
        "any lies below 0.",
        arms=(
            "base",
            "mid[MCS]",
            "mid[MCS]>rl[MCS]",
        ),
        reads=(_PAIR + " at all six thresholds",),
        decide=_c8,
    ),
    Claim(
        id="C9",
        title="RL's footprint does not depend on its starting point",
        rule="For each sub-component, percent of elements that move by more than 1%: mid[MCS] -> "
        "mid[MCS]>rl[MCS] minus base -> base>rl[MCS]. Equivalence: supported if every interval lies "
        "within -1.8 to 1.8 points (the paper's figure); contradicted if any lies wholly outside.",
        arms=(
            "base",
            "mid[MCS]",
            "mid[MCS]>rl[MCS]",
            "base>rl[MCS]",
        ),
        reads=("analysis weights of mid[MCS] -> mid[MCS]>rl[MCS] and base -> base>rl[MCS]",),
        decide=_c9,
    ),
    Claim(
        id="C10",
        title="MC and MCS travel equally far in different directions",
        rule="Distance: normalised L2 of base -> mid[MC] over that of base -> mid[MCS], equivalent to 1 if "
        "its interval lies within 0.9 to 1/0.9. Direction: cosine between the two updates, different if "
        "its interval lies below 0.9. (Both bounds are conventions.) Supported if both hold; "
        "contradicted if either interval lies wholly on the other side.",
        arms=(
            "base",
            "mid[MC]",
            "mid[MCS]",
        ),
        reads=(
            "analysis weights of base -> mid[MC] and base -> mid[MCS]",
            "analysis direction",
        ),
        decide=_c10,
    ),
    Claim(
        id="C11",
        title="RL keeps mid-training's representations",
        rule="Smallest linear CKA over layers and input sets between mid[MCS] and mid[MCS]>rl[MCS], and over "
        "every other measured pair of mid[MC] or mid[MCS] and RL from it. Supported if the interval lies "
        "above 0.998 (the paper's wording); contradicted if it lies below. The debiased estimator is "
        "shown.",
        arms=(
            "mid[MCS]",
            "mid[MCS]>rl[MCS]",
        ),
        reads=("analysis cka of mid[MCS] -> mid[MCS]>rl[MCS]",),
        decide=_c11,
    ),
    Claim(
        id="C12",
        title="RL is front-loaded and its active set grows",
        rule="In mid[MCS]>rl[MCS]: the share of the final L2 distance that is reached by 40% of the steps "
        "lies above 0.5 ('most change in the first 200 to 400 of 1,000 steps'); and the percent of "
        "elements that moved by more than 1% is higher at the last snapshot than at the first. Supported "
        "if both intervals lie above; contradicted if either lies below.",
        arms=("mid[MCS]>rl[MCS]",),
        reads=("analysis trajectory",),
        decide=_c12,
    ),
)
