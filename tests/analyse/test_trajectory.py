"""A run's path by hand, by component, and measured while it is saved: equal to the last bit."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import NemotronHConfig, NemotronHForCausalLM

from prismlab.analyse import trajectory
from prismlab.arith import kernels, trace
from prismlab.errors import CheckpointError, StageError
from prismlab.model.checkpoint import save_snapshot
from prismlab.run.step import Artifact, Silent

torch.set_num_threads(1)

State = dict[str, torch.Tensor]


def write(folder: Path, state: State, kind: str = "llama") -> Path:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return folder


def artifact(path: Path, kind: str = "train", **record: Any) -> Artifact:
    return Artifact(kind=kind, fingerprint="0", path=path, record={"config": {}, "metrics": {}, **record})


def trajectory_run(tmp_path: Path, factors: dict[int, float], final: float, steps: int) -> dict[str, Artifact]:
    """A run in which element k of 100 starts to move once the factor passes k/100."""
    start = torch.linspace(1, 2, 100)

    def at(factor: float) -> State:
        moving = torch.arange(100) < 100 * factor
        return {"model.norm.weight": torch.where(moving, start * (1 + 0.5 * factor), start)}

    write(tmp_path / "start/model", {"model.norm.weight": start})
    write(tmp_path / "run/model", at(final))
    for step, factor in factors.items():
        folder = tmp_path / f"run/snapshots/step-{step:06d}"
        folder.mkdir(parents=True)
        save_file(at(factor), folder / "model.safetensors")
    ran = artifact(tmp_path / "run", "rl", metrics={"steps": steps})
    return {"start": artifact(tmp_path / "start"), "run": ran}


def test_trajectory_by_hand(tmp_path: Path) -> None:
    inputs = trajectory_run(tmp_path, {20: 0.2, 40: 0.4, 60: 0.5}, final=0.5, steps=80)
    out = tmp_path / "out"
    out.mkdir()
    found = trajectory.run({"thresholds": [0.01, 0.22]}, inputs, out, Silent()).metrics
    assert found["steps"] == [20, 40, 60, 80]
    assert found["changed"] == {"0.01": [0.2, 0.4, 0.5, 0.5], "0.22": [0.0, 0.0, 0.5, 0.5]}
    assert found["overlap"] == [None, 0.5, 0.8, 1.0]
    assert found["overlap_exact"] == found["overlap"]
    start = np.linspace(1, 2, 100)
    l2 = [0.5 * f * np.linalg.norm(start[: int(100 * f)]) / np.linalg.norm(start) for f in (0.2, 0.4, 0.5, 0.5)]
    assert found["l2"] == pytest.approx(l2, rel=1e-6)
    points, values = [0, 20, 40, 60, 80], [0.0, *l2]
    for share, key in ((0.5, "step50"), (0.8, "step80")):
        assert np.interp(found[key], points, values) == pytest.approx(share * l2[-1], rel=1e-6)
        assert found[key] < 60
    assert found["front_share"] == pytest.approx(np.interp(32, points, values) / l2[-1], rel=1e-6)
    rows = pq.read_table(out / "trajectory.parquet").to_pylist()
    assert {row["component"] for row in rows} == {"total", "norm"}
    counts = [row["changed_0.01"] for row in rows if row["component"] == "norm"]
    assert counts == [100 * share for share in found["changed"]["0.01"]]


def test_small_changes_are_in_the_exact_set_alone(tmp_path: Path) -> None:
    write(tmp_path / "start/model", {"model.norm.weight": torch.ones(4)})
    write(tmp_path / "run/model", {"model.norm.weight": torch.tensor([1.001, 1.5, 1.0, 1.0])})
    for step, values in ((1, [1.001, 1.0, 1.0, 1.0]), (2, [1.001, 1.5, 1.0, 1.0])):
        folder = tmp_path / f"run/snapshots/step-{step:06d}"
        folder.mkdir(parents=True)
        save_file({"model.norm.weight": torch.tensor(values)}, folder / "model.safetensors")
    inputs = {"start": artifact(tmp_path / "start"), "run": artifact(tmp_path / "run", metrics={"steps": 2})}
    found = trajectory.run({"thresholds": [0.01]}, inputs, tmp_path, Silent()).metrics
    assert found["steps"] == [1, 2]
    assert (found["overlap"], found["overlap_exact"]) == ([None, 0.0], [None, 0.5])


def test_a_run_that_did_not_move_says_so(tmp_path: Path) -> None:
    inputs = trajectory_run(tmp_path, {10: 0.0}, final=0.0, steps=10)
    found = trajectory.run({"thresholds": [0.01]}, inputs, tmp_path, Silent()).metrics
    assert (found["l2"], found["step50"], found["front_share"]) == ([0.0], None, None)
    assert found["reason"] == "the run did not move"
    shutil.rmtree(tmp_path / "run/snapshots")
    with pytest.raises(StageError, match="no snapshots"):
        trajectory.run({"thresholds": [0.01]}, inputs, tmp_path, Silent())


def test_snapshots_meet_saved_checkpoints_under_other_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NemotronHForCausalLM(
        NemotronHConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            ssm_state_size=8,
            mamba_num_heads=8,
            mamba_head_dim=8,
            n_groups=1,
            layers_block_type=["mamba", "mlp", "attention"],
        )
    ).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "start/model")
    with torch.no_grad():
        model.model.layers[0].mixer.in_proj.weight *= 1.5
    save_snapshot(model, tmp_path / "run/snapshots/step-000003")
    model.save_pretrained(tmp_path / "run/model")
    saved = set(load_file(tmp_path / "start/model/model.safetensors"))
    assert saved != set(load_file(tmp_path / "run/snapshots/step-000003/model.safetensors"))
    inputs = {"start": artifact(tmp_path / "start"), "run": artifact(tmp_path / "run", metrics={"steps": 4})}
    found = trajectory.run({"thresholds": [0.01]}, inputs, tmp_path, Silent()).metrics
    assert found["skipped"] == []
    assert found["l2"][0] == found["l2"][1] > 0
    rows = pq.read_table(tmp_path / "trajectory.parquet").to_pylist()
    assert {row["component"] for row in rows if row["l2"]} == {"total", "mamba"}


def two_components(tmp_path: Path) -> dict[int, Path]:
    """A start of bf16 and three checkpoints: attention moves at once and stays, the MLP moves at the end alone."""
    generator = torch.Generator().manual_seed(0)
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")
    start = {name: torch.randn(40, 50, generator=generator).bfloat16() for name in names}
    far = {name: torch.randn(40, 50, generator=generator).bfloat16() for name in names}
    write(tmp_path / "start", start)
    folders: dict[int, Path] = {}
    for step, (first, second) in {10: (0.05, 0.0), 20: (0.05, 0.001), 40: (0.05, 0.1)}.items():
        scales = dict(zip(names, (first, second), strict=True))
        state = {name: (start[name].double() + scales[name] * far[name].double()).bfloat16() for name in names}
        folders[step] = write(tmp_path / f"at-{step}", state)
    return folders


def test_by_component_against_float64(tmp_path: Path) -> None:
    folders = two_components(tmp_path)
    found = trajectory.follow(tmp_path / "start", folders, [0.01, 0.001])
    start = load_file(tmp_path / "start/model.safetensors")
    states = [load_file(folder / "model.safetensors") for folder in folders.values()]
    groups = {"attention": ["self_attn"], "mlp": ["mlp"], None: ["self_attn", "mlp"]}
    assert list(found["components"]) == ["attention", "mlp"]
    for component, texts in groups.items():
        metrics = found if component is None else found["components"][component]
        names = [name for name in start if any(text in name for text in texts)]
        old = torch.cat([start[name].double().flatten() for name in names])
        sets = []
        for k, state in enumerate(states):
            new = torch.cat([state[name].double().flatten() for name in names])
            beyond = (new - old).abs() > 0.01 * old.abs()
            assert metrics["l2"][k] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-12)
            assert metrics["changed"]["0.01"][k] == float(beyond.double().mean())
            assert metrics["equal"][k] == float((new == old).double().mean())
            assert metrics["ulp"]["0"][k] == metrics["equal"][k]
            assert sum(shares[k] for shares in metrics["ulp"].values()) == pytest.approx(1.0)
            sets.append((beyond, new != old))
        for which, key in enumerate(("overlap", "overlap_exact")):
            pairs = [(a[which], b[which]) for a, b in itertools.pairwise(sets)]
            expected = [float((a & b).sum() / (a | b).sum()) if (a | b).any() else None for a, b in pairs]
            assert metrics[key][0] is None
            assert metrics[key][1:] == pytest.approx(expected)
    assert found["components"]["attention"]["step80"] == pytest.approx(8.0)
    assert 20 < found["components"]["mlp"]["step50"] < found["components"]["mlp"]["step80"] < 40
    assert found["components"]["mlp"]["overlap"][1] == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_one_by_one_is_all_at_once_to_the_last_bit(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run measures while it saves is what its kept snapshots tell; two at most lie on disk at a time."""
    if kernel == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(kernels, "choose", lambda elements, device: kernel)
    folders = two_components(tmp_path)
    write(tmp_path / "kept/model", load_file(folders[40] / "model.safetensors"))
    write(tmp_path / "dropped/model", load_file(folders[40] / "model.safetensors"))
    recorder = trace.Recorder(tmp_path / "start", [0.01, 0.001])
    there: list[int] = []
    for step, folder in folders.items():
        for run in ("kept", "dropped"):
            (tmp_path / f"{run}/snapshots").mkdir(exist_ok=True)
            shutil.copytree(folder, tmp_path / f"{run}/snapshots/step-{step:06d}")
        there.append(len(list((tmp_path / "dropped/snapshots").iterdir())))
        recorder.take(step, tmp_path / f"dropped/snapshots/step-{step:06d}")
    trace.write(recorder.close(), tmp_path / "dropped" / trace.FILE)
    assert there == [1, 2, 2]
    assert not (tmp_path / "dropped/snapshots").exists()
    shutil.move(tmp_path / "start", tmp_path / "origin/model")
    results, tables = [], []
    for run in ("kept", "dropped"):
        out = tmp_path / f"out-{run}"
        out.mkdir()
        ran = artifact(tmp_path / run, "rl", metrics={"steps": 40})
        inputs = {"start": artifact(tmp_path / "origin"), "run": ran}
        results.append(trajectory.run({"thresholds": [0.001, 0.01]}, inputs, out, Silent()).metrics)
        tables.append((out / trace.FILE).read_bytes())
    assert results[0] == results[1]
    assert results[0]["kernel"] == kernel
    assert tables[0] == tables[1]
    with pytest.raises(StageError, match=r"measured at thresholds \[0.001, 0.01\], not at \[0.5\]"):
        trajectory.run({"thresholds": [0.5]}, inputs, tmp_path, Silent())


