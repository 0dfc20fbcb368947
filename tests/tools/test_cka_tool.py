"""``prism cka`` from the command line: numbers, files, resuming, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prismlab.analyse import states as states_module
from prismlab.analyse.similarity import debiased_cka, gram
from prismlab.errors import CheckpointError, SpecError, StageError
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.tools import cka as tool
from prismlab.tools.cka import Settings, cka

torch.set_num_threads(1)
SETTINGS = Settings(max_tokens=24, resamples=4, resample_size=8, device="cpu")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders ``a``, ``b`` (one matrix changed) and ``short`` (one layer fewer), and a file of 12 texts."""
    tokenizer = build_byte_tokenizer()
    model: Any = build_model(tiny_config("llama", 32, 2, 258), seed=0)
    save_checkpoint(model, tokenizer, tmp_path / "a", dtype="float32")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-3)
    save_checkpoint(model, tokenizer, tmp_path / "b", dtype="float32")
    save_checkpoint(build_model(tiny_config("llama", 48, 1, 258), seed=1), tokenizer, tmp_path / "short", "float32")
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Text {k}, which is {'very ' * k}short." for k in range(12)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(names: tuple[str, ...] = ("a", "b"), settings: Settings = SETTINGS, **rest: Any) -> dict[str, Any]:
    return cka(names, inputs=[Path("texts.txt")], settings=settings, **rest)


def test_numbers_are_those_of_the_states(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = compared(("a", "b", "short"), out=place / "out")
    texts = [line for line in (place / "texts.txt").read_text().splitlines() if line]
    tokenizer = build_byte_tokenizer()
    ids = [[int(i) for i in tokenizer(text)["input_ids"][:24]] for text in texts]
    states = [states_module.pooled_states(load_model(place / name), ids, "one").astype(float) for name in ("a", "b")]
    expected = []
    for x, y in zip(*states, strict=True):
        x, y = x - x.mean(0), y - y.mean(0)
        expected.append(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))
    one = record["pairs"][0]["sets"]["texts"]
    assert [row["cka"] for row in one["layers"]] == pytest.approx(expected, abs=1e-6)
    assert one["debiased_min"] == pytest.approx(debiased_cka(gram(states[0][2]), gram(states[1][2])), abs=1e-5)
    assert expected[1] > 0.999999 > 0.99 > expected[2]
    shown = capsys.readouterr().out
    assert f"{expected[2]:.4f}" in shown
    assert "a → short, texts: 2 and 1 layers" in shown
    assert "passed over 11 blank" in shown
    assert "12 different texts, where 200 were asked for" in shown
    assert json.loads((place / "out/cka.json").read_text()) == json.loads(json.dumps(record))
    rows = pq.read_table(place / "out/layers.parquet").to_pylist()
    assert [(row["old"], row["new"], row["layer"]) for row in rows] == [("a", "b", n) for n in range(3)]
    assert pq.read_table(place / "out/cross.parquet").num_rows == 2 * 3 * 2
    page = (place / "out/cka.html").read_text()
    assert all(f'data-figure="{name}"' in page for name in ("cka", "pairs", "cross"))


@pytest.mark.parametrize("batch", ["1", "equal"])
def test_batches_change_nothing_that_is_shown(place: Path, batch: str) -> None:
    one, other = (compared(settings=Settings(**vars(SETTINGS) | {"batch": b})) for b in ("auto", batch))
    for x, y in zip(*(r["pairs"][0]["sets"]["texts"]["layers"] for r in (one, other)), strict=True):
        assert x == pytest.approx(y, abs=1e-5)


