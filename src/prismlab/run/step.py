"""What a stage is given and what it returns: the contract between the runner and every stage.

A stage is one function ``run(config, inputs, out, progress) -> Result``. It reads its inputs, writes below ``out`` and
nothing else. It never knows the planner, the runner, another stage, or where the store lies.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Json = Any
"""A value that ``json.dumps`` accepts: the only kind that may stand in a config or in metrics."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished step on disk. Its files were checked against their hashes before the stage was called."""

    kind: str
    fingerprint: str
    path: Path
    record: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration that the step ran with."""
        return self.record["config"]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The metrics that the stage returned."""
        return self.record["metrics"]

    @property
    def model(self) -> Path:
        """The checkpoint folder (Hugging Face layout) of a base, train, merge or rl artifact."""
        return self.path / "model"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a stage returns. ``metrics`` goes into the record, so it holds numbers and short text, not rows."""

    metrics: Mapping[str, Json] = field(default_factory=dict[str, Json])
    tokens: int | None = None
    """Tokens trained on or sampled, for the cost table; None where the stage handles none."""


class Progress(Protocol):
    """How a stage tells what it does. The runner turns it into a bar with the time left, a log line or silence."""

    def start(self, total: int | None, unit: str) -> None:
        """Begin (or begin again) a count of ``total`` units; None if the total is unknown."""
        ...

    def advance(self, n: int = 1, **shown: float | str) -> None:
        """``n`` units done; ``shown`` values (loss, reward) appear beside the bar."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should read."""
        ...


class Silent:
    """A progress that shows nothing: for tests and for calls from Python."""

    def start(self, total: int | None, unit: str) -> None:
        pass

    def advance(self, n: int = 1, **shown: float | str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


REMOTE_CODE = "remote_code"
"""Key of metrics: ``[{name, blake2b}]`` of code that a checkpoint brought and that its study trusts; steps made from it
have it too."""
_trusted: set[str] = set()


@contextmanager
def trusting(hashes: Iterable[str]) -> Generator[None]:
    """While this lasts, code with one of these hashes may be run (``model.remote``); one step runs in a process."""
    before = set(_trusted)
    _trusted.clear()
    _trusted.update(hashes)
    try:
        yield
    finally:
        _trusted.clear()
        _trusted.update(before)


def trusted() -> frozenset[str]:
    """Hashes of the code that the step under way may run."""
    return frozenset(_trusted)


class Stage(Protocol):
    """The one signature of every stage."""

    def __call__(
        self, config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress
    ) -> Result: ...
