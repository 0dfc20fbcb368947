from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismlab.data.corpus import Corpus, token_dtype, write_corpus
from prismlab.errors import DataError

ROW_SOURCE = np.array([1, 0, 1, 1])
SOURCES = [{"name": "web", "domain": "web"}, {"name": "sums", "domain": "math"}]


def blocks(vocab: int = 300) -> list[tuple[int, list[np.ndarray]]]:
    ones = np.arange(9).reshape(3, 3) + 10
    return [(0, [np.full((1, 3), vocab - 1)]), (1, [ones[:2], ones[2:]])]


def write(path: Path, vocab: int = 300, **changed: Any) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    given: dict[str, Any] = {
        "row_source": ROW_SOURCE,
        "blocks": blocks(vocab),
        "sources": SOURCES,
        "seq_len": 3,
        "vocab": vocab,
        "tokenizer_hash": "abc",
    }
    return write_corpus(path, **(given | changed))


@pytest.mark.parametrize(("vocab", "size"), [(300, 2), (65_535, 2), (65_536, 4), (200_000, 4)])
def test_what_is_written_is_read_in_training_order(tmp_path: Path, vocab: int, size: int) -> None:
    write(tmp_path / "c", vocab)
    corpus = Corpus.open(tmp_path / "c")
    assert (corpus.n_rows, corpus.seq_len, corpus.vocab, corpus.tokenizer_hash) == (4, 3, vocab, "abc")
    assert (corpus.sources, corpus.domains) == (["web", "sums"], ["web", "math"])
    wanted = [[10, 11, 12], [vocab - 1] * 3, [13, 14, 15], [16, 17, 18]]
    tokens = corpus.tokens(0, 4)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == wanted
    assert corpus.tokens(1, 3).tolist() == wanted[1:3]
    assert corpus.row_domains(0, 4) == ["math", "web", "math", "math"]
    assert corpus.row_domain(1) == "web"
    assert (tmp_path / "c" / "tokens.bin").stat().st_size == 12 * size == 12 * token_dtype(vocab).itemsize
    tokens[:] = 0
    assert corpus.tokens(0, 1).tolist() == wanted[:1], "what is read is a copy"


def test_stream_hash_tells_one_changed_bit(tmp_path: Path) -> None:
    manifest = write(tmp_path / "c")
    assert Corpus.open(tmp_path / "c").stream_hash() == manifest["stream"]
    data = bytearray((tmp_path / "c" / "tokens.bin").read_bytes())
    data[7] ^= 1
    (tmp_path / "c" / "tokens.bin").write_bytes(data)
    assert Corpus.open(tmp_path / "c").stream_hash() != manifest["stream"]


def test_rows_beyond_the_end_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    for start, stop in ((0, 5), (-1, 2), (3, 2)):
        with pytest.raises(DataError, match="the corpus has 4"):
            corpus.tokens(start, stop)
        with pytest.raises(DataError, match="the corpus has 4"):
            corpus.row_domains(start, stop)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(DataError, match="not a corpus"):
        Corpus.open(path)
    write(path)
    whole = (path / "tokens.bin").read_bytes()
    (path / "tokens.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="23 bytes, its manifest states 24"):
        Corpus.open(path)
    (path / "tokens.bin").unlink()
    with pytest.raises(DataError, match="0 bytes"):
        Corpus.open(path)
    (path / "tokens.bin").write_bytes(whole)
    np.save(path / "row_source.npy", np.array([0, 1, 2, 0], np.uint16))
    with pytest.raises(DataError, match="does not fit"):
        Corpus.open(path)
    np.save(path / "row_source.npy", np.array([0, 1, 0], np.uint16))
    with pytest.raises(DataError, match="does not fit"):
        Corpus.open(path)
    (path / "row_source.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="cannot be read"):
        Corpus.open(path)
    manifest = json.loads((path / "manifest.json").read_text())
    for change, message in (
        ({"schema": 9}, "not a manifest of schema 1"),
        ({"rows": None}, "broken"),
        ({"dtype": "int7"}, "broken"),
    ):
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(DataError, match=message):
            Corpus.open(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Corpus.open(path)


def test_wrong_rows_are_refused_when_writing(tmp_path: Path) -> None:
    web, sums = blocks()
    with pytest.raises(DataError, match="'sums': more rows than the 3"):
        write(tmp_path / "a", blocks=[web, (1, [*sums[1], np.zeros((1, 3))])])
    with pytest.raises(DataError, match="'sums': 2 rows, its schedule has 3"):
        write(tmp_path / "b", blocks=[web, (1, sums[1][:1])])
    with pytest.raises(DataError, match="4 rows are scheduled, 1 were filled"):
        write(tmp_path / "c", blocks=[web])
    with pytest.raises(DataError, match="'web': token id 300, the vocabulary has 300"):
        write(tmp_path / "d", blocks=[(0, [np.full((1, 3), 300)]), sums])
    for folder in "abcd":
        with pytest.raises(DataError):
            Corpus.open(tmp_path / folder)
