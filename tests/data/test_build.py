from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismlab.data.build import run
from prismlab.data.corpus import Corpus
from prismlab.data.inspect import ahead
from prismlab.data.sources import documents, heldout_texts, is_heldout
from prismlab.errors import DataError
from prismlab.micro.world import questions
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Result, Silent
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

MICRO = MicroSpec(math_min_digits=1, math_max_digits=2, documents=400)
EOS, PAD = 256, 257


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


BEST_FIT = {"method": "best_fit", "overlap": 8, "min_tokens": 6, "window": 50}


def pieces(corpus: Corpus, source: str) -> list[tuple[bool, bytes]]:
    """The documents of a source's rows as they are parted: whether each goes on from an earlier row, and its bytes."""
    found = []
    for row in np.flatnonzero(corpus.row_source == corpus.sources.index(source)).tolist():
        tokens, starts = corpus.tokens(row, row + 1)[0], corpus.boundaries(row)
        assert starts[0] == 0
        for start, stop, on in zip(starts, [*starts[1:], corpus.row_fill[row]], corpus.continues(row), strict=True):
            ids = tokens[start:stop].tolist()
            found.append((bool(on), bytes(at for at in ids if at < 256) + b"$" * (ids[-1] == EOS)))
            assert EOS not in ids[:-1]
        assert set(tokens[corpus.row_fill[row] :].tolist()) <= {PAD}
    return found


