from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismlab.data import rows as rows_module
from prismlab.data.sources import Counts, documents, heldout_texts, is_heldout, text_documents
from prismlab.errors import DataError, MissingExtra
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

MICRO = MicroSpec(documents=500).model_dump(mode="json")
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data files are not beside the repository")


def spec(**values: Any) -> dict[str, Any]:
    if "micro" not in values:
        values.setdefault("domain", "web")
    return SourceSpec.model_validate(values).model_dump(mode="json", by_alias=True)


def read(spec_json: dict[str, Any], *files: Path, seed: int = 0, counts: Counts | None = None) -> list[str]:
    return list(documents("s", spec_json, MICRO, files or None, "think", seed, counts))


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_plain_compressed_and_parquet_hold_the_same(tmp_path: Path) -> None:
    rows = [{"text": f"document {at} – ü"} for at in range(50)]
    plain = write_jsonl(tmp_path / "a.jsonl", *rows)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    wanted = sorted(row["text"] for row in rows)
    for file in (plain, packed, tmp_path / "a.parquet"):
        found = read(spec(files=["x"]), file)
        assert sorted(found) == wanted
        assert found != wanted, "the order is a permutation by seed"
        assert found == read(spec(files=["x"]), file)
        assert found != read(spec(files=["x"]), file, seed=1)


def test_question_answer_choices_and_messages(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "q.jsonl", {"q": "Why?", "a": "So.", "c": ["no", "yes", "so"], "g": 1})
    assert read(spec(files=["x"], fields={"question": "q", "answer": "a"}), file) == ["Why?\nSo."]
    assert read(spec(files=["x"], fields={"question": "q", "answer": "g"}), file) == ["Why?\n1"]
    chosen = spec(files=["x"], fields={"question": "q", "answer": "g", "choices": "c"})
    assert read(chosen, file) == ["Why?\nA. no\nB. yes\nC. so\nB"]
    chat = write_jsonl(
        tmp_path / "m.jsonl", {"m": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello "}]}
    )
    assert read(spec(files=["x"], fields={"messages": "m"}), chat) == ["User: Hi\nAssistant: Hello"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"bad\.jsonl:3: no field 'text'; the fields are body"),
        ("{broken", r"bad\.jsonl:3: not JSON"),
        ('["a"]', r"bad\.jsonl:3: a list"),
        ('{"text": null}', r"bad\.jsonl:3: field 'text' is null"),
        ('{"text": ["a"]}', r"bad\.jsonl:3: field 'text' is a list"),
        ('{"text": true}', r"bad\.jsonl:3: field 'text' is a bool"),
        (r'{"text": "a\ud800b"}', r"bad\.jsonl:3: character 2 is half a surrogate pair"),
        ("[" * 100_000, r"bad\.jsonl:3: not JSON"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(spec(files=["x"]), file)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "?", "c": ["a", "b"], "g": 2}, "index 2"),
        ({"q": "?", "c": ["a", "b"], "g": -1}, "index -1"),
        ({"q": "?", "c": ["a", "b"], "g": "c"}, "neither an index"),
        ({"q": "?", "c": ["a", "b"], "g": True}, "neither an index"),
        ({"q": "?", "c": "ab", "g": 0}, "list of texts"),
        ({"q": "?", "c": ["a"], "g": 0}, "1 choices"),
        ({"c": ["a", "b"], "g": 0}, "no field 'q'; the fields are c, g"),
    ],
)
def test_bad_choices_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = write_jsonl(tmp_path / "c.jsonl", row)
    with pytest.raises(DataError, match=message):
        read(spec(files=["x"], fields={"question": "q", "answer": "g", "choices": "c"}), file)


def test_bad_messages_are_named(tmp_path: Path) -> None:
    for messages, message in (
        ("text", "must be a list"),
        ([{"role": "user"}], "needs 'role' and 'content'"),
        ([{"role": "judge", "content": "x"}], "role 'judge' is not known"),
    ):
        file = write_jsonl(tmp_path / "m.jsonl", {"m": messages})
        with pytest.raises(DataError, match=rf"m\.jsonl:1: .*{message}"):
            read(spec(files=["x"], fields={"messages": "m"}), file)


