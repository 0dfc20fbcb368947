"""Our numbers beside lm-evaluation-harness's own: the same rows, its prompts from its templates, ours from our code."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismlab.evaluate.judged import choice_row
from prismlab.evaluate.loglik import LogLikelihoods
from prismlab.evaluate.sets import PRIMER, load_set, set_rows
from prismlab.evaluate.suites import SUITES
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.tokens import build_byte_tokenizer

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real benchmark files (../shared/data) are not here")

LETTERED = "{{question.strip()}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\nAnswer:"
SUBJECT = "The following are multiple choice questions (with answers) about {{subject.replace('_', ' ')}}.\n\n"
FIVE = "".join(f"\n{letter}. {{{{choices['text'][{at}]}}}}" for at, letter in enumerate("ABCDE"))
PRIMED = "\n\n".join(f"Q: {asked}\nA: {answer}" for asked, answer in PRIMER) + "\n\nQ: {{Question}}\nA:"


def options(doc: Mapping[str, Any], single: bool) -> tuple[list[str], int]:
    """Choices of a row of TruthfulQA's CSV, the true ones first, and how many of them are true."""
    false, true = (
        [x.strip() for x in doc[f"{kind} Answers"].split(";") if x.strip()] for kind in ("Incorrect", "Correct")
    )
    true = [doc["Best Answer"].strip()] if single else true
    return [*true, *false], len(true)


def mc2(doc: Mapping[str, Any], results: Any) -> dict[str, float]:
    """As the harness's own ``process_results_mc2``."""
    probabilities = np.exp(np.array([value for value, _ in results]))
    return {"acc": float(probabilities[: options(doc, False)[1]].sum() / probabilities.sum())}


def fill(doc: Mapping[str, Any]) -> list[str]:
    """Sentences of WinoGrande up to the gap, each with a filling."""
    before = doc["sentence"][: doc["sentence"].index("_")]
    return [before + doc["option1"], before + doc["option2"]]


TASKS: dict[str, dict[str, Any]] = {
    "hellaswag": {"doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"},
    "winogrande": {
        "doc_to_text": lambda doc: {"1": 0, "2": 1}[doc["answer"]],
        "doc_to_choice": fill,
        "doc_to_target": lambda doc: doc["sentence"][doc["sentence"].index("_") + 1 :].strip(),
    },
    "arc-challenge": {"doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"},
    "mmlu": {
        "description": SUBJECT,
        "doc_to_text": LETTERED,
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
    },
    "truthfulqa-mc1": {
        "doc_to_text": PRIMED,
        "doc_to_choice": lambda doc: options(doc, True)[0],
        "doc_to_target": 0,
    },
    "truthfulqa-mc2": {
        "doc_to_text": PRIMED,
        "doc_to_choice": lambda doc: options(doc, False)[0],
        "doc_to_target": 0,
        "process_results": mc2,
        "metric_list": [{"metric": "acc"}],
    },
    "boolq": {
        "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "{{1 if answer else 0}}",
    },
    "piqa": {
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "doc_to_target": "{{label}}",
    },
    "commonsenseqa": {
        "doc_to_text": "Question: {{question.strip()}}" + FIVE + "\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D", "E"],
        "doc_to_target": "{{['A', 'B', 'C', 'D', 'E'].index(answerKey)}}",
    },
    "openbookqa": {
        "doc_to_text": "{{query[10:-8]}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
    },
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bpe_tokenizer(texts: list[str]) -> Any:
    """A BPE tokenizer with merges, white space kept in tokens and a start token in front, as LLaMA's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def harness(tmp_path: Path, rows: list[dict[str, Any]], task: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """The harness's samples and results of a task on these rows."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}],
        **task,
    }
    held: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    manager = TaskManager(include_defaults=False)
    found: Any = simple_evaluate(held, tasks=[config], bootstrap_iters=0, task_manager=manager)
    return sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"]), found["results"]["ours"]


