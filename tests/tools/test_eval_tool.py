"""``prism eval`` from a checkpoint on disk to rows: stopped and resumed, refused, compared; suites of the harness."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from prismlab.cli import app
from prismlab.errors import CheckpointError, DataError, MissingExtra, SpecError, StageError, StoreError
from prismlab.evaluate.judged import read_choices
from prismlab.evaluate.sampled import aggregate
from prismlab.evaluate.sets import load_set
from prismlab.evaluate.suites import SUITES
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.lock import locked
from prismlab.run.step import Silent
from prismlab.score import read_rows
from prismlab.tools.evaluate import Place, Wish, evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(folder: Path, seed: int = 0, **more: Any) -> Path:
    save_checkpoint(build_model(tiny_config("llama", 32, 2, 258, **more), seed), build_byte_tokenizer(), folder)
    return folder


def sets(folder: Path, n: int = 60) -> Path:
    """Two benchmarks in the form of text copies."""
    folder.mkdir(exist_ok=True)
    rows = [{"query": f"Number {k} of the list is", "choices": [f"odd {k}", f"even {k * 7}", "none"], "gold": k % 3} for k in range(n)]  # fmt: skip  # noqa: E501
    (folder / "hellaswag_validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"goal": f"Do {k}", "sol1": f"take {k}", "sol2": f"leave {k + 1}", "label": k % 2} for k in range(n)]
    (folder / "piqa_validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


WISH = Wish(benchmarks=("hellaswag", "piqa"))


def judge(model: Path, data: Path, out: Path | None, wish: Wish = WISH, **more: Any) -> dict[str, Any]:
    return evaluate(str(model), "retention", wish, Place(source=data, out=out, **more), as_json=True)


def test_scores_are_functions_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = checkpoint(tmp_path / "m"), sets(tmp_path / "data")
    found = judge(model, data, tmp_path / "out")
    told = json.loads(capsys.readouterr().out)
    assert told == found
    rows = read_rows(tmp_path / "out" / "samples.parquet")
    assert {name: found["metrics"][name] for name in ("tasks", "domains", "average")} == aggregate(rows)
    choices = read_choices(tmp_path / "out" / "choices.parquet")
    assert len(rows) == len(choices) == 120
    mine = [row for row in choices if row["task"] == "hellaswag"]
    assert found["metrics"]["choices"]["hellaswag"]["acc"] == pytest.approx(100 * sum(r["acc"] for r in mine) / 60)
    facts = found["config"]["benchmarks"]["hellaswag"]
    assert facts["items"] == 60
    assert len(facts["hash"]) == 32
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["config"] == found["config"]
    # Again: nothing is judged, so no model is needed.
    (model / "model.safetensors").rename(tmp_path / "away.safetensors")
    with pytest.raises(SpecError, match="another checkpoint"):
        judge(model, data, tmp_path / "out")
    (tmp_path / "away.safetensors").rename(model / "model.safetensors")
    assert judge(model, data, tmp_path / "out")["metrics"] == found["metrics"]


def test_a_folder_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    model, data, out = checkpoint(tmp_path / "m"), sets(tmp_path / "data"), tmp_path / "out"
    judge(model, data, out)
    with pytest.raises(SpecError, match="of another checkpoint"):
        judge(checkpoint(tmp_path / "n", 1), data, out)
    with pytest.raises(SpecError, match="made otherwise: dtype"):
        judge(model, data, out, dtype="bfloat16")
    sets(data, 61)
    with pytest.raises(SpecError, match=r"made otherwise: benchmarks\.hellaswag\.hash"):
        judge(model, data, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="not an evaluation's folder"):
        judge(model, data, tmp_path / "full")


def test_a_folder_is_one_process_s_and_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, out = checkpoint(tmp_path / "m"), sets(tmp_path / "data", 8), tmp_path / "out"
    with locked(out / "lock"), pytest.raises(StoreError, match=f"in use by process {os.getpid()}"):
        judge(model, data, out)
    assert [file.name for file in out.iterdir()] == ["lock"]
    judge(model, data, out)
    # What another version judged may be judged otherwise now: it is neither gone on with nor compared.
    monkeypatch.setattr("prismlab.tools.evaluate.VERSION", 10**6)
    with pytest.raises(SpecError, match="made otherwise: version is"):
        judge(model, data, out)
    judge(model, data, tmp_path / "later")
    done = CliRunner().invoke(app, ["gate", *(str(tmp_path / name / "samples.parquet") for name in ("out", "later"))])
    assert isinstance(done.exception, DataError)
    assert "not evaluated alike: version is" in str(done.exception)


def test_what_it_costs_is_said_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = checkpoint(tmp_path / "m"), sets(tmp_path / "data", 40)
    keys = [f"Say {'yes' if k % 2 else 'no'}, in words without a comma." for k in range(9)]
    prompts = [{"key": k, "prompt": text, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for k, text in enumerate(keys)]  # fmt: skip  # noqa: E501
    (data / "ifeval_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    wish = Wish(benchmarks=("hellaswag", "piqa", "ifeval"), samples=2, max_new_tokens=3)
    judge(model, data, None, wish)
    told = capsys.readouterr().err.splitlines()
    # Bytes are tokens here: the longest context and all choices of each item, to two digits.
    whole = sum(
        max(map(len, item.contexts)) + sum(map(len, item.continuations))
        for one in SUITES["retention"].named(("hellaswag", "piqa"))
        for item in load_set(one, list(data.iterdir()), "retention", 0)
    )
    assert told[0] == f"choices: 80 items, about {float(f'{whole:.2g}'):,.0f} tokens through the model"
    assert told[1].startswith("ifeval: 18 responses (9 items, 2 samples each) of up to 3 tokens")
    assert told[1].endswith("at most 54 tokens")
    assert told[2].endswith("shorten it; without it: --tasks hellaswag,piqa")
    judge(model, data, None)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_gate_takes_the_rows_and_refuses_changed_items(tmp_path: Path) -> None:
    data = sets(tmp_path / "data")
    for name, seed in (("a", 0), ("b", 1)):
        judge(checkpoint(tmp_path / name, seed), data, tmp_path / f"out-{name}")
    options = ["gate", "a", "b", "--rows-base", str(tmp_path / "out-a" / "samples.parquet"), "--rows-new"]
    done = CliRunner().invoke(app, [*options, str(tmp_path / "out-b" / "samples.parquet"), "--json"])
    assert done.exit_code in (0, 3, 4)
    assert "hellaswag" in done.stdout
    assert "piqa" in done.stdout
    rows = (data / "piqa_validation.jsonl").read_text().splitlines()
    rows[7] = rows[7].replace("take", "pick")
    (data / "piqa_validation.jsonl").write_text("\n".join(rows) + "\n")
    judge(tmp_path / "b", data, tmp_path / "out-c")
    done = CliRunner().invoke(app, [*options, str(tmp_path / "out-c" / "samples.parquet")])
    assert isinstance(done.exception, DataError)
    assert "not evaluated alike" in str(done.exception)
    assert "benchmarks.piqa.hash" in str(done.exception)


def test_items_in_training_data_are_left_out_counted_and_both_scores_shown(tmp_path: Path) -> None:
    model, data = checkpoint(tmp_path / "m"), sets(tmp_path / "data")
    whole = judge(model, data, None)
    listed = tmp_path / "hits.txt"
    listed.write_text("piqa/00003\npiqa/00004\nelsewhere/1\n")
    found = judge(model, data, tmp_path / "out", exclude=listed)
    told = found["metrics"]["contaminated"]
    assert set(told) == {"piqa"}
    assert told["piqa"]["items"] == 2
    assert told["piqa"]["score"] == whole["metrics"]["tasks"]["piqa"]
    assert found["metrics"]["tasks"]["piqa"]["items"] == 58
    assert found["metrics"]["tasks"]["hellaswag"] == whole["metrics"]["tasks"]["hellaswag"]
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert not {("piqa", "00003"), ("piqa", "00004")} & {(row["task"], row["item_id"]) for row in rows}
    assert found["config"]["excluded"]["items"] == 3
    listed.write_text("elsewhere/1\n")
    with pytest.raises(SpecError, match="none of its 1 ids is asked"):
        judge(model, data, None, exclude=listed)
    listed.write_text("".join(f"piqa/{k:05d}\n" for k in range(60)))
    with pytest.raises(SpecError, match="all 60 items of piqa stand in training data"):
        judge(model, data, None, exclude=listed)
    listed.write_text("no id\n")
    with pytest.raises(DataError, match=r"hits\.txt:1"):
        judge(model, data, None, exclude=listed)


def test_what_cannot_be_judged_is_told(tmp_path: Path) -> None:
    model, data = checkpoint(tmp_path / "m"), sets(tmp_path / "data")
    with pytest.raises(DataError, match="prism eval fetch retention --to DIR"):
        judge(model, data, None, Wish(benchmarks=("mmlu",)))
    with pytest.raises(DataError, match="no such folder"):
        judge(model, tmp_path / "nowhere", None)
    with pytest.raises(CheckpointError, match=r"no config\.json|no such folder"):
        judge(data, data, None)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="tokenizer"):
        judge(model, data, None)
    broken = build_model(tiny_config("llama", 32, 2, 258), 0)
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan  # type: ignore[index,union-attr]
    save_checkpoint(broken, build_byte_tokenizer(), tmp_path / "nan")
    with pytest.raises(StageError, match="NaN or infinite"):
        judge(tmp_path / "nan", data, None)


def test_sampled_suites_state_their_sampling_and_count_what_was_cut(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m")
    wish = Wish(benchmarks=("math", "science"), limit=6, samples=2, max_new_tokens=4)
    found = evaluate(str(model), "micro", wish, Place(out=tmp_path / "out"), as_json=True)
    how = found["config"]["benchmarks"]["math"]["sampling"]
    assert how == {"samples": 2, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4}
    rows = read_rows(tmp_path / "out" / "samples.parquet")
    assert len(rows) == 24
    cut = [row for row in rows if row["task"] == "math" and not row["finished"]]
    assert found["metrics"]["tasks"]["math"]["truncation"] == pytest.approx(100 * len(cut) / 12)
    with pytest.raises(SpecError, match=r"made otherwise: benchmarks\.math\.sampling\.temperature"):
        evaluate(str(model), "micro", Wish(**{**vars(wish), "temperature": 0.0}), Place(out=tmp_path / "out"))
    # An empty response is an answer that is wrong, not a crash.
    empty = [row for row in rows if not row["response"].strip()]
    assert all(row["score"] == 0.0 for row in empty)
    far = Wish(benchmarks=("keys",), limit=3, lengths=(200, 300), max_new_tokens=3)
    lengths = evaluate(str(model), "long", far, Place(), as_json=True)["metrics"]["lengths"]
    assert {name: score["items"] for name, score in lengths.items()} == {"200": 3, "300": 3}


DRIVER = """
import signal, sys
from pathlib import Path
from prismlab.evaluate import work
work.CHUNK_ITEMS = 4
from prismlab.tools.evaluate import Place, Wish, evaluate
model, data, out, after = sys.argv[1:]
rename, left = Path.replace, int(after)

