"""Parameters by shape facts against the models that transformers builds of the same configuration, on no device."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from prismlab.cost.hub import CARD_PARAMETERS, HUB_CONFIGS, hub_shape
from prismlab.cost.operations import attended_pairs, causal_pairs
from prismlab.cost.shapes import Attention, Mamba, shape_of
from prismlab.errors import SpecError
from prismlab.micro.models import ARCHITECTURES, tiny_config


def built(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def true_count(config: Any) -> int:
    """Elements of the built model's parameters, tied ones once."""
    model = built(config)
    model.tie_weights()  # pyright: ignore[reportCallIssue]
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("name", list(HUB_CONFIGS))
def test_hub_models_have_the_parameters_of_the_built_class(name: str) -> None:
    facts = dict(HUB_CONFIGS[name])
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    shape = hub_shape(f"{name}@main")
    assert shape is not None
    assert shape.parameters == true_count(config)
    assert shape.parameters == pytest.approx(CARD_PARAMETERS[name], rel=1e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tiny_models_from_the_json_that_is_saved(arch: str) -> None:
    config = tiny_config(arch, 64, 5, 300)
    shape = shape_of(json.loads(config.to_json_string()))
    model = built(config)
    assert shape.parameters == true_count(config)
    attention = sum(p.numel() for name, p in model.named_parameters() if "self_attn." in name)
    if arch == "nemotron-h":  # Its mixers are all called "mixer"; those that attend have a q_proj.
        mixers = {n.rpartition(".q_proj")[0] for n, _ in model.named_parameters() if ".q_proj" in n}
        attention = sum(
            p.numel() for n, p in model.named_parameters() if n.rpartition(".")[0].rpartition(".")[0] in mixers
        )
    assert attention > 0
    assert shape.trained("attention") == attention
    assert shape.trained("all") == shape.parameters
    assert sum(shape.layer_parameters(layer) for layer in shape.layers) + shape.root == shape.parameters


def test_families_keep_what_makes_them_what_they_are() -> None:
    window = [part.window for part in hub_shape("mistralai/Mistral-7B-v0.1").parts if isinstance(part, Attention)]  # type: ignore[union-attr]
    assert window == [4096] * 32
    nemotron = hub_shape("nvidia/Nemotron-H-8B-Base-8K")
    assert nemotron is not None
    kinds = [type(part).__name__ for part in nemotron.parts]
    assert (kinds.count("Mamba"), kinds.count("Mlp"), kinds.count("Attention")) == (24, 24, 4)
    hybrid = hub_shape("ibm-granite/granite-4.0-h-micro-base")
    assert hybrid is not None
    assert sum(isinstance(part, Mamba) for part in hybrid.parts) == 36
    assert hub_shape("somebody/else") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mixtral"}, "'mixtral' is not known"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 8}, "mixture of experts"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"vocab_size": -3}, "'vocab_size' is '-3'"),
        ({"num_hidden_layers": True}, "'num_hidden_layers' is 'True'"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": None}, "'hybrid_override_pattern'"),
    ],
)
def test_what_has_no_shape_says_so(change: dict[str, Any], says: str) -> None:
    config = {**HUB_CONFIGS["nvidia/Nemotron-H-8B-Base-8K"], "model_type": "llama", "num_hidden_layers": 2, **change}
    with pytest.raises(SpecError, match=says):
        shape_of(config)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.none() | st.integers(1, 50))
def test_pairs_are_those_of_the_mask(documents: list[int], window: int | None) -> None:
    tokens = sum(documents)
    at = torch.arange(tokens)
    document = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
    mask = at[:, None] >= at[None, :]
    if window is not None:
        mask &= at[:, None] - at[None, :] < window
    assert causal_pairs(tokens, window) == attended_pairs(tokens, window) == int(mask.sum())
    assert attended_pairs(tokens, window, documents) == int((mask & (document[:, None] == document[None, :])).sum())


def test_documents_that_do_not_fill_the_row() -> None:
    with pytest.raises(ValueError, match="do not make a row of 10"):
        attended_pairs(10, None, [4, 5])
