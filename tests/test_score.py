"""Scoring: rows from completions, seeds from names, Parquet and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismlab.data.items import Item
from prismlab.errors import DataError, SandboxError
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler
from prismlab.run.step import Progress
from prismlab.score import SCHEMA, SampleRow, read_rows, score_items, write_rows

SETTINGS = SamplingSettings(max_new_tokens=12)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab={**vocab, "<|end|>": 256}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


TOKENIZER = byte_tokenizer()


def item(name: str, question: str = "1+2=?", task: str = "sums", verifier: str = "number", answer: str = "3") -> Item:
    return Item(id=name, task=task, domain="math", question=question, answer=answer, verifier=verifier)


class Scripted:
    """A sampler that says what it is told and keeps what it was asked."""

    def __init__(self, said: Sequence[Sequence[Completion]]) -> None:
        self.said = said
        self.asked: dict[str, Any] = {}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        settings: SamplingSettings,
        seed: int | Sequence[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        self.asked = {"prompts": [list(p) for p in prompts], "n": n, "settings": settings, "seed": seed}
        return [list(group) for group in self.said]


def said(text: str, logprobs: list[float] | None, finished: bool = True) -> Completion:
    ids = [1] * (len(logprobs) if logprobs else 5)
    return Completion(token_ids=ids, text=text, logprobs=logprobs, sampler_logprobs=None, finished=finished)


def test_rows_say_what_was_sampled() -> None:
    sampler = Scripted(
        [
            [said("<think> 1+2 </think> 3", [-0.5, -1.5]), said("4", [-2.0], finished=False)],
            [said("it is 3", None), said("", [-1.0, -2.0, -6.0])],
        ]
    )
    items = [item("a"), item("b", "2+1=?")]
    rows = score_items(sampler, TOKENIZER, items, 2, SETTINGS, 5, "think", strict_format=False)
    assert all(row.keys() == set(SCHEMA.names) for row in rows)
    assert [(r["item_id"], r["sample"]) for r in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [r["score"] for r in rows] == [1.0, 0.0, 1.0, 0.0]
    assert [r["verdict"] for r in rows] == ["right", "wrong", "right", "no_answer"]
    assert [r["form_ok"] for r in rows] == [True, False, False, False]
    assert [r["nll"] for r in rows] == [1.0, 2.0, None, 3.0]
    assert [r["tokens"] for r in rows] == [2, 1, 5, 3]
    assert [r["finished"] for r in rows] == [True, False, True, True]
    assert rows[0]["prompt_hash"] == rows[1]["prompt_hash"] != rows[2]["prompt_hash"]
    # A document starts behind the token that ends the one before it, and the template ends the question's line.
    assert sampler.asked["prompts"] == [
        [256, *TOKENIZER("1+2=?\n")["input_ids"]],
        [256, *TOKENIZER("2+1=?\n")["input_ids"]],
    ]
    strict = score_items(sampler, TOKENIZER, items, 2, SETTINGS, 5, "think", strict_format=True)
    assert [r["score"] for r in strict] == [1.0, 0.0, 0.0, 0.0]


def test_no_verdict_is_null_not_zero() -> None:
    sampler = Scripted([[said("3", [-1.0])]])
    [row] = score_items(sampler, TOKENIZER, [item("a", answer="none")], 1, SETTINGS, 0, "think", strict_format=False)
    assert (row["score"], row["verdict"]) == (None, "no_verdict")


def test_an_item_keeps_its_random_numbers_among_others() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    sampler = TransformersSampler(model, TOKENIZER)

    def rows(items: list[Item], n: int, seed: int) -> dict[tuple[str, str, int], SampleRow]:
        found = score_items(sampler, TOKENIZER, items, n, SETTINGS, seed, "think", strict_format=False)
        return {(r["task"], r["item_id"], r["sample"]): r for r in found}

    few = rows([item("a"), item("b", "22+11=?")], 2, 1)
    many = rows([item("c", "9"), item("b", "22+11=?"), item("a", task="other"), item("a")], 3, 1)
    for key, row in few.items():
        assert {k: v for k, v in row.items() if k != "nll"} == {k: v for k, v in many[key].items() if k != "nll"}
        assert row["nll"] == pytest.approx(many[key]["nll"], abs=1e-5)
    # The same question under another task, another seed or as another sample has other random numbers.
    assert many["other", "a", 0]["response"] != many["sums", "a", 0]["response"] != many["sums", "a", 1]["response"]
    assert rows([item("a")], 1, 2)["sums", "a", 0]["response"] != few["sums", "a", 0]["response"]


def test_refusals_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Scripted([])
    with pytest.raises(DataError, match="task sums: two items have the id 'a'"):
        score_items(sampler, TOKENIZER, [item("a"), item("b"), item("a")], 1, SETTINGS, 0, "think", strict_format=False)
    monkeypatch.setenv("PRISM_SANDBOX", "Z")
    with pytest.raises(SandboxError, match="PRISM_SANDBOX='Z': take A, B"):
        score_items(sampler, TOKENIZER, [item("a", verifier="tests")], 1, SETTINGS, 0, "think", strict_format=False)
    assert sampler.asked == {}


def test_parquet_and_back(tmp_path: Path) -> None:
    sampler = Scripted([[said("3 \ud7ff é \x00", [-0.1] * 3), said("x", None)]])
    rows = score_items(sampler, TOKENIZER, [item("a")], 2, SETTINGS, 0, "think", strict_format=False)
    write_rows(rows, tmp_path / "samples.parquet")
    assert read_rows(tmp_path / "samples.parquet") == rows
    file = pq.ParquetFile(tmp_path / "samples.parquet")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    write_rows([], tmp_path / "none.parquet")
    assert read_rows(tmp_path / "none.parquet") == []
    assert pq.read_schema(tmp_path / "none.parquet").equals(SCHEMA)
    with pytest.raises(ValueError, match="reason"):
        write_rows([{k: v for k, v in rows[0].items() if k != "reason"}], tmp_path / "bad.parquet")


def test_files_that_are_no_sample_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        read_rows(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not those of sample rows: a"):
        read_rows(tmp_path / "other.parquet")
