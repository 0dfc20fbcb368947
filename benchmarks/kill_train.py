"""kill -9 a training at random moments and at every system call of a save, run it again, compare to the last bit.

    python benchmarks/kill_train.py --kills 100 --out benchmarks/results/kill_train.json

A tiny model is trained by the stage itself (data, log, snapshots that are measured, monitor, saves every few steps). A
trial starts from an empty scratch folder, is killed, and is run again until it ends. Compared with an undisturbed run:
float32 weights, the optimizer's moments and step counts, the random states and the measured trajectory byte for byte;
the checkpoint in bf16; and the rows of metrics.jsonl and heldout.jsonl byte for byte, but for what tells when a run
happened (speed, memory, time left). The parent has loaded the libraries; each run is a fork of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

# Threads that wait in a loop for one another take many times the work on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from prismlab.data.corpus import write_corpus
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.study import Study
from prismlab.train import stage
from prismlab.train.loss import row_losses
from prismlab.train.saves import Saves

CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "link", "unlink", "rmdir")
TIMED = ("tokens_per_second", "mfu", "memory_mb", "seconds_left")
STEPS, ROWS, LENGTH = 12, 2, 32


def spec() -> dict[str, Any]:
    given = {
        "stage": "midtrain",
        "from": "base",
        "mixture": "mix",
        "steps": STEPS,
        "rows": ROWS,
        "seq_len": LENGTH,
        "snapshots": 3,
        "keep_snapshots": False,
        "keep_master": True,
        "tensorboard": False,
        "optimizer": {"lr": 1e-3, "eps": 1e-8, "warmup": 3},
        "save": {"every_steps": 1},
        "monitor": {"heldout": ["text"], "every": 4, "documents": 2, "tokens": 32, "kl_positions": 8},
        "alarm": {"heldout_loss_up": 100.0},
    }
    return TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True)


def prepare(root: Path, arch: str) -> dict[str, Any]:
    """Start, corpus and held-out text below ``root``; the stage's configuration."""
    tokenizer = build_byte_tokenizer()
    config = tiny_config(arch, 32, 2 if arch == "llama" else 3, len(tokenizer))
    save_checkpoint(build_model(config, 0), tokenizer, root / "start" / "model")
    (root / "corpus").mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (STEPS * ROWS, LENGTH))
    rows[:, 12] = tokenizer.eos_token_id
    write_corpus(
        root / "corpus",
        row_source=np.arange(STEPS * ROWS) % 2,
        blocks=[(0, [rows[0::2]]), (1, [rows[1::2]])],
        sources=[{"name": name, "domain": name} for name in ("web", "math")],
        seq_len=LENGTH,
        vocab=len(tokenizer),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    (root / "text.txt").write_text("\n\n".join(f"Document {n} says little, and says it twice." for n in range(60)))
    study = Study.model_validate(
        {"name": "x", "bases": {"b": {"arch": arch}}, "sources": {"text": {"files": ["text.txt"], "domain": "web"}}}
    )
    source = study.sources["text"].model_dump(mode="json")
    return {
        "stage": "midtrain",
        "spec": spec(),
        "seed": 1,
        "thresholds": [0.01],
        "heldout": 0.5,
        "template": "think",
        "micro": study.micro.model_dump(mode="json"),
        "sources": {"text": source},
        "content": {},
        "files": {"text": [str(root / "text.txt")]},
    }


def forked(work: Callable[[], None], threads: int) -> int:
    """Do ``work`` in a fork; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(threads)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait; 0, or the negative of the signal, or the exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Bench:
    """One training, to be run and killed."""

    def __init__(self, root: Path, arch: str, threads: int) -> None:
        self.root, self.threads = root, threads
        # With one thread: a process that has once computed with more cannot hand them down to a fork. Everything is
        # loaded here that a run would load, but for the backward pass, which no process may take before it forks.
        torch.set_num_threads(1)
        self.config = prepare(root, arch)
        model, tokenizer = load_model(root / "start" / "model"), load_tokenizer(root / "start" / "model")
        with torch.no_grad():
            row_losses(model, torch.tensor([tokenizer("text")["input_ids"]]))

    def train(self, folder: Path) -> None:
        """Run the stage to its end in this process, keeping its last save."""
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        inputs = {
            name: Artifact(kind=name, fingerprint="0" * 16, path=self.root / name, record={"config": {}, "metrics": {}})
            for name in ("start", "corpus")
        }
        stage.run({**self.config, "scratch": str(folder / "scratch")}, inputs, out, Silent())

    def run(self, folder: Path) -> int:
        return ended(forked(lambda: self.train(folder), self.threads))

    def killed_after(self, folder: Path, seconds: float) -> int:
        child = forked(lambda: self.train(folder), self.threads)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        return ended(child)

    def killed_at_call(self, folder: Path, step: int, call: int) -> int:
        """Run until just before the ``call``-th system call that is made for the save of ``step``."""

        def work() -> None:
            count, saving, begin = 0, False, Saves.begin

            def watched(self: Saves, at: int, *arguments: Any, **named: Any) -> None:
                nonlocal saving
                saving = at == step
                begin(self, at, *arguments, **named)
                saving = False

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def one(*arguments: Any, **named: Any) -> Any:
                    nonlocal count
                    if saving or threading.current_thread().name == f"save-{step}":
                        count += 1
                        if count == call:
                            os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **named)

                return one

            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            Saves.begin = watched
            self.train(folder)

        return ended(forked(work, self.threads))


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log without what tells when they were written."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in found]


def state(folder: Path) -> dict[str, str]:
    """Hash of everything that is compared."""
    files = [path for path in sorted((folder / "out").rglob("*")) if path.suffix in (".safetensors", ".parquet")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for name in ("metrics.jsonl", "heldout.jsonl"):
        found[name] = "\n".join(map(json.dumps, rows(folder / "out" / name))).encode()
    saves = sorted((folder / "scratch" / "saves").glob("step-*"))
    for save in saves:
        told = json.loads((save / "save.json").read_text())
        found[f"{save.name}/own"] = json.dumps(told["own"], sort_keys=True).encode()
        # Weights, moments, step counts and random states lie in one file.
        for path in sorted(save.glob("*.safetensors")):
            found[f"{save.name}/{path.name}"] = path.read_bytes()
    found["names"] = json.dumps(sorted(path.name for path in saves)).encode()
    return {name: hashlib.blake2b(data).hexdigest() for name, data in found.items()}


def different(expected: dict[str, str], folder: Path) -> list[str]:
    got = state(folder)
    return sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))


def trials(
    root: Path, kills: int, threads: int, arch: str, seed: int, say: Callable[[str], None], calls: bool = True
) -> dict[str, Any]:
    """Both kinds of trial; ``{seconds_undisturbed, compared, random: [...], calls: [...], equal, trials}``."""
    bench, rng = Bench(root, arch, threads), random.Random(seed)
    began = time.monotonic()
    if bench.run(root / "whole"):
        raise SystemExit("the undisturbed run failed")
    seconds = time.monotonic() - began
    expected = state(root / "whole")
    say(f"undisturbed: {seconds:.2f} s, {len(expected)} things compared")
    done: dict[str, Any] = {"seconds_undisturbed": round(seconds, 2), "compared": sorted(expected), "random": []}
    while len(done["random"]) < kills:
        folder, moment = root / "random", rng.uniform(0, seconds)
        died = bench.killed_after(folder, moment) == -signal.SIGKILL
        saves = [path.name for path in (folder / "scratch/saves").glob("step-*")]
        again = bench.run(folder) if died else 0
        wrong = different(expected, folder) if again == 0 else [f"the second run ended with {again}"]
        shutil.rmtree(folder)
        if died:  # else it had come to its end before the moment
            last = max(saves, default="no save")
            done["random"].append({"killed_at_s": round(moment, 3), "after": last, "different": wrong})
            say(f"{len(done['random'])}: killed at {moment:.2f} s after {last}, different: {wrong or 'none'}")
    done["calls"] = []
    for call in range(1, 10**6 if calls else 1):
        folder = root / f"call{call}"
        died = bench.killed_at_call(folder, STEPS // 2, call) == -signal.SIGKILL
        if died and bench.run(folder):
            raise SystemExit(f"the run after the death at call {call} failed")
        wrong = different(expected, folder)
        say(f"call {call}: {'killed' if died else 'came to its end'}, different: {wrong or 'none'}")
        shutil.rmtree(folder)
        if not died:
            break
        done["calls"].append({"call": call, "different": wrong})
    every = [*done["random"], *done["calls"]]
    return done | {"trials": len(every), "equal": sum(not one["different"] for one in every)}


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arch", default="llama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        done = trials(Path(folder), options.kills, options.threads, options.arch, options.seed, say, options.calls)
    print(f"{done['equal']} of {done['trials']} end states equal")
    if options.out:
        about = {
            "date": date.today().isoformat(),
            "device": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "torch": torch.__version__,
            "load_average": round(os.getloadavg()[0], 1),
            "arch": options.arch,
            "threads": options.threads,
        }
        options.out.write_text(json.dumps(about | done, indent=1) + "\n")
    raise SystemExit(done["equal"] != done["trials"])


if __name__ == "__main__":
    main()
