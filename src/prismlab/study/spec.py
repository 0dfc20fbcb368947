"""Every configuration of a study, as frozen models.

A study file is YAML of exactly this shape. Unknown keys are refused, and every field states its unit and range beneath
it. This module imports no torch: ``prism check`` and ``prism plan`` answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from prismlab.cost.names import hub_id
from prismlab.data.recipe_list import RECIPES
from prismlab.study.suites import SuiteSpec
from prismlab.study.world import MicroSource, MicroTask, Spec

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Domain = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
LARGEST = 10**9
"""Largest count of anything: what is above it is a slip of the keyboard, and would overflow further down."""
Count = Annotated[int, Field(ge=1, le=LARGEST)]


class BaseSpec(Spec):
    """A starting checkpoint: one of the tiny random ones, or any Hugging Face folder or model id."""

    arch: Literal["llama", "mistral", "mistral-swa", "granite", "granite4", "granite4-h", "nemotron-h"] | None = None
    """Architecture of a tiny model with random weights and a byte tokenizer; excludes ``checkpoint``."""
    width: Annotated[int, Field(ge=16, le=4096, multiple_of=8)] = 128
    """Hidden size of the tiny model."""
    layers: Annotated[int, Field(ge=1, le=64)] = 4
    """Layers of the tiny model."""
    checkpoint: str | None = None
    """A folder in the Hugging Face layout, or a model id or a name of ``prism models`` with an optional ``@revision``;
    excludes ``arch``."""
    trust_remote_code: bool = False
    """Run the Python code that the checkpoint brings for a class that transformers does not have. Read it first: it can
    do whatever you can. A hub id then needs its commit (``owner/name@`` and 40 hexadecimal digits)."""

    @field_validator("checkpoint")
    @classmethod
    def _by_name(cls, value: str | None) -> str | None:
        return None if value is None else hub_id(value)

    @model_validator(mode="after")
    def _one_origin(self) -> BaseSpec:
        if (self.arch is None) == (self.checkpoint is None):
            raise ValueError("give exactly one of 'arch' (a tiny model) and 'checkpoint' (a folder or model id)")
        if self.trust_remote_code and self.checkpoint is None:
            raise ValueError("'trust_remote_code' is for a 'checkpoint': tiny models bring no code")
        return self


class Fields(Spec):
    """Which fields of a row hold the text. Give ``text``, or ``question`` and ``answer``, or ``messages``."""

    text: str | None = None
    """Field with a whole document."""
    question: str | None = None
    """Field with a question; joined to the answer by one line break."""
    answer: str | None = None
    """Field with the answer. If it is an integer and ``choices`` is given, it is the index of the right choice."""
    choices: str | Annotated[list[str], Field(min_length=2, max_length=26)] | None = None
    """Field with a list of answer choices, or the fields of one each; shown as lettered lines under the question."""
    messages: str | None = None
    """Field with a list of ``{role, content}``; shown with the prefixes ``User:`` and ``Assistant:``."""

    @model_validator(mode="after")
    def _one_kind(self) -> Fields:
        given = [self.text is not None, self.question is not None or self.answer is not None, self.messages is not None]
        if sum(given) != 1 or (self.question is None) != (self.answer is None):
            raise ValueError("give 'text', or both 'question' and 'answer', or 'messages'")
        if self.choices is not None and self.question is None:
            raise ValueError("'choices' needs 'question' and 'answer'")
        return self


class HubSource(Spec):
    """A dataset on the Hugging Face hub, streamed; its revision is part of the fingerprint."""

    id: str
    """Dataset id, for example ``HuggingFaceTB/dclm-edu``."""
    revision: str
    """Commit, tag or branch; a commit hash is the only one that cannot move."""
    split: str = "train"
    """Split to stream."""
    config: str | None = None
    """Configuration (subset) name where the dataset has several."""
    folder: str | None = None
    """Folder of the dataset's repository, where its subsets are folders and no configurations."""


