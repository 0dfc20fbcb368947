"""Bits per byte against a document-by-document computation and known values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prismlab.errors import DataError, StageError
from prismlab.evaluate import text as text_loss
from prismlab.evaluate.text import bits_per_byte, document_nll, fitting, score_documents, write_rows
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.generate import prompt_ids
from prismlab.model.tokens import build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()
TEXTS = ["Prisms part light.", "é🙂", "a", "def f(x):\n    return x + 1\n" * 3, "ß" * 40]


pytestmark = pytest.mark.usefixtures("one_thread")


def bpe_with_bos() -> PreTrainedTokenizerFast:
    """Merged tokens and an own start token that the tokenizer does not put in front by itself."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS * 5, trainer)
    from tokenizers.decoders import ByteLevel

    inner.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("arch", ["llama", "granite4-h", "nemotron-h"])
def test_each_document_stands_alone(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tiny_config(arch, 32, 4, 258), seed=3).eval()
    monkeypatch.setattr(text_loss, "BATCH_LOGITS", 258 * 100)  # several batches, some with several documents
    rows = score_documents(model, TOKENIZER, "mine", TEXTS)
    for row, text in zip(rows, TEXTS, strict=True):
        ids = torch.tensor([prompt_ids(TOKENIZER, text)])
        with torch.no_grad():
            loss = float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        assert row["nll"] == pytest.approx(loss, rel=1e-4)
        assert row["bytes"] == row["tokens"] == len(text.encode())
    assert [row["document"] for row in rows] == list(range(len(TEXTS)))


def test_known_value() -> None:
    """All logits equal: log2(vocabulary) bits a byte, whatever the text."""
    model = build_model(tiny_config("llama", 32, 1, 258), seed=0).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    found = bits_per_byte(score_documents(model, TOKENIZER, "mine", TEXTS))
    assert found["bits_per_byte"] == pytest.approx(math.log2(258), rel=1e-6)
    assert found["lo"] == pytest.approx(found["hi"])
    assert (found["documents"], found["bytes"]) == (5, sum(len(text.encode()) for text in TEXTS))


def test_ratio_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 2000, 60)
    nll = sizes * rng.normal(1.2, 0.2, 60)
    rows = [{"nll": float(a), "bytes": int(b)} for a, b in zip(nll, sizes, strict=True)]
    found = bits_per_byte(rows)
    # Total bits over total bytes, not the mean of the documents' ratios.
    assert found["bits_per_byte"] == pytest.approx(nll.sum() / math.log(2) / sizes.sum())
    again = []
    for _ in range(4000):
        pick = rng.integers(0, 60, 60)
        again.append(nll[pick].sum() / math.log(2) / sizes[pick].sum())
    assert (found["lo"], found["hi"]) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=0.01)
    assert bits_per_byte(rows[:1])["lo"] is None


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab é🙂\n", max_size=60), st.integers(2, 40))
def test_cut_text_keeps_whole_characters(text: str, most: int) -> None:
    ids, characters = fitting(TOKENIZER, text, most)
    assert len(ids) <= most
    assert TOKENIZER.decode(ids[1:]) == text[:characters]
    if characters < len(text):
        assert len(prompt_ids(TOKENIZER, text[: characters + 1])) > most


def test_long_document_is_scored_up_to_the_last_position() -> None:
    model = build_model(tiny_config("llama", 32, 1, 258, max_positions=32), seed=0).eval()
    [row] = score_documents(model, TOKENIZER, "mine", ["é" * 100])
    assert (row["bytes"], row["tokens"]) == (30, 30)
    [short] = score_documents(model, TOKENIZER, "mine", ["é" * 15])
    assert row["nll"] == pytest.approx(short["nll"])


def test_no_position_behind_the_wanted_ones_is_scored() -> None:
    model = build_model(tiny_config("llama", 32, 1, 258), seed=0).eval()
    [row] = score_documents(model, TOKENIZER, "mine", ["abc" * 20], most=13)
    assert (row["bytes"], row["tokens"]) == (12, 12)
    [short] = score_documents(model, TOKENIZER, "mine", ["abc" * 4])
    assert row["nll"] == pytest.approx(short["nll"])


def test_first_token_without_a_start_is_context_only() -> None:
    tokenizer = bpe_with_bos()
    model = build_model(tiny_config("llama", 32, 1, len(tokenizer)), seed=0).eval()
    text = TEXTS[0]
    ids = prompt_ids(tokenizer, text)
    assert tokenizer.decode(ids) == text
    [row] = score_documents(model, tokenizer, "mine", [text])
    assert row["tokens"] == len(ids) - 1
    assert row["bytes"] == len(tokenizer.decode(ids[1:]).encode())
    assert row["nll"] == pytest.approx(document_nll(model, [ids], None)[0])


def test_refusals_and_rows(tmp_path: Path) -> None:
    model = build_model(tiny_config("llama", 32, 1, 258), seed=0).eval()
    with pytest.raises(DataError, match="source mine: held-out document 1 has no text"):
        score_documents(model, TOKENIZER, "mine", ["a", ""])
    rows = score_documents(model, TOKENIZER, "mine", TEXTS)
    write_rows(rows, tmp_path / "text.parquet")
    assert pq.read_table(tmp_path / "text.parquet").to_pylist() == rows
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(StageError, match="not finite"):
        score_documents(model, TOKENIZER, "mine", ["a"])
