"""The training loop with data, log and monitors, beside a bare torch loop on the same model: tokens a second.

    python benchmarks/train_loop.py --out benchmarks/results/train_loop.json

Both train the same model on the same rows, in turns of some steps each in one process, so that whatever else the
machine does falls on both. The bare loop has its tokens in memory and does what no loop can leave out: forward,
cross-entropy, backward, clipping, fused AdamW, gradients to null. Ours reads a corpus from disk (boundaries ignored,
so that both compute the same), reports losses by domain, writes metrics.jsonl and TensorBoard, measures held-out text
every 50 steps, and has saves on. Told are medians over turns of the ratio, by the clock and by CPU seconds, which a
loaded machine leaves alone; and the time from nothing to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismlab.data.corpus import write_corpus
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.study import Study
from prismlab.train import stage

ROWS, LENGTH, WIDTH, LAYERS = 16, 128, 128, 4
"""Those of the demo."""


def prepare(root: Path, steps: int, every: int) -> dict[str, Any]:
    tokenizer = build_byte_tokenizer()
    save_checkpoint(
        build_model(tiny_config("llama", WIDTH, LAYERS, len(tokenizer)), 0), tokenizer, root / "start/model"
    )
    (root / "corpus").mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (steps * ROWS, LENGTH))
    write_corpus(
        root / "corpus",
        row_source=np.arange(steps * ROWS) % 2,
        blocks=[(0, [rows[0::2]]), (1, [rows[1::2]])],
        sources=[{"name": name, "domain": name} for name in ("web", "math")],
        seq_len=LENGTH,
        vocab=len(tokenizer),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    (root / "text.txt").write_text("\n\n".join(f"Document {n} is one of many. " * 8 for n in range(60)))
    given: dict[str, Any] = {
        "stage": "midtrain",
        "from": "b",
        "mixture": "m",
        "steps": steps,
        "rows": ROWS,
        "seq_len": LENGTH,
        "boundaries": "ignore",
        "optimizer": {"lr": 1e-3, "schedule": "constant", "eps": 1e-8},
        "monitor": {"heldout": ["text"], "every": every, "documents": 8, "tokens": LENGTH},
    }
    study = Study.model_validate(
        {"name": "x", "bases": {"b": {"arch": "llama"}}, "sources": {"text": {"files": ["t.txt"], "domain": "web"}}}
    )
    return {
        "stage": "midtrain",
        "spec": TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True),
        "seed": 1,
        "heldout": 0.5,
        "template": "think",
        "micro": study.micro.model_dump(mode="json"),
        "sources": {"text": study.sources["text"].model_dump(mode="json")},
        "files": {"text": [str(root / "text.txt")]},
        "scratch": str(root / "scratch"),
    }


def bare(root: Path, spec: dict[str, Any]) -> Iterator[float]:
    """A step of the bare loop a time; its loss."""
    model: Any = load_model(root / "start/model")
    model.train()
    given = spec["optimizer"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=given["lr"], betas=tuple(given["betas"]), eps=1e-8, fused=True)
    shape = (int(spec["steps"]), ROWS, LENGTH)
    tokens = torch.as_tensor(np.random.default_rng(0).integers(0, 256, (shape[0] * ROWS, LENGTH))).view(shape)
    for batch in tokens:
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def ours(root: Path, config: dict[str, Any]) -> Iterator[float]:
    """A step of the stage a time, everything around it included; its loss."""
    inputs = {
        key: Artifact(kind=key, fingerprint="0" * 16, path=root / key, record={"config": {}, "metrics": {}})
        for key in ("start", "corpus")
    }
    (root / "out").mkdir()
    run = stage._Run(config, inputs, root / "out", Silent())  # the stage's own parts, so that a turn can end in it
    steps = stage.train(run.parallel.model, run.rows, run.spec, run.world, run.after_step, run.parallel, run.begin)
    for report in steps:
        run.take(report)
        yield report.loss
    run.close(whole=True)


def turns(loops: dict[str, Iterator[float]], count: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the CPU of each loop's turns, the order changing from turn to turn."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in range(count):
        for name in sorted(loops, reverse=bool(turn % 2)):
            clock, work = time.perf_counter(), time.process_time()
            for _ in range(steps):
                next(loops[name])
            spent[name].append((time.perf_counter() - clock, time.process_time() - work))
    return spent


def first_step(root: Path) -> dict[str, float]:
    """Seconds from starting Python to the end of the first step of a run by the stage: by the clock, and of the CPU."""
    code = (
        "import json, sys, time; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
        "import train_loop; from pathlib import Path\n"
        "root = Path(sys.argv[2]); config = json.loads((root / 'config.json').read_text())\n"
        "next(train_loop.ours(root, config)); print(time.process_time(), flush=True); import os; os._exit(0)\n"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(root)], capture_output=True, text=True, check=True
    )
    return {"seconds": time.perf_counter() - began, "cpu_seconds": float(done.stdout.split()[-1])}


def measure(root: Path, count: int, steps: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The comparison, and the start."""
    torch.set_num_threads(threads)
    warm = 5
    config = prepare(root, count * steps + warm, every=50)
    loops = {"bare": bare(root, config["spec"]), "ours": ours(root, config)}
    for loop in loops.values():
        for _ in range(warm):
            next(loop)
    spent = turns(loops, count, steps)
    tokens = steps * ROWS * LENGTH
    found: dict[str, Any] = {"turns": count, "steps_a_turn": steps, "threads": threads}
    for at, kind in enumerate(("clock", "cpu")):
        ratios = [b[at] / o[at] for b, o in zip(spent["bare"], spent["ours"], strict=True)]
        rates = {name: tokens / statistics.median(one[at] for one in spent[name]) for name in loops}
        whole = sum(one[at] for one in spent["bare"]) / sum(one[at] for one in spent["ours"])
        found[kind] = {"ratio_median": statistics.median(ratios), "ratio_of_sums": whole, "tokens_per_second": rates}
        middle = found[kind]["ratio_median"]
        say(f"{kind}: ours {rates['ours']:,.0f}, bare {rates['bare']:,.0f} tokens/s; ratio {middle:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = Path(folder) / "start-only"
        started.mkdir()
        (started / "config.json").write_text(json.dumps(prepare(started, 10, 50)))
        first = first_step(started)
        print(f"start to first step: {first['seconds']:.1f} s, of the CPU {first['cpu_seconds']:.1f} s")
        whole = Path(folder) / "loops"
        whole.mkdir()
        found = measure(whole, options.turns, options.steps, options.threads, print)
    if options.out:
        about = {
            "date": date.today().isoformat(),
            "device": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "torch": torch.__version__,
            "load_average": round(os.getloadavg()[0], 1),
        }
        options.out.write_text(json.dumps(about | {"first_step": first} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
