"""Round trips in bf16, tied weights once, and refusals."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prismlab.errors import CheckpointError
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint, save_snapshot
from prismlab.model.tokens import build_byte_tokenizer


def tiny(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    )


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_rounds_to_bf16_and_no_further(tmp_path: Path, tied: bool) -> None:
    model = tiny(tied)
    save_checkpoint(model, build_byte_tokenizer(), tmp_path)
    again = load_model(tmp_path)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16).float(), b), name
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    # A second save of what was loaded gives the same bytes: rounding happens once.
    save_checkpoint(again, build_byte_tokenizer(), tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_snapshot_holds_what_the_checkpoint_holds(tmp_path: Path) -> None:
    model = tiny(True)
    save_checkpoint(model, build_byte_tokenizer(), tmp_path / "full")
    save_snapshot(model, tmp_path / "snap")
    full, snap = load_file(tmp_path / "full/model.safetensors"), load_file(tmp_path / "snap/model.safetensors")
    assert full.keys() == snap.keys()
    assert all(torch.equal(full[name], snap[name]) for name in full)


def test_missing_tensor_is_refused_not_filled(tmp_path: Path) -> None:
    save_checkpoint(tiny(True), build_byte_tokenizer(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys.*model\.norm\.weight"):
        load_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tiny(True), build_byte_tokenizer(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        load_model(tmp_path)


def test_truncated_weights_are_an_error_of_ours(tmp_path: Path) -> None:
    save_checkpoint(tiny(True), build_byte_tokenizer(), tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* bytes are missing"):
        load_model(tmp_path)


def test_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    save_checkpoint(tiny(tied=False), build_byte_tokenizer(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name].view(torch.int16)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is I16, where the model has floats"):
        load_model(tmp_path)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    save_checkpoint(tiny(tied=False), build_byte_tokenizer(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name].reshape(16, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"mismatched keys in the weights.*{name}.*16, 32.*32, 16"):
        load_model(tmp_path)


def test_names_out_of_a_file_reach_the_terminal_as_one_short_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tiny(tied=False), build_byte_tokenizer(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    odd = "a\x1b[31m" + "b" * 100_000
    save_file({**state, odd: torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="unexpected keys") as caught:
        load_model(tmp_path)
    told = str(caught.value) + "".join(capfd.readouterr())
    assert "\x1b" not in told
    assert len(told) < 1000
    assert "\n" not in told


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Zorg"}}'),
        (
            "tokenizer.json",
            '{"version": "1.0", "added_tokens": [1], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        ),
        ("config.json", "[1]"),
    ],
)
def test_files_over_which_the_library_falls_are_the_user_s_to_mend(file: str, text: str, tmp_path: Path) -> None:
    save_checkpoint(tiny(tied=False), build_byte_tokenizer(), tmp_path)
    (tmp_path / file).write_text(text)
    if file == "config.json":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer can be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    save_checkpoint(tiny(True), build_byte_tokenizer(), tmp_path)
    for file in tmp_path.glob("token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(tmp_path)


HOSTILE: dict[str, tuple[dict[str, object], str]] = {
    "width": ({"hidden_size": 10**9}, "vocabulary times width"),
    "layers": ({"num_hidden_layers": 10**6}, r"promises 1,000,000 \(layers\)"),
    "both": ({"hidden_size": 10**9, "num_hidden_layers": 10**6}, "promises"),
    "vocabulary": ({"vocab_size": 10**12}, "vocabulary times width"),
    "middle": ({"intermediate_size": 10**11}, "describes a model of 4,800,"),
    "no heads": ({"num_attention_heads": 0}, "ZeroDivisionError"),
    "heads that do not divide": ({"num_attention_heads": 10**6}, "describes no causal language model"),
    "another class": ({"model_type": "t5"}, "describes no causal language model"),
    "an unheard-of class": ({"model_type": "x\x1b[31m"}, "describes no causal language model"),
    "text for a number": ({"hidden_size": "many"}, "describes no causal language model"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_config_that_promises_too_much_is_refused_before_a_model_is_made(case: str, tmp_path: Path) -> None:
    save_checkpoint(tiny(True), build_byte_tokenizer(), tmp_path)
    values, message = HOSTILE[case]
    config = json.loads((tmp_path / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    # 2 GB above what the process has mapped: an allocation of what these configs ask for would fail.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (2 << 30), limits[1]))
    try:
        with pytest.raises(CheckpointError, match=message) as refused:
            load_model(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert "\x1b" not in str(refused.value)


def test_looking_at_the_promise_draws_no_random_number(tmp_path: Path) -> None:
    save_checkpoint(tiny(False), build_byte_tokenizer(), tmp_path)
    before = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
