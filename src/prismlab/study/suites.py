"""A suite of benchmarks in a study or in a file of its own, and which files it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prismlab.evaluate.suite_base import Own, Suite
from prismlab.evaluate.suites import OWN, SUITES, TASKS, suite_of
from prismlab.study.world import Spec

Count = Annotated[int, Field(ge=1, le=10**9)]
BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Licence = Annotated[str, Field(max_length=80)]
Domain = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]

FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv")
"""Files that a benchmark's items are read from."""
OWN_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""Files of the suite ``own``."""
INCLUDED = (".yaml", ".yml", ".py", ".jsonl", ".json", ".parquet", ".csv", ".txt")
"""Files of a folder with tasks of lm-evaluation-harness."""


SUITE_FILES = "@suite"
"""Where a step's configuration has the files of its suite; no source or task can be called so."""
TASK_FILES = "@tasks"
"""Likewise the files of its ``include``."""


class OwnSpec(Spec):
    """A local file as a benchmark: choices compared by likelihood, or with ``verifier`` responses that are judged."""

    file: str
    """jsonl (also as .gz or .zst) or parquet file, relative to the file that names it."""
    question: str = "question"
    """Field with the question."""
    answer: str = "answer"
    """Field with the answer; with ``choices`` an index (from 0), a letter or the text of one. With ``verifier: tests``
    the field with the tests."""
    choices: str | Annotated[list[str], Field(min_length=2, max_length=26)] | None = None
    """Field with a list of choices, or the fields of one each."""
    verifier: Literal["number", "math", "choice", "exact", "contains", "tests"] | None = None
    """How a sampled response is judged; null compares the likelihood of the choices."""
    domain: Domain = "general"
    """Domain, for the domain scores."""
    licence: Licence = "not stated"
    """Licence of the rows, for the records."""
    metric: Literal["acc", "acc_norm", "acc_bytes"] = "acc"
    """Of choices by likelihood: as it is, over the choice's characters, or over its bytes."""
    prompt: str = Own.prompt
    """Of choices by likelihood: what stands before a choice, with ``{question}`` in it."""
    examples: str | None = None
    """Of choices by likelihood: a file with worked examples."""
    shots: Annotated[int, Field(ge=0, le=100)] = 0
    """How many worked examples stand before a question."""
    samples: Count = 1
    """Of sampled responses: samples an item."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling mass."""
    max_new_tokens: Count = 512
    """Longest response, in tokens."""

    @model_validator(mode="after")
    def _one_kind(self) -> OwnSpec:
        if self.verifier is None and self.choices is None:
            raise ValueError("give 'choices' (compared by likelihood) or a 'verifier' (of sampled responses)")
        if self.verifier == "choice" and self.choices is None:
            raise ValueError("'verifier: choice' needs 'choices'")
        if self.verifier in ("number", "math", "exact", "contains", "tests") and self.choices is not None:
            raise ValueError(f"'choices' go with 'verifier: choice', not with {self.verifier!r}")
        if "{question}" not in self.prompt:
            raise ValueError("'prompt' must hold '{question}'")
        sampled = {"samples", "temperature", "top_p", "max_new_tokens"}
        wrong = {"metric", "prompt", "examples", "shots"} if self.verifier is not None else sampled
        if wrong & self.model_fields_set:
            what = "choices by likelihood" if self.verifier is not None else "responses with a 'verifier'"
            raise ValueError(f"{min(wrong & self.model_fields_set)!r} is for {what}")
        if (self.examples is None) != (self.shots == 0):
            raise ValueError("'examples' (a file) and 'shots' go together")
        return self

    def bare(self) -> dict[str, Any]:
        """As JSON, its files without their folders."""
        examples = None if self.examples is None else Path(self.examples).name
        return {**self.model_dump(mode="json"), "file": Path(self.file).name, "examples": examples}


