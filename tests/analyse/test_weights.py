"""Divergence against plain float64 references on real checkpoints and on hostile arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

from prismlab.analyse import weights
from prismlab.arith import kernels
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


def steps_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance in representable numbers: the bits of a number without its sign count the numbers below it."""
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]

    def place(t: torch.Tensor) -> torch.Tensor:
        below = t.abs().view(bits).to(torch.int64)
        return torch.where(t < 0, -below, below)

    return (place(a) - place(b)).abs()


def reference(old: list[torch.Tensor], new: list[torch.Tensor]) -> dict[str, Any]:
    """DIV by its definition, all at once in float64."""
    a = torch.cat([t.double().flatten() for t in old])
    b = torch.cat([t.double().flatten() for t in new])
    out = {
        "l2": float((b - a).norm() / a.norm()),
        "elements": a.numel(),
        "changed": {str(t): float(((b - a).abs() > t * a.abs()).double().mean()) for t in THRESHOLDS},
        "equal": float((a == b).double().mean()),
        "sign_flips": float((a * b < 0).double().mean()),
        "zeros_old": int((a == 0).sum()),
        "zeros_changed": int(((a == 0) & (b != 0)).sum()),
    }
    if old[0].dtype == torch.float64:
        return out
    apart = torch.cat([steps_apart(x.flatten(), y.flatten()) for x, y in zip(old, new, strict=True)])
    classes = {"0": apart == 0, "1": apart == 1, "2": apart == 2, "3-4": (apart == 3) | (apart == 4), ">4": apart > 4}
    return {**out, "ulp": {name: float(mask.double().mean()) for name, mask in classes.items()}}


def check(found: dict[str, Any], expected: dict[str, Any], rel: float = 1e-12) -> None:
    found = dict(found)
    if "ulp" not in expected:
        found.pop("ulp")
    assert found.pop("l2") == pytest.approx(expected["l2"], rel=rel)
    assert found == {k: v for k, v in expected.items() if k != "l2"}


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_divergence_is_the_reference(
    dtype: torch.dtype, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "choose", lambda elements, device: kernel)
    old = llama_state(0, dtype)
    old["model.norm.weight"][:3] = 0
    new = nudged(old, 1, 0.02)
    new["model.norm.weight"][0] = 1.0
    new["model.layers.0.mlp.up_proj.weight"][0] *= -1
    found = weights.diff(write(tmp_path / "old", old), write(tmp_path / "new", new), THRESHOLDS)
    assert (found["kernel"], found["skipped"], found["nonfinite"]) == (kernel, [], 0)
    # The compiled pass over bfloat16 sums 256 squares at a time in float32.
    rel = 1e-7 if kernel == "numba" and dtype == torch.bfloat16 else 1e-12
    check(found["total"], reference(list(old.values()), list(new.values())), rel)
    assert set(found["components"]) == {"attention", "mlp", "embedding", "norm"}

    def part(text: str) -> dict[str, Any]:
        names = [name for name in old if text in name]
        return reference([old[n] for n in names], [new[n] for n in names])

    check(found["components"]["attention"], part("self_attn"), rel)
    check(found["subcomponents"]["attention.q"], part("q_proj"), rel)
    check(found["subcomponents"]["mlp.down"], part("down_proj"), rel)
    check(found["layers"]["1"]["mlp"], part("layers.1.mlp"), rel)
    assert set(found["layers"]) == {"0", "1"}
    assert found["components"]["norm"]["zeros_old"] == 3
    assert found["components"]["norm"]["zeros_changed"] == 1
    assert found["total"]["sign_flips"] == 16 / found["total"]["elements"]
    kind = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}[dtype]
    assert found["format"] == {side: {kind: found["total"]["elements"]} for side in ("old", "new")}


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
    for name, share in metrics["total"]["ulp"].items():
        assert sum(row[f"ulp_{name}"] for row in rows) / metrics["total"]["elements"] == share
    for wrong in ([], [0.0], [-0.1], [float("nan")]):
        with pytest.raises(SpecError, match="thresholds"):
            weights.run({"thresholds": wrong}, inputs, tmp_path, Silent())


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


def test_other_types_are_compared_as_numbers(tmp_path: Path) -> None:
    wide = llama_state(0, torch.float32)
    narrow = {name: tensor.bfloat16() for name, tensor in wide.items()}
    narrow["model.norm.weight"] = wide["model.norm.weight"]
    found = weights.diff(write(tmp_path / "old", wide), write(tmp_path / "new", narrow), THRESHOLDS)
    total = found["total"]
    rounded = [narrow[name].float() for name in wide]
    expected = reference(list(wide.values()), rounded)
    for name in ("changed", "equal", "sign_flips", "elements"):
        assert total[name] == expected[name]
    assert total["l2"] == pytest.approx(expected["l2"], rel=1e-12)
    assert found["components"]["mlp"]["ulp"] is None
    assert (
        found["components"]["mlp"]["ulp_reason"] == "steps are counted between equal types: they are saved in two types"
    )
    # The norm alone has one type on both sides: it is what the shares of the whole are of, and it is equal.
    assert total["ulp"] == {"0": 1.0, "1": 0.0, "2": 0.0, "3-4": 0.0, ">4": 0.0}
    n = total["elements"]
    assert f"{n - 8} of {n} elements are saved in two types" in total["ulp_reason"]
    assert found["format"] == {"old": {"F32": n}, "new": {"BF16": n - 8, "F32": 8}}