def test_broken_files_are_named(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", *({"text": "x" * 100} for _ in range(2000)))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(good.read_bytes())[:-60])
    (tmp_path / "not.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    (tmp_path / "a.csv").write_text("text\nx\n")
    for name, message in (
        ("cut.jsonl.gz", "broken after line"),
        ("not.parquet", "not a readable Parquet file"),
        ("latin.jsonl", r"latin\.jsonl:2: not UTF-8"),
        ("a.csv", "rows are read from"),
        ("gone.jsonl", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            read(spec(files=["x"]), tmp_path / name)
    with pytest.raises(DataError, match="source 's': no file was found"):
        read(spec(files=["x"]))


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", {"text": "a"}, {"text": " \n"}, {"text": ""}, {"text": "b"})
    counts = Counts()
    assert sorted(read(spec(files=["x"]), file, counts=counts)) == ["a", "b"]
    assert counts.empty == 2


def test_max_documents_takes_the_same_ones_whatever_the_seed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", *({"text": str(at)} for at in range(30)))
    for seed in (0, 1):
        assert set(read(spec(files=["x"], max_documents=5), file, seed=seed)) == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("one\ntwo\n\n \nthree\n", ["one\ntwo", "three"]),
        (
            " = A = \ntext\n = = Part = = \nmore\n = B = \nend\n",
            [" = A = \ntext\n = = Part = = \nmore", " = B = \nend"],
        ),
        ("preface\n = A = \ntext", ["preface", " = A = \ntext"]),
        ("one\ntwo\n", ["one", "two"]),
        ("a = b = c\nx == y\n", ["a = b = c", "x == y"]),
        ("one\r\n\r\ntwo\r\n", ["one", "two"]),
        ("\ufeffone\n\ntwo", ["one", "two"]),
        ("", []),
    ],
)
def test_text_files(tmp_path: Path, content: str, wanted: list[str]) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.TXT.gz"
    plain.write_bytes(content.encode())
    packed.write_bytes(gzip.compress(content.encode()))
    assert list(text_documents(plain)) == wanted
    assert list(text_documents(packed)) == wanted


@pytest.mark.parametrize("domain", ["web", "code-text", "chat", "math", "code", "science"])
def test_micro_sources(domain: str) -> None:
    micro = spec(micro={"domain": domain, "form": "worked" if domain in ("math", "code", "science") else "direct"})
    found = read(micro)
    assert found == read(micro)
    assert found != read(micro, seed=1)
    assert len(set(found)) == len(found)
    if domain in ("math", "code", "science"):
        assert len(found) == 500
        assert all(text.split("\n")[1].startswith("<think> ") and " </think> " in text for text in found)
    else:
        assert set(found) == set(read(micro, seed=1))
    if domain == "chat":
        assert all(text.startswith("User: ") and "\nAssistant: " in text for text in found)


def test_micro_direct_forms_and_facts() -> None:
    one = read(spec(micro={"domain": "math", "form": "direct"}))[0]
    question, answer = one.split("\n")
    a, b = question.removeprefix("Add ").removesuffix("=?").split("+")
    assert int(answer) == int(a) + int(b)
    assert len(read(spec(micro={"domain": "science", "form": "facts"}))) == 500


def test_heldout_is_the_hash_of_the_text() -> None:
    text = "a document"
    rank = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    assert is_heldout(text, rank + 1e-9)
    assert not is_heldout(text, rank - 1e-9)
    held = sum(is_heldout(str(at), 0.1) for at in range(20_000))
    assert abs(held - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_heldout_texts_are_the_smallest_hashes_and_no_others(tmp_path: Path) -> None:
    texts = [f"text {at}" for at in range(400)]
    file = write_jsonl(tmp_path / "a.jsonl", *({"text": text} for text in [*texts, texts[0]]))
    wanted = sorted(
        (text for text in texts if is_heldout(text, 0.1)),
        key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest(),
    )
    source = spec(files=["x"])
    assert heldout_texts("a", source, MICRO, [file], "think", 0.1, 1000) == wanted
    assert heldout_texts("b", source, MICRO, [str(file)], "think", 0.1, 7) == wanted[:7]
    with pytest.raises(DataError, match="none of its 401 documents is held out"):
        heldout_texts("a", source, MICRO, [file], "think", 1e-9, 5)


def test_the_hub_is_streamed_and_failures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    hub = spec(hub={"id": "owner/name", "revision": "abc"}, max_documents=3)
    asked: dict[str, Any] = {}

    def load_dataset(name: str, config: Any, **options: Any) -> Any:
        asked.update(options, name=name)
        return iter([{"text": "one"}, {"text": ""}, {"text": "two"}, {"text": "three"}, {"text": "four"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert sorted(read(hub)) == ["one", "three", "two"]
    assert asked == {"name": "owner/name", "split": "train", "revision": "abc", "streaming": True}

    def unreachable(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'owner/name' \(revision abc, split train\) cannot be read: no network"):
        read(hub)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"prismlab\[hub\]"):
        list(rows_module.hub_rows(hub["hub"]))


@needs_shared
@pytest.mark.parametrize(
    ("file", "fields", "count", "start"),
    [
        ("math/gsm8k_train.jsonl.gz", {"question": "question", "answer": "answer"}, 7473, None),
        (
            "science/arc_easy_train.jsonl",
            {"question": "query", "answer": "gold", "choices": "choices"},
            2251,
            "Question:",
        ),
        ("code/mbpp.jsonl", {"question": "text", "answer": "code"}, 724, None),
        ("chat/oasst1_en_validation.jsonl.gz", {"text": "text"}, 2022, None),
        ("text/python_peps.jsonl.gz", {"text": "text"}, 597, "PEP: "),
        # 39 articles; one of them has two lines of formula that look like titles.
        ("text/wikitext2_test_raw_part.txt.gz", None, 41, " = "),
        ("text/wikipedia_30_articles.txt.gz", None, 30, None),
    ],
)
def test_real_files(file: str, fields: dict[str, str] | None, count: int, start: str | None) -> None:
    found = read(spec(files=["x"], fields=fields), SHARED / file)
    assert len(found) == count
    if start is not None:
        assert sum(document.startswith(start) for document in found) > 0.95 * count
