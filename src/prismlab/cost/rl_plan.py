"""RL on devices: whether it fits, and the smallest change with which it would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from prismlab.cost.rl import RLMemory, RLSetting, rl_memory, rl_setting, vllm_least
from prismlab.cost.shapes import Shape


@dataclass(frozen=True)
class RLChange:
    """A setting that fits, and in words what is different from the one that did not."""

    setting: RLSetting
    words: tuple[str, ...]


class _Choice(NamedTuple):
    """What one thing may be changed to, and how a study file says it; both are empty for what it is."""

    changes: dict[str, Any]
    words: str


def _choices(setting: RLSetting) -> list[list[_Choice]]:
    """For each thing that may be changed, what it may be changed to, the present one first."""
    sleep, share, spread = ([_Choice({}, "")] for _ in range(3))
    sampler = setting.sampler
    if setting.sharding == "none" and setting.devices > 1 and setting.adapter is None:
        if sampler == "process":
            spread.append(
                _Choice({"sharding": "zero3", "sampler": "colocate"}, "sharding: zero3 with vllm: {mode: colocate}")
            )
            sampler = "colocate"
        elif sampler != "server":
            spread.append(_Choice({"sharding": "zero3"}, "sharding: zero3 instead of none"))
    elif setting.sharding == "fsdp":
        spread.append(_Choice({"sharding": "zero3"}, "sharding: zero3 instead of fsdp"))
    if sampler == "colocate":
        now = setting.vllm_share
        shares = [round(0.05 * step, 2) for step in range(18, 0, -1)]
        ordered = sorted(shares, key=lambda value: abs(value - now))
        words = "vllm.gpu_memory: {} instead of {}"
        share += [_Choice({"vllm_share": v}, words.format(v, now)) for v in ordered if v != now]
        if not setting.sleep:
            sleep.append(_Choice({"sleep": True}, "vllm.sleep: true"))
    return [sleep, share, spread]


def rl_fits(shape: Shape, setting: RLSetting, limit: float) -> bool:
    """Whether a device of ``limit`` bytes holds it, and vLLM's share of it holds vLLM."""
    starved = setting.sampler == "colocate" and vllm_least(shape, setting) > setting.vllm_share * limit
    return not starved and rl_memory(shape, setting, limit).total <= limit


def smallest_rl_change(shape: Shape, setting: RLSetting, limit: float) -> RLChange | None:
    """The setting nearest to ``setting`` that fits ``limit`` bytes; None where none does.

    Nearest is the fewest things changed; of as many, what changes least: sleep, then vLLM's share, then the sharding.
    """
    found: list[tuple[tuple[int, ...], RLChange]] = []
    for places in product(*(range(len(choices)) for choices in _choices(setting))):
        picked = [choices[at] for choices, at in zip(_choices(setting), places, strict=True)]
        changes = {key: value for choice in picked for key, value in choice.changes.items()}
        one = replace(setting, **changes)
        if one.sampler != "colocate" and changes.keys() & {"vllm_share", "sleep"}:
            continue
        words = tuple(choice.words for choice in picked if choice.words)
        if rl_fits(shape, one, limit):
            found.append(((len(words), *reversed(places)), RLChange(one, words)))
    return min(found, key=lambda each: each[0])[1] if found else None


@dataclass(frozen=True, kw_only=True)
class RLPlan:
    """What one RL run needs of a device."""

    shape: Shape
    setting: RLSetting
    memory: RLMemory
    limit: float | None
    """Bytes a device; None where it is not known, and nothing is refused then."""

    @property
    def vllm_least(self) -> float:
        """Bytes of a device that vLLM needs at least, where it samples there."""
        return vllm_least(self.shape, self.setting) if self.setting.sampler == "colocate" else 0.0

    @property
    def starved(self) -> bool:
        """Whether vLLM's share does not hold vLLM."""
        return self.limit is not None and self.vllm_least > self.setting.vllm_share * self.limit

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds it; also where that is not known."""
        return self.limit is None or rl_fits(self.shape, self.setting, self.limit)

    def change(self) -> RLChange | None:
        """The nearest setting that fits; None where none does or none is needed."""
        if self.fits or self.limit is None:
            return None
        return smallest_rl_change(self.shape, self.setting, self.limit)

    def after(self, change: RLChange) -> RLMemory:
        """The memory with that change."""
        return rl_memory(self.shape, change.setting, self.limit)


def plan_rl(
    shape: Shape, spec: Mapping[str, Any], devices: int, limit: float | None = None, kind: str = "cuda"
) -> RLPlan:
    """The memory of an RL run (JSON of ``RLSpec``) on devices of ``limit`` bytes."""
    setting = rl_setting(shape, spec, devices, kind)
    return RLPlan(shape=shape, setting=setting, memory=rl_memory(shape, setting, limit), limit=limit)
