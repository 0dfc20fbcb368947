"""The paper's tables against themselves: every average computed anew, and every figure that is printed twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prismlab.claims.reference_study import GRANITE, arm_scores
from prismlab.claims.reference_tables import (
    BEHAVIOUR,
    DIVERGENCE,
    LANDSCAPE,
    RL_GAINS,
    SCORES,
    SUBCOMPONENTS,
    UNCHANGED,
)
from prismlab.claims.rule import MCS, rl

ROUNDING = 0.01
"""Half a unit in the last place of the printed average, and as much of the figures that it is the mean of."""

AVERAGES: dict[str, tuple[str, ...]] = {
    "Code avg": ("LiveCodeBench", "Codeforces"),
    "Math avg": ("AIME24", "AIME25", "MATH500"),
    "AVG": ("Code avg", "Math avg", "GPQA-D"),
    "LB-V1 avg": ("ARC", "HellaSwag", "MMLU", "TruthfulQA", "Winogrande", "GSM8K"),
    "LB-V2 avg": ("IFEval", "BBH", "MATH", "GPQA", "MUSR", "MMLU-Pro"),
}
"""Averages that the tables print, and what they are the mean of."""


@dataclass(frozen=True)
class Average:
    """A printed average beside the recomputed one."""

    table: str
    row: str
    column: str
    terms: tuple[float, ...]
    printed: float
    recomputed: float

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return abs(self.printed - self.recomputed) <= ROUNDING + 1e-9

    def arithmetic(self) -> str:
        """``(10.63 + 10.52)/2 = 10.58``."""
        return f"({' + '.join(f'{term:.2f}' for term in self.terms)})/{len(self.terms)} = {self.recomputed:.2f}"


def _mean_terms(table: str, row: str, column: str) -> tuple[float, ...] | None:
    """What an average is the mean of; averages of averages from the unrounded ones."""
    terms: list[float] = []
    for name in AVERAGES[column]:
        inner = _mean_terms(table, row, name) if name in AVERAGES else None
        value = sum(inner) / len(inner) if inner else SCORES[table].get(row, name)
        if value is None:
            return None
        terms.append(value)
    return tuple(terms)


def averages() -> list[Average]:
    """Every average that the tables print and whose terms they give, in their order."""
    found: list[Average] = []
    for table, grid in SCORES.items():
        for row in grid.rows:
            for column in AVERAGES:
                printed, terms = grid.get(row, column), _mean_terms(table, row, column)
                if printed is not None and terms is not None:
                    found.append(Average(table, row, column, terms, printed, sum(terms) / len(terms)))
    return found


_MICRO = "Granite-4 Micro 3B"
_TABLES = {
    f"{GRANITE}, base": {"table 4": "Base", "table 7": "Base", "table 11": f"{GRANITE}, base", "table 19": "Base"},
    f"{GRANITE}, mid[M]": {"table 4": "Math", "table 19": "Math"},
    f"{GRANITE}, mid[MC]": {"table 4": "Math+Code", "table 7": "Mid (Math+Code)", "table 19": "Math+Code"},
    f"{GRANITE}, mid[MCS]": {"table 4": "Math+Code+Science", "table 19": "Math+Code+Science"},
    f"{_MICRO}, base": {"table 8": "Base", "table 20": "0"},
    f"{_MICRO}, mid[MCS], 8k": {"table 3": "After long-context", "table 8": "8k"},
    "LLaMA-3.1 8B, base": {},
    "LLaMA-3.1 8B, mid[MCS]": {},
    "Mistral-7B v0.1, base": {},
    "Mistral-7B v0.1, mid[MCS]": {},
}


def same_rows() -> dict[str, dict[str, str]]:
    """Rows that describe one checkpoint: checkpoint to {table: row}."""
    found: dict[str, dict[str, str]] = {}
    for checkpoint, rows in _TABLES.items():
        model, _, arm = checkpoint.partition(", ")
        stage = {"base": "base", "mid[MCS]": "mid", "mid[MCS], 8k": "mid"}.get(arm)
        more = {"table 6": f"{model}, {stage}", "table 11": checkpoint}
        found[checkpoint] = rows | {table: row for table, row in more.items() if row in SCORES[table].rows}
    return found


_ALIAS = {"LB-V1 avg": "LB-V1", "LB-V2 avg": "LB-V2"}


def _twice() -> Iterator[str]:
    for checkpoint, rows in same_rows().items():
        cells: dict[str, dict[float, list[str]]] = {}
        for table, row in sorted(rows.items(), key=lambda place: int(place[0].split()[1])):
            for column, value in zip(SCORES[table].columns, SCORES[table].rows[row], strict=True):
                if value is not None:
                    seen = cells.setdefault(_ALIAS.get(column, column), {})
                    equal = next((other for other in seen if abs(other - value) <= ROUNDING + 1e-9), value)
                    seen.setdefault(equal, []).append(table)
        for column, seen in cells.items():
            if len(seen) > 1:
                said = [f"{value:g} in {' and '.join(tables)}" for value, tables in seen.items()]
                yield f"{checkpoint}, {column}: {'; '.join(said)}"


def _gains() -> Iterator[str]:
    """Gains in RL in the text against those of the pipeline's table, where both name the model."""
    column = {"GPQA-D": "science"}
    for benchmark, gains in RL_GAINS.items():
        for model, said in gains.items():
            arms = arm_scores(model)
            if rl(MCS, "MCS") not in arms:
                continue
            if benchmark in column:
                after, before = (arms[arm][column[benchmark]] for arm in (rl(MCS, "MCS"), MCS))
            else:
                rows = [SCORES["table 11"].get(f"{model}, {arm}", benchmark) for arm in (rl(MCS, "MCS"), MCS)]
                if rows[0] is None or rows[1] is None:
                    continue
                after, before = rows[0], rows[1]
            if abs(said - (after - before)) > 2 * ROUNDING:
                yield (
                    f"{model}, gain of {benchmark} in RL (MCS prompts, unbalanced): {said:g} in the text, "
                    f"{after:g} - {before:g} = {after - before:.2f} by table 11 (which may show other runs)"
                )


