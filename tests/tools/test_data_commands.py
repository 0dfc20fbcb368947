"""``prism data plan | build | show | stats`` on files written here."""

from __future__ import annotations

import json
import random
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from prismlab.cli import app
from prismlab.data.corpus import Corpus
from prismlab.data.inspect import ahead, measure, pieces
from prismlab.errors import CheckpointError, DataError, PrismError, SpecError
from prismlab.tools.data_plan import build_rate, tokens_of
from prismlab.tools.data_show import harmless, row_range

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script> </script><img src=x onerror=alert(2)> \x1b[2J\x9b31m {{ 7 * 7 }}"
ITEM = "How many of the seventeen grey herons crossed the muddy river before the old ferry had left its pier?"
MIXTURES = """
sources:
  pages: {files: [pages.jsonl], domain: web, dedup: exact}
  sums: {files: [sums.jsonl], domain: math, fields: {question: q, answer: a}, loss: answer}
mixtures:
  both: {weights: {pages: 3, sums: 1}, max_epochs: 50}
  sized: {weights: {pages: 3, sums: 1}, max_epochs: 2, tokens_in_source: {pages: 1.0e+9, sums: 1.0e+6}}
tasks:
  held: {files: [items.jsonl], domain: math, verifier: exact, fields: {question: q, answer: a}}
decontaminate: {tasks: [held], action: drop}
"""


def prism(*args: str | Path) -> str:
    """Output of a command that must succeed."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: str | Path) -> str:
    """The message of a command that must be refused."""
    with pytest.raises(PrismError) as error:
        prism(*args)
    assert str(error.value).count("\n") <= 1
    return str(error.value)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prose(rng: random.Random, words: int) -> str:
    return " ".join("".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    pages = [{"text": f"{EVIL} {prose(rng, rng.randint(10, 120))}"} for _ in range(60)]
    pages += [pages[0], {"text": f"{prose(rng, 20)} {ITEM} {EVIL}"}]
    write_rows(path / "pages.jsonl", pages)
    write_rows(path / "sums.jsonl", [{"q": f"What is {a} + {a + 1}?", "a": str(2 * a + 1)} for a in range(200)])
    write_rows(path / "items.jsonl", [{"q": ITEM, "a": "12"}])
    (path / "mix.yaml").write_text(MIXTURES, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    out = folder / "corpus"
    prism("data", "build", folder / "mix.yaml", "both", *BUDGET, "--packing", "best_fit", "--out", out)
    return out


BUDGET = ("--tokens", "25.6k", "--seq-len", "256", "--tokenizer", "bytes")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("26.2B", 26_200_000_000),
        ("500M", 500_000_000),
        ("8_192", 8192),
        ("1e9", 10**9),
        ("26,200k", 26_200_000),
        ("1.5 t", 15 * 10**11),
    ],
)
def test_budgets_are_read_as_people_write_them(text: str, wanted: int) -> None:
    assert tokens_of(text) == wanted


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "0.2", "1e99", "5 MB", "nan", "26,2B", "1,2,3"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--tokens"):
        tokens_of(text)


def test_a_plan_says_what_a_budget_means(folder: Path) -> None:
    options = ("--tokens", "1.05M", "--seq-len", "128", "--ranks", "4", "--rows-per-step", "8", "--runs", folder)
    found = json.loads(prism("data", "plan", folder / "mix.yaml", "sized", *options, "--json"))
    assert (found["steps"], found["rows"], found["tokens"]) == (1025, 8200, 1_049_600)
    pages, sums = found["sources"]
    assert (pages["share"], pages["tokens"], pages["rows"]) == (0.75, 787_200.0, 6150.0)
    assert (sums["tokens"], sums["epochs"], sums["over"]) == (262_400.0, 0.2624, False)
    assert found["bytes"] == {"below 65,536 token ids": 2_099_200, "more": 4_198_400}
    assert found["seconds"] == 1_049_600 / 500_000
    text = prism("data", "plan", folder / "mix.yaml", "sized", *options)
    assert "1,025 steps of 8 rows of 128 tokens, 2 rows a rank and step" in text
    assert "a guess" in text
    text = prism("data", "plan", folder / "mix.yaml", "sized", *options[:4], "--runs", folder)
    assert "8,203 steps of 1 row of 128 tokens, 1 row a rank and step" in text


def test_too_many_passes_are_refused_with_the_remedy(folder: Path) -> None:
    text = refused("data", "plan", folder / "mix.yaml", "sized", "--tokens", "16M", "--seq-len", "128")
    assert "source 'sums' would be passed over 4.00 times, 'max_epochs' is 2" in text
    assert "at most 12.5% of the tokens" in text, "2 passes of 1M are 12.5% of 16M"


def test_sizes_that_are_not_stated_are_guessed_from_files_or_unknown(folder: Path) -> None:
    found = json.loads(prism("data", "plan", folder / "mix.yaml", "both", "--tokens", "1M", "--json"))
    pages, _ = found["sources"]
    assert (pages["known"], pages["size"]) == ("files", (folder / "pages.jsonl").stat().st_size / 4)
    assert not pages["over"], "a guess refuses nothing"
    text = MIXTURES.replace("files: [pages.jsonl]", "micro: {domain: web}").replace(", dedup: exact", "")
    (folder / "unknown.yaml").write_text(text, encoding="utf-8")
    told = prism("data", "plan", folder / "unknown.yaml", "both", "--tokens", "1M")
    assert re.search(r"pages\s+web\s+75\.0\s+750k\s+\d+\s+unknown\s+unknown", told)


def test_a_plan_tells_of_an_empty_source_and_of_one_that_is_likely_too_small(folder: Path, tmp_path: Path) -> None:
    told = prism("data", "plan", folder / "mix.yaml", "both", "--tokens", "9M")
    assert re.search(r"by that guess more than 'max_epochs' \(50\), which a build refuses: (pages, )?sums", told)
    assert "by that guess" not in prism("data", "plan", folder / "mix.yaml", "both", "--tokens", "8192")
    for name in ("pages.jsonl", "items.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "sums.jsonl").touch()
    (tmp_path / "mix.yaml").write_text(MIXTURES, encoding="utf-8")
    text = refused("data", "plan", tmp_path / "mix.yaml", "both", "--tokens", "1M")
    assert text == "sources.sums: its files are empty; name others, or leave the source out"


def test_a_file_where_the_folder_should_be_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    for out in (tmp_path / "here", tmp_path / "here" / "below"):
        text = refused("data", "clean", folder / "mix.yaml", "pages", "--out", out)
        assert text.startswith(f"{out}: cannot be made a folder (")
        text = refused("data", "build", folder / "mix.yaml", "both", *BUDGET, "--out", out)
        assert text.startswith(f"{out}: cannot be made a folder (")


def test_the_time_is_that_of_earlier_builds(tmp_path: Path) -> None:
    for at, (tokens, seconds) in enumerate([(10_000, 2.0), (50_000, 10.0), (9_999_999, 0.1)]):
        artifact = tmp_path / "study" / "artifacts" / f"corpus-{at}"
        artifact.mkdir(parents=True)
        record = {"status": "complete", "tokens": tokens, "seconds": seconds}
        (artifact / "record.json").write_text(json.dumps(record), encoding="utf-8")
    assert build_rate(tmp_path) == (5000.0, 2), "one of a tenth of a second tells nothing"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("nothing",), ["no such mixture", "both"]),
        (("both", "--ranks", "3", "--rows-per-step", "8"), ["cannot be split over --ranks 3"]),
        (("both", "--ranks", "9999"), ["less than one step"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused(folder: Path, options: tuple[str, ...], parts: list[str]) -> None:
    text = refused("data", "plan", folder / "mix.yaml", *options, "--tokens", "1M")
    assert all(part in text for part in parts)


def test_the_paper_size_plan_of_the_shipped_mixture() -> None:
    file = ROOT / "studies" / "mixtures" / "mcs.yaml"
    options = ("--tokens", "26.2B", "--seq-len", "8192", "--ranks", "128", "--json")
    found = json.loads(prism("data", "plan", file, "mcs", *options))
    assert found["steps"] == 26_200_000_000 // (8192 * 128)
    assert abs(sum(one["share"] for one in found["sources"]) - 1) < 1e-12
    assert all(one["known"] == "stated" and one["epochs"] > 0 for one in found["sources"])


def test_a_corpus_keeps_what_the_mixture_promised(built: Path) -> None:
    corpus = Corpus.open(built)
    corpus.verify()
    shares = {one["name"]: one["share"] for one in corpus.manifest["sources"]}
    assert abs(shares["pages"] - 0.75) < 1 / corpus.n_rows
    metrics = json.loads((built / "metrics.json").read_text(encoding="utf-8"))
    dropped = metrics["cleaning"]["pages"]["dropped"]
    assert dropped == {"a copy of an earlier document": 1, "holds an item of held": 1}
    text = bytes(int(token) for token in corpus.tokens(0, corpus.n_rows).ravel() if token < 256)
    assert b"grey herons" not in text
    assert not (built / "work").exists()
    lead, slow = ahead(corpus, points=3), dict[str, list[float]]()
    for at, source in enumerate(corpus.manifest["sources"]):
        for rows in range(1, corpus.n_rows + 1):
            given = corpus.row_fill[:rows][corpus.row_source[:rows] == at].sum(dtype=float)
            distance = (given - source["weight"] * corpus.row_fill[:rows].sum(dtype=float)) / corpus.seq_len
            slow.setdefault(source["name"], []).append(distance)
    assert lead["most"] == pytest.approx({name: max(map(abs, path)) for name, path in slow.items()})
    assert max(lead["most"].values()) < 1.5
    assert [rows for rows, _ in lead["ahead"]][-1] == corpus.n_rows
    assert max(one for _, one in lead["ahead"]) == pytest.approx(max(map(max, slow.values())))
    assert min(one for _, one in lead["behind"]) == pytest.approx(min(map(min, slow.values())))


def test_one_source_of_a_file_with_mixtures_is_cleaned_by_itself(folder: Path, tmp_path: Path) -> None:
    told = prism("data", "clean", folder / "mix.yaml", "pages", "--out", tmp_path / "w")
    assert re.search(r"dropped: holds an item of held\s+-1", told)
    again = prism("data", "clean", folder / "mix.yaml", "pages", "--out", tmp_path / "w")
    assert again == told
    assert "holds the work of another source" in refused(
        "data", "clean", folder / "mix.yaml", "sums", "--out", tmp_path / "w"
    )
    assert "not empty" in refused("data", "clean", folder / "mix.yaml", "pages", "--out", folder)
    assert "did you mean 'pages'" in refused("data", "clean", folder / "mix.yaml", "page", "--out", tmp_path / "v")


def test_the_same_build_is_done_once_and_another_is_refused(folder: Path, built: Path) -> None:
    before = (built / "metrics.json").stat().st_mtime_ns
    prism("data", "build", folder / "mix.yaml", "both", *BUDGET, "--packing", "best_fit", "--out", built)
    assert (built / "metrics.json").stat().st_mtime_ns == before
    text = refused("data", "build", folder / "mix.yaml", "both", *BUDGET, "--out", built)
    assert "another mixture, budget, tokenizer" in text
    assert "not an unfinished build" in refused("data", "build", folder / "mix.yaml", "both", *BUDGET, "--out", folder)


def test_a_build_that_was_stopped_goes_on_to_the_same_bytes(
    folder: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismlab.tools import data_build

    def stopped(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_build, "build_corpus", stopped)
    command = ("data", "build", folder / "mix.yaml", "both", *BUDGET, "--packing", "best_fit", "--out", tmp_path / "c")
    assert CliRunner().invoke(app, [str(arg) for arg in command]).exit_code == 130
    assert (tmp_path / "c" / "work" / "clean" / "pages").is_dir()
    monkeypatch.undo()
    prism(*command, "--workers", "2")
    assert Corpus.open(tmp_path / "c").manifest["files"] == Corpus.open(built).manifest["files"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--tokenizer", "no/such/folder/here"), "no such folder"),
        (("--tokens", "100"), "less than one step"),
        (("--overlap", "16"), "--overlap is for --packing best_fit"),
        (("--packing", "best_fit", "--overlap", "200"), "at most half"),
    ],
)
def test_a_build_that_cannot_be_is_refused_before_any_work(
    folder: Path, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    text = refused("data", "build", folder / "mix.yaml", "both", *BUDGET, "--out", tmp_path / "new", *options)
    assert part in text
    assert not (tmp_path / "new").exists()


def test_rows_are_shown_with_documents_and_domains_and_do_no_harm(built: Path) -> None:
    corpus = Corpus.open(built)
    text = prism("data", "show", built, "--rows", f"0:{corpus.n_rows}", "--characters", "0")
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert r"\x1b[2J\x9b31m" in text
    assert text.count("\nrow ") + text.startswith("row ") == corpus.n_rows
    assert len(re.findall(r"^── \d+: tokens", text, re.MULTILINE)) == sum(
        len(corpus.boundaries(row)) for row in range(corpus.n_rows)
    )
    sums = next(row for row in range(corpus.n_rows) if corpus.sources[corpus.row_source[row]] == "sums")
    shown = prism("data", "show", built, "--rows", str(sums))
    assert shown.startswith(f"row {sums}  math  sums  ")
    assert "loss on" in shown, "answers alone are learned"


def test_a_terminal_gets_colours_and_nothing_of_a_document(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismlab.tools.data_show import show

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    show(built, rows="0:2", tokenizer=None, characters=100)
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "\x1b[2J" not in text
    assert not re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b"), "colours alone"


@pytest.mark.parametrize(("text", "wanted"), [("2", [2]), ("2:4", [2, 3]), ("8:", [8, 9]), ("0:99", list(range(10)))])
def test_rows_are_chosen(text: str, wanted: list[int]) -> None:
    assert list(row_range(text, 10)) == wanted


@pytest.mark.parametrize("text", ["x", "3:2", "10", "-1", "1:2:3", ""])
def test_rows_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--rows"):
        row_range(text, 10)


def test_control_characters_are_written_out() -> None:
    assert harmless("a\tb\n\x00\u202e\ud800é") == "a\tb\n\\x00\\u202e\\ud800é"


def test_pieces_are_the_documents_of_a_row(built: Path) -> None:
    corpus = Corpus.open(built)
    for row in range(corpus.n_rows):
        found = list(pieces(corpus, row))
        joined = np.concatenate([piece.tokens for piece in found])
        np.testing.assert_array_equal(joined, corpus.tokens(row, row + 1)[0][: corpus.row_fill[row]])
        assert sum(piece.learned for piece in found) == int(corpus.loss_mask(row, row + 1).sum())
    measured = measure(corpus)
    counted = sum(sum(held.values()) for held in measured["pieces"].values())
    assert counted == sum(len(corpus.boundaries(row)) for row in range(corpus.n_rows))
    assert measured["learned"]["pages"] == 1.0
    assert 0 < measured["learned"]["sums"] < 0.5


def test_another_tokenizer_is_refused(built: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"a": 0, "<e>": 1}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="built with another tokenizer"):
        prism("data", "show", built, "--tokenizer", tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        prism("data", "show", built, "--tokenizer", "no/such/folder")


def test_the_page_shows_shares_drops_and_evidence_and_runs_nothing(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    told = prism("data", "stats", built, "--out", tmp_path, "--verify")
    assert re.search(r"pages\s+1\s+0\s+0\s+0\s+60", told)
    # Names may be broken behind their marks.
    page = (tmp_path / "data-stats.html").read_text(encoding="utf-8").replace("\u200b", "")
    for part in ("What was dropped", "Evaluation items in documents", "pages.jsonl:61", "grey herons"):
        assert part in page
    # Of the documents' markup nothing is left but text.
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert "\x9b" not in page
    assert "{{ 7 * 7 }}" in page
    record = json.loads((tmp_path / "data-stats.json").read_text(encoding="utf-8"))
    assert record["cleaning"]["pages"]["contamination"]["documents"]["exact"] == 1
    assert record["sources"]["sums"]["share"] == pytest.approx(0.25, abs=0.01)


def test_the_page_of_a_run_finds_the_cleaning_beside_it(built: Path, tmp_path: Path) -> None:
    import shutil

    from prismlab.tools.data_stats import cleaning_of

    corpus, clean = tmp_path / "corpus-1", tmp_path / "clean-2"
    shutil.copytree(built / "sources" / "pages", clean)
    metrics = json.loads((built / "metrics.json").read_text(encoding="utf-8"))["cleaning"]["pages"]
    (clean / "record.json").write_text(json.dumps({"metrics": metrics}), encoding="utf-8")
    corpus.mkdir()
    inputs = {"pages": {"kind": "clean", "fingerprint": "2"}, "tokenizer": {"kind": "base", "fingerprint": "3"}}
    (corpus / "record.json").write_text(json.dumps({"inputs": inputs}), encoding="utf-8")
    found = cleaning_of(corpus)
    assert found == {"pages": cleaning_of(built)["pages"]}, "the other source was cleaned, too, but is not beside it"
    assert len(found["pages"].hits) == 1


def test_a_flipped_bit_is_told(folder: Path, built: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    file = copy / "tokens-00000.bin"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert "tokens-00000.bin" in refused("data", "stats", copy, "--verify")
    assert "no manifest.json" in refused("data", "stats", folder)


def test_work_of_another_version_or_file_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismlab.study.stages import STAGES

    write_rows(tmp_path / "pages.jsonl", [{"text": f"page {at} of the book"} for at in range(400)])
    mixture = "sources: {p: {files: [pages.jsonl], domain: web, dedup: exact}}\nmixtures: {m: {weights: {p: 1}}}\n"
    (tmp_path / "m.yaml").write_text(mixture, encoding="utf-8")
    ways = (("clean", tmp_path / "m.yaml", "p", "--out", tmp_path / "c"),)
    ways += (("build", tmp_path / "m.yaml", "m", "--tokens", "2k", *BUDGET[2:], "--out", tmp_path / "b"),)
    for way in ways:
        first = prism("data", *way)
        assert prism("data", *way) == first
        with monkeypatch.context() as patch:
            patch.setitem(STAGES, "clean", ("prismlab.data.clean:run", 999))
            assert "version" in refused("data", *way)
        assert prism("data", *way) == first
    with (tmp_path / "pages.jsonl").open("a", encoding="utf-8") as more:
        more.write('{"text": "one more page"}\n')
    for way in ways:
        assert "files" in refused("data", *way)
