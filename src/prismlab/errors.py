"""Errors that a user sees.

Each carries a message that names the value, the rule and the remedy. The command line prints it without a traceback and
exits with code 2, because the user can mend the cause. Anything else that escapes is our fault and keeps its traceback.
"""

from __future__ import annotations

import errno

_PLACES = {
    errno.ENOSPC: "the disk is full; free some space ('prism gc' helps) and run again",
    errno.EDQUOT: "your disk quota is used up; free some space ('prism gc' helps) and run again",
    errno.EROFS: "the file system cannot be written; take another folder with --out",
    errno.EACCES: "not allowed; take another folder with --out, or have its rights changed",
    errno.EPERM: "not allowed; take another folder with --out, or have its rights changed",
    errno.ENOTDIR: "a file is where a folder should be; take another folder with --out",
}


def place_trouble(error: BaseException) -> str | None:
    """What a user can do about a place where nothing can be written; None for every other error.

    Libraries in other languages tell a full disk in their own exception, so its text counts too.
    """
    if isinstance(error, OSError) and error.errno in _PLACES:
        return f"{error.filename}: {_PLACES[error.errno]}" if error.filename else _PLACES[error.errno]
    return _PLACES[errno.ENOSPC] if "No space left on device" in str(error) else None


def shown(name: object, limit: int = 120) -> str:
    """A name out of a file as text to show: what cannot be printed is written out (``\\x1b``), what is long is cut.

    Every message, table and figure that repeats a name from a file takes it from here. Marks of a markup language stay
    as they are: who writes markup escapes them.
    """
    text = str(name)
    head = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    if len(text) > limit or len(head) > limit:
        return f"{head[:limit]}... ({len(text):,} characters)"
    return head or "(empty name)"


def in_a_line(error: BaseException, limit: int = 300) -> str:
    """What a library's error says, on one line and cut: it may repeat a stranger's file at length."""
    return shown(" ".join(str(error).split()), limit)


class PrismError(Exception):
    """Base of every error that the user can mend."""


class SpecError(PrismError):
    """A study file or an option is wrong: unknown key, value out of range, cycle, missing input."""


class DataError(PrismError):
    """A data source is missing, broken or does not have the fields that the study names."""


class CheckpointError(PrismError):
    """A checkpoint cannot be read, is damaged, or does not fit the use it is put to."""


class SandboxError(PrismError):
    """A program could not be run under the limits that were asked for."""


class StageError(PrismError):
    """A stage could not do what its configuration asks (loss not finite, no prompt selected, ...)."""


class StoreError(PrismError):
    """The artifact store is locked, damaged, or not a store."""


class MissingExtra(PrismError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'prismlab[{extra}]'")


class EndBranch(Exception):
    """Raised by a stage to end its branch of the study with a reason.

    Not an error: the step is recorded as ended, the steps that need it are skipped with the same reason, and the rest
    of the study goes on (a base that never earns reward, a retention gate that says stop).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
