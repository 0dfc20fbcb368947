"""What a merge does with tied heads, other tokenizers, other configs, NaN, mixed types; and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prismlab.cli import app
from prismlab.errors import CheckpointError, SpecError
from prismlab.merge import linear, passes
from prismlab.merge.linear import merge_linear
from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from prismlab.model.tensors import open_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Silent
from prismlab.tools.merge import parse_source

torch.set_num_threads(1)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Told(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def make(folder: Path, seed: int = 0, arch: str = "llama", dtype: str = "bfloat16") -> Path:
    tokenizer = build_byte_tokenizer()
    model = build_model(tiny_config(arch, 32, 4, len(tokenizer)), seed)
    with torch.no_grad():  # norms and Mamba's A, D and dt start out equal in every model
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 99)) * 0.01)
    save_checkpoint(model, tokenizer, folder, dtype=dtype)
    return folder


def config(folder: Path, **values: Any) -> dict[str, Any]:
    """The config, with values changed; None deletes one."""
    found = json.loads((folder / "config.json").read_text()) | values
    found = {key: value for key, value in found.items() if value is not None or key not in values}
    (folder / "config.json").write_text(json.dumps(found))
    return found


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Change tensors of a checkpoint; names with ``__`` for ``.``; None deletes one."""
    state: dict[str, Any] = load_file(folder / "model.safetensors")
    state |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(
        {n: t for n, t in state.items() if t is not None}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_seven_models_merge_whatever_way_they_are_sharded(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make(tmp_path / "a", 0, arch), make(tmp_path / "b", 1, arch)
    load_model(b, "bfloat16").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shutil.copy(b / "tokenizer.json", tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    record = merge_linear([(a, 0.15), (tmp_path / "sharded", 0.85)], tmp_path / "out", max_shard_size="30KB")
    assert len(record["files"]) > 2
    assert record["files"] == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    states, merged = (weights(a), weights(b)), weights(tmp_path / "out")
    assert set(merged) == set(states[0])
    for name, tensor in merged.items():
        exact = 0.15 * states[0][name].double() + 0.85 * states[1][name].double()
        rounded = exact.float().to(torch.bfloat16)
        worse = (tensor.double() - exact).abs() > (rounded.double() - exact).abs()
        assert not worse.any()
        assert (tensor == rounded).float().mean() > 0.9
    load_model(tmp_path / "out")
    # One piece or many, one thread or three: the same bits.
    monkeypatch.setattr(passes, "STEP", 2048)
    monkeypatch.setattr(passes, "TASK", 3000)
    whole = merge_linear([(a, 0.15), (b, 0.85)], tmp_path / "whole", kernel="numpy", threads=3)
    assert whole["files"] == ["model.safetensors"]
    assert all(torch.equal(tensor, merged[name]) for name, tensor in weights(tmp_path / "whole").items())


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_every_tensor_keeps_its_type_or_takes_the_one_asked_for(kernel: str, tmp_path: Path) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    a, b = make(tmp_path / "a", 0, dtype="float16"), make(tmp_path / "b", 1, dtype="float32")
    norm = "model.norm.weight"
    change(a, model__norm__weight=torch.linspace(0.5, 1.5, 32))
    merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "keep", kernel=kernel)
    kept = weights(tmp_path / "keep")
    assert (kept[norm].dtype, kept[EMBEDDING].dtype) == (torch.float32, torch.float16)
    assert json.loads((tmp_path / "keep/config.json").read_text())["dtype"] == "float16"
    merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "wide", "float32", kernel=kernel)
    for name, tensor in weights(tmp_path / "wide").items():
        exact = 0.5 * weights(a)[name].double() + 0.5 * weights(b)[name].double()
        assert torch.equal(tensor, exact.float())
        # torch goes from float64 to float16 through float32, which rounds twice; numpy does not.
        own = np.float16 if kept[name].dtype == torch.float16 else np.float32
        assert kept[name].numpy().tobytes() == exact.numpy().astype(own).tobytes()
    assert json.loads((tmp_path / "wide/config.json").read_text())["dtype"] == "float32"


def test_a_head_tied_in_one_checkpoint_is_its_embedding(tmp_path: Path) -> None:
    tied, apart = make(tmp_path / "tied", 0), make(tmp_path / "apart", 1)
    change(tied, lm_head__weight=None)
    config(tied, tie_word_embeddings=True)
    states = weights(tied), weights(apart)
    for at, pair in enumerate(([(tied, 0.25), (apart, 0.75)], [(apart, 0.75), (tied, 0.25)])):
        told = Told()
        merge_linear(pair, tmp_path / f"out{at}", "float32", progress=told)
        merged = weights(tmp_path / f"out{at}")
        expected = 0.25 * states[0][EMBEDDING].double() + 0.75 * states[1][HEAD].double()
        assert torch.equal(merged[HEAD], expected.float())
        assert set(merged) == set(states[1])
        assert json.loads((tmp_path / f"out{at}/config.json").read_text())["tie_word_embeddings"] is False
        assert any("tied in some checkpoints" in note for note in told.notes)
        loaded = load_model(tmp_path / f"out{at}")
        assert torch.equal(loaded.lm_head.weight, merged[HEAD])
    config(tied, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is in \S+apart and not in \S+tied"):
        merge_linear([(tied, 0.25), (apart, 0.75)], tmp_path / "no")


def test_a_stored_copy_of_a_tied_head_is_no_head(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 0), make(tmp_path / "b", 1)
    change(a, lm_head__weight=weights(a)[EMBEDDING].clone())
    config(a, tie_word_embeddings=True)
    change(b, lm_head__weight=None)
    config(b, tie_word_embeddings=True)
    merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "out")
    assert HEAD not in weights(tmp_path / "out")
    loaded = load_model(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def swapped(folder: Path) -> None:
    """Two tokens of the tokenizer exchanged: equal shapes, other meaning."""
    state = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    x, y = (token for token, at in vocabulary.items() if at in (5, 6))
    vocabulary[x], vocabulary[y] = vocabulary[y], vocabulary[x]
    (folder / "tokenizer.json").write_text(json.dumps(state))


def test_tokenizers_that_differ_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 0), make(tmp_path / "b", 1)
    swapped(b)
    pair = [linear.Parent("first", a, 0.5), linear.Parent("second", b, 0.5)]
    with pytest.raises(CheckpointError, match=r"tokenizers of first and second give other ids.*--tokenizer-from"):
        merge_linear(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for chosen, folder in (("first", a), ("second", b)):
        told = Told()
        record = merge_linear(pair, tmp_path / chosen, tokenizer_from=chosen, progress=told)
        assert record["tokenizer"] == chosen
        assert any(note.startswith(f"tokenizer taken from {chosen}, though") for note in told.notes)
        ids = load_tokenizer(tmp_path / chosen)("\x05\x06 text")["input_ids"]
        assert ids == load_tokenizer(folder)("\x05\x06 text")["input_ids"]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"model": []},
        {"model": {"merges": 5}},
        {"model": {"merges": [5]}},
        {"model": {}, "added_tokens": [1]},
        {"model": {}, "added_tokens": 7},
    ],
)
def test_a_tokenizer_of_another_form_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    folders = [make(tmp_path / name) for name in "ab"]
    (folders[1] / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"b/tokenizer\.json: 'model', its merges or 'added_tokens'"):
        merge_linear([(folder, 0.5) for folder in folders], tmp_path / "out")


