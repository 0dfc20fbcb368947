from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismlab.data.build import run
from prismlab.data.corpus import Corpus
from prismlab.data.sources import documents, heldout_texts, is_heldout
from prismlab.errors import DataError
from prismlab.micro.world import questions
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Result, Silent
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

MICRO = MicroSpec(math_min_digits=1, math_max_digits=2, documents=400)
EOS = 256


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("base")
    build_byte_tokenizer().save_pretrained(path / "model")
    return Artifact(kind="base", fingerprint="0", path=path, record={"config": {}, "metrics": {}})


def config(weights: dict[str, float], sources: dict[str, Any], rows: int = 60, **changed: Any) -> dict[str, Any]:
    specs = {n: SourceSpec.model_validate(s).model_dump(mode="json", by_alias=True) for n, s in sources.items()}
    whole = {
        "mixture": "mix",
        "weights": weights,
        "max_epochs": 100.0,
        "sources": specs,
        "micro": MICRO.model_dump(mode="json"),
        "rows": rows,
        "seq_len": 64,
        "heldout": 0.1,
        "template": "think",
        "seed": 5,
    }
    return whole | changed


TWO = {"web": {"micro": {"domain": "web"}}, "sums": {"micro": {"domain": "math", "form": "worked"}}}


def build(out: Path, base: Artifact, cfg: dict[str, Any]) -> tuple[Result, Corpus]:
    out.mkdir()
    return run(cfg, {"tokenizer": base}, out, Silent()), Corpus.open(out)


def texts_of(corpus: Corpus, source: str) -> list[str]:
    """Documents of a source as its rows spell them, the unfinished last one left out."""
    rows = np.flatnonzero(corpus.row_source == corpus.sources.index(source))
    stream = np.concatenate([corpus.tokens(row, row + 1)[0] for row in rows])
    ends = np.flatnonzero(stream == EOS)
    starts = [0, *(ends[:-1] + 1)]
    return [bytes(stream[a:b].astype(np.uint8)).decode() for a, b in zip(starts, ends, strict=True)]


def test_rows_spell_the_documents_of_their_source(tmp_path: Path, base: Artifact) -> None:
    result, corpus = build(tmp_path / "c", base, config({"web": 1, "sums": 3}, TWO))
    counts = np.bincount(corpus.row_source)
    assert counts.tolist() == [15, 45]
    assert (corpus.domains, corpus.vocab, corpus.seq_len) == (["web", "math"], 258, 64)
    assert corpus.tokenizer_hash == tokenizer_hash(build_byte_tokenizer())
    assert corpus.stream_hash() == corpus.manifest["stream"]
    trained = {f"Add {q.id}=?\n<think> {q.chain} </think> {q.answer}" for q in questions("math", "train", 1, MICRO)}
    spelt = texts_of(corpus, "sums")
    assert len(spelt) > 50
    assert set(spelt) <= trained
    from prismlab.micro.text import web_documents

    assert set(texts_of(corpus, "web")) <= set(web_documents())
    metrics = result.metrics["sources"]
    assert result.metrics["tokens"] == result.tokens == 60 * 64
    assert metrics["sums"]["rows"] == 45
    assert metrics["sums"]["tokens"] == 45 * 64
    assert metrics["sums"]["share"] == pytest.approx(0.75)
    assert metrics["sums"]["domain"] == "math"


def test_no_heldout_document_is_trained_on_and_all_of_them_are_for_evaluation(tmp_path: Path, base: Artifact) -> None:
    cfg = config({"sums": 1}, TWO, rows=500)
    result, corpus = build(tmp_path / "c", base, cfg)
    spelt = set(texts_of(corpus, "sums"))
    assert not any(is_heldout(text, 0.1) for text in spelt)
    held = heldout_texts("sums", cfg["sources"]["sums"], cfg["micro"], None, "think", 0.1, 10_000)
    assert held
    assert not spelt & set(held)
    assert result.metrics["sources"]["sums"]["heldout_documents"] > 0
    assert result.metrics["sources"]["sums"]["epochs"] > 1


