"""Log-likelihoods of choices against a plain forward pass of each choice in float64."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from prismlab.errors import CheckpointError, StageError
from prismlab.evaluate import trees
from prismlab.evaluate.encoded import Encoder, Tokens, shared_beginning
from prismlab.evaluate.loglik import LogLikelihoods
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.tokens import build_byte_tokenizer

TEXT = "A man is sitting on a roof and looks down at the street, where two dogs are barking at a passing cart. He"
ITEMS: list[list[tuple[str, str]]] = [
    [(TEXT, " climbs down."), (TEXT, " climbs up."), (TEXT, " sings a very long song about the sea and all its fish.")],
    [(TEXT[:40], " A"), (TEXT[:40], " B"), (TEXT[:40], " C"), (TEXT[:40], " D")],
    [
        ("Sarah gave Maria the book because Sarah", " liked it."),
        ("Sarah gave Maria the book because Maria", " liked it."),
    ],
    [("x", " yes"), ("y", " no")],
    [("", "no context"), ("", "no")],
    [(TEXT[:60] + "  ", "blanks go over"), (TEXT[:60] + "  ", "to the choice")],
    [(TEXT, " the same"), (TEXT, " another"), (TEXT, " the same")],
]


pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(arch: str, positions: int = 512, seed: int = 3) -> Any:
    return build_model(tiny_config(arch, 32, 3 if arch == "nemotron-h" else 2, 258, positions), seed).eval()


def plain(model: Any, context: str, continuation: str, positions: int) -> tuple[float, int]:
    """One choice by itself: bytes are tokens, the context's last blanks belong to the continuation."""
    bare = context.rstrip()
    head = list(bare.encode()) if context else [256]
    tail = list((context[len(bare) :] + continuation).encode())
    ids = [*head, *tail][-(positions + 1) :]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    places = range(len(ids) - len(tail), len(ids))
    return sum(float(logs[at - 1, ids[at]]) for at in places), len(tail)