Value = str | int | float | bool


class FilterSpec(Spec):
    """Conditions that a row fulfils to be kept; a document that does not is dropped and counted by its reason."""

    where: dict[str, list[Value]] = {}
    """Field to the values that it may have."""
    at_least: dict[str, float] = {}
    """Field to its smallest value, a number."""
    min_chars: Count | None = None
    """Fewest characters of a document."""
    max_chars: Count | None = None
    """Most characters of a document."""


class SourceSpec(Spec):
    """One source of documents. Give exactly one of ``micro``, ``files`` and ``hub``, or a ``recipe``, with which
    ``files`` are a downloaded copy.
    """

    recipe: Name | None = None
    """A source of the reference study, by the name that ``prism data sources`` lists: it knows the hub's dataset, the
    domain, the fields and which rows are kept."""
    micro: MicroSource | None = None
    """A part of the micro world."""
    files: list[str] | None = None
    """Paths, globs or folders of jsonl, parquet or txt files (jsonl and txt also as .gz or .zst), relative to the study
    file; of a folder all such files in it and below, by name."""
    hub: HubSource | None = None
    """A dataset to stream from the hub."""
    domain: Domain | None = None
    """Domain of every document, for example ``math``; required but for ``micro`` and ``recipe``, which know their
    own."""
    fields: Fields | None = None
    """Field names of a row; default ``text``. A text file has none: blank lines part its documents."""
    max_documents: Count | None = None
    """Read at most this many documents."""
    filters: FilterSpec | None = None
    """Which rows are kept, after those of the recipe."""
    dedup: Literal["none", "exact", "minhash"] = "none"
    """``exact`` drops documents whose text was met before, ``minhash`` also those that are nearly one (most of their
    5-word shingles shared); the first one stays."""
    loss: Literal["all", "answer"] = "all"
    """``answer`` takes the training loss on answers alone; needs ``question`` and ``answer``, a recipe of pairs, or
    retrieval of the micro world."""
    max_bad: Fraction = 0.01
    """Share of rows that may be set aside as broken while cleaning (ten always may) before the step is stopped."""

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, data: Any) -> object:
        """A recipe gives the hub's dataset and the domain, where the file does not."""
        given = cast(dict[str, object], data) if isinstance(data, dict) else {}
        if not isinstance(given.get("recipe"), str):
            return cast(object, data)
        if given["recipe"] not in RECIPES:
            raise ValueError(f"recipe {given['recipe']!r} is not known; there are {', '.join(RECIPES)}")
        recipe = RECIPES[str(given["recipe"])]
        if given.get("fields") is not None:
            raise ValueError("'fields' and 'recipe' exclude one another: the recipe knows its fields")
        origin = {} if given.get("files") is not None or given.get("hub") is not None else {"hub": recipe.source()}
        return {"domain": recipe.domain, **origin, **given}

    @property
    def cleaned(self) -> bool:
        """Whether this source asks for a step of cleaning of its own."""
        return self.recipe is not None or self.filters is not None or self.dedup != "none"

    @model_validator(mode="after")
    def _answers(self) -> SourceSpec:
        pairs = self.recipe is not None and RECIPES[self.recipe].form == "pair"
        pairs = pairs or (self.micro is not None and self.micro.tokens is not None)
        if self.loss == "answer" and not pairs and (self.fields is None or self.fields.question is None):
            raise ValueError(
                "'loss: answer' needs 'question' and 'answer' in 'fields', a recipe of pairs, or retrieval"
            )
        if self.filters is not None and self.micro is not None and (self.filters.where or self.filters.at_least):
            raise ValueError("a 'micro' source has no rows: of 'filters' it takes 'min_chars' and 'max_chars' alone")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSpec:
        if sum(x is not None for x in (self.micro, self.files, self.hub)) != 1:
            raise ValueError("give exactly one of 'micro', 'files' and 'hub'")
        if self.micro is None and self.domain is None:
            raise ValueError("'domain' is missing: say which domain the documents belong to, for example 'math'")
        if self.files is not None and not self.files:
            raise ValueError("'files' is empty: name at least one path or glob")
        return self

    @property
    def domain_name(self) -> str:
        """The domain of this source's documents."""
        return self.domain or (self.micro.domain if self.micro else "")


