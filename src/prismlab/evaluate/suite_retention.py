"""The suite ``retention``: benchmarks of choices, from local files."""

from __future__ import annotations

from prismlab.evaluate.suite_base import NORMALISATIONS, Benchmark, Hub, Sampling, Suite


def _choices(name: str, title: str, hub: Hub, items: int, licence: str, **more: object) -> Benchmark:
    given: dict[str, object] = {"domain": "general", "metric": "acc", "source": hub.id, "hub": hub, **more}
    given = {"normalisation": NORMALISATIONS.get(str(given["metric"]), "none"), **given}
    return Benchmark(name=name, title=title, kind="choices", items=items, licence=licence, **given)  # type: ignore[arg-type]


RETENTION = Suite(
    name="retention",
    title="what a base could do and the new checkpoint still can, offline",
    benchmarks=(
        _choices(
            "hellaswag",
            "HellaSwag, validation",
            Hub(id="Rowan/hellaswag", split="validation"),
            10_042,
            "MIT",
            metric="acc_norm",
            files=("hellaswag", "hellaswag_validation"),
        ),
        _choices(
            "winogrande",
            "WinoGrande XL, validation",
            Hub(id="allenai/winogrande", config="winogrande_xl", split="validation"),
            1_267,
            "CC-BY",
            files=("winogrande", "winogrande_validation"),
        ),
        _choices(
            "arc-challenge",
            "ARC-Challenge, test",
            Hub(id="allenai/ai2_arc", config="ARC-Challenge", split="test"),
            1_172,
            "CC-BY-SA-4.0",
            metric="acc_norm",
            files=("arc-challenge", "arc_challenge_test"),
            examples=Hub(id="allenai/ai2_arc", config="ARC-Challenge", split="train"),
            example_files=("arc-challenge-examples", "arc_challenge_train"),
        ),
        _choices(
            "arc-easy",
            "ARC-Easy, test",
            Hub(id="allenai/ai2_arc", config="ARC-Easy", split="test"),
            2_376,
            "CC-BY-SA-4.0",
            metric="acc_norm",
            files=("arc-easy", "arc_easy_test"),
            examples=Hub(id="allenai/ai2_arc", config="ARC-Easy", split="train"),
            example_files=("arc-easy-examples", "arc_easy_train"),
        ),
        _choices(
            "mmlu",
            "MMLU, test, 57 subjects",
            Hub(id="cais/mmlu", config="all", split="test"),
            14_042,
            "MIT",
            files=("mmlu", "mmlu_test"),
            examples=Hub(id="cais/mmlu", config="all", split="dev"),
            example_files=("mmlu-examples", "mmlu_dev"),
            note="mean over items; worked examples are the subject's own, in the order of the dev split",
        ),
        _choices(
            "truthfulqa-mc1",
            "TruthfulQA, single true answer",
            Hub(id="truthfulqa/truthful_qa", config="multiple_choice", split="validation"),
            817,
            "Apache-2.0",
            metric="acc",
            files=("truthfulqa",),
            note="from the release's CSV the false answers are all of them, where the hub's mc1 lists some",
        ),
        _choices(
            "truthfulqa-mc2",
            "TruthfulQA, share of probability on true answers",
            Hub(id="truthfulqa/truthful_qa", config="multiple_choice", split="validation"),
            817,
            "Apache-2.0",
            metric="mc2",
            normalisation="probabilities of all answers sum to 1",
            files=("truthfulqa",),
        ),
        _choices(
            "boolq",
            "BoolQ, validation",
            Hub(id="google/boolq", split="validation"),
            3_270,
            "CC-BY-SA-3.0",
            files=("boolq", "boolq_validation"),
        ),
        _choices(
            "piqa",
            "PIQA, validation",
            Hub(id="baber/piqa", split="validation"),
            1_838,
            "AFL-3.0",
            metric="acc_norm",
            files=("piqa", "piqa_validation"),
        ),
        _choices(
            "commonsenseqa",
            "CommonsenseQA, validation",
            Hub(id="tau/commonsense_qa", split="validation"),
            1_221,
            "MIT",
            files=("commonsenseqa", "commonsense_qa_validation"),
        ),
        _choices(
            "openbookqa",
            "OpenBookQA, test",
            Hub(id="allenai/openbookqa", config="main", split="test"),
            500,
            "Apache-2.0",
            metric="acc_norm",
            files=("openbookqa", "openbookqa_test"),
        ),
        Benchmark(
            name="ifeval",
            title="IFEval, prompts that a rule can check",
            kind="sampled",
            domain="general",
            items=541,
            metric="prompt_strict",
            licence="Apache-2.0",
            source="google/IFEval",
            hub=Hub(id="google/IFEval", split="train"),
            files=("ifeval", "ifeval_prompts"),
            verifier="instructions",
            sampling=Sampling(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=1280),
            note="strict, by prompt (by instruction beside it); prompts that ask for a language are left out, counted",
        ),
    ),
    note="prompts and scores of choices as in lm-evaluation-harness 0.4.13; no worked examples unless --shots asks",
)
