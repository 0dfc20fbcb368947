"""Samples that share their prompt's keys and values, against the plain softmax, the repeated cache and a full pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from prismlab.micro.models import build_model, tiny_config
from prismlab.model import passes as module
from prismlab.model import shared
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler
from prismlab.model.passes import Passes, SharedPasses, passes, without_gradients
from prismlab.model.shared import Groups, SharedLayer, attending, fits
from prismlab.model.tokens import build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()
EOS = TOKENIZER.eos_token_id
VOCAB = len(TOKENIZER)
PROMPTS = [[EOS, 5, 6, 7], [EOS, 9], [EOS, *range(20, 45)], [EOS, 80, 81, 82]]
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 1.7,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)),
    "llama-scaled-rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, head_dim=16, sliding_window=None)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=64)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, **GRANITE)),
    "granite-h": lambda: build_model(tiny_config("granite4-h", 32, 4, VOCAB), 1),
    "nemotron-h": lambda: build_model(tiny_config("nemotron-h", 32, 4, VOCAB), 1),
}

HYBRIDS = ("granite-h", "nemotron-h")


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    if name not in HYBRIDS:  # they are tied, or sharp as they are
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(5)  # all but uniform otherwise
    return model


@pytest.mark.parametrize("counts", [[3, 3], [1, 4, 2], [5], [1, 1, 1]])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_one_softmax_over_prompt_and_response(counts: list[int], padded: bool) -> None:
    heads, queries, size, before, own = 2, 3, 8, 6, 4
    draw = torch.Generator().manual_seed(0)
    rows, prompts = sum(counts), len(counts)
    ids = torch.repeat_interleave(torch.tensor(counts))
    keys, values = (torch.randn(prompts, heads, before, size, generator=draw) for _ in range(2))
    more_keys, more_values = (torch.randn(rows, heads, own, size, generator=draw) for _ in range(2))
    query = torch.randn(rows, heads * queries, size, generator=draw)
    absent = torch.arange(before)[None] < torch.arange(prompts)[:, None] % 3 + 1 if padded else None
    bias = None if absent is None else torch.zeros(absent.shape).masked_fill(absent, -torch.inf)[:, None]
    layer = SharedLayer()
    layer.update(keys, values)
    layer.open(rows)
    for at in range(own):
        layer.update(more_keys[:, :, at : at + 1], more_values[:, :, at : at + 1])
    assert layer.get_seq_length() == before + own
    found = layer.attend(query, Groups(ids, bias)).view(rows, heads * queries, size)
    for row in range(rows):
        for head in range(heads * queries):
            at = head // queries
            every = torch.cat([keys[ids[row], at], more_keys[row, at]]).double()
            scores = every @ query[row, head].double()
            if absent is not None:
                scores[:before][absent[ids[row]]] = -torch.inf
            wanted = scores.softmax(0) @ torch.cat([values[ids[row], at], more_values[row, at]]).double()
            torch.testing.assert_close(found[row, head].double(), wanted, atol=2e-6, rtol=1e-5)


def test_rows_and_prompts_that_leave() -> None:
    """After some rows were dropped, and a whole prompt with them, the others attend as before."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    layer = SharedLayer()
    layer.update(*(torch.randn(3, 2, 5, 8, generator=draw) for _ in range(2)))
    layer.open(8)
    bias = torch.zeros(3, 1, 5)
    bias[0, 0, :2] = bias[2, 0, :1] = -torch.inf
    groups = Groups(ids, bias)
    for _ in range(70):  # more than the first room
        layer.update(*(torch.randn(8, 2, 1, 8, generator=draw) for _ in range(2)))
    query = torch.randn(8, 4, 8, generator=draw)
    whole = layer.attend(query, groups)
    rows = torch.tensor([0, 2, 5, 6, 7])
    fewer, prompts = groups.keep(rows)
    assert prompts is not None
    assert prompts.tolist() == [0, 2]
    assert fewer.places is not None
    assert fewer.places.tolist() == [0, 1, 3, 4, 5]
    layer.keep(rows, prompts)
    torch.testing.assert_close(layer.attend(query[rows], fewer), whole[rows], atol=1e-6, rtol=1e-6)
    again, prompts = fewer.keep(torch.tensor([0, 1, 3, 4]))
    assert prompts is None
    assert again.places is None


