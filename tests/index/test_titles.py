"""Folding of titles and search in them."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.tracks.textcolumn import TextColumn
from index.tracks.titles import Titles, fold, line


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Träumerei, Op. 15 No. 7", "traumerei op 15 no 7"),
        ("DON'T Stop", "dont stop"),
        ("Don’t stop", "dont stop"),
        ("  Ça   ira!? ", "ca ira"),
        ("STRASSE straße", "strasse strasse"),
        ("snake_case-Title", "snake case title"),
        ("夜想曲", "夜 想 曲"),
        ("ガラス", "カ ラ ス"),
        ("한국 노래", "한국 노래"),
        ("ΟΔΟΣ", "οδοσ"),
        ("Ёлка", "елка"),
        ("", ""),
        (None, ""),
        ("!!!", ""),
        ("a\tb\nc", "a b c"),
    ],
)
def test_folds(text, folded):
    assert fold(text) == folded


@given(st.text())
def test_folding_twice_changes_nothing_and_leaves_only_words(text):
    folded = fold(text)
    assert fold(folded) == folded
    assert folded == " ".join(folded.split())


SONGS = [
    ("Night", "Day"),
    ("Night Song", "Clara Schumann"),
    ("The Night", "Night"),
    ("Nightingale", "Anon."),
    ("Nachtlied (night song)", None),
    (None, "Nightly Newman"),
    ("Knight", "Unnight"),
    (None, None),
]


def rows_and_tiers(query: str) -> list[tuple[int, int]]:
    rows, tiers = Titles.of([line(title, artist) for title, artist in SONGS]).search(fold(query))
    return list(zip(rows.tolist(), tiers.tolist(), strict=True))


def test_every_word_begins_a_word_of_title_or_artist():
    assert rows_and_tiers("NIGHT") == [(0, 0), (1, 2), (2, 1), (3, 2), (4, 3), (5, 3)]
    assert rows_and_tiers("night so") == [(1, 2), (4, 3)]
    assert rows_and_tiers("so night") == [(1, 3), (4, 3)]
    assert rows_and_tiers("schu night") == [(1, 3)]
    assert rows_and_tiers("nigh nigh") == [(row, 3) for row in range(6)]
    assert rows_and_tiers("ight") == []
    assert rows_and_tiers("night day x") == []


words = st.sampled_from(["a", "ab", "abc", "b", "ba", "c.d", "(e"])
names = st.none() | st.lists(words, max_size=3).map(" ".join)


@given(st.lists(st.tuples(names, names), max_size=12), st.lists(words, min_size=1, max_size=3).map(" ".join))
def test_agrees_with_looking_at_each_track(songs, query):
    query = fold(query)
    expected = {}
    for row, (title, artist) in enumerate(songs):
        title, artist = fold(title), fold(artist)
        their = title.split() + artist.split()
        if all(any(word.startswith(beginning) for word in their) for beginning in query.split()):
            expected[row] = 0 if title == query else 1 if artist == query else 2 if title.startswith(query) else 3
    rows, tiers = Titles.of([line(*song) for song in songs]).search(query)
    assert dict(zip(rows.tolist(), tiers.tolist(), strict=True)) == expected


def test_stored_lines_are_searched_as_those_of_the_tracks():
    songs = [*SONGS, ("Träumerei 夜", "Ωmega"), (None, None)]
    listed = [line(title, artist) for title, artist in songs]
    column = TextColumn(pa.chunked_array([[f"{one}\n" for one in listed[:3]], [f"{one}\n" for one in listed[3:]]]))
    stored, expected = Titles(*column.joined()), Titles.of(listed)
    for query in ("night", "so night", "夜", "omega", "ωmega", "traumerei", "schu night"):
        for one, other in zip(stored.search(fold(query)), expected.search(fold(query)), strict=True):
            assert one.tolist() == other.tolist()
    assert len(stored.search(fold("夜"))[0]) == 1