@pytest.mark.parametrize("alike", [True, False])
def test_several_checkpoints_are_told_as_if_alone(alike: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = llama_state(0, torch.bfloat16)
    folders = {}
    for k, name in enumerate("bcd"):
        state = nudged(old, k, 0.01 * (k + 1))
        if name == "d":
            state["model.norm.weight"][0] = float("nan")
            if not alike:
                del state["model.layers.1.mlp.down_proj.weight"]
        folders[name] = write(tmp_path / name, state)
    start, passes = write(tmp_path / "old", old), []
    fold = weights.fold
    monkeypatch.setattr(weights, "fold", lambda parts, *rest, **more: passes.append(1) or fold(parts, *rest, **more))
    found = weights.compare(start, folders, THRESHOLDS)
    assert len(passes) == (1 if alike else 3)
    for name, folder in folders.items():
        alone = weights.diff(start, folder, THRESHOLDS)
        mine = found[name].metrics
        reasons = [line["reason"] for line in mine["skipped"]]
        assert reasons == [line["reason"].replace("not in new", f"not in {name}") for line in alone["skipped"]]
        assert {**mine, "skipped": []} == {**alone, "skipped": []}
    assert [line["reason"] for line in found["d"].metrics["skipped"]][-1].startswith("norm: 1 elements are NaN")
    assert found["b"].metrics["skipped"] == []
    with pytest.raises(CheckpointError, match="no checkpoint was given"):
        weights.compare(start, {}, THRESHOLDS)


def test_stage_tells_rounding_of_an_update_from_its_own_start(tmp_path: Path) -> None:
    old = llama_state(0, torch.bfloat16)
    master = {name: tensor.float() * (1 + 2**-12) for name, tensor in old.items()}
    saved = {name: tensor.bfloat16() for name, tensor in master.items()}
    write(tmp_path / "old" / "model", old)
    write(tmp_path / "new" / "model", saved)
    write(tmp_path / "new" / "master", master)
    start = {"inputs": {"start": {"kind": "base", "fingerprint": "abc"}}}
    new = artifact(tmp_path / "new", **start)
    config = {"thresholds": [0.01], "svd": None}

    def measured(fingerprint: str) -> Any:
        first = Artifact(kind="base", fingerprint=fingerprint, path=tmp_path / "old", record={"metrics": {}})
        return weights.run(config, {"old": first, "new": new}, tmp_path, Silent()).metrics

    found = measured("abc")
    # A quarter of the smallest half step is rounded away everywhere: all that moved is hidden.
    assert found["total"]["equal"] == 1.0
    assert (found["rounding"]["hidden"], found["rounding"]["equal_master"], found["rounding"]["unlike"]) == (
        1.0,
        0.0,
        0,
    )
    assert "rounding" not in measured("another")


def test_spectra_of_chosen_matrices(tmp_path: Path) -> None:
    old = llama_state(0, torch.float32)
    new = {name: tensor.clone() for name, tensor in old.items()}
    name = "model.layers.1.self_attn.k_proj.weight"
    new[name] += torch.outer(torch.arange(8.0), torch.ones(8))
    folders = write(tmp_path / "old", old), write(tmp_path / "new", new)
    found = weights.diff(*folders, THRESHOLDS, svd=r"layers\.1\.self_attn|norm")
    rows = {row["name"]: row for row in found["spectra"]}
    assert list(rows) == [f"model.layers.1.self_attn.{x}_proj.weight" for x in "kqov"[:1] + "oqv"] + [
        "model.norm.weight"
    ]
    assert rows[name]["stable_rank"] == pytest.approx(1.0, abs=1e-5)
    assert rows[name]["singular"][0] == pytest.approx((140 * 8) ** 0.5, rel=1e-6)
    assert (rows[name]["layer"], rows[name]["subcomponent"], rows[name]["shape"]) == (1, "attention.k", [8, 8])
    still = rows["model.layers.1.self_attn.q_proj.weight"]
    assert (still["stable_rank"], still["frobenius"], still["reason"]) == (None, 0.0, "the update is zero")
    assert rows["model.norm.weight"]["reason"] == "not a matrix, or an empty one"
    with pytest.raises(SpecError, match="no regular expression"):
        weights.diff(*folders, THRESHOLDS, svd="(")
