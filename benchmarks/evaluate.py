"""Choices judged by us and by lm-evaluation-harness on the same real rows, side by side: numbers and items a second.

``python benchmarks/evaluate.py --data ../shared/data [--items N] [--benchmarks hellaswag,mmlu] [--rounds N]``
makes a micro model (trained on the machine's own text, so that its likelihoods are those of a model) or takes
``--checkpoint``, and writes the record. Both sides run in this process with the same threads and a float32 model; the
harness's batch size is the best of those tried on a slice. Seconds are wall and CPU, tokenising included, start of
Python not; of several rounds, the sides in turn, the median counts. ``--softmax float64`` has the harness take its
softmax and sums in float64, as ours always does: in float32, its default, the sum of a hundred tokens is known to about
1e-5 of a nat, and mc2 with it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from prismlab.evaluate.judged import choice_row
from prismlab.evaluate.loglik import LogLikelihoods
from prismlab.evaluate.sets import SET_SUFFIXES, ChoiceItem, load_set
from prismlab.evaluate.suite_base import Benchmark
from prismlab.evaluate.suites import SUITES
from prismlab.evaluate.work import judge
from prismlab.run.step import Silent

NAMES = ("hellaswag", "winogrande", "arc-challenge", "mmlu", "truthfulqa-mc1", "truthfulqa-mc2")
BATCHES = (4, 8, 16)


def trained(width: int, layers: int, steps: int) -> tuple[Any, Any]:
    """A tiny llama that has read some of the machine's text: enough for likelihoods that differ between choices."""
    from prismlab.micro.models import build_model, tiny_config
    from prismlab.micro.text import web_documents
    from prismlab.model.tokens import build_byte_tokenizer

    model, tokenizer = build_model(tiny_config("llama", width, layers, 258), 0), build_byte_tokenizer()
    data = b"".join(text.encode() + b"\n\n" for text in web_documents())[: 2**22]
    bytes_read = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        starts = rng.integers(0, len(bytes_read) - 129, 16)
        rows = torch.stack([bytes_read[at : at + 128] for at in starts])
        loss = model(input_ids=rows, labels=rows).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval(), tokenizer


def clocked(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What ``work`` gives, its wall seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def task_of(benchmark: Benchmark, file: Path) -> dict[str, Any]:
    """A task of the harness on items as they are asked, so that both sides are given the same texts.

    That the texts are those of the harness's own tasks is what ``tests/evaluate/test_harness_equality.py`` shows.
    """
    config: dict[str, Any] = {
        "task": benchmark.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(file)}},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    if benchmark.name == "winogrande":
        config |= {"doc_to_choice": "{{contexts}}", "doc_to_text": lambda doc: doc["right"]}
        config |= {"doc_to_target": lambda doc: doc["ending"]}
    if benchmark.metric == "mc2":
        config |= {"process_results": _mc2, "metric_list": [{"metric": "acc"}], "doc_to_target": 0}
    return config


