from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.data import grams as grams_module
from prismlab.data import words
from prismlab.data.grams import Batch, Grams
from prismlab.data.normalise import BREAK_CHAR, folded_words, word_texts
from prismlab.data.words import B, C, Words, grams, words_of

fast = pytest.mark.skipif(words.compiled() is None, reason="numba is not installed")
texts = st.text(
    st.one_of(
        st.sampled_from("aB z9.,’'-\n½™Ж日ﬁ\u00ad\u200bé\u0301٣" + BREAK_CHAR),
        st.characters(),
    ),
    max_size=200,
)


def slow_words(text: str, joined: str | None = None) -> list[tuple[str, int]]:
    """Words and their hashes, one character at a time, by the definition."""
    out: list[tuple[str, int]] = []
    for word in word_texts(text, joined):
        h = sum((ord(char) + 1) * pow(B, k, 2**64) for k, char in enumerate(word)) % 2**64
        h = (h ^ (h >> 30)) * words.MIX[0] % 2**64
        h = (h ^ (h >> 27)) * words.MIX[1] % 2**64
        out.append((word, h ^ (h >> 31)))
    return out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Janet’s DUCKS—lay\t1,600 eggs!", ["janet", "s", "ducks", "lay", "1", "600", "eggs"]),
        ("ＦＵＬＬ width ﬁne Ⅳ 𝐛𝐨𝐥𝐝", ["full", "width", "fine", "iv", "bold"]),
        ("naïve cafe\u0301 Straße Æsop Øre", ["naive", "cafe", "strasse", "aesop", "ore"]),
        ("Ѕсhоol ΡΑΤΗ", ["school", "path"]),
        ("co\u00adop\u200beration \u202eab\u202c", ["cooperation", "ab"]),
        ("H2O x² ½ 5km", ["h", "2", "o", "x", "2", "1", "2", "5", "km"]),
        ("٣٤ १२", ["34", "12"]),
        ("日本 คำ", ["日", "本", "ค", "า"]),
        ("a\x00b\ud800c _d_", ["a", "b", "c", "d"]),
        ("…—“”  \n", []),
        ("", []),
    ],
)
def test_what_a_text_becomes(text: str, wanted: list[str]) -> None:
    assert word_texts(text) == wanted
    found = words_of(text)
    assert found.texts(0, len(found)) == wanted if len(found) else not wanted


def test_marks_may_be_passed_over_but_never_space() -> None:
    assert word_texts("don't well-known 1,000.5", "'-") == ["dont", "wellknown", "1", "000", "5"]
    assert word_texts("don't well-known\n1,000.5", "") == ["dont", "wellknown", "10005"]


@given(texts)
@settings(max_examples=150, deadline=None)
def test_hashes_are_those_of_the_definition(text: str) -> None:
    found = words_of(text)
    kept = [at for at in range(len(found)) if found.kinds[at] != words.END]
    parts = [one for part in text.split(BREAK_CHAR) for one in slow_words(part)]
    assert [int(found.hashes[at]) for at in kept] == [h for _, h in parts]
    assert len(found) - len(kept) == text.count(BREAK_CHAR)


@fast
@given(texts, st.sampled_from([None, "", "'’-"]))
@settings(max_examples=150, deadline=None)
def test_compiled_and_numpy_passes_agree_to_the_last_bit(text: str, joined: str | None) -> None:
    slow = Words(text, joined, *words._split(text, joined))
    quick = Words(text, joined, *words._split_fast(words.compiled(), text, joined))
    for name in ("starts", "stops", "hashes", "kinds"):
        np.testing.assert_array_equal(getattr(slow, name), getattr(quick, name))
    long = words_of(text * 4 + " one 2 three", joined)
    hashes, first = words._template(long.hashes, long.kinds)
    np.testing.assert_array_equal(long.template[0], hashes)
    np.testing.assert_array_equal(long.template[1], first)


def test_places_lead_back_to_the_text() -> None:
    text = "  The ﬁrst — ½ of 3 Ⅷ ﬂoors™ "
    found = words_of(text)
    spans = [text[slice(*found.span(at, at + 1))] for at in range(len(found))]
    assert spans == ["The", "ﬁrst", "½", "½", "of", "3", "Ⅷ", "ﬂoors™"]
    assert [found.word(at) for at in range(len(found))] == ["the", "first", "1", "2", "of", "3", "viii", "floorstm"]