def test_what_cannot_be_compared_has_the_same_words_either_way(tmp_path: Path) -> None:
    folders = two_components(tmp_path)
    state = load_file(tmp_path / "start/model.safetensors")
    shutil.rmtree(tmp_path / "start")
    state["model.norm.weight"] = torch.ones(4)
    state["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    write(tmp_path / "start", state)
    at_once = trace.measure(tmp_path / "start", folders, [0.01])
    recorder = trace.Recorder(tmp_path / "start", [0.01])
    for step, folder in folders.items():
        recorder.take(step, folder)
    assert recorder.trace == at_once
    assert at_once.skipped == [{"name": "model.norm.weight", "reason": "not in the run"}]
    assert trajectory.metrics(at_once)["nonfinite"] == 3


def test_what_else_is_measured_changes_no_bit(tmp_path: Path) -> None:
    """Longer than a chunk, so that several threads have something to add up."""
    rng = np.random.default_rng(0)
    arrays = {step: torch.tensor(rng.normal(size=300_001)) for step in (0, 1, 2)}
    folders = {step: write(tmp_path / str(step), {"model.norm.weight": array}) for step, array in arrays.items()}
    start = folders.pop(0)
    both = trace.measure(start, folders, [0.01])
    alone = trace.measure(start, {1: folders[1]}, [0.01])
    assert both.points[1] == alone.points[1]
    expected = float((arrays[1] - arrays[0]).square().sum())
    assert both.points[1]["norm"].sums.difference2 == pytest.approx(expected, rel=1e-12)


def test_damaged_measurements_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CheckpointError, match=r"x\.parquet: no measurements of snapshots"):
        trace.read(tmp_path / "x.parquet")
    pq.write_table(pa.table({"step": [1]}), tmp_path / "x.parquet")
    with pytest.raises(CheckpointError, match=r"x\.parquet: no measurements of snapshots"):
        trace.read(tmp_path / "x.parquet")
    with pytest.raises(CheckpointError, match="no snapshot was given"):
        trace.measure(tmp_path, {}, [0.01])
