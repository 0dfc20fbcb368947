"""States against the models themselves, one input at a time, in all seven families; what is kept of them on disk."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismlab.analyse import grams, states
from prismlab.analyse.similarity import gram
from prismlab.data.sources import heldout_texts
from prismlab.errors import CheckpointError, DataError, StageError
from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Artifact, Silent
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

torch.set_num_threads(1)


@cache
def built(arch: str, layers: int = 4) -> Any:
    return build_model(tiny_config(arch, 32, layers, 258), seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(built("llama", 2), build_byte_tokenizer(), tmp_path / "model", dtype="float32")
    return tmp_path / "model"


def one_at_a_time(model: Any, ids: list[list[int]]) -> np.ndarray:
    """Means over tokens of what each block is given and what the final norm makes, seen by hooks of our own."""
    out: list[list[np.ndarray]] = []
    seen: list[torch.Tensor] = []

    def before(_module: Any, args: Any) -> None:
        seen.append(args[0])

    def after(_module: Any, _args: Any, output: torch.Tensor) -> None:
        seen.append(output)

    norm = next(m for name, m in model.base_model.named_children() if name in ("norm", "norm_f", "final_layernorm"))
    hooks = [block.register_forward_pre_hook(before) for block in model.base_model.layers]
    hooks.append(norm.register_forward_hook(after))
    for one in ids:
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([one]))
        out.append([state[0].double().mean(0).numpy() for state in seen])
    for hook in hooks:
        hook.remove()
    return np.array(out).transpose(1, 0, 2)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_batches_change_nothing(arch: str) -> None:
    model = built(arch)
    rng = np.random.default_rng(0)
    # Longer than a chunk of the Mamba scan (64) and than the sliding window (128), and down to one token.
    ids = [rng.integers(0, 256, length).tolist() for length in (5, 150, 9, 5, 1, 70, 150)]
    expected = one_at_a_time(model, ids)
    assert expected.shape == (5, 7, 32)
    for how in ("one", "equal", "padded"):
        found = states.pooled_states(model, ids, how, batch_tokens=600)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=how)
    # The grams too, to 1e-5 of their size.
    for layer, state in enumerate(found):
        np.testing.assert_allclose(gram(state), gram(expected[layer]), atol=1e-5 * np.abs(gram(expected[layer])).max())


def test_padding_is_put_where_it_is_not_seen() -> None:
    model = built("granite4-h")
    ids = [[1, 2, 3], [7] * 40]
    apart = [states.pooled_states(model, [one])[:, 0] for one in ids]
    np.testing.assert_allclose(states.pooled_states(model, ids).transpose(1, 0, 2), apart, atol=1e-5)
    # Were padding averaged in, the short input would be far from this.
    padded = states.pooled_states(model, [[1, 2, 3] + [3] * 37])[:, 0]
    assert np.abs(padded - apart[0]).max() > 1e-2


def test_batches_hold_every_input_once_and_no_more_tokens_than_allowed() -> None:
    lengths = [5, 3, 5, 900, 3, 5, 4]
    assert states.batches(lengths, "padded", 16) == [[3], [0, 2, 5], [6, 1, 4]]
    assert states.batches(lengths, "equal", 10) == [[3], [0, 2], [5], [6], [1, 4]]
    assert states.batches(lengths, "one", 10**6) == [[3], [0], [2], [5], [6], [1], [4]]
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 300, 500).tolist()
    for how in ("padded", "equal", "one"):
        found = states.batches(lengths, how, 1000)
        assert sorted(index for batch in found for index in batch) == list(range(500))
        assert all(len(batch) * max(lengths[i] for i in batch) <= 1000 for batch in found)
    assert len(states.batches(lengths, "padded", 1000)) < 100


def test_hidden_states_bound_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    hidden = states._hidden

    def seen(model: Any, ids: Any, layers: int) -> Any:
        sizes.append(len(ids))
        return hidden(model, ids, layers)

    monkeypatch.setattr(states, "_hidden", seen)
    monkeypatch.setattr(states, "STATES_BYTES", 32 * 5 * 4 * 20)
    states.pooled_states(built("llama"), [[1] * 10] * 5)
    assert sizes == [2, 2, 1]


def test_a_diverged_checkpoint_is_named() -> None:
    model = build_model(tiny_config("llama", 16, 1, 258), seed=0)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        states.pooled_states(model, [[1, 2, 3]])
    with pytest.raises(CheckpointError, match=r"token 258.*258 rows"):
        states.pooled_states(model, [[1, 258, 3]])


def test_measure_gives_grams_and_hashes(folder: Path) -> None:
    texts = {"a": [f"text {'x' * k}" for k in range(6)], "b": ["eins", "zwei", "drei", "vier"]}
    found = states.measure(folder, texts, max_tokens=8, device="cpu")
    assert (found.layers, found.width, found.dtype, found.device) == (2, 32, "float32", "cpu")
    ids = [list(text.encode())[:8] for text in texts["a"]]
    tokenizer = build_byte_tokenizer()
    assert [tokenizer(text)["input_ids"][:8] for text in texts["a"]] == [
        tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in texts["a"]
    ]
    assert found.sets["a"].tokens == sum(map(len, ids))
    assert len(set(found.sets["a"].ids)) == 4, "three texts are the same once they are cut to 8 tokens"
    expected = states.pooled_states(load_model(folder), [tokenizer(t)["input_ids"][:8] for t in texts["a"]])
    for layer in range(3):
        np.testing.assert_allclose(found.sets["a"].grams[layer], gram(expected[layer]), atol=1e-6)
    again = states.measure(folder, texts, max_tokens=8, batch="one", dtype="bfloat16", device="cpu")
    assert again.dtype == "bfloat16"
    assert again.sets["a"].texts == found.sets["a"].texts != found.sets["b"].texts
    assert again.sets["a"].ids == found.sets["a"].ids
    difference = np.abs(again.sets["a"].grams - found.sets["a"].grams).max() / np.abs(found.sets["a"].grams).max()
    assert 1e-5 < difference < 0.1


def test_what_measure_refuses(folder: Path) -> None:
    for count in (3, 2001):
        with pytest.raises(StageError, match=f"{count} inputs"):
            states.measure(folder, {"few": ["text"] * count})
    with pytest.raises(StageError, match="1 inputs have no tokens"):
        states.measure(folder, {"empty": ["a", "b", "", "d"]})
    if not torch.cuda.is_available():
        with pytest.raises(StageError, match="no GPU"):
            states.measure(folder, {"a": ["text"] * 4}, device="cuda")


def test_auto_takes_the_checkpoints_own_type_on_a_gpu(tmp_path: Path) -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    for given, expected in (
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float32", "float32"),
        (None, "float32"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"dtype": given}))
        assert states.choose_dtype(tmp_path, "auto", gpu) == expected
        assert states.choose_dtype(tmp_path, "auto", cpu) == "float32"
        assert states.choose_dtype(tmp_path, "bfloat16", gpu) == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    assert states.choose_dtype(tmp_path, "auto", gpu) == "bfloat16"


def test_states_on_disk(folder: Path, tmp_path: Path) -> None:
    texts = {"../odd name": ["one", "two", "three", "four"], "b": ["eins", "zwei", "drei", "vier", "fünf"]}
    states_ = states.measure(folder, texts)
    grams.save(states_, tmp_path / "kept")
    found = grams.load(tmp_path / "kept")
    assert list(found.sets) == list(texts)
    for name, one in found.sets.items():
        np.testing.assert_array_equal(one.grams, states_.sets[name].grams)
        assert (one.texts, one.ids, one.tokens) == (
            states_.sets[name].texts,
            states_.sets[name].ids,
            states_.sets[name].tokens,
        )
    assert (found.layers, found.width, found.dtype) == (2, 32, "float32")


def test_damaged_states_are_refused(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    grams.save(states.measure(folder, {"a": ["one", "two", "three", "four"]}), kept)
    whole, facts = (kept / "grams.npz").read_bytes(), (kept / "states.json").read_text()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    nan = np.full((3, 4, 4), np.nan)
    np.savez(tmp_path / "nan.npz", **{"0": nan})
    np.savez(tmp_path / "pickle.npz", **{"0": np.array([{}], dtype=object)})
    pickled, not_finite = (tmp_path / "pickle.npz").read_bytes(), (tmp_path / "nan.npz").read_bytes()
    for data in (whole[: len(whole) // 2], b"", bytes(changed), pickled, not_finite):
        (kept / "grams.npz").write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            grams.load(kept)
    (kept / "grams.npz").write_bytes(whole)
    assert grams.load(kept).sets["a"].inputs == 4
    for text in (
        "",
        "[]",
        "{}",
        facts.replace('"schema": 1', '"schema": 2'),
        facts.replace('"layers": 2', '"layers": 3'),
    ):
        (kept / "states.json").write_text(text)
        with pytest.raises(DataError, match="cannot be read"):
            grams.load(kept)


def test_hashes_tell_lists_apart() -> None:
    lists = (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""])
    assert len({grams.hash_texts(texts) for texts in lists}) == len(lists)
    assert len({grams.hash_ids(ids) for ids in ([1, 2], [2, 1], [1], [258], [1, 2, 0])}) == 5


def stage_config(tmp_path: Path) -> dict[str, Any]:
    documents = [f"document {k} about {'x' * k}" for k in range(40)]
    for name, some in (("long.jsonl", documents), ("few.jsonl", documents[:2])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    source = SourceSpec(files=["*.jsonl"], domain="web").model_dump(mode="json", by_alias=True)
    return {
        "spec": {"sources": ["web"], "inputs": 200, "max_tokens": 16, "batch": "padded", "dtype": "auto"},
        "sources": {"web": source, "few": source},
        "micro": MicroSpec().model_dump(mode="json"),
        "heldout": 0.5,
        "template": "think",
        "seed": 3,
        "files": {"web": [str(tmp_path / "long.jsonl")], "few": [str(tmp_path / "few.jsonl")]},
    }


def test_stage_takes_held_out_documents(folder: Path, tmp_path: Path) -> None:
    config = stage_config(tmp_path)
    expected = heldout_texts(
        "web", config["sources"]["web"], config["micro"], config["files"]["web"], "think", 0.5, 200
    )
    assert 4 <= len(expected) < 40
    inputs = {"checkpoint": Artifact(kind="base", fingerprint="0", path=folder.parent, record={})}
    out = tmp_path / "out"
    metrics = states.run(config, inputs, out, Silent()).metrics
    assert (metrics["layers"], metrics["width"], metrics["dtype"]) == (2, 32, "float32")
    found = metrics["sets"]["web"]
    assert (found["inputs"], found["asked"]) == (len(expected), 200)
    assert found["texts"] == grams.hash_texts(expected) == grams.load(out).sets["web"].texts
    assert found["tokens"] == sum(min(16, len(text.encode())) for text in expected)
    assert json.dumps(dict(metrics), allow_nan=False)
    config["spec"] = config["spec"] | {"sources": ["few"]}
    with pytest.raises((StageError, DataError), match="few"):
        states.run(config, inputs, out, Silent())
