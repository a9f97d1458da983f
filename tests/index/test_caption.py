"""Captions: what is known is said, what is missing leaves no trace."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.models.caption import CLAUSES, caption, fields, split_fields
from index.tracks.track import Track

FULL = Track("t", title="Gute Nacht", artist="Franz Schubert", album="Winterreise")


def test_the_papers_sentence():
    assert caption(FULL) == "The track Gute Nacht by Franz Schubert on album Winterreise"


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        (Track("t", title="Gute Nacht"), "The track Gute Nacht"),
        (Track("t", artist="Franz Schubert"), "A track by Franz Schubert"),
        (Track("t", album="Winterreise"), "A track on album Winterreise"),
        (Track("t", title="Gute Nacht", album="Winterreise"), "The track Gute Nacht on album Winterreise"),
        (Track("t"), ""),
        (Track("t", title="", artist="  ", album="\n"), ""),
        (Track("t", title=" Gute\n Nacht\t"), "The track Gute Nacht"),
    ],
)
def test_missing_and_blank_values_drop_their_clause(track, expected):
    assert caption(track) == expected


def test_only_the_clauses_asked_for():
    assert caption(FULL, ("title", "artist")) == "The track Gute Nacht by Franz Schubert"
    assert caption(FULL, ("album",)) == "A track on album Winterreise"
    assert caption(FULL, ()) == ""


def test_unknown_clauses_are_refused():
    with pytest.raises(ValueError, match=r"unknown caption clauses \['lyrics'\]"):
        caption(FULL, ("title", "lyrics"))


names = st.none() | st.text(max_size=20)


@given(title=names, artist=names, album=names)
def test_never_none_and_never_loose_blanks(title, artist, album):
    track = Track("t", title=title, artist=artist, album=album)
    for count in range(len(CLAUSES) + 1):
        for clauses in itertools.combinations(CLAUSES, count):
            text = caption(track, clauses)
            assert text == " ".join(text.split())
            for name in clauses:
                value = getattr(track, name)
                assert not value or " ".join(value.split()) in text
            assert "None" not in text or "None" in f"{title}{artist}{album}"


def test_fields_are_lines_in_the_order_asked_for():
    assert fields(FULL) == "Gute Nacht\nFranz Schubert\nWinterreise"
    assert fields(FULL, ("artist", "title")) == "Franz Schubert\nGute Nacht"
    assert fields(FULL, ("title", "artist"), kept=("artist",)) == "\nFranz Schubert"
    assert fields(FULL, ("title", "artist"), kept=()) == ""
    assert fields(Track("t", artist="\n")) == ""
    with pytest.raises(ValueError, match="unknown caption clauses"):
        fields(FULL, ("title", "genre"))


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=4))
def test_fields_come_apart_as_they_went_together(values):
    tracks = [Track("t", title=a, artist=b, album=c) for a, b, c in values]
    lines = split_fields([fields(track) for track in tracks], 3)
    assert lines == [" ".join(value.split()) for track in values for value in track]
