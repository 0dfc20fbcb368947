"""Combined weights against the library's own loading (bit for bit at the corners) and a float64 sum in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prismlab.errors import CheckpointError
from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.interpolate import line, open_sources, plane, set_weights
from prismlab.model.tokens import build_byte_tokenizer

torch.set_num_threads(1)
TOKENIZER = build_byte_tokenizer()
IDS = torch.tensor([[5, 9, 200, 31, 77, 256, 3]])


def make(folder: Path, seed: int, arch: str = "llama", width: int = 32, dtype: str = "bfloat16") -> Path:
    config = tiny_config(arch, width, 3, len(TOKENIZER))
    save_checkpoint(build_model(config, seed), TOKENIZER, folder, dtype)
    return folder


def three(tmp_path: Path, arch: str = "llama", dtype: str = "bfloat16") -> list[Path]:
    return [make(tmp_path / name, seed, arch, dtype=dtype) for seed, name in enumerate(("base", "mid", "rl"))]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def combined(folders: Sequence[Path], coefficients: Sequence[float]) -> dict[str, np.ndarray]:
    """The sum in float64 of what the library loads of each folder."""
    states = [load_model(folder, device=torch.device("cpu")).state_dict() for folder in folders]
    return {
        name: sum(c * state[name].double().numpy() for c, state in zip(coefficients, states, strict=True))  # type: ignore[misc]
        for name in states[0]
    }


def edit(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_corners_are_the_checkpoints_and_between_them_lies_the_float64_sum(arch: str, tmp_path: Path) -> None:
    folders = three(tmp_path, arch)
    sources = open_sources(folders)
    model = load_model(folders[1])
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    base, mid, rl = (combined([folder], [1.0]) for folder in folders)
    for a, b in ((0.25, 0.0), (1.0, 0.75), (0.3, 0.9)):
        set_weights(model, sources, plane(a, b))
        for name, tensor in model.state_dict().items():
            # The facts page's own form, not the coefficients that the code under test computes with.
            wanted = base[name] + a * (mid[name] - base[name]) + b * (rl[name] - mid[name])
            scale = max(np.abs(x[name]).max() for x in (base, mid, rl))
            assert np.abs(tensor.numpy() - wanted).max() <= 2.0**-24 * 4 * scale, name
    for corner, folder in zip(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)), folders, strict=True):
        set_weights(model, sources, plane(*corner))
        fresh = load_model(folder)
        assert all(torch.equal(x, fresh.state_dict()[name]) for name, x in model.state_dict().items())
        assert torch.equal(logits(model), logits(fresh))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    held = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight.data_ptr() == held.data_ptr()
    assert tied == model.config.tie_word_embeddings == arch.startswith("granite")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_corners_hold_in_the_model_s_own_type(dtype: str, tmp_path: Path) -> None:
    folders = three(tmp_path, dtype="float32")
    sources, model = open_sources(folders), load_model(folders[1], dtype)
    for coefficients, folder in zip(((1, 0, 0), (0, 1, 0), (0, 0, 1)), folders, strict=True):
        set_weights(model, sources, coefficients)
        assert torch.equal(logits(model), logits(load_model(folder, dtype)))
    set_weights(model, sources, (*line(0.5), 0.0))
    wanted = combined(folders[:2], (0.5, 0.5))
    for name, tensor in model.state_dict().items():
        exact = torch.from_numpy(wanted[name]).float().to(tensor.dtype)
        assert torch.equal(tensor, exact), name


def test_any_number_of_checkpoints_sharded_in_any_way(tmp_path: Path) -> None:
    folders = [make(tmp_path / str(k), k) for k in range(5)]
    model = load_model(folders[0])
    for folder in folders[2:4]:
        state = load_model(folder).state_dict()
        (folder / "model.safetensors").unlink()
        load_model_and_save(folder, state)
    coefficients = (0.5, -0.75, 1.5, 0.25, -0.5)
    set_weights(model, open_sources(folders), coefficients)
    wanted = combined(folders, coefficients)
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), wanted[name], rtol=2e-6, atol=1e-6, err_msg=name)


def load_model_and_save(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """The same weights in two shards, odd names first."""
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[1::2], "model-00002-of-00002.safetensors": names[::2]}
    for shard, mine in shards.items():
        save_file({name: state[name].bfloat16() for name in mine}, folder / shard, metadata={"format": "pt"})
    placed = {name: shard for shard, mine in shards.items() for name in mine}
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_checkpoint_of_weight_zero_stays_out_with_its_nan(tmp_path: Path) -> None:
    folders = three(tmp_path)
    edit(folders[2], lambda state: state["model.norm.weight"].fill_(float("nan")))
    model = load_model(folders[1])
    set_weights(model, open_sources(folders), plane(0.5, 0.0))
    assert torch.isfinite(logits(model)).all()
    set_weights(model, open_sources(folders), plane(0.5, 0.1))
    assert torch.isnan(logits(model)).any()


def test_a_class_that_holds_its_experts_in_another_form_than_the_file(tmp_path: Path) -> None:
    """Mixtral's experts are single matrices on disk and one stack in memory: the library's loading decides."""
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    folders = [tmp_path / name for name in ("base", "mid", "rl")]
    for seed, folder in enumerate(folders):
        save_checkpoint(build_model(config, seed), TOKENIZER, folder)
    sources, model = open_sources(folders), load_model(folders[1])
    assert set(sources.views[0]) != set(model.state_dict())
    set_weights(model, sources, plane(0.5, 0.25))
    wanted = combined(folders, (0.5, 0.25, 0.25))
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), wanted[name], rtol=1e-6, atol=1e-7, err_msg=name)
    set_weights(model, sources, plane(1.0, 1.0))
    assert torch.equal(logits(model), logits(load_model(folders[2])))


def test_coefficients_sum_to_one(tmp_path: Path) -> None:
    folders = three(tmp_path)
    sources, model = open_sources(folders), load_model(folders[0])
    for wrong in ((0.5, 0.5), (0.5, 0.4, 0.2), (float("nan"), 0.5, 0.5), (float("inf"), -float("inf"), 1.0)):
        with pytest.raises(ValueError):
            set_weights(model, sources, wrong)
    for a in np.linspace(0, 1, 11):
        for b in np.linspace(0, 1, 11):
            assert abs(sum(plane(a, b)) - 1) < 1e-15
    with pytest.raises(ValueError):
        open_sources([])


def _config(key: str, value: object) -> Any:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


def _other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    one, other = list(vocabulary)[40:42]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edit(f, lambda s: s.pop("model.norm.weight")), r"'model\.norm\.weight' is in .*base alone"),
        (lambda f: edit(f, lambda s: s.update(extra=torch.zeros(2))), "'extra' is in .*rl alone"),
        (lambda f: make(f, 2, width=48), "has shape"),
        (lambda f: make(f, 2, "granite"), "different architectures"),
        (_config("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}), "config key 'rope_parameters'"),
        (_config("rms_norm_eps", 0.5), "config key 'rms_norm_eps'"),
        (_config("num_hidden_layers", "2"), "its config cannot be read"),
        (_other_tokenizer, "tokenizers of .* differ"),
        (
            lambda f: edit(f, lambda s: s.update({"model.norm.weight": s["model.norm.weight"].view(torch.int16)})),
            "'model.norm.weight' is BF16 in .* and I16 in .*: only floats",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"), "model.safetensors"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_before_a_model_is_made(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = three(tmp_path)
    change(folders[2])
    monkeypatch.setattr("prismlab.model.interpolate.load_model", None)
    with pytest.raises(CheckpointError, match=message):
        open_sources(folders)


def test_keys_that_leave_the_function_alone_may_differ(tmp_path: Path) -> None:
    folders = three(tmp_path)
    for key, value in (("transformers_version", "4.40.0"), ("use_cache", False), ("dtype", "float32")):
        _config(key, value)(folders[0])
    assert open_sources(folders).folders == tuple(folders)


def test_a_tied_head_that_is_stored_twice(tmp_path: Path) -> None:
    """Equal copies are one tensor; copies that differ cannot both be held, and are refused."""
    folders = three(tmp_path, "granite")
    for folder in folders:
        edit(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    model, sources = load_model(folders[1]), open_sources(folders)
    set_weights(model, sources, (1, 0, 0))
    assert torch.equal(logits(model), logits(load_model(folders[0])))
    edit(folders[0], lambda s: s["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match="differ, but its config ties them"):
        set_weights(model, open_sources(folders), (1, 0, 0))
