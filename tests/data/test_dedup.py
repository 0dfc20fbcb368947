"""Groups of near copies: closed, the first document stays, in memory that does not grow with the pairs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from prismlab.data.cleaning import distinct
from prismlab.data.dedup import KeepFirst, first_of_each

Document = tuple[int, int]


def groups_by_search(pairs: list[tuple[Document, Document]]) -> dict[Document, Document]:
    """The reference: from each document over all pairs to whatever can be reached, and the first of that."""
    beside: dict[Document, set[Document]] = {}
    for one, other in pairs:
        beside.setdefault(one, set()).add(other)
        beside.setdefault(other, set()).add(one)
    found: dict[Document, Document] = {}
    for begin in sorted(beside):
        waiting = [begin] if begin not in found else []
        while waiting:
            at = waiting.pop()
            if at not in found:
                found[at] = begin
                waiting += beside[at]
    return found


def written(folder: Path, pairs: list[tuple[Document, Document]], files: int) -> list[Path]:
    (folder / "pairs").mkdir(parents=True)
    (folder / "keep").mkdir()
    paths = [folder / "pairs" / f"{number:05d}_00.dups" for number in range(files)]
    for number, path in enumerate(paths):
        rows = [(*one, *other) for one, other in pairs[number::files]]
        np.array(rows, "<u4").reshape(-1, 4).tofile(path)
    return paths


@pytest.mark.parametrize("seed", range(12))
def test_groups_equal_those_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("prismlab.data.dedup.PAIRS", 7)
    drawn = random.Random(seed)
    places = [(shard, place) for shard in (0, 3, 70_000) for place in (*range(40), 2**32 - 1)]
    pairs = [(drawn.choice(places), drawn.choice(places)) for _ in range(drawn.choice([0, 5, 60, 150, 400]))]
    wanted = groups_by_search(pairs)
    members, first = first_of_each(written(tmp_path, pairs, 3))
    found = {
        divmod(one, 2**32): divmod(other, 2**32) for one, other in zip(members.tolist(), first.tolist(), strict=True)
    }
    assert found == wanted
    assert list(KeepFirst(tmp_path).run()) == []
    dropped = sorted((document, stays) for document, stays in wanted.items() if document != stays)
    assert np.load(tmp_path / "first.npy").tolist() == [[*document, *stays] for document, stays in dropped]
    for shard in (0, 3, 70_000):
        file = tmp_path / "keep" / f"{shard:06d}.remove"
        kept = np.fromfile(file, "<u4").tolist() if file.is_file() else []
        assert kept == [place for (at, place), _ in dropped if at == shard]


def test_a_long_chain_is_one_group(tmp_path: Path) -> None:
    """Each like the next one only, told backwards: the worst case for whoever follows links one at a time."""
    chain = [((0, at + 1), (0, at)) for at in range(50_000)]
    members, first = first_of_each(written(tmp_path, chain[::-1], 2))
    assert len(members) == 50_001
    assert not first.any()


@pytest.mark.parametrize("at_a_time", [1, 5, 64, 10_000])
def test_distinct_hashes_are_counted_a_stretch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    monkeypatch.setattr("prismlab.data.cleaning.HASHES_AT_A_TIME", at_a_time)
    drawn = np.random.default_rng(at_a_time)
    ends = np.array([0, 1, 2**63, 2**63 - 1, 2**64 - 1, 2**64 - 1], np.uint64)
    parts = [drawn.integers(0, 2**64, 40, np.uint64), ends, drawn.integers(0, 2**64, 9, np.uint64), ends[:2], ends[:0]]
    paths = [tmp_path / f"{number}.npy" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        np.save(path, part)
    values = [one for part in parts for one in part.tolist()]
    assert distinct(paths, len(values)) == len(set(values)) == 54
    assert distinct([], 0) == 0
