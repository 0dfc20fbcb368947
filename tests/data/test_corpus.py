from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismlab.data.corpus import Corpus, rank_rows, token_dtype, write_corpus
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
    assert (tmp_path / "c" / "tokens-00000.bin").stat().st_size == 12 * size == 12 * token_dtype(vocab).itemsize
    assert corpus.loss_mask(0, 4).all()
    assert not corpus.masked
    assert corpus.row_fill.tolist() == [3] * 4
    assert corpus.boundaries(2).tolist() == [0]
    corpus.verify()
    tokens[:] = 0
    assert corpus.tokens(0, 1).tolist() == wanted[:1], "what is read is a copy"


def test_every_flipped_bit_is_found_and_its_file_named(tmp_path: Path) -> None:
    manifest = write(tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.stream_hash() == manifest["stream"]
    assert set(manifest["files"]) == {path.name for path in (tmp_path / "c").iterdir()} - {"manifest.json"}
    for name in manifest["files"]:
        whole = (tmp_path / "c" / name).read_bytes()
        (tmp_path / "c" / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        with pytest.raises(DataError, match=rf"{name}: not what was written"):
            corpus.verify()
        (tmp_path / "c" / name).write_bytes(whole)
    corpus.verify()


def test_shards_are_seams_that_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 2, 50)
    given = [(at, [rng.integers(0, 300, ((chosen == at).sum(), 3))]) for at in (0, 1)]
    whole = write(tmp_path / "whole", row_source=chosen, blocks=given)
    monkeypatch.setattr("prismlab.data.shards.SHARD_BYTES", 7 * 6)
    monkeypatch.setattr("prismlab.data.corpus.MAPPED", 2)
    manifest = write(tmp_path / "c", row_source=chosen, blocks=given)
    assert len([name for name in manifest["files"] if name.startswith("tokens")]) == 8
    assert manifest["stream"] == whole["stream"]
    one, other = Corpus.open(tmp_path / "whole"), Corpus.open(tmp_path / "c")
    assert other.stream_hash() == manifest["stream"]
    for start, stop in ((0, 50), (6, 8), (7, 7), (49, 50), (13, 29)):
        assert np.array_equal(one.tokens(start, stop), other.tokens(start, stop))
        assert one.row_domains(start, stop) == other.row_domains(start, stop)
    assert all(other.boundaries(row).tolist() == [0] for row in range(50))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_of_all_ranks_in_order_are_the_corpus(ranks: int) -> None:
    rows = [row for step in range(5) for rank in range(ranks) for row in rank_rows(step, 8, rank, ranks)]
    assert rows == list(range(40))


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="6 rows a step cannot be split over 4 processes"):
        rank_rows(0, 6, 0, 4)


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
    whole = (path / "tokens-00000.bin").read_bytes()
    (path / "tokens-00000.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="23 bytes, its manifest states 24"):
        Corpus.open(path)
    (path / "tokens-00000.bin").unlink()
    with pytest.raises(DataError, match="0 bytes"):
        Corpus.open(path)
    (path / "tokens-00000.bin").write_bytes(whole)
    index = (path / "row_source.npy").read_bytes()
    np.save(path / "row_source.npy", np.array([0, 1, 2, 0], np.uint16))
    with pytest.raises(DataError, match="does not fit"):
        Corpus.open(path)
    (path / "row_source.npy").write_bytes(index.replace(b"<u2", b"<i2"))
    with pytest.raises(DataError, match="does not fit"):
        Corpus.open(path)
    (path / "row_source.npy").write_bytes(b"x" * len(index))
    with pytest.raises(DataError, match="cannot be read"):
        Corpus.open(path)
    (path / "row_source.npy").write_bytes(index)
    manifest = json.loads((path / "manifest.json").read_text())
    for change, message in (
        ({"schema": 9}, "not a manifest of schema 2"),
        ({"schema": 1}, "not a manifest of schema 2"),
        ({"rows": None}, "broken"),
        ({"dtype": "int7"}, "broken"),
        ({"shard_rows": 0}, "broken"),
        ({"files": []}, "broken"),
        ({"files": {**manifest["files"], "../x": {"bytes": 1}}}, r"broken at '\.\./x'"),
    ):
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(DataError, match=message):
            Corpus.open(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        Corpus.open(path)


def test_wrong_rows_are_refused_when_writing(tmp_path: Path) -> None:
    web, sums = blocks()
    with pytest.raises(DataError, match="'sums': 4 rows, its schedule has 3"):
        write(tmp_path / "a", blocks=[web, (1, [*sums[1], np.zeros((1, 3))])])
    with pytest.raises(DataError, match="'sums': 2 rows, its schedule has 3"):
        write(tmp_path / "b", blocks=[web, (1, sums[1][:1])])
    with pytest.raises(DataError, match="'sums': 0 rows, its schedule has 3"):
        write(tmp_path / "c", blocks=[web])
    with pytest.raises(DataError, match="token id 300, the vocabulary has 300"):
        write(tmp_path / "d", blocks=[(0, [np.full((1, 3), 300)]), sums])
    for folder in "abcd":
        with pytest.raises(DataError):
            Corpus.open(tmp_path / folder)
