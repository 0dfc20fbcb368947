"""The study as a whole: what a study file holds at its top level."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from prismlab.study.checkpoints import CheckpointSpec
from prismlab.study.rl import FrontierSpec, PromptSpec, ScoringSpec
from prismlab.study.spec import (
    LARGEST,
    BaseSpec,
    Count,
    DecontaminateSpec,
    EvaluationSpec,
    Fraction,
    MixtureSpec,
    Name,
    SourceSpec,
    TaskSpec,
)
from prismlab.study.world import MicroSpec, Spec

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Relative-change thresholds of the reference study (table 22)."""


class WeightsSpec(Spec):
    """Weight divergence and sparsity between checkpoints."""

    pairs: list[tuple[str, str]] | None = None
    """``[old, new]`` pairs; null for every stage's start and end, and base to each RL checkpoint."""
    thresholds: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = THRESHOLDS
    """Relative changes under which an element counts as unchanged."""
    svd: str | None = None
    """Stable rank and top singular values of updates are measured for tensors whose name holds a match of this regular
    expression (``layers\\.0\\.``); null for none."""

    @field_validator("svd")
    @classmethod
    def _sound(cls, value: str | None) -> str | None:
        """A pattern that cannot be read would stop the run hours later."""
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class DirectionSpec(Spec):
    """Cosines between updates that start from one base."""

    groups: list[Annotated[list[str], Field(min_length=3)]] | None = None
    """``[base, a, b, ...]``, every two of a group compared; null for the mid-trained checkpoints of each start, and
    apart from them the RL and fine-tuned ones of each start."""

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, data: Any) -> object:
        """``triples`` was the name while a group had exactly two checkpoints."""
        if not isinstance(data, dict) or "triples" not in data:
            return cast(object, data)
        given = cast(dict[str, object], data)
        if "groups" in given:
            raise ValueError("'triples' is the old name of 'groups': keep 'groups' alone")
        return {("groups" if key == "triples" else key): value for key, value in given.items()}


class CkaSpec(Spec):
    """Linear CKA per layer between checkpoints."""

    sources: list[Name]
    """Sources whose held-out documents are the inputs; each is an input set of its own."""
    inputs: Annotated[int, Field(ge=8, le=2_000)] = 200
    """Inputs a set; (layers + 1) x inputs^2 numbers of 8 bytes are kept of each checkpoint."""
    max_tokens: Count = 256
    """Tokens an input is cut to."""
    resamples: Annotated[int, Field(ge=0, le=LARGEST)] = 20
    """Bootstrap resamples."""
    resample_size: Annotated[int, Field(ge=4, le=LARGEST)] = 100
    """Inputs a resample."""
    batch: Literal["padded", "equal", "one"] = "padded"
    """How inputs are put in batches: filled up on the right, of equal length, or one by one; the result is the same."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the forward passes; auto is float32 on a CPU and the checkpoint's own on a GPU."""
    cross: bool = False
    """Also every layer of one checkpoint against every layer of the other; where their depths differ always."""
    pairs: list[tuple[str, str]] | None = None
    """Pairs; null for the pairs of ``weights``."""


class BehaviourSpec(Spec):
    """Length and confidence of responses, split by correct and incorrect, from an evaluation's rows."""

    evaluation: Name
    """The evaluation whose rows are read."""


class TrajectorySpec(Spec):
    """Divergence and sparsity of a run's snapshots against its start."""

    checkpoints: list[Name] | None = None
    """Checkpoints with snapshots; null for all RL checkpoints that have them."""


class LandscapeSpec(Spec):
    """Scores on the plane of base, mid and RL: W(a, b) = base + a (mid - base) + b (RL - mid)."""

    evaluation: Name
    """The evaluation whose tasks and sampling are taken, at every point with the same items and random numbers."""
    points: Annotated[int, Field(ge=2, le=1000)] = 5
    """Points from base to mid and from mid to RL, ends included; C13 asks for 5 or more."""
    grid: Annotated[int, Field(ge=2, le=100)] | None = None
    """Points a side of a grid over a and b from 0 to 1; null for the path alone."""
    items: Count | None = None
    """Items a task; null for the evaluation's."""
    samples: Count | None = None
    """Samples an item; null for the evaluation's."""
    triples: list[tuple[str, str, str]] | None = None
    """``[base, mid, rl]`` checkpoints; null for those of the arms ``base``, ``mid[MCS]``, ``mid[MCS]>rl[MCS]``."""


class AnalysesSpec(Spec):
    """Which analyses to run; a missing key is not run."""

    weights: WeightsSpec | None = None
    """Weight divergence and sparsity."""
    direction: DirectionSpec | None = None
    """Update directions."""
    cka: CkaSpec | None = None
    """Representations."""
    behaviour: BehaviourSpec | None = None
    """Response length and confidence."""
    trajectory: TrajectorySpec | None = None
    """Change over a run's snapshots."""
    landscape: LandscapeSpec | None = None
    """Scores between checkpoints."""
    frontier: FrontierSpec | None = None
    """What RL did to prompts that its start solved never, once and more often."""


