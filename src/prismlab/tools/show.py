"""What the commands on checkpoints give back: tables, one JSON object, Parquet tables and one HTML page.

All of them come from one record, so they cannot disagree. Plotly, jinja2 and pyarrow are imported only when something
of theirs is written, rich only when a table is shown: a command that answers in a second cannot wait for them.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from prismlab.errors import SpecError, shown
from prismlab.run.progress import seconds_text
from prismlab.run.step import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from prismlab.report.sections import Drawing

NONE = "–"
"""What stands where there is no value: never a zero."""
PLAIN_WIDTH = 100
"""Columns of a line off a terminal, unless COLUMNS says otherwise. No cell is cut there: longer lines may be."""
LETTERS = 10  # Of a name, that stay together on a narrow terminal.
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a head; numbers are formatted by whoever makes it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    """One line beneath."""
    words: int = 1
    """How many leading columns are words: flush left, and folded where the terminal is narrow. The rest are numbers."""
    strong: Sequence[int] = ()
    """Rows that stand out: sums of the rows beneath them."""
    beside: bool = False
    """Whether its numbers go beside those of the table before, which has the same first column, where there is room."""


def count(value: float) -> str:
    """A count with its unit, three digits: ``580M``, ``1.24B``, ``12``."""
    for size, unit in _UNITS:
        if value >= 0.9995 * size:
            return f"{digits(value / size)}{unit}"
    return f"{value:.0f}"


def digits(value: float | None, n: int = 3) -> str:
    """A number to ``n`` significant digits without a needless exponent; ``–`` for None."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if 10**n <= round(abs(value)) < 1e6:
        return f"{value:,.0f}"
    value = float(f"{value:.{n - 1}e}")  # 0.9996 is 1.00, not 1.000
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 0:
        return f"{value:.{n - 1 - size}f}"
    return f"{value:#.{n}g}".removesuffix(".").replace("e-0", "e-").replace("e+0", "e+")


def percent(share: float | None) -> str:
    """A share as percent with two or three digits; what is not quite 0 or 100 is never shown as 0 or 100."""
    if share is None:
        return NONE
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}"
    if share < 0.0005:
        return "<0.1"
    return ">99.9" if share >= 0.9995 else f"{100 * share:.1f}"


def labels(names: Sequence[str | Path]) -> list[str]:
    """Short names of checkpoints for tables: of each the end of its path, as long as it takes to tell all apart.

    Raises:
        SpecError: a checkpoint is named twice.
    """
    paths, found = [Path(name) for name in names], list[str]()
    twice = next((path for k, path in enumerate(paths) if path in paths[:k]), None)
    if twice is not None:
        raise SpecError(f"{shown(twice)}: named twice; name every checkpoint once")
    for n in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        found = [shown("/".join(path.parts[-n:]), 60) for path in paths]
        if len(set(found)) == len(found):
            return found
    return [f"{name} #{k}" for k, name in enumerate(found, 1)]  # they differ only where long names are cut


def console_on(stream: TextIO, width: int | None = None) -> Console:
    """A console on a stream: as wide as the terminal, or as COLUMNS says, or ``PLAIN_WIDTH``; it reads no markup."""
    from rich.console import Console

    if width is None and not stream.isatty():
        given = os.environ.get("COLUMNS", "")
        width = int(given) if given.isdecimal() and int(given) else PLAIN_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def _joined(tables: Sequence[Table], width: int) -> list[Table]:
    """Tables with those that go beside another put there, if there is room for both."""
    out: list[Table] = []
    for table in tables:
        before = out[-1] if out else None
        if table.beside and before is not None and [r[0] for r in before.rows] == [r[0] for r in table.rows]:
            both = Table(
                head=[*before.head, *table.head[1:]],
                rows=[[*a, *b[1:]] for a, b in zip(before.rows, table.rows, strict=True)],
                title=", ".join(title for title in (before.title, table.title) if title),
                note=" ".join(note for note in (before.note, table.note) if note),
                words=before.words,
                strong=before.strong,
            )
            if _natural(both) <= width:
                out[-1] = both
                continue
        out.append(table)
    return out


