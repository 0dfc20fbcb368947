"""What a user sees of a run: a bar for each running step in a terminal, a line for each event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from prismlab.run.step import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import TaskID


WAITS = "waits"
"""Status of a step that found an input damaged and will be started again."""


class Display(Protocol):
    """Shows a run. Its methods are called from the runner's thread; the progresses it gives, from worker threads."""

    def begin(self, total: int, cached: int) -> None:
        """The run starts with ``total`` steps, of which ``cached`` are there already."""
        ...

    def started(self, step: str) -> Progress:
        """A step starts; returns where its progress goes."""
        ...

    def finished(self, step: str, status: str, seconds: float, reason: str) -> None:
        """A step is complete, ended, failed, crashed, cached or skipped; or it waits again, which does not count."""
        ...

    def again(self, step: str, reason: str) -> None:
        """A step that counted as finished is built anew."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should read."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class NoDisplay:
    """Shows nothing."""

    def begin(self, total: int, cached: int) -> None:
        pass

    def started(self, step: str) -> Progress:
        return Silent()

    def finished(self, step: str, status: str, seconds: float, reason: str) -> None:
        pass

    def again(self, step: str, reason: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def seconds_text(seconds: float) -> str:
    """Seconds as a person reads them: ``12.3 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Notes:
    """A progress that shows only notes, each with its step."""

    def __init__(self, lines: LineDisplay, step: str) -> None:
        self._lines = lines
        self._step = step

    def start(self, total: int | None, unit: str) -> None:
        pass

    def advance(self, n: int = 1, **shown: float | str) -> None:
        pass

    def note(self, text: str) -> None:
        self._lines.note(f"{self._step}: {text}")


class LineDisplay:
    """Plain lines, for logs and pipes.

    Args:
        stream: where they go; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._total = 0
        self._count = 0

    def begin(self, total: int, cached: int) -> None:
        self._total, self._count = total, cached
        self.note(f"{total} steps, {cached} of them built before")

    def started(self, step: str) -> Progress:
        self.note(f"started   {step}")
        return _Notes(self, step)

    def finished(self, step: str, status: str, seconds: float, reason: str) -> None:
        self._count += status != WAITS
        tail = f": {reason}" if reason else ""
        self.note(f"{status:<9} {step} ({self._count}/{self._total}, {seconds_text(seconds)}){tail}")

    def again(self, step: str, reason: str) -> None:
        self._count -= 1
        self.note(f"{step}: {reason}, built anew")

    def note(self, text: str) -> None:
        self._stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class _Bar:
    """A progress that is a bar of the terminal."""

    def __init__(self, display: BarDisplay, step: str, task: TaskID) -> None:
        self._display = display
        self._step = step
        self._task = task

    def start(self, total: int | None, unit: str) -> None:
        self._display.bars.reset(self._task, total=total, unit=unit, shown="")

    def advance(self, n: int = 1, **shown: float | str) -> None:
        values = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
        )
        self._display.bars.update(self._task, advance=n, shown=values)

    def note(self, text: str) -> None:
        self._display.note(f"{self._step}: {text}")


class BarDisplay:
    """Bars with the time left, one for each running step and one for the whole."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[shown]}", markup=False),
        )
        self._tasks: dict[str, TaskID] = {}
        self._whole: TaskID | None = None

    def begin(self, total: int, cached: int) -> None:
        self.bars.start()
        self._whole = self.bars.add_task("the study", total=total, completed=cached, unit="steps", shown="")

    def started(self, step: str) -> Progress:
        self._tasks[step] = self.bars.add_task(step, total=None, unit="", shown="")
        return _Bar(self, step, self._tasks[step])

    def finished(self, step: str, status: str, seconds: float, reason: str) -> None:
        if step in self._tasks:
            self.bars.remove_task(self._tasks.pop(step))
        if self._whole is not None and status != WAITS:
            self.bars.update(self._whole, advance=1)
        tail = f": {reason}" if reason else ""
        self.note(f"{status:<9} {step} ({seconds_text(seconds)}){tail}")

    def again(self, step: str, reason: str) -> None:
        if self._whole is not None:
            self.bars.update(self._whole, advance=-1)
        self.note(f"{step}: {reason}, built anew")

    def note(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.bars.stop()


def display_for(stream: TextIO) -> Display:
    """Bars in a terminal, lines elsewhere."""
    return BarDisplay() if stream.isatty() else LineDisplay(stream)


def where_the_time_went(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds by kind of step, the longest first, of the steps that were built: ``{kind, steps, seconds}``."""
    kinds: dict[str, list[float]] = {}
    for step in steps:
        if step["built"]:
            kinds.setdefault(step["kind"], []).append(step["seconds"])
    rows = [{"kind": kind, "steps": len(spans), "seconds": round(sum(spans), 3)} for kind, spans in kinds.items()]
    return sorted(rows, key=lambda row: -float(row["seconds"]))
