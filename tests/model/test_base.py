from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prismlab.errors import CheckpointError
from prismlab.model.base import run
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.tokens import Encoder, build_byte_tokenizer, is_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Result, Silent
from prismlab.study.spec import BaseSpec

BYTES = build_byte_tokenizer()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(out: Path, seed: int = 0, **values: Any) -> Result:
    spec = BaseSpec.model_validate({"arch": "llama", "width": 32, "layers": 2, **values})
    out.mkdir()
    return run({"spec": spec.model_dump(mode="json"), "content": None, "seed": seed}, {}, out, Silent())


def external(out: Path, folder: Path) -> Result:
    out.mkdir()
    spec = BaseSpec(checkpoint=".").model_dump(mode="json")
    return run({"spec": spec, "seed": 0, "files": {"checkpoint": [str(folder)]}}, {}, out, Silent())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "a"
    tiny(out)
    return out / "model"


# The byte tokenizer


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_and_is_its_own_bytes(text: str) -> None:
    ids = BYTES(text).input_ids
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text


def test_special_tokens() -> None:
    assert (len(BYTES), BYTES.eos_token_id, BYTES.pad_token_id, BYTES.bos_token_id) == (258, 256, 257, None)
    text = "<think> a </think> <|eos|> \n\t x"
    assert BYTES(text).input_ids == list(text.encode())
    assert BYTES.decode([*text.encode(), 256], skip_special_tokens=True) == text