def test_another_spelling_of_the_same_tokenizer_is_the_same(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 0), make(tmp_path / "b", 1)
    state = json.loads((b / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (b / "tokenizer.json").write_text(json.dumps(state, indent=7))
    (b / "chat_template.jinja").write_text("{{ messages }}")
    (a / "chat_template.jinja").write_text("{{ messages[0] }}")
    told = Told()
    merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "out", progress=told)
    assert any("chat_template.jinja differ" in note for note in told.notes)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages[0] }}"
    shutil.rmtree(tmp_path / "out")
    for file in a.glob("*token*"):
        file.unlink()
    told = Told()
    record = merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "out", progress=told)
    assert record["tokenizer"] == str(b)
    assert any(note.startswith("no tokenizer to compare in") for note in told.notes)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(CheckpointError, match="has no tokenizer to take"):
        merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "no", tokenizer_from=str(a))


def test_settings_that_differ_are_told_and_the_first_s_are_taken(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 0), make(tmp_path / "b", 1)
    config(b, max_position_embeddings=77, transformers_version="0.0")
    told = Told()
    record = merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "out", progress=told)
    assert record["config_differs"] == ["max_position_embeddings"]
    assert any("configs differ in max_position_embeddings" in note for note in told.notes)
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 2048