class ClaimsSpec(Spec):
    """Which claims to decide, and on what."""

    evaluation: Name | None = None
    """The evaluation whose scores decide the claims; null for the first one."""
    ids: list[Annotated[str, Field(pattern=r"^C([1-9]|1[0-8])$")]] | None = None
    """Claims to decide; null for all eighteen."""
    arms: dict[str, Name] = {}
    """Arm to checkpoint, where what ``prism check`` infers from the graph is not what you mean."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Level of the intervals over seeds, which decide; intervals within a seed (over items) are 95%."""
    long_context: Annotated[int, Field(ge=8, le=LARGEST)] | None = None
    """Tokens at which C16 compares: the longest length that the base was trained for; null for the longest ``seq_len``
    by which this study trained it."""
    general_margin: Annotated[float, Field(gt=0.0)] = 0.05
    """Loss of general ability that counts as retained, in bits per byte (C2)."""


class GateSpec(Spec):
    """What checkpoints may have lost against a reference, benchmark by benchmark."""

    evaluation: Name
    """The evaluation whose tasks are the benchmarks, on the same items for all."""
    reference: Name
    """Base or checkpoint that the others are held against."""
    checkpoints: list[Name] | None = None
    """Checkpoints that are tested; null for all that the evaluation samples."""
    margin: Annotated[float, Field(gt=0.0, lt=100.0)] = 2.0
    """Points that a benchmark may lose."""
    margins: dict[Name, Annotated[float, Field(gt=0.0, lt=100.0)]] = {}
    """Points that single benchmarks may lose."""
    action: Literal["record", "warn", "stop"] = "record"
    """``record`` the verdict; ``warn`` also tells it while the study runs, where retention is not shown; ``stop``
    warns, and where a loss is shown ends the branch: what would be made of the checkpoint is skipped."""


class RunSpec(Spec):
    """How steps are placed on this machine; never part of a fingerprint, but ``threads``, which changes float sums."""

    jobs: Count = 1
    """Steps at a time."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads a step; part of the record, since the order of float sums depends on it."""
    servers: dict[Name, str] = {}
    """Address of each server that ``server`` names, for example ``http://localhost:8000``; no part of a fingerprint."""


class ReportSpec(Spec):
    """The page at the end."""

    title: str | None = None
    """Headline; null for the study's name."""


class Study(Spec):
    """A whole study."""

    name: Name
    """Name of the study; its folder under ``runs/`` by default."""
    description: str = ""
    """One or two sentences for the report."""
    include: list[str] = []
    """Files with ``sources``, ``mixtures``, ``tasks`` and ``decontaminate`` that are part of this study, relative to
    it; paths in them are relative to them."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]
    """Each seed is an independent repetition of every step; the seed is the unit of inference."""
    template: Literal["think"] = "think"
    """Named prompt template: question, line break, then ``<think> chain </think> answer`` or the answer alone."""
    tokenizer: str | None = None
    """Tokenizer of the corpora: a base's name; null for the first base."""
    micro: MicroSpec = MicroSpec()
    """Difficulty of the micro world."""
    bases: Annotated[dict[Name, BaseSpec], Field(min_length=1)]
    """Starting checkpoints."""
    sources: dict[Name, SourceSpec] = {}
    """Sources of training text."""
    heldout: Annotated[float, Field(gt=0.0, le=0.5)] = 0.02
    """Share of each source's documents kept out of training, chosen by the hash of the text."""
    mixtures: dict[Name, MixtureSpec] = {}
    """Token shares of sources."""
    checkpoints: dict[Name, CheckpointSpec] = {}
    """Checkpoints that stages make of bases and of one another."""
    tasks: dict[Name, TaskSpec] = {}
    """Verifiable tasks."""
    scorings: dict[Name, ScoringSpec] = {}
    """Candidate prompts and who scores them."""
    prompts: dict[Name, PromptSpec] = {}
    """RL prompt sets."""
    evaluations: dict[Name, EvaluationSpec] = {}
    """Evaluations."""
    decontaminate: DecontaminateSpec | None = None
    """Look for evaluation items in every source that is trained on; null for not at all."""
    analyses: AnalysesSpec = AnalysesSpec()
    """Analyses of weights, representations and behaviour."""
    gates: dict[Name, GateSpec] = {}
    """Retention gates."""
    claims: ClaimsSpec = ClaimsSpec()
    """Decisions."""
    report: ReportSpec = ReportSpec()
    """The page."""
    run: RunSpec = RunSpec()
    """Placement on this machine."""

    def shares(self, mixture: str) -> dict[str, float]:
        """Token share of each source of a mixture; they sum to 1.

        Raises:
            ValueError: the mixture's ``domains`` and its sources do not fit (``prism check`` tells so beforehand).
        """
        spec = self.mixtures[mixture]
        return spec.shares({name: self.sources[name].domain_name for name in spec.names})


__all__ = ["THRESHOLDS", "Fraction", "Study"]