def test_the_tokenizer_survives_saving_and_padding(tmp_path: Path) -> None:
    BYTES.save_pretrained(tmp_path / "a")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    wanted = tokenizer_hash(BYTES)
    assert tokenizer_hash(loaded) == tokenizer_hash(tmp_path / "b") == wanted
    loaded(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(loaded) == wanted
    assert loaded("<|eos|>").input_ids == list(b"<|eos|>")


def subword() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the end"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_hash_tells_tokenizers_apart(tmp_path: Path) -> None:
    other = subword()
    assert tokenizer_hash(other) != tokenizer_hash(BYTES)
    before = tokenizer_hash(other)
    other.eos_token = "<s>"
    assert tokenizer_hash(other) != before
    with pytest.raises(CheckpointError, match="tokenizer"):
        tokenizer_hash(tmp_path)


def test_encoding_in_bulk_is_what_the_tokenizer_says() -> None:
    texts = ["the cat </s> sat", "", "é–\U0001f600", "<|eos|> the", " x\n\ty "]
    fast = Encoder(BYTES)
    assert is_byte_tokenizer(BYTES)
    for text, ids in zip(texts, fast.encode(texts), strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == [*BYTES(text).input_ids, 256]
    tokenizer = subword()
    assert not is_byte_tokenizer(tokenizer)
    encoder = Encoder(tokenizer)
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids.tolist() == [*plain, tokenizer.eos_token_id]
        assert tokenizer.eos_token_id not in plain
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id], (
        "the caller's is unchanged"
    )
    tokenizer.eos_token = None
    with pytest.raises(CheckpointError, match="no end-of-sequence"):
        Encoder(tokenizer)


def test_added_tokens_are_not_passed_over_by_the_byte_path() -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens(["<think>"])
    assert not is_byte_tokenizer(tokenizer)
    assert Encoder(tokenizer).encode(["a<think>"])[0].tolist() == [97, 258, 256]


def test_bytes_are_encoded_fast() -> None:
    texts = ["some English text, and then some more. " * 25] * 4000
    encoder = Encoder(BYTES)
    started = time.process_time()
    encoder.encode(texts)
    # A tokenizer that goes by merges takes seconds for these 4 MB, this one a hundredth of one.
    assert time.process_time() - started < 1


# Tiny bases


@pytest.mark.parametrize("arch", ["llama", "granite", "granite4-h", "nemotron-h"])
def test_a_tiny_base_is_saved_in_bf16_and_counted(tmp_path: Path, arch: str) -> None:
    result = tiny(tmp_path / "a", arch=arch, layers=3)
    folder = tmp_path / "a" / "model"
    model = load_model(folder)
    assert result.metrics == {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "vocab_size": 258,
        "tokenizer": tokenizer_hash(BYTES),
    }
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert load_tokenizer(folder).eos_token_id == 256 == model.config.eos_token_id


def test_weights_follow_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


# External checkpoints


def test_a_folder_is_linked_without_what_is_not_wanted(tmp_path: Path, made: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "theirs")
    for name in ("pytorch_model.bin", "modeling_evil.py", "README.md", "consolidated.safetensors"):
        (folder / name).write_bytes(b"no")
    result = external(tmp_path / "out", folder)
    taken = {path.name for path in (tmp_path / "out" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= taken
    assert not taken & {"pytorch_model.bin", "modeling_evil.py", "README.md", "consolidated.safetensors"}
    linked = tmp_path / "out" / "model" / "model.safetensors"
    assert linked.samefile(folder / "model.safetensors")
    assert result.metrics["parameters"] == sum(p.numel() for p in load_model(made).parameters())
    assert result.metrics["architecture"] == "LlamaForCausalLM"
    load_model(tmp_path / "out" / "model")


def test_a_copy_is_made_where_links_fail(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    external(tmp_path / "out", made)
    copied = tmp_path / "out" / "model" / "model.safetensors"
    assert not copied.samefile(made / "model.safetensors")
    assert copied.read_bytes() == (made / "model.safetensors").read_bytes()


def test_links_of_a_download_cache_are_followed(tmp_path: Path, made: Path) -> None:
    repository = tmp_path / "models--owner--name"
    cache, blobs = repository / "snapshots" / "0123", repository / "blobs"
    cache.mkdir(parents=True)
    blobs.mkdir()
    for at, path in enumerate(sorted(made.iterdir())):
        shutil.copyfile(path, blobs / str(at))
        (cache / path.name).symlink_to(f"../../blobs/{at}")
    external(tmp_path / "out", cache)
    assert not any(path.is_symlink() for path in (tmp_path / "out" / "model").iterdir())


def sharded(folder: Path) -> None:
    """The checkpoint in ``folder`` with its weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for at, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{at}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(tmp_path: Path, made: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "theirs")
    sharded(folder)
    result = external(tmp_path / "out", folder)
    assert result.metrics["parameters"] == sum(p.numel() for p in load_model(made).parameters())
    load_model(tmp_path / "out" / "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"of 2 weight files that it names 1 are missing: model-00002"):
        external(tmp_path / "again", folder)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, made: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "theirs")
    shutil.copy(made / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not the name of a \.safetensors file in this folder"):
        external(tmp_path / "out", folder)


def test_unusable_folders_are_named(tmp_path: Path, made: Path) -> None:
    def without(name: str, *gone: str, **written: bytes) -> Path:
        folder = shutil.copytree(made, tmp_path / name)
        for file in gone:
            (folder / file).unlink()
        for file, content in written.items():
            (folder / file.replace("__", ".")).write_bytes(content)
        return folder

    cases = [
        (tmp_path / "nowhere", "no such folder"),
        (without("a", "config.json"), "no config.json"),
        (without("b", "model.safetensors"), "no weights"),
        (without("c", "model.safetensors", pytorch_model__bin=b"x"), "pickled"),
        (without("d", "tokenizer.json", "tokenizer_config.json"), "tokenizer"),
        (without("e", model__safetensors=b"broken"), "6 bytes are too few"),
        (without("f", config__json=b"{"), "not sound JSON"),
        (without("g", config__json=b'{"model_type": "llama"}'), "'architectures'"),
    ]
    for at, (folder, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            external(tmp_path / f"out{at}", folder)


def test_a_model_id_is_fetched_by_name_and_revision(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(made)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    (tmp_path / "out").mkdir()
    spec = BaseSpec(checkpoint="owner/name@v1").model_dump(mode="json")
    result = run({"spec": spec, "seed": 0}, {}, tmp_path / "out", Silent())
    assert (asked["repo"], asked["revision"]) == ("owner/name", "v1")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])
    assert result.metrics["model_type"] == "llama"
