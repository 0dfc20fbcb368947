"""What a record says about the machine: package versions, the commit, memory, all of it measured."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "datasets",
    "accelerate",
    "numpy",
    "scipy",
    "pyarrow",
    "numba",
)
"""Packages whose version can change a result."""
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@lru_cache(maxsize=1)
def versions() -> dict[str, str | None]:
    """Version of Python, of Prism and of each package that matters; null where one is not installed."""
    from prismlab import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "prismlab": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache(maxsize=1)
def git() -> dict[str, str | bool] | None:
    """Commit of Prism's own source and whether it has uncommitted changes; None where it is not in a checkout."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # Installed below somebody else's repository: its commit says nothing about Prism.
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def reset_peak_memory() -> bool:
    """Start a new measurement of this process's peak memory; False where the system offers none (not Linux)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mb() -> float | None:
    """Largest resident memory since ``reset_peak_memory``, in MB (10^6 bytes); None where it cannot be read."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        return None
    return None
