"""Memory against the tensors that torch keeps, and the search for what would fit against all settings there are."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prismlab.cost.hub import hub_shape
from prismlab.cost.memory import PIECE, Setting, layer_bytes, loss_in_pieces, memory, smallest_change
from prismlab.cost.shapes import Shape, shape_of
from prismlab.micro.models import ARCHITECTURES, tiny_config
from prismlab.train import loss

GB = 1e9
SEQ_LEN = 256


def config_of(arch: str, layers: int) -> Any:
    config = tiny_config(arch, 64, layers, 260)
    if arch == "granite4-h":  # State and head size must differ, or a formula that mixes them up would pass.
        config.mamba_d_state = 48
    if arch == "nemotron-h":
        config.ssm_state_size = 48
    return config


def saved_bytes(config: Any, precision: str, masked: bool) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass: each storage once, no parameters.

    Casts of weights are told from activations by their size: the tests' sequences are longer than any weight is wide.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(s) for p in model.parameters() for s in (p.shape, p.shape[::-1])}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and tuple(tensor.shape) not in shapes:
            kept[place] = tensor
        return tensor

    ids = torch.randint(0, 256, (1, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(SEQ_LEN, SEQ_LEN, dtype=torch.bool).tril()[None, None] if masked else None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        # The result must live: with it dies the graph, and storages are handed out anew.
        result = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_a_layer_keeps(arch: str, precision: str, masked: bool) -> None:
    if masked and arch in ("granite4-h", "nemotron-h"):
        pytest.skip("the hybrids' Mamba layers take another mask than attention does")
    small, large = (2, 4) if arch != "nemotron-h" else (4, 8)
    configs = [config_of(arch, layers) for layers in (small, large)]
    shapes = [shape_of(json.loads(config.to_json_string())) for config in configs]
    found = saved_bytes(configs[1], precision, masked) - saved_bytes(configs[0], precision, masked)
    setting = Setting(rows=1, seq_len=SEQ_LEN, precision=precision, masked=masked, device="cpu")
    each = [sum(layer_bytes(shape, layer, setting) for layer in shape.layers) for shape in shapes]
    assert found == pytest.approx(SEQ_LEN * (each[1] - each[0]), rel=0.05)


def granite() -> Shape:
    shape = hub_shape("ibm-granite/granite-3.3-8b-base")
    assert shape is not None
    return shape


def test_states_by_hand() -> None:
    """Sixteen bytes a parameter, over the devices of a shard: ZeRO's sum (Rajbhandari et al. 2020, section 3.1)."""
    shape, n = granite(), granite().parameters
    whole = memory(shape, Setting(rows=1, seq_len=8192, precision="float32"))
    assert whole.weights + whole.gradients + whole.moments == 16 * n
    assert whole.compute == whole.buffers == 0
    parts = memory(shape, Setting(devices=128, shard=64, rows=128, seq_len=8192))
    assert parts.weights + parts.gradients + parts.moments == pytest.approx(16 * n / 64)
    alone = memory(shape, Setting(rows=1, seq_len=8192, precision="float32", trained="attention"))
    attention = 40 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    assert alone.gradients + alone.moments == 12 * attention
    assert alone.weights == whole.weights


def test_the_loss_goes_in_pieces_where_the_loop_s_does() -> None:
    assert loss.LARGE == PIECE
    setting = Setting(rows=1, seq_len=8192)
    assert loss_in_pieces(granite(), setting)
    assert not loss_in_pieces(granite(), replace(setting, seq_len=1024))
    # Whole logits of 128k words at 8,192 tokens would be 12 bytes each.
    llama = hub_shape("meta-llama/Llama-3.1-8B")
    assert llama is not None
    assert memory(llama, setting).loss < 0.5 * 10 * 8192 * llama.vocab


def test_frugal_settings_need_less() -> None:
    setting = Setting(devices=16, shard=2, rows=64, seq_len=4096)
    needs = [memory(granite(), replace(setting, checkpointing=kind)).total for kind in ("none", "selective", "full")]
    assert needs[0] > needs[1] > needs[2]
    for frugal in (replace(setting, shard=16), replace(setting, micro_rows=1), replace(setting, masked=False)):
        assert memory(granite(), frugal).total < needs[0]


def test_the_reference_study_fits_its_machine() -> None:
    """128 devices of 80 GB, a row of 8,192 tokens each: not as one copy a device, nor with all activations kept."""
    setting = Setting(devices=128, shard=128, rows=128, seq_len=8192, micro_rows=1, checkpointing="selective")
    assert memory(granite(), setting).total < 60 * GB
    assert memory(granite(), replace(setting, checkpointing="none")).total > 80 * GB
    assert memory(granite(), replace(setting, shard=1, checkpointing="full")).total > 130 * GB


def test_gradients_of_several_passes_are_whole() -> None:
    """Sixteen rows of a device in one pass, or in sixteen: then the sum of gradients lies whole on each device."""
    one = Setting(devices=8, shard=8, rows=128, seq_len=64, checkpointing="full")
    several = memory(granite(), replace(one, micro_rows=1))
    assert several.buffers - memory(granite(), one).buffers == 4 * (granite().parameters - granite().root)


def test_a_row_that_is_shared() -> None:
    setting = Setting(devices=4, shard=4, rows=4, seq_len=8192, checkpointing="full")
    shared = replace(setting, context_parallel=4, rows=1)
    assert (shared.rows_each, shared.rows_at_once, shared.tokens) == (1, 1, 2048)
    assert memory(granite(), shared).activations < 0.5 * memory(granite(), setting).activations


@pytest.mark.parametrize("limit", [22, 30, 40, 60, 100, 200])
def test_the_smallest_change_is_the_best_of_all(limit: int) -> None:
    start = Setting(devices=8, shard=1, rows=32, seq_len=8192, micro_rows=4)
    assert memory(granite(), start).total > limit * GB
    every = [
        replace(start, shard=shard, micro_rows=rows, checkpointing=kind)
        for shard, rows, kind in itertools.product((1, 2, 4, 8), (4, 2, 1), ("none", "selective", "full"))
    ]
    fitting = [one for one in every if memory(granite(), one).total <= limit * GB]
    found = smallest_change(granite(), start, limit * GB)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert found.setting in fitting
    assert memory(granite(), found.setting).total <= limit * GB

    def changes(one: Setting) -> int:
        return (one.shard != 1) + (one.micro_rows != 4) + (one.checkpointing != "none")

    assert len(found.words) == changes(found.setting) == min(changes(one) for one in fitting)


def test_a_shard_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="shard of 3 does not divide 8"):
        memory(granite(), Setting(devices=8, shard=3, rows=8, seq_len=64))
    with pytest.raises(ValueError, match="'most' is none of"):
        memory(granite(), Setting(rows=8, seq_len=64, checkpointing="most"))
