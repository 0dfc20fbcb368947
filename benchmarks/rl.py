"""Sampling against trl's default generation, and a GRPO step of ours against trl alone with the same generation.

    python benchmarks/rl.py --checkpoint MODEL --out benchmarks/results/rl.json

Sampling: the micro study's model with 16 samples a prompt, by ``TransformersSampler`` and by what trl does by default
(``generate`` on prompts repeated 16 times, padded on the left), in turn. Step: a training of ours with everything that
the stage adds (responses and rewards on disk, penalties, metrics rows, truncated ratio) against ``GRPOTrainer`` with
the same rewards and settings, both given the same responses by a sampler that has them ready, so that what is compared
is all but the generation, and that is added to both from the measurement before. Sides take turns, the one that begins
changes from round to round, and a ratio is the median over the rounds' own ratios. CPU seconds and wall time of one
thread are printed; wall time means something on a machine that does nothing else: its load is in the record. Without
``--checkpoint`` the model is a fresh one, whose responses do not end: then few rows leave early on either side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOTrainer

from prismlab.data.items import micro_item
from prismlab.micro.models import build_model, tiny_config
from prismlab.micro.world import task_questions
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.rl import train as stage
from prismlab.rl.rewards import Penalties, reward_of
from prismlab.rl.settings import grpo_config
from prismlab.rl.trainer import quiet_libraries
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import RLSpec
from prismlab.study.world import MicroSpec

PROMPTS, SAMPLES, TOKENS, STEPS = 12, 16, 56, 4
"""Of a step: the micro study's prompts and longest response, and the reference study's samples."""


def spec_of(**changes: Any) -> dict[str, Any]:
    given = {"stage": "rl", "from": "m", "prompts": "p", "steps": STEPS, "prompts_per_step": PROMPTS}
    given |= {"samples": SAMPLES, "max_new_tokens": TOKENS, "reference_every": 3, "tensorboard": False}
    return RLSpec.model_validate({**given, **changes}).model_dump(mode="json", by_alias=True)


def prepare(folder: Path, trained: Path | None) -> None:
    """The micro study's model (or a checkpoint's) and additions as prompts."""
    if trained is None:
        tokenizer = build_byte_tokenizer()
        model = build_model(tiny_config("llama", 128, 4, len(tokenizer)), 0)
        # A model that was trained ends its responses; a fresh one would not, and nothing would leave a batch.
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(8)
        save_checkpoint(model, tokenizer, folder / "model")
    else:
        save_checkpoint(load_model(trained), load_tokenizer(trained), folder / "model")
    # Of all three domains in turn, with the study's own difficulty.
    world = MicroSpec(math_min_digits=2, math_max_digits=3, code_k=6, code_m=12, science_elements=14, science_choices=4)
    drawn = [task_questions(domain, "train", 2 * PROMPTS, 1, world) for domain in ("math", "code", "science")]
    items = [micro_item("micro", one) for group in zip(*drawn, strict=True) for one in group]
    rows = [{**item.to_json(), "correct": 1, "samples": 16} for item in items]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def turned(sides: tuple[Any, ...], round_: int) -> tuple[Any, ...]:
    """The sides in the order of this round."""
    return sides[::-1] if round_ % 2 else sides


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


class ByLibrary(GRPOTrainer):
    """trl alone; its generation is its own, or what ``ready`` gives."""

    ready: Callable[[list[list[int]]], list[list[int]]] | None = None
    prompts: Sequence[tuple[int, ...]] = ()

    def _send_telemetry(self) -> None:
        pass

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.prompts[int(index)]) for index in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, fields: Any, num_generations: int, **rest: Any
    ) -> Any:
        if self.ready is not None:
            return self.ready(prompt_ids), None
        return super()._generate_single_turn(prompt_ids, images, fields, num_generations, **rest)


def library(folder: Path, place: Path, spec: dict[str, Any], ready: Any = None) -> ByLibrary:
    """trl's trainer with the study's settings, the stage's rewards and plain AdamW of the same kind."""
    model, tokenizer = load_model(folder / "model"), load_tokenizer(folder / "model")
    known = stage.read_prompts(folder / "prompts.jsonl", tokenizer, "think")
    penalties = Penalties.of(spec)

    def judge(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[Any]:
        eos = tokenizer.eos_token_id
        found = []
        for index, text, ids in zip(prompts, completions, completion_ids, strict=True):
            one = Completion(
                token_ids=ids, text=text, logprobs=None, sampler_logprobs=None, finished=bool(ids) and ids[-1] == eos
            )
            found.append(reward_of(known[int(index)].item, one, penalties).reward)
        return found

    order = [str(at % len(known)) for at in range(STEPS * PROMPTS)]
    trainer = ByLibrary(
        model=model,
        reward_funcs=[judge],
        args=grpo_config(spec, 3, place),
        train_dataset=Dataset.from_dict({"prompt": order}),
        processing_class=tokenizer,
        optimizers=(torch.optim.AdamW(model.parameters(), lr=5e-7, fused=True), None),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.prompts, trainer.ready = [prompt.ids for prompt in known], ready
    return trainer


class Ready:
    """A sampler that has its responses ready, in the order in which prompts are asked."""

    def __init__(self, groups: dict[tuple[int, ...], list[Completion]]) -> None:
        self.groups = groups

    def sample(self, prompts: Any, n: int, settings: Any, seed: Any, progress: Any = None) -> list[list[Completion]]:
        return [self.groups[tuple(prompt)][:n] for prompt in prompts]

    def ids(self, prompts: list[list[int]]) -> list[list[int]]:
        met: dict[tuple[int, ...], int] = {}
        found = []
        for prompt in map(tuple, prompts):
            at = met.get(prompt, 0)
            met[prompt] = at + 1
            found.append(self.groups[prompt][at % SAMPLES].token_ids)
        return found


def sampling(folder: Path, rounds: int) -> dict[str, Any]:
    """Completions a second of both, in turn; the first round warms both up and is left out."""
    spec = spec_of()
    model, tokenizer = load_model(folder / "model"), load_tokenizer(folder / "model")
    with quiet_libraries(), tempfile.TemporaryDirectory() as place:
        trainer = library(folder, Path(place), spec)
        prompts = [list(ids) for ids in trainer.prompts[:PROMPTS]]
        repeated = [ids for ids in prompts for _ in range(SAMPLES)]
        settings, sampler = SamplingSettings(max_new_tokens=TOKENS), TransformersSampler(model, tokenizer)
        held: dict[str, list[tuple[float, float]]] = {"ours": [], "trl": []}
        drawn: dict[str, list[int]] = {"ours": [], "trl": []}

        def ours() -> None:
            groups = sampler.sample(prompts, SAMPLES, settings, round_)
            drawn["ours"] += [one.tokens for group in groups for one in group]

        def theirs() -> None:
            ids, _ = trainer._generate_single_turn(repeated, None, {}, SAMPLES)
            drawn["trl"] += [len(one) for one in ids]

        for round_ in range(rounds + 1):
            for name, work in turned((("ours", ours), ("trl", theirs)), round_):
                seconds = timed(work)
                if round_:
                    held[name].append(seconds)
    found: dict[str, Any] = {}
    for name, seconds in held.items():
        cpu, wall = (statistics.median(one[at] for one in seconds) for at in (0, 1))
        found[name] = {
            "completions_per_cpu_second": round(len(repeated) / cpu, 1),
            "completions_per_second": round(len(repeated) / wall, 1),
            "tokens_mean": round(statistics.fmean(drawn[name]), 2),
            "cpu_seconds": round(cpu, 4),
            "seconds": round(wall, 4),
        }
    for at, clock in enumerate(("cpu", "wall")):
        pairs = [theirs[at] / ours[at] for ours, theirs in zip(held["ours"], held["trl"], strict=True)]
        found[f"ratio_{clock}"] = round(statistics.median(pairs), 2)
        found[f"ratios_{clock}"] = [round(one, 2) for one in pairs]
    return found


def step(folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of a step but for its generation, ours and trl's, over runs of ``STEPS`` steps in turn.

    Of each run the time between the first and the last step counts: building a trainer is not part of a step.
    """
    spec = spec_of(save_every=None)
    model, tokenizer = load_model(folder / "model"), load_tokenizer(folder / "model")
    prompts = stage.read_prompts(folder / "prompts.jsonl", tokenizer, "think")
    groups = TransformersSampler(model, tokenizer).sample(
        [prompt.ids for prompt in prompts], SAMPLES, SamplingSettings(max_new_tokens=TOKENS), 7
    )
    ready = Ready({prompt.ids: group for prompt, group in zip(prompts, groups, strict=True)})
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "trl": []}

    def ours(place: Path) -> list[tuple[float, float]]:
        marks: list[tuple[float, float]] = []
        plain, log = stage._Run._sampler, stage.Recorder.on_log

        def logged(self: Any, *args: Any, **rest: Any) -> None:
            log(self, *args, **rest)
            marks.append((time.process_time(), time.perf_counter()))

        stage._Run._sampler, stage.Recorder.on_log = lambda self: (ready, lambda: None, None), logged
        try:
            config = {"spec": spec, "template": "think", "seed": 3, "scratch": str(place / "scratch")}
            given = {key: Artifact(kind=key, fingerprint="0", path=folder, record={}) for key in ("start", "prompts")}
            (place / "out").mkdir()
            stage.run(config, given, place / "out", Silent())
        finally:
            stage._Run._sampler, stage.Recorder.on_log = plain, log
        return marks

    def theirs(place: Path) -> list[tuple[float, float]]:
        marks: list[tuple[float, float]] = []
        trainer = library(folder, place, spec, ready.ids)
        log = trainer.log

        def logged(*args: Any, **rest: Any) -> None:
            log(*args, **rest)
            marks.append((time.process_time(), time.perf_counter()))

        trainer.log = logged
        trainer.train()
        return marks

    for round_ in range(rounds + 1):
        for name, work in turned((("ours", ours), ("trl", theirs)), round_):
            with quiet_libraries(), tempfile.TemporaryDirectory() as place:
                marks = work(Path(place))[:STEPS]
            if round_:
                first, last = marks[0], marks[-1]
                seconds[name].append(tuple((b - a) / (STEPS - 1) for a, b in zip(first, last, strict=True)))
    return seconds


def steps_beside(steps: dict[str, list[tuple[float, float]]], drawn: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step without its generation and with ours on both sides; ratios are medians over the rounds."""
    found: dict[str, Any] = {}
    for at, (key, clock) in enumerate((("cpu_seconds", "cpu"), ("seconds", "wall"))):
        sampled = drawn["ours"][key]
        for name, held in steps.items():
            median = statistics.median(one[at] for one in held)
            found.setdefault("step_without_generation", {}).setdefault(name, {})[key] = round(median, 4)
            found.setdefault("step_with_our_generation", {}).setdefault(name, {})[key] = round(median + sampled, 4)
        pairs = [(ours[at], theirs[at]) for ours, theirs in zip(steps["ours"], steps["trl"], strict=True)]
        whole = [(ours + sampled) / (theirs + sampled) for ours, theirs in pairs]
        found[f"step_ratio_{clock}"] = round(statistics.median(whole), 3)
        found[f"step_ratio_without_generation_{clock}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="a trained micro model; a fresh one's responses are longer")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.checkpoint)
        drawn = sampling(Path(folder), options.rounds)
        steps = step(Path(folder), options.rounds)
    result = {
        "date": date.today().isoformat(),
        "device": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, Python {platform.python_version()}",
        "load": [round(value, 2) for value in os.getloadavg()],
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "max_new_tokens": TOKENS,
        "sampling": drawn,
        "model": "a trained checkpoint" if options.checkpoint else "a fresh model",
        **steps_beside(steps, drawn),
        "wanted": {"sampling_ratio": 2.0, "step_ratio": 1.1},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