class MixtureSpec(Spec):
    """Token shares of sources, given one by one or by domain."""

    weights: dict[Name, Positive] = {}
    """Share of tokens per source; normalised to sum to 1. With ``domains``: within the source's own domain."""
    by_size: list[Name] = []
    """Sources that share in proportion to their size in ``tokens_in_source`` instead; of one domain all or none."""
    domains: dict[Domain, Positive] | None = None
    """Share of tokens per domain; normalised to sum to 1. Null where ``weights`` or sizes speak of all tokens."""
    max_epochs: Positive = 100.0
    """Refuse a budget that would repeat any source more often than this; below 1 only where every source's size is
    known."""
    tokens_in_source: dict[Name, Positive] | None = None
    """Known sizes of sources in tokens, so that a plan can state epochs before anything is read."""

    @model_validator(mode="after")
    def _each_source_once(self) -> MixtureSpec:
        if not self.names:
            raise ValueError("name at least one source, in 'weights' or in 'by_size'")
        twice = [name for at, name in enumerate(self.names) if name in self.names[:at]]
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice: in 'weights' or in 'by_size', and once")
        if self.domains is None and self.weights and self.by_size:
            raise ValueError("'weights' and 'by_size' in one mixture need 'domains': the two have no common unit")
        unknown = [name for name in self.by_size if name not in (self.tokens_in_source or {})]
        if unknown:
            raise ValueError(f"'by_size' names {unknown[0]!r}, whose size is not in 'tokens_in_source'")
        unknown = [name for name in self.names if name not in (self.tokens_in_source or {})]
        if self.max_epochs < 1 and unknown:
            raise ValueError(
                f"'max_epochs' is {self.max_epochs:g}, below 1, and the size of {unknown[0]!r} is not in "
                "'tokens_in_source': a source is read only as far as it is needed; name its size, or allow 1"
            )
        return self

    @property
    def names(self) -> list[str]:
        """The sources of the mixture."""
        return [*self.weights, *self.by_size]

    def shares(self, domain_of: Mapping[str, str]) -> dict[str, float]:
        """The share of tokens of each source; they sum to 1.

        Args:
            domain_of: domain of each source; read only with ``domains``.

        Raises:
            ValueError: a domain has no source or a source no domain with a share, or a domain's sources are weighted
                partly by size.
        """
        sizes = self.tokens_in_source or {}
        parts = {**self.weights, **{name: sizes[name] for name in self.by_size}}
        if self.domains is None:
            whole = sum(parts.values())
            return {name: part / whole for name, part in parts.items()}
        groups = {domain: [name for name in self.names if domain_of[name] == domain] for domain in self.domains}
        for domain, names in groups.items():
            if not names:
                raise ValueError(f"no source of the domain {domain!r}, which has a share; name one or drop the domain")
            if 0 < len([name for name in names if name in self.by_size]) < len(names):
                raise ValueError(f"sources of {domain!r} stand in 'weights' and in 'by_size': have all in one of them")
        lost = [name for name in self.names if domain_of[name] not in self.domains]
        if lost:
            raise ValueError(f"{lost[0]!r} is of the domain {domain_of[lost[0]]!r}, which has no share in 'domains'")
        whole = sum(self.domains.values())
        sums = {domain: sum(parts[name] for name in names) for domain, names in groups.items()}
        domains = {name: domain_of[name] for name in self.names}
        return {name: self.domains[at] / whole * parts[name] / sums[at] for name, at in domains.items()}


