"""``prism diff`` from the command line: what it says, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from prismlab.analyse import weights
from prismlab.analyse.direction import cosines
from prismlab.errors import CheckpointError
from prismlab.tools import diff_text as text
from prismlab.tools.diff import THRESHOLDS, diff

Floats = NDArray[np.float32]
State = dict[str, NDArray[Any]]


def bfloat16(values: Floats) -> Floats:
    """Rounded to numbers that bfloat16 has, kept as float32 (safetensors' numpy side has no bfloat16)."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def state(seed: int = 0, rows: int = 40) -> State:
    rng = np.random.default_rng(seed)
    out: State = {"model.embed_tokens.weight": rng.normal(size=(rows, 8)), "model.norm.weight": np.ones(8)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        out |= {f"{at}.self_attn.{x}_proj.weight": rng.normal(size=(8, 8)) for x in "qkvo"}
        out |= {f"{at}.mlp.{x}_proj.weight": rng.normal(size=(16, 8)) for x in ("gate", "up", "down")}
    return {name: array.astype(np.float32) for name, array in out.items()}


def moved(old: State, seed: int, scale: float = 0.01) -> State:
    rng = np.random.default_rng(seed)
    return {name: (x * (1 + scale * rng.normal(size=x.shape))).astype(x.dtype) for name, x in old.items()}


def write(folder: Path, tensors: State, **config: Any) -> str:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return str(folder)


def halves(tensors: State) -> State:
    return {name: array.astype(np.float16) for name, array in tensors.items()}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    old = halves(state())
    return write(tmp_path / "old", old), write(tmp_path / "new", moved(old, 1))


def prism(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prismlab", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80", **env})


def cells(output: str, name: str) -> list[list[str]]:
    """The cells of every row that begins with ``name``."""
    return [line.split()[1:] for line in output.splitlines() if line.split()[:1] == [name]]


def test_the_tables_show_what_the_arrays_hold(pair: tuple[str, str]) -> None:
    done = prism("diff", *pair)
    assert (done.returncode, done.stderr) == (0, "")
    old = halves(state())
    new = moved(old, 1)
    x, y = (np.concatenate([a.ravel() for a in side.values()]).astype(np.float64) for side in (old, new))
    assert done.stdout.splitlines()[0] == "old → new: llama, F16"
    change, steps = cells(done.stdout, "whole")
    assert change[0] == f"{x.size / 1000:.2f}k"
    assert float(change[1]) == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=5e-3)
    shares = [np.mean(np.abs(y - x) > t * np.abs(x)) for t in THRESHOLDS] + [np.mean(x == y)]
    for shown, share in zip(change[2:], shares, strict=True):
        assert shown == ("0" if share == 0 else f"{100 * share:.1f}")
    assert sum(float(cell) for cell in steps[:5]) == pytest.approx(100, abs=0.3)
    down = np.concatenate([old[f"model.layers.{k}.mlp.down_proj.weight"].ravel() for k in range(2)])
    assert cells(done.stdout, "down")[0][0] == f"{down.size}"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_record_is_that_of_the_library(pair: tuple[str, str]) -> None:
    record = json.loads(prism("diff", *pair, "--json", "--threshold", "0.02", "--threshold", "0.001").stdout)
    expected = weights.diff(Path(pair[0]), Path(pair[1]), [0.001, 0.02])
    (new,) = record["new"]
    assert {key: new[key] for key in expected} == json.loads(json.dumps(expected))
    assert (record["old"]["name"], new["name"], record["thresholds"]) == ("old", "new", [0.001, 0.02])
    assert "direction" not in record


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("component", ["whole", "attention", "mlp", "embedding", "norm"]),
        ("layer", ["whole", *(f"layer {k} {part}" for k in range(2) for part in ("attention", "mlp"))]),
        ("tensor", ["whole", *sorted(state())]),
    ],
)
def test_rows(by: str, names: list[str], pair: tuple[str, str]) -> None:
    found = weights.compare(Path(pair[0]), {"new": Path(pair[1])}, THRESHOLDS)
    table, _ = text.tables("old", found, THRESHOLDS, by)
    assert [row[0] for row in table.rows] == names
    whole = found["new"].metrics["total"]["elements"]
    if by == "tensor":
        assert sum(div["elements"] for div in text.tensors(found["new"]).values()) == whole


