"""What a suite asks of a checkpoint, settled before a model is loaded, and what comes of the answers.

The stage ``evaluation`` and the command ``prism eval`` both go through here, so that a suite in a study and one on the
command line are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.data.items import Item, load_items
from prismlab.errors import SpecError, shown
from prismlab.evaluate import ruler
from prismlab.evaluate.ifeval import instruction_scores, read_prompts
from prismlab.evaluate.judged import ChoiceRow, other_measures, sample_row, suite_scores, without
from prismlab.evaluate.loglik import LogLikelihoods
from prismlab.evaluate.programs import PROGRAMS, read_programs
from prismlab.evaluate.questions import load_questions, questions_hash
from prismlab.evaluate.sampled import by_length
from prismlab.evaluate.sets import ChoiceItem, file_of, items_hash, load_set
from prismlab.evaluate.suite_base import Benchmark, Sampling, Suite, Wish
from prismlab.evaluate.work import judge
from prismlab.model.generate import SamplingSettings, TransformersSampler
from prismlab.run.step import Json, Progress
from prismlab.score import SampleRow, score_items
from prismlab.seeds import derive_seed
from prismlab.verify.answers import verifier_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONG_ITEMS = 50
"""Items of a generated long-context task at a length, unless the user says otherwise."""

Loader = Callable[[], "tuple[PreTrainedModel, PreTrainedTokenizerBase]"]


@dataclass(frozen=True)
class Asked:
    """The items of a suite and how they are answered."""

    suite: Suite
    choices: Mapping[Benchmark, Sequence[ChoiceItem]]
    sampled: Mapping[Benchmark, Sequence[Item]]
    wish: Wish
    aside: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    """By benchmark, how many items no rule can judge, by reason; they are not asked."""

    def lengths_of(self) -> dict[str, int]:
        """Length in tokens of the tasks that were made for one."""
        found = {name.name: items[0].meta.get("length") for name, items in self.sampled.items()}
        return {name: int(length) for name, length in found.items() if length is not None}

    def check_excluded(self, excluded: frozenset[tuple[str, str]]) -> list[str]:
        """Ids of items in training data that are not asked, ``benchmark/item``, sorted.

        Raises:
            SpecError: nothing of a benchmark is left: without it the average would be another one under the same name.
        """
        unknown = set(excluded)
        for sets in (self.choices, self.sampled):
            for benchmark, items in sets.items():
                ids = {(benchmark.name, item.id) for item in items}
                if ids and ids <= excluded:
                    raise SpecError(
                        f"exclude: all {len(ids)} items of {shown(benchmark.name, 60)} stand in training data, so "
                        "there is no score of it; leave the benchmark out"
                    )
                unknown -= ids
        return sorted("/".join(key) for key in unknown)

    def facts(self) -> dict[str, Json]:
        """By benchmark all that decides its numbers: two checkpoints can be compared if these are equal."""
        found: dict[str, Json] = {}
        for benchmark, items in self.choices.items():
            shots = {"shots": benchmark.shots, "normalisation": benchmark.normalisation}
            found[benchmark.name] = _facts(benchmark, len(items), items_hash(items)) | shots
        for benchmark, some in self.sampled.items():
            drawn = sampling_of(benchmark, self.wish)
            how = {name: getattr(drawn, name) for name in ("samples", "temperature", "top_p", "max_new_tokens")}
            more: dict[str, Json] = {"sampling": how, "verifier": benchmark.verifier}
            if self.aside.get(benchmark.name):
                more["not_scorable"] = dict(self.aside[benchmark.name])
            found[benchmark.name] = _facts(benchmark, len(some), questions_hash(some)) | more
        return found


def _facts(benchmark: Benchmark, items: int, digest: str) -> dict[str, Json]:
    whole = {"licence": benchmark.licence, "source": benchmark.source, "of": benchmark.items}
    return {"items": items, "hash": digest, "metric": benchmark.metric, **whole}


def sampling_of(benchmark: Benchmark, wish: Wish) -> Sampling:
    """How a benchmark is sampled: as the suite says, but for what the user wants otherwise."""
    drawn = benchmark.sampling or Sampling(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=512)
    given = {name: getattr(wish, name) for name in ("samples", "temperature", "top_p", "max_new_tokens")}
    return replace(drawn, **{name: value for name, value in given.items() if value is not None})


def _some(items: Sequence[Any], limit: int | None, name: str) -> list[Any]:
    """At most ``limit`` of the items, in their order; which ones depends on the name alone."""
    if limit is None or limit >= len(items):
        return list(items)
    places = random.Random(derive_seed("items", name)).sample(range(len(items)), limit)
    return [items[place] for place in sorted(places)]


def ask(
    suite: Suite,
    wish: Wish,
    files: Sequence[Path],
    micro: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Asked:
    """The items of a suite, read or generated.

    Args:
        suite: which one; of ``harness`` benchmarks see ``evaluate.harness``.
        wish: what of it.
        files: where items are read from.
        micro: JSON of the study's ``MicroSpec``, for generated tasks.
        tokenizer: the checkpoint's, for items of a length in tokens.

    Raises:
        DataError: a set is missing (the message names the command that fetches it) or broken.
        SpecError: a benchmark is not of this suite, or cannot be judged as asked.
        SandboxError: a verifier runs programs and there is no sandbox.
    """
    choices: dict[Benchmark, Sequence[ChoiceItem]] = {}
    sampled: dict[Benchmark, Sequence[Item]] = {}
    aside: dict[str, Mapping[str, int]] = {}
    for benchmark in suite.named(wish.benchmarks):
        if benchmark.verifier is not None:
            verifier_of(benchmark.verifier)
        if benchmark.kind == "choices":
            shots = benchmark.shots if wish.shots is None else wish.shots
            asked = replace(benchmark, shots=shots)
            choices[asked] = _some(load_set(benchmark, files, suite.name, shots), wish.limit, benchmark.name)
        elif benchmark.own is None and (benchmark.verifier == "instructions" or benchmark.name in PROGRAMS):
            read = read_programs if benchmark.name in PROGRAMS else read_prompts
            items, aside[benchmark.name] = read(benchmark, file_of(benchmark, files, suite.name))
            sampled[benchmark] = _some(items, wish.limit, benchmark.name)
        elif benchmark.kind == "sampled":
            sampled[benchmark] = _some(load_questions(benchmark, files, suite.name), wish.limit, benchmark.name)
        elif benchmark.kind == "micro":
            n = wish.limit or benchmark.items or 200
            spec = {"micro": {"domain": benchmark.name}}
            sampled[benchmark] = load_items(benchmark.name, spec, micro, "test", n, None, 0)
        elif benchmark.kind == "long":
            sampled |= _long(benchmark, wish, tokenizer)
        else:
            raise SpecError(
                f"{benchmark.name} is judged by lm-evaluation-harness; see 'prism eval --suite {suite.name}'"
            )
    return Asked(suite, choices, sampled, wish, aside)


def _long(
    benchmark: Benchmark, wish: Wish, tokenizer: PreTrainedTokenizerBase | None
) -> dict[Benchmark, Sequence[Item]]:
    """A generated long-context task at each length, each a benchmark of its own."""
    if not wish.lengths or tokenizer is None:
        raise SpecError(f"{benchmark.name} needs lengths in tokens: name them with --length (in a study: 'lengths')")
    n = wish.limit or LONG_ITEMS
    return {
        replace(benchmark, name=f"{benchmark.name}-{length}"): ruler.items(
            benchmark.name, length, tokenizer, wish.seed, n, wish.template
        )
        for length in wish.lengths
    }


COUNTED = 32
"""Items of a benchmark that are encoded to estimate its tokens."""


def costs(asked: Asked, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a suite is to cost, a line each for its choices and for every benchmark that is sampled.

    Tokens of choices are estimated: what the choices of an item share counts once, and tokens a character are those of
    the first ``COUNTED`` items of each benchmark. Sampled ones are the most that there can be, prompts apart.
    """
    tokens, lines = 0.0, list[str]()
    for items in asked.choices.values():
        texts = [max(item.contexts, key=len) + "".join(item.continuations) for item in items]
        some = texts[:COUNTED]
        rate = sum(map(len, tokenizer(some)["input_ids"])) / max(1, sum(map(len, some))) if some else 0.0  # type: ignore[arg-type]
        tokens += rate * sum(map(len, texts))
    if asked.choices:
        count = sum(map(len, asked.choices.values()))
        lines.append(f"choices: {count:,} items, about {float(f'{tokens:.2g}'):,.0f} tokens through the model")
    for benchmark, some in asked.sampled.items():
        drawn = sampling_of(benchmark, asked.wish)
        each = "" if drawn.samples == 1 else f" ({len(some):,} items, {drawn.samples} samples each)"
        responses = len(some) * drawn.samples
        lines.append(
            f"{benchmark.name}: {responses:,} responses{each} of up to {drawn.max_new_tokens:,} tokens, sampled one "
            f"after another: at most {responses * drawn.max_new_tokens:,} tokens"
        )
    return lines


