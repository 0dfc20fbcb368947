"""GRPO against cases worked out by hand, with a sampler that says what it is told to."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prismlab.cost import rl as costs
from prismlab.data.items import Item
from prismlab.errors import StageError
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler
from prismlab.rl import trainer as module
from prismlab.rl.rewards import Reward
from prismlab.rl.rollouts import Prompt, Rollout
from prismlab.rl.settings import grpo_config, rows_a_pass
from prismlab.rl.trainer import Trainer, prompt_order, quiet_libraries, truncated_ratio

RESPONSES = [[9, 0], [4, 4, 4], [7], [30, 31, 32, 33], [5], [6, 0], [8, 8], [1, 2, 3]]
"""Responses of 2 prompts x 4 samples."""


class Scripted:
    """A sampler that gives ``RESPONSES`` and claims that each token was ``offset`` less likely than it is."""

    def __init__(self, model: Any, offsets: Sequence[float] | None) -> None:
        self.model, self.offsets = model, offsets
        self.calls: list[tuple[list[list[int]], int, SamplingSettings, int]] = []

    def sample(self, prompts: Any, n: int, settings: SamplingSettings, seed: Any, progress: Any = None) -> Any:
        self.calls.append(([list(p) for p in prompts], n, settings, seed))
        given = iter(zip(RESPONSES, self.offsets or [0.0] * len(RESPONSES), strict=True))
        return [[self.completion(list(prompt), *next(given)) for _ in range(n)] for prompt in prompts]

    def completion(self, prompt: list[int], tokens: list[int], offset: float) -> Completion:
        logs = token_logps(self.model, prompt, tokens).tolist()
        claimed = None if self.offsets is None else [value - offset for value in logs]
        return Completion(token_ids=tokens, text="", logprobs=None, sampler_logprobs=claimed, finished=tokens[-1] == 0)


@torch.no_grad()
def token_logps(model: Any, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of ``tokens`` after ``prompt``, row by row and without a cache."""
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0]
    logs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return logs.gather(1, torch.tensor(tokens)[:, None])[:, 0]


