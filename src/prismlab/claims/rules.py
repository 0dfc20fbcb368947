"""The decision rules of C1 to C18. Written down and versioned before a study was run for the record.

Thresholds come from the reference paper's wording or from a convention that the rule states, never from a result of
ours. A rule's text is what ``docs/claims.md`` prints; whoever changes a rule raises ``RULES_VERSION``.
"""

from __future__ import annotations

from prismlab.claims.arms import Table
from prismlab.claims.decide import Part, above, below, shown
from prismlab.claims.frontier_rules import FRONTIER_CLAIMS
from prismlab.claims.path_rules import PATH_CLAIMS
from prismlab.claims.rule import BASE, MC, MCS, Claim, Decision, all_of, rl
from prismlab.claims.schedule_rules import SCHEDULE_CLAIMS
from prismlab.claims.series import Series, absent, mean_of
from prismlab.claims.weight_rules import WEIGHT_CLAIMS

RULES_VERSION = 1
"""Raised with every change of a rule."""

DOMAINS = ("math", "code", "science")
POINTS = "points"


def _c1(table: Table) -> Decision:
    level = table.confidence
    return all_of(
        [above(d, table.score(MCS, d) - table.score(BASE, d), 0.0, POINTS, level) for d in DOMAINS]
        + [shown("average", table.score(MCS) - table.score(BASE), POINTS, level)]
    )


def _c2(table: Table) -> Decision:
    level, margin = table.confidence, float(table.study.get("claims", {}).get("general_margin", 0.05))
    sources = table.text_sources()
    changes = [table.text(MCS, source) - table.text(BASE, source) for source in sources]
    mean = mean_of(*changes) if changes else absent("the deciding evaluation measures no text loss ('text')")
    unit = "bits per byte"
    parts = [below("mean over text sources", mean, margin, unit, level)]
    parts += [shown(source, change, unit, level) for source, change in zip(sources, changes, strict=True)]
    worse = [part.label for part in parts[1:] if part.interval.lo is not None and part.interval.lo > 0]
    notes = [f"Single sources that got worse (interval above 0): {', '.join(worse)}."] if worse else []
    return all_of(parts, notes)


def _c3(table: Table) -> Decision:
    steps = [("math", BASE, "mid[M]"), ("code", "mid[M]", MC), ("science", MC, MCS)]
    return all_of(
        [
            above(f"{d}: {new} minus {old}", table.score(new, d) - table.score(old, d), 0.0, POINTS, table.confidence)
            for d, old, new in steps
        ]
    )


def _c4(table: Table) -> Decision:
    whole, short = rl(MCS, "MCS"), rl(BASE, "MCS")
    level = table.confidence
    parts = [above(f"AVG: {whole} minus {short}", table.score(whole) - table.score(short), 0.0, POINTS, level)]
    parts += [shown(f"{d}: {short}", table.score(short, d), "percent", level) for d in DOMAINS]
    return all_of(parts)


def _c5(table: Table) -> Decision:
    def avg(mid: str, mix: str) -> Series:
        return table.score(rl(mid, mix))

    mixes, level = ("MC", "MCS"), table.confidence
    mid = mean_of(*(avg(MCS, x) - avg(MC, x) for x in mixes))
    prompts = mean_of(*(avg(y, "MCS") - avg(y, "MC") for y in (MC, MCS)))
    return all_of(
        [
            above("mid effect minus RL effect", mid - prompts, 0.0, POINTS, level),
            above("mid effect plus RL effect", mid + prompts, 0.0, POINTS, level),
            shown("mid effect (mid MC to MCS)", mid, POINTS, level),
            shown("RL effect (RL prompts MC to MCS)", prompts, POINTS, level),
        ]
    )


def _c6(table: Table) -> Decision:
    level = table.confidence
    with_science = table.score(rl(MCS, "MCS"), "science") - table.score(MCS, "science")
    without = table.score(rl(MC, "MCS"), "science") - table.score(MC, "science")
    return all_of(
        [
            above("gain in RL after MCS minus gain after MC", with_science - without, 0.0, POINTS, level),
            shown(f"science: {rl(MCS, 'MCS')} minus {MCS}", with_science, POINTS, level),
            shown(f"science: {rl(MC, 'MCS')} minus {MC}", without, POINTS, level),
        ]
    )


def _c14(table: Table) -> Decision:
    level = table.confidence

    def change(field: str) -> Series:
        return table.behaviour(MCS, field) - table.behaviour(BASE, field)

    gap = table.behaviour(MCS, "nll_correct") - table.behaviour(MCS, "nll_incorrect")
    parts: list[Part] = [
        above("median response length, mid minus base", change("length_median"), 0.0, "tokens", level),
        below("mean negative log-probability, mid minus base", change("nll"), 0.0, "nats per token", level),
        below("negative log-probability in mid, correct minus incorrect", gap, 0.0, "nats per token", level),
    ]
    return all_of(parts)


