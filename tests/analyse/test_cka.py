"""CKA against the textbook's feature form and brute-force HSIC; states against the models themselves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismlab.analyse import cka as stage
from prismlab.analyse.similarity import cka, debiased_cka, gram, resample_indices, similarity, unbiased_hsic
from prismlab.data.sources import heldout_texts
from prismlab.errors import CheckpointError, DataError, StageError
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.run.step import Artifact, Silent
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

torch.set_num_threads(1)


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-sequence token."""
    vocabulary = {letter: k for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def feature_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019: ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def tuple_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased HSIC as a U-statistic: the mean over all ordered 4-tuples of distinct inputs (Song et al. 2012)."""
    n = len(k)
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(n), 4)]
    return float(np.mean(terms))


def pair(seed: int, n: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) + 5
    return x, x @ rng.normal(size=(width, width + 3)) + noise * rng.normal(size=(n, width + 3))


@pytest.mark.parametrize(("n", "width"), [(10, 3), (40, 7), (20, 64)])
def test_gram_form_is_the_feature_form(n: int, width: int) -> None:
    x, y = pair(n, n, width, 2.0)
    assert cka(gram(x), gram(y)) == pytest.approx(feature_cka(x, y), abs=1e-10)


def test_unbiased_hsic_is_the_u_statistic() -> None:
    x, y = pair(1, 7, 3, 1.0)
    assert unbiased_hsic(gram(x), gram(y)) == pytest.approx(tuple_hsic(x @ x.T, y @ y.T), rel=1e-9)
    expected = tuple_hsic(x @ x.T, y @ y.T) / np.sqrt(tuple_hsic(x @ x.T, x @ x.T) * tuple_hsic(y @ y.T, y @ y.T))
    assert debiased_cka(gram(x), gram(y)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="at least 4"):
        unbiased_hsic(np.eye(3), np.eye(3))


def test_rotation_scale_and_shift_change_nothing() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, 12))
    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    y = 7 * x @ rotation + 100
    assert cka(gram(x), gram(y)) == pytest.approx(1.0, abs=1e-10)
    assert debiased_cka(gram(x), gram(y)) == pytest.approx(1.0, abs=1e-8)
    stretched = x * np.geomspace(1, 50, 12)
    assert cka(gram(x), gram(stretched)) < 0.9  # type: ignore[operator]


def test_independent_noise_is_near_zero_only_when_debiased() -> None:
    rng = np.random.default_rng(3)
    plain, debiased = [], []
    for _ in range(40):
        k, m = gram(rng.normal(size=(50, 400))), gram(rng.normal(size=(50, 400)))
        plain.append(cka(k, m))
        debiased.append(debiased_cka(k, m))
    # With width far above the number of inputs the plain estimate tends to 1 whatever the states are.
    assert np.mean(plain) > 0.8
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / np.sqrt(40)
    assert np.std(debiased) < 0.1


def test_states_that_do_not_vary_have_no_cka() -> None:
    x = np.full((10, 5), 0.1, dtype=np.float32)
    y = np.random.default_rng(4).normal(size=(10, 5))
    assert cka(gram(x), gram(y)) is None
    assert debiased_cka(gram(x), gram(y)) is None
    one = np.zeros(6, dtype=int)
    assert cka(gram(y)[np.ix_(one, one)], gram(y)[np.ix_(one, one)]) is None


def test_a_resample_of_the_gram_matrix_is_a_resample_of_the_inputs() -> None:
    x, y = pair(5, 30, 6, 3.0)
    drawn, parts = resample_indices(30, 20, 12, seed=1)
    found = similarity(gram(x), gram(y), (drawn, parts))
    assert found.std == pytest.approx(np.std([feature_cka(x[i], y[i]) for i in drawn], ddof=1), rel=1e-8)
    again = [debiased_cka(gram(x[i]), gram(y[i])) for i in parts]
    assert found.debiased_std == pytest.approx(np.std(np.array(again), ddof=1), rel=1e-8)
    assert all(len(set(i.tolist())) == 12 for i in parts)
    assert any(len(set(i.tolist())) < 12 for i in drawn)
    assert len(resample_indices(30, 5, 100, 0)[1][0]) == 15
    assert resample_indices(7, 5, 100, 0)[1] == []


def test_compare_names_the_least_similar_layer() -> None:
    rng = np.random.default_rng(6)
    a = rng.normal(size=(4, 25, 8))
    b = a.copy()
    b[2] += rng.normal(size=(25, 8))
    b[3] = 0
    found = stage.compare(a, b, resamples=10, resample_size=20, seed=0)
    assert (found["min_layer"], found["inputs"], found["final"]) == (2, 25, None)
    assert found["min"] == pytest.approx(feature_cka(a[2], b[2]))
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2, 3]
    assert found["layers"][0]["cka"] == pytest.approx(1.0)
    assert found["debiased_min"] == found["layers"][2]["debiased"]
    assert stage.compare(a, b, resamples=0, resample_size=20, seed=0)["layers"][0]["std"] is None
    with pytest.raises(CheckpointError, match="3 and 2 layers"):
        stage.compare(a, b[:3], 5, 20, 0)
    with pytest.raises(StageError, match="3 inputs"):
        stage.compare(a[:, :3], b[:, :3], 5, 20, 0)


def test_batches_hold_one_length_and_every_input_once() -> None:
    batches = stage.equal_batches([5, 3, 5, 900, 3, 5], most_tokens=10)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches == [[1, 4], [0, 2], [5], [3]]


COMMON: dict[str, Any] = {"vocab_size": 258, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "llama": transformers.LlamaConfig(**COMMON, intermediate_size=48, num_hidden_layers=2),
    "hybrid": transformers.GraniteMoeHybridConfig(
        **COMMON,
        num_hidden_layers=2,
        layer_types=["mamba", "attention"],
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=48,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_expand=2,
    ),
    "nemotron": transformers.NemotronHConfig(
        **COMMON,
        intermediate_size=48,
        head_dim=8,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        layers_block_type=["mamba", "mlp", "attention"],
    ),
}


def built(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_one_input_at_a_time(name: str) -> None:
    model = built(name)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 256, length).tolist() for length in (5, 9, 5, 1, 9)]
    found = stage.pooled_states(model, ids)
    layers = model.config.num_hidden_layers
    assert found.shape == (layers + 1, 5, 32)
    seen: list[torch.Tensor] = []
    blocks = model.model.layers
    hooks = [
        block.register_forward_hook(lambda *a: seen.append(a[2][0] if isinstance(a[2], tuple) else a[2]))
        for block in blocks
    ]
    for index, one in enumerate(ids):
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([one]))
        assert len(seen) == layers
        for layer, state in enumerate(seen[:-1], start=1):
            expected = state.reshape(-1, 32).mean(0).numpy()
            np.testing.assert_allclose(found[layer, index], expected, atol=1e-6)
        last = seen[-1].reshape(-1, 32)
        norm = model.model.norm if hasattr(model.model, "norm") else model.model.norm_f
        with torch.no_grad():
            np.testing.assert_allclose(found[layers, index], norm(last).mean(0).numpy(), atol=1e-5)
    for hook in hooks:
        hook.remove()


def test_a_diverged_checkpoint_is_named() -> None:
    model = built("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        stage.pooled_states(model, [[1, 2, 3]])


def test_stage_from_checkpoints_to_parquet(tmp_path: Path) -> None:
    tokenizer = build_byte_tokenizer()
    model = built("llama")
    save_checkpoint(model, tokenizer, tmp_path / "a/model", dtype="float32")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.normal_()
    save_checkpoint(model, tokenizer, tmp_path / "b/model", dtype="float32")
    documents = [f"document {k} about {'x' * k}" for k in range(40)]
    for name, some in (("long.jsonl", documents), ("few.jsonl", documents[:2])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    source = SourceSpec(files=["*.jsonl"], domain="web").model_dump(mode="json", by_alias=True)
    config: dict[str, Any] = {
        "spec": {"sources": ["web"], "inputs": 200, "max_tokens": 16, "resamples": 5, "resample_size": 8},
        "sources": {"web": source, "few": source},
        "micro": MicroSpec().model_dump(mode="json"),
        "heldout": 0.5,
        "template": "think",
        "seed": 3,
        "files": {"web": [str(tmp_path / "long.jsonl")], "few": [str(tmp_path / "few.jsonl")]},
    }
    expected = heldout_texts("web", source, config["micro"], config["files"]["web"], "think", 0.5, 200)
    inputs = {k: Artifact(kind="base", fingerprint="0", path=tmp_path / k, record={}) for k in ("a", "b")}
    found = stage.run(config, inputs, tmp_path, Silent()).metrics["sets"]["web"]
    assert (found["inputs"], found["asked"]) == (len(expected), 200)
    assert 4 <= len(expected) < 40
    states = []
    for side in ("a", "b"):
        ids = [tokenizer(text)["input_ids"][:16] for text in expected]
        states.append(stage.pooled_states(load_model(tmp_path / side / "model"), ids))
    values = [row["cka"] for row in found["layers"]]
    assert values == pytest.approx([feature_cka(*(s[k].astype(float) for s in states)) for k in range(3)], abs=1e-6)
    assert values[:2] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert values[2] < 0.999
    assert found["min_layer"] == 2
    assert [row["cka"] for row in pq.read_table(tmp_path / "layers.parquet").to_pylist()] == values
    config["spec"] = config["spec"] | {"sources": ["few"]}
    with pytest.raises((StageError, DataError), match="few"):
        stage.run(config, inputs, tmp_path, Silent())
