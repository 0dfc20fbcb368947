"""Packed rows against their documents one by one, for every class; what leaks where boundaries are ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen3Config

from prismlab.errors import CheckpointError
from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model.boundaries import (
    Packed,
    arguments,
    check_known,
    document_mask,
    mamba_mixers,
    positions,
    prepare,
    window_of,
)
from prismlab.model.families import DOCUMENTS_APART

torch.set_num_threads(1)
LENGTH = 200


def several() -> np.ndarray:
    """Four rows: documents of 50, 1, 79 and 70 tokens; one document; many of 7 and a rest of 4; 199 and 1."""
    ids = np.zeros((4, LENGTH), np.int32)
    for at in (50, 51, 130):
        ids[0, at:] += 1
    ids[2] = np.arange(LENGTH) // 7
    ids[3, 199] = 1
    return ids


def documents(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for row in range(len(ids)):
        for number in np.unique(ids[row]):
            yield row, np.flatnonzero(ids[row] == number)


def tokens(rows: int = 4, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(0))


def tiny(arch: str) -> Any:
    config = tiny_config(arch, 32, 4, 258)
    return build_model(config, 0)


def qwen(kind: type) -> Any:
    common = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return build_model(kind(**common, num_attention_heads=4, num_key_value_heads=2, head_dim=8), 0)


MODELS = {
    **{arch: lambda arch=arch: tiny(arch) for arch in ARCHITECTURES},
    "qwen2": lambda: qwen(Qwen2Config),
    "qwen3": lambda: qwen(Qwen3Config),
}


def gap(model: Any, packed: torch.Tensor, ids: np.ndarray, batch: torch.Tensor) -> float:
    """Largest difference of logits from those of each document alone."""
    worst = 0.0
    for row, at in documents(ids):
        alone = model(input_ids=batch[row : row + 1, at], use_cache=False).logits[0]
        worst = max(worst, float((packed[row, at] - alone).abs().max()))
    return worst


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_packed_logits_are_those_of_each_document_alone(name: str) -> None:
    model, ids, batch = MODELS[name](), several(), tokens()
    leaking = gap(model, model(input_ids=batch, use_cache=False).logits, ids, batch)
    prepare(model)
    packed = Packed.of(ids)
    assert packed is not None
    logits = model(input_ids=batch, use_cache=False, **arguments(model, packed)).logits
    assert gap(model, logits, ids, batch) < 1e-5
    assert leaking > 0.1, "boundaries that are ignored must show, or this test shows nothing"


@pytest.mark.parametrize("arch", ["mistral-swa", "granite4-h", "nemotron-h"])
def test_gradients_are_those_of_each_document_alone(arch: str) -> None:
    found: list[dict[str, torch.Tensor]] = []
    ids, batch = several(), tokens()
    for pack in (True, False):
        model = tiny(arch).train()
        prepare(model)
        if pack:
            packed = Packed.of(ids)
            assert packed is not None
            model(input_ids=batch, use_cache=False, **arguments(model, packed)).logits.square().sum().backward()
        else:
            for row, at in documents(ids):
                model(input_ids=batch[row : row + 1, at], use_cache=False).logits.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[1].items():
        assert float((found[0][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)) < 1e-5, name


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "mistral"])
def test_other_attention_implementations_keep_documents_apart_too(implementation: str, arch: str) -> None:
    model, ids, batch = tiny(arch), several(), tokens()
    model.set_attn_implementation(implementation)
    prepare(model)
    packed = Packed.of(ids)
    assert packed is not None
    given_ = arguments(model, packed)
    with torch.compiler.set_stance("force_eager"):
        logits = model(input_ids=batch, use_cache=False, **given_).logits
    model.set_attn_implementation("sdpa")
    assert gap(model, logits, ids, batch) < 2e-5


@torch.no_grad()
def test_the_mixers_scan_in_whole_chunks_again_afterwards() -> None:
    model = tiny("granite4-h")
    chunks = [mixer.chunk_size for mixer in mamba_mixers(model)]
    prepare(model)
    prepare(model)
    packed = Packed.of(several())
    assert packed is not None
    model(input_ids=tokens(), use_cache=False, **arguments(model, packed))
    assert [mixer.chunk_size for mixer in mamba_mixers(model)] == chunks
    assert chunks, "a hybrid has mixers"


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_groups_hold_every_token_once_and_in_its_place(rows: list[list[int]]) -> None:
    length = max(sum(row) for row in rows)
    ids = np.zeros((len(rows), length), np.int32)
    for row, lengths in zip(ids, rows, strict=True):
        row[:] = np.repeat(np.arange(len(lengths) + 1), [*lengths, length - sum(lengths)])
    packed = Packed.of(ids)
    if packed is None:
        assert all(len(set(row)) == 1 for row in ids.tolist())
        return
    groups, order = packed.groups
    flat = torch.arange(ids.size)
    together = torch.cat([flat[group.index].flatten()[group.keep] for group in groups])
    assert torch.equal(together[order], flat)
    for group in groups:
        # Nothing but a document's last token stands behind it, and documents of a group are of like length.
        firsts = group.index[:, 0]
        assert not packed.positions.flatten()[firsts].any()
        lengths = [int((row[1:] > row[:-1]).sum()) + 1 for row in group.index]
        assert max(lengths) == group.index.shape[1] < 2 * min(lengths)
    assert sum(len(group.index) for group in groups) == sum(len(np.unique(row)) for row in ids)


def test_positions_and_mask_by_hand() -> None:
    ids = np.array([[0, 0, 0, 1, 2, 2]], np.int32)
    assert positions(ids).tolist() == [[0, 1, 2, 0, 0, 1]]
    whole = document_mask(torch.as_tensor(ids))[0, 0].int().tolist()
    assert whole == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert document_mask(torch.as_tensor(ids), window=2)[0, 0, 2].int().tolist() == [0, 1, 1, 0, 0, 0]
    assert torch.equal(document_mask(torch.as_tensor(ids), None, 2, 3), document_mask(torch.as_tensor(ids))[:, :, 2:5])


def test_rows_of_one_document_need_nothing() -> None:
    assert Packed.of(np.zeros((3, 9), np.int32)) is None


def test_the_window_is_the_classes_own() -> None:
    assert window_of(tiny("mistral-swa")) == 128
    assert window_of(tiny("mistral")) is None
    assert window_of(qwen(Qwen2Config)) is None


def test_a_class_that_nobody_has_shown_is_refused_with_the_remedy() -> None:
    model = tiny("llama")
    model.config.model_type = "other\x1b[31m"
    with pytest.raises(CheckpointError, match=r"the class 'other.*set 'boundaries: ignore'") as caught:
        check_known(model)
    assert "\x1b" not in str(caught.value)
    model.config.model_type = "qwen2"
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(CheckpointError, match="mixes full and sliding"):
        prepare(model)


def test_every_known_class_is_tested() -> None:
    assert set(DOCUMENTS_APART) == {tiny(arch).config.model_type for arch in ARCHITECTURES} | {"qwen2", "qwen3"}


def test_kernels_are_told_where_documents_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU with Mamba's kernels is given; the kernels themselves need one."""
    monkeypatch.setattr("prismlab.model.boundaries.kernels_know_documents", lambda device: True)
    model, ids = tiny("nemotron-h"), several()
    forwards = [mixer.forward for mixer in mamba_mixers(model)]
    prepare(model)
    assert [mixer.forward for mixer in mamba_mixers(model)] == forwards, "kernels need no help"
    packed = Packed.of(ids)
    assert packed is not None
    given_ = arguments(model, packed)
    assert "documents" not in given_
    assert given_["seq_idx"].dtype == torch.int32
    assert given_["seq_idx"].tolist() == ids.tolist()
    assert "seq_idx" not in arguments(tiny("llama"), packed)