def test_a_stopped_run_goes_on_and_a_changed_file_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = states_module.measure
    measured: list[str] = []

    def spied(folder: Path, *args: Any, **rest: Any) -> Any:
        if folder.name == stop:
            raise KeyboardInterrupt
        measured.append(folder.name)
        return measure(folder, *args, **rest)

    monkeypatch.setattr(states_module, "measure", spied)
    stop = "b"
    with pytest.raises(KeyboardInterrupt):
        compared(out=place / "out")
    stop = ""
    first = compared(out=place / "out")
    assert measured == ["a", "b"]
    assert "found in states/: a" in capsys.readouterr().out
    assert [one["measured_before"] for one in first["checkpoints"]] == [True, False]
    again = compared(out=place / "out")
    assert again["pairs"] == first["pairs"]
    assert measured == ["a", "b"]
    # Damage is said, and mended.
    damaged = sorted((place / "out/states").glob("*/grams.npz"))
    damaged[0].write_bytes(damaged[0].read_bytes()[:100])
    assert compared(out=place / "out")["pairs"] == first["pairs"]
    assert len(measured) == 3
    assert "measured again" in capsys.readouterr().err
    # Another checkpoint in the folder, other texts, other settings: nothing of before is taken.
    save_checkpoint(
        build_model(tiny_config("llama", 32, 2, 258), seed=9), build_byte_tokenizer(), place / "b", "float32"
    )
    assert compared(out=place / "out")["pairs"] != first["pairs"]
    assert measured[3:] == ["b"]
    (place / "texts.txt").write_text("\n".join(f"another {k}" for k in range(9)))
    compared(out=place / "out")
    compared(out=place / "out", settings=Settings(**vars(SETTINGS) | {"max_tokens": 5}))
    assert measured[4:] == ["a", "b"] * 2
    # Resamples are made from what is kept.
    compared(out=place / "out", settings=Settings(**vars(SETTINGS) | {"resamples": 9, "cross": True}))
    assert len(measured) == 8
    assert not list((place / "out/states").glob("*.part"))


def test_tokenizers_that_cut_differently_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = place / "b/tokenizer.json"
    data = json.loads(tokenizer.read_text())
    # Two letters trade places: only texts with one of them are cut into other tokens.
    vocabulary = data["model"]["vocab"]
    vocabulary["9"], vocabulary["~"] = vocabulary["~"], vocabulary["9"]
    tokenizer.write_text(json.dumps(data))
    one = compared()["pairs"][0]["sets"]["texts"]
    assert one["differing"] == {"count": 1, "first": [9]}
    assert "cut 1 of 12 inputs differently (first, from 0: 9)" in capsys.readouterr().out


def test_what_is_refused(place: Path) -> None:
    with pytest.raises(SpecError, match="two or more"):
        compared(("a",))
    with pytest.raises(SpecError, match="named twice"):
        compared(("a", "a"))
    with pytest.raises(CheckpointError, match="no such folder"):
        compared(("a", "nothing"))
    for n in (3, 2001):
        with pytest.raises(SpecError, match=f"--n {n}: 4 to 2000"):
            compared(n=n)
    for wrong in ({"max_tokens": 0}, {"resamples": -1}, {"resample_size": 3}, {"batch": "2"}, {"device": "tpu"}):
        with pytest.raises(SpecError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            compared(settings=Settings(**vars(SETTINGS) | wrong))
    (place / "file").write_text("")
    with pytest.raises(SpecError, match="a file; name a folder"):
        compared(out=place / "file")
    (place / "short/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="too few for a safetensors file"):
        compared(("a", "b", "short"), out=place / "kept")
    assert not (place / "kept").exists()  # the last one's fault has cost no pass
    if not torch.cuda.is_available():
        with pytest.raises(StageError, match="no GPU"):
            compared(settings=Settings(**vars(SETTINGS) | {"device": "cuda"}))


def test_the_command_gives_json_and_exit_codes(place: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prismlab", "cka", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)

    done = run(
        "a", "b", "--inputs", "texts.txt", "--json", "--resamples", "2", "--resample-size", "8", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["settings"]["resamples"] == 2
    assert record["pairs"][0]["sets"]["texts"]["min"] < 0.999
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "short", "texts.txt"]
    wrong = run("a", "b", "--inputs", "missing.txt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "prism: missing.txt: no such file\n"


def test_numbers_show_how_far_they_are_from_one() -> None:
    assert tool._cell(None) == "–"
    assert [tool._cell(x) for x in (0.5, 0.9876543, 0.99991234, 0.999999991, 1.0, -0.25)] == [
        "0.5000",
        "0.9877",
        "0.999912",
        "0.99999999",
        "1.00000000",
        "\u22120.2500",
    ]


def test_a_checkpoint_with_nan_is_named(place: Path) -> None:
    model: Any = load_model(place / "b")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save_checkpoint(model, build_byte_tokenizer(), place / "b")
    with pytest.raises(CheckpointError, match="b: a hidden state is NaN or infinite"):
        compared()
