"""kill -9 an RL run at random moments of sampling, verification, update and saving, run it again, compare bit by bit.

    python benchmarks/kill_rl.py --kills 10 --out benchmarks/results/kill_rl.json

A tiny llama is trained by the stage itself (soft-updated reference, KL penalty, linear schedule, snapshots, a save
every second step). A trial starts from an empty scratch folder; its process is killed in a phase at a moment drawn
uniformly over that phase's usual length, and the run is started again, to be killed again or to end. Which phase a kill
hit is told by memory that the process shares with its parent. Compared with an undisturbed run: float32 weights, the
reference after the last step, bf16 checkpoint and snapshots byte for byte; every response's row; the rows of
metrics.jsonl but for seconds. No response may be missing or there twice. A verdict takes a millisecond here, so that
kills can hit it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from prismlab.data.items import Item
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.generate import Completion, TransformersSampler
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.rl import train as stage
from prismlab.rl.rewards import Reward
from prismlab.rl.trainer import Trainer
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import RLSpec
from prismlab.train.saves import Saves

STEPS, PROMPTS, SAMPLES = 8, 4, 8
PHASES = ("elsewhere", "sampling", "verification", "update", "save")
SPEC = {
    "stage": "rl",
    "from": "mid",
    "prompts": "mc",
    "steps": STEPS,
    "prompts_per_step": PROMPTS,
    "samples": SAMPLES,
    "max_new_tokens": 24,
    "reference_every": 3,
    "keep_master": True,
    "snapshots": 4,
    "save_every": 2,
    "tensorboard": False,
    "optimizer": {"lr": 3e-3, "schedule": "linear", "clip": 1.0},
}


def reward(item: Item, completion: Completion, penalties: Any) -> Reward:
    """One that a random model can earn."""
    time.sleep(0.001)
    score = float(any(letter.isascii() and letter.isalpha() for letter in completion.text))
    return Reward(reward=score, form_ok=True, score=score, verdict="right", reason="", no_stop=0.0, repetition=0.0)


def artifact(kind: str, path: Path) -> Artifact:
    return Artifact(kind=kind, fingerprint="0" * 16, path=path, record={"config": {}, "metrics": {}})


def prepare(folder: Path) -> None:
    """A model with random weights and prompts."""
    tokenizer = build_byte_tokenizer()
    torch.manual_seed(0)
    save_checkpoint(build_model(tiny_config("llama", 64, 2, len(tokenizer)), 0), tokenizer, folder / "model")
    about: dict[str, Any] = {"task": "sums", "domain": "math", "answer": "7", "verifier": "number"}
    items = [Item(id=f"q{n}", question=f"{n}+1=?", **about) for n in range(6)]
    rows = [{**item.to_json(), "correct": 1, "samples": 4} for item in items]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, out: Path, scratch: Path) -> None:
    """The stage, once; the reference after the last step is kept beside the artifact."""
    # In a fork torch's threads have to be made anew, by one thread: the library loads weights in several, which race.
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    spec = RLSpec.model_validate(SPEC).model_dump(mode="json", by_alias=True)
    config = {"spec": spec, "template": "think", "seed": 3, "scratch": str(scratch)}
    collected = stage._Run._train

    def keep_reference(self: Any, recorder: Any, save: Any) -> Any:
        model = collected(self, recorder, save)
        named = recorder.trainer.ref_model.named_parameters()
        save_file({name: p.detach().contiguous() for name, p in named}, out / "reference.safetensors")
        return model

    stage._Run._train = keep_reference
    try:
        inputs = {"start": artifact("train", folder), "prompts": artifact("prompts", folder)}
        stage.run(config, inputs, out, Silent())
    finally:
        stage._Run._train = collected


def end_state(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for file in sorted(out.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            state[f"{file.relative_to(out)}/{name}"] = hashlib.blake2b(data).hexdigest()
    rows = pq.read_table(out / "rollouts.parquet").to_pylist()
    counts = Counter((row["step"], row["item_id"], row["sample"]) for row in rows)
    state["responses"] = len(rows)
    state["lost or doubled"] = STEPS * PROMPTS * SAMPLES - len(rows), max(counts.values())
    state["rows"] = hashlib.blake2b(json.dumps(rows).encode()).hexdigest()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in metrics]
    state["metrics"] = hashlib.blake2b(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return state


def watched(phase: Any, begun: Callable[[int], None], ended: Callable[[int, float], None]) -> None:
    """Has the phases of this process told to ``begun`` and ``ended``, and to the memory that ``phase`` shares."""

    def around(owner: Any, name: str, number: int) -> None:
        function = getattr(owner, name)

        def told(*args: Any, **rest: Any) -> Any:
            before, phase.value = phase.value, number
            began = time.perf_counter()
            begun(number)
            result = function(*args, **rest)
            ended(number, time.perf_counter() - began)
            phase.value = before
            return result

        setattr(owner, name, told)

    around(TransformersSampler, "sample", 1)
    around(Trainer, "_judge", 2)
    around(Trainer, "training_step", 3)
    around(Saves, "_write", 4)


def in_process(work: Callable[[], None]) -> int:
    """Exit code of a fork that does ``work``; negative where it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return int(process.exitcode or 0)


