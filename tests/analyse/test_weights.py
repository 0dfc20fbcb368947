"""Divergence against plain float64 references on real checkpoints and on hostile arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

from prismlab.analyse import kernels, weights
from prismlab.errors import CheckpointError, SpecError
from prismlab.run.step import Artifact, Silent
from prismlab.study.study import THRESHOLDS

torch.set_num_threads(1)

State = dict[str, torch.Tensor]


def write(folder: Path, state: State, kind: str = "llama") -> Path:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return folder


def artifact(path: Path, kind: str = "train", **record: Any) -> Artifact:
    return Artifact(kind=kind, fingerprint="0", path=path, record={"config": {}, "metrics": {}, **record})


def llama_state(seed: int, dtype: torch.dtype) -> State:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    state = {"model.embed_tokens.weight": random(20, 8), "model.norm.weight": random(8)}
    for layer in range(2):
        for name in ("q", "k", "v", "o"):
            state[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = random(8, 8)
        for name in ("gate", "up", "down"):
            state[f"model.layers.{layer}.mlp.{name}_proj.weight"] = random(8, 16)
    return state


def nudged(state: State, seed: int, scale: float) -> State:
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in state.items():
        moved = tensor.double() * (1 + scale * torch.randn(tensor.shape, generator=generator).double())
        out[name] = moved.to(tensor.dtype)
    return out


def reference(old: list[torch.Tensor], new: list[torch.Tensor]) -> dict[str, Any]:
    """DIV by its definition, all at once in float64."""
    a = torch.cat([t.double().flatten() for t in old])
    b = torch.cat([t.double().flatten() for t in new])
    return {
        "l2": float((b - a).norm() / a.norm()),
        "elements": a.numel(),
        "changed": {str(t): float(((b - a).abs() > t * a.abs()).double().mean()) for t in THRESHOLDS},
        "equal": float((a == b).double().mean()),
        "zeros_old": int((a == 0).sum()),
    }


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["l2"] == pytest.approx(expected["l2"], rel=1e-12)
    assert {k: v for k, v in found.items() if k != "l2"} == {k: v for k, v in expected.items() if k != "l2"}


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_divergence_is_the_reference(
    dtype: torch.dtype, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "choose", lambda elements: kernel)
    old = llama_state(0, dtype)
    old["model.norm.weight"][:3] = 0
    new = nudged(old, 1, 0.02)
    new["model.norm.weight"][0] = 1.0
    found = weights.diff(write(tmp_path / "old", old), write(tmp_path / "new", new), THRESHOLDS)
    assert (found["kernel"], found["skipped"], found["nonfinite"]) == (kernel, [], 0)
    check(found["total"], reference(list(old.values()), list(new.values())))
    assert set(found["components"]) == {"attention", "mlp", "embedding", "norm"}

    def part(text: str) -> dict[str, Any]:
        names = [name for name in old if text in name]
        return reference([old[n] for n in names], [new[n] for n in names])

    check(found["components"]["attention"], part("self_attn"))
    check(found["subcomponents"]["attention.q"], part("q_proj"))
    check(found["subcomponents"]["mlp.down"], part("down_proj"))
    check(found["layers"]["1"]["mlp"], part("layers.1.mlp"))
    assert set(found["layers"]) == {"0", "1"}
    assert found["components"]["norm"]["zeros_old"] == 3


def test_stage_writes_a_row_for_every_part(tmp_path: Path) -> None:
    old = llama_state(0, torch.bfloat16)
    new = nudged(old, 1, 0.02)
    for name, state in (("old", old), ("new", new)):
        write(tmp_path / name / "model", state)
    inputs = {name: artifact(tmp_path / name) for name in ("old", "new")}
    metrics = weights.run({"thresholds": [0.01, 0.001], "seed": 0}, inputs, tmp_path, Silent()).metrics
    rows = pq.read_table(tmp_path / "tensors.parquet").to_pylist()
    assert {row["name"] for row in rows} == set(old)
    assert sum(row["elements"] for row in rows) == metrics["total"]["elements"]
    changed = sum(row["changed_0.01"] for row in rows) / metrics["total"]["elements"]
    assert metrics["total"]["changed"] == {"0.001": metrics["total"]["changed"]["0.001"], "0.01": changed}
    assert metrics["total"]["l2"] ** 2 == pytest.approx(
        sum(row["difference2"] for row in rows) / sum(row["old2"] for row in rows)
    )
    assert rows[0]["dtype_old"] == "BF16"
    with pytest.raises(SpecError, match="thresholds"):
        weights.run({"thresholds": []}, inputs, tmp_path, Silent())


def test_what_is_not_compared_is_named(tmp_path: Path) -> None:
    old, new = llama_state(0, torch.float32), llama_state(1, torch.float32)
    del new["model.layers.0.mlp.up_proj.weight"]
    new["lm_head.weight"] = torch.ones(20, 8)
    new["model.norm.weight"] = torch.ones(4)
    old["model.layers.0.self_attn.q_proj.weight"][0, :2] = torch.tensor([float("nan"), float("inf")])
    new["model.layers.0.self_attn.q_proj.weight"][0, 1:3] = float("-inf")
    old["steps"] = new["steps"] = torch.ones(3, dtype=torch.int64)
    found = weights.diff(write(tmp_path / "old", old), write(tmp_path / "new", new), THRESHOLDS)
    reasons = {line["name"]: line["reason"] for line in found["skipped"]}
    assert reasons == {
        "model.layers.0.mlp.up_proj.weight": "not in new",
        "lm_head.weight": "not in old",
        "model.norm.weight": "shapes differ: old [8], new [4]",
        "model.layers.0.self_attn.q_proj.weight": "attention.q: 3 elements are NaN or infinite and were left out",
        "steps": "I64 is not compared",
    }
    assert found["nonfinite"] == 3
    name = "model.layers.0.self_attn.q_proj.weight"
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[0, :3] = False
    expected = reference([old[name][keep]], [new[name][keep]])
    check(found["layers"]["0"]["attention"], {**expected, **_attention_rest(old, new, name, keep)})


def _attention_rest(old: State, new: State, damaged: str, keep: torch.Tensor) -> dict[str, Any]:
    names = [n for n in old if "layers.0.self_attn" in n]
    sides = [[state[n][keep] if n == damaged else state[n] for n in names] for state in (old, new)]
    return reference(*sides)


def test_checkpoints_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"model.norm.weight": torch.ones(3)})
    b = write(tmp_path / "b", {"model.norm.weight": torch.ones(4)})
    with pytest.raises(CheckpointError, match=r"shapes differ: old \[3\], new \[4\]"):
        weights.diff(a, b, THRESHOLDS)
    c = write(tmp_path / "c", {"model.norm.weight": torch.ones(3)}, kind="mistral")
    with pytest.raises(CheckpointError, match="old: llama, new: mistral"):
        weights.diff(a, c, THRESHOLDS)


def test_a_checkpoint_equals_itself(tmp_path: Path) -> None:
    state = llama_state(0, torch.bfloat16)
    state["model.norm.weight"] = torch.zeros(8, dtype=torch.bfloat16)
    folder = write(tmp_path / "a", state)
    found = weights.diff(folder, folder, THRESHOLDS)
    assert (found["total"]["l2"], found["total"]["equal"]) == (0.0, 1.0)
    assert set(found["total"]["changed"].values()) == {0.0}
    assert found["components"]["norm"]["l2"] is None
    assert found["components"]["norm"]["reason"] == "the old norm is 0"


def hybrid(seed: int) -> GraniteMoeHybridForCausalLM:
    torch.manual_seed(seed)
    return GraniteMoeHybridForCausalLM(
        GraniteMoeHybridConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["mamba", "attention"],
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=48,
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_expand=2,
        )
    )


def test_fused_matrix_counts_as_gate_and_up(tmp_path: Path) -> None:
    model = hybrid(0)
    model.save_pretrained(tmp_path / "old")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.shared_mlp.input_linear.weight[48:] *= 1.5
            if hasattr(layer, "mamba") and layer.mamba is not None:
                layer.mamba.A_log += 1
    model.save_pretrained(tmp_path / "new")
    found = weights.diff(tmp_path / "old", tmp_path / "new", THRESHOLDS)["subcomponents"]
    assert found["mlp.gate"]["equal"] == 1.0
    assert found["mlp.up"]["l2"] == pytest.approx(0.5)
    assert found["mlp.up"]["elements"] == found["mlp.gate"]["elements"] == 2 * 48 * 32
    assert found["mamba.A"]["equal"] == 0.0
    assert found["mamba.in_proj"]["equal"] == 1.0


THRESHOLD_EDGES = [0.001, 0.25, 0.5]


def hostile() -> tuple[np.ndarray, np.ndarray]:
    """Zeros of both signs, the smallest denormals, the largest numbers, changes of exactly a threshold, equal pairs."""
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    old = [0.0, 0.0, -0.0, tiny, tiny, huge, huge, 1.0, 1.0, 1.0, -4.0, 3.0]
    new = [0.0, tiny, 0.0, tiny * 2, 0.0, -huge, huge, 1.25, 1.5, 0.5, -5.0, 3.0]
    return np.array(old, np.float32), np.array(new, np.float32)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_hostile_values(kernel: str) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    old, new = hostile()
    found = kernels.divergence(old, new, THRESHOLD_EDGES, kernel)
    # By hand: changed are 0 -> tiny, tiny -> 2 tiny, tiny -> 0, huge -> -huge; then 1.25, 1.5, 0.5 and -5 by level.
    assert found.changed == [8, 6, 4]
    assert (found.equal, found.zeros_old, found.zeros_changed, found.nonfinite) == (4, 3, 1, 0)
    assert found.old2 == pytest.approx(2 * float(old[5]) ** 2, rel=1e-12)
    assert found.l2 == pytest.approx(2**0.5, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, 70_001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_kernels_agree(size: int, dtype: type) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(size)
    old = rng.normal(size=size).astype(dtype)
    new = (old * (1 + 0.02 * rng.normal(size=size))).astype(dtype)
    new[::7], old[::11] = old[::7], 0
    new[5::1000] = np.nan
    a, b = (kernels.divergence(old, new, THRESHOLDS, kernel) for kernel in ("numpy", "numba"))
    for name in ("elements", "nonfinite", "changed", "equal", "zeros_old", "zeros_changed"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("difference2", "old2", "new2"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2049, 30_000])
def test_both_kernels_agree_on_updates(size: int) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(size)
    base, a, b = rng.normal(size=(3, size)).astype(np.float32)
    a[7::500], b[9::700] = np.nan, np.inf
    x, y = (kernels.products(base, a, b, kernel) for kernel in ("numpy", "numba"))
    keep = np.isfinite(a) & np.isfinite(b)
    u, v = (side[keep].astype(np.float64) - base[keep] for side in (a, b))
    for found in (x, y):
        assert (found.elements, found.nonfinite) == (int(keep.sum()), size - int(keep.sum()))
        sums = [found.dot, found.a2, found.b2, found.base2]
        assert sums == pytest.approx([u @ v, u @ u, v @ v, base[keep].astype(np.float64) @ base[keep]], rel=1e-9)


def test_sums_of_parts_are_sums_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 1000))
    whole = kernels.divergence(old, new, THRESHOLDS)
    parts = kernels.Sums(THRESHOLDS)
    for start in range(0, 1000, 300):
        parts.add(kernels.divergence(old[start : start + 300], new[start : start + 300], THRESHOLDS))
    assert parts.changed == whole.changed
    assert parts.l2 == pytest.approx(whole.l2, rel=1e-12)
    with pytest.raises(ValueError, match="thresholds differ"):
        parts.add(kernels.Sums((0.5,)))
    with pytest.raises(ValueError, match="shapes differ"):
        kernels.divergence(old, new[:5], THRESHOLDS)


def test_small_work_takes_numpy() -> None:
    assert kernels.choose(1_000_000) == "numpy"
    assert kernels.choose(10**9) == ("numba" if kernels.has_numba() else "numpy")
