"""The study's settings by name, engines for GPUs against the library's own fields, vLLM's path with a stand-in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import TrainerCallback
from trl import GRPOConfig

from prismlab.cost import rl as costs
from prismlab.data.items import Item
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.rl import settings as module
from prismlab.rl.rewards import Reward
from prismlab.rl.rollouts import Prompt
from prismlab.rl.settings import FSDP, ZERO3, grpo_config, sharding_settings, vllm_settings
from prismlab.rl.trainer import Trainer, quiet_libraries
from prismlab.study.checkpoints import RLSpec

ROOT = Path(__file__).parents[2]
TABLES = ROOT.parent / "shared" / "paper" / "tables.json"
FIELDS = {field.name for field in dataclasses.fields(GRPOConfig)}
VLLM = {"mode": "colocate", "gpu_memory": 0.4, "tensor_parallel": 2, "max_model_length": 16384, "sleep": True}


def test_defaults_are_table_21() -> None:
    if not TABLES.is_file():
        pytest.skip("the reference study's tables are not beside this checkout")
    table = json.loads(TABLES.read_text())["table21_rl_hparams"]
    spec = RLSpec.model_validate({"stage": "rl", "from": "mid", "prompts": "mc"})
    assert spec.samples == table["responses_per_prompt"]
    assert (spec.temperature, spec.top_p) == (table["temperature"], table["top_p"])
    assert spec.prompts_per_step == table["prompts_per_batch"]
    assert spec.prompts_per_step * spec.samples == table["batch"]
    assert spec.steps == table["steps"]
    assert spec.optimizer.lr == table["lr"]
    assert (spec.optimizer.schedule, spec.optimizer.final_lr_factor) == ("linear", 0.0)
    assert spec.kl_beta == table["kl_beta"]
    assert spec.ratio_cap == table["truncated_is_cap"]
    assert spec.max_new_tokens + 1024 == table["context"], "1,024 of the context for the prompt"
    assert spec.reference_every > 0, "soft-updated"
    assert spec.no_stop_penalty > 0
    assert spec.repetition_penalty > 0


def test_what_the_study_leaves_open_is_marked() -> None:
    ours = {
        "reference_mixup",
        "reference_every",
        "epsilon_low",
        "epsilon_high",
        "no_stop_penalty",
        "repetition_penalty",
    }
    for name in ours | {"repetition_ngram"}:
        assert "(*ours*)" in str(RLSpec.model_fields[name].description), name
    for name in ("kl_beta", "ratio_cap", "samples", "temperature", "steps"):
        assert "ours" not in str(RLSpec.model_fields[name].description), name


def test_vllm_as_the_library_documents_it(rl_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    here = vllm_settings(rl_spec(vllm=VLLM), None)
    assert here.keys() <= FIELDS
    assert here["vllm_importance_sampling_mode"] == "token_truncate"
    assert here["vllm_importance_sampling_clip_max"] == 2.0
    config = grpo_config(rl_spec(vllm=VLLM), 1, tmp_path)
    assert (config.use_vllm, config.vllm_mode, config.vllm_tensor_parallel_size) == (True, "colocate", 2)
    assert (config.vllm_gpu_memory_utilization, config.vllm_max_model_length) == (0.4, 16384)
    assert config.vllm_enable_sleep_mode is True
    there = rl_spec(vllm={"mode": "server", "server": "big"})
    config = grpo_config(there, 1, tmp_path, server="http://gpu:8000")
    assert (config.vllm_mode, config.vllm_server_base_url) == ("server", "http://gpu:8000")
    assert vllm_settings(rl_spec(vllm=VLLM, ratio_cap=None), None)["vllm_importance_sampling_correction"] is False
    assert vllm_settings(rl_spec(), None) == {}


def test_sharding_as_the_files_that_we_ship_have_it(rl_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = ROOT / "examples" / "accelerate"
    assert json.loads((folder / "zero3.json").read_text()) == ZERO3
    shipped = yaml.safe_load((folder / "fsdp2.yaml").read_text())["fsdp_config"]
    assert {key.removeprefix("fsdp_"): value for key, value in shipped.items()} == FSDP
    for name in ("fsdp", "zero3"):
        spec = rl_spec(sharding=name, vllm=VLLM)
        assert sharding_settings(spec).keys() <= FIELDS
    with quiet_libraries():
        config = grpo_config(rl_spec(sharding="fsdp", vllm=VLLM), 1, tmp_path)
    assert config.fsdp is True
    assert config.fsdp_plugin_args["fsdp_version"] == 2
    assert sharding_settings(rl_spec()) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sharding": "fsdp"}, "needs 'vllm'"),
        ({"vllm": VLLM, "server": "x"}, "exclude one another"),
        ({"vllm": {"mode": "server"}}, "'server' is the name"),
        ({"vllm": {"server": "x"}}, "'server' is the name"),
        ({"lora": {}, "kl_beta": 0.05}, "reference_every: 0"),
        ({"lora": {}, "sharding": "zero3", "vllm": VLLM}, "goes without"),
        ({"server": "x", "top_p": 0.9}, "at temperature 1"),
        ({"nproc": 2}, "needs 'launch: torchrun'"),
        ({"launch": "torchrun", "nproc": 3}, "cannot be split over 3"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str, rl_spec: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match=said):
        rl_spec(**changes)


def test_a_step_is_split_over_processes(rl_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    spec = rl_spec(prompts_per_step=4, samples=4, max_new_tokens=10)
    whole, half = (grpo_config(spec, 1, tmp_path, processes) for processes in (1, 2))
    assert whole.per_device_train_batch_size * whole.gradient_accumulation_steps == 16
    assert half.per_device_train_batch_size * half.gradient_accumulation_steps == 8


RESPONSES = [[9, 0], [4, 4, 4], [7], [30, 31], [5], [6, 0], [8, 8], [1, 2, 3]]
OFFSETS = [0.0, math.log(3.0), -math.log(2.0), 0.5, 0.0, math.log(1.5), 0.0, -1.0]
REWARDS = [1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, -0.1]


class StandIn:
    """vLLM as the library calls it: gives ``RESPONSES``, and claims each token ``offset`` less likely than it is."""

    made: dict[str, Any]
    synced = 0

    def __init__(self, model: Any, **asked: Any) -> None:
        self.model = model
        StandIn.made = asked

    def sync_weights(self) -> None:
        StandIn.synced += 1

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], num_generations: int, **_: Any) -> Any:
        told = []
        for prompt, response, offset in zip(prompts, RESPONSES, OFFSETS, strict=True):
            logits = self.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            logs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
            own = logs.gather(1, torch.tensor(response)[:, None])[:, 0] - offset
            told.append([[value] for value in own.tolist()])
        return prompts, RESPONSES, told, None


@pytest.mark.parametrize("cap", [2.0, None])
def test_the_truncated_ratio_with_vllm_by_hand(
    cap: float | None,
    start: Path,
    rl_spec: Callable[..., dict[str, Any]],
    make_item: Callable[..., Item],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient of one step is that of -sum A min(ratio, cap) log pi / tokens, token by token."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)
    StandIn.synced = 0
    spec = rl_spec(vllm=VLLM, steps=1, ratio_cap=cap, optimizer={"lr": 1e-30, "clip": None})
    model, tokenizer = load_model(start / "model"), load_tokenizer(start / "model")
    prompts = [Prompt(item=make_item(n), ids=(0, 40 + at), correct=1, samples=4) for at, n in enumerate("ab")]
    queue = list(REWARDS)
    gradients: dict[str, torch.Tensor] = {}
    texts: list[str] = []

    def reward(item: Item, completion: Any) -> Reward:
        texts.append(completion.text)
        value = queue.pop(0)
        return Reward(reward=value, form_ok=True, score=value, verdict="", reason="", no_stop=0.0, repetition=0.0)

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    rollouts: list[Any] = []
    with quiet_libraries():
        trainer = Trainer(
            model=model,
            tokenizer=tokenizer,
            prompts=prompts,
            spec=spec,
            seed=5,
            sampler=None,
            reward=reward,
            on_rollout=rollouts.append,
            scratch=tmp_path,
        )
        trainer.add_callback(Keep())
        trainer.train()
    assert StandIn.synced == 1
    assert StandIn.made["tensor_parallel_size"] == 2
    assert texts[0] == tokenizer.decode([9])
    assert [one.finished for one in rollouts[0].completions] == [row[-1] == 0 for row in RESPONSES]
    scale = torch.tensor(REWARDS).view(2, 4)
    advantages = ((scale - scale.mean(1, keepdim=True)) / (scale.std(1, keepdim=True) + 1e-4)).flatten().tolist()
    model.zero_grad()
    loss, tokens = torch.zeros(()), sum(map(len, RESPONSES))
    for prompt, response, advantage, offset in zip(rollouts[0].prompts, RESPONSES, advantages, OFFSETS, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt.ids, *response]])).logits[0]
        logs = torch.log_softmax(logits, dim=-1)[len(prompt.ids) - 1 : -1]
        chosen = logs.gather(1, torch.tensor(response)[:, None])
        ratio = 1.0 if cap is None else min(math.exp(offset), cap)
        loss = loss - advantage * ratio * chosen.sum() / tokens
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_tokens_a_pass_hold_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "TOKENS_A_FORWARD", 100)
    assert [module.rows_a_pass(24, tokens) for tokens in (1, 10, 30, 1000)] == [24, 8, 3, 1]
