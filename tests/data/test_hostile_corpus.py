"""Corpora whose manifest or index lies: refused at once, or by ``verify``, never read as if nothing were wrong."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismlab.data.corpus import MAX_MANIFEST, Corpus, write_corpus
from prismlab.data.inspect import ahead
from prismlab.errors import DataError


def corpus(path: Path, **more: Any) -> Path:
    """Five rows of four tokens, of two sources."""
    path.mkdir()
    tokens = np.arange(20).reshape(5, 4) + 10
    chosen = np.array([0, 1, 0, 1, 0], np.uint16)
    sources = [{"name": "a", "domain": "web", **more}, {"name": "b", "domain": "math", **more}]
    blocks = ((at, [tokens[chosen == at]]) for at in range(2))
    named = {"seq_len": 4, "vocab": 300, "tokenizer_hash": "t"}
    write_corpus(path, row_source=chosen, blocks=blocks, sources=sources, **named)
    return path


LIES: list[tuple[dict[str, Any], str]] = [
    ({"rows": -1}, "'rows'"),
    ({"rows": True}, "'rows'"),
    ({"rows": "5"}, "'rows'"),
    ({"rows": 10**12, "tokens": 4 * 10**12}, "'rows'"),
    ({"rows": 6, "tokens": 24}, "tokens-00000.bin"),
    ({"seq_len": 0}, "'seq_len'"),
    ({"seq_len": -4}, "'seq_len'"),
    ({"seq_len": "4"}, "'seq_len'"),
    ({"seq_len": 3, "tokens": 15}, "tokens-00000.bin"),
    ({"seq_len": 2**40, "tokens": 5 * 2**40}, "tokens-00000.bin"),
    ({"vocab": 0}, "'vocab'"),
    ({"vocab": 2.5}, "'vocab'"),
    ({"vocab": 2**20}, "'dtype'"),
    ({"dtype": "uint32"}, "'dtype'"),
    ({"dtype": ["uint16"]}, "broken at"),
    ({"tokens": 19}, "'tokens'"),
    ({"tokens": 19, "padding": 1}, "20 tokens, at most 4 a row, where the manifest has 19"),
    ({"padding": "x"}, "'padding'"),
    ({"masked": "no"}, "'masked'"),
    ({"masked": True}, "mask-00000.bin"),
    ({"shard_rows": 2}, "broken at"),
    ({"tokenizer": None}, "'tokenizer'"),
    ({"stream": 5}, "'stream'"),
    ({"pad": 300}, "'pad'"),
    ({"packing": 5}, "'packing'"),
    ({"sources": [5, 5]}, "broken at"),
    ({"sources": [{"name": "a"}, {"name": "b"}]}, "'domain'"),
    ({"sources": [{"name": "a", "domain": 5}, {"name": "b", "domain": "web"}]}, "'sources'"),
    ({"sources": [{"name": "a", "domain": "web", "weight": "much"}] * 2}, "'sources'"),
    ({"files": {"../x": {"bytes": 1}}}, "broken at"),
]


@pytest.mark.parametrize(("lie", "message"), LIES, ids=[str(lie)[:40] for lie, _ in LIES])
def test_a_manifest_that_lies_is_refused_at_once(lie: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = corpus(tmp_path / "c")
    Corpus.open(path).verify()
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | lie))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            Corpus.open(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "nothing is made of the size that it tells"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key", ["rows", "tokens", "stream", "vocab", "padding", "masked", "tokenizer", "sources"])
def test_a_manifest_without_a_key_is_refused(key: str, tmp_path: Path) -> None:
    path = corpus(tmp_path / "c")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[key]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"manifest\.json: broken at '{key}'"):
        Corpus.open(path)


@pytest.mark.parametrize("lie", [{"vocab": 29}, {"stream": "0" * 32}])
def test_what_only_the_tokens_tell_is_found_by_verify(lie: dict[str, Any], tmp_path: Path) -> None:
    path = corpus(tmp_path / "c")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | lie))
    found = Corpus.open(path)
    with pytest.raises(DataError, match=r"manifest\.json: not what was written \('stream' or 'vocab'"):
        found.verify()


def longer(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(MAX_MANIFEST + 1)


PLACES: dict[str, Callable[[Path], Any]] = {"a pipe": os.mkfifo, "a folder": Path.mkdir}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("name", ["manifest.json", "row_fill.npy", "tokens-00000.bin"])
def test_what_is_no_file_is_not_waited_for(what: str, name: str, tmp_path: Path) -> None:
    path = corpus(tmp_path / "c")
    (path / name).unlink()
    PLACES[what](path / name)
    with pytest.raises(DataError, match=r"no manifest\.json|0 bytes, its manifest states"):
        Corpus.open(path)


def test_a_manifest_beyond_all_bounds_is_not_read(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c")
    longer(path / "manifest.json")
    with pytest.raises(DataError, match="too long for a manifest"):
        Corpus.open(path)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c")
    starts = np.load(path / "row_starts.npy")
    for wrong in (starts + 1, np.append(starts[:-1], starts[-1] + 7)):
        np.save(path / "row_starts.npy", wrong)
        with pytest.raises(DataError, match=r"row_starts\.npy: does not fit the documents"):
            Corpus.open(path)
    np.save(path / "row_starts.npy", starts)
    np.save(path / "row_fill.npy", np.array([4, 4, 5, 3, 4], np.uint32))
    with pytest.raises(DataError, match="20 tokens, at most 5 a row"):
        Corpus.open(path)


def test_a_source_without_its_share_is_told_where_shares_are_measured(tmp_path: Path) -> None:
    assert ahead(Corpus.open(corpus(tmp_path / "c", weight=0.5)))["most"]["a"] > 0
    with pytest.raises(DataError, match="source 'a' has no 'weight'"):
        ahead(Corpus.open(corpus(tmp_path / "d")))
