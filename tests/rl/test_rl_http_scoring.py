"""The stages ``scoring`` and ``evaluation`` against a server on loopback, also one that dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prismlab import score as score_module
from prismlab.errors import StageError
from prismlab.evaluate.stage import run as run_evaluation
from prismlab.model import wire
from prismlab.rl.prompts import run_scoring
from prismlab.run.step import Artifact, Silent
from prismlab.score import read_rows
from prismlab.study.rl import ScoringSpec
from prismlab.study.spec import EvaluationSpec, TaskSpec
from prismlab.study.world import MicroSpec


class State:
    """What the server was asked, and when it is to fail."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fails_from = 10**9


@pytest.fixture
def server() -> Iterator[tuple[str, State]]:
    state, lock = State(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                state.asked.append(body)
                down = len(state.asked) > state.fails_from
            answer: dict[str, Any] = {"choices": [], "usage": {"completion_tokens": 3}}
            for at in range(body["n"]):
                answer["choices"].append({"text": f"<think> hm </think> {at}", "finish_reason": "stop"})
            data = json.dumps(answer).encode()
            self.send_response(500 if down else 200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", state
        http.shutdown()


def given(url: str, file: Path, spec: dict[str, Any]) -> dict[str, Any]:
    file.write_text("".join(json.dumps({"q": f"{n}-{n}+1?", "a": "1"}) + "\n" for n in range(8)))
    task = {"files": [file.name], "domain": "math", "fields": {"question": "q", "answer": "a"}, "verifier": "number"}
    return {
        "spec": spec,
        "tasks": {"sums": TaskSpec.model_validate(task).model_dump(mode="json")},
        "micro": MicroSpec().model_dump(mode="json"),
        "template": "think",
        "files": {"sums": [str(file)], "server": [url]},
        "seed": 4,
    }


def test_scoring_over_http_goes_on_when_the_server_is_back(
    server: tuple[str, State], start: Path, artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: Any
) -> None:
    url, state = server
    monkeypatch.setattr(score_module, "CHUNK_SAMPLES", 6)
    monkeypatch.setattr(wire.Wire.__init__, "__defaults__", (60.0, 2, 0.001, None))
    asked = ScoringSpec(by="mid", tasks=["sums"], candidates=6, samples=3, server="near")
    config = given(url, tmp_path / "sums.jsonl", asked.model_dump(mode="json"))
    config["scratch"] = str(tmp_path / "scratch")
    inputs = {"scorer": artifact("train", start)}
    state.fails_from = 3
    with pytest.raises(StageError, match=r"no answer in 2 tries"):
        run_scoring(config, inputs, tmp_path, Silent())
    state.fails_from, first = 10**9, {body["prompt"] for body in state.asked[:2]}
    state.asked.clear()
    result = run_scoring(config, inputs, tmp_path, Silent())
    assert not first & {body["prompt"] for body in state.asked}, "the first chunk was kept"
    assert {body["model"] for body in state.asked} == {str((start / "model").resolve())}
    rows = read_rows(tmp_path / "samples.parquet")
    assert [row["score"] for row in rows] == [0.0, 1.0, 0.0] * 6
    assert {(row["nll"], row["tokens"]) for row in rows} == {(None, len("<think> hm </think> 0") + 1)}
    assert result.metrics["sums"]["histogram"] == [0, 6, 0, 0]
    assert result.tokens == sum(row["tokens"] for row in rows)


def test_evaluation_over_http(
    server: tuple[str, State], start: Path, artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    url, state = server
    asked = EvaluationSpec(tasks=["sums"], items=5, samples=2, max_new_tokens=9, server="near")
    config = {**given(url, tmp_path / "sums.jsonl", asked.model_dump(mode="json")), "heldout": 0.1, "name": "core"}
    result = run_evaluation(config, {"checkpoint": artifact("train", start)}, tmp_path, Silent())
    assert len(state.asked) == 5
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in state.asked} == {(0.6, 0.95, 9)}
    assert result.metrics["tasks"]["sums"]["value"] == 50.0
    assert {row["nll"] for row in read_rows(tmp_path / "samples.parquet")} == {None}
