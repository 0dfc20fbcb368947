"""The reference study's own figures, shown beside each claim (PRISM, arXiv 2603.17074 v3). Never used by a rule.

Scores are percentages. ``source`` names the table of the paper that the figures come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One of the paper's numbers."""

    label: str
    """Model and what was measured."""
    value: float
    """As printed in the paper, or a difference of two printed numbers."""
    unit: str
    """Unit."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the paper reports for a claim."""

    text: str
    """One line for the card."""
    source: str
    """Table or section of the paper."""
    figures: tuple[Figure, ...] = ()
    """The numbers behind the line."""

    def to_json(self) -> dict[str, Any]:
        """The reference as it stands in the ledger."""
        rows = [{"label": f.label, "value": f.value, "unit": f.unit} for f in self.figures]
        return {"text": self.text, "source": self.source, "figures": rows}


def _rows(unit: str, *pairs: tuple[str, float]) -> tuple[Figure, ...]:
    return tuple(Figure(label=label, value=value, unit=unit) for label, value in pairs)


REFERENCE: dict[str, Reference] = {
    "C1": Reference(
        text="math +15 to +40, code +5 to +12, science +6 to +13 points (Nemotron-H +27.8)",
        source="table 6",
        figures=_rows(
            "points",
            ("Granite-3.3 8B, math", 39.8),
            ("Granite-3.3 8B, code", 8.51),
            ("Granite-3.3 8B, science", 6.56),
            ("LLaMA-3.1 8B, science", 0.84),
            ("Mistral-7B, science", -2.87),
            ("Nemotron-H 8B, science", 27.77),
        ),
    ),
    "C2": Reference(
        text="the general leaderboard's average is unchanged, HellaSwag falls by about 5 points",
        source="table 4",
        figures=_rows("points", ("Granite-3.3 8B, LB-V1 average", 0.33), ("Granite-3.3 8B, HellaSwag", -5.34)),
    ),
    "C3": Reference(
        text="Granite-3.3: math 8.95 to 36.43 (Math), code 2.81 to 10.71 (+Code), GPQA 19.02 to 29.12 (+Science)",
        source="table 19",
        figures=_rows("points", ("math, +Math", 27.48), ("code, +Code", 7.9), ("science, +Science", 10.1)),
    ),
    "C4": Reference(
        text="AVG rises from 7-12 to 29-42 over the whole pipeline; RL from the base leaves AIME near zero",
        source="table 11",
        figures=_rows(
            "percent AVG, mid[MCS]>rl[MCS]",
            ("LLaMA-3.1 8B", 29.69),
            ("Granite-3.3 8B", 40.16),
            ("Mistral-7B v0.1", 35.14),
        ),
    ),
    "C5": Reference(
        text="mid-training MC to MCS: +3 to +6 AVG; RL prompts MC to MCS: less than 2",
        source="table 11",
        figures=_rows(
            "points AVG, mid MC to MCS at rl[MCS]",
            ("LLaMA-3.1 8B", 3.31),
            ("Granite-3.3 8B", 4.21),
            ("Mistral-7B v0.1", 4.37),
        )
        + _rows(
            "points AVG, RL MC to MCS at mid[MCS]",
            ("LLaMA-3.1 8B", 0.93),
            ("Granite-3.3 8B", -1.6),
            ("Mistral-7B v0.1", 0.09),
        ),
    ),
    "C6": Reference(
        text="GPQA gains +17 to +28 points in RL after MCS (Nemotron-H +9.3); after MC, RL gains up to +16.5 as well",
        source="table 11",
        figures=_rows(
            "points, (gain in RL after MCS) - (gain after MC), rl[MCS]",
            ("LLaMA-3.1 8B", 9.77),
            ("Granite-3.3 8B", 5.73),
            ("Mistral-7B v0.1", 5.39),
        ),
    ),
    "C7": Reference(
        text="more than 90% of the weights move by over 1% in mid-training, about 5% in RL; L2 370 to 580 "
        "times smaller",
        source="table 12",
        figures=_rows(
            "percent unchanged",
            ("Granite-3.3 8B, base to mid (attention)", 9.3),
            ("Granite-3.3 8B, mid to RL", 95.9),
            ("Nemotron-H 8B, base to mid", 2.7),
            ("Nemotron-H 8B, mid to RL", 93.5),
        ),
    ),
    "C8": Reference(
        text="unchanged at 0.1% to 10%: 2.1% to 20.1% after mid-training, 82.3% to 99.5% after RL",
        source="table 22",
        figures=_rows(
            "percent unchanged",
            ("base to mid at 0.1%", 2.1),
            ("mid to RL at 0.1%", 82.3),
            ("base to mid at 10%", 20.1),
            ("mid to RL at 10%", 99.5),
        ),
    ),
    "C9": Reference(
        text="shares changed per sub-component within 1.8 points, whether RL starts from mid or from base",
        source="table 23",
        figures=_rows(
            "points, (base to RL) - (mid to RL)",
            ("Granite-3.3 8B, attention.v", 1.8),
            ("Granite-3.3 8B, norm", -1.1),
            ("Nemotron-H 8B, attention.v", -0.9),
        ),
    ),
    "C10": Reference(
        text="normalised L2 0.177 (MC) and 0.175 (MCS); cosine between the updates 0.52 (Nemotron-H 0.62)",
        source="table 12 and section on update direction",
        figures=_rows("L2 (attention)", ("Granite-3.3 8B, MC", 0.177), ("Granite-3.3 8B, MCS", 0.175))
        + _rows("cosine", ("Granite-3.3 8B", 0.521), ("Nemotron-H 8B", 0.623)),
    ),
    "C11": Reference(
        text="CKA between mid and RL above 0.998 at every layer",
        source="table 14",
        figures=_rows(
            "smallest CKA over layers, GSM8K",
            ("Granite-3.3 8B", 0.9997),
            ("LLaMA-3.1 8B", 0.9996),
            ("Nemotron-H 8B", 0.9993),
        ),
    ),
    "C12": Reference(
        text="most change in the first 200 to 400 of 1,000 steps (80% by step 400); changed weights grow from "
        "1.5% to 5%",
        source="section on the RL trajectory",
        figures=_rows("share of the final distance by step 400", ("Granite-3.3 8B", 0.8)),
    ),
    "C13": Reference(
        text="pass rate 17 to 76 to 80 along base, mid, RL",
        source="section on the loss landscape",
        figures=_rows("percent", ("Granite-3.3 8B, base", 16.9), ("mid", 75.5), ("RL", 80)),
    ),
    "C14": Reference(
        text="median length 120 to 2,254 tokens, negative log-probability 0.382 to 0.138; 0.128 where "
        "correct, 0.153 where not",
        source="table 15",
        figures=_rows("tokens, median", ("Granite-3.3 8B, base", 120), ("Granite-3.3 8B, mid", 2254))
        + _rows(
            "nats a token",
            ("Granite-3.3 8B, base", 0.382),
            ("Granite-3.3 8B, mid", 0.138),
            ("Granite-3.3 8B, mid, correct", 0.128),
            ("Granite-3.3 8B, mid, incorrect", 0.153),
        ),
    ),
    "C15": Reference(
        text="prompts with 0 of 16 correct at the start of RL are solved ever more often", source="solvability figure"
    ),
    "C16": Reference(
        text="RULER at 128k: 59.1 (base), 6.5 (mid), 42.2 (merge and extension)",
        source="table 7",
        figures=_rows(
            "percent, RULER 128k", ("base", 59.09), ("mid (MC)", 6.46), ("merge 15/85 + extension of all", 42.16)
        ),
    ),
    "C17": Reference(
        text="16k beats 8k and 32k on AIME24 (31.8 against 27.2 and 31.0); Math avg 42.07 at 15.7B, 42.22 at "
        "26.2B tokens",
        source="tables 8 and 20",
        figures=_rows("percent, AIME24", ("8k", 27.19), ("16k", 31.82), ("32k", 30.98))
        + _rows("percent, Math avg", ("10.49B", 40.21), ("15.73B", 42.07), ("26.21B", 42.22), ("31.46B", 42.42)),
    ),
    "C18": Reference(
        text="AIME24 23.6 after long-context extension, 10.0 and 9.4 from earlier phases (one model)",
        source="table 3",
        figures=_rows("percent, AIME24", ("from phase 3", 9.38), ("from phase 4", 10.0), ("after long context", 23.59)),
    ),
}
