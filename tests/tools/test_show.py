"""Tables, records, Parquet and pages of the commands on checkpoints."""

from __future__ import annotations

import html
import io
import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismlab.errors import MissingExtra, SpecError
from prismlab.report.sections import Drawing
from prismlab.tools import show
from prismlab.tools.show import Table

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


CHANGE = Table(
    head=["", "elements", "L2", ">0.1%", ">0.5%", ">1%", ">2%", ">5%", ">10%", "equal"],
    rows=[
        ["whole", "580M", "0.175", "99.1", "97.0", "93.2", "88.1", "70.3", "50.1", "1.2"],
        ["  out_proj", "100M", "0.000171", ">99.9", "97.0", "93.2", "88.1", "70.3", "50.1", "<0.1"],
    ],
    title="old → new",
    strong=[0],
)
STEPS = Table(
    head=["", "0 steps", "1 step", "sign flips"],
    rows=[["whole", "1.2", "3.4", "5.6"], ["  out_proj", "<0.1", "7.8", "–"]],
    beside=True,
    note="Percent.",
)


def test_an_interval_loses_no_bound_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns all stand side by side, at 60 in two parts with the names in both: no number is broken or cut."""
    head = ["benchmark", "verdict", "reference", "new", "change", "95% interval", "margin", "items", "items needed"]
    row = ["truthfulqa-mc2", "undecided", "57.5", "55.0", "-2.5", "-17.9 to +13.0", "5", "80", "228,197"]
    for width in ("80", "60"):
        monkeypatch.setenv("COLUMNS", width)
        stream = Terminal()
        show.print_tables([show.Table(head=head, rows=[row], words=2)], stream=stream)
        text = ANSI.sub("", stream.getvalue())
        parts = text.count("verdict")
        assert parts == (1 if width == "80" else 2), text
        wanted = [*head[:2], *row[:2]] * (parts - 1) + [*head, *row]
        assert sorted(re.findall(r"\d", text)) == sorted(re.findall(r"\d", " ".join(wanted))), text
        assert {"57.5", "55.0", "-2.5", "-17.9", "+13.0", "5", "80", "228,197"} <= set(text.split()), text
        assert max(map(len, text.splitlines())) <= int(width)


def lines(tables: list[Table], stream: io.StringIO, notes: tuple[str, ...] = ()) -> list[str]:
    show.print_tables(tables, notes, stream)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 40])
def test_a_table_fits_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = lines([CHANGE, STEPS], Terminal())
    assert any(ANSI.search(line) for line in shown)
    plain = [ANSI.sub("", line) for line in shown]
    assert max(map(len, plain)) <= width
    assert {cell.strip() for row in CHANGE.rows for cell in row} <= {cell for line in plain for cell in line.split()}
    if width >= 80:
        for table in (CHANGE, STEPS):
            for row in table.rows:
                held = [line.split() for line in plain if row[0].strip() in line]
                assert any({cell.strip() for cell in row} <= set(cells) for cells in held)


def test_tables_stand_beside_each_other_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (row,) = [line for line in lines([CHANGE, STEPS], io.StringIO()) if "out_proj" in line]
    assert row.split() == [cell.strip() for cell in CHANGE.rows[1] + STEPS.rows[1][1:]]
    monkeypatch.setenv("COLUMNS", "80")
    assert len([line for line in lines([CHANGE, STEPS], io.StringIO()) if "out_proj" in line]) == 2
    other = Table(head=STEPS.head, rows=STEPS.rows[:1], beside=True)
    monkeypatch.setenv("COLUMNS", "200")
    assert len([line for line in lines([CHANGE, other], io.StringIO()) if "whole" in line]) == 2


def test_off_a_terminal_text_is_plain_and_no_cell_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    shown = lines([CHANGE], io.StringIO(), notes=("[red]no markup[/red] :smile: 12",))
    assert not any(ANSI.search(line) for line in shown)
    (row,) = [line for line in shown if "out_proj" in line]
    assert row.split() == [cell.strip() for cell in CHANGE.rows[1]]
    assert "[red]no markup[/red]" in " ".join(shown)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (0.175, "0.175"), (0.00012, "0.000120"), (1.5e-7, "1.50e-7"), (123.4, "123"),
        (1234.4, "1,234"), (999.6, "1,000"), (0.9996, "1.00"), (12345678.0, "1.23e+7"), (-0.5, "-0.500"), (1.0, "1.00"),
    ],
)  # fmt: skip
def test_digits(value: float | None, text: str) -> None:
    assert show.digits(value) == text


def test_percent_never_calls_some_none_and_most_all() -> None:
    shares = (None, 0.0, 1e-9, 0.00051, 0.5, 0.9994, 0.99999, 1.0)
    assert [show.percent(share) for share in shares] == ["–", "0", "<0.1", "0.1", "50.0", "99.9", ">99.9", "100"]


def test_count() -> None:
    numbers = (0, 999, 1000, 999_960, 1_240_000_000, 8.17e9)
    assert [show.count(n) for n in numbers] == ["0", "999", "1.00k", "1.00M", "1.24B", "8.17B"]


def test_labels_are_as_long_as_it_takes() -> None:
    assert show.labels(["/runs/a", "/runs/b"]) == ["a", "b"]
    assert show.labels(["x/a/model", "x/b/model", "owner/name@v1"]) == ["a/model", "b/model", "owner/name@v1"]
    assert show.labels(["/a/m", "/b/m"]) == ["a/m", "b/m"]
    assert show.labels(["a\x1b[2J", "b"])[0] == "a\\x1b[2J"
    with pytest.raises(SpecError, match="named twice"):
        show.labels(["x", "y", "x"])


def test_labels_that_differ_only_where_they_are_cut_are_told_apart() -> None:
    long = "n" * 90
    found = show.labels([f"{long}a", "b", f"{long}b"])
    assert len(set(found)) == 3
    assert [name[-2:] for name in found] == ["#1", "#2", "#3"]


def drawing() -> Drawing:
    layout = {"height": 100, "annotations": [], "meta": {"panels": 1, "panel_height": 0}}
    return Drawing("one", {"data": [{"type": "bar", "x": ["</script>"], "y": [1.0]}], "layout": layout}, "how", "label")


RECORD = {"tool": "diff", "l2": 0.5, "name": "</script><b>"}


def test_without_a_folder_nothing_is_written_or_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> list[Drawing]:
        raise AssertionError("made for nothing")

    show.emit("diff", RECORD, [CHANGE], title="t", figures=never, parquet=never, as_json=True)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out) == RECORD
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="JSON"):
        show.emit("diff", {"l2": float("nan")}, [], title="t")


def test_everything_is_written_from_one_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pa.table({"name": ["a"], "n": [3]})
    out = tmp_path / "new" / "folder"
    show.emit(
        "diff",
        RECORD,
        [CHANGE],
        title="<i>t</i>",
        notes=["<script>alert(1)</script>"],
        figures=lambda: [drawing()],
        parquet=lambda: {"rows": rows},
        out=out,
    )
    told = capsys.readouterr()
    assert "out_proj" in told.out
    assert told.err == f"wrote diff.json, rows.parquet, diff.html in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["diff.html", "diff.json", "rows.parquet"]
    assert json.loads((out / "diff.json").read_text()) == RECORD
    assert pq.read_table(out / "rows.parquet").to_pylist() == [{"name": "a", "n": 3}]
    page = (out / "diff.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;i&gt;t&lt;/i&gt;" in page
    assert page.count("</script>") == 3  # figures, plotting library, our script
    assert "default-src 'none'; script-src 'sha256-" in html.unescape(page)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])  # type: ignore[index]
    assert figures["one"]["data"][0]["x"] == ["</script>"]
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page.split("<script", 1)[0]) == []
    # A second time replaces what is there.
    show.emit("diff", {**RECORD, "l2": 1.0}, [], title="t", out=out)
    assert json.loads((out / "diff.json").read_text())["l2"] == 1.0


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="name a folder"):
        show.emit("diff", RECORD, [], title="t", out=tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    show.check_out(None)
    show.check_out(tmp_path)
    show.check_out(tmp_path / "a/b/c")
    assert not (tmp_path / "a").exists()
    for name in ("file", "file/deeper/still"):
        with pytest.raises(SpecError, match="a file; name a folder with --out"):
            show.check_out(tmp_path / name)
    monkeypatch.setattr(show.os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(SpecError, match="may not be written"):
        show.check_out(tmp_path / "a/b")


@pytest.mark.parametrize("name", ["n" * 300, "/proc/nothing-here"])
def test_a_folder_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be made"):
        show.emit("diff", RECORD, [], title="t", out=tmp_path / name)


@pytest.mark.parametrize("package", ["plotly.offline", "jinja2"])
def test_a_page_names_the_extra_that_it_needs(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    show.emit("diff", RECORD, [], title="t", out=tmp_path)
    with pytest.raises(MissingExtra, match=r"prismlab\[report\]"):
        show.emit("diff", RECORD, [], title="t", out=tmp_path, figures=lambda: [drawing()])


def test_progress_off_a_terminal_is_notes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress("diff") as bar:
        bar.start(2, "tensors")
        bar.advance(loss=1.0)
        bar.note("a note")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "a note\n")


def test_progress_on_a_terminal_is_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with show.progress("diff") as bar:
        bar.start(2, "tensors")
        bar.advance(loss=1.25)
        bar.advance()
        bar.note("[red]a note[/red]")
    text = ANSI.sub("", stream.getvalue())
    assert "2/2 tensors" in text
    assert "[red]a note[/red]" in text
    assert "\x1b[2K" in stream.getvalue()  # the line is wiped at the end


def test_off_a_terminal_a_line_a_minute_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("prismlab.tools.show.time.monotonic", lambda: now[0])
    with show.progress("eval") as progress:
        progress.start(2000, "samples")
        progress.advance(400)  # judged before: it took no time
        for _ in range(20):
            now[0] += 10
            progress.advance(10)
        progress.advance(1400)
    # The first line's pace has the samples of before in it; the second goes by its own minute.
    assert capsys.readouterr().err.splitlines() == [
        "460 of 2,000 samples, 3 min 21 s left",
        "520 of 2,000 samples, 24 min 40 s left",
        "580 of 2,000 samples, 23 min 40 s left",
    ]
