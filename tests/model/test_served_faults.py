"""Servers that answer late, in part, or with nonsense: each is tried again or named, none becomes a response."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismlab.errors import StageError
from prismlab.model import wire as module
from prismlab.model.generate import SamplingSettings, prompt_ids
from prismlab.model.served import CompletionsSampler, TokenSampler
from prismlab.model.wire import Wire

EOS = 256
SETTINGS = SamplingSettings(max_new_tokens=8)
RIGHT = {"text": "7", "finish_reason": "stop", "token_ids": [7, EOS], "logprobs": {"token_logprobs": [-1.0, -0.5]}}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab={**vocab, "<|end|>": EOS}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


TOKENIZER = byte_tokenizer()


def wire(*answers: httpx.Response | Exception, **changes: Any) -> Wire:
    """A server that gives these answers in turn, the last one ever after."""
    left = list(answers)

    def handle(_: httpx.Request) -> httpx.Response:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Wire("http://model.test", transport=httpx.MockTransport(handle), **{"wait": 0.001, **changes})


def asked(line: Wire) -> Any:
    [[one]] = CompletionsSampler(line, "m", TOKENIZER).sample([prompt_ids(TOKENIZER, "a")], 1, SETTINGS, 0)
    return one


def of_choice(**changes: Any) -> httpx.Response:
    body = {"choices": [{**RIGHT, **changes}]}
    return httpx.Response(200, content=json.dumps(body).encode())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": None}, "a choice without a 'text'"),
        ({"finish_reason": None}, "ended by None, neither"),
        ({"finish_reason": "abort"}, "ended by 'abort', neither"),
        ({"finish_reason": ["stop"]}, r"ended by \['stop'\], neither"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "no finite numbers"),
        ({"logprobs": {"token_logprobs": [-1.0, None]}}, "no finite numbers"),
        ({"logprobs": {"token_logprobs": [-1.0, float("-inf")]}}, "no finite numbers"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "2 token ids, but 1 log-prob"),
        ({"token_ids": [1, "x"]}, "token ids that are none"),
        ({"token_ids": [1, -1]}, "token ids that are none"),
    ],
)
def test_a_response_that_is_none(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        asked(wire(of_choice(**changes)))


def test_a_choice_is_an_object_and_choices_a_list() -> None:
    for body in ({"choices": ["text"]}, {"choices": {"text": "a"}}, {"choices": []}, ["choices"]):
        with pytest.raises(StageError, match=r"without 'choices'|without a 'text'"):
            asked(wire(httpx.Response(200, json=body)))
    odd = httpx.Response(200, json={"choices": [{"text": "ab", "finish_reason": "length"}], "usage": [1]})
    assert (asked(wire(odd)).tokens, asked(wire(odd)).finished) == (2, False)


def test_more_choices_than_asked_for_are_left() -> None:
    one = asked(wire(httpx.Response(200, json={"choices": [RIGHT, {**RIGHT, "text": "8"}]})))
    assert (one.text, one.tokens) == ("7", 2)


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.Response(200, content=b'{"choices": [{"text": "7", "fini'),
        httpx.Response(200, content=b'{"choices": "\xff\xfe"}'),
        httpx.Response(200, content=b""),
        httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
        httpx.ReadTimeout("silent"),
        httpx.DecodingError("no gzip"),
        httpx.Response(502, text="gateway"),
    ],
)
def test_what_broke_off_is_asked_for_again(trouble: httpx.Response | Exception) -> None:
    assert asked(wire(trouble, trouble, of_choice())).text == "7"
    with pytest.raises(StageError, match=r"no answer in 3 tries, at last"):
        asked(wire(trouble, tries=3))


def test_a_page_is_no_answer() -> None:
    with pytest.raises(StageError, match="answered 302"):
        asked(wire(httpx.Response(302, text="moved", headers={"location": "/login"})))
    with pytest.raises(StageError, match="is no JSON: '<html>'"):
        asked(wire(httpx.Response(200, text="<html>")))
    for address in ("http://", "http:///v1", "https://:80"):
        with pytest.raises(StageError, match="names no host"):
            Wire(address)


def test_a_full_queue_is_waited_for_however_often_it_says_so() -> None:
    full = [httpx.Response(429, text="queue")] * 20
    assert asked(wire(*full, of_choice(), tries=2, wait=1e-6)).text == "7"
    with pytest.raises(StageError, match=r"no answer in 2 tries, at last 429 queue"):
        asked(wire(full[0], tries=2, timeout=0.05))


def test_how_long_a_server_asks_to_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 1_000_000.0)
    date = formatdate(1_000_030, usegmt=True)
    assert [module._seconds_asked(text) for text in ("7", date, "", "soon", "²", "-3", "1.5")] == [
        7.0,
        30.0,
        *[None] * 5,
    ]


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that sends a byte every 20 ms, for two minutes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "6000")
            self.end_headers()
            try:
                for _ in range(6000):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.02)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_drips_has_no_more_time_than_others(dripping: str) -> None:
    """httpx's own limit, one of silence between two bytes, never ends this answer, on a busy machine neither."""
    with pytest.raises(StageError, match=r"no answer in 1 tries, at last ReadTimeout: the answer was not whole after"):
        Wire(dripping, timeout=3.0, tries=1).post("/v1/completions", {})


def test_a_connection_that_is_dropped_midway_is_made_again() -> None:
    """The first answer ends before its length; the second one is whole."""
    body = json.dumps({"choices": [RIGHT]}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for cut in (len(body) // 2, len(body)):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(head % len(body) + body[:cut])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener:
        assert asked(Wire(f"http://127.0.0.1:{listener.getsockname()[1]}", wait=0.001)).text == "7"
        thread.join(10)


TOLD = [[-0.5, 65, None], [-1.5, EOS, None]]


def token_answer(told: Any = TOLD, **about: Any) -> httpx.Response:
    return httpx.Response(200, content=json.dumps({"meta_info": {"output_token_logprobs": told, **about}}).encode())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: token_answer([[float("nan"), 65, None]]), "no finite numbers"),
        (lambda: token_answer([["x", 65, None]]), "no finite numbers"),
        (lambda: token_answer([[-0.5, 65.5, None]]), "token ids that are none"),
        (lambda: token_answer([[-0.5]]), "without token ids and log-probabilities"),
        (lambda: token_answer({"a": 1}), "without token ids and log-probabilities"),
        (lambda: token_answer([]), "without token ids and log-probabilities"),
        (lambda: token_answer([[None, 65, None]]), "without token ids and log-probabilities"),
        (lambda: token_answer(TOLD * 5), "a response of 10 tokens, 8 were asked for"),
        (lambda: token_answer(finish_reason={"type": "abort", "message": "out of memory"}), "ended by 'abort'"),
        (lambda: httpx.Response(200, json={"meta_info": [1]}), "without token ids and log-probabilities"),
        (lambda: httpx.Response(200, json=["x"]), "without token ids and log-probabilities"),
    ],
)
def test_tokens_that_are_none(answer: Callable[[], httpx.Response], said: str) -> None:
    with pytest.raises(StageError, match=said):
        TokenSampler(wire(answer()), TOKENIZER).sample([[EOS, 5]], 1, SETTINGS, 3)


def test_tokens_that_end_as_they_should() -> None:
    for reason in ({"type": "stop", "matched": EOS}, {"type": "length", "length": 2}, None):
        [[one]] = TokenSampler(wire(token_answer(finish_reason=reason)), TOKENIZER).sample([[EOS, 5]], 1, SETTINGS, 3)
        assert (one.token_ids, one.sampler_logprobs, one.finished) == ([65, EOS], [-0.5, -1.5], True)
