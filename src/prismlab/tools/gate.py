"""``prism gate``: what a checkpoint kept of a reference, from sample rows, with an exit code for CI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prismlab.errors import DataError, SpecError, shown
from prismlab.evaluate.retention import MARGIN, differing, overall, read_rows, retention
from prismlab.tools import show

CODES = {"retained": 0, "undecided": 3, "regressed": 4}
"""Exit code of each verdict; 2 is what the user can mend and 1 our fault, as everywhere."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One checkpoint's sample rows."""

    name: str
    rows: Path
    """Parquet file."""
    config: Mapping[str, Any] | None
    """Configuration of the evaluation that made them; None where no record tells."""


def parse_margins(texts: Sequence[str]) -> tuple[float, dict[str, float]]:
    """``--margin 2 --margin hellaswag=1`` as the general margin and those of single benchmarks.

    Raises:
        SpecError: no number, or two margins for one thing.
    """
    general: list[float] = []
    single: dict[str, float] = {}
    for text in texts:
        name, found, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise SpecError(f"--margin {shown(text, 60)}: points, as 2.0, or of one benchmark, as math=1.5") from None
        if found and name in single:
            raise SpecError(f"--margin: {single[name]:g} and {number:g} for {shown(name, 60)}; name one")
        if found:
            single[name] = number
        else:
            general.append(number)
    if len(general) > 1:
        raise SpecError(f"--margin: {general[0]:g} and {general[1]:g} for all; name the benchmark of one, as math=1.5")
    return (general[0] if general else MARGIN), single


def side_of_file(name: str, rows: Path) -> Side:
    """Sample rows in a file; the record beside it, if it lies in an artifact, tells how they were sampled.

    Raises:
        DataError: the record cannot be read.
    """
    record = rows.parent / "record.json"
    if not record.is_file():
        return Side(name=name, rows=rows, config=None)
    try:
        config = json.loads(record.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record}: no record of an artifact: {shown(error)}; move the rows out of its folder"
        ) from None
    return Side(name=name, rows=rows, config=cast("Mapping[str, Any]", config))


def _number(value: float | None, form: str = "{:.1f}") -> str:
    return show.NONE if value is None else form.format(value)


def _table(found: Mapping[str, Any], title: str) -> show.Table:
    rows: list[list[str]] = []
    for task, entry in found["tasks"].items():
        interval = show.NONE
        if entry["lo"] is not None:
            interval = f"{entry['lo']:+.1f} to {entry['hi']:+.1f}"
        scores = [_number(entry["base"]), _number(entry["new"]), _number(entry["difference"], "{:+.1f}"), interval]
        more = [f"{entry['margin']:g}", f"{entry['items']:,}", _number(entry["items_needed"], "{:,}")]
        rows.append([shown(task, 40), entry["verdict"], *scores, *more])
    return show.Table(
        head=["benchmark", "verdict", "reference", "new", "change", "95% interval", "margin", "items", "items needed"],
        rows=rows,
        title=title,
        words=2,
    )


def _notes(sides: tuple[Side, Side], found: Mapping[str, Any]) -> list[str]:
    notes: list[str] = []
    for task, entry in found["tasks"].items():
        if entry.get("reason"):
            notes.append(f"{shown(task, 40)}: {entry['reason']}.")
        elif entry["base"] is not None and entry["base"] < entry["margin"]:
            notes.append(f"{shown(task, 40)}: the reference scores less than the margin, so that much cannot be lost.")
        elif entry["verdict"] == "undecided" and entry["items_needed"] is None:
            notes.append(f"{shown(task, 40)}: the loss seen is the margin itself, which no number of items decides.")
    unknown = [shown(side.name, 40) for side in sides if side.config is None]
    if unknown:
        notes.append(
            f"No record tells how {' and '.join(unknown)} were sampled: that both were sampled alike is on trust."
        )
    return notes


def _compared(sides: tuple[Side, Side], margin: float, margins: Mapping[str, float]) -> dict[str, Any]:
    names = (shown(sides[0].name, 60), shown(sides[1].name, 60))
    if sides[0].config is not None and sides[1].config is not None:
        unlike = differing(sides[0].config, sides[1].config, names)
        if unlike:
            raise DataError(f"{names[0]} and {names[1]} were not evaluated alike: {unlike[0]}; evaluate both with one")
    return retention(read_rows(sides[0].rows), read_rows(sides[1].rows), margin, margins, names=names)