def _natural(table: Table) -> int:
    """Columns that a table takes if no cell is folded; heads may break at spaces."""
    widths = [
        max(*(len(word) for word in head.split(" ")), *(len(row[k]) for row in table.rows), 0)
        for k, head in enumerate(table.head)
    ]
    return sum(widths) + 2 * (len(widths) - 1)


def _least(table: Table, columns: Sequence[int]) -> int:
    """Columns of a terminal that a table's columns take if numbers break at blanks, names after some letters."""
    cells = {k: (table.head[k], *(row[k] for row in table.rows)) for k in columns}
    words = {k: max((len(word) for cell in cells[k] for word in cell.split()), default=0) for k in columns}
    return sum(min(n, LETTERS) if k < table.words else n for k, n in words.items()) + 2 * (len(columns) - 1)


def _parts(table: Table, width: int) -> list[Table]:
    """A table too wide for a terminal as several, its words in each: over two lines a number reads as two."""
    lead, parts = list(range(table.words)), list[list[int]]()
    for k in range(table.words, len(table.head)):
        if parts and _least(table, [*lead, *parts[-1], k]) <= width:
            parts[-1].append(k)
        else:
            parts.append([k])
    kept = [[*lead, *part] for part in parts] or [lead]
    return [
        replace(table, head=[table.head[k] for k in part], rows=[[row[k] for k in part] for row in table.rows])
        for part in kept
    ]


def _print_table(console: Console, stream: TextIO, table: Table) -> None:
    from rich.text import Text

    if table.title:
        console.print(Text(table.title, style="bold"))
    if not console.is_terminal and _natural(table) > console.width:
        console = console_on(stream, _natural(table))
    parts = _parts(table, console.width) if console.is_terminal else [table]
    for k, part in enumerate(parts):
        _print_grid(console, part)
        if table.note and k == len(parts) - 1:
            console.print(Text(table.note, style="dim"))
        console.print()


