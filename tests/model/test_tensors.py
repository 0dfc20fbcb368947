"""The safetensors reader against the library's own writer, and against files that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prismlab.errors import CheckpointError
from prismlab.model.tensors import MAX_HEADER, model_type, open_checkpoint, read_safetensors

torch.set_num_threads(1)


def write(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    """A file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_are_those_of_torch_bit_by_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 65504.0])
    state = {"a": torch.randn(7, 11).to(dtype), "b": special.to(dtype), "none": torch.empty(0, 3, dtype=dtype)}
    state["scalar"] = torch.tensor(2.5, dtype=dtype)
    save_file(state, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path)
    assert list(found) == sorted(state)
    for name, tensor in state.items():
        expected = tensor.to(torch.float64 if dtype == torch.float64 else torch.float32).numpy().ravel()
        view = found[name]
        assert (view.shape, view.size) == (tuple(tensor.shape), tensor.numel())
        pieces = list(view.chunks(10))
        got = np.concatenate(pieces) if pieces else np.empty(0, expected.dtype)
        assert got.dtype == expected.dtype
        if dtype == torch.float16:  # widening may set other payload bits in a NaN
            got, expected = np.nan_to_num(got, nan=7.0), np.nan_to_num(expected, nan=7.0)
        assert got.tobytes() == expected.tobytes()
        middle = (min(1, view.size), min(2, view.size))
        assert view.read(*middle).tobytes() == expected[slice(*middle)].tobytes()
        assert bytes(view.raw()) == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = open_checkpoint(tmp_path)
    state = model.state_dict()
    assert set(found) == set(state)
    for name, view in found.items():
        assert view.read().tobytes() == state[name].numpy().tobytes()
    assert model_type(tmp_path) == "llama"


def test_a_type_without_numbers_is_known_but_not_read(tmp_path: Path) -> None:
    view = read_safetensors(write(tmp_path / "m.safetensors", {"q": entry(0, 4, [4], "F8_E4M3")}, b"abcd"))[0]["q"]
    assert not view.readable
    assert bytes(view.raw()) == b"abcd"
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        view.read()


def test_data_need_not_be_aligned(tmp_path: Path) -> None:
    header = json.dumps({"x": entry(0, 8)}).encode()
    header += b" " * (3 - len(header) % 2)
    path = write(tmp_path / "m.safetensors", header, np.array([1.5, -2.0], "<f4").tobytes())
    assert (8 + len(header)) % 4 != 0
    assert read_safetensors(path)[0]["x"].read().tolist() == [1.5, -2.0]


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda p: (p.write_bytes(b"") and p) or p, "too few"),
    "short": (lambda p: (p.write_bytes(b"1234") and p) or p, "too few"),
    "header beyond file": (lambda p: write(p, {}, b"", length=10**6), "does not fit"),
    "header of an exabyte": (lambda p: write(p, {}, b"", length=2**60), "does not fit"),
    "header above the limit": (lambda p: write(p, {}, b"", length=MAX_HEADER + 1), "does not fit"),
    "not JSON": (lambda p: write(p, b"{nonsense", b""), "not sound JSON"),
    "not UTF-8": (lambda p: write(p, b'{"\xff": 1}', b""), "not sound JSON"),
    "deep": (lambda p: write(p, b'{"a":' * 100_000, b""), "not sound JSON"),
    "a list": (lambda p: write(p, [1], b""), "does not begin with"),
    "twice": (
        lambda p: write(p, ('{"x":%s,"x":%s}' % ((json.dumps(entry(0, 4)),) * 2)).encode(), b"abcd"),
        "stands twice",
    ),
    "overlap": (lambda p: write(p, {"x": entry(0, 8), "y": entry(4, 12)}, b"a" * 12), "overlaps"),
    "gap": (lambda p: write(p, {"x": entry(0, 4), "y": entry(8, 12)}, b"a" * 12), "gap"),
    "left over": (lambda p: write(p, {"x": entry(0, 4)}, b"a" * 12), "8 bytes belong to no tensor"),
    "cut off": (lambda p: write(p, {"x": entry(0, 8)}, b"a" * 4), "cut off"),
    "backwards": (lambda p: write(p, {"x": entry(8, 4, [1])}, b"a" * 8), "run backwards"),
    "wrong size": (lambda p: write(p, {"x": entry(0, 8, [3])}, b"a" * 8), "do not hold"),
    "huge shape": (lambda p: write(p, {"x": entry(0, 8, [2**62, 2**62])}, b"a" * 8), "do not hold"),
    "negative shape": (lambda p: write(p, {"x": entry(0, 8, [-2, -1])}, b"a" * 8), "counts"),
    "fractional shape": (lambda p: write(p, {"x": entry(0, 8, [2.0])}, b"a" * 8), "counts"),
    "true shape": (lambda p: write(p, {"x": entry(0, 4, [True])}, b"a" * 4), "counts"),
    "endless shape": (lambda p: write(p, {"x": entry(0, 4, [1] * 1000)}, b"a" * 4), "counts"),
    "dtype": (lambda p: write(p, {"x": entry(0, 4, [1], "F33")}, b"abcd"), "unknown dtype 'F33'"),
    "no entry": (lambda p: write(p, {"x": 3}, b""), "exactly"),
    "extra key": (lambda p: write(p, {"x": entry(0, 4) | {"file": "/etc/passwd"}}, b"abcd"), "exactly"),
    "metadata": (lambda p: write(p, {"__metadata__": {"a": 1}}, b""), "__metadata__"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    path = make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path.parent)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "x.bin", "", ".."])
def test_an_index_names_files_beside_it_alone(shard: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(CheckpointError, match="not the name of a"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"x": "s.safetensors", "y": "s.safetensors"}, "'y' is in the index but not in the file"),
        ({}, None),
        ({"y": "s.safetensors"}, "'x' is in the file but not in the index|'y' is in the index"),
        ({"x": "t.safetensors"}, r"1 are missing: t\.safetensors"),
    ],
)
def test_index_and_shards_must_agree(listed: dict[str, str], message: str | None, tmp_path: Path) -> None:
    write(tmp_path / "s.safetensors", {"x": entry(0, 4)}, b"abcd")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    if message is None:
        assert len(open_checkpoint(tmp_path)) == 0
    else:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        model_type(tmp_path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(where=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_damage_gives_a_message_or_sound_views(tmp_path: Path, where: int, byte: int, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}, path)
    blob = bytearray(path.read_bytes())
    blob[where % len(blob)] = byte
    path.write_bytes(bytes(blob[: len(blob) - cut]))
    try:
        views, _ = read_safetensors(path)
    except CheckpointError as refused:
        message = str(refused)
    else:
        message = None
    if message is not None:
        assert str(path) in message
        return
    for view in views.values():
        if view.readable:
            assert view.read().shape == (view.size,)
