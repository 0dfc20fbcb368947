"""Schedules against their closed forms; decay groups on real architectures; AdamW against torch's own reference."""

from __future__ import annotations

import math

import pytest
import torch

from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.train.optim import (
    EXPONENTIAL_FLOOR,
    adamw,
    decays,
    parameter_groups,
    schedule_factor,
    snapshot_steps,
    stable_steps,
)

SPEC = {
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup": 10,
    "final_lr_factor": 0.1,
    "weight_decay": 0.1,
    "betas": [0.9, 0.95],
    "eps": 1e-10,
}


def test_warmup_rises_linearly_to_the_peak() -> None:
    assert [schedule_factor(step, 100, SPEC) for step in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert schedule_factor(10, 100, SPEC) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential"])
def test_decay_ends_at_the_final_factor(schedule: str) -> None:
    factors = [schedule_factor(step, 100, SPEC | {"schedule": schedule}) for step in range(10, 100)]
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)


def test_midpoints_match_the_closed_forms() -> None:
    # 101 steps without warm-up: step 50 is exactly half way.
    half = {
        s: schedule_factor(50, 101, SPEC | {"schedule": s, "warmup": 0}) for s in ("cosine", "linear", "exponential")
    }
    assert half["cosine"] == pytest.approx(0.55)
    assert half["linear"] == pytest.approx(0.55)
    assert half["exponential"] == pytest.approx(math.sqrt(0.1))


def test_exponential_to_zero_uses_the_stated_floor() -> None:
    spec = SPEC | {"schedule": "exponential", "final_lr_factor": 0.0, "warmup": 0}
    assert schedule_factor(100, 101, spec) == pytest.approx(EXPONENTIAL_FLOOR)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "exponential", "constant"])
@pytest.mark.parametrize(("total", "warmup", "final"), [(100, 10, 0.1), (37, 0, 0.0), (5, 4, 0.5)])
def test_every_step_is_the_closed_form(schedule: str, total: int, warmup: int, final: float) -> None:
    """The formulas of docs/training.md, written out anew in terms of the step."""
    spec = SPEC | {"schedule": schedule, "warmup": warmup, "final_lr_factor": final}
    last = total - 1
    for step in range(total):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            share = (step - warmup) / (last - warmup) if last > warmup else 0.0
            expected = {
                "cosine": final + (1 - final) * math.cos(math.pi / 2 * share) ** 2,
                "linear": (1 - share) + final * share,
                "exponential": math.exp(share * math.log(max(final, 0.01))),
                "constant": 1.0,
            }[schedule]
        assert schedule_factor(step, total, spec) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("total", "warmup", "decay", "final"), [(100, 10, 20, 0.0), (50, 0, None, 0.1), (8, 2, 6, 0.25)]
)
def test_warmup_stable_decay_is_three_straight_lines(total: int, warmup: int, decay: int | None, final: float) -> None:
    spec = SPEC | {"schedule": "wsd", "warmup": warmup, "decay_steps": decay, "final_lr_factor": final}
    parts = decay or total // 10
    rising = [(step + 1) / warmup for step in range(warmup)]
    falling = [1 - (1 - final) * k / parts for k in range(1, parts + 1)]
    expected = [*rising, *[1.0] * (total - warmup - parts), *falling]
    assert [schedule_factor(step, total, spec) for step in range(total)] == pytest.approx(expected, abs=1e-12)
    assert stable_steps(total, spec) == total - parts


@pytest.mark.parametrize("schedule", ["constant", "wsd", "cosine", "linear", "exponential"])
def test_stable_steps_are_those_that_a_longer_run_would_take_too(schedule: str) -> None:
    spec = SPEC | {"schedule": schedule, "warmup": 5, "decay_steps": 10 if schedule == "wsd" else None}
    shared = stable_steps(50, spec)
    short, long = ([schedule_factor(step, total, spec) for step in range(50)] for total in (50, 80))
    same = [a == b for a, b in zip(short, long, strict=True)]
    assert all(same[:shared])
    assert shared == {"constant": 50, "wsd": 40}.get(schedule, 5)
    assert schedule == "constant" or not all(same[shared + 1 :])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_class_spares_just_its_norms_biases_and_mamba_scalars(arch: str) -> None:
    model = build_model(tiny_config(arch, 32, 4, 258), 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert len(decayed) + len(spared) == len(names)
    for name in spared:
        assert name.endswith((".bias", "_bias", ".A_log", ".D")) or "norm" in name, name
    for name in decayed:
        assert not name.endswith(("bias", ".A_log", ".D")), name
        assert "norm" not in name, name
    if arch in ("granite4-h", "nemotron-h"):
        assert {".A_log", ".D", ".dt_bias"} <= {"." + name.rpartition(".")[2] for name in spared}


def test_constant_and_one_step_runs() -> None:
    assert schedule_factor(5, 6, SPEC | {"schedule": "constant", "warmup": 0}) == 1.0
    assert schedule_factor(0, 1, SPEC | {"warmup": 0}) == 1.0


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (8, 8), True),
        ("model.embed_tokens.weight", (8, 8), True),
        ("backbone.layers.0.mixer.conv1d.weight", (8, 1, 4), True),
        ("model.norm.weight", (8,), False),
        ("model.layers.0.mamba.A_log", (8,), False),
        ("model.layers.0.mamba.dt_bias", (8,), False),
        ("model.layers.0.mamba.D", (8,), False),
        ("model.layers.0.mamba.norm.weight", (8,), False),
        ("fc.bias", (8,), False),
    ],
)
def test_weight_decay_spares_norms_biases_and_mamba_scalars(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, torch.nn.Parameter(torch.zeros(shape))) is expected


def test_groups_hold_every_parameter_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    groups = parameter_groups(model, 0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_adamw_step_equals_the_formula_in_float64() -> None:
    weight = torch.tensor([[0.5, -1.0]])
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = weight.clone()
    optimizer = adamw(model, SPEC)
    grad = torch.tensor([[0.3, -0.2]])
    model.weight.grad = grad.clone()
    optimizer.step()
    # Loshchilov and Hutter 2019, algorithm 2, first step: both moments' bias corrections cancel to g and g^2.
    expected = weight.double() * (1 - 1e-3 * 0.1) - 1e-3 * grad.double() / (grad.double().abs() + 1e-10)
    assert torch.allclose(model.weight.detach().double(), expected, atol=1e-7)


def test_snapshots_are_even_and_end_at_the_end() -> None:
    assert sorted(snapshot_steps(100, 4)) == [25, 50, 75, 100]
    assert snapshot_steps(100, 0) == set()
    assert max(snapshot_steps(7, 3)) == 7
    assert 0 not in snapshot_steps(2, 5)