SCORE_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C1",
        title="Mid-training raises math, code and science",
        rule="For each domain (math, code, science) the score of mid[MCS] minus that of base, in points. Supported if "
        "every interval lies above 0; contradicted if any lies below 0.",
        arms=(
            "base",
            "mid[MCS]",
        ),
        reads=("an evaluation with tasks in math, code and science",),
        decide=_c1,
    ),
    Claim(
        id="C2",
        title="General ability is retained on average",
        rule="Text loss of mid[MCS] minus that of base, bits per byte on held-out documents, mean over the "
        "text sources of the deciding evaluation (each counts alike). Non-inferiority: supported if the "
        "interval lies below the margin claims.general_margin; contradicted if it lies above it. Single "
        "sources are shown and may get worse.",
        arms=(
            "base",
            "mid[MCS]",
        ),
        reads=("an evaluation with text sources",),
        decide=_c2,
    ),
    Claim(
        id="C3",
        title="Each domain's data drives its own benchmark",
        rule="Three differences in points: math of mid[M] minus base, code of mid[MC] minus mid[M], science "
        "of mid[MCS] minus mid[MC]. Supported if every interval lies above 0; contradicted if any lies "
        "below 0.",
        arms=(
            "base",
            "mid[M]",
            "mid[MC]",
            "mid[MCS]",
        ),
        reads=("an evaluation with tasks in math, code and science",),
        decide=_c3,
    ),
    Claim(
        id="C4",
        title="Mid-training before RL beats RL from the base",
        rule="Average score of mid[MCS]>rl[MCS] minus that of base>rl[MCS], in points. Supported if the interval lies "
        "above 0; contradicted if it lies below 0.",
        arms=(
            "mid[MCS]>rl[MCS]",
            "base>rl[MCS]",
        ),
        reads=("an evaluation with tasks",),
        decide=_c4,
    ),
    Claim(
        id="C5",
        title="The mid-training mix matters more than the RL mix",
        rule="Mid effect: average score with mid[MCS] minus with mid[MC], mean over both RL mixes. RL effect: average "
        "score with rl[MCS] minus with rl[MC], mean over both mid-trainings. The mid effect exceeds the size of the RL "
        "effect exactly if both 'mid - RL' and 'mid + RL' are above 0. Supported if both intervals lie above 0; "
        "contradicted if either lies below 0.",
        arms=(
            "mid[MC]>rl[MC]",
            "mid[MC]>rl[MCS]",
            "mid[MCS]>rl[MC]",
            "mid[MCS]>rl[MCS]",
        ),
        reads=("an evaluation with tasks",),
        decide=_c5,
    ),
    Claim(
        id="C6",
        title="Science data at mid-training unlocks science gains in RL",
        rule="Difference of differences in points: science of mid[MCS]>rl[MCS] minus mid[MCS], minus the same "
        "gain from mid[MC] (mid[MC]>rl[MCS] minus mid[MC]). Supported if the interval lies above 0; "
        "contradicted if it lies below 0.",
        arms=(
            "mid[MC]",
            "mid[MCS]",
            "mid[MC]>rl[MCS]",
            "mid[MCS]>rl[MCS]",
        ),
        reads=("an evaluation with science tasks",),
        decide=_c6,
    ),
)

BEHAVIOUR_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C14",
        title="Mid-training lengthens responses and raises confidence",
        rule="On the math tasks (mean over them), as in the paper: median response length of mid[MCS] minus "
        "base above 0 tokens; mean negative log-probability of mid[MCS] minus base below 0; and within "
        "mid[MCS] that of correct minus incorrect responses below 0. Supported if all three intervals "
        "lie on that side of 0; contradicted if any lies on the other.",
        arms=(
            "base",
            "mid[MCS]",
        ),
        reads=("analysis behaviour, over an evaluation with math tasks",),
        decide=_c14,
    ),
)

CLAIMS: tuple[Claim, ...] = tuple(
    sorted(
        (*SCORE_CLAIMS, *WEIGHT_CLAIMS, *PATH_CLAIMS, *BEHAVIOUR_CLAIMS, *FRONTIER_CLAIMS, *SCHEDULE_CLAIMS),
        key=lambda claim: int(claim.id[1:]),
    )
)
"""All eighteen, in order."""

__all__ = ["CLAIMS", "RULES_VERSION"]
