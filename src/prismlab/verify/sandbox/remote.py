"""Level C: programs run by a service elsewhere, over HTTP. What it says is checked; its faults are no verdict.

Protocol, version 1. All bodies are JSON; bytes are base64; plain values are trees as of ``plain.to_plain``.

- ``GET /v1/record``: ``{"protocol": 1, "level": ..., ...}``, what the service enforces; it comes back with every
  result.
- ``POST /v1/run`` ``{"program", "stdin", "limits"}``: ``{"status", "reason", "code", "stdout", "stderr", "seconds",
  "peak"}`` as in ``outcome.Outcome``.
- ``POST /v1/values`` ``{"program", "entry", "arguments": [tree, ...], "limits"}``: ``{"status": "ended", "values":
  [[tree] or null, ...]}`` (null where the call raised) or another status with its ``reason``. What they should be is
  never sent.
- ``POST /v1/tests`` ``{"program", "tests", "entry", "prelude", "limits"}``: ``{"verdict": "passed" | "failed" |
  "no_verdict", "reason"}``.

The service has to keep the tests from the program, as ``box.Sandbox`` does. With ``PRISM_SANDBOX_TOKEN`` set,
requests carry it as a bearer token.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

from prismlab.errors import SandboxError, shown
from prismlab.verify.sandbox.compare import same_value
from prismlab.verify.sandbox.outcome import MIDDLING, Judged, Limits, Outcome, Status
from prismlab.verify.sandbox.plain import NotPlain, to_plain

TOKEN = "PRISM_SANDBOX_TOKEN"
MARGIN = 30.0
"""Seconds that a request may take beyond the program's limit: the way, and a queue."""
ATTEMPTS = 3
PAUSE = 0.5
"""Seconds before the second attempt; twice as long before the third."""


