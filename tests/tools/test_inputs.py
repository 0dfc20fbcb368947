"""Which texts a command takes from which files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismlab.errors import DataError, SpecError
from prismlab.tools.inputs import choose, default_sets, file_texts, read_sets


def test_the_same_text_in_every_form(tmp_path: Path) -> None:
    texts = ["one", "zwei Wörter", "three\ttabs"]
    rows = "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts)
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n".join(texts))
    (tmp_path / "b.TXT.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    (tmp_path / "c.jsonl").write_text(rows)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    pq.write_table(pa.table({"body": texts}), tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(file_texts(path, "body")) == texts, path.name


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"other": 1}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "\\ud800"}\n')
    (tmp_path / "d.txt").write_bytes(b"ok\n\xff\n")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"text\n" * 1000)[:-20])
    for name, words in (
        ("none.txt", "no such file"),
        ("a.csv", r"read from \.txt, \.txt\.gz, .*convert it"),
        ("b.jsonl", r"b\.jsonl:2: no field 'text'.*other"),
        ("c.jsonl", "surrogate"),
        ("d.txt", r"d\.txt:2: not UTF-8"),
        ("e.txt.gz", "broken"),
    ):
        with pytest.raises(DataError, match=words):
            list(file_texts(tmp_path / name, "text"))


def test_a_choice_is_the_seeds_and_hardly_the_files() -> None:
    texts = [f"text {k}" for k in range(500)]
    found = choose([*texts, "", "  ", texts[3]], 50, 0, "s", "file")
    assert (found.found, found.blank, found.repeated, len(found.texts)) == (500, 2, 1, 50)
    assert found.texts == sorted(found.texts, key=texts.index)
    assert set(choose(reversed(texts), 50, 0, "s", "file").texts) == set(found.texts)
    assert set(choose(texts, 50, 1, "s", "file").texts) != set(found.texts)
    assert len(set(choose([*texts, *(f"more {k}" for k in range(50))], 50, 0, "s", "f").texts) & set(found.texts)) > 35
    assert choose(texts[:7], 50, 0, "s", "file").texts == texts[:7]
    # 500 texts, 50 taken under each of 200 seeds: every one is taken about 20 times.
    counts = dict.fromkeys(texts, 0)
    for seed in range(200):
        for text in choose(texts, 50, seed, "s", "f").texts:
            counts[text] += 1
    assert 3 < min(counts.values()) < max(counts.values()) < 45


def test_sets_are_named_after_their_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "My Notes!.txt", tmp_path / "other/my notes?.txt", tmp_path / "x.jsonl.gz"]
    for path in paths[:2]:
        path.write_text("a\nb\nc\nd\n")
    paths[2].write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n{"text": "d"}\n'))
    found = read_sets(paths, "text", 3, 0, 3)
    assert [one.name for one in found] == ["my_notes_", "my_notes_-2", "x"]
    assert found[0].texts == found[1].texts == found[2].texts
    with pytest.raises(DataError, match=r"4 texts.*5 or more"):
        read_sets(paths, "text", 10, 0, 5)
    with pytest.raises(SpecError, match="named twice"):
        read_sets([paths[0], tmp_path / "other/../My Notes!.txt"], "text", 3, 0, 3)


def test_defaults_are_real_text() -> None:
    web, code = default_sets(30, 0)
    assert (web.name, code.name) == ("web", "code")
    assert len(set(web.texts)) == len(set(code.texts)) == 30
    assert sum("self" in text or "def " in text for text in code.texts) > 10
    assert all(len(text) >= 80 for text in (*web.texts, *code.texts))
