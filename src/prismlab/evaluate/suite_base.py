"""What is said of a benchmark and of a suite. Facts alone, no library.

``verified`` says whether an id on the hub was seen to exist with this content; none could be from a machine without
network, so all say False, and ``prism eval fetch`` records the commit and the hash of what it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prismlab.errors import SpecError, shown

Kind = Literal["choices", "sampled", "harness", "micro", "long"]
"""``choices``: our own, by log-likelihood. ``sampled``: responses, verified. ``harness``: lm-evaluation-harness as a
library. ``micro``: generated tasks of the micro world, sampled. ``long``: generated here, of any length, sampled."""

NORMALISATIONS: Mapping[str, str] = {
    "acc_norm": "acc_norm: log-likelihood over the choice's characters",
    "acc_bytes": "acc_bytes: log-likelihood over the choice's bytes",
}
"""What a metric divides by, in words."""
HARNESS = "lm-evaluation-harness"
LEVELS = ("ifeval", "leaderboard_ifeval")
"""Tasks of the harness that score a response twice: as a whole, and instruction by instruction."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A data set on the hub."""

    id: str
    split: str
    config: str | None = None
    files: tuple[str, ...] = ()
    """Files of its repository with the rows, jsonl, where it has no split that can be loaded without a program."""
    revision: str = "main"
    """A commit is the only revision that cannot move."""
    verified: bool = False


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn."""

    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Own:
    """How rows of a user's own file are read."""

    question: str = "question"
    """Field with the question."""
    answer: str = "answer"
    """Field with the answer; with choices an index (from 0), a letter or the text of one."""
    choices: str | tuple[str, ...] | None = None
    """Field with a list of choices, or the fields of one each."""
    prompt: str = "Question: {question}\nAnswer:"
    """What stands before a choice whose likelihood is compared."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark of a suite."""

    name: str
    title: str
    kind: Kind
    domain: str
    items: int | None
    """Of the whole set; None where the user or the tokenizer decides."""
    metric: str
    """What the score is: ``acc``, ``acc_norm``, ``mc2``, ``avg@n``, or a metric of the harness."""
    licence: str
    source: str
    shots: int = 0
    """Worked examples before the question. ``--shots`` changes it where examples are at hand."""
    normalisation: str = "none"
    hub: Hub | None = None
    examples: Hub | None = None
    """Where worked examples come from."""
    files: tuple[str, ...] = ()
    """Names of files, without ending, that hold its items; the first that is found is read."""
    example_files: tuple[str, ...] = ()
    verifier: str | None = None
    sampling: Sampling | None = None
    task: str | None = None
    """Name of the task of lm-evaluation-harness."""
    own: Own | None = None
    """Of a user's own file: how it is read."""
    note: str = ""

    def tasks_of(self, lengths: tuple[int, ...] = ()) -> list[str]:
        """What its rows are called in ``task``: one name, but one a length of long items and IFEval's two."""
        if lengths:
            return [f"{self.name}-{length}" for length in lengths]
        if self.task in LEVELS:
            return [f"{self.name}:{level}" for level in ("prompts", "instructions")]
        return [self.name]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Benchmarks that go together."""

    name: str
    title: str
    benchmarks: tuple[Benchmark, ...]
    average: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Parts of its average (name to benchmarks); empty for the mean over benchmarks."""
    note: str = ""

    def named(self, names: tuple[str, ...]) -> tuple[Benchmark, ...]:
        """The benchmarks of these names, all for none.

        Raises:
            SpecError: there is no such benchmark.
        """
        known = {one.name: one for one in self.benchmarks}
        for name in names:
            if name not in known:
                raise SpecError(
                    f"suite {self.name} has no benchmark {shown(name, 40)!r}; it has {', '.join(known) or 'none'}"
                )
        return tuple(known[name] for name in dict.fromkeys(names)) if names else self.benchmarks


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user chose of a suite."""

    benchmarks: tuple[str, ...] = ()
    """Names; empty for all."""
    limit: int | None = None
    """Most items a benchmark: a random choice that depends on the benchmark's name alone."""
    shots: int | None = None
    """Worked examples before a question of choices; None for the suite's own number."""
    lengths: tuple[int, ...] = ()
    """Tokens of generated long-context items."""
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    """How to sample, where not as the suite says."""
    template: str = "think"
    seed: int = 0
