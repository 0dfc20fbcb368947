from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismlab.data import lines as lines_module
from prismlab.data.lines import MAX_LINE, Bad, lines
from prismlab.data.rows import BadRow, Row, file_rows, rows_or_bad
from prismlab.data.sources import texts_or_bad
from prismlab.errors import DataError

zstandard = pytest.importorskip("zstandard")
MIB = 2**20


def bad_ones(path: Path) -> list[tuple[int, str]]:
    return [(one.line, one.reason) for one in rows_or_bad(path) if isinstance(one, Bad)]


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


CONTENT = "".join(json.dumps({"text": f"line {at} – ü" * (at % 7)}) + "\n" for at in range(3000)).encode()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.JSONL.GZ", lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])),
        ("a.jsonl.zst", lambda data: zstandard.compress(data)),
        # Frames of their own, one of them empty, as parallel compressors write them; and one without a stated size.
        (
            "b.jsonl.zst",
            lambda data: zstandard.compress(data[:1000]) + zstandard.compress(b"") + zstandard.compress(data[1000:]),
        ),
        ("c.jsonl.zst", lambda data: _streamed_zstd(data)),
    ],
)
def test_all_kinds_of_files_hold_the_same_lines(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(CONTENT))
    found = list(lines(tmp_path / name))
    assert found == list(enumerate(CONTENT.decode().splitlines(), 1))
    assert [row.where for row in file_rows(tmp_path / name)][-1] == f"{name}:3000"


def _streamed_zstd(data: bytes) -> bytes:
    target = io.BytesIO()
    with zstandard.ZstdCompressor(write_content_size=False).stream_writer(target, closefd=False) as writer:
        for at in range(0, len(data), 777):
            writer.write(data[at : at + 777])
    return target.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.zst"])
@pytest.mark.parametrize("cut", [1, 2000])
def test_a_compressed_file_that_ends_early_or_is_damaged_is_an_error(tmp_path: Path, name: str, cut: int) -> None:
    random = np.random.default_rng(0).integers(97, 123, 50_000).astype(np.uint8).tobytes()
    data = b'{"text": "' + random + b'"}\n'
    packed = gzip.compress(data) if name.endswith(".gz") else zstandard.compress(data)
    (tmp_path / name).write_bytes(packed[:-cut])
    read = texts_or_bad if ".txt" in name else rows_or_bad
    with pytest.raises(DataError, match=rf"{name}: broken after line \d: "):
        list(read(tmp_path / name))
    (tmp_path / name).write_bytes(b"\x00\x01 no such format")
    with pytest.raises(DataError, match="broken after line 0"):
        list(read(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_of_64_mb_is_refused_by_number_and_never_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=0) if name.endswith(".gz") else path.open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(64):
            # Noise, so that it is no bomb.
            file.write(np.random.default_rng(1).integers(97, 123, MIB).astype(np.uint8).tobytes())
        file.write(b'"}\n{"text": "last"}\n')
    found: list[Any] = []
    assert peak_of(lambda: found.extend(rows_or_bad(tmp_path / name))) < 3 * MAX_LINE
    assert [one.where if isinstance(one, Row) else (one.line, one.reason) for one in found] == [
        f"{name}:1",
        (2, "line too long"),
        f"{name}:3",
    ]
    assert len(found[1].excerpt) < 200


def test_the_longest_line_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 10)
    (tmp_path / "a.jsonl").write_bytes(b"a" * 10 + b"\n" + b"b" * 11 + b"\n" + b"c" * 10)
    found = list(lines(tmp_path / "a.jsonl"))
    assert found[0] == (1, "a" * 10)
    assert isinstance(found[1], Bad)
    assert found[2] == (3, "c" * 10)


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("line", [b"0" * MIB, (b"0" * 65535 + b"\n") * 16])
def test_bombs_are_refused_by_their_ratio_in_bounded_memory(tmp_path: Path, ending: str, line: bytes) -> None:
    path = tmp_path / f"bomb.jsonl.{ending}"
    if ending == "gz":
        with gzip.open(path, "wb", compresslevel=6) as file:
            for _ in range(96):
                file.write(line)
    else:
        with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
            for _ in range(96):
                file.write(line)
    assert path.stat().st_size < MIB

    def read() -> None:
        with pytest.raises(DataError, match=r"bomb\.jsonl\.\w+: gives \d+ times its own size"):
            deque(lines(path), maxlen=0)

    assert peak_of(read) < 100 * MIB


