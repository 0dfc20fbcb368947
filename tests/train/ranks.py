"""What a process of the tests of several processes does; started by torchrun, or called.

ranks.py FOLDER NAME STOP REPLICATE SHARD ARCH...    the stage, stopped after STEP steps (``-``: run to its end)
ranks.py FOLDER alarm ACTION...                      the stage with an alarm, of which the processes measure otherwise
ranks.py FOLDER beat                                 waits, with signs of life
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismlab.data.corpus import write_corpus
from prismlab.errors import EndBranch
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.study import Study
from prismlab.train import stage
from prismlab.train.boundaries import TrainingRows
from prismlab.train.monitors import Heldout
from prismlab.train.parallel import World

STEPS, ROWS, LENGTH = 12, 4, 24
LAYERS = {"llama": 2, "granite4-h": 3, "nemotron-h": 4}


def prepare(root: Path, arch: str = "llama") -> None:
    """``start``, ``corpus`` and ``text.txt`` below ``root``."""
    tokenizer = build_byte_tokenizer()
    config = tiny_config(arch, 32, LAYERS[arch], len(tokenizer))
    save_checkpoint(build_model(config, 0), tokenizer, root / "start" / "model")
    (root / "corpus").mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (STEPS * ROWS, LENGTH))
    write_corpus(
        root / "corpus",
        row_source=np.arange(STEPS * ROWS) % 2,
        blocks=[(0, [rows[0::2]]), (1, [rows[1::2]])],
        sources=[{"name": name, "domain": name} for name in ("web", "math")],
        seq_len=LENGTH,
        vocab=len(tokenizer),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    texts = (f"Document {n} is one of many." for n in range(40))
    (root / "text.txt").write_text("\n\n".join(texts))


def config(root: Path, how: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The stage's configuration; ``changes`` of the spec."""
    given: dict[str, Any] = {
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
        "optimizer": {"lr": 1e-3, "eps": 1e-8, "warmup": 2},
        "save": {"every_steps": 2},
        "monitor": {"heldout": ["text"], "every": 4, "documents": 3, "tokens": 24, "kl_positions": 8},
        **changes,
    }
    study = Study.model_validate(
        {"name": "x", "bases": {"b": {"arch": "llama"}}, "sources": {"text": {"files": ["text.txt"], "domain": "web"}}}
    )
    spec = TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True)
    return {
        "stage": "midtrain",
        "spec": spec,
        "seed": 1,
        "thresholds": [0.01],
        "heldout": 0.5,
        "template": "think",
        "micro": study.micro.model_dump(mode="json"),
        "sources": {"text": study.sources["text"].model_dump(mode="json")},
        "content": {},
        "files": {"text": [str(root / "text.txt")]},
        **({} if how is None else {"how": how}),
    }


class Stopped(Exception):
    """Raised by a progress to stop a run."""


class Teller(Silent):
    """Notes what it is told, and stops in the step behind ``stop``, once what was saved of that is on the disk."""

    def __init__(self, file: Path, stop: int | None, saves: Path, every: int | None) -> None:
        self.file, self.stop, self.done = file, stop, 0
        self.saved = None if stop is None or every is None else saves / f"step-{stop // every * every:08d}"

    def start(self, total: int | None, unit: str) -> None:
        self.done = 0

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self.done += n
        if self.stop is not None and self.done >= self.stop + 1:
            until = time.monotonic() + 300
            while self.saved is not None and not self.saved.is_dir():
                assert time.monotonic() < until, f"{self.saved} did not come"
                time.sleep(0.02)
            raise Stopped

    def note(self, text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            with self.file.open("a") as file:
                file.write(f"{text}\n")


def run(root: Path, name: str, stop: int | None, how: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The stage on what ``prepare`` made, in ``root/name``; stopped in the step behind ``stop``."""
    folder = root / name
    (folder / "out").mkdir(parents=True, exist_ok=True)
    inputs = {
        key: Artifact(kind=key, fingerprint="0" * 16, path=root / key, record={"config": {}, "metrics": {}})
        for key in ("start", "corpus")
    }
    given = {**config(root, how, **changes), "scratch": str(folder / "scratch")}
    teller = Teller(folder / "notes.txt", stop, folder / "scratch" / "saves", given["spec"]["save"]["every_steps"])
    with watched(folder / f"rows-{stop}-{os.environ.get('RANK', 'alone')}.jsonl"):
        try:
            return stage.run(given, inputs, folder / "out", teller)
        except Stopped:
            return None


@contextmanager
def watched(file: Path) -> Iterator[None]:
    """Write down which rows this process trains on."""
    tokens = TrainingRows.tokens

    def one(self: TrainingRows, start: int, stop: int) -> Any:
        with file.open("a") as told:
            told.write(json.dumps([start, stop]) + "\n")
        return tokens(self, start, stop)

    TrainingRows.tokens = one  # pyright: ignore[reportAttributeAccessIssue]
    yield
    TrainingRows.tokens = tokens  # pyright: ignore[reportAttributeAccessIssue]


def alarmed(folder: Path, world: World, action: str) -> None:
    """A run whose weights break; all processes but the first are told by their own measurement that nothing is lost."""
    measure = Heldout.measure

    def other(self: Heldout, step: int) -> dict[str, Any]:
        return {**measure(self, step), "general": 0.0}

    if world.rank:
        Heldout.measure = other  # pyright: ignore[reportAttributeAccessIssue]
    changes = {"alarm": {"heldout_loss_up": 0.05, "action": action}, "keep_snapshots": True}
    try:
        result = run(folder, action, None, {"mesh": None}, optimizer={"lr": 1.0, "eps": 1e-8}, **changes)
        told = {"alarm": result.metrics["alarm"]}
    except EndBranch as end:
        told = {"ended": end.reason}
    Heldout.measure = measure  # pyright: ignore[reportAttributeAccessIssue]
    (folder / f"{action}-{world.rank}.json").write_text(json.dumps(told))


def main() -> None:
    torch.set_num_threads(1)
    folder, name = Path(sys.argv[1]), sys.argv[2]
    world = World.join()
    if name == "beat":
        (folder / f"beat-{world.rank}").write_text(str(os.getpid()))
        time.sleep(600)
        return
    if name == "alarm":
        for action in sys.argv[3:]:
            alarmed(folder, world, action)
        world.leave()
        return
    stop = None if sys.argv[3] == "-" else int(sys.argv[3])
    how = {"mesh": {"replicate": int(sys.argv[4]), "shard": int(sys.argv[5])}}
    for arch in sys.argv[6:]:
        run(folder / arch, name, stop, how)
    world.leave()


if __name__ == "__main__":
    main()
