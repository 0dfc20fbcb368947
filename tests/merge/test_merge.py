"""Linear merge against exact rational arithmetic and torch, and its refusals."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismlab.errors import CheckpointError, SpecError
from prismlab.merge.linear import merge_linear, run
from prismlab.merge.rounding import round_bf16
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint
from prismlab.model.tensors import open_checkpoint
from prismlab.run.step import Artifact, Silent

torch.set_num_threads(1)

BF16 = [int(bits) for bits in range(0x7F80)]
VALUES = (np.array(BF16, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


def nearest_bf16(value: float) -> int:
    """Bits of the nearest non-negative finite bfloat16, ties to even, by exact comparison; 0x7f80 beyond the last."""
    below = int(np.searchsorted(VALUES, value, side="right")) - 1
    low = Fraction(float(VALUES[below]))
    high = Fraction(float(VALUES[below + 1])) if below + 1 < len(BF16) else Fraction(2) ** 128
    middle = (low + high) / 2
    if Fraction(value) == middle:
        return below + (below & 1)
    return below + (Fraction(value) > middle)


def assert_rounded(values: list[float]) -> None:
    expected = [nearest_bf16(abs(v)) | (0x8000 if np.signbit(v) else 0) for v in values]
    assert round_bf16(np.array(values)).tolist() == expected


def test_rounding_at_and_beside_every_kind_of_middle() -> None:
    rng = np.random.default_rng(0)
    cases: list[float] = [0.0, -0.0, 5e-324, 1e-60, 1e308, float(np.finfo(np.float32).max)]
    for k in [0, 1, 2, 0x7F, 0x80, 0x7F7D, 0x7F7E, *rng.integers(0, 0x7F7E, 200).tolist()]:
        middle = (VALUES[k] + VALUES[k + 1]) / 2
        # 2^-40 of the gap is far below float32's spacing: going through float32 first would land on the middle.
        nudge = (VALUES[k + 1] - VALUES[k]) * 2.0**-40
        cases += [middle, middle + nudge, middle - nudge, VALUES[k], VALUES[k] + nudge]
    last = float(VALUES[-1])
    half = last - float(VALUES[-2])
    cases += [last + half / 2, last + half / 2 * (1 - 2**-30), last + half]
    assert_rounded([*cases, *(-c for c in cases)])


@settings(database=None, deadline=None, max_examples=300)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_double_is_rounded_once(value: float) -> None:
    assert_rounded([value])


def test_what_is_not_finite_stays_so() -> None:
    bits = round_bf16(np.array([np.inf, -np.inf, np.nan, -np.nan]))
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    assert back[0] == np.inf
    assert back[1] == -np.inf
    assert np.isnan(back[2:]).all()


def test_rounding_is_torchs_on_floats() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 1e3
    ours = round_bf16(x.double().numpy())
    assert ours.tobytes() == x.to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-sequence token."""
    vocabulary = {letter: k for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def edit(folder: Path, **values: Any) -> None:
    """Change settings of a checkpoint's config."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def checkpoint(folder: Path, seed: int, dtype: str = "bfloat16", tied: bool = False, width: int = 32) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    save_checkpoint(LlamaForCausalLM(config), build_byte_tokenizer(), folder, dtype=dtype)
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_merge_is_the_float64_sum_rounded_once(dtype: str, tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(seed), seed, "float32") for seed in range(3)]
    factors = [0.15, 0.6, 0.25]
    merge_linear(list(zip(folders, factors, strict=True)), tmp_path / "out", dtype)
    states = [load_file(folder / "model.safetensors") for folder in folders]
    merged = load_file(tmp_path / "out/model.safetensors")
    assert set(merged) == set(states[0])
    for name, tensor in merged.items():
        exact = sum(f * s[name].double() for f, s in zip(factors, states, strict=True))
        assert isinstance(exact, torch.Tensor)
        assert tensor.dtype == getattr(torch, dtype)
        if dtype == "bfloat16":
            # torch goes through float32; the two may differ where that rounds twice, and nowhere else.
            apart = tensor.view(torch.int16) != exact.to(torch.bfloat16).view(torch.int16)
            worse = (tensor.double() - exact).abs() > (exact.to(torch.bfloat16).double() - exact).abs()
            assert not worse.any()
            assert apart.float().mean() < 1e-3
        else:
            assert torch.equal(tensor, exact.to(tensor.dtype))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_one_and_zero_copy_bits_and_the_result_loads(tied: bool, tmp_path: Path) -> None:
    a, b = (checkpoint(tmp_path / str(seed), seed, tied=tied) for seed in range(2))
    poisoned = load_file(b / "model.safetensors")
    next(iter(poisoned.values())).fill_(float("nan"))
    save_file(poisoned, b / "model.safetensors", metadata={"format": "pt"})
    merge_linear([(a, 1.0), (b, 0.0)], tmp_path / "out")
    before, after = open_checkpoint(a), open_checkpoint(tmp_path / "out")
    assert list(before) == list(after)
    for name, view in before.items():
        assert (view.shape, view.dtype, bytes(view.raw())) == (
            after[name].shape,
            after[name].dtype,
            bytes(after[name].raw()),
        )
    model = load_model(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, load_model(a).lm_head.weight)
    assert load_tokenizer(tmp_path / "out")("abc")["input_ids"] == load_tokenizer(a)("abc")["input_ids"]
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert not list((tmp_path / "out").glob("*.partial"))


def test_a_merge_of_a_checkpoint_with_itself_is_that_checkpoint(tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", 0)
    merge_linear([(a, 0.25), (a, 0.75)], tmp_path / "out")
    for name, view in open_checkpoint(a).items():
        assert bytes(open_checkpoint(tmp_path / "out")[name].raw()) == bytes(view.raw())


def test_shards_in_one_file_out(tmp_path: Path) -> None:
    a = checkpoint(tmp_path / "a", 0)
    load_model(a, "bfloat16").save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert (tmp_path / "b/model.safetensors.index.json").exists()
    merge_linear([(tmp_path / "b", 0.5), (a, 0.5)], tmp_path / "out")
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    for name, view in open_checkpoint(a).items():
        assert bytes(open_checkpoint(tmp_path / "out")[name].raw()) == bytes(view.raw())


def test_extrapolation_takes_weights_as_they_are(tmp_path: Path) -> None:
    a, b = (checkpoint(tmp_path / str(seed), seed, "float32") for seed in range(2))
    merge_linear([(a, -1.0), (b, 3.0)], tmp_path / "out", "float32", allow_unnormalised=True)
    name = "model.layers.0.mlp.up_proj.weight"
    x, y, z = (load_file(folder / "model.safetensors")[name].double() for folder in (a, b, tmp_path / "out"))
    assert torch.equal(z, (3 * y - x).float().double())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    a, wide = checkpoint(tmp_path / "a", 0), checkpoint(tmp_path / "wide", 0, width=64)
    with pytest.raises(CheckpointError, match=r"tensor \S+ has shape \[258, 32\] in \S+a and \[258, 64\] in \S+wide"):
        merge_linear([(a, 0.5), (wide, 0.5)], tmp_path / "out")
    lacking = checkpoint(tmp_path / "lacking", 0)
    state = load_file(lacking / "model.safetensors")
    save_file({n: t for n, t in state.items() if n != "model.norm.weight"}, lacking / "model.safetensors")
    for pair in ([(a, 0.5), (lacking, 0.5)], [(lacking, 0.5), (a, 0.5)]):
        with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is in \S+a and not in \S+lacking"):
            merge_linear(pair, tmp_path / "out")
    mistral = shutil.copytree(a, tmp_path / "mistral")
    edit(mistral, model_type="mistral")
    with pytest.raises(CheckpointError, match=r"different architectures .*a: llama, .*mistral: mistral"):
        merge_linear([(a, 0.5), (mistral, 0.5)], tmp_path / "out")
    heads = shutil.copytree(a, tmp_path / "heads")
    edit(heads, num_attention_heads=8, head_dim=4)
    with pytest.raises(CheckpointError, match=r"num_attention_heads is 4 in \S+a and 8 in \S+heads"):
        merge_linear([(a, 0.5), (heads, 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("factors", "options", "message"),
    [
        ([0.5, 0.6], {}, r"sum to 1\.1, not 1"),
        ([0.5, 0.5 + 2e-6], {}, "not 1"),
        ([float("nan"), 1.0], {}, "not a finite number"),
        ([float("inf"), 1.0], {"allow_unnormalised": True}, "not a finite number"),
        ([], {}, "nothing to merge"),
        ([0.5, 0.5], {"dtype": "float8"}, "'float8' is not one of keep, bfloat16"),
        ([0.5, 0.5], {"max_shard_size": "5 parsecs"}, "5 parsecs"),
        ([0.5, 0.5], {"max_shard_size": "0GB"}, "0GB"),
        ([0.5, 0.5], {"tokenizer_from": "c"}, "none of the merged checkpoints"),
    ],
)
def test_options_that_are_wrong_are_named(
    factors: list[float], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    a = checkpoint(tmp_path / "a", 0)
    with pytest.raises(SpecError, match=message):
        merge_linear([(a, factor) for factor in factors], tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_weights_within_a_millionth_of_one_pass(tmp_path: Path) -> None:
    """They are taken as they are given, not brought to a sum of 1; beyond a millionth they are refused."""
    a, weights = checkpoint(tmp_path / "a", 0), (0.5, 0.5 + 5e-7)
    record = merge_linear([(a, weight) for weight in weights], tmp_path / "out", "float64")
    assert [source["weight"] for source in record["sources"]] == list(weights)
    before, after = load_file(a / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert set(after) == set(before)
    for name, tensor in after.items():
        old = before[name].double()
        assert torch.equal(tensor, weights[0] * old + weights[1] * old)
        assert torch.equal(tensor != old, old != 0)
    with pytest.raises(SpecError, match=r"the weights sum to 1\.000002, not 1"):
        merge_linear([(a, 0.5), (a, 0.5 + 2e-6)], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_integers_are_copied_where_they_agree(tmp_path: Path) -> None:
    for name, step in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        state = {"w": torch.ones(2), "steps": torch.tensor([step])}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    merge_linear([(tmp_path / "a", 0.5), (tmp_path / "b", 0.5)], tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors")["steps"].tolist() == [3]
    with pytest.raises(CheckpointError, match=r"steps \(I64\)"):
        merge_linear([(tmp_path / "a", 0.5), (tmp_path / "c", 0.5)], tmp_path / "out2")


def test_stage_finds_checkpoints_by_their_names(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "mid")):
        checkpoint(tmp_path / name / "model", seed)
    inputs = {n: Artifact(kind="train", fingerprint="0", path=tmp_path / n, record={}) for n in ("mid", "base")}
    config = {"spec": {"stage": "merge", "weights": {"base": 0.15, "mid": 0.85}}, "seed": 0}
    metrics = run(config, inputs, tmp_path / "out", Silent()).metrics
    assert metrics["weights"] == {"base": 0.15, "mid": 0.85}
    assert (metrics["dtype"], metrics["kernel"], metrics["nonfinite"]) == ("bfloat16", "numpy", {})
    merge_linear([(tmp_path / "base/model", 0.15), (tmp_path / "mid/model", 0.85)], tmp_path / "direct", "bfloat16")
    direct = (tmp_path / "direct/model.safetensors").read_bytes()
    assert (tmp_path / "out/model/model.safetensors").read_bytes() == direct
    text = (tmp_path / "out/model/merge.json").read_text()
    assert [source["name"] for source in json.loads(text)["sources"]] == ["base", "mid"]
    assert str(tmp_path) not in text  # an artifact knows no path
