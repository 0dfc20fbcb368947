from __future__ import annotations

import pytest
import torch

from prismlab.errors import SpecError
from prismlab.micro.models import ARCHITECTURES, SLIDING_WINDOW, build_model, tiny_config
from prismlab.model.families import locate

CLASSES = {
    "llama": ("LlamaForCausalLM", False),
    "mistral": ("MistralForCausalLM", False),
    "mistral-swa": ("MistralForCausalLM", False),
    "granite": ("GraniteForCausalLM", True),
    "granite4": ("GraniteMoeHybridForCausalLM", True),
    "granite4-h": ("GraniteMoeHybridForCausalLM", True),
    "nemotron-h": ("NemotronHForCausalLM", False),
}
"""Class of each architecture, and whether the published model ties its embeddings."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_learns_and_every_parameter_has_a_gradient(arch: str) -> None:
    model = build_model(tiny_config(arch, 32, 4, 258), seed=0).train()
    assert (type(model).__name__, bool(model.config.tie_word_embeddings)) == CLASSES[arch]
    ids = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(25):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
            assert [n for n, p in model.named_parameters() if not p.grad.any()] == []
        optimizer.step()
        losses.append(loss.item())
    # Four random rows of 24 bytes can be learned by heart; a uniform guess over 256 costs 5.55 nats.
    assert losses[0] < 7.5
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_generates_with_a_cache_what_it_would_without(arch: str) -> None:
    model = build_model(tiny_config(arch, 32, 4, 258), seed=1)
    prompt = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    model.generation_config.eos_token_id = None
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    whole = prompt
    for _ in range(6):
        whole = torch.cat([whole, logits(model, whole)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, whole)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_depend_on_the_seed_alone(arch: str) -> None:
    config = tiny_config(arch, 32, 4, 258)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = build_model(config, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state was touched"
    torch.rand(3)
    second = build_model(config, seed=7).state_dict()
    other = build_model(config, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_tensor_has_a_component(arch: str) -> None:
    model = build_model(tiny_config(arch, 32, 6, 258), seed=0)
    components = {locate(name, model.config.model_type).component for name in model.state_dict()}
    assert "other" not in components
    assert {"attention", "mlp", "embedding", "norm"} <= components
    assert ("mamba" in components) == (arch in ("granite4-h", "nemotron-h"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_token_sees_a_later_one(arch: str) -> None:
    model = build_model(tiny_config(arch, 32, 4, 258), seed=0)
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 256
    before, after = logits(model, ids), logits(model, changed)
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-5)


def test_the_sliding_window_cuts_what_the_full_one_sees() -> None:
    ids = torch.randint(0, 256, (1, SLIDING_WINDOW + 8), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 256
    for arch, sees in (("mistral", True), ("mistral-swa", False)):
        # One layer: with more, the window moves back by one window a layer.
        model = build_model(tiny_config(arch, 32, 1, 258), seed=0)
        before, after = logits(model, ids)[0, -1], logits(model, changed)[0, -1]
        assert torch.equal(before, after) is not sees


def test_layer_patterns() -> None:
    hybrid = tiny_config("granite4-h", 32, 4, 258)
    assert hybrid.layer_types == ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    deep = tiny_config("granite4-h", 32, 40, 258)
    assert [at for at, kind in enumerate(deep.layer_types) if kind == "full_attention"] == [5, 15, 25, 35]
    assert tiny_config("nemotron-h", 32, 4, 258).hybrid_override_pattern == "M-*-"
    true = tiny_config("nemotron-h", 32, 52, 258).hybrid_override_pattern
    assert (true.count("M"), true.count("-"), true.count("*")) == (22, 26, 4)


@pytest.mark.parametrize("width", [16, 24, 40, 64, 128, 192, 512])
@pytest.mark.parametrize("arch", ["llama", "granite4-h", "nemotron-h"])
def test_every_allowed_width_fits(arch: str, width: int) -> None:
    model = build_model(tiny_config(arch, width, 3, 258), seed=0)
    assert logits(model, torch.tensor([[1, 2, 3]])).isfinite().all()


def test_wrong_configurations_are_named() -> None:
    with pytest.raises(SpecError, match="'gpt' is not known"):
        tiny_config("gpt", 32, 2, 258)
    with pytest.raises(SpecError, match="width 20"):
        tiny_config("llama", 20, 2, 258)
    with pytest.raises(SpecError, match="at least 3"):
        tiny_config("nemotron-h", 32, 2, 258)
    with pytest.raises(SpecError, match="at least 2"):
        tiny_config("granite4-h", 32, 1, 258)
