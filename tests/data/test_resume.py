"""One token stream: whatever the processes that make it, however often the build was stopped, whoever reads it."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prismlab.data import cache, shards
from prismlab.data.build import build_corpus
from prismlab.data.corpus import Corpus, rank_rows
from prismlab.data.encode import encode_documents
from prismlab.errors import DataError
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
]


def texts(seed: int, n: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(1, 60))) + f" {at}" for at in range(n)]


def prepared(folder: Path, method: str = "concat", rows: int = 120, **changed: Any) -> dict[str, Any]:
    """Two sources from files, one of them repeated, and a generated one."""
    files = {"web": texts(1, 300), "few": texts(2, 25)}
    for name, found in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    sources = {
        "web": {"files": ["web.jsonl"], "domain": "web"},
        "few": {"files": ["few.jsonl"], "domain": "math"},
        "sums": {"micro": {"domain": "math"}},
    }
    packing = {"method": method, "overlap": 0, "min_tokens": 12, "window": 64}
    specs = {n: SourceSpec.model_validate(s).model_dump(mode="json", by_alias=True) for n, s in sources.items()}
    return {
        "mixture": "mix",
        "weights": {"web": 0.6, "few": 0.3, "sums": 0.1},
        "max_epochs": 100.0,
        "sources": specs,
        "micro": MicroSpec(math_min_digits=1, math_max_digits=2, documents=400).model_dump(mode="json"),
        "files": {name: [str(folder / f"{name}.jsonl")] for name in files},
        "packing": packing if method == "best_fit" else {**packing, "window": 100_000},
        "rows": rows,
        "seq_len": 64,
        "heldout": 0.05,
        "template": "think",
        "seed": 11,
        **changed,
    }


@pytest.mark.parametrize("method", ["concat", "best_fit"])
def test_a_build_killed_at_any_of_twenty_points_goes_on_to_the_same_corpus(tmp_path: Path, method: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(prepared(tmp_path, method)))
    script = Path(__file__).with_name("killed_builds.py")
    told = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    assert found["renames"] > 20
    assert len(found["killed"]) == 20
    assert set(found["killed"]) == {found["whole"]} == {found["again"]}
    assert found["times"] > 5
    assert found["moments"] == found["whole"]
    assert found["killed_at_any_moment"] >= 3


def test_the_stream_is_one_for_all_workers_ranks_and_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bpe: Any
) -> None:
    monkeypatch.setattr("prismlab.data.build.check_disjoint", lambda spec: None)
    monkeypatch.setattr(cache, "FIRST_PART", 8)
    monkeypatch.setattr(cache, "PART_CHARS", 3000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 64 * 2 * 50)
    config = prepared(tmp_path)
    manifests = []
    for workers in (1, 2, 4):
        out = tmp_path / str(workers)
        out.mkdir()
        build_corpus(config, bpe, out, workers=workers)
        manifests.append((out / "manifest.json").read_bytes())
        assert {path.name for path in out.iterdir()} == {*json.loads(manifests[0])["files"], "manifest.json"}
    assert manifests[0] == manifests[1] == manifests[2]
    corpus = Corpus.open(tmp_path / "1")
    corpus.verify()
    assert len(list((tmp_path / "1").glob("tokens-*"))) == 3
    for ranks in (1, 2, 4):
        for start in range(20):
            digest = hashlib.blake2b(digest_size=16)
            for step in range(120 // 4):
                if step == start:  # Stopped here and begun anew, as a training that resumes.
                    corpus = Corpus.open(tmp_path / "4")
                for rank in range(ranks):
                    mine = rank_rows(step, 4, rank, ranks)
                    digest.update(corpus.tokens(mine.start, mine.stop).astype("<u2").tobytes())
            assert digest.hexdigest() == corpus.manifest["stream"]
    # It is the order that is hashed: the same rows with two of them changed about are another stream.
    rows = [*range(58), 59, 58, *range(60, 120)]
    changed = b"".join(corpus.tokens(row, row + 1).astype("<u2").tobytes() for row in rows)
    assert hashlib.blake2b(changed, digest_size=16).hexdigest() != corpus.manifest["stream"]


def test_a_scratch_folder_of_another_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismlab.data.build.check_disjoint", lambda spec: None)
    config = prepared(tmp_path, rows=10)
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    out.mkdir()
    build_corpus(config, build_byte_tokenizer(), out, scratch=scratch)
    first = (out / "manifest.json").read_bytes()
    build_corpus(config, build_byte_tokenizer(), out, scratch=scratch)
    assert (out / "manifest.json").read_bytes() == first
    for change in ({"seed": 12}, {"rows": 11}, {"files": {**config["files"], "web": [str(tmp_path / "few.jsonl")]}}):
        with pytest.raises(DataError, match="the unfinished build of another configuration"):
            build_corpus({**config, **change}, build_byte_tokenizer(), out, scratch=scratch)


def test_damaged_parts_are_encoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_CHARS", 1000)
    config = prepared(tmp_path, rows=90)
    (tmp_path / "a").mkdir()
    build_corpus(config, build_byte_tokenizer(), tmp_path / "a", scratch=tmp_path / "scratch")
    parts = sorted((tmp_path / "scratch" / "sources" / "web").glob("part-*.tok"))
    assert len(parts) > 2
    for part, data in ((parts[1], b"\0" * parts[1].stat().st_size), (parts[2], b"")):
        part.write_bytes(data)
        (tmp_path / "b").mkdir(exist_ok=True)
        build_corpus(config, build_byte_tokenizer(), tmp_path / "b", scratch=tmp_path / "scratch")
        assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE with merges, so that the tokenizer's library is what encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts(3, 200), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def test_prompts_are_the_tokens_that_end_before_the_answer(bpe: Any) -> None:
    from prismlab.data.document import Document
    from prismlab.model.tokens import Encoder

    questions = ["which of the\n", "naïve and\n", ""]
    answers = ["was it", "über the", "of and to"]
    documents = [Document(q + a, prompt=len(q)) for q, a in zip(questions, answers, strict=True)]
    encoded = encode_documents(Encoder(bpe), documents)
    at = 0
    for document, length, prompt in zip(documents, encoded.lengths, encoded.prompts, strict=True):
        ids = encoded.tokens[at : at + length].tolist()
        assert bpe.decode(ids[:-1]) == document.text
        assert ids[-1] == bpe.eos_token_id
        assert document.text[: document.prompt].startswith(bpe.decode(ids[:prompt]))
        # One token more would reach into the answer.
        assert len(bpe.decode(ids[: prompt + 1])) > document.prompt
        at += length


def test_long_documents_are_cut_where_words_end(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismlab.data import encode
    from prismlab.data.document import Document
    from prismlab.model.tokens import Encoder

    text = "\n".join(texts(5, 40))
    whole = encode_documents(Encoder(bpe), [Document(text)])
    monkeypatch.setattr(encode, "LONGEST", 500)
    monkeypatch.setattr(encode, "BATCH_CHARS", 400)
    pieces = list(encode.pieces(text, 500))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 500
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    cut = encode_documents(Encoder(bpe), [Document("a"), Document(text)])
    assert cut.lengths.tolist()[1:] == whole.lengths.tolist()
    assert cut.tokens[2:].tolist() == whole.tokens.tolist()
    assert list(encode.pieces("x" * 9, 4)) == ["xxxx", "xxxx", "x"]
    assert list(encode.pieces("ab cd ef", 4)) == ["ab ", "cd ", "ef"]
    with pytest.raises(DataError, match=r"f:1: 501 characters; with 'loss: answer' a document has at most 500"):
        encode_documents(Encoder(bpe), [Document(text[:450] + "y" * 51, prompt=3, where="f:1")])