def killed(folder: Path, out: Path, scratch: Path, wanted: int, seconds: float, rng: random.Random) -> str | None:
    """Start the run and have it killed in a phase; the phase that was hit, None where the run ended before."""
    phase = multiprocessing.Value("i", 0)
    number, delay = rng.randrange(1, STEPS + 1 if wanted != 4 else 4), rng.uniform(0, seconds)

    def begun(which: int) -> None:
        nonlocal number
        if which != wanted:
            return
        number -= 1
        if number == 0:
            threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))).start()

    def child() -> None:
        watched(phase, begun, lambda which, took: None)
        run(folder, out, scratch)

    code = in_process(child)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run ended with {code}")
    return PHASES[phase.value] if code else None


def usual_lengths(folder: Path, out: Path) -> dict[int, float]:
    """Median seconds of each phase in an undisturbed run, which is the one to compare with."""
    lengths: dict[int, list[float]] = {1: [], 2: [], 3: [], 4: []}
    file = out.with_suffix(".json")

    def child() -> None:
        watched(multiprocessing.Value("i", 0), lambda which: None, lambda which, took: lengths[which].append(took))
        run(folder, out, out.with_suffix(".scratch"))
        file.write_text(json.dumps(lengths))

    if in_process(child):
        raise SystemExit("the undisturbed run failed")
    told = json.loads(file.read_text())
    return {int(which): sorted(values)[len(values) // 2] for which, values in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="that hit each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stage.reward_of = reward
    rng, hits, trials = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        lengths = usual_lengths(folder, folder / "whole")
        expected = end_state(folder / "whole")
        print({PHASES[which]: round(seconds, 4) for which, seconds in lengths.items()})
        while min(hits[name] for name in PHASES[1:]) < options.kills:
            wanted = min(range(1, 5), key=lambda which: hits[PHASES[which]])
            out, scratch = folder / f"trial{len(trials)}", folder / f"scratch{len(trials)}"
            met = [killed(folder, out, scratch, wanted, lengths[wanted], rng) for _ in range(2)]
            if in_process(lambda out=out, scratch=scratch: run(folder, out, scratch)):
                raise SystemExit("a run that went on failed")
            state = end_state(out)
            different = sorted(key for key in expected.keys() | state.keys() if expected.get(key) != state.get(key))
            hits.update(name for name in met if name)
            trials.append({"killed_in": [name for name in met if name], "different": different})
            print(f"{len(trials)}: killed in {met}, different: {different or 'none'}", flush=True)
    equal = sum(not trial["different"] for trial in trials)
    print(f"{equal} of {len(trials)} end states equal; kills: {dict(hits)}")
    if options.out:
        result = {
            "date": date.today().isoformat(),
            "device": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "load": os.getloadavg(),
            "kills": dict(hits),
            "trials": len(trials),
            "equal": equal,
            "responses": expected["responses"],
            "compared": len(expected),
            "seconds_a_phase": {PHASES[which]: round(seconds, 5) for which, seconds in lengths.items()},
            "different": [trial for trial in trials if trial["different"]],
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(equal != len(trials))


if __name__ == "__main__":
    main()
