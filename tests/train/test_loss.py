"""The loss in pieces against the plain one: values, gradients, and how much of it stands in memory at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.train import loss as module
from prismlab.train.loss import IGNORED, Head, head_of, row_losses, splits, token_losses
from prismlab.train.model import checkpoint_activations

torch.set_num_threads(1)


def reference(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    """The same in float64, in one piece, by autograd."""
    logits = hidden.double() @ head.weight.double().T * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("piece", [1, 50 * 7, 10_000])
def test_pieces_equal_float64_in_value_and_gradient(scale: float, cap: float | None, piece: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    labels, given = torch.randint(0, 50, (23,)), torch.rand(23)
    labels[[0, 7, 22]] = IGNORED
    grads: list[tuple[torch.Tensor, ...]] = []
    values: list[torch.Tensor] = []
    head = Head(weight, scale, cap)
    for losses in (token_losses(hidden, head, labels, piece), reference(hidden, head, labels)):
        values.append(losses.detach().double())
        grads.append(torch.autograd.grad((losses * given).sum(), (hidden, weight)))
    torch.testing.assert_close(values[0], values[1], atol=2e-6, rtol=1e-6)
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=5e-6, rtol=1e-5)
    assert not values[0][[0, 7, 22]].any()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_class_has_its_own_loss_in_pieces(arch: str) -> None:
    model, tokens = build_model(tiny_config(arch, 32, 4, 258), 0), torch.randint(0, 256, (3, 20))
    learned = torch.rand(3, 20) < 0.7
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for large in (10**9, 258 * 5):
        model.zero_grad()
        losses = row_losses(model, tokens, learned, large=large)
        losses.sum().backward()
        found.append((losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert splits(model, tokens)
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-6)
    assert set(found[0][1]) == set(found[1][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_granites_logits_are_scaled() -> None:
    model = build_model(tiny_config("granite", 32, 2, 258), 0)
    head = head_of(model)
    assert head is not None
    assert head.scale == pytest.approx(1 / model.config.logits_scaling)
    assert head.scale != 1.0


def test_a_class_that_does_more_to_its_logits_is_not_split() -> None:
    model, tokens = build_model(tiny_config("llama", 32, 2, 258), 0), torch.randint(0, 256, (1, 20))
    whole = model.lm_head.forward
    model.lm_head.forward = lambda hidden: whole(hidden) * 1.01
    assert not splits(model, tokens)
    expected = row_losses(model, tokens, large=10**9)
    assert torch.equal(row_losses(model, tokens, large=1), expected)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_the_whole_logits_are_never_there() -> None:
    """4,096 tokens of a vocabulary of 32,000: 131 million logits, of which a sixteenth at most stands in memory."""
    hidden = torch.randn(4096, 8, requires_grad=True)
    weight = torch.randn(32_000, 8, requires_grad=True)
    labels = torch.randint(0, 32_000, (4096,))
    with Largest() as seen:
        token_losses(hidden, Head(weight, 1.0, None), labels, 2**23).sum().backward()
    assert seen.elements <= 2**23
    assert weight.numel() < seen.elements, "the pieces were seen"


def test_a_model_with_dropout_is_split_too_and_the_trial_draws_nothing() -> None:
    config = tiny_config("llama", 32, 2, 258)
    config.attention_dropout = 0.5
    model, tokens = build_model(config, 0).train(), torch.randint(0, 256, (2, 20))
    before = torch.get_rng_state()
    assert splits(model, tokens)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)  # it has dropout indeed


def test_pieces_are_chosen_where_the_logits_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build_model(tiny_config("llama", 32, 2, 258), 0), torch.randint(0, 256, (2, 20))
    taken: list[int] = []
    plain = token_losses
    monkeypatch.setattr(module, "token_losses", lambda *args: taken.append(1) or plain(*args))
    row_losses(model, tokens)
    assert not taken
    row_losses(model, tokens, large=2 * 20 * 258 - 1)
    assert taken


def test_in_bf16_pieces_are_as_near_to_float32_as_the_plain_loss() -> None:
    model, tokens = build_model(tiny_config("granite", 32, 2, 258), 0), torch.randint(0, 256, (2, 40))
    exact = row_losses(model, tokens)
    off: list[float] = []
    for large in (10**9, 258 * 8):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = row_losses(model, tokens, large=large)
        losses.sum().backward()
        off.append(float((losses - exact).detach().abs().max()))
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert off[1] <= 2 * off[0] + 1e-3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_first_pass_in_pieces_goes_with_layers_computed_anew_in_bf16(arch: str) -> None:
    """It tries the pieces first, and what autocast remembers of that trial is no part of a layer's first pass."""
    tokens, found = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1)), []
    for mode in ("none", "selective", "full"):
        model = build_model(tiny_config(arch, 32, 3, 258), 0).train()
        checkpoint_activations(model, mode)
        with torch.autocast("cpu", torch.bfloat16):
            losses = row_losses(model, tokens, large=0)
        losses.sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
