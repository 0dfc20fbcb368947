"""Requests to a server of models: time limits, tries again, and as many at a time as it bears."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
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
FULL = 429
"""Answer of a server that takes no more requests for now."""
BUSY = (FULL, 503)
"""Answers of a server that has too much to do."""
LARGEST = 2**30
"""Bytes of the largest answer that is read."""
LATER = (*BUSY, 408, 409, 425, 500, 502, 504)
"""Answers after which the same request may succeed."""


class Refused(StageError):
    """The server understood the request and will not answer it; ``status`` and ``text`` are its words."""

    def __init__(self, url: str, status: int, text: str) -> None:
        super().__init__(f"{url} answered {status}: {shown(text, 300)}")
        self.status, self.text = status, text


@dataclass(frozen=True)
class _Answer:
    """What came back from a server."""

    status: int
    content: bytes
    retry_after: str

    @property
    def text(self) -> str:
        """The content for people."""
        return self.content.decode("utf-8", errors="replace")


class Wire:
    """A server's address and how it is spoken to; may be shared by threads.

    Args:
        url: address, with ``http://`` or ``https://``.
        timeout: seconds that an answer may take, that is, the longest response; also seconds that a server may be too
            busy (429) for one request.
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
        if not urlsplit(url).hostname:
            raise StageError(f"server address {shown(url, 100)!r} names no host, as http://localhost:8000 does")
        self.url = url.rstrip("/")
        self._timeout, self._tries, self._wait = timeout, tries, wait
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
            StageError: it cannot be reached, still fails after all tries, or answers with something else than JSON.
        """
        trouble, began, failed, busy = "", time.monotonic(), 0, 0
        while failed < self._tries:
            self._hold()
            try:
                answer = self._send(path, body)
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble = f"{type(error).__name__}: {in_a_line(error)}"
                failed = self._failed(failed, None)
                continue
            if answer.status == FULL and time.monotonic() - began < self._timeout:
                # A queue that is full is no failure: it empties as fast as responses end.
                self._pause(busy, answer)
                busy += 1
                continue
            if answer.status in LATER:
                trouble = f"{answer.status} {shown(answer.text, 150)}"
                failed = self._failed(failed, answer)
                continue
            if not 200 <= answer.status < 300:
                raise Refused(f"{self.url}{path}", answer.status, answer.text)
            try:
                return json.loads(answer.content)
            except (ValueError, RecursionError) as error:
                begun = answer.content.strip()
                if begun and not begun.startswith(b"{"):
                    raise StageError(f"{self.url}{path}: the answer is no JSON: {shown(answer.text, 100)!r}") from error
                trouble = f"an answer that broke off: {shown(answer.text[-100:], 100)!r}"
                failed = self._failed(failed, None)
        raise StageError(
            f"{self.url}{path}: no answer in {self._tries} tries, at last {shown(trouble, 200)}; see that the server "
            "runs, then run the same command again to go on"
        )

    def _send(self, path: str, body: dict[str, Any]) -> _Answer:
        """One request; httpx's own limit is one of silence, so one that drips is timed here."""
        began, content = time.monotonic(), bytearray()
        with self._client.stream("POST", f"{self.url}{path}", json=body) as answer:
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() - began > self._timeout:
                    raise httpx.ReadTimeout(f"the answer was not whole after {self._timeout:g} s")
                if len(content) > LARGEST:
                    raise StageError(f"{self.url}{path}: an answer of more than {LARGEST:,} bytes")
            return _Answer(answer.status_code, bytes(content), answer.headers.get("retry-after", ""))

    def _hold(self) -> None:
        """Wait while the server has asked for a pause."""
        with self._lock:
            left = self._not_before - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _failed(self, before: int, answer: _Answer | None) -> int:
        """Wait before the next try, where there is one; how many have failed by now."""
        if before + 1 < self._tries:
            self._pause(before, answer)
        return before + 1

    def _pause(self, before: int, answer: _Answer | None) -> None:
        """Wait, the longer the more tries went before; a busy server's pause is kept by all threads."""
        with self._lock:
            seconds = self._wait * 2 ** min(before, 16) * (1.0 + 0.5 * self._rng.random())
        seconds = min(seconds, LONGEST_PAUSE)
        if answer is not None and answer.status in BUSY:
            asked = _seconds_asked(answer.retry_after)
            seconds = seconds if asked is None else max(seconds, min(LONGEST_PAUSE, asked))
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + seconds)
        time.sleep(seconds)


def _seconds_asked(text: str) -> float | None:
    """Seconds of a ``Retry-After`` header, a number or a date (RFC 9110, section 10.2.3); None of anything else."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


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