def counted(self, target):
    global left
    found = rename(self, target)
    if Path(target).parent.name == "parts":
        left -= 1
        if left == 0:
            signal.setitimer(signal.ITIMER_PROF, 0.002)  # then SIGPROF, which ends a process as SIGKILL does
    return found

Path.replace = counted
evaluate(model, "retention", Wish(benchmarks=("hellaswag", "piqa")), Place(source=Path(data), out=Path(out)))
"""


def killed(model: Path, data: Path, out: Path, after: int) -> bool:
    """Run in a process of its own that is killed a moment after ``after`` more chunks lie there; whether it was."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", DRIVER, str(model), str(data), str(out), str(after)]
    done = subprocess.run(arguments, env=env, capture_output=True)
    assert done.returncode in (0, -signal.SIGPROF), done.stderr
    return done.returncode != 0


def kill_and_resume(tmp_path: Path, kills: int, items: int) -> None:
    model, data = checkpoint(tmp_path / "m"), sets(tmp_path / "data", items)
    assert not killed(model, data, tmp_path / "whole", 10**6)
    out, seen = tmp_path / "out", dict[str, tuple[int, int]]()
    for _ in range(kills):
        assert killed(model, data, out, 1), "the evaluation ended before it was killed often enough"
        now = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (out / "parts").glob("*.parquet")}
        # What was judged before was not judged again: its files are the same ones.
        assert {name: now[name] for name in seen} == seen
        seen = now
    assert not killed(model, data, out, 10**6)
    for name in ("samples.parquet", "choices.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = read_rows(out / "samples.parquet")
    keys = [(row["task"], row["item_id"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * items
    metrics = json.loads((out / "eval.json").read_text())["metrics"]
    assert {name: metrics[name] for name in ("tasks", "domains", "average")} == aggregate(rows)


def test_killed_each_item_is_judged_once(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 1, 40)


@pytest.mark.slow
def test_killed_twenty_times_each_item_is_judged_once(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 20, 120)


def test_a_torn_chunk_is_judged_again(tmp_path: Path) -> None:
    model, data, out = checkpoint(tmp_path / "m"), sets(tmp_path / "data"), tmp_path / "out"
    found = judge(model, data, out)
    part = next((out / "parts").glob("hellaswag-*.parquet"))
    part.write_bytes(part.read_bytes()[:200])
    assert judge(model, data, out)["metrics"] == found["metrics"]


WINOGRANDE = [
    {"sentence": f"Ann met Bea and _ was {k} late.", "option1": "Ann", "option2": "Bea", "answer": str(k % 2 + 1)}
    for k in range(12)
]
BOOLEAN = [{"input": f"not ( True ) and {k} is", "target": ("False", "True")[k % 2]} for k in range(12)]


def fake_hub(name: str, config: str | None, splits: list[str]) -> dict[str, Any]:
    """Rows in the schema that the harness's tasks ask for."""
    import datasets

    assert (name, config) in {("allenai/winogrande", "winogrande_xl"), ("SaylorTwift/bbh", "boolean_expressions")}
    rows = WINOGRANDE if "winogrande" in name else BOOLEAN
    return {split: datasets.Dataset.from_list(rows) for split in splits}


def test_leaderboards_go_through_the_harness_from_fetched_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from prismlab.evaluate import harness, harness_run
    from prismlab.evaluate.harness_scores import normalised

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = checkpoint(tmp_path / "m")
    with pytest.raises(DataError, match="prism eval fetch leaderboard-v1 --to DIR"):
        evaluate(str(model), "leaderboard-v1", Wish(), Place())
    v1 = SUITES["leaderboard-v1"]
    harness.fetch_tasks(v1, v1.named(("winogrande",)), tmp_path / "sets", Silent(), load=fake_hub)
    wish = Wish(benchmarks=("winogrande",), shots=2)
    place = Place(source=tmp_path / "sets", out=tmp_path / "out")
    found = evaluate(str(model), "leaderboard-v1", wish, place, as_json=True)
    rows = read_rows(tmp_path / "out" / "samples.parquet")
    assert len(rows) == 12
    score = found["metrics"]["tasks"]["winogrande"]
    assert score["value"] == pytest.approx(100 * sum(row["score"] for row in rows) / 12)
    assert score["truncation"] is None
    # Items in training data: two are left out, and the score with them is shown.
    listed = tmp_path / "hits.txt"
    listed.write_text("winogrande/winogrande:00003\nwinogrande/winogrande:00010\nelsewhere/1\n")
    apart = Place(source=tmp_path / "sets", out=tmp_path / "apart", exclude=listed)
    without = evaluate(str(model), "leaderboard-v1", wish, apart, as_json=True)
    gone = {"winogrande:00003", "winogrande:00010"}
    kept = read_rows(tmp_path / "apart" / "samples.parquet")
    assert [row["item_id"] for row in kept] == [row["item_id"] for row in rows if row["item_id"] not in gone]
    assert without["metrics"]["tasks"]["winogrande"]["value"] == pytest.approx(10 * sum(row["score"] for row in kept))
    assert without["metrics"]["contaminated"] == {"winogrande": {"items": 2, "score": score}}
    assert without["config"]["excluded"]["items"] == 3
    assert without["config"]["benchmarks"] == found["config"]["benchmarks"]
    for text, said in (
        ("winogrande/3", "they are called winogrande/winogrande:00000"),
        ("piqa/1", "none of its 1 ids"),
    ):
        listed.write_text(text + "\n")
        with pytest.raises(SpecError, match=said):
            evaluate(str(model), "leaderboard-v1", wish, Place(source=tmp_path / "sets", exclude=listed))
    with pytest.raises(DataError, match="gsm8k: its rows are not there"):
        evaluate(str(model), "leaderboard-v1", Wish(benchmarks=("gsm8k",)), Place(source=tmp_path / "sets"))
    # One of the 24 subtasks stands for them all: its score is normalised against its two choices.
    v2 = SUITES["leaderboard-v2"]
    one = "leaderboard_bbh_boolean_expressions"
    for module in (harness, harness_run):
        monkeypatch.setattr(module, "leaves", lambda manager, name: [one] if name == "leaderboard_bbh" else [name])
    harness.fetch_tasks(v2, v2.named(("bbh",)), tmp_path / "sets", Silent(), load=fake_hub)
    second = Place(source=tmp_path / "sets", out=tmp_path / "second")
    found = evaluate(str(model), "leaderboard-v2", Wish(benchmarks=("bbh",)), second, as_json=True)
    raw = found["metrics"]["subtasks"]["bbh"][one]["value"]
    assert found["metrics"]["tasks"]["bbh"]["value"] == pytest.approx(normalised(raw / 100, 0.5))


def test_leaves_of_the_harness_s_groups() -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from prismlab.evaluate import harness
    from prismlab.evaluate.harness_scores import CHOICES

    manager = harness.index_of(["arc_challenge", "leaderboard", "ruler"])
    found = {
        name: {one.name: harness.leaves(manager, str(one.task)) for one in SUITES[name].benchmarks}
        for name in ("leaderboard-v1", "leaderboard-v2", "ruler")
    }
    assert len(found["leaderboard-v1"]["mmlu"]) == 57
    assert len(found["leaderboard-v2"]["bbh"]) == 24
    assert all(leaf in CHOICES for name in ("bbh", "musr") for leaf in found["leaderboard-v2"][name])
    assert len({leaf for some in found["ruler"].values() for leaf in some}) == 13
    # Our table of choices is the harness's, where its configuration lists them.
    for leaf in found["leaderboard-v2"]["bbh"]:
        assert CHOICES[leaf] == len(manager.task_index[leaf].cfg["doc_to_choice"])
    with pytest.raises(SpecError, match="no task 'nothing'"):
        harness.leaves(manager, "nothing")


def test_without_the_harness_its_suites_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    (tmp_path / "sets").mkdir()
    with pytest.raises(MissingExtra, match=r"prismlab\[eval\]"):
        evaluate(str(checkpoint(tmp_path / "m")), "leaderboard-v1", Wish(), Place(source=tmp_path / "sets"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "x"], "name one CHECKPOINT and --suite"),
        (["eval", "x", "--suite", "nothing"], "there are retention"),
        (["eval", "fetch", "retention"], "--to DIR"),
        (["eval", "fetch", "micro", "--to", "x"], "nothing to fetch"),
        (["eval", "x", "--suite", "retention", "--dtype", "int8"], "one of float32"),
    ],
)
def test_options_are_refused_in_words(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SpecError)
    assert message in str(done.exception)


def test_suites_are_listed() -> None:
    done = CliRunner().invoke(app, ["eval", "suites", "--json"])
    assert done.exit_code == 0
    suites = json.loads(done.stdout)["suites"]
    assert suites["retention"]["benchmarks"][0]["items"] == 10_042