def test_a_source_is_repeated_whole_and_reordered(tmp_path: Path, base: Artifact) -> None:
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"text": f"<{at}>"}) + "\n" for at in range(30)))
    cfg = config(
        {"few": 1},
        {"few": {"files": ["few.jsonl"], "domain": "web"}},
        rows=20,
        files={"few": [str(file)]},
    )
    result, corpus = build(tmp_path / "c", base, cfg)
    spelt = texts_of(corpus, "few")
    kept = {f"<{at}>" for at in range(30) if not is_heldout(f"<{at}>", 0.1)}
    n = len(kept)
    passes = [spelt[at : at + n] for at in range(0, len(spelt) - n, n)]
    assert len(passes) > 5
    assert all(set(one) == kept for one in passes)
    assert passes[0] != passes[1] != passes[2]
    size = sum(len(text) + 1 for text in kept)
    assert result.metrics["sources"]["few"]["epochs"] == pytest.approx(20 * 64 / size)
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=rf"'few' has {size} tokens to train on, 1280 are needed"):
        run(cfg | {"max_epochs": 2.0}, {"tokenizer": base}, tmp_path / "d", Silent())


def test_equal_configurations_give_equal_bytes_and_seeds_differ(tmp_path: Path, base: Artifact) -> None:
    cfg = config({"web": 1, "sums": 1}, TWO)
    found = [
        build(tmp_path / name, base, cfg | {"seed": seed})[1].manifest for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    assert found[0] == found[1]
    assert found[0]["stream"] != found[2]["stream"]
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "ab"]
    arrays = ["row_fill.npy", "row_source.npy", "row_starts.npy"]
    assert files[0] == files[1] == ["manifest.json", *arrays, "starts-00000.bin", "tokens-00000.bin"]


def test_adding_a_source_does_not_change_what_another_gives(tmp_path: Path, base: Artifact) -> None:
    alone = texts_of(build(tmp_path / "a", base, config({"sums": 1}, TWO, rows=30))[1], "sums")
    mixed = texts_of(build(tmp_path / "b", base, config({"web": 1, "sums": 1}, TWO, rows=60))[1], "sums")
    assert alone == mixed


def test_text_that_spells_a_special_token_ends_nothing(tmp_path: Path, base: Artifact) -> None:
    file = tmp_path / "spelt.jsonl"
    file.write_text("".join(json.dumps({"text": f"a<|eos|>{at}<|pad|>"}) + "\n" for at in range(40)))
    cfg = config({"s": 1}, {"s": {"files": ["x"], "domain": "web"}}, rows=5, files={"s": [str(file)]})
    _, corpus = build(tmp_path / "c", base, cfg)
    assert all(text.startswith("a<|eos|>") and text.endswith("<|pad|>") for text in texts_of(corpus, "s"))


def test_empty_documents_are_counted_and_told(tmp_path: Path, base: Artifact) -> None:
    file = tmp_path / "e.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", "x" * 500, " ", "y" * 500)))
    said: list[str] = []

    class Loud(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    cfg = config({"e": 1}, {"e": {"files": ["x"], "domain": "web"}}, rows=4, heldout=1e-9, files={"e": [str(file)]})
    (tmp_path / "c").mkdir()
    result = run(cfg, {"tokenizer": base}, tmp_path / "c", Loud())
    assert result.metrics["sources"]["e"]["empty_documents"] == 2
    assert said == ["source 'e': 2 empty documents skipped"]


def test_progress_counts_every_row_and_few_documents_are_read(tmp_path: Path, base: Artifact) -> None:
    begun: list[tuple[int | None, str]] = []
    seen: list[int] = []

    class Counting(Silent):
        def start(self, total: int | None, unit: str) -> None:
            begun.append((total, unit))
            seen.append(0)

        def advance(self, n: int = 1, **shown: float | str) -> None:
            seen[-1] += n

    (tmp_path / "c").mkdir()
    result = run(config({"web": 1, "sums": 1}, TWO, rows=10), {"tokenizer": base}, tmp_path / "c", Counting())
    assert begun == [(640, "token"), (10, "row")]
    assert seen[0] >= 640
    assert seen[1] == 10
    assert result.metrics["sources"]["sums"]["documents"] < 20
    assert result.metrics["sources"]["sums"]["epochs"] is None


def test_unknown_sources_are_named(tmp_path: Path, base: Artifact) -> None:
    with pytest.raises(DataError, match="mixture 'mix' names sources that the study does not have: wbe"):
        run(config({"wbe": 1}, TWO), {"tokenizer": base}, tmp_path, Silent())


def test_sources_of_equal_kind_but_another_name_are_ordered_apart() -> None:
    spec = SourceSpec.model_validate(TWO["sums"]).model_dump(mode="json", by_alias=True)
    micro = MICRO.model_dump(mode="json")
    assert list(documents("a", spec, micro, None, "think", 1)) != list(documents("b", spec, micro, None, "think", 1))