def sampled(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, repeated: bool) -> list[list[Completion]]:
    taken: list[type[Passes]] = []

    def kept(*args: Any) -> Passes:
        found = Passes(*args[:3]) if repeated else passes(*args)
        taken.append(type(found))
        return found

    monkeypatch.setattr("prismlab.model.generate.passes", kept)
    sampler, settings = TransformersSampler(model, TOKENIZER), SamplingSettings(max_new_tokens=30)
    sampler.stop = -1
    endless = sampler.sample(PROMPTS, 6, settings, 5)
    # What was drawn in about every third response ends one, so that rows leave at different times.
    seen = Counter(token for group in endless for one in group for token in set(one.token_ids))
    sampler.stop = min(seen, key=lambda token: abs(seen[token] - 8))
    groups = sampler.sample(PROMPTS, 6, settings, 5)
    assert set(taken) == {Passes if repeated else SharedPasses}
    return groups


@pytest.mark.parametrize("name", MODELS)
def test_same_samples_as_with_a_repeated_cache(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    ours, plain = sampled(model, monkeypatch, False), sampled(model, monkeypatch, True)
    flat = [one for group in ours for one in group]
    assert 4 < sum(one.finished for one in flat) < 16, "nothing leaves, or all: the test would see less"
    assert len({tuple(one.token_ids) for one in flat}) > 12
    for one, other in zip(flat, [one for group in plain for one in group], strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_sampled_trains_on(name: str) -> None:
    fresh, model = model_of(name), model_of(name)
    TransformersSampler(model, TOKENIZER).sample(PROMPTS, 3, SamplingSettings(max_new_tokens=4), 1)
    assert not any(one.is_inference() for one in (*model.parameters(), *model.buffers()))
    ids = torch.tensor([PROMPTS[0] * 2])
    for one in (fresh, model):
        one.train()
        one(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for a, b in zip(fresh.parameters(), model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("rope", ["dynamic", "default"])
def test_buffers_that_go_by_length_are_not_made_in_inference_mode(rope: str) -> None:
    model = model_of("llama")
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": rope}
    with without_gradients(model):
        assert torch.is_inference_mode_enabled() == (rope == "default")
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_equal_a_full_pass(name: str) -> None:
    model = model_of(name)
    settings = SamplingSettings(max_new_tokens=30)
    for prompt, group in zip(
        PROMPTS, TransformersSampler(model, TOKENIZER).sample(PROMPTS, 3, settings, 1), strict=True
    ):
        for one in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + one.token_ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
            full = logits.log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
            # A recurrent state is carried in chunks by a full pass and by token here, whatever the attention does.
            np.testing.assert_allclose(one.logprobs, full, atol=1e-3 if name in HYBRIDS else 1e-5)


def test_where_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    windowed = model_of("mistral-window")
    assert fits(windowed, 64)
    assert not fits(windowed, 65)
    assert type(passes(windowed, [[1] * 60], [2], 5)) is Passes
    assert not fits(model_of("llama").bfloat16(), 10)
    model = model_of("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(model, 10)
    model.config._attn_implementation = "flex_attention"
    assert not fits(model, 10)
    other = model_of("llama")
    monkeypatch.setattr(shared, "CLASSES", ("unheard of",))
    assert not fits(other, 10)


def test_the_models_own_attention_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    during: list[str] = []

    def broken(*_: Any) -> None:
        during.append(str(model.config._attn_implementation))
        raise RuntimeError("midway")

    before = model.config._attn_implementation
    with attending(model), pytest.raises(TypeError, match="does not hand 'shared_prompts' on"):
        model(torch.tensor([[1]]))
    assert model.config._attn_implementation == before
    monkeypatch.setattr("prismlab.model.generate.draw", broken)
    with pytest.raises(RuntimeError, match="midway"):
        TransformersSampler(model, TOKENIZER).sample([[1]], 1, SamplingSettings(max_new_tokens=3), 0)
    assert during == [shared.NAME]
    assert model.config._attn_implementation == before


def test_keys_of_a_prompt_are_held_once() -> None:
    model = model_of("llama")
    held = module.SharedPasses(model, PROMPTS, [8] * 4)
    held.begin()
    [layer, _] = held.cache.layers
    assert isinstance(layer, SharedLayer)
    assert layer._prompt_keys.shape == (2, 4, 26, 8)
    with held.steps(), torch.no_grad():
        held.step(torch.full((32,), 7))
    assert layer.keys is not None
    assert layer.keys.shape[:2] == (2, 32)
    assert layer.length == 1
