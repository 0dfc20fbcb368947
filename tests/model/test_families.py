"""Every tensor of every architecture class has its place, and fused tensors are cut where the model cuts them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from prismlab.errors import CheckpointError
from prismlab.micro.models import ARCHITECTURES, tiny_config
from prismlab.model.families import (
    COMPONENTS,
    FAMILIES,
    MOST_BLOCKS,
    SUBCOMPONENTS,
    canonical,
    check_config_fits,
    flat_ranges,
    locate,
    tied_head,
)
from prismlab.model.tensors import model_type, open_checkpoint

torch.set_num_threads(1)

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
HYBRID = {**COMMON, **MAMBA, "shared_intermediate_size": 64, "num_hidden_layers": 2}
NO_EXPERTS = {"num_local_experts": 0, "num_experts_per_tok": 0}
DENSE = {**COMMON, "num_hidden_layers": 2}
ATTENTION = {"attention.q", "attention.k", "attention.v", "attention.o"}
OUTSIDE = {"embedding", "head", "norm"}
MIXER = {"mamba.in_proj", "mamba.out_proj", "mamba.conv1d", "mamba.A", "mamba.dt", "mamba.D"}
FUSED = {"mlp.gate+mlp.up", "mlp.down"}
PLAIN = {"mlp.gate", "mlp.up", "mlp.down"}


def nemotron(**more: Any) -> transformers.NemotronHConfig:
    values: dict[str, Any] = {
        **COMMON,
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "layers_block_type": ["mamba", "mlp", "attention"],
        **more,
    }
    return transformers.NemotronHConfig(**values)


VARIANTS: dict[str, tuple[Any, set[str]]] = {
    "llama": (transformers.LlamaConfig(**DENSE), ATTENTION | PLAIN | OUTSIDE),
    "llama-biased": (
        transformers.LlamaConfig(**DENSE, attention_bias=True, mlp_bias=True),
        ATTENTION | PLAIN | OUTSIDE,
    ),
    "mistral": (transformers.MistralConfig(**DENSE, sliding_window=None), ATTENTION | PLAIN | OUTSIDE),
    "mistral-swa": (transformers.MistralConfig(**DENSE, sliding_window=8), ATTENTION | PLAIN | OUTSIDE),
    "granite": (transformers.GraniteConfig(**DENSE), ATTENTION | PLAIN | OUTSIDE),
    "granite4": (
        transformers.GraniteMoeHybridConfig(**HYBRID, **NO_EXPERTS, layer_types=["attention"] * 2),
        ATTENTION | FUSED | OUTSIDE,
    ),
    "granite4-h": (
        transformers.GraniteMoeHybridConfig(**HYBRID, **NO_EXPERTS, layer_types=["mamba", "attention"]),
        ATTENTION | FUSED | MIXER | OUTSIDE,
    ),
    "granite4-experts": (
        transformers.GraniteMoeHybridConfig(
            **HYBRID, num_local_experts=2, num_experts_per_tok=1, layer_types=["mamba", "attention"]
        ),
        ATTENTION | FUSED | MIXER | OUTSIDE | {"mlp.router"},
    ),
    "nemotron-h": (nemotron(), ATTENTION | {"mlp.up", "mlp.down"} | MIXER | OUTSIDE),
    "nemotron-h-biased": (
        nemotron(attention_bias=True, mlp_bias=True, mamba_proj_bias=True),
        ATTENTION | {"mlp.up", "mlp.down"} | MIXER | OUTSIDE,
    ),
    "nemotron-h-experts": (
        nemotron(
            layers_block_type=["mamba", "moe", "attention"],
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            moe_shared_expert_intermediate_size=16,
            moe_latent_size=8,
        ),
        ATTENTION | {"mlp.up", "mlp.down", "mlp.router", "mlp.latent"} | MIXER | OUTSIDE,
    ),
    "granite4-h-biased": (
        transformers.GraniteMoeHybridConfig(
            **HYBRID,
            **NO_EXPERTS,
            layer_types=["mamba", "attention"],
            attention_bias=True,
            mamba_proj_bias=True,
            mamba_conv_bias=True,
        ),
        ATTENTION | FUSED | MIXER | OUTSIDE,
    ),
    "qwen3": (transformers.Qwen3Config(**DENSE, head_dim=8), ATTENTION | PLAIN | OUTSIDE),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_is_mapped_in_memory_and_on_disk(variant: str, tmp_path: Path) -> None:
    config, expected = VARIANTS[variant]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    state, kind = model.state_dict(), config.model_type
    held = {name: locate(name, kind) for name in state}
    assert [name for name, where in held.items() if where.component == "other"] == []
    assert {where.subcomponent for where in held.values()} == expected
    assert all(where.component in COMPONENTS for where in held.values())
    layers = {where.layer for where in held.values()} - {None}
    assert layers == set(range(config.num_hidden_layers))
    saved = open_checkpoint(tmp_path)
    assert model_type(tmp_path) == kind
    if variant == "nemotron-h-experts":
        # Stacked in memory and saved one by one: other names, the same places, as many elements.
        assert {locate(name, kind) for name in saved} == set(held.values())
        assert saved.elements == sum(tensor.numel() for tensor in state.values())
        return
    assert {canonical(name, kind) for name in saved} == set(state)
    for name, view in saved.items():
        assert locate(name, kind) == held[canonical(name, kind)]
        assert view.shape == tuple(state[canonical(name, kind)].shape)


def test_components_follow_from_sub_components() -> None:
    assert locate("model.layers.3.mixer.in_proj.weight", "nemotron_h").component == "mamba"
    assert locate("backbone.layers.3.mixer.q_proj.weight", "nemotron_h").component == "attention"
    assert locate("backbone.layers.3.mixer.up_proj.weight", "nemotron_h").component == "mlp"
    assert locate("model.layers.1.mamba.norm.weight", "granitemoehybrid").component == "norm"
    assert locate("model.layers.12.self_attn.q_proj.weight", "llama").layer == 12
    assert locate("lm_head.weight", "llama").layer is None
    assert set(FAMILIES) >= {"llama", "mistral", "granite", "granitemoehybrid", "nemotron_h"}
    assert len(set(SUBCOMPONENTS)) == len(SUBCOMPONENTS)


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.4.self_attn.q_proj.weight", "gpt_unheard_of", 4),
        ("transformer.wte.weight", "gpt_unheard_of", None),
        ("model.layers.0.self_attn.q_proj.weight_scale", "llama", 0),
        ("model.layers.0.mamba.A_log", "llama", 0),
        ("lm_head.weight", "gpt_unheard_of", None),
    ],
)
def test_the_unknown_stands_under_its_own_name(name: str, kind: str, layer: int | None) -> None:
    where = locate(name, kind)
    assert (where.component, where.subcomponent, where.layer, where.splits) == ("other", name, layer, ())


def test_the_first_half_of_the_fused_matrix_is_the_gate() -> None:
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMLP

    torch.manual_seed(0)
    mlp = GraniteMoeHybridMLP(VARIANTS["granite4"][0])
    x = torch.randn(5, 32)
    weight = mlp.input_linear.weight
    pieces = dict(
        flat_ranges(weight.shape, locate("model.layers.0.shared_mlp.input_linear.weight", "granitemoehybrid"))
    )
    with torch.no_grad():
        before = mlp(x)
        (up,), (gate,) = pieces["mlp.up"], pieces["mlp.gate"]
        weight.view(-1)[up[0] : up[1]] *= -1
        # The up half enters as a factor, so its sign is the output's; the gate goes through silu, which is not odd.
        assert torch.allclose(mlp(x), -before, atol=1e-6)
        weight.view(-1)[gate[0] : gate[1]] *= -1
        assert not torch.allclose(mlp(x), before, atol=1e-3)


def test_ranges_of_fused_experts_cover_everything_once() -> None:
    where = locate("model.layers.0.block_sparse_moe.input_linear.weight", "granitemoehybrid")
    shape = (3, 8, 5)
    flat = torch.arange(math.prod(shape)).view(shape)
    pieces = dict(flat_ranges(shape, where))
    assert list(pieces) == ["mlp.gate", "mlp.up"]
    for name, half in (("mlp.gate", flat[:, :4]), ("mlp.up", flat[:, 4:])):
        got = torch.cat([flat.view(-1)[start:stop] for start, stop in pieces[name]])
        assert torch.equal(got, half.reshape(-1))
    with pytest.raises(ValueError, match="shared out"):
        flat_ranges((7, 5), where)
    with pytest.raises(ValueError, match="shared out"):
        flat_ranges((2**62, 0, 2), where)  # an empty tensor may claim any number of matrices
    assert len(flat_ranges((MOST_BLOCKS, 2, 1), where)[0][1]) == MOST_BLOCKS


def test_the_first_half_of_each_experts_matrix_is_the_gate() -> None:
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridExperts

    torch.manual_seed(0)
    config = VARIANTS["granite4-experts"][0]
    config._experts_implementation = "eager"
    experts = GraniteMoeHybridExperts(config)
    where = locate("model.layers.0.block_sparse_moe.experts.gate_up_proj", "granitemoehybrid")
    x, chosen, share = torch.randn(5, 32), torch.tensor([[0], [1], [0], [1], [1]]), torch.ones(5, 1)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_()
        before = experts(x, chosen, share)
        for start, stop in dict(flat_ranges(experts.gate_up_proj.shape, where))["mlp.up"]:
            experts.gate_up_proj.view(-1)[start:stop] *= -1
        assert torch.allclose(experts(x, chosen, share), -before, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_of_the_seven_models_has_a_place(arch: str) -> None:
    config = tiny_config(arch, 32, 12, 258)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    held = {name: locate(name, config.model_type) for name, _ in model.named_parameters()}
    assert [name for name, where in held.items() if where.component == "other"] == []
    assert {where.layer for where in held.values()} == {None, *range(12)}
    fine = {where.subcomponent for where in held.values()}
    assert fine >= ATTENTION
    assert (fine >= MIXER) is (arch in ("granite4-h", "nemotron-h"))


def stored(folder: Path, head: torch.Tensor | None, **config: Any) -> tuple[Any, dict[str, Any]]:
    embedding = torch.arange(24.0).view(6, 4)
    state = {"model.embed_tokens.weight": embedding} | ({} if head is None else {"lm_head.weight": head})
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    return open_checkpoint(folder), config


@pytest.mark.parametrize(
    ("head", "config", "expected"),
    [
        (torch.arange(24.0).view(6, 4), {"tie_word_embeddings": True}, "lm_head.weight"),
        (torch.arange(24.0).view(6, 4), {}, "lm_head.weight"),
        (torch.arange(24.0).view(6, 4), {"tie_word_embeddings": False}, None),
        (torch.arange(24.0).view(6, 4).index_fill(0, torch.tensor(5), 0.0), {"tie_word_embeddings": True}, None),
        (torch.arange(24.0).view(4, 6), {"tie_word_embeddings": True}, None),
        (torch.arange(24).view(6, 4).to(torch.int32), {"tie_word_embeddings": True}, None),
        (None, {"tie_word_embeddings": True}, None),
    ],
)
def test_a_tied_head_is_a_copy_and_said_to_be_one(
    head: torch.Tensor | None, config: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    assert tied_head(*stored(tmp_path, head, **config)) == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_config_fits_its_own_weights_alone(arch: str, tmp_path: Path) -> None:
    config = tiny_config(arch, 32, 4, 258)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check_config_fits(tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())
    lists = [key for key in ("layers_block_type", "layer_types") if good.get(key)]
    for wrong in (
        {"num_hidden_layers": 5} | {key: [*good[key], good[key][-1]] for key in lists},
        {"vocab_size": 10**9},
        {"hidden_size": 10**9},
        {"num_local_experts": 10**9},
        {"text_config": {"hidden_size": 10**9}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | wrong))
        with pytest.raises(CheckpointError, match="promises"):
            check_config_fits(tmp_path)
