"""``prism data plan``: what a token budget means, before anything is read."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prismlab.errors import SpecError
from prismlab.study.load import LoadedMixtures, load_mixtures
from prismlab.tools.show import NONE, Table, count, digits, percent, print_tables

RATE = 500_000.0
"""Tokens a second and worker that a build is taken to make where no record of one is found."""
BYTES_A_TOKEN = 4.0
"""Bytes of English text or code a token, roughly, of a vocabulary of 50,000 to 150,000."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_PACKED = (".gz", ".zst", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one source gives."""

    source: str
    domain: str
    share: float
    tokens: float
    rows: float
    size: float | None
    """Tokens of the source; None where nothing tells them."""
    known: str
    """Where ``size`` is from: ``stated``, ``files`` (their bytes over 4, roughly) or ``unknown``."""
    epochs: float | None
    over: bool
    """Whether this is more than ``max_epochs``; only of stated sizes."""


def tokens_of(text: str) -> int:
    """A number of tokens as people write it: ``26.2B``, ``500M``, ``8_192``, ``1e9``.

    Raises:
        SpecError: it is no such number, or below 1.
    """
    match = re.fullmatch(
        r"\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)\s*([kKmMgGbBtT]?)\s*", text
    )
    if match is None:
        raise SpecError(f"--tokens {text!r}: a number with k, M, B or T behind it is wanted, for example 26.2B")
    number = round(float(match[1].replace("_", "").replace(",", "")) * _UNITS[match[2].lower()])
    if not 1 <= number <= 10**15:
        raise SpecError(f"--tokens {text!r}: {number:,} tokens; 1 to 10^15 are possible")
    return number


def _measured(files: Sequence[Path]) -> float | None:
    """Tokens of plain files, roughly; None where one of them is compressed or there is none."""
    if not files or any(file.name.endswith(_PACKED) for file in files):
        return None
    return sum(file.stat().st_size for file in files) / BYTES_A_TOKEN


def parts_of(loaded: LoadedMixtures, mixture: str, tokens: int, seq_len: int) -> list[Part]:
    """What each source of a mixture gives to a budget, in the order of the file.

    Raises:
        SpecError: as ``LoadedMixtures.shares``, or all files of a source are empty.
    """
    shares, spec = loaded.shares(mixture), loaded.spec.mixtures[mixture]
    out: list[Part] = []
    for name, share in shares.items():
        size, known = (spec.tokens_in_source or {}).get(name), "stated"
        if size is None:
            size, known = _measured(loaded.files.get(f"sources.{name}", ())), "files"
            if size == 0:
                raise SpecError(f"sources.{name}: its files are empty; name others, or leave the source out")
        wanted = share * tokens
        out.append(
            Part(
                source=name,
                domain=loaded.spec.sources[name].domain_name,
                share=share,
                tokens=wanted,
                rows=wanted / seq_len,
                size=size,
                known="unknown" if size is None else known,
                epochs=None if size is None else wanted / size,
                # Bytes of files tell too little to refuse anything.
                over=known == "stated" and size is not None and wanted > spec.max_epochs * size,
            )
        )
    return out


