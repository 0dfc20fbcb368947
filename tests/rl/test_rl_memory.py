"""RL's memory by plan against the tensors of a small run, and its search for what would fit against all there is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from prismlab.cost.hub import hub_shape
from prismlab.cost.rl import (
    RLSetting,
    adapter_parameters,
    cache_bytes,
    rl_memory,
    rl_setting,
    state_bytes,
    vllm_least,
)
from prismlab.cost.rl_plan import plan_rl, rl_fits, smallest_rl_change
from prismlab.cost.shapes import Shape, shape_of
from prismlab.data.items import Item
from prismlab.micro.models import tiny_config
from prismlab.model import lora, passes
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler
from prismlab.rl.logps import response_logps
from prismlab.rl.rewards import Reward
from prismlab.rl.rollouts import Prompt
from prismlab.rl.trainer import Trainer, quiet_libraries

GB = 1e9


def size(tensors: Any) -> int:
    """Bytes of tensors, those that share storage once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(found.values())


def shape_in(model: Any) -> Shape:
    return shape_of(json.loads(model.config.to_json_string()))


def test_what_a_small_run_holds(
    start: Path, rl_spec: Callable[..., dict[str, Any]], make_item: Callable[..., Item], tmp_path: Path
) -> None:
    """Weights, gradients, moments and reference to the byte; the step's responses to 2%."""
    model, tokenizer = load_model(start / "model"), load_tokenizer(start / "model")
    spec = rl_spec(steps=1, kl_beta=0.05, max_new_tokens=12)
    sampler = TransformersSampler(model, tokenizer)
    sampler.stop = -1  # Every response at its longest.
    seen: dict[str, int] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            seen["gradients"] = size(p.grad for p in model.parameters())

    def reward(item: Item, completion: Completion) -> Reward:
        value = float(completion.token_ids[0] % 2)
        return Reward(reward=value, form_ok=True, score=value, verdict="", reason="", no_stop=0.0, repetition=0.0)

    prompts = [Prompt(item=make_item(n), ids=(0, *range(40, 49)), correct=1, samples=4) for n in "ab"]
    given: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "prompts": prompts, "spec": spec, "seed": 5}
    with quiet_libraries():
        trainer = Trainer(**given, sampler=sampler, reward=reward, on_rollout=lambda _: None, scratch=tmp_path)
        trainer.add_callback(Keep())
        trainer.train()
    optimizer, reference = trainer.plain_optimizer, trainer.ref_model
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key.startswith("exp_avg")]
    setting = replace(rl_setting(shape_in(model), spec, 1, "cpu"), prompt=10)
    planned = rl_memory(shape_in(model), setting)
    assert planned.weights == size(model.parameters())
    assert planned.gradients == seen["gradients"]
    assert planned.moments == size(moments)
    assert isinstance(reference, torch.nn.Module)
    assert planned.reference == size(reference.parameters())
    held = size(value for part in trainer._buffered_inputs for value in part.values())
    assert planned.rollouts / 2 == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("arch", ["llama", "granite4-h", "nemotron-h"])
