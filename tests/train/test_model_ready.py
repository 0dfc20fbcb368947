"""What a spec makes of a model: context, weights that move, adapters and their merge, activations, bf16."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prismlab.errors import CheckpointError
from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model import lora
from prismlab.model.boundaries import Packed, mamba_mixers
from prismlab.model.checkpoint import load_model, save_checkpoint, save_snapshot
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.study.checkpoints import TrainSpec
from prismlab.train.loss import row_losses
from prismlab.train.model import attention_for, extend_context, layers, make_ready

torch.set_num_threads(1)


def spec(**changes: Any) -> dict[str, Any]:
    given = {"stage": "extend", "from": "a", "mixture": "m", "steps": 1, "rows": 1, "seq_len": 32, **changes}
    return TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True)


def tiny(arch: str = "llama", layers_: int = 3) -> Any:
    return build_model(tiny_config(arch, 32, layers_, 258, max_positions=64), 0)


def tokens(rows: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def test_attention_is_the_models_own_but_for_masked_rows_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    there = importlib.util.find_spec("triton") is not None
    assert attention_for(spec(), cpu) is None
    assert attention_for(spec(), gpu) == ("flex_attention" if there else None)
    assert attention_for(spec(boundaries="ignore"), gpu) is None
    assert attention_for(spec(attention="sdpa"), gpu) == "sdpa"
    model = tiny()
    make_ready(model, spec(attention="eager"))
    assert model.config._attn_implementation == "eager"


def test_a_model_is_made_ready_for_where_it_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for where it lies: one that is split over GPUs is loaded into the CPU's memory."""
    monkeypatch.setattr("prismlab.model.boundaries.kernels_know_documents", lambda device: device.type == "cuda")
    cpu, gpu = (torch.device(kind) for kind in ("cpu", "cuda"))
    for device, wrapped in ((None, True), (cpu, True), (gpu, False)):
        model = tiny("granite4-h")
        make_ready(model, spec(), device)
        (mixer, *_) = mamba_mixers(model)
        assert (mixer.forward.__qualname__.startswith("_by_document")) == wrapped
        assert bool(mixer.in_proj._forward_hooks) == wrapped
        there = importlib.util.find_spec("triton") is not None
        assert (model.config._attn_implementation == "flex_attention") == (device == gpu and there)


def test_rows_longer_than_the_context_are_refused_unless_the_study_says_how() -> None:
    with pytest.raises(CheckpointError, match=r"rows of 128 tokens .* context of 64; say how with 'rope'"):
        make_ready(tiny(), spec(seq_len=128))
    make_ready(tiny(), spec(seq_len=64))
    model = tiny()
    make_ready(model, spec(seq_len=128, allow_longer=True))
    assert model.config.max_position_embeddings == 128


def test_a_class_without_a_stated_context_takes_rows_of_any_length() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=258, hidden_size=16, n_layer=1, n_head=2))
    make_ready(model, spec(seq_len=4096, boundaries="ignore"))
    assert not hasattr(model.config, "max_position_embeddings")
    with pytest.raises(CheckpointError, match="has no rotary positions; leave 'rope' out"):
        make_ready(model, spec(boundaries="ignore", rope={"theta": 1e6}))


