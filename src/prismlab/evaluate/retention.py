"""The retention gate: what a checkpoint lost against a reference, benchmark by benchmark. Stage ``gate``.

A gain counts only beside what it cost. Every benchmark (task) is compared on the same items and samples, with a margin
in points. *Retained* is shown (non-inferiority: the whole interval lies above -margin) or not said. *Regressed* is
shown (a loss beyond the margin) or not said. All else is *undecided*, with the number of items that would decide it.
No average takes part, so none can hide a benchmark's loss.

Level: a test is one-sided at (1 - confidence)/2. A checkpoint is retained only if every benchmark is, and a test that
all must pass needs no correction (intersection-union, Berger 1982). It has regressed if any benchmark did, so those
p-values are Holm's over the benchmarks.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.errors import DataError, EndBranch, SpecError, shown
from prismlab.run.step import Artifact, Json, Progress, Result
from prismlab.stats import PairedItems, holm, items_to_decide, paired_items

Verdict = Literal["retained", "regressed", "undecided"]
Row = Mapping[str, Any]
Key = tuple[str, str, int]
"""Task, item, sample."""

MARGIN = 2.0
"""Points that may be lost, unless the user says otherwise."""
POWER = 0.8
"""Probability with which the stated number of items decides, if the true difference is the one seen."""
NEEDED = ("task", "item_id", "sample", "score")
"""Columns of sample rows that a gate cannot do without."""
CHECKED = ("question", "answer")
"""Columns in which two rows of one item must agree, where both files have them."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Sample rows of a Parquet file, as far as the gate reads them.

    Raises:
        DataError: the file is missing, is no Parquet file, holds no row, or lacks a column of ``NEEDED``, or one of
            these is of another type or has gaps where there may be none.
    """
    try:
        there = pq.read_schema(path).names
        lacking = [name for name in NEEDED if name not in there]
        if lacking:
            raise DataError(f"{path}: no column {', '.join(lacking)}; sample rows have {', '.join(NEEDED)}")
        table = pq.read_table(path, columns=[name for name in (*NEEDED, *CHECKED, "problem") if name in there])
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as sample rows: {shown(error)}") from error
    if not len(table):
        raise DataError(f"{path}: holds no sample row; run the evaluation again")
    _check_columns(table, path)
    return table.to_pylist()


def _check_columns(table: pa.Table, path: Path) -> None:
    types = {name: table.schema.field(name).type for name in ("sample", "score")}
    if not pa.types.is_integer(types["sample"]):
        raise DataError(f"{path}: column sample is of type {types['sample']}; it numbers an item's samples, from 0")
    kinds = pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null
    if not any(kind(types["score"]) for kind in kinds):
        raise DataError(f"{path}: column score is of type {types['score']}; numbers from 0 to 1 are wanted, or null")
    for name in ("task", "item_id", "sample"):
        if table[name].null_count:
            raise DataError(f"{path}: {table[name].null_count} rows have no {name}; run the evaluation again")


def _keyed(rows: Sequence[Row], name: str) -> dict[Key, Row]:
    keyed: dict[Key, Row] = {}
    for row in rows:
        key = (str(row["task"]), str(row["item_id"]), int(row["sample"]))
        if key in keyed:
            what = f"sample {key[2]} of item {shown(key[1], 60)}"
            raise DataError(f"{name}, task {shown(key[0], 60)}: {what} stands there twice; judge every sample once")
        score = row["score"]
        if score is not None and not (math.isfinite(score) and 0.0 <= score <= 1.0):
            where = f"{name}, task {shown(key[0], 60)}, item {shown(key[1], 60)}"
            raise DataError(f"{where}: score {score} is not from 0 to 1; a gate compares scores that are, or null")
        keyed[key] = row
    return keyed


def _same_items(base: Mapping[Key, Row], new: Mapping[Key, Row], names: tuple[str, str]) -> None:
    """Refuse what cannot be compared: other tasks, other items, other numbers of samples, changed questions."""
    for place, of in enumerate(("task", "item")):
        mine, its = ({key[: place + 1] for key in keyed} for keyed in (base, new))
        if mine == its:
            continue
        lone = min(mine ^ its)
        who, count = names[lone in its], len(mine ^ its)
        more = f" ({count} in all)" if count > 1 else ""
        label = " / ".join(shown(part, 60) for part in lone)
        raise DataError(f"only {who} has the {of} {label}{more}; a gate needs the same items on both sides")
    if base.keys() != new.keys():
        lone = min(base.keys() ^ new.keys())
        counts = [sum(key[:2] == lone[:2] for key in keyed) for keyed in (base, new)]
        raise DataError(
            f"task {shown(lone[0], 60)}, item {shown(lone[1], 60)}: {names[0]} has {counts[0]} samples, {names[1]} "
            f"{counts[1]}; a gate needs the same sampling on both sides"
        )
    for key, row in base.items():
        for column in CHECKED:
            if column in row and column in new[key] and row[column] != new[key][column]:
                where = f"task {shown(key[0], 60)}, item {shown(key[1], 60)}"
                raise DataError(f"{where}: its {column} has changed since {names[0]} was judged; judge both on one set")


def differing(base: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """Settings (of an evaluation's config) in which two sides differ, in words; paths and seeds of nothing else."""
    found: list[str] = []
    for key in sorted({*base, *new} - {"files", "scratch", "name"}):
        one, other = base.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            sides = cast("Mapping[str, Any]", one), cast("Mapping[str, Any]", other)
            found += [f"{key}.{text}" for text in differing(*sides, names)]
        elif one != other:
            said = [
                f"{shown(json.dumps(value), 60)} for {name}" for value, name in zip((one, other), names, strict=True)
            ]
            found.append(f"{key} is {', '.join(said)}")
    return found


@dataclass(frozen=True)
class _Compared:
    """One benchmark before its verdict."""

    pairs: PairedItems | None
    """None where fewer than two problems could be paired."""
    margin: float
    """Points."""
    lost: float
    """Share l of pairs without both scores: with differences of all -1, or all 1, the difference d of the others makes
    one of (1 - l) d - l, or (1 - l) d + l, in all."""
    facts: Mapping[str, Any]

    def bounds(self) -> tuple[float, float]:
        """What the difference of the scored pairs must lie above to show retention, and below to show a loss beyond
        the margin, whatever the unscored pairs would have been."""
        margin, scored = self.margin / 100, 1 - self.lost
        return (self.lost - margin) / scored, -(self.lost + margin) / scored

    def p_retained(self) -> float:
        """Against "the loss is the margin or more", with unscored pairs counted as lost."""
        return 1.0 if self.pairs is None else self.pairs.p_above(self.bounds()[0])

    def p_regressed(self) -> float:
        """Against "the loss is the margin or less", with unscored pairs counted as won."""
        return 1.0 if self.pairs is None else self.pairs.p_below(self.bounds()[1])

    def items_needed(self, alpha: float, tests: int) -> int | None:
        """Items that decide, if the difference is the one seen; None where no number does."""
        if self.pairs is None or self.pairs.interval.value is None:
            return None
        seen, (low, high) = self.pairs.interval.value, self.bounds()
        # A loss beyond the margin has to pass Holm's first step; what is retained passes its test alone.
        kept = seen > -self.margin / 100
        level, distance = (alpha, seen - low) if kept else (alpha / tests, high - seen)
        return items_to_decide(distance, self.pairs.variance, level, POWER) if distance > 0 else None


def _compare(base: Sequence[Row], new: Sequence[Row], margin: float, confidence: float) -> _Compared:
    both = [(b, n) for b, n in zip(base, new, strict=True) if b["score"] is not None and n["score"] is not None]
    problems = [str(b.get("problem") or b["item_id"]) for b, _ in both]
    old_scores, new_scores = [b["score"] for b, _ in both], [n["score"] for _, n in both]
    facts = {
        "base": 100 * sum(old_scores) / len(both) if both else None,
        "new": 100 * sum(new_scores) / len(both) if both else None,
        "items": len(set(problems)),
        "samples": len(base),
        "unscored": len(base) - len(both),
    }
    pairs = paired_items(new_scores, old_scores, problems, confidence) if len(set(problems)) > 1 else None
    return _Compared(pairs, margin, 1 - len(both) / len(base), facts)


def _judged(one: _Compared, p_regressed: float, alpha: float, tests: int) -> dict[str, Any]:
    """The entry of a benchmark, given its p-value for a loss beyond the margin after Holm."""
    found: dict[str, Any] = {**one.facts, "margin": one.margin}
    retained = one.p_retained()
    verdict: Verdict = "retained" if retained < alpha else "regressed" if p_regressed < alpha else "undecided"
    found |= {"verdict": verdict, "p_retained": retained}
    found |= {"p_regressed": one.p_regressed(), "p_regressed_holm": p_regressed}
    if one.pairs is None:
        none = dict.fromkeys(("difference", "lo", "hi", "better", "worse", "items_needed", "items_if_equal"))
        return {**found, **none, "reason": "fewer than 2 items are scored on both sides"}
    interval, variance = one.pairs.interval, one.pairs.variance
    points = interval.scaled(100.0).to_json()
    found |= {"difference": points["value"], "lo": points["lo"], "hi": points["hi"]}
    found |= {"better": one.pairs.better, "worse": one.pairs.worse}
    found["items_needed"] = one.items_needed(alpha, tests) if verdict == "undecided" else None
    found["items_if_equal"] = items_to_decide(-one.bounds()[0], variance, alpha, POWER) if one.bounds()[0] < 0 else None
    if one.lost and verdict == "undecided":
        found["reason"] = f"{one.facts['unscored']} of {one.facts['samples']} pairs are unscored and may go either way"
    return found


def _margins(tasks: Sequence[str], margin: float, margins: Mapping[str, float]) -> dict[str, float]:
    unknown = [name for name in margins if name not in tasks]
    if unknown:
        known = ", ".join(shown(task, 40) for task in tasks)
        raise SpecError(f"margin of {shown(unknown[0], 60)}: there is no such benchmark; there are {known}")
    wrong = [value for value in (margin, *margins.values()) if not 0.0 < value < 100.0]
    if wrong:
        raise SpecError(f"margin {wrong[0]:g}: a margin is the points that may be lost, above 0 and below 100")
    return {task: float(margins.get(task, margin)) for task in tasks}


def retention(
    base: Sequence[Row],
    new: Sequence[Row],
    margin: float = MARGIN,
    margins: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    names: tuple[str, str] = ("the reference", "the new checkpoint"),
) -> dict[str, Any]:
    """What ``new`` kept of ``base``, from sample rows of both on the same items.

    Args:
        base: sample rows of the reference: ``task``, ``item_id``, ``sample``, ``score`` (0 to 1, null where unscored),
            and ``problem``, ``question``, ``answer`` where they are known.
        new: those of the checkpoint under test.
        margin: points that may be lost.
        margins: points that may be lost in single benchmarks.
        confidence: of the intervals; tests are one-sided at (1 - confidence)/2.
        names: of both sides, for messages.

    Returns:
        ``verdict`` (of all), ``tasks`` ({task: {verdict, base, new, difference, lo, hi (percent and points), margin,
        items, samples, unscored, better, worse, p_retained, p_regressed, p_regressed_holm, items_needed,
        items_if_equal}}), ``average`` (mean difference in points; shown, never decides), ``confidence``, ``power``.

    Raises:
        DataError: other items, samples or questions on one side; a score outside 0 to 1; no rows.
        SpecError: a margin out of range or of an unknown benchmark.
    """
    sides = _keyed(base, names[0]), _keyed(new, names[1])
    if not sides[0] and not sides[1]:
        raise DataError(f"{names[0]} and {names[1]} have no sample rows; evaluate them on tasks first")
    _same_items(*sides, names)
    tasks: defaultdict[str, list[Key]] = defaultdict(list)
    for key in sides[0]:
        tasks[key[0]].append(key)
    allowed = _margins(list(tasks), margin, margins or {})
    compared = {
        task: _compare([sides[0][k] for k in keys], [sides[1][k] for k in keys], allowed[task], confidence)
        for task, keys in tasks.items()
    }
    adjusted = holm([one.p_regressed() for one in compared.values()])
    alpha = (1 - confidence) / 2
    entries = {
        task: _judged(one, p, alpha, len(compared)) for (task, one), p in zip(compared.items(), adjusted, strict=True)
    }
    known = [entry["difference"] for entry in entries.values() if entry["difference"] is not None]
    average = sum(known) / len(known) if len(known) == len(entries) else None
    verdict = overall([entry["verdict"] for entry in entries.values()])
    return {"verdict": verdict, "tasks": entries, "average": average, "confidence": confidence, "power": POWER}


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Regressed if any is, retained if all are, else undecided."""
    counts = Counter(verdicts)
    if counts["regressed"]:
        return "regressed"
    return "retained" if counts["retained"] == len(verdicts) else "undecided"


def sentence(found: Mapping[str, Any]) -> str:
    """The outcome in one line."""
    tasks = cast("Mapping[str, Mapping[str, Any]]", found["tasks"])
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for task, entry in tasks.items():
        change = "" if entry["difference"] is None else f" ({entry['difference']:+.1f})"
        groups[entry["verdict"]].append(f"{shown(task, 40)}{change}")
    order = [verdict for verdict in ("regressed", "undecided", "retained") if verdict in groups]
    return "; ".join(f"{verdict} {', '.join(groups[verdict])}" for verdict in order)


def _made_by(evaluation: Artifact) -> dict[str, Any]:
    """What decided an evaluation's rows: its configuration, and of a suite the hashes of the items that were judged."""
    return {**evaluation.config, "benchmarks": evaluation.record.get("metrics", {}).get("benchmarks")}


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """See the house plan for config, inputs, files and metrics.

    Raises:
        EndBranch: a loss is shown and the gate's ``action`` is ``stop``; ``gate.json`` is written all the same.
        DataError: the two evaluations cannot be compared.
        SpecError: a margin of a benchmark that the evaluation lacks.
    """
    spec, names = config["spec"], (str(config["reference"]), str(config["checkpoint"]))
    unlike = differing(_made_by(inputs["base"]), _made_by(inputs["new"]), names)
    if unlike:
        raise DataError(f"{names[0]} and {names[1]} were not evaluated alike: {unlike[0]}")
    rows = [read_rows(inputs[side].path / "samples.parquet") for side in ("base", "new")]
    found = retention(rows[0], rows[1], float(spec["margin"]), spec["margins"], names=names)
    (out / "gate.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    told = f"{names[1]} against {names[0]}: {sentence(found)}"
    if spec["action"] == "stop" and found["verdict"] == "regressed":
        raise EndBranch(f"the gate stops what begins from {told}")
    if spec["action"] != "record" and found["verdict"] != "retained":
        progress.note(f"warning: {told}")
    return Result(metrics={key: found[key] for key in ("verdict", "tasks", "average")})