class SuiteSpec(Spec):
    """Benchmarks that go together: a suite of ``prism eval suites``, local files, or tasks of lm-evaluation-harness."""

    name: str
    """A suite that ``prism eval suites`` lists; ``own`` for local files; ``harness`` for any task of the harness."""
    files: list[str] = []
    """Files, globs or folders with the sets, relative to the study file: what ``prism eval fetch`` wrote."""
    benchmarks: list[BenchmarkName] = []
    """Benchmarks of the suite; empty for all. Of ``harness`` the tasks, groups or tags."""
    own: dict[BenchmarkName, OwnSpec] = {}
    """Of ``own``: the benchmarks, a file each."""
    include: list[str] = []
    """Of ``harness``: folders with tasks of one's own (YAML as the harness has it), relative to the study file."""
    metrics: dict[BenchmarkName, str] = {}
    """Of ``harness``: which of a task's metrics is its score, where it is not ``acc_norm``, ``acc`` or
    ``exact_match``; behind a comma the filter."""
    limit: Count | None = None
    """Items a benchmark, the same for every checkpoint; null for all of a set, and 50 a length of ``long``. Of the
    harness the first of each task."""
    shots: Annotated[int, Field(ge=0, le=100)] | None = None
    """Worked examples before a question of choices; null for the suite's own number."""
    lengths: list[Annotated[int, Field(ge=64, le=2**21)]] = []
    """Tokens of the items of ``long``, prompt and answer; of ``ruler`` those that are judged of what was fetched."""
    samples: Count | None = None
    """Samples an item; this and the next three are null for the suite's own."""
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Nucleus sampling mass."""
    max_new_tokens: Count | None = None
    """Longest response, in tokens."""
    exclude: list[str] = []
    """``benchmark/item`` of items that stand in training data: left out of the scores, and counted. Of the harness an
    item is called ``<task>:<number>``, with five digits or more."""

    @model_validator(mode="after")
    def _known(self) -> SuiteSpec:
        if self.name not in (*SUITES, OWN, TASKS):
            raise ValueError(f"suite {self.name!r} is not one of {', '.join((*SUITES, OWN, TASKS))}")
        if (self.name == OWN) != bool(self.own):
            raise ValueError("'own' (the benchmarks, a file each) and 'name: own' go together")
        if self.name == TASKS and not self.benchmarks:
            raise ValueError("suite harness needs 'benchmarks': names of tasks of lm-evaluation-harness")
        if self.name != TASKS and (self.include or self.metrics):
            raise ValueError("'include' and 'metrics' are for the suite 'harness'")
        if set(self.metrics) - set(self.benchmarks):
            raise ValueError(f"'metrics' names {min(set(self.metrics) - set(self.benchmarks))!r}, no benchmark")
        known = [one.name for one in self.suite.benchmarks]
        for name in self.benchmarks:
            if name not in known:
                raise ValueError(f"suite {self.name} has no benchmark {name!r}; it has {', '.join(known)}")
        wrong = [text for text in self.exclude if not all(text.partition("/"))]
        if wrong:
            raise ValueError(f"'exclude' holds {wrong[0]!r}, which is no 'benchmark/item'")
        # Rows of our own suites are called by length where they have one; the harness's go by benchmark.
        lengths = tuple(self.lengths)
        named = known if self.by_harness else [name for one in self.suite.benchmarks for name in one.tasks_of(lengths)]
        wrong = [text for text in self.exclude if text.partition("/")[0] not in named]
        if wrong:
            raise ValueError(
                f"'exclude' holds {wrong[0]!r}: the suite has no such benchmark; it has {', '.join(named)}"
            )
        theirs = re.compile(r".+:[0-9]{5,}")
        wrong = [text for text in self.exclude if self.by_harness and not theirs.fullmatch(text.partition("/")[2])]
        if wrong:
            raise ValueError(f"'exclude' holds {wrong[0]!r}, which is no '<benchmark>/<task>:<number>', as in the rows")
        return self

    @model_validator(mode="after")
    def _what_it_takes(self) -> SuiteSpec:
        kinds = {one.kind for one in self.suite.benchmarks}
        if self.name == "ruler" and not self.lengths:
            raise ValueError("suite ruler needs 'lengths': tokens of the items that were fetched")
        if self.name != "ruler" and ("long" in kinds) != bool(self.lengths):
            raise ValueError("'lengths' and the suites 'long' and 'ruler' go together")
        if "harness" in kinds:
            not_theirs = ("samples", "temperature", "top_p", "max_new_tokens")
            given = [name for name in not_theirs if getattr(self, name)]
            if given or self.temperature is not None:
                raise ValueError(f"{(given or ['temperature'])[0]!r}: the harness's tasks have that in themselves")
        generated = kinds <= {"long", "micro"}
        if (generated or self.name == OWN) and self.files:
            raise ValueError(f"suite {self.name} {'is generated' if generated else 'names its own'}: drop 'files'")
        if not generated and self.name not in (OWN, TASKS) and not self.files:
            raise ValueError(f"suite {self.name} needs 'files'")
        return self

    @property
    def suite(self) -> Suite:
        """What is known of it."""
        return suite_of(self.model_dump(mode="json"))

    @property
    def by_harness(self) -> bool:
        """Whether lm-evaluation-harness judges it."""
        return any(one.kind == "harness" for one in self.suite.benchmarks)

    def wanted(self, files: Sequence[Path]) -> list[Path]:
        """Those of the files that a chosen benchmark may be read from: a folder holds others, too."""
        if self.by_harness:
            rows = [file for file in files if "--" in file.name and file.suffix == ".parquet"]
            return [file for file in rows if file.parent.name == self.name] or rows
        stems = {stem for one in self.suite.named(tuple(self.benchmarks)) for stem in (*one.files, *one.example_files)}
        return [file for file in files if file.name.partition(".")[0] in stems]

    @property
    def own_files(self) -> list[str]:
        """Files of ``own``, as they are named, worked examples behind items."""
        chosen = {name: one for name, one in self.own.items() if not self.benchmarks or name in self.benchmarks}
        named = [file for one in chosen.values() for file in (one.file, one.examples) if file is not None]
        return list(dict.fromkeys(named))

    @property
    def names(self) -> list[str]:
        """The tasks that its scores are of."""
        chosen = self.suite.named(tuple(self.benchmarks))
        return [name for one in chosen for name in one.tasks_of(tuple(self.lengths))]


def bare(spec: SuiteSpec | None, files: Sequence[Path]) -> dict[str, Any] | None:
    """The suite as JSON for a step's configuration: names of its files, without their folders.

    What a suite does not use is left out, so that new keys make no old step anew.
    """
    if spec is None:
        return None
    whole: dict[str, Any] = {**spec.model_dump(mode="json"), "files": [file.name for file in files]}
    whole["own"] = {name: one.bare() for name, one in spec.own.items()}
    whole["include"] = [Path(folder).name for folder in spec.include]
    return {key: value for key, value in whole.items() if value or key not in ("own", "include", "metrics")}
