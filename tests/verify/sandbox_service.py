"""A service of level C for the tests: the protocol of ``sandbox.remote`` over a local sandbox."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prismlab.verify.sandbox.box import Sandbox
from prismlab.verify.sandbox.outcome import Limits

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""Path and body to status and answer: a JSON value, or bytes as they are."""


def over(box: Sandbox) -> Answer:
    """Answers by running what is asked in ``box``."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/record":
            return 200, {"protocol": 1, **box.record}
        limits = Limits(**body["limits"])
        if path == "/v1/run":
            done = box.run(body["program"], base64.b64decode(body["stdin"]), limits)
            wrote = {name: base64.b64encode(getattr(done, name)).decode() for name in ("stdout", "stderr")}
            rest = {name: getattr(done, name) for name in ("status", "reason", "code", "seconds", "peak")}
            return 200, {**wrote, **rest}
        if path == "/v1/values":
            found = box.values(body["program"], body["entry"], body["arguments"], limits)
            return 200, {"status": found.status, "reason": found.reason, "values": found.values}
        judged = box.tests(body["program"], body["tests"], body["entry"], body["prelude"], limits)
        return 200, {"verdict": judged.verdict, "reason": judged.reason}

    return answer


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on loopback while the context lasts; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            status, said = answer(self.path, {**body, "headers": dict(self.headers)})
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