def test_the_cache_of_rows_in_flight(arch: str, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most what is planned, and at least three quarters of it: the rest is room ahead that need not be there."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(arch, 64, 10, 258)).eval()
    shape = shape_in(model)
    kept: list[Any] = []
    begin = passes.Passes.begin

    def begun(self: Any) -> Any:
        kept.append(self.cache)
        return begin(self)

    monkeypatch.setattr(passes, "fits", lambda *_: False)
    monkeypatch.setattr(passes.Passes, "begin", begun)
    sampler = TransformersSampler(model, load_tokenizer(start / "model"))
    sampler.stop = -1
    sampler.sample([list(range(1, 201))] * 2, 4, SamplingSettings(max_new_tokens=120), 1)
    [cache] = kept
    states = ("keys", "values", "conv_states", "recurrent_states")
    held = [getattr(layer, name, None) for layer in cache.layers for name in states]
    flat = [t for one in held for t in (one.values() if isinstance(one, dict) else [one]) if torch.is_tensor(t)]
    spec = {"prompts_per_step": 2, "samples": 4, "max_new_tokens": 120, "precision": "float32", "kl_beta": 0.0}
    rest = {"ratio_cap": None, "sharding": "none", "server": None, "vllm": None, "lora": None}
    setting = replace(rl_setting(shape, {**spec, **rest}, 1, "cpu"), prompt=200)
    planned = rl_memory(shape, setting).cache
    assert planned * 0.75 <= size(flat) <= planned
    if arch != "llama":
        assert state_bytes(shape, 4) > 0
    assert cache_bytes(shape, 4) > 0


@pytest.mark.parametrize("vocab", [258, 5000])
def test_what_a_backward_pass_keeps(vocab: int) -> None:
    """Activations and logits of all chunks together: the plan is above what torch keeps, by a third at most."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config("llama", 64, 4, vocab), attn_implementation="sdpa")
    rows, prompt, new = 24, 40, 160
    setting = RLSetting(responses=rows, max_new_tokens=new, prompt=prompt, device="cpu")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 250, (rows, prompt + new), generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = response_logps(model.train(), ids, torch.ones_like(ids), new, 1.0)
    planned = rl_memory(shape_in(model), setting)
    held = size(kept.values())
    del result
    assert held <= planned.activations + planned.loss
    kept_by_plan = planned.activations + planned.loss * 4 / 12  # Of a logit's 12 bytes, 4 are kept.
    assert held == pytest.approx(kept_by_plan, rel=0.25)


def test_adapters(start: Path) -> None:
    model = load_model(start / "model")
    shape = shape_in(model)
    before = shape.parameters
    lora.add(model, {"rank": 3, "alpha": 6.0, "targets": None})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shape, 3) == trained
    setting = RLSetting(responses=8, max_new_tokens=6, prompt=4, adapter=3, reference=False, device="cpu")
    planned = rl_memory(shape, setting)
    assert planned.weights == 4 * (before + trained)
    assert (planned.gradients, planned.moments, planned.reference) == (4 * trained, 8 * trained, 0)


def granite() -> Shape:
    shape = hub_shape("ibm-granite/granite-3.3-8b-base")
    assert shape is not None
    return shape


STUDY: dict[str, Any] = {
    "prompts_per_step": 64,
    "samples": 16,
    "max_new_tokens": 15_360,
    "precision": "bf16",
    "kl_beta": 0.05,
    "ratio_cap": 2.0,
    "server": None,
    "lora": None,
    "sharding": "zero3",
    "vllm": {"mode": "colocate", "gpu_memory": 0.3, "tensor_parallel": 1, "max_model_length": 16_384, "sleep": True},
}


def test_states_of_a_sharded_run_by_hand() -> None:
    """Twenty bytes a parameter over the devices: sixteen of ZeRO, four of the reference."""
    shape = granite()
    found = plan_rl(shape, STUDY, 8, 80 * GB)
    states = found.memory.weights + found.memory.gradients + found.memory.moments + found.memory.reference
    assert states == pytest.approx(20 * shape.parameters / 8)
    assert (found.setting.tokens, found.setting.rows_at_once, found.fits) == (16_384, 4, True)
    # A layer's input in float32 of each of 4 x 16,384 tokens, and one chunk of one layer.
    assert found.memory.activations > 65_536 * 40 * 4096 * 4
    assert found.memory.vllm_sampling == pytest.approx(24 * GB)
    assert found.memory.vllm == 0.0
    assert vllm_least(shape, found.setting) == 2 * shape.parameters + 16_384 * 40 * 2 * 1024 * 2


def test_a_prompt_s_length_is_a_guess_within_the_model() -> None:
    def prompt(longest: int) -> int:
        return plan_rl(granite(), {**STUDY, "max_new_tokens": longest}, 1).setting.prompt

    assert granite().context == 131_072
    assert [prompt(n) for n in (96, 15_360, 130_572, 131_072)] == [96, 1024, 500, 1]


def test_a_step_s_prompts_are_split_evenly() -> None:
    assert [plan_rl(granite(), STUDY, n).setting.devices for n in (1, 8, 48, 128)] == [1, 8, 32, 64]


def test_one_device_needs_all_of_it() -> None:
    spec = {**STUDY, "sharding": "none", "vllm": None}
    found = plan_rl(granite(), spec, 1, 80 * GB)
    assert found.memory.total > 20 * granite().parameters
    assert not found.fits
    assert found.change() is None
    assert plan_rl(granite(), spec, 1).fits, "nothing is refused where the memory is not known"
    eight = plan_rl(granite(), spec, 8, 80 * GB)
    change = eight.change()
    assert change is not None
    # vLLM asks for the cache of a row at its longest, here the model's own 131,072 tokens: 21.5 GB beside its weights.
    more = "vllm.gpu_memory: 0.5 instead of 0.3"
    assert change.words == ("vllm.sleep: true", more, "sharding: zero3 with vllm: {mode: colocate}")
    assert eight.after(change).total <= 80 * GB


def test_the_whole_model_is_on_a_device_before_it_is_spread() -> None:
    shape = hub_shape("mistralai/Mistral-Small-24B-Base-2501")
    assert shape is not None
    found = plan_rl(shape, {**STUDY, "max_new_tokens": 512}, 64, 80 * GB)
    assert found.memory.total == found.memory.loading > 4 * shape.parameters > 80 * GB
    assert not found.fits


def test_more_devices_and_less_kept_need_less() -> None:
    totals = [plan_rl(granite(), STUDY, n, 80 * GB).memory.total for n in (4, 8, 16, 64)]
    assert totals == sorted(totals, reverse=True)
    base = plan_rl(granite(), STUDY, 8, 80 * GB)
    for more in ({"sharding": "fsdp"}, {"sleep": False}):
        assert rl_memory(granite(), replace(base.setting, **more), 80 * GB).total > base.memory.total


def test_vllm_has_to_fit_its_share() -> None:
    starved = plan_rl(granite(), {**STUDY, "vllm": {**STUDY["vllm"], "gpu_memory": 0.2}}, 8, 80 * GB)
    assert starved.memory.total <= 80 * GB
    assert starved.starved
    assert not starved.fits
    change = starved.change()
    assert change is not None
    assert change.words == ("vllm.gpu_memory: 0.25 instead of 0.2",)


@pytest.mark.parametrize("limit", [30, 60, 70, 80, 100, 141])
def test_the_smallest_change_is_the_best_of_all(limit: int) -> None:
    now = replace(plan_rl(granite(), STUDY, 8).setting, sharding="fsdp", sleep=False, vllm_share=0.6)
    shares = [0.6, *(round(0.05 * n, 2) for n in range(1, 19))]
    every = [
        replace(now, sharding=sharding, sleep=sleep, vllm_share=share)
        for sharding, sleep, share in itertools.product(("fsdp", "zero3"), (False, True), shares)
    ]
    fitting = [one for one in every if rl_fits(granite(), one, limit * GB)]
    found = smallest_rl_change(granite(), now, limit * GB)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert rl_fits(granite(), found.setting, limit * GB)

    def changed(one: RLSetting) -> int:
        return (one.sharding != now.sharding) + (one.sleep != now.sleep) + (one.vllm_share != now.vllm_share)

    assert len(found.words) == changed(found.setting) == min(map(changed, fitting))