def test_fused_tensors_stand_part_by_part(tmp_path: Path) -> None:
    one = {"model.layers.0.shared_mlp.input_linear.weight": np.ones((8, 4), np.float32)}
    other = {name: array.copy() for name, array in one.items()}
    other["model.layers.0.shared_mlp.input_linear.weight"][4:] = 2
    folders = [write(tmp_path / n, s, model_type="granitemoehybrid") for n, s in (("a", one), ("b", other))]
    found = weights.compare(Path(folders[0]), {"b": Path(folders[1])}, THRESHOLDS)
    name = "model.layers.0.shared_mlp.input_linear.weight"
    equal = {key: div["equal"] for key, div in text.tensors(found["b"]).items()}
    assert equal == {f"{name} (mlp.gate)": 1.0, f"{name} (mlp.up)": 0.0}


def test_several_checkpoints_have_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = state()
    folders = [write(tmp_path / "base", old), *(write(tmp_path / f"x{k}", moved(old, k)) for k in range(3))]
    record = diff(folders, out=tmp_path / "out")
    told = capsys.readouterr().out
    names = ["x0", "x1", "x2"]
    expected = cosines(Path(folders[0]), {n: Path(f) for n, f in zip(names, folders[1:], strict=True)})
    assert record["direction"] == expected
    x, *ys = (np.concatenate([a.ravel() for a in s.values()]).astype(np.float64) for s in
              (old, *(moved(old, k) for k in range(3))))  # fmt: skip
    a, b = ys[0] - x, ys[1] - x
    (row,) = [row for row in cells(told, "x0") if row[0] == "1.000"]
    assert float(row[1]) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=6e-4)
    rows = pq.read_table(tmp_path / "out" / "tensors.parquet").to_pylist()
    assert {row["checkpoint"] for row in rows} == set(names)
    assert len(rows) == 3 * len(old)
    for name, one in zip(names, record["new"], strict=True):
        squares = sum(row["difference2"] for row in rows if row["checkpoint"] == name)
        whole = sum(row["old2"] for row in rows if row["checkpoint"] == name)
        assert (squares / whole) ** 0.5 == pytest.approx(one["total"]["l2"], rel=1e-12)


def test_the_page_holds_its_figures(pair: tuple[str, str], tmp_path: Path) -> None:
    diff(pair, out=tmp_path / "out", svd="mlp", as_json=True)
    page = (tmp_path / "out" / "diff.html").read_text()
    for figure in ("change", "steps", "thresholds", "layers", "ranks"):
        assert f'data-figure="{figure}"' in page
    assert "cosines" not in page.split("<script", 1)[0]
    assert "model.layers.0.mlp.down_proj.weight" in page


def test_findings_in_words() -> None:
    changed = {"0.001": 0.3, "0.01": 0.25, "0.1": 0.0}
    div = {"elements": 100, "changed": changed, "equal": 0.6, "ulp": {"0": 0.6}, "zeros_old": 0, "zeros_changed": 0}
    metrics = {"total": div, "format": {"old": {"BF16": 90, "F32": 10}, "new": {"BF16": 100}}, "skipped": []}
    levels = [0.001, 0.01, 0.1]
    assert text.finding_note(metrics, levels) == (
        "Unchanged at 1%: 75.0% of the elements; 80.0% of these are equal, the others differ by at most 2 steps."
    )
    told = text.format_note(metrics, levels)
    assert told is not None
    assert told.startswith("One step of BF16 is 0.39 to 0.78% of a number: what moved by less than half")
    assert told.endswith("and at 0.1% only equal numbers are unchanged.")
    metrics["format"] = {"old": {"F32": 100}, "new": {"F32": 100}}
    told = text.format_note(metrics, levels)
    assert told == "One step of F32 is 6e-06 to 1.2e-05% of a number, so rounding plays no part at 1%."
    metrics["format"] = {"old": {"F32": 100}, "new": {"BF16": 100}}
    div |= {"ulp": None, "ulp_reason": "they are saved in two types"}
    assert text.format_note(metrics, levels) is None
    told = text.finding_note(metrics, levels)
    assert told is not None
    assert told.endswith("80.0% of these are equal. No distance in steps for all: they are saved in two types.")
    assert text.finding_note({**metrics, "total": {**div, "elements": 0}}, levels) is None