@pytest.mark.parametrize("kernel", ["numpy", "numba"])
def test_nan_and_what_overflows_are_counted_by_tensor(kernel: str, tmp_path: Path) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    a, b = make(tmp_path / "a", 0), make(tmp_path / "b", 1)
    bad = weights(a)["model.norm.weight"].clone()
    bad[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    large = weights(b)[HEAD].clone()
    large[0, :5] = 2e5  # half of it is more than float16 can hold
    change(a, model__norm__weight=bad)
    change(b, lm_head__weight=large)
    told = Told()
    record = merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "out", "float16", kernel=kernel, progress=told)
    assert record["nonfinite"] == {HEAD: 5, "model.norm.weight": 3}
    assert "8 results are NaN or infinite, in 2 tensors" in told.notes
    assert json.loads((tmp_path / "out/merge.json").read_text())["nonfinite"] == record["nonfinite"]


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, "nemotron-h")
    state = weights(a)
    name = next(name for name in state if name.endswith("norm_f.weight"))
    other = name.replace("backbone.", "model.") if name.startswith("backbone.") else name.replace("model.", "backbone.")
    save_file(state | {other: state[name].clone()}, a / "model.safetensors")
    with pytest.raises(CheckpointError, match="two names of one tensor"):
        merge_linear([(a, 1.0)], tmp_path / "out")


def test_a_file_that_shrinks_while_it_is_read_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a", 0), make(tmp_path / "b", 1)
    whole = linear.open_family

    def cut(parents: Any) -> Any:
        family = whole(parents)
        with (b / "model.safetensors").open("rb+") as file:
            file.truncate(5000)
        return family

    monkeypatch.setattr(linear, "open_family", cut)
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors: ends \d+ bytes too early"):
        merge_linear([(a, 0.5), (b, 0.5)], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_record_says_what_it_was_made_of(tmp_path: Path) -> None:
    from hashlib import blake2b

    commit = "0123456789abcdef0123456789abcdef01234567"
    a = make(tmp_path / "models--o--n/snapshots" / commit, 0)
    b = make(tmp_path / "b", 1)
    record = merge_linear(
        [linear.Parent("o/n@v1", a, 0.25), linear.Parent("mid", b, 0.75)], tmp_path / "out", about={"written": "today"}
    )
    assert json.loads((tmp_path / "out/merge.json").read_text()) == record
    first = record["sources"][0]
    data = (a / "model.safetensors").read_bytes()
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    assert first == {
        "name": "o/n@v1",
        "weight": 0.25,
        "folder": commit,
        "revision": commit,
        "files": [
            {
                "name": "model.safetensors",
                "bytes": len(data),
                "header_blake2b": blake2b(header, digest_size=16).hexdigest(),
            }
        ],
    }
    assert (record["written"], record["dtype"], record["sources"][1]["revision"]) == ("today", "keep", None)
    # The record of an earlier merge is not taken over as one's own.
    again = merge_linear([(tmp_path / "out", 1.0)], tmp_path / "again")
    assert json.loads((tmp_path / "again/merge.json").read_text()) == again


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base=0.15", ("base", 0.15)),
        ("a=b=-1", ("a=b", -1.0)),
        ("owner/name@v1=1e-1", ("owner/name@v1", 0.1)),
        ("base", None),
        ("base=", None),
        ("=0.5", None),
        ("base=half", None),
    ],
)
def test_a_source_is_a_checkpoint_and_its_weight(text: str, expected: tuple[str, float] | None) -> None:
    if expected is None:
        with pytest.raises(SpecError, match=r"base=0\.15"):
            parse_source(text)
    else:
        assert parse_source(text) == expected


def test_the_command_writes_a_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a=1", 0), make(tmp_path / "b", 1)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["merge", "a=1=0.15", "b=0.85", "--out", "out", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    assert "a=1" in done.output
    assert "0.85" in done.output
    merge_linear([(a, 0.15), (b, 0.85)], tmp_path / "direct", "float32")
    data = (tmp_path / "direct/model.safetensors").read_bytes()
    assert (tmp_path / "out/model.safetensors").read_bytes() == data
    done = CliRunner().invoke(
        app, ["merge", "a=1=0.15", "b=0.85", "--out", "json", "--max-shard-size", "30KB", "--json"]
    )
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "json/merge.json").read_text())
    assert found["versions"].keys() >= {"prismlab", "numpy"}
    assert len(open_checkpoint(tmp_path / "json")) == len(open_checkpoint(tmp_path / "out"))
    refused = CliRunner().invoke(app, ["merge", "a=1=0.5", "b=0.85", "--out", "no"])
    assert isinstance(refused.exception, SpecError)
    assert CliRunner().invoke(app, ["merge", "a=1=0.5", "b=0.85", "--out", "no", "--unnormalised"]).exit_code == 0
