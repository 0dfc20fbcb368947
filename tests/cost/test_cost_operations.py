"""Operations against what torch counts while tiny models of all seven classes run forward and backward.

``FlopCounterMode`` counts every matrix product and convolution that is dispatched, the einsums of the reference Mamba
path (which become batched products) among them. Eager attention computes all pairs of a row, masked or not, so the
formula is given all of them here. Two differences remain, added by hand below: the reference scan repeats B and C for
every head of a group, and carries states by a product over all pairs of chunks; its convolution also computes the
padding behind the row. Of a convolution's backward pass the counter knows no groups (it would count a depthwise one as
if every channel saw all others), so it is told to count twice the forward pass.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from prismlab.cost.operations import (
    Operations,
    causal_pairs,
    forward_operations,
    token_operations,
    training_operations,
)
from prismlab.cost.shapes import Attention, Mamba, Shape, shape_of
from prismlab.micro.models import ARCHITECTURES, tiny_config
from prismlab.train.model import checkpoint_activations

SEQ_LEN, ROWS, WIDTH, LAYERS, VOCAB = 192, 2, 64, 4, 260


def model_of(arch: str) -> tuple[Any, Shape]:
    config = tiny_config(arch, WIDTH, LAYERS, VOCAB)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    return model, shape_of(json.loads(config.to_json_string()))


def reference_scan_extra(shape: Shape, seq_len: int) -> float:
    """What the reference path computes beyond the formula, a row."""
    extra = 0.0
    for part in shape.parts:
        if isinstance(part, Mamba):
            chunks = -(-seq_len // part.chunk)
            extra += 2.0 * part.chunk**2 * part.state * (part.heads - part.groups) * chunks
            state = part.heads * part.head_dim * part.state
            extra += 2.0 * ((chunks + 1) ** 2 - chunks) * state
            extra += 2.0 * part.conv * part.conv_width * (part.conv - 1)
    return extra


def all_pairs_extra(shape: Shape, seq_len: int) -> float:
    """What eager attention computes of pairs that no query sees, a row."""
    parts = [part for part in shape.parts if isinstance(part, Attention)]
    return sum(4.0 * part.queries * (seq_len**2 - causal_pairs(seq_len, part.window)) for part in parts)


def _depthwise_backward(grad_shape: Any, x_shape: Any, w_shape: Any, *_: Any, **__: Any) -> int:
    """Twice a product of every output with its kernel: [batch, channels, length] and [channels, 1, kernel]."""
    batch, channels, length = grad_shape
    return 2 * (2 * batch * channels * length * w_shape[-1] * w_shape[1])


def counted(model: Any, backward: bool) -> float:
    ids = torch.randint(0, 256, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    known = {torch.ops.aten.convolution_backward: _depthwise_backward}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.float().logsumexp(-1).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_forward_and_backward_of_every_class(arch: str) -> None:
    model, shape = model_of(arch)
    extra = all_pairs_extra(shape, SEQ_LEN) + reference_scan_extra(shape, SEQ_LEN)
    forward = forward_operations(shape, SEQ_LEN).total + extra
    assert counted(model, backward=False) == pytest.approx(ROWS * forward, rel=0.02)
    training = training_operations(shape, SEQ_LEN).model.total + 3 * extra
    assert counted(model, backward=True) == pytest.approx(ROWS * training, rel=0.02)
    # What the hand formulas add must not be what makes it agree: the plan's own count is most of it.
    assert extra < 0.5 * forward


@pytest.mark.parametrize("arch", ["granite", "nemotron-h"])
def test_full_checkpointing_computes_the_layers_again(arch: str) -> None:
    model, shape = model_of(arch)
    model.activation_checkpointing_enable()
    extra = all_pairs_extra(shape, SEQ_LEN) + reference_scan_extra(shape, SEQ_LEN)
    found = training_operations(shape, SEQ_LEN, checkpointing="full")
    assert counted(model, backward=True) == pytest.approx(ROWS * (found.total + 4 * extra), rel=0.02)
    assert found.again > 0


def test_attention_alone_spares_the_other_matrices_gradients() -> None:
    model, shape = model_of("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" in name)
    found = training_operations(shape, SEQ_LEN, trained="attention").model.total
    # Below the lowest trained matrix no gradient is needed; the first layer's queries and keys lie there.
    extra = 3 * all_pairs_extra(shape, SEQ_LEN)
    whole = training_operations(shape, SEQ_LEN).model.total + extra
    assert counted(model, backward=True) == pytest.approx(ROWS * (found + extra), rel=0.05)
    assert found + extra < 0.85 * whole


def test_operations_by_hand() -> None:
    """One layer of two heads of four, one of keys, a gated MLP of six, eight tokens."""
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10}
    found = forward_operations(shape_of(config), 8)
    assert found == Operations(
        linear=2 * 8 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 6), attention=4 * 8 * 36, head=2 * 8 * 8 * 10
    )
    apart = forward_operations(shape_of(config), 8, documents=[3, 5])
    assert apart.attention == 4 * 8 * (6 + 15)
    assert training_operations(shape_of(config), 8, loss_chunks=True).again == found.head


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sampled_tokens_cost_what_a_pass_over_them_does(arch: str) -> None:
    shape = model_of(arch)[1]
    whole = forward_operations(shape, SEQ_LEN)
    steps = sum(token_operations(shape, t + 1) for t in range(SEQ_LEN))
    # The scan is cheaper step by step than in chunks; all else is the same arithmetic.
    assert steps <= whole.total
    assert steps >= whole.total - whole.scan


@pytest.mark.parametrize("arch", ["llama", "granite4", "nemotron-h"])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_checkpointing_as_the_training_does_it(arch: str, mode: str) -> None:
    model, shape = model_of(arch)
    checkpoint_activations(model, mode)
    extra = all_pairs_extra(shape, SEQ_LEN) + reference_scan_extra(shape, SEQ_LEN)
    found = training_operations(shape, SEQ_LEN, checkpointing=mode)
    # Attention is kept where it is one operation; eager attention is two batched products, which are computed again.
    eager = sum(4.0 * part.queries * SEQ_LEN**2 for part in shape.parts if isinstance(part, Attention))
    again = found.again + (extra if mode == "full" else eager + reference_scan_extra(shape, SEQ_LEN))
    assert counted(model, backward=True) == pytest.approx(ROWS * (found.model.total + 3 * extra + again), rel=0.03)