def test_a_step_of_bfloat16_is_as_said() -> None:
    """The sentence's 0.39 to 0.78%, and that two steps are the most within 1%, over every normal number."""
    bits = np.arange(0x0080, 0x7F7D, dtype=np.uint32)
    numbers = [((bits + k) << 16).view(np.float32).astype(np.float64) for k in range(4)]
    step = (numbers[1] - numbers[0]) / numbers[0]
    assert (step.min(), step.max()) == (1 / 255, 1 / 128)
    assert [f"{100 * share:.2g}" for share in (2.0**-8, 2.0**-7)] == ["0.39", "0.78"]
    down = (numbers[1] - numbers[0]) / numbers[1]
    assert down.min() == 1 / 256
    assert (numbers[2] - numbers[0] <= 0.01 * numbers[0]).any()
    assert not (numbers[3] - numbers[0] <= 0.01 * numbers[0]).any()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    old = {**state(), "lm_head.weight": state(3)["model.embed_tokens.weight"], "model.odd": np.ones(3, np.float32)}
    old["model.norm.weight"][:2] = 0
    new = moved(state(rows=44), 1)
    new["model.norm.weight"][[0, 1, 4]] = 0.5, 0, np.nan
    new["model.layers.0.mlp.up_proj.weight"] = np.ones((4, 4), np.float32)
    done = prism("diff", write(tmp_path / "a", old), write(tmp_path / "b", new), COLUMNS="400")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for line in (
        "Old zeros: 2; 1 of them not zero now, which counts as changed at every threshold.",
        "Not compared in full: lm_head.weight, model.odd: not in new.",
        "Not compared in full: model.layers.0.mlp.up_proj.weight: shapes differ: old [16, 8], new [4, 4].",
        "Not compared in full: model.norm.weight: norm: 1 elements are NaN or infinite and were left out.",
    ):
        assert line in lines
    assert any("the first 40 rows, which all have, were compared" in line for line in lines)


def test_an_unknown_architecture_is_compared_by_tensor_and_says_so(tmp_path: Path) -> None:
    one = {"blocks.0.w": np.ones((2, 2), np.float32), "blocks.0.v": np.ones(2, np.float32)}
    folders = [write(tmp_path / n, s, model_type="ours") for n, s in (("a", one), ("b", moved(one, 1)))]
    done = prism("diff", *folders, COLUMNS="200")
    assert "the architecture ours has no table of components" in done.stdout
    assert cells(done.stdout, "blocks.0.w")[0][0] == "4"


def test_rounding_is_told_from_master_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = halves(state())
    master = {name: array.astype(np.float32) * np.float32(1 + 2**-13) for name, array in old.items()}
    folders = [write(tmp_path / n, s) for n, s in (("old", old), ("new", halves(master)))]
    record = diff(folders, master=Path(write(tmp_path / "master", master)))
    assert record["new"][0]["rounding"]["hidden"] == 1.0
    told = " ".join(capsys.readouterr().out.split())
    assert "Rounding: 100% of the elements are equal as saved, 0% in the master weights: 100% of what looks" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["old"], "two or more checkpoints"),
        (["old", "new", "--by", "neuron"], "one of component, subcomponent, layer, tensor"),
        (["old", "new", "--device", "tpu"], "cpu, cuda"),
        (["old", "new", "--threshold", "-1"], "above 0"),
        (["old", "new", "--svd", "("], "no regular expression"),
        (["old", "new", "old", "--master", "new"], "belongs to one new checkpoint"),
        (["old", "old"], "named twice"),
        (["old", "nowhere"], "no such folder"),
        (["old", "new", "--out", "old/config.json"], "name a folder"),
        (["old", "new", "--threshold", "0.01", "--threshold", "0.010000001"], "are both 0.01 to six digits"),
    ],
)
def test_what_the_user_can_mend_is_said_in_a_line(options: list[str], told: str, pair: tuple[str, str]) -> None:
    places = {"old": pair[0], "new": pair[1], "old/config.json": f"{pair[0]}/config.json"}
    done = prism("diff", *(places.get(option, option) for option in options))
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_checkpoint_that_is_called_old_is_not_taken_for_the_first(tmp_path: Path) -> None:
    base = state()
    lacking = {name: array for name, array in moved(base, 1).items() if "up_proj" not in name}
    folders = [write(tmp_path / n, s) for n, s in (("base", base), ("old", lacking), ("other", moved(base, 2)))]
    record = diff(folders)
    alone = diff(folders[:2])
    assert record["new"][0]["total"] == alone["new"][0]["total"]
    assert [line["name"] for line in record["new"][0]["skipped"]] == [
        f"model.layers.{k}.mlp.up_proj.weight" for k in range(2)
    ]


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    one: State = {"backbone.norm_f.weight": np.ones(4, np.float32), "backbone.embeddings.weight": np.ones((4, 4), "f4")}
    twice = {**one, "model.norm_f.weight": np.full(4, 9, np.float32)}
    folders = [write(tmp_path / n, s, model_type="nemotron_h") for n, s in (("a", one), ("b", twice))]
    for order in (folders, folders[::-1]):
        with pytest.raises(
            CheckpointError, match=r"'model\.norm_f\.weight' and 'backbone\.norm_f\.weight' are two names of"
        ):
            diff(order)