@dataclass(frozen=True)
class Answers:
    """What a checkpoint answered: sample rows of everything, and the rows behind those of choices."""

    rows: list[SampleRow]
    choices: list[ChoiceRow] = field(default_factory=list[ChoiceRow])


def answer(asked: Asked, load: Loader, keep: Path | None, progress: Progress) -> Answers:
    """Judge every item once.

    Args:
        asked: what to judge.
        load: gives model and tokenizer; called once, and not at all if all choices are judged already and none is
            sampled.
        keep: folder of this evaluation alone, where what is judged is kept; None keeps nothing.
        progress: started here for each part.

    Raises:
        CheckpointError, StageError, SandboxError: as loading, judging and verifying do.
    """
    loaded: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []

    def once() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    choices = judge(asked.choices, lambda: LogLikelihoods(*once()), keep, progress) if asked.choices else []
    rows = [sample_row(row) for row in choices]
    for benchmark, items in asked.sampled.items():
        drawn = sampling_of(benchmark, asked.wish)
        settings = SamplingSettings(
            max_new_tokens=drawn.max_new_tokens, temperature=drawn.temperature, top_p=drawn.top_p
        )
        model, tokenizer = once()
        progress.start(len(items) * drawn.samples, f"samples of {benchmark.name}")
        rows += score_items(
            TransformersSampler(model, tokenizer),
            tokenizer,
            items,
            drawn.samples,
            settings,
            derive_seed(asked.wish.seed, "samples"),
            asked.wish.template,
            False,
            progress,
            None if keep is None else keep / benchmark.name,
        )
    return Answers(rows, choices)


def metrics_of(asked: Asked, answers: Answers, excluded: frozenset[tuple[str, str]] = frozenset()) -> dict[str, Json]:
    """Scores of the answers: see the house plan, step ``evaluation``.

    Args:
        asked: what was judged.
        answers: the answers.
        excluded: (task, item) of items that stand in training data: they count in no score, and ``contaminated`` tells
            how many they are and what the score would be with them.
    """
    rows, contaminated = without(answers.rows, excluded)
    found = suite_scores(rows, asked.suite)
    if answers.choices:
        kept = [row for row in answers.choices if (row["task"], row["item_id"]) not in excluded]
        found["choices"] = other_measures(kept)
    lengths = asked.lengths_of()
    if lengths:
        found["lengths"] = by_length(found["tasks"], lengths, rows)
    for benchmark in asked.sampled:
        if benchmark.verifier == "instructions":
            mine = [row for row in rows if row["task"] == benchmark.name]
            found.setdefault("instructions", {})[benchmark.name] = instruction_scores(mine)
    if contaminated:
        found["contaminated"] = contaminated
    return found
