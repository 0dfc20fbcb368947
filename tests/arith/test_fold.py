"""Streams of several checkpoints: the sums do not depend on threads, chunks or shards, and errors come through."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prismlab.arith import kernels
from prismlab.arith.fold import fold
from prismlab.arith.parts import lay_out, match
from prismlab.errors import CheckpointError
from prismlab.model.tensors import open_checkpoint

LEVELS = (0.01,)
State = dict[str, torch.Tensor]


def state(seed: int, dtype: torch.dtype = torch.bfloat16, vocabulary: int = 50) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (vocabulary, 16), "lm_head.weight": (vocabulary, 16)}
    shapes |= {f"model.layers.{k}.mlp.{n}_proj.weight": (40, 16) for k in range(3) for n in ("gate", "up")}
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write(folder: Path, tensors: State, shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    placed = {name: f"model-{k % shards}.safetensors" for k, name in enumerate(tensors)}
    for shard in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sums(folders: list[Path], threads: int, size: int) -> dict[str, kernels.Sums]:
    parts, skipped = match([open_checkpoint(folder) for folder in folders], ["old", "new"], "llama")
    assert skipped == []
    visit = functools.partial(kernels.divergence, thresholds=LEVELS)
    return {part.name: found for part, found in fold(parts, visit, threads=threads, size=size)}


@pytest.mark.parametrize("shards", [1, 3])
def test_threads_chunks_and_shards_change_nothing(shards: int, tmp_path: Path) -> None:
    old, new = write(tmp_path / "a", state(0)), write(tmp_path / "b", state(1), shards)
    whole = sums([old, new], 1, 1 << 20)
    assert len(whole) == 8
    for threads in (1, 2, 5):
        small = sums([old, new], threads, 100)
        for name, found in whole.items():
            assert small[name].changed == found.changed
            assert small[name].ulp == found.ulp
            assert small[name].difference2 == pytest.approx(found.difference2, rel=1e-12)
        assert sums([old, new], 2, 100) == small  # to the last bit, however many threads
    x, y = state(0)["lm_head.weight"].double(), state(1)["lm_head.weight"].double()
    assert whole["lm_head.weight"].difference2 == pytest.approx(float(((y - x) ** 2).sum()), rel=1e-12)


def test_a_grown_vocabulary_is_compared_over_the_common_rows(tmp_path: Path) -> None:
    old, new = state(0), state(1, vocabulary=60)
    folders = [write(tmp_path / "a", old), write(tmp_path / "b", new)]
    parts, skipped = match([open_checkpoint(folder) for folder in folders], ["old", "new"], "llama")
    assert [one["name"] for one in skipped] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert "old [50, 16], new [60, 16]; the first 50 rows, which all have, were compared" in skipped[0]["reason"]
    visit = functools.partial(kernels.divergence, thresholds=LEVELS)
    found = {part.name: (part, one) for part, one in fold(parts, visit)}
    part, one = found["lm_head.weight"]
    assert (part.shape, one.elements) == ((50, 16), 800)
    moved = new["lm_head.weight"][:50].double() - old["lm_head.weight"].double()
    assert one.difference2 == pytest.approx(float((moved**2).sum()), rel=1e-12)


def test_other_shapes_and_lone_tensors_are_listed(tmp_path: Path) -> None:
    old, new = state(0), state(1)
    new["model.layers.0.mlp.up_proj.weight"] = torch.zeros(20, 32, dtype=torch.bfloat16)
    old["model.norm.weight"] = torch.zeros(4)
    new["count"] = torch.zeros(3, dtype=torch.int64)
    old["count"] = torch.zeros(3, dtype=torch.int64)
    folders = [write(tmp_path / "a", old), write(tmp_path / "b", new)]
    files = [open_checkpoint(folder) for folder in folders]
    parts, skipped = match(files, ["old", "new"], "llama", {"lm_head.weight": "model.embed_tokens.weight"})
    reasons = {one["name"]: one["reason"] for one in skipped}
    assert reasons["model.norm.weight"] == "not in new"
    assert reasons["count"] == "I64 is not compared"
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "shapes differ: old [40, 16], new [20, 32]"
    assert reasons["lm_head.weight"].startswith("tied: a copy of model.embed_tokens.weight")
    assert len(parts) == 6
    with pytest.raises(CheckpointError, match="no tensor is in all of them"):
        match([{"a": files[0]["count"]}, {"b": files[1]["count"]}], ["old", "new"], "llama")


@dataclass
class Count:
    n: int

    def add(self, other: Count) -> None:
        self.n += other.n


def test_an_error_in_a_thread_reaches_the_caller(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", state(0))
    parts, _ = match([open_checkpoint(folder)], ["only"], "llama")

    def visit(values: np.ndarray) -> Count:
        if len(values) < 100:
            raise ZeroDivisionError("here")
        return Count(len(values))

    assert sum(found.n for _, found in fold(parts, visit, threads=2)) == sum(t.numel() for t in state(0).values())
    with pytest.raises(ZeroDivisionError, match="here"):
        list(fold(parts, visit, threads=3, size=90))


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", state(0))
    parts, _ = match([open_checkpoint(folder)], ["only"], "llama")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends \d+ bytes too early"):
        list(fold(parts, lambda values: Count(len(values))))


def test_giving_up_half_way_ends_the_threads(tmp_path: Path) -> None:
    import threading

    folder = write(tmp_path / "a", state(0))
    parts, _ = match([open_checkpoint(folder)], ["only"], "llama")
    before = set(threading.enumerate())
    stream = fold(parts, lambda values: Count(len(values)), threads=4, size=10)
    assert next(stream)[1].n > 0
    stream.close()
    assert set(threading.enumerate()) <= before


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    old, new = state(0), state(1)
    folders = {"old": write(tmp_path / "a", old), "new": write(tmp_path / "b", new)}
    assert len(lay_out(folders).parts) == 8  # heads of their own
    for tensors in (old, new):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    copies = {"old": write(tmp_path / "c", old), "new": write(tmp_path / "d", new)}
    found = lay_out(copies)
    assert (len(found.parts), found.elements) == (7, 50 * 16 + 6 * 640)
    assert found.skipped[0]["name"] == "lm_head.weight"
    assert "it counts once" in found.skipped[0]["reason"]
    # One side ties without storing the copy, the other stores it: still once. One side has a head of its own: compared.
    del old["lm_head.weight"]
    assert len(lay_out({"old": write(tmp_path / "e", old), "new": copies["new"]}).parts) == 7
    assert len(lay_out({"old": folders["old"], "new": copies["new"]}).parts) == 8


def test_an_unknown_architecture_is_compared_by_tensor_and_told(tmp_path: Path) -> None:
    folders = {name: write(tmp_path / name, state(k)) for k, name in enumerate(("old", "new"))}
    for folder in folders.values():
        (folder / "config.json").write_text('{"model_type": "novel"}')
    found = lay_out(folders)
    assert {part.component for part in found.parts} == {"other"}
    assert "novel has no table of components" in found.skipped[-1]["reason"]
    (folders["new"] / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="different architectures"):
        lay_out(folders)