def test_numbers_in_a_row_are_one_word_of_a_template() -> None:
    found = words_of("Tom has 1,250.50 apples and twenty five pears, 3rd")
    hashes, first = found.template
    assert [found.numbers(at) for at in range(len(hashes))] == ["", "", "125050", "", "", "twentyfive", "", "3", ""]
    same = words_of("Tom has 7 apples and 2 pears, 90rd").template[0]
    np.testing.assert_array_equal(hashes, same)
    assert first.tolist() == [0, 1, 2, 5, 6, 7, 9, 10, 11]


@pytest.mark.parametrize("n", [1, 5, 13])
def test_grams_are_those_of_the_definition(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.random.default_rng(n).integers(0, 2**63, 60, dtype=np.uint64) * np.uint64(3)
    wanted = [sum(int(hashes[i + j]) * pow(C, j, 2**64) for j in range(n)) % 2**64 for i in range(len(hashes) - n + 1)]
    assert grams(hashes, n).tolist() == wanted
    monkeypatch.setattr(words, "compiled", lambda: None)
    assert grams(hashes, n).tolist() == wanted
    assert len(grams(hashes[: n - 1], n)) == 0


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=fast), False])
def test_the_index_finds_exactly_its_keys(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(grams_module, "compiled", lambda: None)
        monkeypatch.setattr(words, "compiled", lambda: None)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    keys = grams(hashes, 13)
    places = np.arange(len(keys))
    index = Grams.build(13, keys[::3], places[::3] // 7, places[::3] % 7, places[::3])
    found = index.find(hashes, 4)
    assert found.places.tolist() == places[::3].tolist()
    assert found.views.tolist() == (places[::3] // 7).tolist()
    other = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    assert len(index.find(other, 4).places) == 0
    through = len(index._candidates(other)[0])
    assert through < 200_000 / 60, "three bits in one word let about one in 150 through"


def test_grams_of_many_questions_are_not_rare() -> None:
    keys = np.array([5, 5, 5, 9], np.uint64) << np.uint64(40)
    spread = Grams.build(5, keys, np.arange(4), np.zeros(4, np.int64), np.array([0, 1, 1, 0])).spread
    assert spread.tolist() == [2, 1]


def test_texts_read_together_stay_apart() -> None:
    batch = Batch(["one 1", f"2 two{BREAK_CHAR}b", "", "3"])
    assert (batch.last - batch.first).tolist() == [2, 3, 0, 1]
    assert batch.text_of(batch.first[[0, 1, 3]]).tolist() == [0, 1, 3]
    hashes, _ = batch.words.template
    counts = (batch.template_last - batch.template_first).tolist()
    assert counts == [1, 2, 0, 1], "a number that ends a text and one that begins the next are two"
    assert len(hashes) == sum(counts) + 3


@given(st.text(st.characters(max_codepoint=127), max_size=60), st.sampled_from([None, "", "'-", "'’‘ʼ`´-‐‑–"]))
@settings(max_examples=300, deadline=None)
def test_plain_text_is_split_as_the_table_does(text: str, joined: str | None) -> None:
    assert word_texts(text, joined) == folded_words(text, joined)


@pytest.mark.parametrize("text", ["", "one", "Two ½ of 3 thousand, H2O — x² and twenty one 日本語 words. " * 9])
def test_words_that_are_kept_give_the_same_evidence_in_less_memory(text: str) -> None:
    whole = words_of(text)
    kept = whole.kept()
    assert len(kept) == len(whole)
    assert [column.tolist() for column in kept.template] == [column.tolist() for column in whole.template]
    places = range(len(whole))
    assert [kept.word(at) for at in places] == [whole.word(at) for at in places]
    assert all(kept.texts(at, len(whole)) == whole.texts(at, len(whole)) for at in places)
    assert all(kept.span(at, at + 1) == whole.span(at, at + 1) for at in places)
    template = range(len(whole.template[0]))
    assert [kept.numbers(at) for at in template] == [whole.numbers(at) for at in template]

    def size(words: Words) -> int:
        return sum(one.nbytes for one in (words.starts, words.stops, words.hashes, words.kinds, *words.template))

    assert size(kept) * 8 <= size(whole) * 4 + 8
