"""RL with responses from a small token-level server on loopback, which takes new weights from disk each step."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from prismlab.data.items import Item
from prismlab.errors import StageError
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler
from prismlab.rl import train as module
from prismlab.rl.rewards import Reward
from prismlab.run.step import Artifact, Silent


class Served:
    """The server's model, and what it was asked."""

    def __init__(self) -> None:
        self.sampler: TransformersSampler | None = None
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.asked = 0
        self.takes_weights = True
        self.lock = threading.Lock()

    def load(self, folder: Path) -> dict[str, Any]:
        self.sampler = TransformersSampler(load_model(folder), load_tokenizer(folder))
        self.loaded.append(load_file(folder / "model.safetensors"))
        return {"success": self.takes_weights, "message": "no room"}

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.sampler is not None, "no weights yet"
        asked = body["sampling_params"]
        settings = SamplingSettings(max_new_tokens=asked["max_new_tokens"], temperature=asked["temperature"])
        with self.lock:
            self.asked += 1
            [[one]] = self.sampler.sample([body["input_ids"]], 1, settings, [asked["sampling_seed"]])
        told = [[logp, token, None] for logp, token in zip(one.logprobs or [], one.token_ids, strict=True)]
        return {"text": one.text, "meta_info": {"output_token_logprobs": told}}


@pytest.fixture
def server() -> Iterator[tuple[str, Served]]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/update_weights_from_disk":
                answer = state.load(Path(body["model_path"]))
            else:
                answer = state.generate(body)
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", state
        http.shutdown()


@pytest.fixture
def go(
    start: Path,
    prompts_artifact: Artifact,
    artifact: Callable[..., Artifact],
    rl_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    def reward(item: Item, completion: Completion, penalties: Any) -> Reward:
        score = float(any(letter.isascii() and letter.isalpha() for letter in completion.text))
        return Reward(reward=score, form_ok=True, score=score, verdict="right", reason="", no_stop=0.0, repetition=0.0)

    monkeypatch.setattr(module, "reward_of", reward)

    def run(out: Path, url: str, **changes: Any) -> Any:
        out.mkdir()
        spec = rl_spec(**{"steps": 3, "keep_master": True, "server": "near", **changes})
        config = {"spec": spec, "template": "think", "seed": 3, "files": {"server": [url]}}
        return module.run(config, {"start": artifact("train", start), "prompts": prompts_artifact}, out, Silent())

    return run


def test_responses_and_weights_travel(
    go: Callable[..., Any], server: tuple[str, Served], start: Path, tmp_path: Path
) -> None:
    url, state = server
    go(tmp_path / "out", url)
    assert state.asked == 3 * 2 * 4
    assert len(state.loaded) == 3
    first = load_file(start / "model" / "model.safetensors")
    assert all(torch.equal(state.loaded[0][name], first[name].bfloat16()) for name in first)
    assert any(not torch.equal(state.loaded[2][name], state.loaded[0][name]) for name in first)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    # The server rounds to bf16, the trainer does not: the ratio is near 1 and not 1.
    assert all(0.8 < row["ratio"] < 1.25 and row["ratio"] != 1.0 for row in rows)
    final = load_file(tmp_path / "out" / "master" / "model.safetensors")
    assert max((final[name] - first[name]).abs().max().item() for name in first) > 1e-3
    responses = pq.read_table(tmp_path / "out" / "rollouts.parquet").to_pylist()
    assert len(responses) == 3 * 2 * 4
    assert len({row["response"] for row in responses}) > 10


def test_a_server_that_keeps_its_old_weights_stops_the_run(
    go: Callable[..., Any], server: tuple[str, Served], tmp_path: Path
) -> None:
    url, state = server
    state.takes_weights = False
    with pytest.raises(StageError, match=r"did not take the weights in .*: no room"):
        go(tmp_path / "out", url)


def test_without_log_probabilities_of_the_sampler(
    go: Callable[..., Any], server: tuple[str, Served], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at temperature 1"):
        go(tmp_path / "out", server[0], temperature=0.7)
    go(tmp_path / "plain", server[0], temperature=0.7, ratio_cap=None, steps=1)