class _Fault(Exception):
    """The service did not answer, or not as the protocol says."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would carry programs and the token to another host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


class RemoteSandbox:
    """A service as a ``box.Box``. For any thread."""

    def __init__(self, address: str, *, margin: float = MARGIN, pause: float = PAUSE) -> None:
        """Ask the service what it enforces.

        Raises:
            SandboxError: it does not answer, or does not speak the protocol.
        """
        self.address, self.margin, self.pause = address.rstrip("/"), margin, pause
        self.opener = urllib.request.build_opener(_NoRedirect)
        self.record: Mapping[str, Any] = {}
        try:
            said = self._asked("record", None, 0.0, 1 << 20)
        except _Fault as error:
            raise SandboxError(
                f"the sandbox service {self.address} does not answer ({error}): start it, or correct PRISM_SANDBOX"
            ) from error
        if said.get("protocol") != 1:
            raise SandboxError(
                f"{self.address} speaks protocol {shown(said.get('protocol'), 20)}; this version speaks 1"
            )
        self.record = {**said, "level": "C", "service": self.address, "service_level": shown(said.get("level"), 20)}

    def close(self) -> None:
        """Nothing is kept open."""

    def _once(self, path: str, body: Mapping[str, Any] | None, seconds: float, cap: int) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.address}/v1/{path}", data=data, headers=headers)
        with self.opener.open(asked, timeout=seconds + self.margin) as answer:
            text = answer.read(cap + 1)
        if len(text) > cap:
            raise _Fault(f"an answer of more than {cap:,} bytes")
        said = json.loads(text)
        if not isinstance(said, dict):
            raise _Fault("no JSON object")
        return said

    def _asked(self, path: str, body: Mapping[str, Any] | None, seconds: float, cap: int) -> dict[str, Any]:
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._once(path, body, seconds, cap)
            except urllib.error.HTTPError as error:
                reason = f"HTTP status {error.code}"
                error.close()
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, http.client.HTTPException, ValueError, RecursionError, _Fault) as error:
                reason = shown(error, 200)
        raise _Fault(reason)

    def run(self, program: str, stdin: bytes = b"", limits: Limits = Limits()) -> Outcome:  # noqa: B008 - frozen
        """As of ``box.Sandbox.run``."""
        body = {"program": program, "stdin": base64.b64encode(stdin).decode(), "limits": asdict(limits)}
        cap = (limits.output << 20) * 4 // 3 + 4 * MIDDLING
        try:
            return self._outcome(self._asked("run", body, limits.seconds, cap), limits)
        except _Fault as error:
            return Outcome(status="fault", reason=f"service: {error}", record=self.record)

    def _outcome(self, said: Mapping[str, Any], limits: Limits) -> Outcome:
        status: Any = said.get("status")
        code = said.get("code")
        if status not in get_args(Status) or not isinstance(code, (int, type(None))):
            raise _Fault("an answer without a known status")
        if status == "ended" and code != 0:
            raise _Fault("'ended' with another exit status than 0")
        try:
            stdout, stderr = (base64.b64decode(said[name], validate=True) for name in ("stdout", "stderr"))
            seconds, peak = float(said["seconds"]), int(said["peak"])
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise _Fault("an answer without what it wrote") from error
        if len(stdout) > limits.output << 20 and status == "ended":
            raise _Fault("more output than the limit, and no word of it")
        reason = shown(said.get("reason", ""), 300) if status != "ended" else ""
        return Outcome(
            status=status,
            reason=reason,
            code=code,
            stdout=stdout,
            stderr=stderr[:MIDDLING],
            seconds=seconds,
            peak=peak,
            record=self.record,
        )

    def calls(
        self,
        program: str,
        entry: str,
        cases: Sequence[tuple[Sequence[Any], Any]],
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Judged:
        """As of ``box.Sandbox.calls``: the service gives the values, and they are compared here."""
        try:
            arguments = [to_plain(list(given)) for given, _ in cases]
            wanted = [to_plain(expected) for _, expected in cases]
        except NotPlain as error:
            return Judged(
                verdict="no_verdict", reason=f"a case holds what is no plain value: {error}", record=self.record
            )
        body = {"program": program, "entry": entry, "arguments": arguments, "limits": asdict(limits)}
        try:
            said = self._asked("values", body, limits.seconds, (limits.output << 20) + MIDDLING)
            verdict, reason = self._compared(said, wanted)
        except _Fault as error:
            verdict, reason = "no_verdict", f"service: {error}"
        return Judged(verdict=verdict, reason=reason, record=self.record)

    def _compared(self, said: Mapping[str, Any], wanted: Sequence[Any]) -> tuple[Any, str]:
        status, values = said.get("status"), said.get("values")
        if status == "fault" or status not in get_args(Status):
            raise _Fault(shown(said.get("reason", "an answer without a known status"), 200))
        if status != "ended":
            return "failed", shown(said.get("reason", status), 300)
        if not isinstance(values, list) or len(values) != len(wanted):
            raise _Fault("an answer without a value for each call")
        for number, (tree, value) in enumerate(zip(wanted, values, strict=True)):
            if not isinstance(value, list) or len(value) != 1:
                return "failed", f"case {number}: it gave no value"
            if not same_value(tree, value[0]):
                return "failed", f"case {number}: another value"
        return "passed", ""

    def tests(
        self,
        program: str,
        tests: str,
        entry: str = "",
        prelude: str = "",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Judged:
        """As of ``box.Sandbox.tests``: the service runs the tests too."""
        body = {"program": program, "tests": tests, "entry": entry, "prelude": prelude, "limits": asdict(limits)}
        try:
            said = self._asked("tests", body, limits.seconds, 1 << 20)
            if said.get("verdict") not in ("passed", "failed", "no_verdict"):
                raise _Fault("an answer without a verdict")
        except _Fault as error:
            return Judged(verdict="no_verdict", reason=f"service: {error}", record=self.record)
        reason = "" if said["verdict"] == "passed" else shown(said.get("reason", ""), 300)
        return Judged(verdict=said["verdict"], reason=reason, record=self.record)
