"""Seeds derive from names, not from positions, so that adding an arm to a study re-seeds nothing."""

from __future__ import annotations

import hashlib


def derive_seed(*names: object) -> int:
    """A seed in [0, 2**31) that depends on the names alone.

    Args:
        names: anything whose ``str`` is stable: step kind, step name, study seed, source name.
    """
    digest = hashlib.blake2b("\x1f".join(str(name) for name in names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31
