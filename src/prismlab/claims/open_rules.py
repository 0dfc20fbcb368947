"""Claims whose rule is fixed while no step of this version makes what it reads: they are answered with not_tested."""

from __future__ import annotations

from prismlab.claims.rule import Claim

OPEN_CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C15",
        title="RL solves prompts that were unsolved at its start",
        rule="Training prompts with 0 correct of 16 samples at the start of mid[MCS]>rl[MCS]: their pass rate "
        "at the last snapshot minus the rate of a fresh 16 samples at the start (so that no gain comes "
        "from selecting on the first ones). Supported if the interval lies above 0; contradicted if it "
        "lies below 0.",
        arms=("mid[MCS]>rl[MCS]",),
        reads=("an analysis of the solvability frontier, which this version lacks",),
        decide=None,
    ),
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
        reads=("a long-context evaluation, which this version lacks",),
        decide=None,
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
        reads=("sweeps over context length and token budget, which this version does not name",),
        decide=None,
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
        reads=("starting points before and after long-context extension, which this version does not name",),
        decide=None,
    ),
)
