"""What one checkpoint makes of input sets: Gram matrices by layer, and hashes that tell which inputs they are of."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.analyse.similarity import FEWEST, Floats
from prismlab.errors import DataError

MOST_INPUTS = 2_000
"""Most inputs of a set: a Gram matrix has inputs^2 elements of 8 bytes, and there is one a layer."""
ARRAYS, FACTS = "grams.npz", "states.json"
_SCHEMA = 1


@dataclass(frozen=True)
class InputSet:
    """The states of one checkpoint on one set of n inputs."""

    grams: Floats
    """Gram matrices of the states' deviations from their mean, [layers + 1, n, n]; layer 0 is the embedding."""
    texts: str
    """Hash of the texts: only sets of the same texts, in the same order, are compared."""
    ids: tuple[str, ...]
    """Hash of the token ids of each input: they differ where tokenizers cut a text differently."""
    tokens: int
    """Tokens of all inputs together."""

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return len(self.ids)


@dataclass(frozen=True)
class States:
    """The states of one checkpoint on all sets."""

    sets: Mapping[str, InputSet]
    layers: int
    """Layers of the model; there is one Gram matrix more."""
    width: int
    """Numbers in a state."""
    dtype: str
    """Type that the forward passes ran in."""
    device: str
    """Where they ran, ``cpu`` or ``cuda``."""
    seconds_forward: float
    """Time of the forward passes."""
    seconds_grams: float
    """Time of the Gram matrices."""


def hash_texts(texts: Sequence[str]) -> str:
    """BLAKE2b (128 bits, hexadecimal) of texts in their order, each with its length, so that no two lists agree."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def hash_ids(ids: Sequence[int]) -> str:
    """BLAKE2b (64 bits, hexadecimal) of the token ids of one input."""
    return hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=8).hexdigest()


def save(states: States, folder: Path) -> None:
    """Write ``grams.npz`` and then ``states.json`` to a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    # Sets are numbered in the file: a name may hold what a file name inside an archive may not.
    arrays: dict[str, Any] = {str(at): found.grams for at, found in enumerate(states.sets.values())}
    np.savez(folder / ARRAYS, **arrays)
    sets = {name: {"texts": s.texts, "ids": s.ids, "tokens": s.tokens} for name, s in states.sets.items()}
    facts = {key: value for key, value in vars(states).items() if key != "sets"}
    (folder / FACTS).write_text(json.dumps({"schema": _SCHEMA, **facts, "sets": sets}, indent=1), encoding="utf-8")


def load(folder: Path) -> States:
    """What ``save`` wrote.

    Raises:
        DataError: a file is missing or damaged, or is not what it should be.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts.pop("schema") != _SCHEMA:
            raise ValueError("of another version")
        sets: dict[str, InputSet] = {}
        # Opened here, since the library leaves a file open that turns out to be no archive.
        with (folder / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for at, (name, one) in enumerate(facts.pop("sets").items()):
                sets[name] = InputSet(arrays[str(at)], one["texts"], tuple(one["ids"]), int(one["tokens"]))
        states = States(sets=sets, **facts)
        for found in sets.values():
            _check(found, states.layers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder}: its states cannot be read ({error}); delete the folder and run again") from error
    return states


def _check(found: InputSet, layers: int) -> None:
    shape, n = found.grams.shape, found.inputs
    if shape != (layers + 1, n, n) or n < FEWEST or found.grams.dtype != np.float64:
        raise ValueError(f"{found.grams.dtype} {shape} for {n} inputs and {layers} layers")
    if not np.isfinite(found.grams).all():
        raise ValueError("not finite")
