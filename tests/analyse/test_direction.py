"""Cosines of k updates against plain float64 references, and what becomes of updates that are zero or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prismlab.analyse import direction
from prismlab.errors import CheckpointError
from prismlab.run.step import Artifact, Silent

torch.set_num_threads(1)

State = dict[str, torch.Tensor]


def write(folder: Path, state: State, kind: str = "llama") -> Path:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return folder


def llama_state(dtype: torch.dtype) -> State:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    state = {"model.embed_tokens.weight": random(20, 8), "model.norm.weight": random(8)}
    for layer in range(2):
        for name in ("q", "k", "v", "o"):
            state[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = random(8, 8)
        for name in ("gate", "up", "down"):
            state[f"model.layers.{layer}.mlp.{name}_proj.weight"] = random(8, 16)
    return state


def moved(base: State, seed: int, along: State | None = None) -> State:
    """A random update of 5%, halfway between it and the update to ``along`` if that is given."""
    generator = torch.Generator().manual_seed(seed)
    out: State = {}
    for name, tensor in base.items():
        to = tensor.double() * (1 + 0.05 * torch.randn(tensor.shape, generator=generator).double())
        out[name] = (to if along is None else (to + along[name].double()) / 2).to(tensor.dtype)
    return out


def flat(base: State, state: State, text: str = "") -> torch.Tensor:
    return torch.cat([(state[n].double() - base[n].double()).flatten() for n in base if text in n])


def matrix(base: State, states: list[State], text: str = "") -> np.ndarray:
    rows = torch.stack([flat(base, state, text) for state in states])
    unit = rows / rows.norm(dim=1, keepdim=True)
    return (unit @ unit.T).numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_three_directions_are_the_reference(dtype: torch.dtype, tmp_path: Path) -> None:
    base = llama_state(dtype)
    one = moved(base, 1)
    states = {"x": one, "a": moved(base, 2, one), "m": moved(base, 3)}
    folders = {name: write(tmp_path / name, state) for name, state in states.items()}
    found = direction.cosines(write(tmp_path / "base", base), folders)
    given = list(states.values())
    assert found["names"] == ["x", "a", "m"]
    assert np.array(found["cosine"]) == pytest.approx(matrix(base, given), rel=1e-12, abs=1e-13)
    assert 0.5 < found["cosine"][0][1] < 0.9
    assert abs(found["cosine"][0][2]) < 0.2
    whole = torch.cat([tensor.double().flatten() for tensor in base.values()]).norm()
    assert found["l2"] == pytest.approx({n: float(flat(base, s).norm() / whole) for n, s in states.items()}, rel=1e-12)
    for group, part, text in (
        ("components", "attention", "self_attn"),
        ("components", "norm", "norm"),
        ("subcomponents", "mlp.gate", "gate_proj"),
        ("layers", "1", "layers.1."),
    ):
        expected = matrix(base, given, text)
        assert np.array(found[group][part]) == pytest.approx(expected, rel=1e-12, abs=1e-13), part
    assert list(found["components"]) == ["attention", "mlp", "embedding", "norm"]
    assert list(found["layers"]) == ["0", "1"]
    assert (found["reasons"], found["skipped"], found["nonfinite"]) == ({}, [], 0)
    assert found["elements"] == sum(tensor.numel() for tensor in base.values())


def test_stage_reads_the_base_and_names_from_its_config(tmp_path: Path) -> None:
    base = llama_state(torch.bfloat16)
    states = {"start": base, "base": moved(base, 1), "b": moved(base, 2)}
    inputs = {}
    for name, state in states.items():
        write(tmp_path / name / "model", state)
        record = {"config": {}, "metrics": {}}
        inputs[name] = Artifact(kind="train", fingerprint="0", path=tmp_path / name, record=record)
    found = direction.run({"base": "start", "names": ["b", "base"], "seed": 0}, inputs, tmp_path, Silent()).metrics
    assert found["names"] == ["b", "base"]
    assert found["cosine"][0][1] == pytest.approx(matrix(base, [states["b"], states["base"]])[0, 1], rel=1e-12)


def test_a_layer_that_did_not_move_says_so(tmp_path: Path) -> None:
    name = "model.layers.{}.mlp.up_proj.weight".format
    start = {name(0): torch.ones(2, 2), name(1): torch.ones(2, 2)}
    base = write(tmp_path / "base", start)
    new = write(tmp_path / "new", start | {name(1): torch.zeros(2, 2)})
    found = direction.cosines(base, {"new": new})
    assert found["layers"] == {"0": [[None]], "1": [[1.0]]}
    assert found["reasons"] == {"layer 0": "new did not move from the base"}


def test_equal_opposite_and_no_updates(tmp_path: Path) -> None:
    values = {"base": torch.ones(5), "a": torch.arange(5.0), "opposite": 2 - torch.arange(5.0), "still": torch.ones(5)}
    folders = {name: write(tmp_path / name, {"model.norm.weight": value}) for name, value in values.items()}
    base = folders.pop("base")
    found = direction.cosines(base, {**folders, "again": folders["a"]})
    gap = float("nan")
    rows = [[1.0, -1.0, gap, 1.0], [-1.0, 1.0, gap, -1.0], [gap] * 4, [1.0, -1.0, gap, 1.0]]
    assert np.array(found["cosine"], dtype=float) == pytest.approx(np.array(rows), rel=1e-15, nan_ok=True)
    assert [found["cosine"][k][k] for k in range(4)] == [1.0, 1.0, None, 1.0]
    assert found["reasons"]["whole"] == "still did not move from the base"
    assert found["l2"]["still"] == 0.0
    alone = direction.cosines(base, {"still": folders["still"]})
    assert alone["cosine"] == [[None]]
    with pytest.raises(CheckpointError, match="no checkpoint was given"):
        direction.cosines(base, {})


def test_a_base_of_zeros_has_directions_but_no_lengths(tmp_path: Path) -> None:
    values = {"base": torch.zeros(2), "a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 1.0])}
    folders = {name: write(tmp_path / name, {"model.norm.weight": value}) for name, value in values.items()}
    found = direction.cosines(folders.pop("base"), folders)
    assert found["cosine"][0][1] == pytest.approx(0.5**0.5, rel=1e-15)
    assert found["l2"] == {"a": None, "b": None}


def test_what_is_not_finite_in_one_is_left_out_of_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {name: torch.tensor(rng.normal(size=50)) for name in ("base", "a", "b", "c")}
    arrays["a"][3], arrays["c"][7] = float("nan"), float("inf")
    folders = {name: write(tmp_path / name, {"model.norm.weight": value}) for name, value in arrays.items()}
    found = direction.cosines(folders.pop("base"), folders)
    keep = torch.ones(50, dtype=torch.bool)
    keep[[3, 7]] = False
    base, *states = ({"w": value[keep]} for value in arrays.values())
    assert np.array(found["cosine"]) == pytest.approx(matrix(base, states), rel=1e-12)
    assert (found["elements"], found["nonfinite"]) == (48, 2)
    assert found["skipped"] == [
        {"name": "model.norm.weight", "reason": "norm: 2 elements are NaN or infinite and were left out"}
    ]


def test_what_one_lacks_is_named_with_its_name(tmp_path: Path) -> None:
    base = llama_state(torch.float32)
    states = {"x": moved(base, 1), "y": moved(base, 2)}
    del states["y"]["model.layers.0.mlp.up_proj.weight"]
    folders = {name: write(tmp_path / name, state) for name, state in states.items()}
    start = write(tmp_path / "base", base)
    found = direction.cosines(start, folders)
    assert found["skipped"] == [{"name": "model.layers.0.mlp.up_proj.weight", "reason": "not in y"}]
    other = write(tmp_path / "other", {"model.norm.weight": torch.ones(8)}, kind="mistral")
    with pytest.raises(CheckpointError, match="the base: llama, x: llama, z: mistral"):
        direction.cosines(start, {"x": folders["x"], "z": other})


def test_tiny_and_huge_updates_neither_vanish_nor_overflow(tmp_path: Path) -> None:
    """The product of two squared norms would leave float64; each root alone does not."""
    base = torch.zeros(3, dtype=torch.float64)
    a, b = torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    values = {"base": base, "small": a * 1e-120, "tiny": b * 1e-120, "large": a * 1e120, "vast": b * 1e120}
    folders = {name: write(tmp_path / name, {"model.norm.weight": value}) for name, value in values.items()}
    found = direction.cosines(folders.pop("base"), folders)["cosine"]
    assert found[0][1] == pytest.approx(0.5**0.5, rel=1e-14)
    assert found[2][3] == pytest.approx(0.5**0.5, rel=1e-14)
    assert found[0][3] == pytest.approx(0.5**0.5, rel=1e-14)