def gate(
    pairs: Sequence[tuple[Side, Side]],
    *,
    margins: Sequence[str] = (),
    lacking: Sequence[str] = (),
    out: Path | None = None,
    as_json: bool = False,
) -> int:
    """Compare each pair (reference, new), show it, and return the exit code of the worst.

    Args:
        pairs: the same two checkpoints once a seed, or one pair of files.
        margins: as ``parse_margins`` takes them.
        lacking: pairs that were wanted and are not there, in words: without them nothing is shown to be retained.
        out: folder for ``gate.json`` and ``gate.html``.
        as_json: JSON instead of tables.

    Raises:
        DataError: rows that cannot be read or compared.
        SpecError: a margin out of range.
    """
    margin, single = parse_margins(margins)
    results = [_compared(sides, margin, single) for sides in pairs]
    tables: list[show.Table] = []
    notes: list[str] = []
    entries: list[dict[str, Any]] = []
    for sides, found in zip(pairs, results, strict=True):
        old, new = (shown(side.name, 60) for side in sides)
        tables.append(_table(found, f"{new} against {old}: {found['verdict']}"))
        notes += _notes(sides, found)
        entries.append({"reference": sides[0].name, "checkpoint": sides[1].name, **found})
    verdict = overall([found["verdict"] for found in results])
    if lacking and verdict == "retained":
        verdict = "undecided"
    notes += [f"{one}; what was not compared is not shown to be retained." for one in lacking]
    if any(entry["items_needed"] for found in results for entry in found["tasks"].values()):
        notes.append("Items needed: so many decide with a probability of 80%, if the true change is the one seen.")
    notes.append(f"{verdict}: exit code {CODES[verdict]} (0 retained, 3 undecided, 4 regressed)")
    record = {"tool": "gate", "verdict": verdict, "compared": entries, "missing": list(lacking)}
    title = f"{pairs[0][1].name} against {pairs[0][0].name}"
    show.emit(
        "gate", record, tables, title=title, notes=list(dict.fromkeys(notes)), figures=list, out=out, as_json=as_json
    )
    return CODES[verdict]


def sides_of_files(names: Sequence[str], base: Path | None, new: Path | None) -> tuple[Side, Side]:
    """The two sides that ``prism gate BASE NEW`` means: rows by the options, or files in the names' place.

    Raises:
        SpecError: a side has no file.
    """
    sides: list[Side] = []
    for name, given, option in zip(names, (base, new), ("--rows-base", "--rows-new"), strict=True):
        rows = given or (Path(name) if Path(name).is_file() else None)
        if rows is None:
            raise SpecError(f"{shown(name, 60)}: no rows; name its samples.parquet with {option}, or in its place")
        sides.append(side_of_file(name, rows))
    return sides[0], sides[1]


def sides_of_study(
    found: Mapping[str, Any],
    evaluations: Sequence[str],
    suite: str | None,
    names: tuple[str, str],
    seeds: Sequence[int],
) -> tuple[list[tuple[Side, Side]], list[str]]:
    """The pairs of a study's evaluation artifacts, one a seed, and the seeds that lack a side, in words.

    Args:
        found: artifacts of evaluations by step id, ``evaluation/<name>@<checkpoint>/s<seed>``.
        evaluations: evaluations of the study that sample tasks.
        suite: the evaluation; None if there is only one.
        names: reference and checkpoint.
        seeds: of the study.

    Raises:
        SpecError: the evaluation is unknown or not said, one of both was not evaluated, or no seed has both.
    """
    if not evaluations:
        raise SpecError("the study has no evaluation with tasks or a suite, so there is nothing to hold up")
    if suite is None and len(evaluations) != 1:
        raise SpecError(f"the study has the evaluations {', '.join(evaluations)}; name one with --suite")
    suite = suite or evaluations[0]
    if suite not in evaluations:
        raise SpecError(
            f"--suite {shown(suite, 60)}: no evaluation with tasks is called so; there are {', '.join(evaluations)}"
        )
    sides: list[dict[str, Side]] = []
    for name in names:
        start = f"evaluation/{suite}@{name}/s"
        mine = {step.removeprefix(start): one for step, one in found.items() if step.startswith(start)}
        if not mine:
            raise SpecError(f"{shown(name, 60)}: evaluation {suite!r} of it is not built; 'prism run' builds it")
        sides.append(
            {
                seed: Side(
                    name=f"{name}, seed {seed}" if len(seeds) > 1 else name,
                    rows=one.path / "samples.parquet",
                    config=one.config,
                )
                for seed, one in mine.items()
            }
        )
    lacking: list[str] = []
    for seed in map(str, seeds):
        gone = [shown(name, 60) for name, mine in zip(names, sides, strict=True) if seed not in mine]
        lacking += [f"Seed {seed}: evaluation {suite!r} of {' and '.join(gone)} is not built"] if gone else []
    if len(lacking) == len(seeds):
        raise SpecError(f"{'; '.join(lacking)}: no seed has both; 'prism run' builds them")
    return [
        (sides[0][seed], sides[1][seed]) for seed in map(str, seeds) if all(seed in mine for mine in sides)
    ], lacking