def _mc2(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    shares = np.exp(np.array([value for value, _ in results]))
    return {"acc": float(shares[doc["all_right"]].sum() / shares.sum())}


def harness(
    benchmark: Benchmark, items: Sequence[ChoiceItem], model: Any, tokenizer: Any, batch: int, softmax: str = "float32"
) -> Any:
    """The harness's samples by item, and its results."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [
        {
            "context": item.contexts[0],
            "contexts": list(item.contexts),
            "ending": item.continuations[0][1:],
            "choices": list(item.choices),
            "right": item.right[0],
            "all_right": list(item.right),
        }
        for item in items
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.environ["HF_DATASETS_CACHE"] = folder
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        held: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype=softmax)
        task = task_of(benchmark, file)
        found: Any = simple_evaluate(
            held, tasks=[task], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
        )
    samples = sorted(found["samples"][benchmark.name], key=lambda sample: sample["doc_id"])
    return samples, found["results"][benchmark.name]


def timed(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[Any, Any, dict[str, Any]]:
    """What both give, and their seconds, in turn."""
    mine, other = clocked(ours), clocked(theirs)
    clocks = [(mine[1:], other[1:])]
    clocks += [(clocked(ours)[1:], clocked(theirs)[1:]) for _ in range(rounds - 1)]
    wall, cpu, wall_h, cpu_h = (
        statistics.median(one[side][kind] for one in clocks) for side in (0, 1) for kind in (0, 1)
    )
    every = {"ours": [one for one, _ in clocks], "harness": [one for _, one in clocks]}
    found = {
        "ours": {"seconds": wall, "cpu_seconds": cpu},
        "harness": {"seconds": wall_h, "cpu_seconds": cpu_h},
        "times": wall_h / wall,
        "times_cpu": cpu_h / cpu,
        "rounds_wall_and_cpu": every,
    }
    return mine[0], other[0], found


def compared(
    benchmark: Benchmark,
    items: Sequence[ChoiceItem],
    model: Any,
    tokenizer: Any,
    batch: int,
    rounds: int,
    softmax: str,
) -> dict[str, Any]:
    """One benchmark by both."""
    rows, (samples, results), speed = timed(
        lambda: judge({benchmark: items}, lambda: LogLikelihoods(model, tokenizer), None, Silent()),
        lambda: harness(benchmark, items, model, tokenizer, batch, softmax),
        rounds,
    )
    speed["harness"]["batch"] = batch
    for side in ("ours", "harness"):
        speed[side]["items_per_second"] = len(items) / speed[side]["seconds"]
    theirs = [[value for value, _ in sample["filtered_resps"]] for sample in samples]
    relative = max(
        abs(a - b) / abs(b)
        for row, some in zip(rows, theirs, strict=True)
        for a, b in zip(row["loglik"], some, strict=True)
    )
    same = [
        choice_row(benchmark, item, [(value, 1) for value in some]) for item, some in zip(items, theirs, strict=True)
    ]
    measures = ("mc2",) if benchmark.metric == "mc2" else ("acc", "acc_norm")
    scores: dict[str, Any] = {}
    for name in measures:
        mine = sum(row[name] for row in rows) / len(rows)
        other = results["acc,none" if name == "mc2" else f"{name},none"]
        differ = sum(a[name] != b[name] for a, b in zip(rows, same, strict=True)) if name != "mc2" else None
        # Of mc2 the harness has nan where every answer's probability is below the smallest number.
        gap = [
            abs(a["mc2"] - s["acc"])
            for a, s in zip(rows, samples, strict=True)
            if name == "mc2" and s["acc"] == s["acc"]
        ]
        scores[name] = {
            "ours": mine,
            "harness": other if other == other else None,
            "difference": mine - other if other == other else None,
            "items_that_differ": differ,
            **(
                {"largest_difference_of_an_item": max(gap), "items_without_number": len(rows) - len(gap)} if gap else {}
            ),
        }
    return {"items": len(items), "scores": scores, "loglik_largest_relative_difference": relative, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int, default=0, help="every so many items that this many are left; 0 for all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--softmax", choices=("float32", "float64"), default="float32", help="the harness's")
    parser.add_argument("--benchmarks", default=",".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluate.json")
    given = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    if given.checkpoint is not None:
        from prismlab.model.checkpoint import load_model, load_tokenizer

        model, tokenizer = load_model(given.checkpoint), load_tokenizer(given.checkpoint)
    else:
        model, tokenizer = trained(given.width, given.layers, given.steps)
    files = [file for file in sorted(given.data.rglob("*")) if file.name.lower().endswith(SET_SUFFIXES)]
    chosen = SUITES["retention"].named(tuple(given.benchmarks.split(",")))
    sets = {one: load_set(one, files, "retention", 0) for one in chosen}
    if given.items:
        sets = {one: items[:: max(1, len(items) // given.items)][: given.items] for one, items in sets.items()}
    first, some = next(iter(sets.items()))
    slice_ = some[:: max(1, len(some) // 150)][:150]
    tried = {
        batch: clocked(lambda batch=batch: harness(first, slice_, model, tokenizer, batch))[2] for batch in BATCHES
    }
    batch = min(tried, key=lambda one: tried[one])
    found: dict[str, Any] = {}
    for one, items in sets.items():
        found[one.name] = compared(one, items, model, tokenizer, batch, given.rounds, given.softmax)
        told = found[one.name]
        print(one.name, json.dumps(told["scores"]), f"{told['speed']['times']:.2f} times", flush=True)
    import lm_eval
    import transformers

    parameters = sum(one.numel() for one in model.parameters())
    size = {"width": model.config.hidden_size, "layers": model.config.num_hidden_layers, "parameters": parameters}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "lm_eval": lm_eval.__version__}
    record = {
        "what": "choices by log-likelihood: ours and lm-evaluation-harness's, same rows, same process",
        "model": {"trained_here": given.checkpoint is None, "steps": given.steps, **size},
        "harness_softmax": given.softmax,
        "batch_cpu_seconds": tried,
        "benchmarks": found,
        "machine": {"threads": given.threads, "cpus": os.cpu_count(), "load": [load, os.getloadavg()[0]]},
        "versions": {"python": platform.python_version(), **versions},
        "command": "python benchmarks/evaluate.py " + " ".join(sys.argv[1:]),
    }
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
