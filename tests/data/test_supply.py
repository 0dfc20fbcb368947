"""Rows of one source: nothing lost, nothing doubled, whatever is asked for in whichever pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.data.packing import Layout
from prismlab.data.supply import BestFit, Concatenated, Supply
from prismlab.errors import DataError


class Lengths:
    """A cache of documents without tokens, read ``step`` at a time."""

    def __init__(self, lengths: list[int], min_tokens: int, step: int) -> None:
        self._all, self._min, self._step, self._here = np.array(lengths, np.int64), min_tokens, step, 0

    @property
    def lengths(self) -> np.ndarray:
        return self._all[: self._here]

    @property
    def ended(self) -> bool:
        return self._here >= len(self._all)

    @property
    def kept_documents(self) -> int:
        return int((self.lengths >= self._min).sum())

    @property
    def kept_tokens(self) -> int:
        return int(self.lengths[self.lengths >= self._min].sum())

    def ensure(self, enough: Callable[[], bool]) -> None:
        while not self.ended and not enough():
            self._here = min(self._here + self._step, len(self._all))


def order(what: str, number: int, n: int) -> np.ndarray:
    return np.random.default_rng([number, len(what), n]).permutation(n)


def supply(method: str, lengths: list[int], step: int = 3, **given: Any) -> Supply:
    packing = {"method": method, "overlap": 0, "min_tokens": 0, "window": 4, **given.pop("packing", {})}
    kind = {"concat": Concatenated, "best_fit": BestFit}[method]
    cache = cast(Any, Lengths(lengths, packing["min_tokens"], step))
    given = {"seq_len": 16, "expected": 1.0, "max_epochs": 1000.0, **given}
    return kind("web", cache, order, packing=packing, **given)


def places(layout: Layout) -> Counter[tuple[int, int]]:
    """How often each token (document, position) stands in the rows."""
    found: Counter[tuple[int, int]] = Counter()
    for document, offset, length in zip(layout.document, layout.offset, layout.length, strict=True):
        found.update((int(document), at) for at in range(int(offset), int(offset + length)))
    return found


def same(one: Layout, other: Layout) -> bool:
    names = ("starts", "document", "offset", "length")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


CASE = {
    "lengths": st.lists(st.integers(1, 60), min_size=1, max_size=40),
    "rows": st.integers(1, 30),
    "min_tokens": st.sampled_from([0, 5]),
    "steps": st.tuples(st.integers(1, 9), st.integers(1, 50)),
}


@given(**CASE)
@settings(max_examples=120, deadline=None)
def test_concatenated_rows_are_the_passes_cut(
    lengths: list[int], rows: int, min_tokens: int, steps: tuple[int, int]
) -> None:
    lengths = [*lengths, 7]
    given = supply("concat", lengths, steps[0], packing={"min_tokens": min_tokens})
    layout = given.layout(0, rows)
    other = supply("concat", lengths, steps[1], packing={"min_tokens": min_tokens})
    assert same(other.layout(rows // 2, rows), layout.take(np.arange(rows // 2, rows)))
    kept = [at for at, length in enumerate(lengths) if length >= min_tokens]
    flat: list[tuple[int, int]] = []
    drawn, epoch = 0, 0
    while len(flat) < rows * 16:
        turn = [kept[at] for at in order("epoch", epoch, len(kept))] if epoch else kept
        for document in turn:
            if len(flat) < rows * 16:
                flat += [(document, at) for at in range(lengths[document])]
                drawn += 1
        epoch += 1
    spelt = [
        (int(d), at)
        for d, o, n in zip(layout.document, layout.offset, layout.length, strict=True)
        for at in range(o, o + n)
    ]
    assert spelt == flat[: rows * 16]
    usage, late = given.usage(rows), other.usage(rows)
    assert usage == late, "how far a source was read ahead shows nowhere"
    assert (usage.tokens, usage.padding, usage.repeated_tokens) == (rows * 16, 0, 0)
    assert usage.left_over_tokens == len(flat) - rows * 16
    size = sum(lengths[at] for at in kept)
    assert usage.epochs == (pytest.approx(rows * 16 / size) if epoch > 1 else None)
    assert usage.documents == min(drawn, len(kept))
    met = len(lengths) if epoch > 1 else kept[drawn - 1] + 1
    short = [length for length in lengths[:met] if length < min_tokens]
    assert (usage.short_documents, usage.short_tokens) == (len(short), sum(short))
    in_rows: dict[tuple[int, int], set[int]] = {}
    turn = 0
    for at, (document, position) in enumerate(flat):
        turn += position == 0
        in_rows.setdefault((turn, document), set()).add(at // 16)
    assert usage.split_documents == sum(len(found) > 1 for found in in_rows.values())


@given(overlap=st.integers(0, 8), **CASE)
@settings(max_examples=120, deadline=None)
def test_best_fit_rows_hold_every_document_once_a_pass(
    lengths: list[int], rows: int, min_tokens: int, steps: tuple[int, int], overlap: int
) -> None:
    lengths = [*lengths, 7]
    packing = {"min_tokens": min_tokens, "overlap": overlap}
    given, other = (
        supply("best_fit", lengths, steps[0], packing=packing),
        supply("best_fit", lengths, steps[1], packing=packing),
    )
    layout = given.layout(0, rows)
    assert (layout.fill() <= 16).all()
    assert [given.size(row) for row in range(rows)] == layout.fill().tolist()
    assert same(other.layout(rows // 2, rows), layout.take(np.arange(rows // 2, rows)))
    usage = given.usage(rows)
    assert usage == other.usage(rows), "how far a source was read ahead shows nowhere"
    assert usage.tokens == layout.fill().sum() == rows * 16 - usage.padding
    chunks = {at: 1 if n <= 16 else -(-(n - overlap) // (16 - overlap)) for at, n in enumerate(lengths)}
    assert usage.repeated_tokens == sum(overlap for offset in layout.offset if offset)
    # Everything that was laid out, used or not: each pass has each kept document's tokens once, and overlaps twice.
    whole = cast(BestFit, given)
    laid_out = places(given.layout(0, whole.rows))
    kept = [at for at, length in enumerate(lengths) if length >= min_tokens]
    last = whole._windows[-1]
    for document in kept:
        first = laid_out[document, 0]
        assert last.epoch <= first <= last.epoch + 1
        counts = [laid_out[document, at] for at in range(lengths[document])]
        assert min(counts) == first
        assert sum(counts) == first * (lengths[document] + overlap * (chunks[document] - 1))
    assert {document for document, _ in laid_out} <= set(kept)
    used = max(at for at, window in enumerate(whole._windows) if window.rows_before < rows)
    end = whole._windows[used].rows_before + whole._windows[used].rows
    assert usage.tokens + usage.left_over_tokens == given.layout(0, end).fill().sum()
    if whole._windows[used].epoch == 0:
        assert usage.epochs is None
        assert usage.documents == whole._windows[used].stop
    else:
        assert usage.documents == len(kept)
        assert usage.short_tokens == sum(length for length in lengths if length < min_tokens)


def test_rows_of_a_window_are_shuffled() -> None:
    """Best-fit decreasing fills the first rows with the longest documents: a prefix must not be all of one kind."""
    lengths = np.random.default_rng(0).integers(1, 16, 4000).tolist()
    layout = supply("best_fit", lengths, packing={"window": 4000}).layout(0, 1000)
    longest = np.maximum.reduceat(layout.length, layout.starts[:-1])
    assert abs(longest[:500].mean() - longest[500:].mean()) < 0.5


def test_windows_grow_to_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismlab.data.supply.FIRST_WINDOW", 8)
    given = cast(BestFit, supply("best_fit", [15] * 200, packing={"window": 50}))
    given.ensure(400)
    sizes = [window.stop - window.first for window in given._windows]
    assert sizes[:8] == [8, 16, 32, 50, 50, 44, 50, 50]
    assert [window.epoch for window in given._windows][:7] == [0] * 6 + [1]


@pytest.mark.parametrize("method", ["concat", "best_fit"])
def test_too_many_passes_are_refused(method: str) -> None:
    lengths = [16] * 10
    given = supply(method, lengths, expected=21, max_epochs=2.0)

    def build() -> None:
        given.ensure(21)
        given.usage(21)

    with pytest.raises(DataError, match=r"'web' has 160 tokens to train on, .* but 'max_epochs' is 2"):
        build()
    fine = supply(method, lengths, expected=20, max_epochs=2.0)
    fine.ensure(20)
    assert fine.usage(20).epochs == 2.0


@pytest.mark.parametrize("method", ["concat", "best_fit"])
def test_a_source_without_documents_is_refused(method: str) -> None:
    with pytest.raises(DataError, match="'web' has no document to train on"):
        supply(method, []).ensure(1)
    with pytest.raises(DataError, match="'web' has no document of 9 tokens or more to train on"):
        supply(method, [8, 3], packing={"min_tokens": 9}).ensure(1)
