"""What rounding hides, against plain float64 and torch's own rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from prismlab.analyse.rounding import rounded_to, rounding
from prismlab.errors import CheckpointError

torch.set_num_threads(1)

State = dict[str, torch.Tensor]


def write(folder: Path, state: State, config: bool = True) -> Path:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def small_update(seed: int = 0) -> tuple[State, State]:
    """A start of bf16 and float32 weights that moved by about half a step of bf16; some did not move."""
    generator = torch.Generator().manual_seed(seed)
    start, master = {}, {}
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        start[name] = torch.randn(64, 40, generator=generator).bfloat16()
        start[name][0, :3] = 0
        noise = 0.004 * torch.randn(64, 40, generator=generator)
        master[name] = start[name].float() * (1 + noise) + (start[name] == 0) * 1e-3
        master[name][5] = start[name][5].float()
    return start, master


def shares(old: torch.Tensor, new: torch.Tensor, master: torch.Tensor) -> dict[str, float]:
    """By definition, in float64."""
    a, b, c = (side.double().flatten() for side in (old, new, master))
    hidden = (a == b) & (a != c)
    return {
        "equal_saved": float((a == b).double().mean()),
        "equal_master": float((a == c).double().mean()),
        "hidden": float(hidden.double().mean()),
        "hidden_of_unchanged": float(hidden.double().sum() / (a == b).double().sum()),
        "l2_saved": float((b - a).norm() / a.norm()),
        "l2_master": float((c - a).norm() / a.norm()),
        "changed_saved": float(((b - a).abs() > 0.001 * a.abs()).double().mean()),
        "changed_master": float(((c - a).abs() > 0.001 * a.abs()).double().mean()),
    }


def test_shares_are_the_reference_whole_and_by_component(tmp_path: Path) -> None:
    start, master = small_update()
    saved = {name: tensor.bfloat16() for name, tensor in master.items()}
    folders = write(tmp_path / "old", start), write(tmp_path / "new", saved), write(tmp_path / "m", master, False)
    found = rounding(*folders, [0.001, 0.01])
    groups = {"attention": "q_proj", "mlp": "up_proj", "norm": "norm", None: ""}
    for component, text in groups.items():
        metrics = found if component is None else found["components"][component]
        names = [name for name in start if text in name]
        expected = shares(*(torch.cat([state[name] for name in names]) for state in (start, saved, master)))
        for key in ("equal_saved", "equal_master", "hidden", "hidden_of_unchanged"):
            assert metrics[key] == expected[key], (component, key)
        for key in ("l2_saved", "l2_master"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-12)
        for key in ("changed_saved", "changed_master"):
            assert metrics[key]["0.001"] == expected[key], (component, key)
    assert (found["unlike"], found["nonfinite"], found["skipped"]) == (0, 0, [])
    assert found["elements"] == 3 * 64 * 40
    # The point of it: half of what looks unchanged is not, and 0.1% is below what bf16 can show.
    assert found["equal_saved"] > 0.3
    assert found["hidden_of_unchanged"] > 0.5
    assert found["changed_master"]["0.001"] > found["changed_saved"]["0.001"]
    assert found["hidden"] == pytest.approx(found["equal_saved"] - found["equal_master"])


def test_a_master_of_another_checkpoint_shows(tmp_path: Path) -> None:
    start, master = small_update()
    saved = {name: tensor.bfloat16() for name, tensor in master.items()}
    saved["model.norm.weight"][7, :9] *= 2
    folders = write(tmp_path / "old", start), write(tmp_path / "new", saved), write(tmp_path / "m", master)
    assert rounding(*folders, [0.01])["unlike"] == 9


def test_what_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    start, master = small_update()
    saved = {name: tensor.bfloat16() for name, tensor in master.items()}
    master["model.norm.weight"][3, 0], saved["model.norm.weight"][3, 0] = float("nan"), float("nan")
    start["model.norm.weight"][4, 1] = float("inf")
    folders = write(tmp_path / "old", start), write(tmp_path / "new", saved), write(tmp_path / "m", master)
    found = rounding(*folders, [0.01])
    assert (found["nonfinite"], found["elements"], found["unlike"]) == (2, 3 * 64 * 40 - 2, 0)


def test_an_update_that_is_all_seen_and_one_that_is_all_hidden(tmp_path: Path) -> None:
    start = {"model.norm.weight": torch.linspace(1, 2, 50).bfloat16()}
    hidden = {"model.norm.weight": start["model.norm.weight"].float() * (1 + 1e-4)}
    old = write(tmp_path / "old", start)
    found = rounding(old, old, write(tmp_path / "m", hidden), [0.01])
    assert (found["equal_saved"], found["equal_master"], found["hidden_of_unchanged"], found["unlike"]) == (1, 0, 1, 0)
    seen = {"model.norm.weight": start["model.norm.weight"].float() * 1.5}
    saved = {name: tensor.bfloat16() for name, tensor in seen.items()}
    found = rounding(old, write(tmp_path / "new", saved), write(tmp_path / "m2", seen), [0.01])
    assert (found["hidden"], found["hidden_of_unchanged"]) == (0.0, None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_rounding_is_torch_s_on_any_finite_bits(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    ours = rounded_to(values, np.zeros(len(values), np.uint16))
    theirs = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert ours.tolist() == theirs.tolist()
    half = rounded_to(values, np.zeros(len(values), np.float16))
    assert half.view(np.uint16).tolist() == torch.from_numpy(values.copy()).half().numpy().view(np.uint16).tolist()


def test_ties_go_to_even() -> None:
    middle = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
    assert rounded_to(middle, np.zeros(3, np.uint16)).tolist() == [0x3F80, 0x3F82, 0xBF80]


def test_a_master_narrower_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    wide = {"model.norm.weight": torch.ones(4)}
    narrow = {"model.norm.weight": torch.ones(4, dtype=torch.float16)}
    double = {"model.norm.weight": torch.ones(4, dtype=torch.float64)}
    old = write(tmp_path / "old", wide)
    assert rounding(old, old, write(tmp_path / "float32", wide), [0.01])["unlike"] == 0
    # float16 is read as float32, which holds its values exactly; against float64 it cannot be the master.
    doubled = write(tmp_path / "double", double)
    with pytest.raises(CheckpointError, match="cannot be those of a checkpoint of float64"):
        rounding(doubled, doubled, write(tmp_path / "m", narrow), [0.01])
    half = write(tmp_path / "bf16", {"model.norm.weight": torch.ones(4, dtype=torch.bfloat16)})
    with pytest.raises(CheckpointError, match="float32 is expected beside bfloat16"):
        rounding(half, half, doubled, [0.01])