def test_numbers_whose_squares_float64_cannot_hold_are_not_called_zeros(tmp_path: Path) -> None:
    tiny: State = {"a": np.full(3, 1e-200), "z": np.zeros(2)}
    folders = [write(tmp_path / n, s, model_type="ours") for n, s in (("a", tiny), ("b", {**tiny, "a": tiny["a"] * 2}))]
    parts = diff(folders)["new"][0]["subcomponents"]
    assert parts["a"]["reason"] == "its squares are beyond float64"
    assert parts["z"]["reason"] == "the old norm is 0"


ODD_NAMES = (
    "\x1b[2J\x07evil",
    "",
    "two\nlines",
    "<script>alert(1)</script>",
    "[red]x[/red]",
    "a" * 200,
    "a" * 199 + "b",
)


def test_names_in_a_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    old: State = {name: np.full(4, 1.0, np.float32) for name in (*ODD_NAMES, "b" * 1_000_000)}
    folders = [write(tmp_path / n, s, model_type="x\x1b[31m") for n, s in (("a", old), ("b", moved(old, 1)))]
    done = prism("diff", *folders, "--by", "tensor", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    for char in "\x1b\x07":
        assert char not in done.stdout + done.stderr
    assert "b" * 200 not in done.stdout
    assert "<script>alert(1)</script>" in done.stdout
    record = json.loads((tmp_path / "out" / "diff.json").read_text())
    # Two names that look alike once they are cut are two tensors.
    assert len(record["new"][0]["tensors"]) == len(record["new"][0]["subcomponents"]) == len(old)
    assert (tmp_path / "out" / "diff.json").stat().st_size < 100_000
    page = (tmp_path / "out" / "diff.html").read_text()
    assert "<script>alert" not in page
    assert "b" * 200 not in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["diff.html", "diff.json", "tensors.parquet"]


def test_zeros_and_subnormal_numbers_give_finite_figures(tmp_path: Path) -> None:
    nothing: State = {
        "a": np.zeros(6, np.float32),
        "b": np.full(6, 1e-45, np.float32),
        "c": np.zeros((0, 3), np.float32),
    }
    still = write(tmp_path / "still", nothing, model_type="ours")
    woken = {**nothing, "a": np.array([0, 0, 0, 1e-45, -1e-45, 0], np.float32)}
    done = prism("diff", still, write(tmp_path / "same", nothing, model_type="ours"), "--svd", "c")
    assert done.returncode == 0
    assert cells(done.stdout, "whole")[0][1:] == ["0", *("0" for _ in THRESHOLDS), "100"]
    assert cells(done.stdout, "a")[0][1] == "–"  # the old norm is 0
    record = json.loads(prism("diff", still, write(tmp_path / "woken", woken, model_type="ours"), "--json").stdout)
    (new,) = record["new"]
    assert new["subcomponents"]["a"]["zeros_changed"] == 2
    assert new["subcomponents"]["a"]["ulp"] == {"0": 4 / 6, "1": 2 / 6, "2": 0.0, "3-4": 0.0, ">4": 0.0}
    assert new["total"]["l2"] == pytest.approx((2 / 6) ** 0.5)
    several = prism("diff", still, str(tmp_path / "same"), str(tmp_path / "woken"))
    assert several.returncode == 0
    assert "nan" not in several.stdout.lower().replace("nan or inf", "")
    assert cells(several.stdout, "same")[-1] == ["–", "–"]


def test_an_encoding_without_arrows_is_no_reason_to_stop(pair: tuple[str, str]) -> None:
    done = prism("diff", *pair, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.startswith("old ? new: llama")


def test_nothing_heavy_is_loaded(pair: tuple[str, str]) -> None:
    code = (
        f"import sys\nfrom prismlab.tools.diff import diff\ndiff({list(pair)!r})\nprint('LOADED', *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    heavy = {"torch", "transformers", "pyarrow", "plotly", "pydantic", "jinja2", "scipy", "numba", "pandas"}
    assert not heavy & loaded
