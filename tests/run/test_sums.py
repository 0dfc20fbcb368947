"""Which tensor of a finished checkpoint a flipped bit is in."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_plans import prepared
from safetensors.numpy import load_file, save_file

from prismlab.errors import StoreError
from prismlab.run.store import Store
from prismlab.run.sums import listed

RECORD = {"kind": "train", "fingerprint": "ab12", "status": "complete", "metrics": {}, "config": {}}
SHAPES = {"b.weight": (3, 5), "a.weight": (7,), "empty": (0, 4), "c": ()}


def checkpoint(store: Store) -> Path:
    draft = store.draft("train", "ab12")
    (draft / "model").mkdir()
    draw = np.random.default_rng(3)
    tensors = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(tensors, draft / "model" / "model.safetensors", metadata={"format": "pt"})
    return store.commit(draft, RECORD).path / "model" / "model.safetensors"


def complaint(store: Store) -> str:
    artifact = store.find("train", "ab12")
    assert artifact is not None
    with pytest.raises(StoreError) as caught:
        store.verify(artifact)
    return str(caught.value)


def test_every_flipped_bit_is_found_in_its_tensor(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    path = checkpoint(store)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = {
        (header + entry["data_offsets"][0], header + entry["data_offsets"][1]): name
        for name, entry in json.loads(whole[8:header]).items()
        if name != "__metadata__"
    }
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        told = complaint(store)
        (name,) = [name for (start, stop), name in places.items() if start <= position < stop] or [None]
        assert f"{path}: not what was written (hash differs, in " in told
        assert ("in its header);" if name is None else f"in tensor '{name}');") in told
    path.write_bytes(whole)
    store.verify(store.read(path.parents[1]))


def test_many_changed_tensors_are_counted_and_a_length_is_told(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    path = checkpoint(store)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(bytes(255 - byte for byte in whole))
    assert "in its header, tensor '" in complaint(store)
    assert "and 1 more);" in complaint(store), "header and three tensors: one is empty, and always what it was"
    path.write_bytes(whole[:header])
    assert f"({header} bytes, not {len(whole)})" in complaint(store)


def test_the_sums_are_those_of_the_tensors_bytes(tmp_path: Path) -> None:
    path = checkpoint(prepared(tmp_path))
    entry = listed(path)
    assert entry["blake2b"] == hashlib.blake2b(path.read_bytes(), digest_size=32).hexdigest()
    sums = {name: (count, crc) for name, count, crc in entry["tensors"]}
    assert sum(count for count, _ in sums.values()) == entry["bytes"] == path.stat().st_size
    for name, tensor in load_file(path).items():
        assert sums[name] == (tensor.nbytes, f"{zlib.crc32(tensor.tobytes()):08x}")
    assert set(sums) == {None, *SHAPES}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (len(HOLE := b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}')).to_bytes(8, "little") + HOLE + b"12345",
        (len(DEEP := b"[" * 50_000)).to_bytes(8, "little") + DEEP,
    ],
)
def test_what_is_no_safetensors_has_its_hash_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert listed(path)["blake2b"] == hashlib.blake2b(content, digest_size=32).hexdigest()
    assert [name for name, *_ in listed(path).get("tensors", [])] in ([], [None])


def test_a_record_from_before_the_sums_still_tells_the_file(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    path = checkpoint(store)
    artifact = store.find("train", "ab12")
    assert artifact is not None
    del artifact.record["files"]["model/model.safetensors"]["tensors"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"not what was written \(hash differs\); the next run"):
        store.verify(artifact)
