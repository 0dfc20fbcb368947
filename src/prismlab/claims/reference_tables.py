"""The tables of the reference study as numbers (PRISM, arXiv 2603.17074 v3), for ``prism claims --reference``.

Scores are percent. None stands where the paper gives no figure. Labels are ours where the paper's are long.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table of scores."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    """Row label to a value a column."""

    def get(self, row: str, column: str) -> float | None:
        """A cell; None where the table lacks the row, the column or the figure."""
        if row not in self.rows or column not in self.columns:
            return None
        return self.rows[row][self.columns.index(column)]


SCORES: dict[str, Grid] = {
    "table 3": Grid(
        ("LB-V1", "LB-V2", "LiveCodeBench", "Codeforces", "GPQA-D", "AIME24", "AIME25", "MATH500"),
        {
            "Phase 3": (63.3, 19.44, 7.05, 8.61, 19.53, 9.38, 16.09, 65.88),
            "Phase 4": (62.84, 20.85, 7.89, 7.95, 17.85, 10.0, 14.06, 61.7),
            "After long-context": (62.91, 20.53, 10.39, 6.18, 25.93, 23.59, 20.94, 77.44),
        },
    ),
    "table 4": Grid(
        (
            "ARC",
            "HellaSwag",
            "MMLU",
            "TruthfulQA",
            "Winogrande",
            "GSM8K",
            "LB-V1 avg",
            "IFEval",
            "BBH",
            "MATH",
            "GPQA",
            "MUSR",
            "MMLU-Pro",
            "LB-V2 avg",
        ),
        {
            "Base": (61.95, 83.46, 62.56, 52.24, 80.35, 56.33, 66.15, 46.62, 24.68, 10.2, 6.38, 8.88, 23.82, 20.1),
            "Math": (62.54, 78.72, 64.29, 46.04, 75.3, 71.95, 66.47, 46.46, 25.57, 17.75, 5.59, 9.08, 29.86, 22.39),
            "Math+Code": (
                61.01,
                78.09,
                62.65,
                47.36,
                74.74,
                73.46,
                66.22,
                45.56,
                26.87,
                18.43,
                5.93,
                10.6,
                28.4,
                22.63,
            ),
            "Math+Code+Science": (
                61.69,
                78.12,
                62.98,
                46.96,
                74.9,
                74.22,
                66.48,
                46.44,
                26.32,
                20.02,
                7.27,
                8.6,
                29.55,
                23.03,
            ),
        },
    ),
    "table 7": Grid(
        (
            "RULER 8k",
            "RULER 16k",
            "RULER 32k",
            "RULER 64k",
            "RULER 128k",
            "LiveCodeBench",
            "Codeforces",
            "Code avg",
            "GPQA-D",
            "AIME24",
            "AIME25",
            "MATH500",
            "Math avg",
        ),
        {
            "Base": (85.81, 82.4, 75.53, 64.91, 59.09, 2.15, 1.99, 2.07, 22.56, 0.46, 0.31, 26.09, 8.95),
            "Mid (Math+Code)": (
                89.02,
                60.44,
                21.52,
                11.71,
                6.46,
                11.11,
                10.3,
                10.71,
                19.02,
                32.44,
                28.33,
                74.22,
                44.99,
            ),
            "Mid + LC (attention)": (
                90.04,
                82.56,
                71.47,
                54.63,
                36.32,
                23.78,
                15.53,
                19.65,
                17.85,
                36.56,
                32.55,
                67.2,
                45.44,
            ),
            "Mid + LC (full)": (
                89.29,
                80.74,
                70.86,
                56.02,
                38.41,
                29.99,
                21.04,
                25.52,
                14.48,
                35.21,
                30.36,
                62.3,
                42.62,
            ),
            "Merge 15/85": (89.12, 69.76, 32.63, 15.44, 11.32, 10.75, 10.96, 10.86, 22.22, 28.39, 24.9, 72.97, 42.09),
            "Merge + LC (attention)": (
                90.0,
                84.27,
                73.31,
                57.27,
                37.75,
                26.16,
                17.29,
                21.73,
                17.51,
                33.85,
                28.75,
                71.28,
                44.63,
            ),
            "Merge + LC (full)": (
                89.83,
                84.08,
                73.89,
                60.06,
                42.16,
                29.51,
                21.56,
                25.54,
                15.82,
                33.75,
                30.78,
                68.91,
                44.48,
            ),
        },
    ),
    "table 8": Grid(
        ("LB-V1", "LB-V2", "LiveCodeBench", "Codeforces", "GPQA-D", "AIME24", "AIME25", "MATH500"),
        {
            "Base": (66.01, 21.82, 0.24, 2.28, 21.55, 16.09, 12.34, 50.42),
            "8k": (62.91, 20.53, 10.87, 6.25, 34.34, 27.19, 22.29, 79.4),
            "16k": (64.23, 20.37, 12.19, 8.9, 38.89, 31.82, 25.26, 82.47),
            "32k": (64.48, 21.05, 14.93, 7.5, 39.89, 30.98, 21.87, 82.7),
        },
    ),
    "table 19": Grid(
        ("LiveCodeBench", "Codeforces", "Code avg", "GPQA-D", "AIME24", "AIME25", "MATH500", "Math avg"),
        {
            "Base": (2.15, 1.99, 2.07, 22.56, 0.46, 0.31, 26.09, 8.95),
            "Math": (2.15, 3.46, 2.81, 17.34, 26.72, 22.08, 60.5, 36.43),
            "Math+Code": (11.11, 10.3, 10.71, 19.02, 32.44, 28.33, 74.22, 44.99),
            "Math+Code+Science": (10.63, 10.52, 10.58, 29.12, 37.18, 27.96, 81.11, 48.75),
        },
    ),
    "table 20": Grid(
        (
            "LB-V1",
            "LB-V2",
            "LiveCodeBench",
            "Codeforces",
            "Code avg",
            "GPQA-D",
            "AIME24",
            "AIME25",
            "MATH500",
            "Math avg",
        ),
        {
            "0": (66.01, 21.82, 0.24, 2.28, 1.26, 21.55, 16.09, 12.34, 50.42, 26.28),
            "10.49B": (63.45, 19.5, 10.51, 8.68, 9.59, 19.19, 23.95, 19.17, 77.52, 40.21),
            "15.73B": (63.24, 19.79, 10.75, 7.28, 9.02, 23.06, 26.14, 21.3, 78.76, 42.07),
            "26.21B": (63.28, 19.63, 9.8, 7.58, 8.69, 19.19, 28.49, 20.1, 78.08, 42.22),
            "31.46B": (63.16, 20.05, 8.24, 6.99, 7.62, 21.38, 28.02, 22.08, 77.15, 42.42),
        },
    ),
    "table 6": Grid(
        (
            "LB-V1",
            "LB-V2",
            "LiveCodeBench",
            "Codeforces",
            "Code avg",
            "GPQA-D",
            "AIME24",
            "AIME25",
            "MATH500",
            "Math avg",
        ),
        {
            "Granite-3.3 8B, base": (66.15, 20.1, 2.15, 1.99, 2.07, 22.56, 0.46, 0.31, 26.09, 8.95),
            "Granite-3.3 8B, mid": (66.48, 23.03, 10.63, 10.52, 10.58, 29.12, 37.18, 27.96, 81.11, 48.75),
            "Granite-4 Micro 3B, base": (66.01, 21.82, 0.24, 2.28, 1.26, 21.55, 16.09, 12.34, 50.42, 26.28),
            "Granite-4 Micro 3B, mid": (62.91, 20.53, 10.87, 6.25, 8.56, 34.34, 27.19, 22.29, 79.4, 42.96),
            "Granite-4-H Micro 3B, base": (64.49, 18.99, 0.6, 0.88, 0.74, 20.88, 7.08, 2.7, 30.17, 13.32),
            "Granite-4-H Micro 3B, mid": (64.21, 18.75, 15.53, 8.02, 11.78, 32.66, 33.69, 23.49, 82.73, 46.64),
            "Nemotron-H 8B (8k), base": (71.35, 23.84, 1.19, 3.6, 2.39, 4.21, 2.13, 2.29, 49.46, 17.96),
            "Nemotron-H 8B (8k), mid": (68.84, 26.08, 13.02, 10.52, 11.77, 31.98, 19.21, 22.76, 76.63, 39.53),
            "Mistral-7B v0.1, base": (60.88, 14.89, 0.0, 0.15, 0.07, 26.94, 0.0, 0.1, 1.68, 0.59),
            "Mistral-7B v0.1, mid": (59.99, 19.68, 10.16, 9.42, 9.79, 24.07, 28.85, 24.27, 70.71, 41.28),
            "LLaMA-3.1 8B, base": (62.76, 14.09, 0.0, 0.07, 0.04, 20.2, 0.05, 0.15, 6.51, 2.24),
            "LLaMA-3.1 8B, mid": (65.21, 21.46, 6.09, 5.45, 5.77, 21.04, 16.45, 19.32, 73.47, 36.41),
            "Mistral-Small 24B, base": (74.98, 27.29, 0.0, 0.29, 0.15, 22.55, 0.78, 0.73, 26.92, 9.48),
            "Mistral-Small 24B, mid": (69.52, 27.42, 10.03, 10.08, 10.06, 22.05, 32.91, 27.34, 80.8, 47.02),
        },
    ),
    "table 11": Grid(
        ("LiveCodeBench", "Codeforces", "Code avg", "AIME24", "AIME25", "MATH500", "Math avg", "GPQA-D", "AVG"),
        {
            "LLaMA-3.1 8B, base": (0.0, 0.07, 0.04, 0.05, 0.15, 6.51, 2.24, 20.2, 7.49),
            "LLaMA-3.1 8B, mid[MC]": (6.93, 6.03, 6.48, 20.67, 19.58, 73.7, 37.98, 19.53, 21.33),
            "LLaMA-3.1 8B, mid[MCS]": (6.09, 5.45, 5.77, 16.45, 19.32, 73.47, 36.41, 21.04, 21.07),
            "LLaMA-3.1 8B, mid[MC]>rl[MC]": (12.31, 11.85, 12.08, 25.47, 23.23, 78.99, 42.56, 23.06, 25.9),
            "LLaMA-3.1 8B, mid[MC]>rl[MCS]": (11.83, 12.8, 12.32, 24.43, 23.12, 78.62, 42.06, 24.75, 26.38),
            "LLaMA-3.1 8B, mid[MCS]>rl[MC]": (13.62, 11.41, 12.51, 20.47, 21.67, 77.1, 39.75, 34.01, 28.76),
            "LLaMA-3.1 8B, mid[MCS]>rl[MCS]": (14.34, 12.07, 13.2, 20.42, 22.08, 77.03, 39.84, 36.03, 29.69),
            "Granite-3.3 8B, base": (2.15, 1.99, 2.07, 0.46, 0.31, 26.09, 8.95, 22.56, 11.19),
            "Granite-3.3 8B, mid[MC]": (11.11, 10.3, 10.71, 32.44, 28.33, 74.22, 44.99, 19.02, 24.91),
            "Granite-3.3 8B, mid[MCS]": (10.63, 10.52, 10.58, 37.18, 27.96, 81.11, 48.75, 29.12, 29.48),
            "Granite-3.3 8B, mid[MC]>rl[MC]": (20.79, 18.76, 19.78, 40.36, 33.33, 85.88, 53.19, 35.52, 36.16),
            "Granite-3.3 8B, mid[MC]>rl[MCS]": (20.43, 19.57, 20.0, 40.1, 30.89, 85.51, 52.17, 35.69, 35.95),
            "Granite-3.3 8B, mid[MCS]>rl[MC]": (20.31, 20.46, 20.38, 40.62, 30.89, 84.62, 52.04, 52.86, 41.76),
            "Granite-3.3 8B, mid[MCS]>rl[MCS]": (17.2, 18.03, 17.62, 40.42, 29.58, 83.99, 51.33, 51.52, 40.16),
            "Mistral-7B v0.1, base": (0.0, 0.15, 0.07, 0.0, 0.1, 1.68, 0.59, 26.94, 9.2),
            "Mistral-7B v0.1, mid[MC]": (11.11, 9.27, 10.19, 24.63, 15.52, 47.7, 29.28, 15.99, 18.49),
            "Mistral-7B v0.1, mid[MCS]": (10.16, 9.42, 9.79, 28.85, 24.27, 70.71, 41.28, 24.07, 25.05),
            "Mistral-7B v0.1, mid[MC]>rl[MC]": (17.08, 16.34, 16.71, 34.11, 27.5, 84.18, 48.6, 29.12, 31.48),
            "Mistral-7B v0.1, mid[MC]>rl[MCS]": (16.61, 15.6, 16.1, 33.02, 26.93, 83.8, 47.92, 28.28, 30.77),
            "Mistral-7B v0.1, mid[MCS]>rl[MC]": (16.61, 15.31, 15.96, 33.75, 26.93, 84.15, 48.28, 40.91, 35.05),
            "Mistral-7B v0.1, mid[MCS]>rl[MCS]": (16.01, 15.16, 15.58, 32.86, 27.03, 84.37, 48.09, 41.75, 35.14),
        },
    ),
}
"""Of Granite-4 Micro: 3 (when), 8 (context), 20 (budget); of Granite-3.3: 4, 7, 19; 6 (families), 11 (pipeline)."""

DIVERGENCE: dict[str, dict[str, tuple[float | None, ...]]] = {
    "Granite-3.3 8B": {
        "MCS base->mid": (0.175, 0.329, None, 0.175, 9.3),
        "MCS mid->RL": (0.0003, 0.0006, None, 0.0003, 95.9),
        "base->RL": (0.0004, 0.0007, None, 0.0004, 96.0),
        "MC base->mid": (0.177, 0.333, None, 0.177, 9.3),
        "MC mid->RL": (0.0003, 0.0006, None, 0.0003, 95.8),
    },
    "Nemotron-H 8B (8k)": {
        "MCS base->mid": (0.23, 0.289, 0.138, 0.112, 2.7),
        "MCS mid->RL": (0.0007, 0.0007, 0.0003, 0.0003, 93.5),
        "base->RL": (0.0006, 0.0006, 0.0003, 0.0002, 94.2),
        "MC base->mid": (0.232, 0.292, 0.14, 0.113, None),
    },
}
"""Table 12: normalised L2 of attention, MLP, Mamba, total; percent of elements that moved by less than 1%."""

UNCHANGED: tuple[tuple[float, float, float], ...] = (
    (0.1, 2.1, 82.3),
    (0.5, 2.4, 87.3),
    (1.0, 3.5, 95.0),
    (2.0, 5.3, 97.5),
    (5.0, 11.1, 99.0),
    (10.0, 20.1, 99.5),
)
"""Table 22, Granite-3.3 8B: threshold in percent; percent unchanged in mid-training and in RL."""

SUBCOMPONENTS: dict[str, tuple[float | None, ...]] = {
    "attn.q": (83.5, 4.4, 5.2, 97.5, 5.5, 4.9),
    "attn.k": (83.2, 4.6, 5.2, 96.9, 5.5, 4.8),
    "attn.v": (97.9, 5.7, 7.5, 97.1, 8.5, 7.6),
    "attn.o": (98.0, 5.6, 6.7, 97.2, 7.2, 6.4),
    "mlp.gate": (98.3, 5.4, 6.1, None, None, None),
    "mlp.up": (97.9, 4.9, 5.5, None, None, None),
    "mlp.down": (98.0, 5.0, 5.6, None, None, None),
    "mamba.in_proj": (None, None, None, 97.8, 5.9, 5.5),
    "mamba.out_proj": (None, None, None, 97.8, 6.5, 5.9),
    "mamba.conv1d": (None, None, None, 91.7, 17.4, 17.7),
    "mamba.A/dt": (None, None, None, 97.5, 0.0, 0.0),
    "embed/lm_head": (97.5, 2.4, 2.6, 97.9, 7.3, 6.7),
    "norm": (11.9, 1.2, 0.1, 61.3, 0.1, 0.1),
}
"""Table 23: percent changed by over 1%, base to mid, mid to RL, base to RL; Granite-3.3 8B, then Nemotron-H 8B."""

CKA: dict[str, dict[str, float]] = {
    "Granite-3.3 8B": {"Wikipedia": 0.9999, "C4": 0.9999, "GSM8K": 0.9997},
    "LLaMA-3.1 8B": {"Wikipedia": 0.9999, "C4": 0.9999, "GSM8K": 0.9996},
    "Nemotron-H 8B (8k)": {"Wikipedia": 0.9999, "C4": 0.9998, "GSM8K": 0.9993},
}
"""Table 14: smallest CKA over layers between mid and RL; its spread over 20 resamples is at most 0.0001."""

BEHAVIOUR: dict[str, dict[str, tuple[float | None, ...]]] = {
    "Granite-3.3 8B": {
        "base": (16.9, 120, 0.382, None, 0.383),
        "mid": (75.5, 2254, 0.138, 0.128, 0.153),
        "rl": (79.5, 1700, 0.141, 0.135, 0.16),
    },
    "LLaMA-3.1 8B": {
        "base": (2.6, 158, 0.758, None, 0.78),
        "mid": (43.1, 1052, 0.377, 0.146, 0.469),
        "rl": (64.6, 1188, 0.267, 0.149, 0.32),
    },
    "Nemotron-H 8B (8k)": {
        "base": (66.6, 452, 0.167, 0.04, 0.258),
        "mid": (61.6, 1928, 0.15, 0.116, 0.156),
        "rl": (83.0, 1780, 0.127, 0.112, 0.137),
    },
}
"""Table 15, 200 MATH500 problems: pass rate, median tokens, nats a token (all, correct, incorrect responses)."""

LANDSCAPE: dict[str, dict[str, float]] = {
    "Granite-3.3 8B": {"base": 16.9, "mid": 75.5, "rl": 80},
    "LLaMA-3.1 8B": {"base": 2.6, "mid": 43.1, "rl": 66},
}
"""Pass rate at the corners of the path, 200 MATH500 problems; the inner points are a figure."""

COSINE: dict[str, float] = {"Granite-3.3 8B": 0.521, "Nemotron-H 8B (8k)": 0.623}
"""Between the updates of MC and MCS."""

RL_ON_BASE_DEFICIT: dict[str, float] = {"math": 37, "code": 14, "science": 5}
"""Granite-3.3 8B: points that RL from the base stays behind the whole pipeline, rounded in the text."""

RL_GAINS: dict[str, dict[str, float]] = {
    "GPQA-D": {
        "Mistral-Small 24B": 27.95,
        "Granite-3.3 8B": 22.39,
        "Mistral-7B v0.1": 19.19,
        "LLaMA-3.1 8B": 18.35,
        "Nemotron-H 8B (8k)": 9.26,
    },
    "LiveCodeBench": {
        "Granite-3.3 8B": 8.96,
        "Mistral-Small 24B": 6.94,
        "LLaMA-3.1 8B": 8.96,
        "Granite-4 Micro 3B": 5.62,
        "Mistral-7B v0.1": 6.21,
        "Nemotron-H 8B (8k)": 6.57,
    },
}
"""Gains in RL on the unbalanced MCS prompts, as the text gives them."""

FRONT = 0.8
ACTIVE = (1.5, 5.0)
"""Share of the final distance by step 400 of 1,000; percent changed at steps 20 and 960 (there 5 to 6)."""