@pytest.mark.parametrize("packing", [{}, BEST_FIT], ids=["concat", "best_fit"])
def test_boundaries_part_the_rows_into_the_documents(tmp_path: Path, base: Artifact, packing: dict[str, Any]) -> None:
    file = tmp_path / "d.jsonl"
    texts = [f"{at}:" + "x" * (at * 7 % 190) for at in range(200)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = config(
        {"d": 1},
        {"d": {"files": ["x"], "domain": "web"}},
        rows=400,
        heldout=1e-9,
        packing=packing,
        files={"d": [str(file)]},
    )
    result, corpus = build(tmp_path / "c", base, cfg)
    told = result.metrics["sources"]["d"]
    assert corpus.manifest["tokens"] + corpus.manifest["padding"] == 400 * 64
    assert (told["tokens"], told["padding"]) == (corpus.manifest["tokens"], corpus.manifest["padding"])
    spelt = pieces(corpus, "d")
    assert sum(len(text) for _, text in spelt) == told["tokens"]
    kept = {(text + "$").encode() for text in texts if len(text) + 1 >= packing.get("min_tokens", 0)}
    if packing:
        whole = {text for on, text in spelt if not on and text.endswith(b"$")}
        assert whole == {text for text in kept if len(text) <= 64}
        parts = [text for on, text in spelt if on]
        assert parts
        assert all(any(text in long for long in kept if len(long) > 64) for text in parts)
        assert told["repeated_tokens"] == 8 * len(parts)
        assert told["short_documents"] == len(texts) - len(kept) > 0
        assert 0 < told["padding"] < 0.1 * 400 * 64
        assert corpus.masked
        assert np.array_equal(corpus.loss_mask(3, 90), np.arange(64) < corpus.row_fill[3:90, None])
        assert 0 < told["padding"] == (~corpus.loss_mask(0, 400)).sum()
    else:
        assert told["padding"] == told["repeated_tokens"] == told["short_documents"] == 0
        assert not corpus.masked
        joined = b"".join((b"" if on else b"|") + text for on, text in spelt)
        assert set(joined.split(b"|")[1:-1]) <= kept
        assert told["split_documents"] == sum(on for on, _ in spelt) + (not spelt[-1][1].endswith(b"$")) - sum(
            on and not text.endswith(b"$") for on, text in spelt
        )
    assert told["epochs"] > 1


def test_shares_are_of_tokens_where_rows_are_padded(tmp_path: Path, base: Artifact) -> None:
    """Documents of 40 tokens fill 40 places of 64, those of 64 all: the shares hold all the same."""
    for name, length in (("short", 39), ("long", 63)):
        texts = (f"{at:05d}".ljust(length, ".") for at in range(400))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = {name: {"files": ["x"], "domain": name} for name in ("short", "long")}
    files = {name: [str(tmp_path / f"{name}.jsonl")] for name in sources}
    cfg = config({"short": 1, "long": 1}, sources, rows=500, packing={"method": "best_fit", "window": 64}, files=files)
    result, corpus = build(tmp_path / "c", base, cfg)
    told = result.metrics["sources"]
    assert told["short"]["share"] == pytest.approx(0.5, abs=0.001)
    assert told["short"]["rows"] == pytest.approx(500 * 64 / 104, abs=1)
    counts = np.cumsum(corpus.row_source[:, None] == np.arange(2), axis=0)
    tokens = counts * np.array([40, 64])
    assert np.abs(tokens[:, 0] - tokens.sum(axis=1) / 2).max() < 64


def test_no_source_of_padded_rows_strays_by_more_than_a_row(tmp_path: Path, base: Artifact) -> None:
    """From the first row on, of the tokens on disk; ``ahead``, which the page shows, says the same."""
    rng, files = np.random.default_rng(0), {}
    weights = {"a": 5, "b": 1, "c": 1, "d": 0.3, "e": 0.2}
    for name, most in zip(weights, (120, 40, 9, 63, 35), strict=True):
        lengths = rng.integers(1, most, 300).tolist()
        texts = (f"{at:05d}".ljust(length, ".") for at, length in enumerate(lengths))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        files[name] = [str(tmp_path / f"{name}.jsonl")]
    sources = {name: {"files": ["x"], "domain": "web"} for name in weights}
    packing = {"method": "best_fit", "window": 20}
    _, corpus = build(tmp_path / "c", base, config(weights, sources, rows=600, packing=packing, files=files))
    fill = corpus.row_fill.astype(np.int64)
    tokens = np.cumsum((corpus.row_source[:, None] == np.arange(5)) * fill[:, None], axis=0)
    shares = np.array(list(weights.values())) / sum(weights.values())
    astray = np.abs(tokens - shares * tokens.sum(axis=1, keepdims=True))
    assert 20 < astray.max() <= 64
    assert ahead(corpus)["most"] == pytest.approx(dict(zip(weights, astray.max(axis=0) / 64, strict=True)))


def test_only_answers_are_learned_where_that_is_asked_for(tmp_path: Path, base: Artifact) -> None:
    pairs = [(f"What is {at} times {at}?", f"It is {at * at}.") for at in range(60)]
    file = tmp_path / "qa.jsonl"
    file.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in pairs))
    asked = {"files": ["x"], "domain": "math", "fields": {"question": "q", "answer": "a"}, "loss": "answer"}
    files = {"qa": [str(file)]}
    for packing in ({}, {"method": "best_fit", "window": 50}):
        cfg = config({"qa": 1, "sums": 1}, {"qa": asked, "sums": TWO["sums"]}, rows=40, packing=packing, files=files)
        _, corpus = build(tmp_path / f"c{len(packing)}", base, cfg)
        assert corpus.masked
        answers = set()
        for row in range(40):
            tokens, learned = corpus.tokens(row, row + 1)[0], corpus.loss_mask(row, row + 1)[0]
            if corpus.row_domain(row) == "math" and corpus.row_source[row] == corpus.sources.index("sums"):
                assert learned[: corpus.row_fill[row]].all()
                continue
            # Between two prompts, or the row's ends, stands a whole answer with its end, or a part of one.
            edges = np.flatnonzero(np.diff(np.concatenate([[False], learned, [False]]).astype(int)))
            for start, stop in edges.reshape(-1, 2):
                ids = tokens[start:stop].tolist()
                if start and ids[-1] == EOS:
                    answers.add(bytes(ids[:-1]).decode())
                assert tokens[start - 1] == ord("\n") or start == 0
        assert len(answers) > 20
        assert answers <= {a for _, a in pairs}
        files_there = {path.name for path in (tmp_path / f"c{len(packing)}").iterdir()}
        assert "mask-00000.bin" in files_there
        corpus.verify()


def test_a_budget_too_large_for_a_known_size_is_refused_before_anything_is_read(tmp_path: Path, base: Artifact) -> None:
    cfg = config(
        {"gone": 1, "sums": 1},
        {"gone": {"files": ["x"], "domain": "web"}, "sums": TWO["sums"]},
        files={"gone": [str(tmp_path / "not-there.jsonl")]},
        tokens_in_source={"gone": 1000.0},
        max_epochs=1.9,
    )
    with pytest.raises(DataError, match=r"'gone' has 1,000 tokens .* 1,920 are needed: 1\.92 epochs, but 'max_epochs'"):
        run(cfg, {"tokenizer": base}, tmp_path, Silent())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="not-there"):
        run(cfg | {"max_epochs": 1.92}, {"tokenizer": base}, tmp_path, Silent())


def test_the_scratch_folder_of_the_runner_is_used_and_left_to_it(tmp_path: Path, base: Artifact) -> None:
    cfg = config({"web": 1}, TWO, rows=10) | {"scratch": str(tmp_path / "scratch")}
    build(tmp_path / "c", base, cfg)
    assert (tmp_path / "scratch" / "sources" / "web" / "part-00000.tok").is_file()
    assert not (tmp_path / "c" / "scratch").exists()
