"""Checkpoints made to do harm: each is refused with a message that can be shown, or read as what it is.

``CASES`` is driven twice: with payloads of its own, and with those of the shared sample where that is at hand.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prismlab.errors import CheckpointError, StoreError, shown
from prismlab.merge.linear import merge_linear
from prismlab.micro.models import build_model, tiny_config
from prismlab.model import base
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.families import check_config_fits, flat_ranges, locate
from prismlab.model.folder import INDEX, MAX_HEADER, MAX_JSON, SINGLE
from prismlab.model.tensors import open_checkpoint, read_safetensors
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.store import Store

torch.set_num_threads(1)
SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "hostile" / "sample.jsonl"


def file(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def refused(folder: Path, message: str) -> str:
    """The refusal of a folder: to be shown as it is, whatever names the file holds."""
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(folder)
    text = str(error.value)
    assert len(text) < 2000
    assert text.isprintable()
    return text


def sharded(folder: Path, listed: dict[str, str], **shards: list[str]) -> Path:
    """Shards ``<key>.safetensors`` that hold tensors of one float each, and an index."""
    for name, tensors in shards.items():
        header = {tensor: entry(4 * at, 4 * at + 4) for at, tensor in enumerate(tensors)}
        file(folder / f"{name}.safetensors", header, bytes(4 * len(tensors)))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


def llama(folder: Path, seed: int = 0) -> Path:
    tokenizer = build_byte_tokenizer()
    save_checkpoint(build_model(tiny_config("llama", 32, 2, len(tokenizer)), seed), tokenizer, folder)
    return folder


def control(tmp: Path, payload: str) -> None:
    header, size = re.fullmatch(r"(\{.*\}) \+ (\d+) bytes", payload).groups()  # type: ignore[union-attr]
    file(tmp / SINGLE, header.encode(), np.arange(int(size) // 4, dtype="<f4").tobytes())
    assert open_checkpoint(tmp)["a"].read().tolist() == [0.0, 1.0, 2.0, 3.0]


def header_length(tmp: Path, payload: str) -> None:
    length, size = map(int, re.findall(r"\d+", payload))
    (tmp / SINGLE).write_bytes(struct.pack("<Q", length) + b"{}" + bytes(size - 10))
    refused(tmp, f"{length - size + 8} bytes of it are missing")


def overlap(tmp: Path, payload: str) -> None:
    pairs = re.findall(r"(\w+):\[(\d+),(\d+)\]", payload)
    file(tmp / SINGLE, {name: entry(int(a), int(b)) for name, a, b in pairs}, bytes(16))
    refused(tmp, "overlaps")


def truncated(tmp: Path, payload: str) -> None:
    kept = int(re.findall(r"\d+", payload)[0])
    sharded(tmp, {"x": "s.safetensors"}, s=["x"])
    file(tmp / "s.safetensors", {"x": entry(0, 16)}, bytes(16)[:kept])
    assert "s.safetensors" in refused(tmp, f"{16 - kept} bytes are missing")


def offsets(tmp: Path, payload: str) -> None:
    for found in (json.loads(payload), [-16, 0], [0, -1], [0, True], [0.0, 16.0], ["0", "16"], [0], [0, 2**63], None):
        file(tmp / SINGLE, {"x": {"dtype": "F32", "shape": [4], "data_offsets": found}}, bytes(16))
        refused(tmp, "data_offsets")


def huge_and_empty(tmp: Path, payload: str) -> None:
    for shape in (json.loads(payload), [2**62, 0, 2], [0, 2**40, 2]):
        file(tmp / SINGLE, {"x": entry(0, 0, shape)}, b"")
        refused(tmp, "spans more than any array can")
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    file(tmp / SINGLE, {"x": entry(0, 0, [0, 7]), name: entry(0, 0, [2**38, 0, 2])}, b"")
    found = open_checkpoint(tmp)
    assert found["x"].read().size == 0
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="shared out"):
            flat_ranges(found[name].shape, locate(name, "granitemoehybrid"))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def nesting(tmp: Path, payload: str) -> None:
    depth = int(re.findall(r"\d+", payload)[0])
    for inner in (b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth):
        file(tmp / SINGLE, b'{"__metadata__":{"x":' + inner + b"}}", b"")
        refused(tmp, "not sound JSON|not an object of strings")


def names(tmp: Path, payload: str) -> None:
    for name in (payload, "\n\r\t", "\x1b[31mred\x1b[0m", "", "x" * 1_000_000, "\u202egnp", "../../etc/passwd", "\x00"):
        file(tmp / SINGLE, {name: entry(0, 4), "z": entry(4, 8)}, bytes(8))
        assert list(open_checkpoint(tmp)) == sorted([name, "z"])
        assert len(shown(name)) < 200
        assert shown(name).isprintable()
        file(tmp / SINGLE, {name: entry(0, 4, [7])}, bytes(4))
        refused(tmp, "do not hold")
        (tmp / SINGLE).unlink()
        refused(sharded(tmp, {name: "s.safetensors"}, s=["y"]), "in the (index|file) but not in the")
        (tmp / INDEX).unlink()
        assert sorted(path.name for path in tmp.iterdir()) == ["s.safetensors"], "no file is made from a name"
        (tmp / "s.safetensors").unlink()
    file(tmp / SINGLE, b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    refused(tmp, "no text")


def bit_flip(tmp: Path, payload: str) -> None:
    bit, byte = map(int, re.findall(r"\d+", payload))
    store = Store(tmp / "run")
    with store.lock():
        store.prepare()
        draft = store.draft("train", "ab")
        llama(draft / "model")
        known = {"kind": "train", "fingerprint": "ab", "version": 1, "name": "train/x/s0", "config": {}, "inputs": {}}
        artifact = store.commit(draft, known)
        store.verify(artifact)
        path = artifact.model / SINGLE
        data = bytearray(path.read_bytes())
        at = 8 + int.from_bytes(data[:8], "little") + byte
        data[at] ^= 1 << bit
        path.write_bytes(data)
        open_checkpoint(artifact.model)  # the format itself has no checksum
        with pytest.raises(StoreError, match=r"model\.safetensors: not what was written"):
            store.verify(artifact)


def subnormal_and_zero(tmp: Path, payload: str) -> None:
    tiny = float(payload.rpartition(",")[2])
    a, b = llama(tmp / "a"), llama(tmp / "b", 1)
    state = load_file(a / SINGLE)
    state["model.norm.weight"] = torch.zeros(32)
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], tiny, dtype=torch.float32)
    save_file(state, a / SINGLE, metadata={"format": "pt"})
    record = merge_linear([(a, 0.5), (b, 0.5)], tmp / "out", "float32")
    assert record["nonfinite"] == {}
    assert open_checkpoint(a)["lm_head.weight"].read(0, 1)[0] == np.float32(tiny) > 0


def symlink(tmp: Path, payload: str) -> None:
    name, _, target = payload.partition(" -> ")
    folder = tmp / "snapshots" / "x"
    folder.mkdir(parents=True)
    outside = file(tmp / "outside.safetensors", {"x": entry(0, 4)}, bytes(4))
    shard = f"{name.removesuffix('.safetensors')}.safetensors"
    sharded(folder, {"x": shard})
    for where in (target, str(outside), "../../outside.safetensors", "/dev/zero", shard, "gone"):
        (folder / shard).unlink(missing_ok=True)
        (folder / shard).symlink_to(where)
        refused(folder, "a link that leads")
    (folder / shard).unlink()
    # Within the folder it is followed, as in the cache of the hub (test_base has that).
    file(folder / "real.safetensors", {"x": entry(0, 4)}, bytes(4))
    (folder / shard).symlink_to("real.safetensors")
    assert list(open_checkpoint(folder)) == ["x"]
    llama(tmp / "parent")
    (tmp / "parent" / "merges.txt").symlink_to(outside)
    with pytest.raises(CheckpointError, match="a link that leads"):
        merge_linear([(tmp / "parent", 1.0)], tmp / "out")


def extra(tmp: Path, payload: str) -> None:
    held, listed = (part.split()[-1].split(",") for part in payload.split(";"))
    text = refused(sharded(tmp, dict.fromkeys(listed, "s.safetensors"), s=held), "in the file but not in the index")
    assert all(name in text for name in set(held) - set(listed))
    refused(
        sharded(tmp, {"a": "s.safetensors", "b": "s.safetensors"}, s=["a"]), "'b' is in the index but not in the file"
    )
    twice = {"a": "s.safetensors", "b": "t.safetensors"}
    refused(sharded(tmp, twice, s=["a", "b"], t=["b"]), "'b' is in the file but not in the index")


def missing(tmp: Path, payload: str) -> None:
    gone = f"{payload.split()[0]}.safetensors"
    refused(sharded(tmp, {"a": "s.safetensors", "b": gone}, s=["a"]), f"1 are missing: {gone}")


def pickled_state(tmp: Path, payload: str) -> None:
    canary = tmp / "canary"
    harm = re.sub(r"\(V[^\n]*\n", f"(V{canary}\n", payload).encode()
    folder = llama(tmp / "a")
    for name in ("optimizer.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin", "scaler.pkl"):
        (folder / name).write_bytes(harm)
    load_model(folder)
    merge_linear([(folder, 1.0)], tmp / "out")
    base._take(folder, tmp / "taken", code=False)
    for made in ("out", "taken"):
        assert not [path for path in (tmp / made).iterdir() if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    (folder / SINGLE).unlink()
    refused(folder, "pickled")
    with pytest.raises(CheckpointError, match="pickled"):
        load_model(folder)
    assert not canary.exists()


def huge_config(tmp: Path, payload: str) -> None:
    folder = llama(tmp / "a")
    config = json.loads((folder / "config.json").read_text()) | json.loads(payload)
    (folder / "config.json").write_text(json.dumps(config))
    for act in (check_config_fits, load_model, lambda path: merge_linear([(path, 1.0)], tmp / "out")):
        with pytest.raises(CheckpointError, match="promises"):
            act(folder)
    assert not (tmp / "out").exists()


def shape_mismatch(tmp: Path, payload: str) -> None:
    name, *sizes = re.findall(r"[a-z_]+_proj|\d+", payload)
    a, b = llama(tmp / "a"), llama(tmp / "b", 1)
    full = f"model.layers.0.self_attn.{name}.weight"
    for folder, shape in ((a, sizes[:2]), (b, sizes[2:])):
        state = load_file(folder / SINGLE) | {full: torch.zeros([int(n) for n in shape])}
        save_file(state, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{full} has shape .* in \S+/a and .* in \S+/b"):
        merge_linear([(a, 0.5), (b, 0.5)], tmp / "out")
    assert sorted(path.name for path in tmp.iterdir()) == ["a", "b"]


def other_tokenizer(tmp: Path, payload: str) -> None:
    ids = [int(n) for n in re.findall(r"\d+", payload)]
    a, b = llama(tmp / "a"), llama(tmp / "b", 1)
    state = json.loads((b / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    first, second = (next(token for token, at in vocabulary.items() if at == one) for one in ids)
    vocabulary[first], vocabulary[second] = ids[1], ids[0]
    (b / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="give other ids"):
        merge_linear([(a, 0.5), (b, 0.5)], tmp / "out")
    assert not (tmp / "out").exists()


CASES: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "st_control_ok": (control, '{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}} + 16 bytes'),
    "st_header_len_beyond_file": (header_length, "len=2000, file 90 bytes"),
    "st_overlapping_tensors": (overlap, "a:[0,12] b:[8,16]"),
    "st_truncated_shard": (truncated, "data[:15]"),
    "st_negative_or_reversed_offsets": (offsets, "[4,0]"),
    "st_zero_elements_huge_shape": (huge_and_empty, "[0,4611686018427387904]"),
    "st_header_nesting_bomb": (nesting, '"["*100000'),
    "st_name_markup_and_control": (names, "<img src=x onerror=alert(1)>"),
    "st_single_bit_flip": (bit_flip, "flip bit 7 of byte 3 of the data"),
    "st_subnormal_and_zero": (subnormal_and_zero, "zeros, 1e-41"),
    "idx_symlink_shard": (symlink, "model-00001 -> /etc/hostname"),
    "idx_extra_tensor": (extra, "shard has a,b,q; index a,b"),
    "idx_missing_shard": (missing, "model-00003-of-00003 absent"),
    "pickle_in_optimizer_state": (pickled_state, "cos\nmkdir\n(V/nowhere\ntR."),
    "cfg_huge_dims": (huge_config, '{"num_hidden_layers":100000000}'),
    "merge_shape_mismatch": (shape_mismatch, "k_proj 32x16 vs 16x32"),
    "merge_tokenizer_differs": (other_tokenizer, "swap ids 70 and 71"),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_checkpoints_of_our_own(name: str, tmp_path: Path) -> None:
    act, payload = CASES[name]
    act(tmp_path, payload)


def rows() -> list[Any]:
    if not SAMPLE.is_file():
        absent = pytest.mark.skip(reason=f"the shared sample of hostile inputs is not at {SAMPLE}")
        return [pytest.param("", "", id="absent", marks=absent)]
    found = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(r["name"], r["payload"], id=r["name"]) for r in found if r["kind"] == "checkpoint"]


@pytest.mark.parametrize(("name", "payload"), rows())
def test_hostile_checkpoints_of_the_sample(name: str, payload: str, tmp_path: Path) -> None:
    assert name in CASES, f"{name}: write a case for it"
    CASES[name][0](tmp_path, payload)


@pytest.mark.parametrize("place", [SINGLE, INDEX, "config.json"])
def test_a_pipe_a_folder_or_a_device_is_no_file(place: str, tmp_path: Path) -> None:
    def act() -> None:
        open_checkpoint(tmp_path)
        check_config_fits(tmp_path)

    llama(tmp_path)
    if place == INDEX:
        (tmp_path / SINGLE).unlink()
    for make in (os.mkfifo, os.mkdir):
        if (tmp_path / place).exists():
            (tmp_path / place).unlink()
        make(tmp_path / place)
        with pytest.raises(CheckpointError, match=r"not a regular file|cannot be read"):
            act()
        if make is os.mkdir:
            (tmp_path / place).rmdir()
    (tmp_path / place).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a link that leads out"):
        act()


@pytest.mark.parametrize(("place", "limit"), [(INDEX, MAX_HEADER), ("config.json", MAX_JSON)])
def test_json_that_is_too_long_is_not_read(place: str, limit: int, tmp_path: Path) -> None:
    llama(tmp_path)
    if place == INDEX:
        (tmp_path / SINGLE).unlink()
    with (tmp_path / place).open("wb") as long:
        long.truncate(limit + 1)  # takes no place on the disk
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="too long"):
            check_config_fits(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_single_file_goes_before_an_index_that_agrees_with_it(tmp_path: Path) -> None:
    file(tmp_path / SINGLE, {"a": entry(0, 4), "b": entry(4, 8)}, np.array([1, 2], "<f4").tobytes())
    sharded(tmp_path, {"a": "s.safetensors", "b": "s.safetensors"}, s=["a", "b"])
    assert open_checkpoint(tmp_path)["b"].read().tolist() == [2.0]
    sharded(tmp_path, {"a": SINGLE, "b": SINGLE})
    assert open_checkpoint(tmp_path)["b"].read().tolist() == [2.0]
    refused(sharded(tmp_path, {"a": "s.safetensors"}, s=["a"]), "disagree on tensor 'b'")
    sharded(tmp_path, {"a": "s.safetensors", "b": "s.safetensors"})
    file(tmp_path / "s.safetensors", {"a": entry(0, 4), "b": entry(4, 12)}, bytes(12))
    refused(tmp_path, "disagree on tensor 'b'")
    (tmp_path / "s.safetensors").unlink()
    refused(tmp_path, f"{SINGLE} and a faulty {INDEX}")


@pytest.mark.parametrize(
    "shard", [5, None, ["s"], {"a": 1}, "a\nb.safetensors", "x" * 300 + ".safetensors", "..\\x.safetensors"]
)
def test_a_shard_s_name_is_a_plain_name(shard: Any, tmp_path: Path) -> None:
    refused(sharded(tmp_path, {"x": shard}), "not the name of a .safetensors file|missing")


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    path = file(tmp_path / SINGLE, {"a": entry(0, 4)}, bytes(4))
    with open_checkpoint(tmp_path) as found:
        view = found["a"]
        assert view.read().tolist() == [0.0]
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        view.read()
    kept = read_safetensors(path)[0]["a"]  # the file stays open for the view alone
    path.unlink()
    assert kept.read().tolist() == [0.0]


def test_many_checkpoints_leave_no_file_open(tmp_path: Path) -> None:
    file(tmp_path / SINGLE, {"a": entry(0, 4)}, bytes(4))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        open_checkpoint(tmp_path)["a"].read()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1), (0, 5), (3, 5)])
def test_elements_outside_a_tensor_are_not_read(start: int, stop: int, tmp_path: Path) -> None:
    file(tmp_path / SINGLE, {"a": entry(0, 16), "b": entry(16, 32)}, bytes(32))
    view = open_checkpoint(tmp_path)["a"]
    with pytest.raises(ValueError, match="of a tensor of 4"):
        view.read_into(start, stop, bytearray(max(0, 4 * (stop - start))))
    with pytest.raises(ValueError, match="a buffer of 3 bytes for 4"):
        view.read_into(0, 1, bytearray(3))
