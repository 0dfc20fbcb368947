"""The side of the math verifier that may hang: parses and compares formulas, and is killed when it takes too long.

A first process imports math-verify and forks one worker for each line that it is handed. Of its own accord a worker
has a limit of memory and of CPU time, and ends with whoever holds its line.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import socket
import sys
from functools import lru_cache
from typing import Any

MEMORY = 2 << 30
PR_SET_PDEATHSIG = 1


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    ways = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse("\\boxed{" + text + "}", ways, parsing_timeout=None)  # type: ignore[arg-type]


def judge(gold: str, answer: str) -> str:
    """``right``, ``wrong``, or ``gold`` where the reference is nothing that can be compared."""
    from math_verify import verify

    reference = _parsed(gold)
    if not reference:
        return "gold"
    given = _parsed(answer)
    # Formatted the same is the same, whatever the parser made of it.
    same = "".join(gold.split()) == "".join(answer.split())
    return "right" if same or (given and verify(reference, given, timeout_seconds=None)) else "wrong"


def serve(line: socket.socket) -> None:
    """Answer requests, a JSON list of reference and answer each, until the line is closed."""
    while asked := line.recv(1 << 17):
        gold, answer = json.loads(asked)
        try:
            said = judge(gold, answer)
        except MemoryError:
            said = "memory"
        except BaseException as error:
            said = type(error).__name__
        line.send(said.encode())


def _work(line: socket.socket) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    sys.setrecursionlimit(2000)
    line.send(str(os.getpid()).encode())
    serve(line)


def main() -> None:
    """``python -m prismlab.verify.math_worker FD``."""
    control = socket.socket(fileno=int(sys.argv[1]))
    logging.disable(logging.CRITICAL)
    # Once before any fork: what the libraries build at their first use is then there in every worker.
    judge("\\frac{1}{2}", "0.5")
    judge("x^2+\\sqrt{2}", "(1,2)")
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(b"ready")
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if not said:
            return
        child = os.fork()
        if not child:
            control.close()
            try:
                _work(socket.socket(fileno=descriptors[0]))
            finally:
                os._exit(0)
        os.close(descriptors[0])


if __name__ == "__main__":
    main()