def _print_grid(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for k, head in enumerate(table.head):
        if k < table.words:
            grid.add_column(Text(head), justify="left", vertical="top", overflow="fold")
        else:
            # Broken at every space, so that the number decides the width.
            grid.add_column(Text(head.replace(" ", "\n")), justify="right", vertical="top", overflow="fold")
    for k, row in enumerate(table.rows):
        # What does not fit breaks, at its blanks first: a number that is cut off would be another number.
        grid.add_row(*(Text(cell) for cell in row), style="bold" if k in table.strong else None)
    console.print(grid)


def print_tables(tables: Sequence[Table], notes: Sequence[str] = (), stream: TextIO | None = None) -> None:
    """Show tables, then the lines beneath them, for the width at hand; plain text off a terminal."""
    from rich.text import Text

    place = stream or sys.stdout
    if isinstance(place, io.TextIOWrapper):
        # An arrow that the terminal's encoding lacks is no reason to stop; what it can show is left as it is.
        place.reconfigure(errors="replace")
    console = console_on(place)
    for table in _joined(tables, console.width):
        _print_table(console, place, table)
    for note in notes:
        console.print(Text(note))


def check_out(out: Path | None) -> None:
    """Refuse a folder for results in which nothing can be written, before hours are spent on them; nothing is made.

    Raises:
        SpecError: it is a file, lies in one, or may not be written.
    """
    if out is None:
        return
    place = next((one for one in (out, *out.absolute().parents) if os.path.lexists(one)), Path("/"))
    if not place.is_dir():
        raise SpecError(f"{out}: {'' if place == out else f'{place} is '}a file; name a folder with --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SpecError(f"{out}: {place} may not be written; name another folder with --out")


def _write(path: Path, data: bytes) -> None:
    """Write a file aside, then put it in its place: a reader sees the whole of it or the one before."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(data)
    aside.replace(path)


def _page(title: str, tool: str, tables: Sequence[Table], notes: Sequence[str], drawings: Sequence[Drawing]) -> str:
    from prismlab import __version__
    from prismlab.report import page, sections

    def cells(row: Sequence[str], words: int) -> list[sections.Cell]:
        return [sections.Cell(cell.replace("  ", "\u2003"), number=k >= words) for k, cell in enumerate(row)]

    listed = [
        sections.Table(t.head, [cells(row, t.words) for row in t.rows], ": ".join(filter(None, (t.title, t.note))))
        for t in tables
    ]
    return page.fill(
        "tool.html.j2",
        {d.id: d.figure for d in drawings},
        title=title,
        command=f"prism {tool}",
        facts=[],
        notes=notes,
        tables=listed,
        drawings=drawings,
        version=__version__,
    )


def emit(
    tool: str,
    record: Mapping[str, Any],
    tables: Sequence[Table],
    *,
    title: str,
    notes: Sequence[str] = (),
    more: Sequence[Table] = (),
    figures: Callable[[], Sequence[Drawing]] | None = None,
    parquet: Callable[[], Mapping[str, pa.Table]] | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Show what a command found, and write it below ``out`` if that is given.

    Args:
        tool: the command's name; files are called ``<tool>.json`` and ``<tool>.html``.
        record: everything that was found, as JSON.
        tables: shown unless ``as_json``, and on the page.
        title: of the page.
        notes: lines beneath the tables.
        more: tables for the page alone.
        figures: makes the page's figures; called only with ``out``.
        parquet: makes tables by file name without ending; called only with ``out``.
        out: a folder, made if it is not there; None writes nothing.
        as_json: the record on standard output instead of the tables.

    Raises:
        MissingExtra: plotly or jinja2 is not installed and a page was asked for.
        SpecError: ``out`` is a file, or cannot be made.
    """
    text = json.dumps(record, allow_nan=False, indent=1)
    if as_json:
        sys.stdout.write(f"{text}\n")
    else:
        print_tables(tables, notes)
    if out is None:
        return
    check_out(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{out}: cannot be made ({error.strerror}); name another folder with --out") from error
    _write(out / f"{tool}.json", f"{text}\n".encode())
    written = [f"{tool}.json", *_write_parquet(out, parquet)]
    if figures is not None:
        page = _page(title, tool, [*tables, *more], notes, figures())
        _write(out / f"{tool}.html", page.encode("utf-8", errors="replace"))
        written.append(f"{tool}.html")
    sys.stderr.write(f"wrote {', '.join(written)} in {out}\n")


def _write_parquet(out: Path, make: Callable[[], Mapping[str, pa.Table]] | None) -> list[str]:
    if make is None:
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    written: list[str] = []
    for name, table in make().items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        _write(out / f"{name}.parquet", sink.getvalue().to_pybytes())
        written.append(f"{name}.parquet")
    return written


TELL_EVERY = 60.0
"""Seconds after which a progress off a terminal says how far it is."""


class _Lines:
    """A progress off a terminal: notes, and once a minute how far it is, each a line of standard error."""

    def __init__(self) -> None:
        self.start(None, "")

    def start(self, total: int | None, unit: str) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._told = (time.monotonic(), 0)

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self._done += n
        (then, before), now = self._told, time.monotonic()
        if self._total is None or now - then < TELL_EVERY or self._done >= self._total:
            return
        # By the pace since the last line: what was judged by a run before this one took no time.
        left = (self._total - self._done) * (now - then) / max(1, self._done - before)
        self._told = (now, self._done)
        self.note(f"{self._done:,} of {self._total:,} {self._unit}, {seconds_text(left)} left")

    def note(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")


class _Bar:
    """A progress as a bar of the terminal, with the time left."""

    def __init__(self, bars: Any, label: str) -> None:
        self._bars = bars
        self._task = bars.add_task(label, total=None, unit="", shown="")

    def start(self, total: int | None, unit: str) -> None:
        self._bars.reset(self._task, total=total, unit=unit, shown="")

    def advance(self, n: int = 1, **shown: float | str) -> None:
        values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        self._bars.update(self._task, advance=n, shown="  ".join(values))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """How a command tells what it does: a bar on standard error if that is a terminal, else notes alone.

    The bar goes when the work is done, so that the tables stand alone.
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[shown]}", markup=False),
        console=console_on(sys.stderr),
        transient=True,
    ) as bars:
        yield _Bar(bars, label)