def _records(root: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted(root.glob("*/artifacts/corpus-*/record.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("status") == "complete":
            yield record


def build_rate(root: Path) -> tuple[float, int]:
    """Tokens a second of the corpora that runs below ``root`` built, and of how many; the default where there is none.

    Corpora of less than a second tell of starting up, not of tokenising.
    """
    done = [(record["tokens"], record["seconds"]) for record in _records(root)]
    long = [(tokens, seconds) for tokens, seconds in done if tokens and seconds and seconds >= 1.0]
    if not long:
        return RATE, 0
    return sum(tokens for tokens, _ in long) / sum(seconds for _, seconds in long), len(long)


def _rows(n: int) -> str:
    return f"{n} row{'' if n == 1 else 's'}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def _check_shape(tokens: int, seq_len: int, ranks: int, rows_per_step: int) -> None:
    if rows_per_step % ranks:
        raise SpecError(f"--rows-per-step {rows_per_step} cannot be split over --ranks {ranks}: choose a multiple")
    if tokens < seq_len * rows_per_step:
        raise SpecError(
            f"--tokens {tokens:,} are less than one step of {_rows(rows_per_step)} of {seq_len:,} tokens "
            f"({seq_len * rows_per_step:,})"
        )


def plan(
    file: Path,
    mixture: str,
    *,
    tokens: str,
    seq_len: int,
    ranks: int,
    rows_per_step: int | None,
    workers: int,
    runs: Path,
    as_json: bool,
) -> None:
    """Print what a budget means for a mixture.

    Args:
        file: a study, or a file with mixtures.
        mixture: its name.
        tokens: the budget as ``tokens_of`` reads it; rounded down to whole steps.
        seq_len: tokens a row.
        ranks: processes that train.
        rows_per_step: rows of all of them together; None for one a rank.
        workers: processes that tokenise.
        runs: where records of earlier builds lie.
        as_json: print JSON instead of the table.

    Raises:
        SpecError: the file or an option is wrong, or a source is asked for more often than ``max_epochs``; the table
            is printed first.
    """
    rows_per_step = rows_per_step or ranks
    budget = tokens_of(tokens)
    _check_shape(budget, seq_len, ranks, rows_per_step)
    steps = budget // (seq_len * rows_per_step)
    rows = steps * rows_per_step
    loaded = load_mixtures(file)
    parts = parts_of(loaded, mixture, rows * seq_len, seq_len)
    rate, measured = build_rate(runs)
    found = {
        "mixture": mixture,
        "tokens": rows * seq_len,
        "rows": rows,
        "seq_len": seq_len,
        "steps": steps,
        "rows_per_step": rows_per_step,
        "ranks": ranks,
        "max_epochs": loaded.spec.mixtures[mixture].max_epochs,
        "bytes": {"below 65,536 token ids": 2 * rows * seq_len, "more": 4 * rows * seq_len},
        "seconds": rows * seq_len / (rate * workers),
        "rate": {"tokens_per_second": rate, "builds": measured, "workers": workers},
        "sources": [asdict(part) for part in parts],
    }
    if as_json:
        sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
    else:
        _show(found, parts)
    _refuse(mixture, parts, float(found["max_epochs"]))


def _show(found: Mapping[str, Any], parts: Sequence[Part]) -> None:
    head = ("source", "domain", "share %", "tokens", "rows", "tokens in source", "epochs")
    rows = [
        [
            part.source,
            part.domain,
            percent(part.share),
            count(part.tokens),
            f"{part.rows:,.0f}",
            "unknown" if part.size is None else f"{'~' if part.known == 'files' else ''}{count(part.size)}",
            _epochs(part),
        ]
        for part in parts
    ]
    domains: dict[str, float] = {}
    for part in parts:
        domains[part.domain] = domains.get(part.domain, 0.0) + part.share
    total = ["all", "", "100", count(found["tokens"]), f"{found['rows']:,}", NONE, NONE]
    shares = ", ".join(f"{name} {percent(share)}%" for name, share in domains.items())
    two, four = found["bytes"].values()
    rate = found["rate"]
    told = f"measured on {rate['builds']} builds" if rate["builds"] else "a guess: no earlier build is recorded"
    per_worker = "a worker " if rate["workers"] > 1 else ""
    notes = [
        f"{found['steps']:,} steps of {_rows(found['rows_per_step'])} of {found['seq_len']:,} tokens, "
        f"{_rows(found['rows_per_step'] // found['ranks'])} a rank and step",
        f"domains: {shares}",
        f"disk: {_bytes(two)} with fewer than 65,536 token ids, else {_bytes(four)}; while it is built about as much "
        "again for the tokens of each source",
        f"building: about {_time(found['seconds'])} at {count(rate['tokens_per_second'])} tokens a second "
        f"{per_worker}({told})",
    ]
    if any(part.known == "files" for part in parts):
        notes.append(f"~ from the size of the files, {BYTES_A_TOKEN:g} bytes a token; 'tokens_in_source' states it")
    most = found["max_epochs"]
    if likely := [part.source for part in parts if part.known == "files" and (part.epochs or 0.0) > most]:
        notes.append(f"by that guess more than 'max_epochs' ({most:g}), which a build refuses: {', '.join(likely)}")
    print_tables([Table(head=head, rows=[total, *rows], words=2, strong=(0,), title=found["mixture"])], notes)


def _epochs(part: Part) -> str:
    if part.epochs is None:
        return "unknown"
    text = "<0.001" if part.epochs < 0.001 else digits(part.epochs)
    return f"{'~' if part.known == 'files' else ''}{text}{'  over' if part.over else ''}"


def _bytes(size: float) -> str:
    unit = min(4, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**unit:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][unit]}"


def _refuse(mixture: str, parts: Sequence[Part], most: float) -> None:
    over = [part for part in parts if part.over and part.size is not None]
    if not over:
        return
    worst = max(over, key=lambda part: part.epochs or 0.0)
    assert worst.size is not None
    more = f" ({len(over) - 1} more)" if len(over) > 1 else ""
    fits = most * worst.size / worst.tokens * worst.share
    raise SpecError(
        f"mixtures.{mixture}: source {worst.source!r} would be passed over {digits(worst.epochs)} times, 'max_epochs' "
        f"is {most:g}{more}; give it at most {math.floor(1e4 * fits) / 100:g}% of the tokens, or raise 'max_epochs'"
    )