@pytest.mark.parametrize("arch", ["llama", "mistral-swa", "granite", "granite4", "granite4-h", "nemotron-h"])
@pytest.mark.parametrize(("forward", "way"), [(None, "trees"), (64, "trees"), (None, "cache"), (64, "cache")])
def test_equals_a_plain_pass_of_each_choice(
    arch: str, forward: int | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(arch)
    # Models with a recurrent state have neither; of the others each goes both ways.
    assert trees.fits(model) == (arch not in ("granite4-h", "nemotron-h"))
    if way == "cache":
        monkeypatch.setattr(trees, "fits", lambda model: False)
    # Longer than the window of mistral-swa, so that a cache has to forget.
    long = [[(TEXT * 3, f" {word}") for word in ("goes home", "stays", "goes away at last")]]
    items = [*ITEMS, *long]
    found = LogLikelihoods(model, build_byte_tokenizer(), forward).of(items)
    exact = model.double()
    for item, values in zip(items, found, strict=True):
        for (context, continuation), (value, tokens) in zip(item, values, strict=True):
            wanted, count = plain(exact, context, continuation, 512)
            assert value == pytest.approx(wanted, rel=1e-5)
            assert tokens == count


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_classes_beyond_the_study_s(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=258, intermediate_size=64, head_dim=8, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    engine = LogLikelihoods(model, build_byte_tokenizer())
    found = engine.of(ITEMS)
    assert engine.tokens_run == distinct_tokens(ITEMS)
    exact = model.double()
    for item, values in zip(ITEMS, found, strict=True):
        for (context, continuation), (value, _) in zip(item, values, strict=True):
            assert value == pytest.approx(plain(exact, context, continuation, 512)[0], rel=1e-5)


def distinct_tokens(items: Sequence[Sequence[tuple[str, str]]]) -> int:
    """Tokens of items when what all choices begin with is run once, and each distinct choice's own rest once."""
    total = 0
    for item in items:
        texts = {(context + continuation if context else "\x00" + continuation)[:-1] for context, continuation in item}
        first, last = min(texts), max(texts)
        shared = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        total += shared + sum(len(text) - shared for text in texts)
    return total


def test_trees_run_no_token_twice_and_none_for_nothing() -> None:
    engine = LogLikelihoods(model_of("llama"), build_byte_tokenizer())
    engine.of(ITEMS)
    assert engine.tokens_run == distinct_tokens(ITEMS)


def test_what_runs_beside_an_item_changes_no_bit_of_it() -> None:
    engine = LogLikelihoods(model_of("llama"), build_byte_tokenizer())
    other = [[(a.swapcase(), b.swapcase()) for a, b in item] for item in ITEMS[2:]]
    assert engine.of([*ITEMS[:2], *other])[:2] == engine.of(ITEMS)[:2]


def test_the_model_is_left_as_it_is() -> None:
    model = model_of("llama")
    LogLikelihoods(model, build_byte_tokenizer()).of(ITEMS)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError), trees.attending(model):
        trees.logits_of(model, [trees.Tree((300,), ())], torch.tensor([0]))
    assert model.config._attn_implementation == "sdpa"


def test_threads_change_no_bit_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LogLikelihoods(model_of("llama"), build_byte_tokenizer(), forward_tokens=64)  # many passes
    alone = engine.of(ITEMS)
    torch.set_num_threads(3)
    at_once: list[str] = []
    run = trees.logits_of
    monkeypatch.setattr(
        trees, "logits_of", lambda *given: [at_once.append(threading.current_thread().name), run(*given)][1]
    )
    try:
        assert engine.of(ITEMS) == alone
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("prismlab.evaluate.loglik.SIDE_BY_SIDE", 1)
        at_once.clear()
        for one, other in zip(engine.of(ITEMS), alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        assert len(set(at_once)) == 1 < len(at_once)
        assert not any(value.requires_grad for value in engine.model.buffers())
        monkeypatch.setattr(trees, "logits_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.of(ITEMS)
        assert (torch.get_num_threads(), engine.model.config._attn_implementation) == (3, "sdpa")
    finally:
        torch.set_num_threads(1)


def test_a_class_that_keeps_arguments_to_itself_is_noticed() -> None:
    model = model_of("llama")
    model.set_attn_implementation(trees.NAME)
    with pytest.raises(TypeError, match="LlamaAttention does not hand 'trees' on"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotations_that_go_by_the_longest_position_are_not_run_as_trees(rope: str) -> None:
    model = model_of("llama")
    assert trees.fits(model)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": rope}
    assert not trees.fits(model)


def test_what_is_longer_than_the_positions_loses_tokens_on_the_left() -> None:
    model = model_of("llama", positions=64)
    items = [[(TEXT, " goes."), (TEXT, " runs away at once."), (TEXT[:50], " waits.")]]
    found = LogLikelihoods(model, build_byte_tokenizer()).of(items)[0]
    exact = model.double()
    for (context, continuation), (value, _) in zip(items[0], found, strict=True):
        assert value == pytest.approx(plain(exact, context, continuation, 64)[0], rel=1e-5)
    with pytest.raises(StageError, match=r"70 tokens, the model 64 positions"):
        LogLikelihoods(model, build_byte_tokenizer()).of([[("a", "b" * 70)]])


def test_beginnings_are_run_once_and_equal_choices_are_equal_to_the_bit() -> None:
    engine = LogLikelihoods(model_of("llama"), build_byte_tokenizer())
    found = engine.of([[(TEXT, f" {word}") for word in ("one", "two", "six", "one")]])[0]
    assert found[0] == found[3]
    # The text and the blank once, then what is left of three distinct words but for each one's last letter.
    assert engine.tokens_run == len(TEXT) + 1 + 3 * 2


def test_the_order_of_items_decides_nothing_but_the_last_bits() -> None:
    engine = LogLikelihoods(model_of("llama"), build_byte_tokenizer())
    forward, backward = engine.of(ITEMS), engine.of(ITEMS[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert [x for x, _ in a] == pytest.approx([x for x, _ in b], rel=1e-6)


@pytest.mark.parametrize(
    ("choices", "shared"),
    [
        ([(1, 2, 3, 4), (1, 2, 3, 5)], 3),
        ([(1, 2, 3, 4), (1, 2, 9, 9, 9)], 2),
        ([(1, 2, 3, 4), (1, 2, 3, 4)], 3),
        ([(1, 2), (1, 2, 3)], 1),
        ([(1, 2), (2, 2)], 0),
    ],
)
def test_shared_beginnings(choices: Sequence[tuple[int, ...]], shared: int) -> None:
    assert shared_beginning([Tokens(ids, 1) for ids in choices]) == shared


def test_broken_weights_are_told() -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(StageError, match="NaN or infinite"):
        LogLikelihoods(model, build_byte_tokenizer()).of(ITEMS[:1])


def test_a_tokenizer_without_start_or_end_is_refused() -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(CheckpointError, match="eos_token"):
        Encoder(tokenizer, None)


def test_a_choice_without_a_token_is_told() -> None:
    with pytest.raises(StageError, match="no token of its own"):
        Encoder(build_byte_tokenizer(), None).pairs([("a", "")])