class DecontaminateSpec(Spec):
    """Which evaluation items training documents must not hold."""

    evaluations: list[Name] | None = None
    """Evaluations whose tasks are looked for, every row of each; null for all, unless ``tasks`` are named."""
    tasks: list[Name] | None = None
    """Tasks that are looked for besides."""
    n: Annotated[int, Field(ge=8, le=100)] = 13
    """Words in a row that a document must share with an item."""
    action: Literal["report", "drop"] = "report"
    """Whether documents that hold an item are dropped, or only listed."""
    allow: list[str] = []
    """What is no contamination: ids of items (``task/id``), or texts that what is shared lies within."""


class TaskSpec(Spec):
    """A verifiable task: questions, answers and a verifier. Give exactly one of ``micro``, ``files`` and ``hub``."""

    micro: MicroTask | None = None
    """A task of the micro world."""
    files: list[str] | None = None
    """Paths, globs or folders of jsonl (also as .gz or .zst) or parquet rows, relative to the study file."""
    hub: HubSource | None = None
    """A dataset to stream from the hub."""
    domain: Domain | None = None
    """Domain, for the domain scores; required but for ``micro``."""
    fields: Fields | None = None
    """Field names; ``question`` and ``answer``, and ``choices`` for multiple choice."""
    verifier: Literal["number", "math", "choice", "exact", "program", "tests"] | None = None
    """How an answer is judged; required but for ``micro``. ``number`` takes the last number, after ``####`` if present;
    ``math`` also knows formulas; ``tests`` runs programs in the sandbox, ``answer`` names the field with the tests."""

    @model_validator(mode="after")
    def _one_origin(self) -> TaskSpec:
        if sum(x is not None for x in (self.micro, self.files, self.hub)) != 1:
            raise ValueError("give exactly one of 'micro', 'files' and 'hub'")
        if self.micro is None and (self.domain is None or self.verifier is None or self.fields is None):
            raise ValueError("a task from files or the hub needs 'domain', 'fields' and 'verifier'")
        if self.micro is None and self.verifier == "program":
            raise ValueError("'verifier: program' is for micro tasks alone; take number, choice or exact")
        if self.verifier == "choice" and self.fields is not None and self.fields.choices is None:
            raise ValueError("'verifier: choice' needs 'choices' in 'fields': the row's list of choices")
        return self

    @property
    def domain_name(self) -> str:
        """The domain of this task."""
        return self.domain or (self.micro.domain if self.micro else "")


class EvaluationSpec(Spec):
    """Evaluation by sampling, one row a sample, and text loss on held-out documents."""

    tasks: list[Name] = []
    """Tasks to sample, their test split."""
    items: Count = 200
    """Items a task, the same for every checkpoint."""
    samples: Count = 1
    """Samples an item."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus sampling mass."""
    max_new_tokens: Count = 32768
    """Longest response, in tokens."""
    text: list[Name] = []
    """Sources whose held-out documents are scored in bits per byte: the general ability that should be retained."""
    text_documents: Count = 64
    """Held-out documents a source."""
    text_tokens: Annotated[int, Field(ge=2, le=LARGEST)] = 4096
    """Tokens a document is cut to. Not more than the rows that the checkpoints were trained on: the loss behind them
    tells how a model bears positions that it has never seen, not how well it knows the text."""
    suite: SuiteSpec | None = None
    """A suite of benchmarks in place of ``tasks``, with its own items and sampling."""
    checkpoints: list[str] | None = None
    """Which checkpoints; null for all."""
    server: Name | None = None
    """Sample over HTTP with a server of ``run.servers``; null samples in process."""

    @model_validator(mode="after")
    def _something(self) -> EvaluationSpec:
        if not self.tasks and not self.text and self.suite is None:
            raise ValueError("name at least one of 'tasks', 'suite' and 'text'")
        if self.suite is not None and (self.tasks or self.server is not None):
            raise ValueError("'suite' excludes 'tasks' and 'server': give it an evaluation of its own")
        return self
