"""Samplers over HTTP: against scripted answers, and for real against ``transformers serve`` on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismlab.data.items import Item
from prismlab.errors import StageError
from prismlab.model.generate import SamplingSettings, TransformersSampler, prompt_ids
from prismlab.model.served import CompletionsSampler, TokenSampler
from prismlab.model.wire import Wire, in_parallel
from prismlab.run.step import Silent
from prismlab.score import score_items

EOS = 256
SETTINGS = SamplingSettings(max_new_tokens=8)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab={**vocab, "<|end|>": EOS}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


TOKENIZER = byte_tokenizer()
Answer = Callable[[dict[str, Any]], httpx.Response]


def wire(answer: Answer, **changes: Any) -> Wire:
    def handle(request: httpx.Request) -> httpx.Response:
        return answer(json.loads(request.content))

    return Wire("http://model.test", transport=httpx.MockTransport(handle), **{"wait": 0.001, **changes})


def choices(n: int, **more: Any) -> httpx.Response:
    rows = [{"text": f"t{at}", "finish_reason": "stop", **more} for at in range(n)]
    return httpx.Response(200, json={"choices": rows, "usage": {"completion_tokens": 5}})


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.done = 0

    def note(self, text: str) -> None:
        self.said.append(text)

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self.done += n


def ids(text: str) -> list[int]:
    return prompt_ids(TOKENIZER, text)


def test_a_full_server_is_asked_once_a_prompt() -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> httpx.Response:
        asked.append(body)
        return choices(body["n"], token_ids=[7, 8, EOS], logprobs={"token_logprobs": [-1.0, -2.0, -0.5]})

    sampler = CompletionsSampler(wire(answer), "m", TOKENIZER)
    progress = Notes()
    groups = sampler.sample([ids("a"), ids("b")], 4, SETTINGS, [5, 6], progress)
    assert [len(group) for group in groups] == [4, 4]
    assert len(asked) == 2
    assert (groups[1][3].token_ids, groups[1][3].tokens, groups[1][3].finished) == ([7, 8, EOS], 3, True)
    assert groups[0][0].logprobs == [-1.0, -2.0, -0.5]
    assert (sampler.missing, progress.said, progress.done) == (set(), [], 8)
    # The start token travels as its text: the server reads the very tokens that the model is given in process.
    assert [body["prompt"] for body in asked] == ["<|end|>a", "<|end|>b"]
    assert asked[0]["seed"] != asked[1]["seed"]


def test_what_a_server_cannot_give_is_asked_for_and_missing() -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> httpx.Response:
        asked.append(body)
        if "return_token_ids" in body:
            return httpx.Response(422, json={"detail": "Unexpected fields in the request: {'return_token_ids'}"})
        return choices(1)  # whatever n is

    sampler = CompletionsSampler(wire(answer), "m", TOKENIZER)
    progress = Notes()
    groups = sampler.sample([ids("a"), ids("b"), ids("c")], 3, SETTINGS, [1, 2, 3], progress)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert sampler.missing == {"n", "logprobs", "return_token_ids"}
    assert "n" in asked[0]
    assert len(asked) == 1 + 3 * 3
    assert all("return_token_ids" not in body for body in asked[1:])
    assert len({body["seed"] for body in asked[1:]}) == 9
    one = groups[2][1]
    assert (one.logprobs, one.token_ids, one.tokens) == (None, [], 5)
    assert progress.said == ["the server tells no log-probabilities and no token ids: they are null in the rows"]
    item = Item(id="q", task="sums", domain="math", question="1+1?", answer="2", verifier="number")
    rows = score_items(sampler, TOKENIZER, [item], 2, SETTINGS, 1, "think", strict_format=False)
    assert [(row["tokens"], row["verdict"]) for row in rows] == [(5, "wrong"), (5, "wrong")]
    assert {row["nll"] for row in rows} == {None}


def test_log_probabilities_of_another_distribution_are_not_taken() -> None:
    answer: Answer = lambda body: choices(body["n"], logprobs={"token_logprobs": [-1.0]})  # noqa: E731
    warm = SamplingSettings(max_new_tokens=8, temperature=0.6)
    [[one]] = CompletionsSampler(wire(answer), "m", TOKENIZER).sample([ids("a")], 1, warm, 0)
    assert one.logprobs is None


@pytest.mark.parametrize("trouble", ["busy", "broken", "gone"])
def test_a_server_with_trouble_is_asked_again(trouble: str) -> None:
    count = {"asked": 0}

    def answer(body: dict[str, Any]) -> httpx.Response:
        count["asked"] += 1
        if count["asked"] % 3:
            if trouble == "gone":
                raise httpx.ConnectError("refused")
            return httpx.Response(429 if trouble == "busy" else 500, text="later", headers={"retry-after": "0"})
        return choices(body["n"])

    groups = CompletionsSampler(wire(answer), "m", TOKENIZER).sample([ids("a")] * 4, 2, SETTINGS, [1, 2, 3, 4])
    assert [len(group) for group in groups] == [2] * 4


def test_a_server_that_stays_down_is_named_and_nothing_becomes_a_zero() -> None:
    def answer(body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(503, text="no\x1b[31m model")

    with pytest.raises(
        StageError, match=r"http://model.test/v1/completions: no answer in 3 tries, at last 503"
    ) as told:
        CompletionsSampler(wire(answer, tries=3), "m", TOKENIZER).sample([ids("a")], 2, SETTINGS, 0)
    assert "\x1b" not in str(told.value)
    with pytest.raises(StageError, match="answered 404: no such model"):
        CompletionsSampler(wire(lambda body: httpx.Response(404, text="no such model")), "m", TOKENIZER).sample(
            [ids("a")], 1, SETTINGS, 0
        )
    for broken in (httpx.Response(200, text="<html>"), httpx.Response(200, json={"x": 1})):
        with pytest.raises(StageError, match=r"no JSON|without 'choices'"):
            CompletionsSampler(wire(lambda body, b=broken: b), "m", TOKENIZER).sample([ids("a")], 1, SETTINGS, 0)
    with pytest.raises(StageError, match="does not begin with http"):
        Wire("ftp://x")


def test_a_busy_server_s_pause_is_kept_by_all() -> None:
    times: list[float] = []

    def answer(body: dict[str, Any]) -> httpx.Response:
        times.append(time.monotonic())
        return httpx.Response(429, headers={"retry-after": "1"}) if len(times) == 1 else choices(1)

    line = wire(answer)
    list(in_parallel(lambda body: line.post("/v1/completions", body), [{}], 1))
    assert times[1] - times[0] >= 1.0


def test_only_so_many_at_a_time() -> None:
    at_once, most, lock = [0], [0], threading.Lock()

    def work(job: int) -> int:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.005)
        with lock:
            at_once[0] -= 1
        return job * job

    assert sorted(in_parallel(work, list(range(40)), 5)) == [(n, n * n) for n in range(40)]
    assert 2 <= most[0] <= 5
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda job: 1 // (job - 20), list(range(40)), 4))


def test_a_prompt_that_is_other_tokens_as_text_is_refused() -> None:
    spelled = prompt_ids(TOKENIZER, "say <|end|> now")
    sampler = CompletionsSampler(wire(lambda body: choices(1)), "m", TOKENIZER)
    with pytest.raises(StageError, match="prompt 1 is not the same tokens"):
        sampler.sample([ids("a"), spelled], 1, SETTINGS, 0)


def test_tokens_and_weights() -> None:
    loaded: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/update_weights_from_disk":
            loaded.append(body["model_path"])
            return httpx.Response(200, json={"success": len(loaded) < 2, "message": "out of memory"})
        told = [[-0.5, 65, None], [-1.5, EOS, None]]
        return httpx.Response(200, json={"text": "?", "meta_info": {"output_token_logprobs": told}})

    line = Wire("http://model.test", transport=httpx.MockTransport(handle), wait=0.001)
    sampler = TokenSampler(line, TOKENIZER)
    sampler.take_weights(Path("/w/1"))
    assert loaded == ["/w/1"]
    with pytest.raises(StageError, match="did not take the weights in /w/2: out of memory"):
        sampler.take_weights(Path("/w/2"))
    [[one, _]] = sampler.sample([ids("a")], 2, SETTINGS, 3)
    assert one.token_ids == [65, EOS]
    assert one.text == TOKENIZER.decode([65])
    assert one.sampler_logprobs == [-0.5, -1.5]
    assert one.finished
    [[other]] = sampler.sample([ids("a")], 1, SamplingSettings(max_new_tokens=3, top_p=0.9), 3)
    assert other.sampler_logprobs is None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """``transformers serve`` on loopback, and a checkpoint for it."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi, uvicorn and openai")
    pytest.importorskip("openai", reason="transformers serve needs fastapi, uvicorn and openai")
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=257, **shape, eos_token_id=EOS, bos_token_id=None))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/health", timeout=1.0).is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
                assert process.poll() is None, "the server died"
            yield url, folder
        finally:
            process.kill()


