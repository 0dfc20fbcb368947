from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("datatrove")

from prismlab.data import cleaning, shard_blocks
from prismlab.data.clean import clean_source, run
from prismlab.data.executors import InProcess
from prismlab.data.recipe_list import RECIPES
from prismlab.data.shard_blocks import id_hash
from prismlab.data.sources import cleaned_documents, documents, heldout_texts
from prismlab.errors import DataError, MissingExtra
from prismlab.run.step import Silent
from prismlab.study.content import hash_file
from prismlab.study.spec import SourceSpec, TaskSpec
from prismlab.study.world import MicroSpec

HOSTILE = Path(__file__).parents[3] / "shared" / "data" / "hostile" / "sample.jsonl"
MICRO = MicroSpec(documents=64).model_dump(mode="json")
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "ru", "sa", "te", "vu", "zo") for b in ("ba", "di", "fo", "gu")]


def config(files: list[Path], more: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    if "micro" not in spec and "recipe" not in spec:
        spec.setdefault("domain", "web")
    if "micro" not in spec:
        spec["files"] = ["x"]
    source = SourceSpec.model_validate(spec).model_dump(mode="json", by_alias=True)
    common = {"source": "s", "sources": {"s": source}, "content": {}, "micro": MICRO, "template": "think", "seed": 3}
    return {**common, "files": {"s": [str(file) for file in files]}, "decontaminate": None, **(more or {})}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def sentence(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def kept(folder: Path) -> list[str]:
    return [document.text for document in cleaned_documents(folder)]


def dropped(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "dropped.parquet").to_pylist()


def balanced(metrics: Mapping[str, Any]) -> bool:
    """Nothing is lost without a reason."""
    lost = sum(metrics["bad"].values()) + sum(metrics["dropped"].values()) + metrics["empty"]
    return metrics["rows"] == lost + metrics["documents"]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task for each file, and shards of a few documents."""
    monkeypatch.setattr(cleaning, "PART_BYTES", 1)
    monkeypatch.setattr(shard_blocks, "SHARD_DOCUMENTS", 7)
    monkeypatch.setattr(shard_blocks, "BATCH_DOCUMENTS", 3)


def test_every_row_is_kept_or_has_a_reason(tmp_path: Path, small_parts: None) -> None:
    rows: list[Any] = [{"text": sentence(at), "score": at % 5, "id": f"d{at}"} for at in range(30)]
    rows[3] = "{broken"
    rows[4] = {"score": 4, "id": "no text"}
    rows[8] = {"text": "  ", "score": 4}
    rows[9] = {"text": "a\0b", "score": 4}
    rows[13] = {"text": "tiny", "score": 4}
    rows[14] = {"text": "x", "score": None}
    rows[19] = {"text": "\ufeffone\r\ntwo\rthree " + sentence(1), "score": 4}
    rows[24] = '{"text": "half \\ud800", "score": 4}'
    rows[29] = {"text": "\u202eabc " + sentence(2), "score": 4}
    asked = config([write(tmp_path / "a.jsonl", *rows)], filters={"at_least": {"score": 3}, "min_chars": 10})
    metrics = clean_source(asked, tmp_path / "w")
    assert balanced(metrics)
    assert metrics["rows"] == 30
    assert metrics["bad"] == {
        "a NUL character": 1,
        "field 'score' is a null, not to be compared": 1,
        "half a surrogate pair": 1,
        "no field 'text'": 1,
        "not JSON": 1,
    }
    assert metrics["empty"] == 1
    assert metrics["dropped"] == {"score is below 3.0": 18, "fewer than 10 characters": 1}
    assert (metrics["settled_documents"], metrics["bidi_documents"]) == (1, 1)
    found = list(cleaned_documents(tmp_path / "w"))
    texts = {one.where: one.text for one in found}
    assert texts["a.jsonl:20"] == "one\ntwo\nthree " + sentence(1)
    assert texts["a.jsonl:30"].startswith("\u202eabc ")
    assert [one.where for one in found] == sorted(texts, key=lambda where: int(where.rpartition(":")[2]))
    quarantine = [json.loads(line) for line in (tmp_path / "w" / "quarantine.jsonl").read_text("utf-8").splitlines()]
    assert [(one["file"], one["line"]) for one in quarantine] == [("a.jsonl", n) for n in (4, 5, 10, 15, 25)]
    examples = dropped(tmp_path / "w")
    assert {one["reason"] for one in examples} == set(metrics["dropped"])
    assert examples[0]["where"].startswith("a.jsonl:")
    assert sentence(0)[:40] in examples[0]["excerpt"]


@pytest.mark.parametrize("dedup", ["exact", "minhash"])
def test_of_copies_the_first_stays_across_files_and_shards(tmp_path: Path, small_parts: None, dedup: str) -> None:
    texts = [sentence(at) for at in range(40)]
    order = [*range(20), 5, 5, *range(10, 30), 0, *range(30, 40), 39, 7]
    files = [
        write(tmp_path / f"{name}.jsonl", *({"text": texts[at]} for at in order[begin : begin + 14]))
        for name, begin in zip("abcd", range(0, 56, 14), strict=True)
    ]
    metrics = clean_source(config(files, dedup=dedup), tmp_path / "w")
    assert kept(tmp_path / "w") == texts, "each text once, where it stood first"
    assert metrics["dropped"] == {"a copy of an earlier document": len(order) - 40}
    assert balanced(metrics)
    places = [f"{'abcd'[at // 14]}.jsonl:{at % 14 + 1}" for at in range(len(order))]
    for example in dropped(tmp_path / "w"):
        at = places.index(example["where"])
        assert example["detail"] == f"stays: {places[order.index(order[at])]}"
        assert order.index(order[at]) < at


def test_of_near_copies_the_first_stays_and_distinct_ones_all_do(tmp_path: Path, small_parts: None) -> None:
    base = [sentence(at, 120) for at in range(12)]

    def varied(text: str, seed: int) -> str:
        # Other case, punctuation, accents and numbers, and one word of 120: Jaccard of 5-grams about 0.92.
        words = text.split()
        words[seed % 100 + 5] = "other"
        return (" ".join(words)).title().replace(" ", ", ", 3) + f"! {seed}"

    rows = [*base[:6], *(varied(text, at) for at, text in enumerate(base)), *base[6:]]
    files = [write(tmp_path / f"{at}.jsonl", *({"text": one} for one in rows[at * 8 : at * 8 + 8])) for at in range(3)]
    metrics = clean_source(config(files, dedup="minhash"), tmp_path / "w")
    # The first six stay as they are; of the others the varied one came first.
    assert kept(tmp_path / "w") == [*base[:6], *rows[12:18]]
    assert metrics["dropped"] == {"nearly an earlier document": 12}
    places = [f"{at // 8}.jsonl:{at % 8 + 1}" for at in range(len(rows))]
    firsts = {places[6 + at]: places[at] for at in range(6)} | {places[18 + at]: places[12 + at] for at in range(6)}
    assert {one["where"]: one["detail"] for one in dropped(tmp_path / "w")} == {
        where: f"stays: {first}" for where, first in firsts.items()
    }


def test_near_copies_against_the_similarity_itself(tmp_path: Path) -> None:
    """Pairs of every similarity: those that are dropped are alike, those that stay are not, but for a band between."""
    pairs, rows = list[tuple[float, str, str]](), list[str]()
    for seed in range(60):
        words = sentence(1000 + seed, 200).split()
        other = list(words)
        for at in random.Random(seed).sample(range(200), seed // 2):
            other[at] = f"w{seed}x{at}"
        grams = [{tuple(text[at : at + 5]) for at in range(196)} for text in (words, other)]
        pairs.append((len(grams[0] & grams[1]) / len(grams[0] | grams[1]), " ".join(words), " ".join(other)))
        rows += pairs[-1][1:]
    clean_source(
        config([write(tmp_path / "a.jsonl", *({"text": one} for one in rows))], dedup="minhash"), tmp_path / "w"
    )
    stays = set(kept(tmp_path / "w"))
    assert all(first in stays for _, first, _ in pairs)
    high = [other in stays for similarity, _, other in pairs if 0.85 < similarity < 1]
    low = [other in stays for similarity, _, other in pairs if similarity < 0.45]
    # Chances of a miss at 0.85 and of a find at 0.45: 0.012 and 0.023 (the formula in data/dedup.py).
    assert len(high) >= 4
    assert len(low) >= 20
    assert not any(high)
    assert sum(low) >= len(low) - 3


def test_samples_are_drawn_by_the_hash_of_the_id(tmp_path: Path, small_parts: None, monkeypatch: Any) -> None:
    monkeypatch.setitem(RECIPES, "ocr2-cpp", _with_sample(12))
    template = json.loads((Path(__file__).parent / "fixtures/recipes/ocr2-cpp.jsonl").read_text().splitlines()[0])
    rows = [{**template, "id": f"id{at}", "question": f"Question {at}?"} for at in range(50)]
    files = [write(tmp_path / f"{at}.jsonl", *rows[at * 10 : at * 10 + 10]) for at in range(5)]
    metrics = clean_source(config(files, recipe="ocr2-cpp"), tmp_path / "w")
    chosen = sorted(range(50), key=lambda at: id_hash(f"id{at}"))[:12]
    assert [one.id for one in cleaned_documents(tmp_path / "w")] == [f"id{at}" for at in sorted(chosen)]
    assert metrics["dropped"] == {"not among the 12 drawn": 38}
    # The same rows in files of another cut, and more of them, among which the same are smallest.
    again = clean_source(config([write(tmp_path / "all.jsonl", *rows)], recipe="ocr2-cpp"), tmp_path / "w2")
    assert kept(tmp_path / "w2") == kept(tmp_path / "w")
    assert again["documents"] == 12


def _with_sample(sample: int) -> Any:
    import dataclasses

    return dataclasses.replace(RECIPES["ocr2-cpp"], sample=sample)


def test_max_documents_takes_the_first_that_pass(tmp_path: Path, small_parts: None) -> None:
    files = [
        write(tmp_path / f"{at}.jsonl", *({"text": sentence(at * 10 + n), "n": n} for n in range(10)))
        for at in range(3)
    ]
    asked = config(files, max_documents=8, filters={"at_least": {"n": 4}})
    metrics = clean_source(asked, tmp_path / "w")
    assert [one.where for one in cleaned_documents(tmp_path / "w")] == [
        *(f"0.jsonl:{n}" for n in range(5, 11)),
        "1.jsonl:5",
        "1.jsonl:6",
    ]
    assert balanced(metrics)


def test_stopping_anywhere_and_any_number_of_files_a_task_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_blocks, "SHARD_DOCUMENTS", 7)
    rows = [{"text": sentence(at % 25)} for at in range(40)]
    files = [write(tmp_path / f"{at}.jsonl", *rows[at * 10 : at * 10 + 10], "{bad") for at in range(4)]
    asked = config(files, dedup="exact")
    once = clean_source(asked, tmp_path / "once")
    done, inner = [0], InProcess._run_for_rank

    def stopped(self: Any, *args: Any, **named: Any) -> Any:
        done[0] += 1
        if done[0] % 2:
            raise KeyboardInterrupt
        return inner(self, *args, **named)

    monkeypatch.setattr(InProcess, "_run_for_rank", stopped)
    for _ in range(100):
        try:
            again = clean_source(asked, tmp_path / "often")
            break
        except KeyboardInterrupt:
            continue
    assert done[0] > 10
    assert again == once
    for file in sorted((tmp_path / "once" / "documents").glob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "often" / "documents" / file.name).read_bytes()
    for name in ("dropped.parquet", "quarantine.jsonl"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "often" / name).read_bytes()
    monkeypatch.setattr(InProcess, "_run_for_rank", inner)
    monkeypatch.setattr(cleaning, "PART_BYTES", 1)
    assert kept(_cleaned(asked, tmp_path / "parts")) == kept(tmp_path / "once")


def _cleaned(asked: Mapping[str, Any], folder: Path, workers: int = 1) -> Path:
    clean_source(asked, folder, workers=workers)
    return folder


@pytest.mark.slow
def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "PART_BYTES", 1)
    files = [write(tmp_path / f"{at}.jsonl", *({"text": sentence(at * 3 + n)} for n in range(9))) for at in range(3)]
    one, two = (_cleaned(config(files), tmp_path / str(n), n) for n in (1, 2))
    names = [file.name for file in sorted((one / "documents").glob("*"))]
    assert len(names) == 6
    assert all((one / "documents" / name).read_bytes() == (two / "documents" / name).read_bytes() for name in names)


def test_evaluation_items_are_dropped_or_listed(tmp_path: Path, small_parts: None) -> None:
    questions = [f"How many {sentence(500 + at, 20)} are there in all?" for at in range(6)]
    items = write(tmp_path / "t.jsonl", *({"question": one, "answer": str(at)} for at, one in enumerate(questions)))
    texts = [sentence(at, 80) for at in range(20)]
    texts[11] = f"{sentence(70, 20)}\n{questions[2].upper()} {sentence(71, 20)}"
    texts[12] = texts[11]
    file = write(tmp_path / "a.jsonl", *({"text": one} for one in texts))
    task = TaskSpec(
        files=["y"], domain="math", fields={"question": "question", "answer": "answer"}, verifier="number"
    ).model_dump(mode="json")

    def cleaned(action: str, allow: list[str], folder: str) -> dict[str, Any]:
        asked = {"n": 13, "action": action, "allow": allow, "tasks": {"quiz": 5}}
        more = {"decontaminate": asked, "tasks": {"quiz": task}}
        given = config([file], more, dedup="exact")
        given["files"]["quiz"] = [str(items)]
        return clean_source(given, tmp_path / folder)

    metrics = cleaned("drop", [], "drop")
    assert metrics["dropped"] == {"a copy of an earlier document": 1, "holds an item of quiz": 1}
    assert kept(tmp_path / "drop") == [*texts[:11], *texts[13:]]
    assert metrics["contamination"]["tasks"] == {"quiz": 1}
    assert metrics["contamination"]["items_searched"] == 6
    (hit,) = pq.read_table(tmp_path / "drop" / "hits.parquet").to_pylist()
    assert (hit["where"], hit["task"], hit["counts"]) == ("a.jsonl:12", "quiz", True)
    assert hit["share"] == 1.0
    (example,) = [one for one in dropped(tmp_path / "drop") if one["reason"].startswith("holds")]
    assert example["detail"] == f"item quiz/{hit['item']}"
    assert balanced(metrics)
    listed = cleaned("report", [], "report")
    assert listed["documents"] == 19
    assert listed["contamination"]["documents"]["exact"] == 1
    allowed = cleaned("drop", [f"quiz/{hit['item']}"], "allowed")
    assert allowed["documents"] == 19
    assert allowed["contamination"]["documents"] == {
        "exact": 0,
        "near-duplicate": 0,
        "answer-key": 0,
        "aside": 1,
        "clean": 18,
    }


def test_too_many_broken_rows_stop_the_step(tmp_path: Path) -> None:
    good = [{"text": sentence(at)} for at in range(30)]
    ten = write(tmp_path / "ten.jsonl", *good, *["{"] * 10)
    assert clean_source(config([ten]), tmp_path / "1")["bad"] == {"not JSON": 10}
    more = write(tmp_path / "more.jsonl", *good, *["{"] * 11)
    with pytest.raises(DataError, match=r"'s': 11 of 41 rows are broken \(not JSON: 11\), .* more\.jsonl:31: not"):
        clean_source(config([more]), tmp_path / "2")
    assert clean_source(config([more], max_bad=0.5), tmp_path / "3")["documents"] == 30
    wrong = write(tmp_path / "wrong.jsonl", *({"body": "x"} for _ in range(3000)))
    with pytest.raises(DataError, match=r"1000 of the first 1000 rows are broken.*no field 'text'; the fields are b"):
        clean_source(config([wrong]), tmp_path / "4")


def test_nothing_left_says_why(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({"text": "x", "n": 1} for _ in range(5)))
    with pytest.raises(DataError, match=r"no document is left \(n is below 2\.0: 5\)"):
        clean_source(config([file], filters={"at_least": {"n": 2}}), tmp_path / "w")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"no document is left \(it is empty\)"):
        clean_source(config([tmp_path / "empty.jsonl"], dedup="minhash"), tmp_path / "w2")


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "one"})
    content = {"s": [{"name": file.name, "blake2b": hash_file(file)}]}
    assert clean_source(config([file], {"content": content}), tmp_path / "1")["documents"] == 1
    with file.open("a", encoding="utf-8") as more:
        more.write('{"text": "two"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: the file has changed since the study was planned"):
        clean_source(config([file], {"content": content}), tmp_path / "2")


def test_rows_that_share_an_id_are_counted(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "one"}, {"id": 1, "text": "two"}, {"id": 1, "text": "one"}]
    metrics = clean_source(config([write(tmp_path / "a.jsonl", *rows)], dedup="exact"), tmp_path / "w")
    assert metrics["repeated_ids"] == 1
    assert metrics["dropped"] == {"a copy of an earlier document": 1}


def test_the_stage_leaves_what_readers_take(tmp_path: Path) -> None:
    texts = [sentence(at, 12) for at in range(200)]
    file = write(tmp_path / "a.jsonl", *({"text": one} for one in [*texts, *texts]))
    asked = config([file], dedup="exact")
    for scratch in (None, tmp_path / "scratch"):
        out = tmp_path / f"out{scratch is None}"
        out.mkdir()
        result = run({**asked, "scratch": scratch and str(scratch)}, {}, out, Silent())
        assert sorted(path.name for path in out.iterdir()) == ["documents", "dropped.parquet", "quarantine.jsonl"]
        assert result.metrics["documents"] == 200
        spec = asked["sources"]["s"]
        mixed = list(documents("s", spec, MICRO, None, "think", 1, cleaned=out))
        assert sorted(mixed) == sorted(texts) != mixed
        held = heldout_texts("s", spec, MICRO, None, "think", 0.2, 10, out)
        assert len(set(held)) == 10
        assert set(held) <= set(texts)
    # Stopped after its work was done, it places the same files once more.
    out = tmp_path / "again"
    out.mkdir()
    run({**asked, "scratch": str(tmp_path / "scratch")}, {}, out, Silent())
    assert kept(out) == texts


def test_a_source_of_the_micro_world_is_cleaned_by_its_seed(tmp_path: Path) -> None:
    asked = config([], micro={"domain": "math", "form": "worked"}, dedup="exact")
    metrics = clean_source(asked, tmp_path / "a")
    assert metrics["documents"] + sum(metrics["dropped"].values()) == 64
    assert kept(tmp_path / "a") == kept(_cleaned(asked, tmp_path / "b"))
    assert kept(tmp_path / "a") != kept(_cleaned({**asked, "seed": 4}, tmp_path / "c"))


def test_without_datatrove_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datatrove", None)
    with pytest.raises(MissingExtra, match=r"prismlab\[data\]"):
        clean_source(config([write(tmp_path / "a.jsonl", {"text": "x"})]), tmp_path / "w")


@pytest.mark.skipif(not HOSTILE.is_file(), reason="the shared hostile inputs are not beside the repository")
def test_hostile_inputs_of_the_shared_sample(tmp_path: Path) -> None:
    """Those of kind data that are about sources; each is refused by name or set aside with file and line."""
    rows = {one["name"]: one for one in map(json.loads, HOSTILE.read_text("utf-8").splitlines())}
    huge = rows["jsonl_huge_line"]["payload"].removeprefix("BUILD:")
    (tmp_path / "huge.jsonl").write_text('{"text": "good"}\n' + eval(huge) + "\n", "utf-8")
    metrics = clean_source(config([tmp_path / "huge.jsonl"]), tmp_path / "1")
    assert metrics["bad"] == {"line too long": 1}
    assert json.loads((tmp_path / "1" / "quarantine.jsonl").read_text())["line"] == 2
    (tmp_path / "utf8.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n{"text": "good"}\n')
    assert clean_source(config([tmp_path / "utf8.jsonl"]), tmp_path / "2")["bad"] == {"not UTF-8": 1}
    bomb = eval(rows["gzip_bomb"]["payload"].removeprefix("BUILD:").replace("256<<20", "96<<20"))
    (tmp_path / "bomb.jsonl.gz").write_bytes(bomb)
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz: gives \d+ times its own size"):
        clean_source(config([tmp_path / "bomb.jsonl.gz"]), tmp_path / "3")
    (tmp_path / "same.jsonl").write_text(
        rows["duplicate_ids"]["payload"].replace("\\n", "\n").replace("}", ',"text":"a"}')
    )
    assert clean_source(config([tmp_path / "same.jsonl"], dedup="exact"), tmp_path / "4")["dropped"] == {
        "a copy of an earlier document": 1
    }
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"rows are read from .*\.jsonl"):
        clean_source(config([tmp_path / "a.tar"]), tmp_path / "5")


def test_broken_rows_that_a_step_sets_aside_are_told(tmp_path: Path) -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    heard = Heard()
    good = [{"text": sentence(n)} for n in range(4)]
    run(config([write(tmp_path / "a.jsonl", *good)], dedup="exact"), {}, tmp_path / "whole", heard)
    assert heard.notes == []
    run(config([write(tmp_path / "b.jsonl", *good, "{")], dedup="exact"), {}, tmp_path / "one", heard)
    assert heard.notes == ["1 of 5 rows are broken and set aside, listed in quarantine.jsonl"]
