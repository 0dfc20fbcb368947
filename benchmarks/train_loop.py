"""The training loop with data, log and monitors, beside a bare torch loop on the same model: tokens a second.

    python benchmarks/train_loop.py --out benchmarks/results/train_loop.json        (about 3 minutes on a quiet core)

Both train the same model on the same rows, a step each in turn (who begins changes), so that whatever else the machine
does falls on both. The bare loop has its tokens in memory and does what no loop can leave out: forward, cross-entropy,
backward, clipping, fused AdamW with decay on matrices alone, gradients to null; where documents are kept apart also
mask, positions and labels from the documents' numbers. Ours reads a corpus from disk, reports losses by domain, writes
metrics.jsonl and TensorBoard, measures held-out text once a block, and has saves on.

Told is the median over blocks of some steps of bare over ours, by the clock and by seconds of the CPU, which a loaded
machine leaves alone: once with rows as one text, once with documents kept apart. Work of other threads (TensorBoard's)
counts as ours, whenever it is done. The losses of both are compared, so that they are known to compute the same. And
the time from nothing to the first step.
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

from prismlab.data.shards import Marks, finish, write_shard
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.study import Study
from prismlab.train import stage

ROWS, LENGTH, WIDTH, LAYERS = 16, 128, 128, 4
"""Those of the demo."""
DOCUMENTS = 5
"""Documents of a row, on average."""
SAME = 1e-3
"""Most nats by which the losses of the two may differ over the first ``WARM`` steps."""
WARM = 5


def rows_of(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and numbers of documents [steps * ROWS, LENGTH] that both train on: of a few documents a row."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (steps * ROWS, LENGTH))
    begins = rng.random((steps * ROWS, LENGTH)) < DOCUMENTS / LENGTH
    begins[:, 0] = True
    return tokens, np.cumsum(begins, axis=1) - 1


def prepare(root: Path, steps: int, every: int, boundaries: str = "ignore") -> dict[str, Any]:
    """``start``, ``corpus`` and ``text.txt`` below ``root``; the stage's configuration."""
    tokenizer = build_byte_tokenizer()
    save_checkpoint(
        build_model(tiny_config("llama", WIDTH, LAYERS, len(tokenizer)), 0), tokenizer, root / "start/model"
    )
    (root / "corpus").mkdir()
    tokens, documents = rows_of(steps)
    begins = np.diff(documents, axis=1, prepend=-1) > 0
    full = np.full(len(tokens), LENGTH)
    marks = Marks(full, begins.sum(axis=1), np.nonzero(begins)[1].astype(np.uint32))
    write_shard(root / "corpus", 0, tokens, marks, len(tokenizer))
    finish(
        root / "corpus",
        root / "corpus",
        row_source=np.arange(len(tokens)) % 2,
        sources=[{"name": name, "domain": name} for name in ("web", "math")],
        seq_len=LENGTH,
        vocab=len(tokenizer),
        tokenizer_hash=tokenizer_hash(tokenizer),
        more={},
    )
    (root / "text.txt").write_text("\n\n".join(f"Document {n} is one of many. " * 8 for n in range(60)))
    given: dict[str, Any] = {
        "stage": "midtrain",
        "from": "b",
        "mixture": "m",
        "steps": steps,
        "rows": ROWS,
        "seq_len": LENGTH,
        "boundaries": boundaries,
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
    sides = [[one for one in model.parameters() if (one.ndim > 1) is decays] for decays in (True, False)]
    groups = [{"params": sides[0], "weight_decay": given["weight_decay"]}, {"params": sides[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given["lr"], betas=tuple(given["betas"]), eps=given["eps"], fused=True)
    tokens, documents = (torch.as_tensor(one).split(ROWS) for one in rows_of(int(spec["steps"])))
    earlier = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for batch, ids in zip(tokens, documents, strict=True):
        labels, known = batch[:, 1:], {}
        if spec["boundaries"] == "respect":
            first = torch.ones_like(ids, dtype=torch.bool)
            first[:, 1:] = ids[:, 1:] != ids[:, :-1]
            at = torch.arange(LENGTH).expand_as(ids)
            known["attention_mask"] = ((ids[:, :, None] == ids[:, None, :]) & earlier)[:, None]
            known["position_ids"] = at - torch.where(first, at, 0).cummax(dim=1).values
            labels = labels.masked_fill(first[:, 1:], -100)
        logits = model(input_ids=batch, use_cache=False, **known).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), given["clip"])
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
    for report in run.reports():
        run.take(report)
        yield report.loss
    run.close(whole=True)


def block(loops: dict[str, Iterator[float]], steps: int) -> dict[str, tuple[float, float]]:
    """Seconds by the clock and of the CPU that each loop takes for ``steps`` steps, a step each in turn."""
    clock = dict.fromkeys(loops, 0.0)
    work, whole = dict.fromkeys(loops, 0.0), time.process_time()
    for step in range(steps):
        for name in sorted(loops, reverse=bool(step % 2)):
            began, busy = time.perf_counter(), time.thread_time()
            next(loops[name])
            clock[name] += time.perf_counter() - began
            work[name] += time.thread_time() - busy
    # The bare loop has one thread: what is spent beside it is ours.
    work["ours"] = time.process_time() - whole - work["bare"]
    return {name: (clock[name], work[name]) for name in loops}


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


def measure(root: Path, boundaries: str, count: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The comparison under one policy of boundaries.

    Raises:
        RuntimeError: the two do not compute the same.
    """
    torch.set_num_threads(1)
    root.mkdir()
    config = prepare(root, count * steps + WARM, every=steps, boundaries=boundaries)
    loops = {"bare": bare(root, config["spec"]), "ours": ours(root, config)}
    losses = [{name: next(loop) for name, loop in loops.items()} for _ in range(WARM)]
    apart = max(abs(one["bare"] - one["ours"]) for one in losses)
    if apart > SAME:
        raise RuntimeError(f"{boundaries}: the losses of the two loops are {apart} apart over the first {WARM} steps")
    spent = [block(loops, steps) for _ in range(count)]
    tokens = steps * ROWS * LENGTH
    found: dict[str, Any] = {"blocks": count, "steps_a_block": steps, "losses_apart": apart}
    for at, kind in enumerate(("clock", "cpu")):
        ratios = sorted(one["bare"][at] / one["ours"][at] for one in spent)
        rates = {name: tokens / statistics.median(one[name][at] for one in spent) for name in loops}
        middle = statistics.median(ratios)
        found[kind] = {"ratio_median": middle, "ratios": ratios, "tokens_per_second": rates}
        say(
            f"boundaries: {boundaries}, {kind}: ours {rates['ours']:,.0f}, bare {rates['bare']:,.0f} tokens/s; ratio "
            f"{middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f} over {count} blocks)"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=25, help="of a block")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = Path(folder) / "start-only"
        started.mkdir()
        (started / "config.json").write_text(json.dumps(prepare(started, 10, 50)))
        first = first_step(started)
        print(f"start to first step: {first['seconds']:.1f} s, of the CPU {first['cpu_seconds']:.1f} s", flush=True)
        found = {
            policy: measure(Path(folder) / policy, policy, options.blocks, options.steps, print)
            for policy in ("ignore", "respect")
        }
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