class Probe(TrainerCallback):
    """Keeps gradients before each optimizer step, and what was logged after it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.logs: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.gradients.append({name: p.grad.clone() for name, p in self.model.named_parameters()})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))


class Setup:
    """A trainer on the tiny model, its sampler and its probe."""

    def __init__(
        self,
        start: Path,
        scratch: Path,
        spec: dict[str, Any],
        items: Sequence[Item],
        rewards: Sequence[float | None] | Callable[[Item, Completion], float | None],
        offsets: Sequence[float] | None = (0.0,) * 8,
        scripted: bool = True,
        seed: int = 5,
    ) -> None:
        self.model = load_model(start / "model")
        self.tokenizer = load_tokenizer(start / "model")
        self.sampler: Any = (
            Scripted(self.model, offsets) if scripted else TransformersSampler(self.model, self.tokenizer)
        )
        self.rollouts: list[Rollout] = []
        self.queue: list[float | None] = []

        def reward(item: Item, completion: Completion) -> Reward:
            if callable(rewards):
                value = rewards(item, completion)
            else:
                self.queue = self.queue or list(rewards)
                value = self.queue.pop(0)
            return Reward(reward=value, form_ok=True, score=value, verdict="", reason="", no_stop=0.0, repetition=0.0)

        self.prompts = [
            Prompt(item=item, ids=(0, *(40 + place for place in range(size))), correct=1, samples=4)
            for size, item in enumerate(items, start=2)
        ]
        with quiet_libraries():
            self.trainer = Trainer(
                model=self.model,
                tokenizer=self.tokenizer,
                prompts=self.prompts,
                spec=spec,
                seed=seed,
                sampler=self.sampler,
                reward=reward,
                on_rollout=self.rollouts.append,
                scratch=scratch,
            )
        self.probe = Probe(self.model)
        self.trainer.add_callback(self.probe)

    def train(self) -> Setup:
        with quiet_libraries():
            self.trainer.train()
        return self


@pytest.fixture
def setup(
    start: Path, tmp_path: Path, rl_spec: Callable[..., dict[str, Any]], make_item: Callable[..., Item]
) -> Callable[..., Setup]:
    def make(rewards: Any, offsets: Any = (0.0,) * 8, scripted: bool = True, seed: int = 5, **changes: Any) -> Setup:
        items = [make_item("a"), make_item("b")]
        return Setup(start, tmp_path / "scratch", rl_spec(**changes), items, rewards, offsets, scripted, seed)

    return make


def test_truncated_ratio_by_hand() -> None:
    trainer = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -9.0]], requires_grad=True)
    sampler = torch.tensor([[-1.0, -2.5, -6.0], [-0.5, -1.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    ratio = truncated_ratio(trainer, sampler, mask, 2.0)
    assert not ratio.requires_grad
    expected = [1.0, math.exp(0.5), 2.0, math.exp(-0.5), 1.0, 1.0]
    assert ratio.flatten().tolist() == pytest.approx(expected)


REWARDS = [1.0, 0.0, 0.0, None, 0.5, 0.5, 0.5, -0.1]
"""One response has no verdict."""


def advantages_by_hand() -> list[float]:
    # First group: mean 1/3 over three, standard deviation with n - 1: sqrt((4/9 + 1/9 + 1/9) / 2) = sqrt(1/3).
    # Second group: mean 0.35, squares 3 x 0.0225 + 0.2025 = 0.27, standard deviation sqrt(0.27 / 3) = 0.3.
    first, second = math.sqrt(1 / 3) + 1e-4, 0.3 + 1e-4
    return [
        *((2 / 3) / first, (-1 / 3) / first, (-1 / 3) / first, 0.0),
        *(0.15 / second, 0.15 / second, 0.15 / second, -0.45 / second),
    ]


@pytest.mark.parametrize("cap", [2.0, 0.9, None])
def test_loss_and_gradient_by_hand(setup: Callable[..., Setup], cap: float | None) -> None:
    """One step: -sum over all tokens of A * min(ratio, cap) * grad log pi, divided by the number of tokens."""
    offsets = [0.0, math.log(3.0), -math.log(2.0), 0.5, 0.0, math.log(1.5), 0.0, -1.0]
    built = setup(REWARDS, offsets, steps=1, ratio_cap=cap, optimizer={"lr": 1e-30, "clip": None})
    trained = built.train()
    rollout = trained.rollouts[0]
    tokens = sum(len(response) for response in RESPONSES)
    loss, value = torch.zeros(()), 0.0
    rows = zip(rollout.prompts, RESPONSES, advantages_by_hand(), offsets, strict=True)
    for prompt, response, advantage, offset in rows:
        ratio = 1.0 if cap is None else min(math.exp(offset), cap)
        value -= advantage * ratio * len(response) / tokens
        logits = trained.model(input_ids=torch.tensor([[*prompt.ids, *response]])).logits[0]
        logs = torch.log_softmax(logits, dim=-1)[len(prompt.ids) - 1 : -1]
        chosen = logs.gather(1, torch.tensor(response)[:, None])
        loss = loss - advantage * ratio * chosen.sum() / tokens
    assert trained.probe.logs[0]["loss"] == pytest.approx(value, abs=1e-5)
    trained.model.zero_grad()
    loss.backward()
    for name, parameter in trained.model.named_parameters():
        torch.testing.assert_close(trained.probe.gradients[0][name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_accumulated_passes_make_the_same_step(setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = setup(REWARDS, steps=1).train()
    monkeypatch.setattr(costs, "TOKENS_A_FORWARD", 12)  # two rows of six tokens a pass
    parts = setup(REWARDS, steps=1)
    assert parts.trainer.args.gradient_accumulation_steps == 4
    parts.train()
    assert len(parts.sampler.calls) == len(parts.rollouts) == 1
    for name, gradient in parts.probe.gradients[0].items():
        torch.testing.assert_close(gradient, whole.probe.gradients[0][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("every", [1, 2])
def test_soft_reference_by_hand(setup: Callable[..., Setup], start: Path, every: int) -> None:
    """After the first update: reference = 0.6 * policy + 0.4 * reference; before it, the start."""
    built = setup(REWARDS, steps=1, kl_beta=0.05, reference_every=every, reference_mixup=0.6).train()
    old = dict(load_model(start / "model").named_parameters())
    reference = dict(built.trainer.ref_model.named_parameters())
    moved = 0.0
    for name, policy in built.model.named_parameters():
        expected = 0.6 * policy + 0.4 * old[name] if every == 1 else old[name]
        torch.testing.assert_close(reference[name], expected, atol=1e-7, rtol=1e-6)
        moved += (policy - old[name]).abs().sum().item()
    assert moved > 0


def test_reference_without_updates_stays(setup: Callable[..., Setup], start: Path) -> None:
    built = setup(REWARDS, steps=2, kl_beta=0.05, reference_every=0).train()
    old = dict(load_model(start / "model").named_parameters())
    assert all(torch.equal(p, old[name]) for name, p in built.trainer.ref_model.named_parameters())


def test_kl_penalty_by_hand(setup: Callable[..., Setup], start: Path) -> None:
    """Without any advantage, the loss of the second step is beta times the mean of exp(d) - d - 1, d = ref - policy."""
    equal = [1.0, 0.0, 0.0, 0.0] * 2
    built = setup(equal, steps=2, kl_beta=0.5, reference_every=0, optimizer={"lr": 1e-2, "schedule": "constant"})
    policies: list[Any] = []

    class Copy(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            policies.append({name: p.detach().clone() for name, p in built.model.named_parameters()})
            built.queue = [0.25] * 8  # the second step teaches nothing but the penalty

    built.trainer.add_callback(Copy())
    built.train()
    old, new = load_model(start / "model"), load_model(start / "model")
    new.load_state_dict(policies[0])
    total, tokens = 0.0, 0
    for prompt, response in zip(built.rollouts[1].prompts, RESPONSES, strict=True):
        d = token_logps(old, list(prompt.ids), response) - token_logps(new, list(prompt.ids), response)
        total += (d.exp() - d - 1).sum().item()
        tokens += len(response)
    assert built.probe.logs[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert total / tokens > 1e-3
    assert built.probe.logs[1]["kl"] == pytest.approx(total / tokens, rel=1e-3)
    assert built.probe.logs[1]["loss"] == pytest.approx(0.5 * total / tokens, rel=1e-3)


def test_learning_raises_the_rewarded_token(setup: Callable[..., Setup]) -> None:
    token = 65
    built = setup(
        lambda item, completion: float(token in completion.token_ids),
        scripted=False,
        steps=12,
        samples=64,
        max_new_tokens=4,
        optimizer={"lr": 1e-2, "schedule": "constant"},
    )
    prompt = list(built.prompts[0].ids)
    before = token_logps(built.model, prompt, [token]).exp().item()
    built.train()
    assert before < 0.02
    assert token_logps(built.model, prompt, [token]).exp().item() > 5 * before
    passed = [sum(r.reward or 0.0 for r in rollout.rewards) for rollout in built.rollouts]
    assert sum(passed[-3:]) > sum(passed[:3])


def test_equal_rewards_without_penalty_change_nothing(setup: Callable[..., Setup], start: Path) -> None:
    built = setup([0.0] * 8, steps=2).train()
    old = dict(load_model(start / "model").named_parameters())
    assert all(torch.equal(p, old[name]) for name, p in built.model.named_parameters())


def test_sampler_gets_each_prompt_once_and_a_seed_of_the_step(setup: Callable[..., Setup]) -> None:
    first, second = setup(REWARDS, steps=3).train(), setup(REWARDS, steps=3, seed=6).train()
    again = setup(REWARDS, steps=3)
    torch.rand(7)  # what the process drew elsewhere must not matter
    again.train()
    for prompts, n, asked, _ in first.sampler.calls:
        assert sorted(prompts) == sorted([list(p.ids) for p in first.prompts])
        assert n == 4
        assert asked == SamplingSettings(max_new_tokens=6, temperature=1.0, top_p=1.0)
    seeds = [seed for call in first.sampler.calls for seed in call[3]]
    assert len(set(seeds)) == 3 * 2
    assert [seed for call in again.sampler.calls for seed in call[3]] == seeds
    assert [call[0] for call in again.sampler.calls] == [call[0] for call in first.sampler.calls]
    assert set(seeds).isdisjoint(seed for call in second.sampler.calls for seed in call[3])
    order = [list(p.ids) for p in first.rollouts[0].prompts]
    assert order == [order[0]] * 4 + [order[4]] * 4
    assert [rollout.step for rollout in first.rollouts] == [1, 2, 3]


def test_loss_that_is_not_finite_stops_before_the_update(setup: Callable[..., Setup], start: Path) -> None:
    built = setup(REWARDS, [math.nan] * 8)
    with pytest.raises(StageError, match=r"step 1: loss is nan"):
        built.train()
    old = dict(load_model(start / "model").named_parameters())
    assert all(torch.equal(p, old[name]) for name, p in built.model.named_parameters())


def test_sampler_without_log_probabilities(setup: Callable[..., Setup]) -> None:
    with pytest.raises(StageError, match="ratio_cap: null"):
        setup(REWARDS, None).train()
    uncorrected = setup(REWARDS, None, steps=1, ratio_cap=None).train()
    corrected = setup(REWARDS, [0.0] * 8, steps=1).train()
    for name, gradient in uncorrected.probe.gradients[0].items():
        torch.testing.assert_close(gradient, corrected.probe.gradients[0][name], atol=1e-6, rtol=1e-4)


def test_schedule_and_bf16(setup: Callable[..., Setup]) -> None:
    optimizer = {"lr": 1e-3, "schedule": "linear", "final_lr_factor": 0.0, "clip": 1e-3}
    built = setup(REWARDS, steps=3, precision="bf16", optimizer=optimizer).train()
    assert [row["learning_rate"] for row in built.probe.logs if "loss" in row] == pytest.approx([1e-3, 5e-4, 0.0])
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    norm = math.sqrt(sum(g.square().sum().item() for g in built.probe.gradients[0].values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    exact = setup(REWARDS, steps=1, optimizer=optimizer).train()
    first = built.probe.logs[0]["loss"]
    assert first == pytest.approx(exact.probe.logs[0]["loss"], rel=0.1)
    assert any(not torch.equal(g, exact.probe.gradients[0][name]) for name, g in built.probe.gradients[0].items())


def test_tokenizer_is_left_alone_and_nothing_is_reported(setup: Callable[..., Setup]) -> None:
    built = setup(REWARDS, steps=1)
    assert built.tokenizer.pad_token is None
    assert built.trainer.args.report_to == []
    assert Trainer._send_telemetry is not module.GRPOTrainer._send_telemetry


def test_prompt_order() -> None:
    order = prompt_order(5, 12, 3)
    assert len(order) == 12
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10]
    assert order == prompt_order(5, 12, 3) != prompt_order(5, 12, 4)
    assert order[:7] == prompt_order(5, 7, 3)


@pytest.mark.parametrize(
    ("total", "tokens", "rows"), [(128, 64, 128), (1024, 15_360, 4), (1024, 100_000, 1), (96, 2000, 32)]
)
def test_rows_a_pass(total: int, tokens: int, rows: int) -> None:
    assert rows_a_pass(total, tokens) == rows


def test_settings_reach_the_library(rl_spec: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = grpo_config(rl_spec(kl_beta=0.05, epsilon_low=0.1, epsilon_high=0.3, reference_every=64), 3, tmp_path)
    wanted = {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "num_iterations": 1,
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "beta": 0.05,
        "sync_ref_model": True,
        "ref_model_sync_steps": 64,
        "ref_model_mixup_alpha": 0.6,
        "use_bias_correction_kl": False,
        "num_generations": 4,
        "max_grad_norm": math.inf,
        "bf16": False,
        "seed": 3,
    }
    assert {key: getattr(config, key) for key in wanted} == wanted
    assert grpo_config(rl_spec(kl_beta=0.0, reference_every=64), 3, tmp_path).sync_ref_model is False


def test_only_the_libraries_are_quiet() -> None:
    logger = logging.getLogger("trl")
    level = logger.level
    with quiet_libraries():
        assert not logger.isEnabledFor(logging.WARNING)
        with pytest.warns(UserWarning, match="ours"):
            warnings.warn("ours", UserWarning, stacklevel=1)
    assert logger.level == level


def test_means_are_over_the_tokens_of_the_step(setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of few and of many tokens: each token weighs alike, in one pass or in four."""
    offsets = [0.0, math.log(3.0), -math.log(2.0), 0.5, 0.0, math.log(1.5), 0.0, -1.0]
    asked: dict[str, Any] = {"steps": 2, "kl_beta": 0.05, "reference_every": 0, "ratio_cap": 2.0}
    whole = setup(REWARDS, offsets, **asked).train()
    monkeypatch.setattr(costs, "TOKENS_A_FORWARD", 12)
    parts = setup(REWARDS, offsets, **asked).train()
    lengths = [len(response) for response in RESPONSES]
    ratios = [min(math.exp(offset), 2.0) for offset in offsets]
    mean = sum(ratio * length for ratio, length in zip(ratios, lengths, strict=True)) / sum(lengths)
    for logs in (whole.probe.logs, parts.probe.logs):
        assert logs[0]["ratio"] == pytest.approx(mean, rel=1e-4)
        assert logs[0]["ratio_capped"] == pytest.approx(lengths[1] / sum(lengths))
        assert logs[1]["kl"] > 0
    for mine, theirs in zip(parts.probe.logs[:2], whole.probe.logs[:2], strict=True):
        for key in ("entropy", "kl", "ratio", "ratio_capped"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("reward", [-0.1, 0.95])
def test_equal_rewards_of_any_size_change_nothing(setup: Callable[..., Setup], start: Path, reward: float) -> None:
    """In float32 the mean of eight such rewards is another number, and AdamW makes a whole step of any gradient."""
    assert torch.full((8,), reward).mean().item() != torch.tensor(reward).item()
    built = setup(lambda item, completion: reward, scripted=False, steps=1, samples=8).train()
    assert [one.reward for one in built.rollouts[0].rewards] == [reward] * 16
    old = dict(load_model(start / "model").named_parameters())
    assert all(torch.equal(p, old[name]) for name, p in built.model.named_parameters())


def test_only_groups_that_are_equal_are_told_as_0() -> None:
    given = [0.9, 0.9, None, 0.9, 0.9, 0.9, 0.9, 0.8, None, None, None, None, 1.0, None, None, None]
    told = [0.0, 0.0, None, 0.0, 0.9, 0.9, 0.9, 0.8, None, None, None, None, 0.0, None, None, None]
    assert module.without_noise(given, 4) == told


def test_what_was_sampled_is_taken_up_by_all_processes_or_none(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one would wait for another in what all do together: giving a server new weights, sampling with vLLM."""
    kept = [Completion(token_ids=[5], text="", logprobs=None, sampler_logprobs=[0.0], finished=False)]
    trainer: Any = setup(REWARDS).trainer
    trainer._files = SimpleNamespace(sampled=lambda step, chosen: kept)
    assert trainer._taken_up(1) is kept
    other = {"has": True}
    monkeypatch.setattr(
        trainer,
        "accelerator",
        SimpleNamespace(
            num_processes=2,
            device=torch.device("cpu"),
            gather=lambda here: torch.cat([here, torch.tensor([other["has"]])]),
        ),
    )
    assert trainer._taken_up(1) is kept
    other["has"] = False
    assert trainer._taken_up(1) is None
