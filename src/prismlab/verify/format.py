"""The think format: ``<think> chain </think> answer``, each tag once and in this order, with an answer behind them."""

from __future__ import annotations

from dataclasses import dataclass

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True, kw_only=True)
class FormatVerdict:
    """Whether a response keeps the think format."""

    ok: bool
    """All of it is kept."""
    reason: str
    """What is wrong; empty if nothing is."""
    answer: str | None
    """What follows the chain, stripped; None if the format is not kept."""


def _broken(reason: str) -> FormatVerdict:
    return FormatVerdict(ok=False, reason=reason, answer=None)


def check_format(response: str) -> FormatVerdict:
    """Judge the form of ``response``. White space before the first tag is allowed; the chain may be empty."""
    for tag in (OPEN, CLOSE):
        if response.count(tag) != 1:
            return _broken(f"{tag} appears {response.count(tag)} times instead of once")
    if not response.lstrip().startswith(OPEN):
        return _broken(f"the response does not start with {OPEN}")
    # The opening tag is at the start and both are there once, so the closing one comes after it.
    answer = response.partition(CLOSE)[2].strip()
    if not answer:
        return _broken(f"nothing follows {CLOSE}")
    return FormatVerdict(ok=True, reason="", answer=answer)


def answer_part(response: str) -> str:
    """What follows the last ``</think>``, or the whole response where there is none; stripped."""
    return response.rpartition(CLOSE)[2].strip()
