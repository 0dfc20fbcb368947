"""Configurations of the tiny models, as far as their cost depends on them, without the libraries that build them."""

from __future__ import annotations

from typing import Any

from prismlab.cost.shapes import Shape, shape_of

BYTE_VOCABULARY = 258
"""Ids of the byte tokenizer: the bytes, an end and a padding."""
_WINDOW = 128
_POSITIONS = 2048


def _heads(width: int) -> tuple[int, int, int]:
    size = next((s for s in (64, 32, 16, 8) if width % s == 0 and width // s >= 4), 8)
    heads = width // size
    return heads, heads // 2 if heads % 2 == 0 else heads, size


def _kinds(arch: str, layers: int) -> list[str]:
    if arch == "granite4":
        return ["full_attention"] * layers
    if arch == "granite4-h":
        attends = {at for at in range(layers) if at % 10 == 5} or {layers // 2}
        return ["full_attention" if at in attends else "linear_attention" for at in range(layers)]
    mixers = (layers + 1) // 2
    attends = {at for at in range(mixers) if at % 6 == 3} or {mixers // 2}
    turns = [["full_attention" if at in attends else "linear_attention", "mlp"] for at in range(mixers)]
    return [kind for turn in turns for kind in turn][:layers]


def _own(arch: str, width: int, layers: int) -> dict[str, Any]:
    """What the family adds; see ``micro.models``."""
    size = 32 if width % 16 == 0 and width >= 64 else 16
    heads = 2 * width // size
    if arch in ("granite4", "granite4-h"):
        mamba = {"mamba_n_heads": heads, "mamba_d_head": size, "mamba_d_state": 32, "mamba_n_groups": 1}
        own = {"num_local_experts": 0, "shared_intermediate_size": 3 * width, "layer_types": _kinds(arch, layers)}
        return {"model_type": "granitemoehybrid", **own, **mamba, "mamba_chunk_size": 64}
    if arch == "nemotron-h":
        mamba = {"mamba_num_heads": heads, "mamba_head_dim": size, "ssm_state_size": 32, "n_groups": 1}
        own = {"head_dim": _heads(width)[2], "intermediate_size": 4 * width, "layer_types": _kinds(arch, layers)}
        return {"model_type": "nemotron_h", **own, **mamba, "chunk_size": 64}
    dense = {"intermediate_size": 3 * width, "num_hidden_layers": layers}
    return {"model_type": arch.partition("-")[0], **dense, "sliding_window": _WINDOW if arch == "mistral-swa" else None}


def tiny_shape(arch: str, width: int, layers: int, vocab: int = BYTE_VOCABULARY) -> Shape:
    """The shape of a tiny model, by the arguments of ``micro.models.tiny_config``.

    Raises:
        SpecError: no such architecture.
    """
    heads, kv_heads, _ = _heads(width)
    common = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": arch.startswith("granite"),
    }
    return shape_of({**common, **_own(arch, width, layers)})
