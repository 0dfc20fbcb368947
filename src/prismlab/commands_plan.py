"""What ``prism plan`` does. Imported by ``cli_plan`` only when it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.commands import number_text, planned, records_of, say, state_of, store_of, table
from prismlab.cost.devices import SAMPLING_UTILISATION, UTILISATION, Device, device_named
from prismlab.cost.memory import Memory, memory
from prismlab.cost.rl import RLMemory
from prismlab.cost.rl_plan import RLPlan, plan_rl
from prismlab.cost.training import Disk, Machine, TrainingPlan, plan_training
from prismlab.errors import SpecError
from prismlab.run.progress import seconds_text
from prismlab.study.checkpoints import RLSpec, TrainSpec
from prismlab.study.cost import Cost, Costs, passes, shape_for
from prismlab.study.load import LoadedStudy, load_study
from prismlab.study.series import prefixes

GB = 1e9
_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "moments",
    "compute": "weights to compute with",
    "buffers": "buffers",
    "activations": "activations",
    "loss": "loss",
    "reserved": "reserved",
}


_RL_PARTS = {
    **_PARTS,
    "reference": "reference",
    "vllm": "vLLM",
    "vllm_sampling": "vLLM",
    "cache": "keys and values",
    "drawing": "drawing",
    "rollouts": "responses",
}
_STAYS = ("weights", "moments", "reference", "compute", "reserved")
_PHASES = {
    "sampling": (*_STAYS, "vllm_sampling", "cache", "drawing"),
    "update": (*_STAYS, "vllm", "gradients", "buffers", "activations", "loss", "rollouts"),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says of devices; None where it does not."""

    device: str | None = None
    devices: int | None = None
    memory_gb: float | None = None
    utilisation: float | None = None

    @property
    def anything(self) -> bool:
        """Whether it says anything."""
        return any(value is not None for value in (self.device, self.devices, self.memory_gb, self.utilisation))


def _bytes(size: float) -> str:
    return f"{number_text(size)}B"


def _cells(cost: Cost) -> list[str]:
    tokens = "" if cost.tokens is None else number_text(cost.tokens)
    flops = "" if cost.tokens is None or cost.flops is None else number_text(cost.flops)
    disk = "" if cost.disk is None else _bytes(cost.disk.kept)
    return [tokens, flops, disk, "unknown" if cost.seconds is None else seconds_text(cost.seconds)]


def show_plan(file: Path, asked: Asked, *, out: Path | None, threads: int | None) -> None:
    """``prism plan``.

    Raises:
        SpecError: a training does not fit the devices that ``asked`` names, or there are none of that name.
    """
    if asked.device not in (None, "cpu"):  # said before a long plan, not behind it
        device_named(asked.device)
    loaded = load_study(file)
    store = store_of(loaded, out)
    plan = planned(loaded, store, threads)
    costs = Costs(loaded, records_of(store))
    rows: list[list[str]] = []
    left: list[Cost] = []
    steps = {step.id: step for step in plan.steps}
    every = {step_id: costs.of(step) for step_id, step in steps.items()}
    for step_id, found in plan.resolve(store.record).items():
        state = state_of(store, found)
        rows.append([step_id, state, *_cells(every[step_id])])
        if state in ("to build", "damaged"):
            left.append(every[step_id])
    table(["step", "state", "tokens", "operations", "disk", "time"], rows, right=(2, 3, 4, 5))
    _show_passes(loaded)
    say(f"\n{len(rows)} steps, {len(rows) - len(left)} need no building, {len(left)} to build")
    trained = sum(every[step_id].tokens or 0 for step_id, step in steps.items() if step.kind == "train")
    say(f"trained on: {trained:,} tokens; operations of all steps: {number_text(_operations(every))}")
    disk = sum((cost.disk for cost in every.values() if cost.disk), Disk(kept=0.0))
    say(f"disk: {_bytes(disk.kept)} of weights and tokens, and up to {_bytes(disk.passing)} more while a step runs")
    known = [cost.seconds for cost in left if cost.seconds is not None]
    missing = len(left) - len(known)
    times = ([seconds_text(sum(known))] if known or not left else []) + ([f"{missing} unknown"] if missing else [])
    say(f"time left, one step at a time: {' and '.join(times)}")
    _show_trainings(loaded, asked, [(step.kind, every[step_id]) for step_id, step in steps.items()])


def _operations(every: Mapping[str, Cost]) -> float:
    return sum(cost.flops or 0 for cost in every.values())


def _show_passes(loaded: LoadedStudy) -> None:
    if epochs := passes(loaded.study):
        say()
        cells = [[one.checkpoint, one.source, number_text(one.tokens), f"{one.epochs:.3g}"] for one in epochs]
        table(["checkpoint", "source", "tokens", "epochs"], cells, right=(2, 3))