@needs_data
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "bytes") for name in TASKS),
        # Merges over the border of context and choice, and a start token: one form of prompt in each run.
        ("winogrande", "bpe"),
        *(
            pytest.param(name, "bpe", marks=pytest.mark.slow)
            for name in ("hellaswag", "mmlu", "truthfulqa-mc2", "boolq")
        ),
    ],
)
def test_the_same_numbers_on_the_real_files(tmp_path: Path, name: str, kind: str) -> None:
    files = [file for part in ("retention", "science") for file in sorted((SHARED / part).iterdir())]
    benchmark = next(one for one in SUITES["retention"].benchmarks if one.name == name)
    items = load_set(benchmark, files, "retention", 0)
    places = range(0, len(items), max(1, len(items) // 10))
    stem = next(file for file in files if file.name.partition(".")[0] in benchmark.files)
    rows = [dict(row.values) for row in set_rows(stem)]
    tokenizer = build_byte_tokenizer() if kind == "bytes" else bpe_tokenizer([str(row) for row in rows[:300]])
    # Fewer positions than some prompts have tokens: both sides must cut alike. In float64, where a difference is one of
    # what was computed and not of how it was rounded; float32 has a test of its own.
    model = build_model(tiny_config("llama", 32, 2, len(tokenizer), 700), 5).eval().double()
    chosen = [items[at] for at in places]
    ours = LogLikelihoods(model, tokenizer).of([item.pairs for item in chosen])
    judged = [choice_row(benchmark, item, values) for item, values in zip(chosen, ours, strict=True)]
    samples, results = harness(tmp_path, [rows[at] for at in places], TASKS[name], model, tokenizer)
    for row, sample in zip(judged, samples, strict=True):
        theirs = [value for value, _ in sample["filtered_resps"]]
        assert row["loglik"] == pytest.approx(theirs, rel=1e-9), row["question"]
        for measure in ("acc", "acc_norm", "acc_bytes"):
            if measure in sample and name != "truthfulqa-mc2":
                assert row[measure] == sample[measure], (measure, row["question"])
    if name == "truthfulqa-mc2":
        # The harness takes exponents as they are: the probability of a long answer may be 0 on its side.
        pairs = [(row["mc2"], sample["acc"]) for row, sample in zip(judged, samples, strict=True)]
        known = [(a, b) for a, b in pairs if np.isfinite(b)]
        assert len(known) > len(pairs) / 2
        assert [a for a, _ in known] == pytest.approx([b for _, b in known], abs=1e-9)
    else:
        for measure in ("acc", "acc_norm"):
            mean = sum(row[measure] for row in judged) / len(judged)
            assert mean == pytest.approx(results[f"{measure},none"], abs=1e-12)


@needs_data
def test_float32_is_within_a_ten_thousandth(tmp_path: Path) -> None:
    file = SHARED / "retention" / "hellaswag_validation.jsonl.gz"
    benchmark = next(one for one in SUITES["retention"].benchmarks if one.name == "hellaswag")
    items = load_set(benchmark, [file], "retention", 0)[::900]
    model, tokenizer = build_model(tiny_config("llama", 32, 2, 258), 5).eval(), build_byte_tokenizer()
    ours = LogLikelihoods(model, tokenizer).of([item.pairs for item in items])
    judged = [choice_row(benchmark, item, values) for item, values in zip(items, ours, strict=True)]
    rows = [dict(row.values) for row in set_rows(file)][::900]
    samples, results = harness(tmp_path, rows, TASKS["hellaswag"], model, tokenizer)
    for row, sample in zip(judged, samples, strict=True):
        assert row["loglik"] == pytest.approx([value for value, _ in sample["filtered_resps"]], rel=1e-4)
    for measure in ("acc", "acc_norm"):
        assert sum(row[measure] for row in judged) / len(judged) == pytest.approx(results[f"{measure},none"], abs=1e-12)


@needs_data
def test_worked_examples_are_the_harness_s(tmp_path: Path) -> None:
    files = sorted((SHARED / "retention").iterdir())
    benchmark = next(one for one in SUITES["retention"].benchmarks if one.name == "mmlu")
    items = [item for item in load_set(benchmark, files, "retention", 3) if item.group == "anatomy"][:6]
    rows, dev = (
        [dict(row.values) for row in set_rows(SHARED / "retention" / f"mmlu_{part}.jsonl.gz")]
        for part in ("test", "dev")
    )
    pool = tmp_path / "dev.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in dev if row["subject"] == "anatomy"), encoding="utf-8")
    mine = [row for row in rows if row["subject"] == "anatomy"][:6]
    file = tmp_path / "rows.jsonl"
    more = {
        "dataset_kwargs": {"data_files": {"validation": str(file), "dev": str(pool)}},
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 3,
        "description": "The following are multiple choice questions (with answers) about anatomy.\n\n",
    }
    model = build_model(tiny_config("llama", 32, 2, 258), 5).eval()
    tokenizer = build_byte_tokenizer()
    samples, _ = harness(tmp_path, mine, {**TASKS["mmlu"], **more}, model, tokenizer)
    for item, sample in zip(items, samples, strict=True):
        arguments = sample["arguments"]
        told = [tuple(one) for one in (arguments.values() if isinstance(arguments, dict) else arguments)]
        told = [tuple(one.values()) if isinstance(one, dict) else one for one in told]
        assert item.pairs == [(a, b) for a, b, *_ in told]


def test_no_request_leaves_the_machine() -> None:
    assert os.environ["HF_DATASETS_OFFLINE"] == "1"
