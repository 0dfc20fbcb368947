"""A model of width 32 with a byte tokenizer, and the specs and artifacts that RL's stages are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismlab.data.items import Item
from prismlab.run.step import Artifact
from prismlab.study.checkpoints import RLSpec


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token 0 ends a text; every byte is a token. There is no padding token, as with many released models."""
    vocabulary = {"<eos>": 0} | {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()), start=1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact's folder with ``model/`` in it."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def rl_spec() -> Callable[..., dict[str, Any]]:
    """JSON of an ``RLSpec`` of 2 prompts x 4 samples of 6 tokens, with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        given = {
            "stage": "rl",
            "from": "mid",
            "prompts": "mc",
            "steps": 2,
            "prompts_per_step": 2,
            "samples": 4,
            "max_new_tokens": 6,
            "kl_beta": 0.0,
            "tensorboard": False,
            "optimizer": {"lr": 1e-3, "schedule": "constant", "weight_decay": 0.0, "clip": None},
        }
        return RLSpec.model_validate({**given, **changes}).model_dump(mode="json", by_alias=True)

    return make


@pytest.fixture
def make_item() -> Callable[..., Item]:
    """An item that asks for a number."""

    def make(name: str, **changes: Any) -> Item:
        given: dict[str, Any] = {
            "id": name,
            "task": "sums",
            "domain": "math",
            "question": f"{name}?",
            "answer": "7",
            "verifier": "number",
            "choices": None,
            "meta": {},
        }
        return Item(**{**given, **changes})

    return make


@pytest.fixture
def artifact() -> Callable[..., Artifact]:
    """A finished step around a folder."""

    def make(kind: str, path: Path, config: Mapping[str, Any] | None = None) -> Artifact:
        return Artifact(kind=kind, fingerprint="0" * 16, path=path, record={"config": config or {}, "metrics": {}})

    return make


@pytest.fixture
def prompts_artifact(tmp_path: Path, make_item: Callable[..., Item], artifact: Callable[..., Artifact]) -> Artifact:
    """Three prompts of two domains."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    items = [make_item("a"), make_item("bb"), make_item("ccc", task="quiz", domain="science")]
    rows = [{**item.to_json(), "correct": place, "samples": 4} for place, item in enumerate(items)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return artifact("prompts", folder)
