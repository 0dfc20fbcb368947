"""Requests to a server of models: time limits, tries again, and as many at a time as it bears."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prismlab.errors import MissingExtra, StageError, in_a_line, shown

try:
    import httpx
except ImportError as error:
    raise MissingExtra("httpx", "train", "sampling over HTTP") from error

T = TypeVar("T")
TRIES = 6
"""How often a request is made before the server counts as down: 1 + 2 + 4 + 8 + 16 s of waiting between them."""
LONGEST_PAUSE = 60.0
"""Seconds that a server's ``Retry-After`` is followed at most."""
BUSY = (429, 503)
"""Answers of a server that has too much to do."""
LATER = (*BUSY, 408, 409, 425, 500, 502, 504)
"""Answers after which the same request may succeed."""


class Refused(StageError):
    """The server understood the request and will not answer it; ``status`` and ``text`` are its words."""

    def __init__(self, url: str, status: int, text: str) -> None:
        super().__init__(f"{url} answered {status}: {shown(text, 300)}")
        self.status, self.text = status, text


class Wire:
    """A server's address and how it is spoken to; may be shared by threads.

    Args:
        url: address, with ``http://`` or ``https://``.
        timeout: seconds that an answer may take, that is, the longest response.
        tries: requests before the server counts as down.
        wait: first pause between two tries, in seconds; it doubles, and is up to a half longer at random, so that
            clients do not come back all at once.
        transport: of httpx, for tests.
    """

    def __init__(
        self, url: str, timeout: float = 3600.0, tries: int = TRIES, wait: float = 1.0, transport: Any = None
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise StageError(f"server address {shown(url, 100)!r} does not begin with http:// or https://")
        self.url = url.rstrip("/")
        self._tries, self._wait = tries, wait
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        times = httpx.Timeout(timeout, connect=10.0)
        self._client = httpx.Client(timeout=times, limits=limits, transport=transport)
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._rng = random.Random(0)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a request.

        Raises:
            Refused: the server answers that the request is wrong.
            StageError: it cannot be reached, or still fails after all tries.
        """
        trouble = ""
        for attempt in range(self._tries):
            self._hold()
            try:
                answer = self._client.post(f"{self.url}{path}", json=body)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {in_a_line(error)}"
                self._pause(attempt, None)
                continue
            if answer.status_code in LATER:
                trouble = f"{answer.status_code} {shown(answer.text, 150)}"
                self._pause(attempt, answer)
                continue
            if answer.is_error:
                raise Refused(f"{self.url}{path}", answer.status_code, answer.text)
            try:
                return answer.json()
            except json.JSONDecodeError as error:
                raise StageError(f"{self.url}{path}: the answer is no JSON: {shown(answer.text, 100)!r}") from error
        raise StageError(
            f"{self.url}{path}: no answer in {self._tries} tries, at last {shown(trouble, 200)}; see that the server "
            "runs, then run the same command again to go on"
        )

    def _hold(self) -> None:
        """Wait while the server has asked for a pause."""
        with self._lock:
            left = self._not_before - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _pause(self, attempt: int, answer: httpx.Response | None) -> None:
        """Wait before the next try; a busy server's pause is kept by all threads."""
        if attempt + 1 == self._tries:
            return
        with self._lock:
            seconds = self._wait * 2**attempt * (1.0 + 0.5 * self._rng.random())
        if answer is not None and answer.status_code in BUSY:
            asked = answer.headers.get("retry-after", "")
            seconds = max(seconds, min(LONGEST_PAUSE, float(asked))) if asked.isdigit() else seconds
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + seconds)
        time.sleep(seconds)


def in_parallel(work: Callable[[T], Any], jobs: Sequence[T], at_a_time: int) -> Iterator[tuple[int, Any]]:
    """Place and result of each job as it is done, ``at_a_time`` under way; the first error ends it.

    Jobs that have not begun are dropped then, and those under way are waited for.
    """
    pool = ThreadPoolExecutor(at_a_time, thread_name_prefix="wire")
    waiting: dict[Future[Any], int] = {}
    rest = iter(enumerate(jobs))
    try:
        while True:
            for place, job in rest:
                waiting[pool.submit(work, job)] = place
                if len(waiting) >= 2 * at_a_time:
                    break
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
