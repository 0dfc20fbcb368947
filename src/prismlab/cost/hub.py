"""Shapes of the reference study's seven models, so that a plan needs no download.

The numbers are those of the published ``config.json`` files and were written from memory of them, not checked against
the hub from where this was made. What speaks for them: by each, the parameters come out as the model's card has them
(``CARD_PARAMETERS``, rounded there), and transformers builds models of exactly that size of them (``tests/cost``).
"""

from __future__ import annotations

from typing import Any

from prismlab.cost.shapes import Shape, shape_of

_GRANITE4: dict[str, Any] = {
    "model_type": "granitemoehybrid",
    "num_local_experts": 0,
    "shared_intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "vocab_size": 100352,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
_H_ATTENTION = (5, 15, 25, 35)
"""Layers of Granite-4-H that attend; the others are Mamba-2."""

HUB_CONFIGS: dict[str, dict[str, Any]] = {
    "ibm-granite/granite-3.3-8b-base": {
        "model_type": "granite",
        "hidden_size": 4096,
        "intermediate_size": 12800,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        # 49,152 and a few special tokens, by version: seven rows more or fewer change nothing here.
        "vocab_size": 49159,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    },
    "ibm-granite/granite-4.0-micro-base": {
        **_GRANITE4,
        "hidden_size": 2560,
        "num_attention_heads": 40,
        "layer_types": ["attention"] * 40,
    },
    "ibm-granite/granite-4.0-h-micro-base": {
        **_GRANITE4,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "layer_types": ["attention" if at in _H_ATTENTION else "mamba" for at in range(40)],
        "mamba_n_heads": 64,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 256,
    },
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    },
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    },
    "mistralai/Mistral-Small-24B-Base-2501": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "max_position_embeddings": 32768,
    },
    "nvidia/Nemotron-H-8B-Base-8K": {
        "model_type": "nemotron_h",
        "hidden_size": 4096,
        "intermediate_size": 21504,
        "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "chunk_size": 128,
        "vocab_size": 131072,
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
    },
}
"""``config.json`` of each model, as far as its cost depends on it."""

CARD_PARAMETERS = {
    "ibm-granite/granite-3.3-8b-base": 8.17e9,
    "ibm-granite/granite-4.0-micro-base": 3.40e9,
    "ibm-granite/granite-4.0-h-micro-base": 3.19e9,
    "meta-llama/Llama-3.1-8B": 8.03e9,
    "mistralai/Mistral-7B-v0.1": 7.24e9,
    "mistralai/Mistral-Small-24B-Base-2501": 23.57e9,
    "nvidia/Nemotron-H-8B-Base-8K": 8.10e9,
}
"""Parameters as the model cards have them, rounded."""


def hub_shape(name: str) -> Shape | None:
    """The shape of a model by its hub id, with or without ``@revision``; None of one that is not known."""
    config = HUB_CONFIGS.get(name.partition("@")[0])
    return None if config is None else shape_of(config)