@pytest.mark.slow
def test_transformers_serve(served: tuple[str, Path]) -> None:
    """Greedy responses equal those in process; sampled ones differ from one another; what is missing is recorded."""
    url, folder = served
    model = LlamaForCausalLM.from_pretrained(folder)
    sampler = CompletionsSampler(Wire(url), str(folder), TOKENIZER, at_a_time=4)
    prompts = [ids(text) for text in ("1+2=?\n", "abc", "Q: 7*6\n", "x")]
    greedy = SamplingSettings(max_new_tokens=12, temperature=0.0)
    over, here = (
        sampler.sample(prompts, 1, greedy, 0),
        TransformersSampler(model, TOKENIZER).sample(prompts, 1, greedy, 0),
    )
    assert [[one.text for one in group] for group in over] == [[one.text for one in group] for group in here]
    assert [[one.tokens for one in group] for group in over] == [[one.tokens for one in group] for group in here]
    assert sampler.missing == {"logprobs", "return_token_ids"}
    progress = Notes()
    [group] = sampler.sample(prompts[:1], 12, SETTINGS, 0, progress)
    assert sampler.missing == {"n", "logprobs", "return_token_ids"}
    assert progress.done == 12
    assert len({one.text for one in group}) > 4, "it samples, and is not greedy"
    items = [
        Item(id=str(n), task="sums", domain="math", question=f"{n}+1=?", answer=str(n + 1), verifier="number")
        for n in range(3)
    ]
    rows = score_items(sampler, TOKENIZER, items, 4, SETTINGS, 1, "think", strict_format=True, progress=Notes())
    assert len(rows) == 12
    assert {row["nll"] for row in rows} == {None}
    assert {row["score"] for row in rows} == {0.0}, "judged: a random model keeps no format"
    assert all(1 <= row["tokens"] <= 8 for row in rows)
