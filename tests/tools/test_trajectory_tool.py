"""``prism trajectory`` on folders as trainers leave them: its tables, JSON, files and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from prismlab.analyse.trajectory import difference
from prismlab.cli import app
from prismlab.errors import CheckpointError, PrismError, SpecError
from prismlab.tools.trajectory import run_folders, step_of, trajectory

torch.set_num_threads(1)

NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")


def write(folder: Path, factor: float, config: bool = True) -> Path:
    """Element k of 100 has moved by half the factor once the factor passes k/100; the MLP moves less far."""
    folder.mkdir(parents=True)
    start = torch.linspace(1, 2, 100)
    moving = torch.arange(100) < 100 * factor
    state = {
        name: torch.where(moving, start * (1 + scale * factor), start).reshape(10, 10)
        for name, scale in zip(NAMES, (0.5, 0.08), strict=True)
    }
    save_file(state, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write(tmp_path / "start", 0)
    for step, factor in ((500, 0.2), (1000, 0.4), (2000, 0.5)):
        write(tmp_path / f"one/checkpoint-{step}", factor)
    for step, factor in ((500, 0.4), (1000, 0.5), (1500, 0.5)):
        write(tmp_path / f"two/snapshots/step-{step:06d}", factor, config=False)
    (tmp_path / "one/runs").mkdir()
    (tmp_path / "one/checkpoint-9999").mkdir()  # nothing was saved there
    return tmp_path


def l2(factor: float, scale: float = 0.5) -> float:
    start = np.linspace(1, 2, 100)
    return scale * factor * np.linalg.norm(start[: round(100 * factor)]) / np.linalg.norm(start)


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["trajectory", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_folder_of_trainer_checkpoints(runs: Path) -> None:
    found = json.loads(invoke(runs / "start", "--run", runs / "one", "--json", "--threshold", "0.3"))
    (one,) = found["series"]
    assert (one["steps"], one["numbered"], found["difference"]) == ([500, 1000, 2000], True, None)
    assert one["components"]["attention"]["l2"] == pytest.approx([l2(0.2), l2(0.4), l2(0.5)], rel=1e-5)
    assert one["components"]["mlp"]["l2"] == pytest.approx([l2(f, 0.08) for f in (0.2, 0.4, 0.5)], rel=1e-4)
    assert one["components"]["attention"]["changed"] == {"0.01": [0.2, 0.4, 0.5], "0.3": [0.0] * 3}
    assert one["changed"]["0.01"] == pytest.approx([0.2, 0.4, 0.5])
    assert one["overlap"] == [None, 0.5, 0.8]


def test_tables_say_what_the_json_says(runs: Path) -> None:
    text = invoke(runs / "start", "--run", runs / "one")
    lines = [line.split() for line in text.splitlines()]
    last = next(line for line in lines if line[:1] == ["2000"])
    # step, L2, changed at six thresholds, equal, one ULP, overlaps
    assert last[2:9] == ["50.0", "50.0", "50.0", "50.0", "25.0", "25.0", "50.0"]
    assert last[-2:] == ["0.800", "0.800"]
    assert next(line for line in lines if line[:2] == ["whole", "model"])
    assert next(line for line in lines if line[:1] == ["attention"])[2] == "50.0"


def test_two_runs_on_one_axis(runs: Path) -> None:
    given = ["--run", runs / "one", "--against", runs / "start", runs / "two"]
    found = json.loads(invoke(runs / "start", *given, "--json"))
    gap = found["difference"]
    assert gap["steps"] == [500, 1000]
    assert gap["components"]["attention"]["l2"] == pytest.approx([l2(0.2) - l2(0.4), l2(0.4) - l2(0.5)], rel=1e-5)
    assert gap["components"]["attention"]["changed"]["0.01"] == pytest.approx([-0.2, -0.1])
    assert gap["components"]["mlp"]["relative"] == pytest.approx(
        [(l2(0.2) - l2(0.4)) / l2(0.5), (l2(0.4) - l2(0.5)) / l2(0.5)], rel=1e-3
    )
    text = invoke(runs / "start", *given)
    table = text.partition("one minus two")[2].splitlines()
    assert [line.split()[3] for line in table if line.split()[:1] in (["500"], ["1000"])] == ["-20.0", "-10.0"]


def test_files_of_the_output(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = invoke(
        runs / "start", "--run", runs / "one", "--against", runs / "start", runs / "two", "--out", out, "--json"
    )
    assert sorted(p.name for p in out.iterdir()) == ["trajectory.html", "trajectory.json", "trajectory.parquet"]
    assert (out / "trajectory.json").read_text() == shown
    rows = pq.read_table(out / "trajectory.parquet").to_pylist()
    assert len(rows) == 2 * 3 * 3
    last = next(
        r for r in rows if (r["series"], r["step"], r["component"]) == ("one", 2000, "attention")
    )  # fmt: skip
    assert (last["elements"], last["changed_0.01"], last["both"], last["either"]) == (100, 50, 40, 50)
    page = (out / "trajectory.html").read_text()
    assert page.count('data-figure="') == 3
    assert "http://" not in page.partition("<script")[0]


def test_figures_are_sound_plotly(runs: Path) -> None:
    from prismlab.tools.trajectory import _drawings

    record = trajectory(
        str(runs / "start"), run=runs / "one", against=(str(runs / "start"), runs / "two"), as_json=True
    )
    drawings = {drawing.id: drawing.figure for drawing in _drawings(record)}
    assert list(drawings) == ["trajectory", "components", "difference"]
    for figure in drawings.values():
        go.Figure(figure)
    names = {trace["name"] for trace in drawings["components"]["data"]}
    assert names == {"attention, one", "mlp, one", "attention, two", "mlp, two"}


def test_named_checkpoints_tell_their_steps_or_are_counted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(runs / "one/checkpoint-500"), str(runs / "one/checkpoint-2000")]
    found = trajectory(str(runs / "start"), folders, as_json=True)
    assert found["series"][0]["steps"] == [500, 2000]
    with pytest.raises(SpecError, match="steps 2000, 500; name checkpoints in rising order"):
        trajectory(str(runs / "start"), folders[::-1])
    capsys.readouterr()
    found = trajectory(str(runs / "start"), [folders[0], str(runs / "start")])
    assert (found["series"][0]["steps"], found["series"][0]["numbered"]) == ([1, 2], False)
    assert "counted from 1" in capsys.readouterr().out
    assert found["series"][0]["reason"] == "the run did not move"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("runs/checkpoint-500", 500),
        ("a/step-000020/", 20),
        ("global_step40", 40),
        ("owner/model@step1000-tokens4B", 1000),
        ("step-1/final", None),
        ("llama-3-8b", None),
        ("owner/model@main", None),
    ],
)
def test_steps_of_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_what_is_refused(runs: Path, tmp_path: Path) -> None:
    start = str(runs / "start")
    cases: list[tuple[type[PrismError], str, dict[str, Any]]] = [
        (SpecError, "one of them", {}),
        (SpecError, "one of them", {"snapshots": [start], "run": runs / "one"}),
        (SpecError, r"--threshold 1\.5: a relative change above 0", {"run": runs / "one", "thresholds": [1.5]}),
        (CheckpointError, "no folder like step-000020", {"run": runs / "start"}),
        (CheckpointError, "no such folder; --run takes", {"run": runs / "nowhere"}),
        (CheckpointError, "no such folder", {"snapshots": [str(runs / "gone")]}),
    ]
    for kind, text, given in cases:
        with pytest.raises(kind, match=text):
            trajectory(start, given.pop("snapshots", ()), **given)
    with pytest.raises(SpecError, match=r"are both 0\.01 to six digits"):
        trajectory(start, run=runs / "one", thresholds=[0.010000001])
    (runs / "one/checkpoint-1000/config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(CheckpointError, match="start: llama, step 500: llama, step 1000: mistral"):
        trajectory(start, run=runs / "one")
    write(runs / "one/step-0500", 0.1)
    with pytest.raises(CheckpointError, match="checkpoint-500 and step-0500 are of one step"):
        run_folders(runs / "one")


def test_series_without_a_step_in_common_have_no_difference() -> None:
    curves = {"l2": [1.0, None], "changed": {"0.01": [0.5, 1.0]}}
    first = {"steps": [1, 2], **curves, "components": {"mlp": curves}}
    found = difference(first, {**first, "steps": [3, 4]})
    assert (found["steps"], found["l2"]) == ([], [])
    found = difference(first, {**first, "steps": [0, 2], "l2": [0.5, 2.0]})
    assert (found["steps"], found["l2"], found["relative"]) == ([2], [None], [None])
    assert found["changed"] == {"0.01": [0.0]}