def test_text_that_compresses_well_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "RATIO_FROM", MIB)
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        for at in range(2000):
            file.write(f"{at} {'the same words again and again ' * 60}\n".encode())
    assert sum(1 for _ in lines(tmp_path / "a.txt.gz")) == 2000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b"null", "not an object"),
        (b'"text"', "not an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"text": "\xff\xfe"}', "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b'{"text": "a", "text": "b"}', "a key twice"),
        (b'{"text": "a", "m": [{"x": 1, "x": 2}]}', "a key twice"),
    ],
)
def test_what_is_no_row_is_told_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "good"}\r\n\n' + line + b'\n{"text": "end"}')
    assert bad_ones(path) == [(3, reason)]
    assert [one.values["text"] for one in rows_or_bad(path) if isinstance(one, Row)] == ["good", "end"]
    with pytest.raises(DataError, match=r"a\.jsonl:3: "):
        list(file_rows(path))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_no_text(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": {value}, "other": NaN}}\n', encoding="utf-8")
    (row,) = file_rows(tmp_path / "a.jsonl")
    with pytest.raises(BadRow, match=r"a\.jsonl:1: field 'text' is not a finite number"):
        row.text("text")
    pq.write_table(pa.table({"text": [float(value)]}), tmp_path / "a.parquet")
    (row,) = file_rows(tmp_path / "a.parquet")
    with pytest.raises(BadRow, match="not a finite number"):
        row.text("text")


def test_empty_files_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "c.jsonl.zst").write_bytes(b"")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(rows_or_bad(path)) == []


def test_a_parquet_file_with_a_flipped_bit_is_an_error_or_reads_the_same(tmp_path: Path) -> None:
    rows = [{"text": f"document {at} " * 20} for at in range(300)]
    # With page checksums, as cleaned documents have them: without, damage within a page's text would go unseen.
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="zstd", write_page_checksum=True)
    whole = (tmp_path / "a.parquet").read_bytes()
    seen: list[str] = []
    for at in range(5, len(whole), max(1, len(whole) // 40)):
        broken = bytearray(whole)
        broken[at] ^= 4
        (tmp_path / "b.parquet").write_bytes(bytes(broken))
        try:
            found = [row.values for row in rows_or_bad(tmp_path / "b.parquet") if isinstance(row, Row)]
            assert found == rows
        except DataError as error:
            seen.append(str(error))
    assert len(seen) > 20
    assert all("b.parquet: not a readable Parquet file" in one for one in seen)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", {"b": 1}),
        ("a.b", 1),
        ("m.0.content", "hi"),
        ("j.truth", "4"),
        ("j.list.1", 8),
        ("x.y", "literal"),
    ],
)
def test_dots_go_into_a_field(name: str, value: object) -> None:
    held = {"a": {"b": 1}, "m": [{"content": "hi"}], "j": '{"truth": "4", "list": [7, 8]}', "x.y": "literal"}
    assert Row("f:1", held).field(name) == value


@pytest.mark.parametrize("name", ["b", "a.c", "m.1.content", "m.-1.content", "m.x", "j.no", "a.b.c", "t.x"])
def test_what_is_not_there_is_named(name: str) -> None:
    held = {"a": {"b": 1}, "m": [{"content": "hi"}], "j": '{"truth": "4"}', "t": "{not json", "\x1b[31mred": 0}
    with pytest.raises(BadRow) as raised:
        Row("f:1", held).field(name)
    assert str(raised.value).startswith(f"f:1: no field {name!r}; the fields are a, m, j, t, ")
    assert "\x1b" not in str(raised.value)


def test_text_files_part_by_the_same_rule_when_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\nthree\xff\nfour\n\nfive\n")
    found = list(texts_or_bad(path))
    assert [one.reason if isinstance(one, Bad) else (one.text, one.where) for one in found] == [
        ("one\ntwo", "a.txt:1"),
        "not UTF-8",
        ("four", "a.txt:5"),
        ("five", "a.txt:7"),
    ]
    monkeypatch.setattr("prismlab.data.sources.MAX_LINE", 12)
    path.write_text("short\n\nthis is too long\nmore of it\n\nend\n", encoding="utf-8")
    found = list(texts_or_bad(path))
    assert [one.reason if isinstance(one, Bad) else one.text for one in found] == ["short", "document too long", "end"]
    assert isinstance(found[1], Bad)
    assert found[1].line == 3
