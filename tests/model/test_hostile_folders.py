"""Folders that are not what they seem: adapters beside weights, files that no index names, pointers, other formats."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prismlab.arith.parts import lay_out
from prismlab.cost.shapes import MAX_LAYERS
from prismlab.errors import CheckpointError, SpecError
from prismlab.merge.linear import merge_linear
from prismlab.micro.models import build_model, tiny_config
from prismlab.model import base
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from prismlab.model.folder import INDEX, SINGLE
from prismlab.model.tensors import open_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.tools.models import of_folder


def llama(folder: Path, seed: int = 0) -> Path:
    tokenizer = build_byte_tokenizer()
    save_checkpoint(build_model(tiny_config("llama", 32, 2, len(tokenizer)), seed), tokenizer, folder)
    return folder


def in_shards(folder: Path) -> Path:
    """The same checkpoint as two shards and an index."""
    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    placed: dict[str, str] = {}
    for number, names in enumerate((sorted(state)[::2], sorted(state)[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, folder / shard, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def adapt(folder: Path) -> None:
    """What peft saves, of an adapter that changes every query by the same amount."""
    about = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": str(folder)}))
    state: dict[str, torch.Tensor] = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        state |= {f"{name}.lora_A.weight": torch.ones(1, 32), f"{name}.lora_B.weight": torch.ones(32, 1)}
    save_file(state, folder / "adapter_model.safetensors")


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "open": lambda folder, tmp: open_checkpoint(folder),
    "load": lambda folder, tmp: load_model(folder),
    "diff": lambda folder, tmp: lay_out({"old": llama(tmp / "old", 1), "new": folder}),
    "merge": lambda folder, tmp: merge_linear([(folder, 1.0)], tmp / "out"),
    "base": lambda folder, tmp: base._take(folder, tmp / "out", code=False),
    "models": lambda folder, tmp: of_folder(folder),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_refused_by_all_alike(reader: str, alone: bool, tmp_path: Path) -> None:
    """transformers puts it into the model that it loads, readers of the files do not: one checkpoint would be two."""
    folder = llama(tmp_path / "a")
    adapt(folder)
    if alone:
        (folder / SINGLE).unlink()
        (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds an adapter .*merge_and_unload"):
        READERS[reader](folder, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_weight_file_that_the_index_does_not_name_is_listed(tmp_path: Path) -> None:
    old, new = llama(tmp_path / "old"), in_shards(llama(tmp_path / "new", 1))
    assert lay_out({"old": old, "new": new}).skipped == []
    assert merge_linear([(old, 0.5), (new, 0.5)], tmp_path / "one")["notes"] == []
    save_file({"model.norm.weight": torch.ones(32)}, new / "model-00003-of-00003.safetensors")
    reason = "a weight file in new that its index does not name: not read"
    assert lay_out({"old": old, "new": new}).skipped == [{"name": "model-00003-of-00003.safetensors", "reason": reason}]
    noted = merge_linear([(old, 0.5), (new, 0.5)], tmp_path / "two")["notes"]
    assert noted == [f"model-00003-of-00003.safetensors in {new} is not read"]
    # Shards beside a single file are read, to see that they agree, and so are nothing odd.
    merged = load_file(tmp_path / "two" / SINGLE)
    in_shards(tmp_path / "two")
    save_file(merged, tmp_path / "two" / SINGLE, metadata={"format": "pt"})
    assert lay_out({"old": old, "new": tmp_path / "two"}).skipped == []


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "and others, but neither"),
        (["weights.safetensors"], "holds weights.safetensors, but neither"),
        (["model-Q4_K_M.gguf"], "its weights are in model-Q4_K_M.gguf, which is not read"),
        (["tf_model.h5"], "its weights are in tf_model.h5"),
        (["flax_model.msgpack"], "its weights are in flax_model.msgpack"),
        (["pytorch_model.bin.index.json"], r"pickled \(pytorch_model.bin.index.json\)"),
        ([], "so there are no weights; name a folder"),
    ],
)
def test_what_is_there_in_place_of_weights_is_named(held: list[str], message: str, tmp_path: Path) -> None:
    folder = llama(tmp_path / "a")
    (folder / SINGLE).unlink()
    for name in held:
        (folder / name).write_bytes(b"x")
    for act in (open_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=message):
            act(folder)


def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path: Path) -> None:
    folder = llama(tmp_path / "a")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 16060522904\n"
    (folder / SINGLE).write_text(pointer)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a pointer of Git LFS.*git lfs pull"):
        open_checkpoint(folder)


def test_types_that_cannot_be_averaged_are_named(tmp_path: Path) -> None:
    first, second = llama(tmp_path / "a"), llama(tmp_path / "b", 1)
    state = load_file(second / SINGLE)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(state | {name: state[name].to(torch.float8_e4m3fn)}, second / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} \(BF16, F8_E4M3\) is not BF16 or F16 .* convert"):
        merge_linear([(first, 0.5), (second, 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"num_labels": 10**9}, "'num_labels' is 1,000,000,000, at most 100,000"),
        ({"model_type": ["llama"]}, "'model_type' is missing"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "are quantised"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "are quantised"),
    ],
)
def test_configs_that_fill_the_memory_or_ask_for_other_packages_are_refused(
    lie: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = llama(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | lie))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
    if "num_labels" in lie:
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(folder)


def test_layers_beyond_counting_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    folder = llama(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": MAX_LAYERS}))
    assert of_folder(folder).layers == str(MAX_LAYERS)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    tracemalloc.start()
    try:
        with pytest.raises(SpecError, match="'num_hidden_layers' is 1,000,000,000; at most 100,000"):
            of_folder(folder)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