def _weights() -> Iterator[str]:
    for model, rows in DIVERGENCE.items():
        for label, row in rows.items():
            parts = [value for value in row[:3] if value is not None]
            if row[3] is not None and row[3] == row[0] and row[3] != max(parts):
                yield f"{model}, {label}: table 12's total {row[3]:g} repeats its attention column"
    one = next(line for line in UNCHANGED if line[0] == 1.0)
    said = DIVERGENCE[GRANITE]["MCS base->mid"][4]
    attention = [100 - (SUBCOMPONENTS[f"attn.{part}"][0] or 0.0) for part in "qkvo"]
    if said is not None and abs(said - one[1]) > 0.1:
        yield (
            f"{GRANITE}, MCS base->mid, unchanged at 1%: {said:g}% of the total in table 12, {one[1]:g}% in table 22; "
            f"the four attention matrices of table 23 average {sum(attention) / 4:.2f}%"
        )
    said = DIVERGENCE[GRANITE]["MCS mid->RL"][4]
    if said is not None and abs(said - one[2]) > 0.1:
        yield f"{GRANITE}, MCS mid->RL, unchanged at 1%: {said:g}% in table 12, {one[2]:g}% in table 22"


def disagreements() -> list[str]:
    """Where the tables contradict themselves, a line each; what rounding explains is left out."""
    wrong = [a for a in averages() if not a.agrees]
    found = [f"{a.table}, {a.row}, {a.column}: {a.printed:g} is printed, the mean is {a.arithmetic()}" for a in wrong]
    found += dict.fromkeys(_twice())
    for model, corners in LANDSCAPE.items():
        for stage, value in corners.items():
            said = BEHAVIOUR[model][stage][0]
            if said is not None and abs(said - value) > 0.1:
                found.append(
                    f"{model}, {stage}, pass rate on 200 MATH500 problems: {said:g} in table 15, {value:g} on the path"
                )
    found += _gains()
    found += _weights()
    found.append(
        f"{GRANITE}, mid[MC], Math avg: an appendix table prints 44.33; its columns and the other tables give 45.00"
    )
    return found