@pytest.mark.parametrize("arch", ["llama", "mistral", "granite", "granite4"])
def test_rope_by_theta_and_by_linear_scaling_are_the_closed_forms(arch: str) -> None:
    size = 8
    for rope, frequencies in (
        ({"theta": 5e5}, [5e5 ** (-2 * k / size) for k in range(size // 2)]),
        ({"scaling": "linear", "factor": 4.0}, [1e4 ** (-2 * k / size) / 4 for k in range(size // 2)]),
    ):
        model = tiny(arch)
        make_ready(model, spec(seq_len=256, rope=rope))
        assert model.model.rotary_emb.inv_freq.tolist() == pytest.approx(frequencies, rel=1e-5)
        assert model.config.max_position_embeddings == 256


def test_yarn_leaves_fast_frequencies_and_stretches_slow_ones(tmp_path: Path) -> None:
    model = tiny()
    before = model.model.rotary_emb.inv_freq.clone()
    make_ready(model, spec(seq_len=256, rope={"scaling": "yarn", "factor": 4.0}))
    after = model.model.rotary_emb.inv_freq
    assert after[0] == pytest.approx(before[0].item())
    assert after[-1] == pytest.approx(before[-1].item() / 4)
    # Peng et al. 2023: attention's logits are scaled by (0.1 ln s + 1) on each side.
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    # What is saved computes the same.
    save_checkpoint(model, build_byte_tokenizer(), tmp_path, "float32")
    again = load_model(tmp_path, device=torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert again.config.max_position_embeddings == 256


def test_a_scaling_that_does_not_reach_and_a_model_without_rope_are_refused() -> None:
    with pytest.raises(CheckpointError, match="set 'factor' to 4 or more"):
        make_ready(tiny(), spec(seq_len=256, rope={"scaling": "linear", "factor": 2.0}))
    for arch in ("granite4-h", "nemotron-h"):
        with pytest.raises(CheckpointError, match="has no rotary positions"):
            extend_context(tiny(arch), 256, {"theta": 1e6, "scaling": None, "factor": None}, True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_alone_moves_when_it_alone_is_trained(arch: str) -> None:
    model = tiny(arch)
    make_ready(model, spec(train="attention"))
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving, "something is trained"
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moving} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    row_losses(model.train(), tokens()).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == moving


def test_a_model_without_attention_or_of_an_unknown_class_is_refused() -> None:
    model = tiny()
    model.config.model_type = "other"
    with pytest.raises(CheckpointError, match="train: attention: the class 'other' is none of"):
        make_ready(model, spec(train="attention", boundaries="ignore"))


@pytest.mark.parametrize("arch", ["llama", "granite4-h", "nemotron-h"])
def test_adapters_train_alone_and_are_merged_on_save(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, plain = tiny(arch), tiny(arch)
    make_ready(model, spec(lora={"rank": 4, "alpha": 8.0}))
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, plain(tokens()).logits), "adapters begin at 0"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any("out_proj" in name or "lm_head" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        row_losses(model.train(), tokens()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    save_checkpoint(model, build_byte_tokenizer(), tmp_path / "model", "float32")
    save_snapshot(model, tmp_path / "snapshot", "float32")
    again = load_model(tmp_path / "model", device=torch.device("cpu"))
    with torch.no_grad():
        expected = model.eval()(tokens()).logits
        assert (expected - plain(tokens()).logits).abs().max() > 1e-3
        torch.testing.assert_close(again(tokens()).logits, expected, atol=2e-5, rtol=1e-5)
    names = set(plain.state_dict())
    assert set(lora.merged_state(model)) == names
    # By hand: W + alpha / r * B A, for one layer.
    name, layer = next((n, m) for n, m in model.named_modules() if hasattr(m, "get_delta_weight"))
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    by_hand = layer.base_layer.weight.double() + 8.0 / 4 * (b @ a)
    torch.testing.assert_close(lora.merged_state(model)[f"{name}.weight"].double(), by_hand, atol=1e-6, rtol=1e-6)
    for other, parameter in plain.named_parameters():
        if not any(
            other.startswith(at) for at in (n for n, m in model.named_modules() if hasattr(m, "get_delta_weight"))
        ):
            assert torch.equal(again.get_parameter(other), parameter), "what has no adapter stays"


def test_an_adapter_for_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"is called 'query'; there are .*q_proj"):
        make_ready(tiny(), spec(lora={"targets": ["query"]}))
    with pytest.raises(CheckpointError, match="is called 'out_proj'"):
        make_ready(tiny("granite4-h"), spec(lora={"targets": ["out_proj"]}))


class Counting(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arch", ["llama", "granite4-h", "nemotron-h"])
def test_activations_computed_anew_change_no_gradient_and_cost_products(arch: str) -> None:
    found: dict[str, tuple[dict[str, torch.Tensor], int]] = {}
    ids = np.repeat([[0, 1, 2]], [5, 1, 18], axis=1).astype(np.int32)
    documents = Packed.of(np.concatenate([ids, ids[:, ::-1].max() - ids[:, ::-1]]))
    for mode in ("none", "full", "selective"):
        model = tiny(arch).train()
        make_ready(model, spec(checkpointing=mode))
        assert layers(model)
        losses = row_losses(model, tokens(), documents=documents)
        with Counting() as seen:
            losses.sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[mode] = gradients, seen.counts["aten.mm.default"] + seen.counts["aten.addmm.default"]
    for mode in ("full", "selective"):
        assert set(found[mode][0]) == set(found["none"][0])
        for name, gradient in found["none"][0].items():
            torch.testing.assert_close(found[mode][0][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert found["none"][1] < found["selective"][1] < found["full"][1]


def test_mambas_time_steps_are_float32_under_bf16() -> None:
    model = tiny("granite4-h")
    make_ready(model, spec())
    seen: list[torch.dtype] = []
    mixer: Any = mamba_mixers(model)[0]
    mixer.in_proj.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    mixer.norm.register_forward_hook(lambda module, given, out: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        row_losses(model, tokens())
    assert seen == [torch.float32, torch.float32]
    assert mixer.dt_bias.dtype == mixer.A_log.dtype == mixer.D.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "granite4-h"])
def test_compiled_layers_compute_the_same(arch: str) -> None:
    plain, compiled = tiny(arch).train(), tiny(arch).train()
    make_ready(compiled, spec(compile=True))
    for model in (plain, compiled):
        row_losses(model, tokens()).sum().backward()
    assert set(dict(plain.named_parameters())) == set(dict(compiled.named_parameters()))
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4, msg=name)
