"""Every suite by its name: what each benchmark asks, how it is scored, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prismlab.errors import SpecError, shown
from prismlab.evaluate.suite_base import HARNESS, NORMALISATIONS, Benchmark, Hub, Own, Sampling, Suite
from prismlab.evaluate.suite_retention import RETENTION

_MATH = Sampling(samples=64, temperature=0.6, top_p=0.95, max_new_tokens=32_768)
_RELEASES = ("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 7)))
"""Files of LiveCodeBench, a release each; its repository loads by a program of its own, which is not run."""
_CODE = Sampling(samples=3, temperature=0.7, top_p=1.0, max_new_tokens=32_768)


def _sampled(
    name: str, title: str, domain: str, hub: Hub, items: int | None, licence: str, **more: object
) -> Benchmark:
    sampling = _CODE if domain == "code" else _MATH
    given: dict[str, object] = {"metric": f"avg@{sampling.samples}", "sampling": sampling, "source": hub.id, **more}
    given = {"files": (name,), **given}
    return Benchmark(
        name=name,
        title=title,
        kind="sampled",
        domain=domain,
        items=items,
        licence=licence,
        hub=hub,
        **given,  # type: ignore[arg-type]
    )


REASONING = Suite(
    name="reasoning",
    title="the reference study's code, math and science",
    benchmarks=(
        _sampled(
            "livecodebench",
            "LiveCodeBench, code generation",
            "code",
            Hub(id="livecodebench/code_generation_lite", split="test", files=_RELEASES),
            None,
            "CC (as the set states)",
            verifier="tests",
            note="all six releases, the study does not say which; runs programs, so it needs a sandbox",
        ),
        _sampled(
            "codeforces",
            "Codeforces",
            "code",
            Hub(id="open-r1/codeforces", config="verifiable", split="test"),
            None,
            "CC-BY-4.0",
            verifier="tests",
            note="problems that need a checker are left out; which the study took is not said; needs a sandbox",
        ),
        _sampled(
            "aime24",
            "AIME 2024",
            "math",
            Hub(id="HuggingFaceH4/aime_2024", split="train"),
            30,
            "the contest's; problems by MAA",
            verifier="number",
        ),
        _sampled(
            "aime25",
            "AIME 2025",
            "math",
            Hub(id="math-ai/aime25", split="test"),
            30,
            "the contest's; problems by MAA",
            verifier="number",
        ),
        _sampled(
            "aime26",
            "AIME 2026",
            "math",
            Hub(id="MathArena/aime_2026", split="train"),
            30,
            "the contest's; problems by MAA",
            verifier="number",
            note="shown, not in AVG: the study's math average has AIME24, AIME25 and MATH500",
        ),
        _sampled(
            "math500",
            "MATH500",
            "math",
            Hub(id="HuggingFaceH4/MATH-500", split="test"),
            500,
            "MIT",
            verifier="math",
            note="answers are formulas: compared by value (math)",
        ),
        _sampled(
            "gpqa-diamond",
            "GPQA-Diamond",
            "science",
            Hub(id="Idavidrein/gpqa", config="gpqa_diamond", split="train"),
            198,
            "CC-BY-4.0, gated: not to be shown in public",
            verifier="choice",
            note="sampling as for math (ours: the study states it for math and code)",
        ),
    ),
    average={
        "code": ("livecodebench", "codeforces"),
        "math": ("aime24", "aime25", "math500"),
        "science": ("gpqa-diamond",),
    },
    note="AVG is the mean of code, math and science; all parts must be there",
)


def _harness(
    name: str, title: str, task: str, items: int | None, shots: int, metric: str, licence: str, **more: str
) -> Benchmark:
    given = {"source": f"{HARNESS}: {task}", **more}
    return Benchmark(
        name=name,
        title=title,
        kind="harness",
        domain="general",
        items=items,
        shots=shots,
        metric=metric,
        licence=licence,
        task=task,
        **given,  # type: ignore[arg-type]
    )


V1 = Suite(
    name="leaderboard-v1",
    title="Open LLM Leaderboard, first version",
    benchmarks=(
        _harness("arc", "ARC-Challenge", "arc_challenge", 1_172, 25, "acc_norm", "CC-BY-SA-4.0"),
        _harness("hellaswag", "HellaSwag", "hellaswag", 10_042, 10, "acc_norm", "MIT"),
        _harness("mmlu", "MMLU", "mmlu", 14_042, 5, "acc", "MIT", note="mean over subjects, as the site had it"),
        _harness("truthfulqa", "TruthfulQA mc2", "truthfulqa_mc2", 817, 0, "acc", "Apache-2.0", note="mc2"),
        _harness("winogrande", "WinoGrande", "winogrande", 1_267, 5, "acc", "CC-BY"),
        _harness("gsm8k", "GSM8K", "gsm8k", 1_319, 5, "exact_match,strict-match", "MIT"),
    ),
)

V2_SOURCE = "huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization"
_V2 = f"0 below chance, else 100 (score - chance)/(1 - chance); subtasks first, then their mean ({V2_SOURCE})"

V2 = Suite(
    name="leaderboard-v2",
    title="Open LLM Leaderboard, second version",
    benchmarks=(
        _harness(
            "ifeval",
            "IFEval",
            "leaderboard_ifeval",
            541,
            0,
            "mean of inst_level_strict_acc and prompt_level_strict_acc",
            "Apache-2.0",
            normalisation=_V2 + "; chance 0",
        ),
        _harness("bbh", "BIG-Bench Hard", "leaderboard_bbh", 5_761, 3, "acc_norm", "MIT", normalisation=_V2),
        _harness("math", "MATH, level 5", "leaderboard_math_hard", 1_324, 4, "exact_match", "MIT", normalisation=_V2),
        _harness("gpqa", "GPQA", "leaderboard_gpqa", 1_192, 0, "acc_norm", "CC-BY-4.0, gated", normalisation=_V2),
        _harness("musr", "MuSR", "leaderboard_musr", 756, 0, "acc_norm", "MIT", normalisation=_V2),
        _harness("mmlu-pro", "MMLU-Pro", "leaderboard_mmlu_pro", 12_032, 5, "acc", "MIT", normalisation=_V2),
    ),
)

RULER = Suite(
    name="ruler",
    title="RULER, 13 tasks, length by length",
    benchmarks=(
        *(
            _harness(name, title, task, 500, 0, "string match", "Apache-2.0")
            for name, title, task in (
                ("niah-single-1", "needle: word to number, repeated noise", "niah_single_1"),
                ("niah-single-2", "needle: word to number, essays", "niah_single_2"),
                ("niah-single-3", "needle: word to uuid, essays", "niah_single_3"),
                ("niah-multikey-1", "several keys", "niah_multikey_1"),
                ("niah-multikey-2", "nothing but keys", "niah_multikey_2"),
                ("niah-multikey-3", "nothing but uuid keys", "niah_multikey_3"),
                ("niah-multivalue", "several values of a key", "niah_multivalue"),
                ("niah-multiquery", "several keys asked", "niah_multiquery"),
                ("vt", "variable tracking", "ruler_vt"),
                ("cwe", "common words", "ruler_cwe"),
                ("fwe", "frequent words", "ruler_fwe"),
                ("qa-squad", "question among paragraphs, SQuAD", "ruler_qa_squad"),
                ("qa-hotpot", "question among paragraphs, HotpotQA", "ruler_qa_hotpot"),
            )
        ),
    ),
    note="items depend on tokenizer and length: 'prism eval fetch ruler CHECKPOINT --length N --to DIR' makes them",
)

LONG = Suite(
    name="long",
    title="retrieval, tracking and counting over long contexts, generated here",
    benchmarks=tuple(
        Benchmark(
            name=name,
            title=title,
            kind="long",
            domain="long-context",
            items=None,
            metric="acc",
            licence="generated",
            source="prismlab.evaluate.ruler",
            verifier="contains",
            sampling=Sampling(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=32),
        )
        for name, title in (
            ("needle", "one number in other text"),
            ("keys", "one value among many keys"),
            ("tracking", "which variables have a value, through assignments"),
            ("common-words", "the words that occur most often"),
        )
    ),
    note="in the manner of RULER; not comparable with published RULER",
)

_MICRO_SAMPLING = Sampling(samples=1, temperature=0.6, top_p=0.95, max_new_tokens=56)
MICRO = Suite(
    name="micro",
    title="generated tasks of the micro world",
    benchmarks=tuple(
        Benchmark(
            name=domain,
            title=title,
            kind="micro",
            domain=domain,
            items=None,
            metric="avg@1",
            licence="generated",
            source="prismlab.micro.world",
            verifier=verifier,
            sampling=_MICRO_SAMPLING,
        )
        for domain, title, verifier in (
            ("math", "sums", "number"),
            ("code", "programs k*x+m", "program"),
            ("science", "chemical elements", "choice"),
        )
    ),
)

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (RETENTION, REASONING, V1, V2, RULER, LONG, MICRO)}
"""Every suite by its name."""


OWN, TASKS = "own", "harness"
"""Suites that the user fills: local files, and tasks of lm-evaluation-harness by name."""


def suite_named(name: str) -> Suite:
    """The suite of this name.

    Raises:
        SpecError: there is none.
    """
    if name in (OWN, TASKS):
        what = "its benchmarks in a suite file: --suite FILE.yaml" if name == OWN else "its tasks: --tasks NAME"
        raise SpecError(f"suite {name!r} is what you put into it; name {what}")
    if name not in SUITES:
        raise SpecError(
            f"suite {shown(name, 40)!r} is not known; there are {', '.join(SUITES)}, {TASKS} (any task of {HARNESS}) "
            "and suite files (NAME.yaml)"
        )
    return SUITES[name]


def suite_of(spec: Mapping[str, Any]) -> Suite:
    """The suite that a configuration names or describes.

    Args:
        spec: JSON of ``study.suites.SuiteSpec``; of ``own`` and ``harness`` it says what is in it.

    Raises:
        SpecError: there is none of this name.
    """
    if spec["name"] == OWN:
        return Suite(name=OWN, title="local files", benchmarks=tuple(_own(n, one) for n, one in spec["own"].items()))
    if spec["name"] == TASKS:
        metrics = spec.get("metrics") or {}
        tasks = tuple(
            _harness(name, name, name, None, 0, metrics.get(name, ""), "see the task", source=f"{HARNESS}: {name}")
            for name in spec["benchmarks"]
        )
        return Suite(name=TASKS, title=f"tasks of {HARNESS}", benchmarks=tasks)
    return suite_named(str(spec["name"]))


def _own(name: str, spec: Mapping[str, Any]) -> Benchmark:
    """A user's file as a benchmark: with a verifier sampled, else by the likelihood of its choices."""
    choices = spec["choices"]
    own = Own(
        question=spec["question"],
        answer=spec["answer"],
        choices=tuple(choices) if isinstance(choices, list) else choices,
        prompt=spec["prompt"],
    )
    sampled = spec["verifier"] is not None
    samples = int(spec["samples"])
    drawn = Sampling(
        samples=samples,
        temperature=float(spec["temperature"]),
        top_p=float(spec["top_p"]),
        max_new_tokens=int(spec["max_new_tokens"]),
    )
    return Benchmark(
        name=name,
        title=name,
        kind="sampled" if sampled else "choices",
        domain=spec["domain"],
        items=None,
        metric=f"avg@{samples}" if sampled else spec["metric"],
        licence=spec["licence"],
        source=f"file {spec['file']}",
        shots=int(spec["shots"]),
        normalisation=NORMALISATIONS.get(spec["metric"], "none") if not sampled else "none",
        files=(spec["file"],),
        example_files=() if spec["examples"] is None else (spec["examples"],),
        verifier=spec["verifier"],
        sampling=drawn if sampled else None,
        own=own,
    )
