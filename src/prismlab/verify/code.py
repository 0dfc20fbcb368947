"""The verifier ``tests``: a program in a response, run in the sandbox and put to the item's tests.

An item's ``meta["tests"]`` is one of

- ``{"kind": "stdin", "cases": [[input, output], ...]}``: run as a script on each input; outputs are compared by
  ``sandbox.compare.same_output``;
- ``{"kind": "calls", "entry": name, "cases": [[[argument, ...], value], ...]}``: the function is called with each
  list; values are compared as plain data;
- ``{"kind": "python", "tests": code, "entry": name or "", "prelude": code, "prompt": code}``: ``code`` with
  ``assert``, which runs in a process of its own and reaches the program through plain values alone. ``prelude`` is
  the tests' own; ``prompt`` goes in front of a response that does not define ``entry`` itself (a completion).

``limits`` beside ``kind`` may hold fields of ``sandbox.outcome.Limits``. For ``stdin`` the time limit is for one
case, otherwise for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prismlab.verify.sandbox.box import Box
from prismlab.verify.sandbox.compare import same_output
from prismlab.verify.sandbox.outcome import Limits
from prismlab.verify.sandbox.probe import shared_sandbox
from prismlab.verify.verdict import RIGHT, Verdict, no_answer, no_verdict, wrong

PYTHON = {"python", "py", "python3", "py3"}
_FENCE = re.compile(r"^[ \t]*```[ \t]*([^\n`]*)$", re.MULTILINE)


def program_text(answer: str) -> str | None:
    """The program in an answer: the last fenced block marked as Python, else the last without a mark, else, without any
    fence, all of it. A last block without an end goes to the end of the text. None where every block is in another
    language."""
    marks = list(_FENCE.finditer(answer))
    if not marks:
        return answer.strip("\n") if answer.strip() else None
    blocks: list[tuple[str, str]] = []
    place = 0
    while place < len(marks):
        opened = marks[place]
        closed = marks[place + 1] if place + 1 < len(marks) else None
        text = answer[opened.end() : closed.start() if closed else len(answer)]
        blocks.append((opened[1].strip().split(" ")[0].casefold(), text.strip("\n")))
        place += 2
    for wanted in (PYTHON, {""}):
        found = [text for mark, text in blocks if mark in wanted and text.strip()]
        if found:
            return found[-1]
    return None


def judge_tests(meta: Mapping[str, Any], answer: str, box: Box | None = None) -> Verdict:
    """Put the program in ``answer`` to an item's tests.

    Args:
        meta: of the item, see the top of this module.
        answer: the response's answer.
        box: where programs run; by default this process's, see ``sandbox.probe.shared_sandbox``.

    Raises:
        SandboxError: programs cannot be run here; the message says what helps.
    """
    tests = meta.get("tests")
    if not isinstance(tests, Mapping) or tests.get("kind") not in _KINDS:
        return no_verdict("the item has no tests")
    program = program_text(answer)
    if program is None:
        return no_answer("no Python program: no fenced block of Python, and no text without fences")
    try:
        limits = Limits(**tests.get("limits", {}))
    except TypeError as error:
        return no_verdict(f"the item's limits: {error}")
    return _KINDS[tests["kind"]](tests, program, limits, box or shared_sandbox())


def _stdin(tests: Mapping[str, Any], program: str, limits: Limits, box: Box) -> Verdict:
    if not tests["cases"]:
        return no_verdict("the item has no cases")
    for number, (given, expected) in enumerate(tests["cases"]):
        done = box.run(program, str(given).encode("utf-8", "surrogatepass"), limits)
        if done.status == "fault":
            return no_verdict(f"sandbox: {done.reason}"[:300])
        if done.status != "ended":
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return wrong(
                f"case {number}: {done.reason}" + (f" ({last[:100]})" if done.status == "failed" and last else "")
            )
        if not same_output(str(expected).encode("utf-8", "surrogatepass"), done.stdout):
            return wrong(f"case {number}: another output")
    return RIGHT


def _calls(tests: Mapping[str, Any], program: str, limits: Limits, box: Box) -> Verdict:
    if not tests["cases"]:
        return no_verdict("the item has no cases")
    cases = [(arguments, expected) for arguments, expected in tests["cases"]]
    return _of(box.calls(program, tests["entry"], cases, limits))


def _python(tests: Mapping[str, Any], program: str, limits: Limits, box: Box) -> Verdict:
    entry = tests.get("entry", "")
    if entry and not re.search(rf"^(?:async )?def {re.escape(entry)}\b|^{re.escape(entry)}\s*=", program, re.MULTILINE):
        program = f"{tests.get('prompt', '')}{program}"
    return _of(box.tests(program, tests["tests"], entry, tests.get("prelude", ""), limits))


def _of(judged: Any) -> Verdict:
    if judged.verdict == "passed":
        return RIGHT
    return wrong(judged.reason) if judged.verdict == "failed" else no_verdict(judged.reason)


_KINDS = {"stdin": _stdin, "calls": _calls, "python": _python}
