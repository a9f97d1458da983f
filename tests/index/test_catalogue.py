"""The catalogue: round trip, filters, search, growth, and what it refuses."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_examples import Folder

from index.tracks.catalogue import Catalogue, CatalogueError, Filters, write_catalogue
from index.tracks.catalogue_file import SCHEMA, SealedTracks
from index.tracks.titles import fold
from index.tracks.track import Track

FULL = Track(
    "t-1",
    title="Träumerei",
    artist="Clara Schumann",
    album="Kinderszenen",
    duration_s=161.25,
    release_date="1838-03-01",
    explicit=False,
    language="de",
    genres=("Classical", "Piano"),
    isrc="DEABC1234567",
    attributes={"tempo": 72.5, "mood": "calm", "tags": ["slow", "träge"]},
)
TRACKS = [
    FULL,
    Track("t-2"),
    Track(
        "t-3",
        title="Night",
        artist="ABBA",
        explicit=True,
        language="EN",
        genres=("pop",),
        release_date="1979",
    ),
    Track("t-4", title="Nacht", artist="clara schumann", explicit=None, language="en", genres=("Pop", "Disco")),
    Track(
        "t-5",
        title="日本",
        artist="ＡＢＢＡ",
        genres=(),
        release_date="2020-05-17",
        explicit=False,
        language="ja",
    ),
]
INTERACTIONS = [4, 0, 9, 0, 1]


def catalogue(directory: Path, tracks=TRACKS, interactions=INTERACTIONS) -> Catalogue:
    write_catalogue(directory / "tracks.parquet", tracks, np.array(interactions))
    return Catalogue.open(Folder(directory))


def rows(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_tracks_come_back_as_they_were(tmp_path):
    view = catalogue(tmp_path).view()
    assert [view.track(row) for row in range(5)] == TRACKS
    assert [view.row_of(track.track_id) for track in TRACKS] == [0, 1, 2, 3, 4]
    assert [view.is_cold(row) for row in range(5)] == [False, True, False, True, False]
    assert view.row_of("t-6") is None
    assert len(view) == view.size == 5


def test_the_catalogue_answers_as_its_view_does(tmp_path):
    opened = catalogue(tmp_path)
    row = opened.add(Track("new", title="Night"))
    assert (opened.row_of("new"), opened.track(row).title, opened.is_cold(row), len(opened)) == (row, "Night", True, 6)
    assert opened.search("night", 2) == opened.view().search("night", 2) == [2, row]
    assert rows(opened.mask(Filters(only_cold=True))) == [1, 3, row]


texts = st.none() | st.text(max_size=8)
tracks_drawn = st.builds(
    Track,
    track_id=st.text(min_size=1, max_size=6),
    title=texts,
    artist=texts,
    album=texts,
    duration_s=st.none() | st.floats(0, 1e6),
    release_date=texts,
    explicit=st.none() | st.booleans(),
    language=texts,
    genres=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    isrc=texts,
    attributes=st.dictionaries(
        st.text(max_size=4),
        st.text(max_size=4) | st.floats(-1e9, 1e9) | st.lists(st.text(max_size=3), max_size=2),
    ),
)


@settings(max_examples=60, deadline=None)
@given(tracks=st.lists(tracks_drawn, max_size=8, unique_by=lambda track: track.track_id))
def test_any_tracks_come_back_as_they_were(tmp_path_factory, tracks):
    view = catalogue(tmp_path_factory.mktemp("any"), tracks, [0] * len(tracks)).view()
    assert [view.track(row) for row in range(len(tracks))] == tracks
    assert rows(view.mask(Filters())) == list(range(len(tracks)))


def test_lyrics_stay_with_the_trainer(tmp_path):
    view = catalogue(tmp_path, [Track("x", lyrics="la la la")], [0]).view()
    assert view.track(0).lyrics is None
    assert "lyrics" not in pq.read_schema(tmp_path / "tracks.parquet").names


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), [0, 1, 2, 3, 4]),
        (Filters(explicit=True), [2]),
        (Filters(explicit=False), [0, 1, 3, 4]),
        (Filters(languages=("en",)), [2, 3]),
        (Filters(languages=("en", "DE")), [0, 2, 3]),
        (Filters(languages=("xx",)), []),
        (Filters(genres=("POP",)), [2, 3]),
        (Filters(genres=("disco", "piano")), [0, 3]),
        (Filters(artists=("Clara Schumann",)), [0, 3]),
        (Filters(artists=("Clara",)), []),
        (Filters(artists=("abba", "")), [2, 4]),
        (Filters(released_from="1900"), [2, 4]),
        (Filters(released_to="1979"), [0, 2]),
        (Filters(released_from="1838-03-01", released_to="1838-03-01"), [0]),
        (Filters(released_from="1838-03-02", released_to="2020-05"), [2, 4]),
        (Filters(released_to="2020-05-16"), [0, 2]),
        (Filters(only_cold=True), [1, 3]),
        (Filters(only_cold=True, genres=("pop",), explicit=False), [3]),
    ],
)
def test_filters(tmp_path, filters, expected):
    opened = catalogue(tmp_path)
    assert rows(opened.view().mask(filters)) == expected
    assert bool(filters) == (filters != Filters())
    empty = catalogue(tmp_path, [], [])  # the same tracks, added one by one, are filtered alike
    for track, interactions in zip(TRACKS, INTERACTIONS, strict=True):
        empty.add(track, interactions)
    assert rows(empty.view().mask(filters)) == expected


@pytest.mark.parametrize("date", ["79", "2020-13", "2020-1-1", "yesterday", "2020-05-32", "", "2020-05-17T00:00:00"])
def test_a_date_that_is_none_is_refused_in_a_filter_and_unknown_in_a_track(tmp_path, date):
    with pytest.raises(ValueError, match="released_to must be YYYY, YYYY-MM or YYYY-MM-DD"):
        Filters(released_to=date)
    view = catalogue(tmp_path, [Track("x", release_date=date)], [0]).view()
    assert view.track(0).release_date == date
    assert rows(view.mask(Filters(released_from="0001"))) == ([0] if date.startswith("2020-05-17T") else [])


NAMES = ["rock", "Rock", "jazz", "Ünter", "unter", "b"]
some = st.lists(st.sampled_from(NAMES), max_size=2).map(tuple)
one = st.none() | st.sampled_from(NAMES)


@settings(max_examples=60, deadline=None)
@given(
    tracks=st.lists(st.tuples(one, one, some, st.none() | st.booleans()), max_size=10),
    fresh=st.integers(0, 10),
    filters=st.builds(Filters, explicit=st.none() | st.booleans(), languages=some, genres=some, artists=some),
)
def test_masks_agree_with_looking_at_each_track(tmp_path_factory, tracks, fresh, filters):
    listed = [Track(str(i), language=a, artist=b, genres=c, explicit=d) for i, (a, b, c, d) in enumerate(tracks)]
    sealed = max(0, len(listed) - fresh)
    opened = catalogue(tmp_path_factory.mktemp("any"), listed[:sealed], [0] * sealed)
    for track in listed[sealed:]:
        opened.add(track)

    def passes(track: Track) -> bool:
        def among(values, wanted) -> bool:
            return not wanted or bool({fold(v) for v in values if v} & {fold(w) for w in wanted})

        return (
            (filters.explicit is None or bool(track.explicit) == filters.explicit)
            and among([track.language], filters.languages)
            and among([track.artist], filters.artists)
            and among(track.genres, filters.genres)
        )

    assert rows(opened.view().mask(filters)) == [i for i, track in enumerate(listed) if passes(track)]


def test_search_ranks_the_exact_title_first(tmp_path):
    opened = catalogue(
        tmp_path,
        [
            Track("a", title="Love Song"),
            Track("b", title="Songs of Love", artist="x"),
            Track("c", title="Other", artist="LOVE"),
            Track("d", title="Lovers"),
            Track("e", title="Løve"),
            Track("f", title="Love"),
        ],
        [5, 9, 1, 7, 100, 2],
    )
    found = opened.view().search("love")
    assert [opened.view().track(row).track_id for row in found] == ["f", "c", "d", "a", "b"]
    opened.add(Track("g", title="LOVE"), interactions=3)
    opened.remove("d")
    assert [opened.view().track(row).track_id for row in opened.view().search("Lové")] == [
        "g",
        "f",
        "c",
        "a",
        "b",
    ]
    assert [opened.view().track(row).track_id for row in opened.view().search("love", limit=2)] == ["g", "f"]
    assert opened.view().search("  ... ") == []
    with pytest.raises(ValueError, match="limit"):
        opened.view().search("love", limit=0)


def test_adding_replacing_and_removing(tmp_path):
    opened = catalogue(tmp_path)
    before = opened.view()
    assert opened.add(Track("new", title="New")) == 5
    assert opened.add(Track("t-3", title="Night II")) == 6
    assert opened.remove("t-1") == 0
    assert opened.remove("t-1") is None
    assert opened.remove("nobody") is None
    now = opened.view()
    assert (len(now), now.size) == (5, 7)
    assert [now.row_of(i) for i in ("t-1", "t-2", "t-3", "new")] == [None, 1, 6, 5]
    assert now.track(6).title == "Night II"
    for row in (0, 2, 7, -1):
        with pytest.raises(KeyError, match="holds no track"):
            now.track(row)
    assert rows(now.mask(Filters())) == [1, 3, 4, 5, 6]
    assert now.search("night") == [6]
    # a replaced track keeps its listening, so does one that was removed and comes back; a new one has none
    assert (now.interactions[6], now.origins[6], now.is_cold(6)) == (9, 2, False)
    assert (now.interactions[5], now.origins[5], now.is_cold(5)) == (0, -1, True)
    row = opened.add(Track("t-1"))
    assert (row, opened.view().is_cold(row), opened.view().origins[row]) == (7, False, 0)
    # what was taken before is as it was
    assert [before.row_of(i) for i in ("t-1", "t-3", "new")] == [0, 2, None]
    assert (len(before), before.size, before.track(0)) == (5, 5, FULL)
    assert before.search("night") == [2]
    assert rows(before.mask(Filters(artists=("ABBA",)))) == [2, 4]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.booleans()), max_size=30))
def test_any_history_matches_a_dictionary(tmp_path_factory, history):
    opened = catalogue(tmp_path_factory.mktemp("any"), [Track("a"), Track("b")], [1, 1])
    model, used = {"a": 0, "b": 1}, 2
    taken = [(opened.view(), dict(model))]
    for track_id, add in history:
        if add:
            assert opened.add(Track(track_id)) == used
            model[track_id], used = used, used + 1
        else:
            assert opened.remove(track_id) == model.pop(track_id, None)
        taken.append((opened.view(), dict(model)))
    for view, then in taken:  # every earlier view still tells its own time
        assert {i: row for i in "abcdefg" if (row := view.row_of(i)) is not None} == then
        assert rows(view.mask(Filters())) == sorted(then.values())
        assert len(view) == len(then)


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_missing_column_is_named(tmp_path, column):
    catalogue(tmp_path)
    path = tmp_path / "tracks.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(CatalogueError, match=f"column {column} is missing: it must be") as caught:
        SealedTracks.read(path)
    assert caught.value.code == "catalogue_column"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("title", pa.array([1, 2, 3, 4, 5]), "column title is int64, it must be string"),
        ("genres", pa.array(["a"] * 5), "column genres is string, it must be list"),
        ("interactions", pa.array([1.0] * 5), "column interactions is double, it must be int32"),
        ("interactions", pa.array([1, 2, -1, 0, 0], pa.int32()), "column interactions, row 2"),
        ("interactions", pa.array([1, None, 1, 0, 0], pa.int32()), "column interactions, row 1"),
        ("track_id", pa.array(["a", "b", "c", "a", "e"]), "row 3: 'a' stands in row 0 already"),
        ("track_id", pa.array(["a", None, "c", "d", "e"]), "column track_id, row 1: empty"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, column, values, message):
    catalogue(tmp_path)
    path = tmp_path / "tracks.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)
    with pytest.raises(CatalogueError, match=message):
        SealedTracks.read(path)


def test_large_strings_and_more_columns_are_welcome(tmp_path):
    catalogue(tmp_path)
    path = tmp_path / "tracks.parquet"
    table = pq.read_table(path)
    table = table.set_column(1, "title", table["title"].cast(pa.large_string()))
    pq.write_table(table.append_column("comment", pa.array(["x"] * 5)), path, row_group_size=2)
    view = Catalogue.open(Folder(tmp_path)).view()
    assert [view.track(row) for row in range(5)] == TRACKS


def test_broken_files_are_named(tmp_path):
    with pytest.raises(CatalogueError, match="is missing") as caught:
        Catalogue.open(Folder(tmp_path))
    assert caught.value.code == "catalogue_missing"
    (tmp_path / "tracks.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(CatalogueError, match="not a Parquet file") as caught:
        Catalogue.open(Folder(tmp_path))
    assert caught.value.code == "catalogue_damaged"
    opened = catalogue(tmp_path)
    table = pq.read_table(tmp_path / "tracks.parquet")
    place = table.column_names.index("attributes")
    pq.write_table(
        table.set_column(place, "attributes", pa.array(["[1]", "{", None, "", "{}"])),
        tmp_path / "tracks.parquet",
    )
    opened = Catalogue.open(Folder(tmp_path))
    for row in (0, 1):
        with pytest.raises(CatalogueError, match=f"column attributes, row {row}: not a JSON object"):
            opened.view().track(row)
    assert opened.view().track(3).attributes == {}


@pytest.mark.parametrize(
    ("tracks", "interactions", "message"),
    [
        ([Track("a"), Track("a")], [0, 0], "row 1: 'a' stands in row 0 already"),
        ([Track("")], [0], "row 0: empty"),
        ([Track("a")], [-1], "interactions must be 1 whole numbers from 0 up"),
        ([Track("a"), Track("b", attributes={"x": float("nan")})], [0, 0], r"attributes, row 1 \('b'\)"),
        ([Track("a")], [0, 0], "interactions must be 1 whole numbers"),
        ([Track("a")], [0.5], "interactions must be 1 whole numbers"),
    ],
)
def test_does_not_write_what_could_not_be_read(tmp_path, tracks, interactions, message):
    with pytest.raises(CatalogueError, match=message):
        write_catalogue(tmp_path / "tracks.parquet", tracks, np.array(interactions))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_added_changes_nothing(tmp_path):
    opened = catalogue(tmp_path)
    for track, interactions in ((Track(""), 0), (Track("x", title="title"), -1)):
        with pytest.raises(ValueError, match=r"track_id|interactions"):
            opened.add(track, interactions)
    with pytest.raises(AttributeError):
        opened.add(Track("x", title="title", genres=("x", 7)))  # type: ignore[arg-type]
    assert opened.view().size == 5
    assert opened.add(Track("y", title="title", genres=("x",))) == 5
    assert opened.view().search("title") == [5]
    assert rows(opened.view().mask(Filters(genres=("x",)))) == [5]