def _trainings(loaded: LoadedStudy, asked: Asked, device: Device) -> Iterator[tuple[str, TrainingPlan]]:
    """Trainings of models whose shape is known, on what the command line says or else on the study's own processes."""
    trunks = {shorter for shorter, _ in prefixes(loaded.study).values()}
    for name, spec in loaded.study.checkpoints.items():
        shape = shape_for(loaded, name) if isinstance(spec, TrainSpec) else None
        if shape is None or not isinstance(spec, TrainSpec):
            continue
        given: dict[str, Any] = spec.model_dump(mode="json", by_alias=True)
        yield name, plan_training(shape, given, _machine(asked, device, spec.nproc), trunk=name in trunks)


def _machine(asked: Asked, device: Device, nproc: int) -> Machine:
    return Machine(
        device=device,
        devices=asked.devices or nproc,
        memory=device.memory if asked.memory_gb is None else asked.memory_gb * GB,
        utilisation=asked.utilisation or UTILISATION,
        kind="cpu" if device.name == "cpu" else "cuda",
    )


def _rl_runs(loaded: LoadedStudy, asked: Asked, device: Device) -> Iterator[tuple[str, RLPlan]]:
    """RL runs of models whose shape is known, on the same devices as the trainings."""
    for name, spec in loaded.study.checkpoints.items():
        shape = shape_for(loaded, name) if isinstance(spec, RLSpec) else None
        if shape is None or not isinstance(spec, RLSpec):
            continue
        machine = _machine(asked, device, spec.nproc)
        given: dict[str, Any] = spec.model_dump(mode="json", by_alias=True)
        yield name, plan_rl(shape, given, machine.devices, machine.memory, machine.kind)


def _show_trainings(loaded: LoadedStudy, asked: Asked, costs: Sequence[tuple[str, Cost]]) -> None:
    """Trainings on devices: of models from outside always, of tiny ones where the command line asks for it."""
    outside = any(base.checkpoint is not None for base in loaded.study.bases.values())
    if not asked.anything and not outside:
        return
    device = device_named(asked.device or "h100")
    plans, runs = dict(_trainings(loaded, asked, device)), dict(_rl_runs(loaded, asked, device))
    reckoned = (*plans, *runs)
    unknown = [
        n for n, s in loaded.study.checkpoints.items() if isinstance(s, TrainSpec | RLSpec) and n not in reckoned
    ]
    if unknown:
        say(f"\nno plan of devices for {', '.join(unknown)}: the shape of its base's model is not known here")
    _show_plans(loaded, plans, device)
    _show_rl(runs, device)
    if reckoned:
        _show_hours(costs, device, asked.utilisation or UTILISATION)
    _refuse(plans, asked)
    _refuse_rl(runs, asked)


def _show_plans(loaded: LoadedStudy, plans: Mapping[str, TrainingPlan], device: Device) -> None:
    if not plans:
        return
    for name, spec in loaded.study.checkpoints.items():
        if isinstance(spec, TrainSpec) and spec.lora is not None:
            say(f"\n{name} trains adapters; it is reckoned as if all weights were trained, an upper bound")
    say("\ntrainings, a seed")
    table(
        ["checkpoint", "parameters", "steps x rows x tokens", "tokens", "operations", "attention", "again"],
        [_budget(name, plan) for name, plan in plans.items()],
        right=(1, 2, 3, 4, 5, 6),
    )
    share = next(iter(plans.values())).machine.utilisation
    rate = f"{number_text(device.rate)}FLOP/s ({device.source})"
    say(f"\non {device.name}: {rate}, of which training is taken to reach {share:.0%}")
    table(
        ["checkpoint", "devices", "shard", "memory a device", "fits", "time", "tokens/s", "device hours", "disk"],
        [_on_devices(name, plan) for name, plan in plans.items()],
        right=(1, 2, 3, 5, 6, 7, 8),
    )
    _show_memory(plans)


def _budget(name: str, plan: TrainingPlan) -> list[str]:
    model, setting = plan.operations.model, plan.setting
    return [
        name,
        number_text(plan.shape.parameters),
        f"{plan.steps:,} x {setting.rows:,} x {setting.seq_len:,}",
        number_text(plan.tokens),
        number_text(plan.total_operations),
        f"{model.attention / model.total:.1%}",
        f"{plan.operations.again / model.total:.1%}",
    ]


def _on_devices(name: str, plan: TrainingPlan) -> list[str]:
    limit = plan.machine.memory
    return [
        name,
        f"{plan.machine.devices:,}",
        f"{plan.setting.shard:,}",
        f"{plan.memory.total / GB:.3g} GB",
        "" if limit is None else f"yes, {limit / GB:g} GB" if plan.fits else f"no, {limit / GB:g} GB",
        seconds_text(plan.seconds),
        number_text(plan.tokens_per_second),
        f"{plan.device_hours:,.1f}",
        _bytes(plan.disk.kept),
    ]


def _memory_text(memory: Memory) -> str:
    parts = {word: float(getattr(memory, part)) / GB for part, word in _PARTS.items()}
    largest = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{word} {size:.3g}" for word, size in largest if size > 0)


def _show_memory(plans: Mapping[str, TrainingPlan]) -> None:
    """What takes the memory, once for trainings that are alike."""
    groups: dict[str, list[str]] = {}
    for name, plan in plans.items():
        groups.setdefault(_memory_text(plan.memory), []).append(name)
    say()
    for text, names in groups.items():
        say(f"GB of a device, {', '.join(names)}: {text}")


