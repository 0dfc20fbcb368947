from __future__ import annotations

import json
from pathlib import Path

from studies import study, written

from prismlab.study.check import leaks
from prismlab.study.load import load_study


def test_a_suite_s_own_rows_among_the_sources_are_told_with_both_files(tmp_path: Path) -> None:
    rows = [{"q": f"question {at}", "a": str(at)} for at in range(3)]
    for name in ("bench.jsonl", "shots.jsonl", "train.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({**row, "of": name}) + "\n" for row in rows))
    (tmp_path / "elsewhere").mkdir()
    data = study()
    data["sources"]["own"] = {"domain": "math", "fields": {"question": "q", "answer": "a"}, "files": ["train.jsonl"]}
    data["mixtures"]["mc"]["weights"]["own"] = 1
    choice = {"question": "q", "answer": "a", "choices": "c"}
    bench = {"file": "bench.jsonl", **choice, "examples": "shots.jsonl", "shots": 1}
    data["evaluations"]["suite"] = {"suite": {"name": "own", "own": {"bench": bench}}}

    def told(*files: str) -> list[str]:
        data["sources"]["own"]["files"] = list(files)
        loaded = load_study(written(tmp_path, data))
        return list(leaks(loaded.study, loaded.files))

    assert told("train.jsonl") == []
    assert told("train.jsonl", "shots.jsonl") == [], "worked examples are no items"
    said = "evaluations.suite.suite is evaluated, and sources.own, read from the same rows, is trained on ({}): that"
    bench_file = tmp_path / "bench.jsonl"
    assert [line.partition(" trains")[0] for line in told("bench.jsonl")] == [said.format(bench_file)]
    (tmp_path / "elsewhere" / "link.jsonl").symlink_to(bench_file)
    assert [line.partition(" trains")[0] for line in told("elsewhere/*.jsonl")] == [said.format(bench_file)]
    (tmp_path / "elsewhere" / "link.jsonl").unlink()
    copy = tmp_path / "elsewhere" / "web.jsonl"
    copy.write_bytes(bench_file.read_bytes())
    both = f"{bench_file} and its copy {copy}"
    assert [line.partition(" trains")[0] for line in told("elsewhere")] == [said.format(both)]
    copy.write_bytes(bench_file.read_bytes().replace(b"question 2", b"question 9"))
    assert told("elsewhere") == [], "the size is the same, the rows are not"
