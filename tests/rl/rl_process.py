"""One process of a run in several, for test_rl_processes.py: ``rl_process.py FOLDER OUT NPROC [STEP to die in]``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from prismlab.data.items import Item
from prismlab.model.generate import Completion
from prismlab.rl import logps
from prismlab.rl import train as module
from prismlab.rl.rewards import Reward
from prismlab.rl.trainer import Trainer
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import RLSpec

SPEC = {
    "stage": "rl",
    "from": "mid",
    "prompts": "mc",
    "steps": 4,
    "prompts_per_step": 2,
    "samples": 4,
    "max_new_tokens": 6,
    "reference_every": 2,
    "tensorboard": False,
    "save_every": 2,
    "keep_master": True,
    "optimizer": {"lr": 3e-3, "clip": 1.0},
}


def reward(item: Item, completion: Completion, penalties: Any) -> Reward:
    score = float(any(letter.isascii() and letter.isalpha() for letter in completion.text))
    return Reward(reward=score, form_ok=True, score=score, verdict="right", reason="", no_stop=0.0, repetition=0.0)


def artifact(kind: str, path: Path) -> Artifact:
    return Artifact(kind=kind, fingerprint="0" * 16, path=path, record={"config": {}, "metrics": {}})


def die_in(step: int) -> None:
    """All processes are killed in the update of this step."""
    update = Trainer.training_step

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, *args, **kwargs)

    Trainer.training_step = stepped


def main() -> None:
    torch.set_num_threads(1)
    folder, out, nproc = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # Several passes through the model before each backward pass, and in one process by itself more than in the other.
    logps.TOKENS_A_CHUNK["cpu"] = 16 if os.environ.get("RANK", "0") == "0" else 4_000
    module.reward_of = reward
    if len(sys.argv) > 4:
        die_in(int(sys.argv[4]))
    spec = RLSpec.model_validate({**SPEC, "launch": "torchrun", "nproc": nproc}).model_dump(mode="json", by_alias=True)
    config = {"spec": spec, "template": "think", "seed": 3, "scratch": f"{out}.scratch"}
    out.mkdir(exist_ok=True)
    inputs = {"start": artifact("train", folder), "prompts": artifact("prompts", folder)}
    result = module.run(config, inputs, out, Silent())
    if os.environ.get("RANK", "0") == "0":
        assert result.tokens, "the first process tells the tokens of all"


if __name__ == "__main__":
    main()