def _show_rl(runs: Mapping[str, RLPlan], device: Device) -> None:
    """Memory of RL, its two phases apart, once for runs that are alike."""
    if not runs:
        return
    say(f"\nRL on {device.name}, a seed; every response at its longest")
    table(
        ["checkpoint", "devices", "sharding", "sampled by", "rows a pass", "loading", "sampling", "update", "fits"],
        [_rl_row(name, run) for name, run in runs.items()],
        right=(1, 4, 5, 6, 7),
    )
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        for phase, parts in _PHASES.items():
            groups.setdefault(f"{phase}: {_rl_text(run.memory, parts)}", []).append(name)
    say()
    for text, names in groups.items():
        say(f"GB of a device, {', '.join(names)}, {text}")


def _rl_row(name: str, run: RLPlan) -> list[str]:
    setting, limit = run.setting, run.limit
    sampler = {"process": "transformers", "colocate": f"vLLM, {setting.vllm_share:g} of a device"}
    return [
        name,
        f"{setting.devices:,}",
        setting.sharding,
        sampler.get(setting.sampler, "a server"),
        f"{setting.rows_at_once:,}",
        f"{run.memory.loading / GB:.3g} GB",
        f"{run.memory.sampling / GB:.3g} GB",
        f"{run.memory.update / GB:.3g} GB",
        "" if limit is None else f"{'yes' if run.fits else 'no'}, {limit / GB:g} GB",
    ]


def _rl_text(memory: RLMemory, parts: Sequence[str]) -> str:
    sizes = {_RL_PARTS[part]: float(getattr(memory, part)) / GB for part in parts}
    return ", ".join(f"{word} {size:.3g}" for word, size in sorted(sizes.items(), key=lambda item: -item[1]) if size)


def _show_hours(costs: Sequence[tuple[str, Cost]], device: Device, share: float) -> None:
    """Device hours by kind of step but trainings, over all seeds; what samples at its own share of the rate."""
    kinds: dict[str, list[Cost]] = {}
    for kind, cost in costs:
        if cost.flops and kind != "train":
            kinds.setdefault(kind, []).append(cost)
    rows: list[list[str]] = []
    for kind, found in kinds.items():
        sampled = sum(cost.sampled for cost in found)
        trained = sum(cost.flops or 0.0 for cost in found) - sampled
        hours = (trained / share + sampled / SAMPLING_UTILISATION) / device.rate / 3600
        rows.append([kind, str(len(found)), number_text(trained), number_text(sampled), f"{hours:,.1f}"])
    if not rows:
        return
    say(f"\nother stages, all seeds; sampling, every response at its longest, at {SAMPLING_UTILISATION:.0%}")
    table(["kind", "steps", "trains", "samples", "device hours"], rows, right=(1, 2, 3, 4))


def _refuse(plans: Mapping[str, TrainingPlan], asked: Asked) -> None:
    """A plan for stated devices that does not fit is an error with its remedy; for assumed ones the table tells."""
    for name, plan in plans.items():
        if plan.fits or plan.machine.memory is None or (asked.devices is None and asked.memory_gb is None):
            continue
        where = f"{plan.machine.devices:,} devices of {plan.machine.memory / GB:g} GB"
        has = f"checkpoints.{name} needs {plan.memory.total / GB:.3g} GB a device, more than {where} have"
        change = plan.change()
        if change is None:
            least = f"{plan.least() / GB:.3g} GB is the least, sharded over all, a row at a time, full checkpointing"
            raise SpecError(f"{has}; {least}: take more devices, devices of more memory, or a shorter 'seq_len'")
        after = memory(plan.shape, change.setting).total
        words = [word.replace("shard:", "mesh.shard:") for word in change.words]
        raise SpecError(f"{has}; the smallest change that fits ({after / GB:.3g} GB) is {' and '.join(words)}")


def _refuse_rl(runs: Mapping[str, RLPlan], asked: Asked) -> None:
    """The same of RL; vLLM also has to fit its own share."""
    for name, run in runs.items():
        if run.fits or run.limit is None or (asked.devices is None and asked.memory_gb is None):
            continue
        where = f"{run.setting.devices:,} devices of {run.limit / GB:g} GB"
        has = f"checkpoints.{name} needs {run.memory.total / GB:.3g} GB a device, more than {where} have"
        if run.starved:
            share = run.setting.vllm_share * run.limit
            has = (
                f"checkpoints.{name}: vLLM needs {run.vllm_least / GB:.3g} GB of a device for its weights and one row, "
                f"but 'vllm.gpu_memory: {run.setting.vllm_share:g}' gives it {share / GB:.3g} GB of {where}"
            )
        change = run.change()
        if change is None:
            raise SpecError(
                f"{has}; nothing that spreads or frees memory is enough: take more devices, devices of more memory, "
                "or a shorter 'max_new_tokens'"
            )
        after = run.after(change).total
        raise SpecError(f"{has}; the smallest change that fits ({after / GB:.3g} GB) is {' and '.join(change.words)}")
