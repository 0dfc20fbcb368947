"""A suite of benchmarks in a study, and which files it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from prismlab.evaluate.suite_base import Suite
from prismlab.evaluate.suites import SUITES
from prismlab.study.world import Spec

Count = Annotated[int, Field(ge=1, le=10**9)]

FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv")
"""Files that a benchmark's items are read from."""


SUITE_FILES = "@suite"
"""Where a step's configuration has the files of its suite; no source or task can be called so."""


class SuiteSpec(Spec):
    """Benchmarks that go together, as ``prism eval suites`` lists them; not those of lm-evaluation-harness."""

    name: str
    """``retention``, ``reasoning``, ``long`` or ``micro``."""
    files: list[str] = []
    """Files, globs or folders with the sets, relative to the study file: what ``prism eval fetch`` wrote."""
    benchmarks: list[str] = []
    """Benchmarks of the suite; empty for all."""
    limit: Count | None = None
    """Items a benchmark, the same for every checkpoint; null for all of a set, and 50 a length of ``long``."""
    shots: Annotated[int, Field(ge=0, le=100)] | None = None
    """Worked examples before a question of choices; null for the suite's own number."""
    lengths: list[Annotated[int, Field(ge=64, le=2**21)]] = []
    """Tokens of the items of ``long``, prompt and answer."""
    samples: Count | None = None
    """Samples an item; this and the next three are null for the suite's own."""
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Nucleus sampling mass."""
    max_new_tokens: Count | None = None
    """Longest response, in tokens."""
    exclude: list[str] = []
    """``benchmark/item`` of items that stand in training data: left out of the scores, and counted."""

    @model_validator(mode="after")
    def _known(self) -> SuiteSpec:
        suites = [name for name, suite in SUITES.items() if all(one.kind != "harness" for one in suite.benchmarks)]
        if self.name not in suites:
            more = " through 'prism eval' alone" if self.name in SUITES else ""
            raise ValueError(f"suite {self.name!r} is not one of {', '.join(suites)}{more}")
        known = [one.name for one in self.suite.benchmarks]
        for name in self.benchmarks:
            if name not in known:
                raise ValueError(f"suite {self.name} has no benchmark {name!r}; it has {', '.join(known)}")
        long = any(one.kind == "long" for one in self.suite.benchmarks)
        if long != bool(self.lengths):
            raise ValueError("'lengths' and the suite 'long' go together")
        generated = all(one.kind in ("long", "micro") for one in self.suite.benchmarks)
        if generated == bool(self.files):
            raise ValueError(f"suite {self.name} {'is generated: drop' if generated else 'needs'} 'files'")
        wrong = [text for text in self.exclude if not all(text.partition("/"))]
        if wrong:
            raise ValueError(f"'exclude' holds {wrong[0]!r}, which is no 'benchmark/item'")
        return self

    @property
    def suite(self) -> Suite:
        """What is known of it."""
        return SUITES[self.name]

    def wanted(self, files: Sequence[Path]) -> list[Path]:
        """Those of the files that a chosen benchmark may be read from: a folder holds others, too."""
        stems = {stem for one in self.suite.named(tuple(self.benchmarks)) for stem in (*one.files, *one.example_files)}
        return [file for file in files if file.name.partition(".")[0] in stems]

    @property
    def names(self) -> list[str]:
        """The tasks that its scores are of."""
        chosen = [one.name for one in self.suite.named(tuple(self.benchmarks))]
        return [f"{name}-{length}" for name in chosen for length in self.lengths] if self.lengths else chosen


def bare(spec: SuiteSpec | None, files: Sequence[Path]) -> dict[str, Any] | None:
    """The suite as JSON for a step's configuration: names of its files, without their folders."""
    return None if spec is None else {**spec.model_dump(mode="json"), "files": [file.name for file in files]}
