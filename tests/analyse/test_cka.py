"""All pairs of checkpoints from their Gram matrices, against the textbook's feature form; the stage, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prismlab.analyse import cka as stage
from prismlab.analyse import grams, states
from prismlab.analyse.grams import InputSet, States
from prismlab.analyse.similarity import debiased_cka, gram
from prismlab.errors import StageError
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Artifact, Silent

torch.set_num_threads(1)


def feature_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019: ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def made(features: np.ndarray, texts: str = "t", ids: tuple[str, ...] | None = None) -> States:
    """States of one set ``s`` from features [layers + 1, n, width]."""
    one = InputSet(np.stack([gram(x) for x in features]), texts, ids or ("i",) * features.shape[1], 100)
    return States({"s": one}, len(features) - 1, features.shape[2], "float32", "cpu", 0.0, 0.0)


def three(layers: int = 4) -> tuple[dict[str, np.ndarray], dict[str, States]]:
    rng = np.random.default_rng(6)
    a = rng.normal(size=(layers, 25, 8))
    b = a.copy()
    b[2] += rng.normal(size=(25, 8))
    c = rng.normal(size=(layers, 25, 5)) + a[:, :, :5]
    features = {"a": a, "b": b, "c": c}
    return features, {name: made(x) for name, x in features.items()}


def test_every_pair_by_layer() -> None:
    features, found_states = three()
    found = stage.compare_all(found_states, resamples=10, resample_size=20, seed=0)
    assert found["names"] == ["a", "b", "c"]
    assert [(pair["old"], pair["new"]) for pair in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in found["pairs"]:
        x, y, one = features[pair["old"]], features[pair["new"]], pair["sets"]["s"]
        expected = [feature_cka(x[layer], y[layer]) for layer in range(4)]
        assert [row["layer"] for row in one["layers"]] == [0, 1, 2, 3]
        assert [row["cka"] for row in one["layers"]] == pytest.approx(expected, abs=1e-9)
        assert (one["min"], one["min_layer"]) == pytest.approx((min(expected), int(np.argmin(expected))))
        debiased = [debiased_cka(gram(x[layer]), gram(y[layer])) for layer in range(4)]
        assert one["debiased_min"] == pytest.approx(min(debiased), abs=1e-12)  # type: ignore[type-var]
        assert one["final"] == pytest.approx(expected[-1])
        assert (one["inputs"], one["cross"], one["reason"]) == (25, None, None)
        assert all(row["std"] is not None and row["mean"] is not None for row in one["layers"])
    assert found["pairs"][0]["sets"]["s"]["min_layer"] == 2


def test_a_pair_does_not_depend_on_its_company() -> None:
    _, found_states = three()
    whole = stage.compare_all(found_states, [("c", "a")], resamples=6, resample_size=10, seed=4)
    alone = stage.compare_all({name: found_states[name] for name in ("a", "c")}, resamples=6, resample_size=10, seed=4)
    (first,), (second,) = whole["pairs"], alone["pairs"]
    assert (first["old"], second["old"]) == ("c", "a")
    for x, y in zip(first["sets"]["s"]["layers"], second["sets"]["s"]["layers"], strict=True):
        assert x == pytest.approx(y, abs=1e-12)
    other = stage.compare_all(found_states, [("c", "a")], resamples=6, resample_size=10, seed=5)
    assert other["pairs"][0]["sets"]["s"]["layers"][0]["std"] != first["sets"]["s"]["layers"][0]["std"]


def test_states_that_do_not_vary_are_null_with_a_reason() -> None:
    features, found_states = three()
    features["b"][3] = 7.0
    found = stage.compare_all(found_states | {"b": made(features["b"])}, [("a", "b")], resamples=3, resample_size=8)
    one = found["pairs"][0]["sets"]["s"]
    assert one["final"] is None
    assert set(one["layers"][3].values()) == {3, None}
    assert one["reason"].endswith("in layers 3")
    assert (one["min"], one["min_layer"]) == (pytest.approx(feature_cka(features["a"][2], features["b"][2])), 2)
    still = made(np.ones((2, 5, 3)))
    nothing = stage.compare_all({"a": still, "b": still}, resamples=3, resample_size=8)["pairs"][0]["sets"]["s"]
    assert (nothing["min"], nothing["min_layer"], nothing["debiased_min"]) == (None, None, None)
    assert json.dumps(found, allow_nan=False)


def test_unequal_depths_are_crossed() -> None:
    features, found_states = three()
    short = features["a"][[0, 2, 3]]
    found = stage.compare_all({**found_states, "short": made(short)}, resamples=2, resample_size=8)
    pairs = {(pair["old"], pair["new"]): pair["sets"]["s"] for pair in found["pairs"]}
    one = pairs["a", "short"]
    assert one["layers"] == []
    assert (one["min"], one["debiased_min"], one["final"]) == (None, None, None)
    assert "3 and 2 layers" in one["reason"]
    expected = [[feature_cka(x, y) for y in short] for x in features["a"]]
    np.testing.assert_allclose(one["cross"]["cka"], expected, atol=1e-9)
    assert one["cross"]["debiased"][2][1] == pytest.approx(1.0)
    assert len(pairs["a", "b"]["layers"]) == 4
    layers, crossed = stage.tables(found)
    assert layers.num_rows == 3 * 4
    assert crossed is not None
    assert crossed.num_rows == 3 * 4 * 3
    row = next(r for r in crossed.to_pylist() if (r["old"], r["layer_old"], r["layer_new"]) == ("a", 3, 2))
    assert row["cka"] == pytest.approx(1.0)
    equal = stage.compare_all({k: found_states[k] for k in ("a", "b")}, with_cross=True, resamples=0)
    matrix = equal["pairs"][0]["sets"]["s"]["cross"]["cka"]
    diagonal = [row["cka"] for row in equal["pairs"][0]["sets"]["s"]["layers"]]
    assert np.diagonal(matrix) == pytest.approx(diagonal, abs=1e-12)
    assert stage.tables(stage.compare_all(found_states, resamples=0))[1] is None


def test_other_inputs_are_refused_and_other_tokens_counted() -> None:
    features, found_states = three()
    other = made(features["b"], texts="u")
    with pytest.raises(StageError, match="a and b are of other inputs"):
        stage.compare_all(found_states | {"b": other})
    ids = tuple("i" if at % 2 else "j" for at in range(25))
    cut = made(features["b"], ids=ids)
    found = stage.compare_all({"a": found_states["a"], "b": cut}, resamples=0)["pairs"][0]["sets"]["s"]
    assert found["differing"] == {"count": 13, "first": list(range(0, 25, 2))}


def test_stage_from_checkpoints_to_parquet(tmp_path: Path) -> None:
    tokenizer = build_byte_tokenizer()
    model: Any = build_model(tiny_config("llama", 32, 2, 258), seed=0)
    texts = {"web": [f"document {k} about {'x' * k}" for k in range(12)]}
    inputs = {}
    for key in ("a", "b"):
        save_checkpoint(model, tokenizer, tmp_path / f"{key}/model", dtype="float32")
        grams.save(states.measure(tmp_path / f"{key}/model", texts, max_tokens=16), tmp_path / f"states-{key}")
        record = {"metrics": {"sets": {"web": {"asked": 200}}}}
        inputs[key] = Artifact(kind="states", fingerprint=key, path=tmp_path / f"states-{key}", record=record)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.normal_()
    config = {"spec": {"resamples": 5, "resample_size": 8, "cross": True}, "seed": 3}
    metrics = stage.run(config, inputs, tmp_path, Silent()).metrics
    assert metrics["dtype"] == {"a": "float32", "b": "float32"}
    found = metrics["sets"]["web"]
    assert (found["inputs"], found["asked"], found["differing"]["count"]) == (12, 200, 0)
    pooled = []
    for key in ("a", "b"):
        ids = [list(map(int, tokenizer(text)["input_ids"][:16])) for text in texts["web"]]
        pooled.append(states.pooled_states(load_model(tmp_path / key / "model"), ids, "one").astype(float))
    values = [row["cka"] for row in found["layers"]]
    assert values == pytest.approx([feature_cka(pooled[0][k], pooled[1][k]) for k in range(3)], abs=1e-6)
    assert values[:2] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert values[2] < 0.999
    assert found["min_layer"] == 2
    rows = pq.read_table(tmp_path / "layers.parquet").to_pylist()
    assert [row["cka"] for row in rows] == values
    assert list(rows[0]) == ["source", "layer", "cka", "mean", "std", "debiased", "debiased_std", "inputs"]
    crossed = pq.read_table(tmp_path / "cross.parquet").to_pylist()
    assert [row["cka"] for row in crossed if row["layer_old"] == row["layer_new"]] == pytest.approx(values, abs=1e-9)
    assert json.dumps(dict(metrics), allow_nan=False)
