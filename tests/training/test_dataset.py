"""The data set directory: what is read, what is drawn, and what each mistake is called."""

import hashlib
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.tracks.track import Track
from training.data.dataset import TEST, TRAIN, VALID, DataSet, DataSetError
from training.data.splits import drawn_track_split, hash_split
from training.data.writing import write_dataset


def write(root: Path, **tables: dict) -> Path:
    """Write tables given as columns: write(root, tracks={...}, splits={...})."""
    root.mkdir(exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), root / f"{name}.parquet")
    return root


def four_tracks(root: Path, **more: dict) -> Path:
    return write(root, tracks={"track_id": ["a", "b", "c", "d"]}, **more)


def test_only_track_ids_are_required(tmp_path: Path) -> None:
    dataset = DataSet.open(four_tracks(tmp_path))
    assert [track.track_id for track in dataset.tracks] == ["a", "b", "c", "d"]
    assert dataset.tracks[2] == Track("c")
    assert dataset.row_of["d"] == 3
    assert dataset.audio_path(0) is None
    assert dataset.playlists.ids == []
    assert dataset.listens is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tracks = [
        Track(
            "t0",
            "Title",
            "Artist",
            "Album",
            duration_s=61.5,
            release_date="2024-05-31",
            explicit=False,
            language="en",
            genres=("folk", "choir"),
            lyrics="la",
            isrc="X",
            attributes={"mood": "calm", "year": 1999.0, "tags": ["x", "y"]},
        ),
        Track("t1"),
        Track("t2", title="Only a title"),
    ]
    write_dataset(
        tmp_path,
        tracks,
        audio={"t0": "audio/t0.ogg"},
        playlists={"p": ["t2", "t0"], "q": ["t1", "t2"]},
        playlist_names={"p": "Evening"},
        listens=[("u", "t0", 3.0, True), ("v", "t0", 1.0, False), ("u", "t1", 2.0, False)],
        splits={
            **{("track", f"t{k}"): name for k, name in enumerate(("train", "valid", "test"))},
            ("playlist", "p"): "train",
            ("playlist", "q"): "test",
            ("listener", "u"): "valid",
            ("listener", "v"): "train",
        },
    )
    dataset = DataSet.open(tmp_path, attributes=("mood", "year", "tags"))
    assert dataset.tracks == tracks
    assert dataset.audio_path(0) == tmp_path / "audio/t0.ogg"
    assert (dataset.playlists.ids, dataset.playlists.names) == (["p", "q"], ["Evening", None])
    assert dataset.playlists.indptr.tolist() == [0, 2, 4]
    assert dataset.playlists.tracks(0).tolist() == [2, 0]
    listens = dataset.listens
    assert listens is not None
    assert listens.listener_ids == ["u", "v"]
    assert listens.listener.tolist() == [0, 1, 0]
    assert listens.row.tolist() == [0, 0, 1]
    assert listens.plays.tolist() == [3.0, 1.0, 2.0]
    assert listens.liked.tolist() == [True, False, False]
    assert dataset.track_split.tolist() == [TRAIN, VALID, TEST]
    assert dataset.playlist_split.tolist() == [TRAIN, TEST]
    assert dataset.listener_split.tolist() == [VALID, TRAIN]


def test_columns_nobody_named_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, tracks={"track_id": ["a"], "tempo": [120.0], "mood": ["calm"]})
    assert DataSet.open(tmp_path).tracks[0].attributes == {}
    assert DataSet.open(tmp_path, attributes=("tempo",)).tracks[0].attributes == {"tempo": 120.0}


def test_dates_may_be_attributes(tmp_path: Path) -> None:
    days = [date(2024, 5, 31), None]
    moments = [None, datetime(2024, 5, 31, 23, 59)]
    write(tmp_path, tracks={"track_id": ["a", "b"], "added": days, "seen": moments})
    tracks = DataSet.open(tmp_path, attributes=("added", "seen")).tracks
    assert [track.attributes for track in tracks] == [{"added": "2024-05-31"}, {"seen": "2024-05-31"}]


def test_an_attribute_that_is_a_field_of_tracks_is_no_further_column(tmp_path: Path) -> None:
    write(tmp_path, tracks={"track_id": ["a"], "language": ["de"]})
    track = DataSet.open(tmp_path, attributes=("language",)).tracks[0]
    assert (track.language, track.attributes) == ("de", {})


def test_text_is_composed_and_ids_are_left_alone(tmp_path: Path) -> None:
    decomposed = "Ére".replace("É", "É")
    write(tmp_path, tracks={"track_id": [decomposed], "title": [decomposed], "genres": [[decomposed]]})
    track = DataSet.open(tmp_path).tracks[0]
    assert track.title == "Ére"
    assert track.genres == ("Ére",)
    assert track.track_id == decomposed


@pytest.mark.parametrize(
    ("given_date", "read"),
    [("2024-05-31", "2024-05-31"), ("2024-05", "2024-05-01"), ("1833", "1833-01-01"), ("", None), (None, None)],
)
def test_dates(tmp_path: Path, given_date: str | None, read: str | None) -> None:
    write(tmp_path, tracks={"track_id": ["a"], "release_date": pa.array([given_date], pa.string())})
    assert DataSet.open(tmp_path).tracks[0].release_date == read


def test_dates_may_be_typed_and_text_dictionary_encoded(tmp_path: Path) -> None:
    columns = {
        "track_id": pa.array(["a", "b"]).dictionary_encode(),
        "release_date": pa.array([date(2020, 1, 2), None]),
        "duration_s": pa.array([7, None], pa.int32()),
        "title": pa.nulls(2),
    }
    tracks = DataSet.open(write(tmp_path, tracks=columns)).tracks
    assert [(t.track_id, t.release_date, t.duration_s, t.title) for t in tracks] == [
        ("a", "2020-01-02", 7.0, None),
        ("b", None, None, None),
    ]


def test_a_playlist_is_ordered_by_position_and_holds_a_track_once(tmp_path: Path) -> None:
    playlists = {
        "playlist_id": ["p", "q", "p", "p", "q"],
        "position": [2, 0, 0, 1, 1],
        "track_id": ["a", "c", "b", "b", "a"],
    }
    found = DataSet.open(four_tracks(tmp_path, playlists=playlists)).playlists
    assert found.tracks(0).tolist() == [1, 0]
    assert found.tracks(1).tolist() == [2, 0]


def broken(**changes: object) -> Callable[[Path], object]:
    """Write a sound data set but for the given tables or columns of tracks.parquet."""

    def make(root: Path) -> None:
        tables = {"tracks": {"track_id": ["a", "b", "c", "d"]}}
        tables["playlists"] = {"playlist_id": ["p", "p"], "track_id": ["a", "b"]}
        tables["listens"] = {"listener_id": ["u", "u"], "track_id": ["a", "b"], "plays": [1, 2]}
        for name, columns in changes.items():
            if name in ("tracks", "playlists", "listens", "splits"):
                tables[name] = columns
            else:
                tables["tracks"][name] = columns
        write(root, **tables)

    return make


all_train = {
    "kind": ["track"] * 4 + ["playlist", "listener"],
    "id": ["a", "b", "c", "d", "p", "u"],
    "split": ["train"] * 6,
}


def splits(**changes: tuple[int, str]) -> dict[str, list[str]]:
    """all_train with single cells changed: column=(row, value)."""
    out = {name: list(values) for name, values in all_train.items()}
    for name, (row, value) in changes.items():
        out[name][row] = value
    return out


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (broken(tracks={"title": ["x"]}), "data_column_missing", ["tracks.parquet", "'track_id'"]),
        (broken(tracks={"track_id": [1, 2]}), "data_type", ["tracks.parquet", "'track_id'", "int64", "row 0"]),
        (broken(tracks={"track_id": ["a", None]}), "data_value", ["tracks.parquet", "'track_id'", "row 1"]),
        (broken(tracks={"track_id": ["a", ""]}), "data_value", ["tracks.parquet", "'track_id'", "row 1"]),
        (broken(tracks={"track_id": ["a", "b", "a"]}), "data_duplicate", ["'track_id'", "row 2", "row 0", "'a'"]),
        (broken(title=[1, 2, 3, 4]), "data_type", ["'title'", "text"]),
        (broken(duration_s=[None, "long", None, None]), "data_type", ["'duration_s'", "row 1", "'long'"]),
        (broken(duration_s=[1.0, -2.0, 1.0, 1.0]), "data_value", ["'duration_s'", "row 1", "-2.0"]),
        (broken(duration_s=[1.0, 2.0, float("inf"), 1.0]), "data_value", ["'duration_s'", "row 2", "inf"]),
        (broken(explicit=["yes"] * 4), "data_type", ["'explicit'", "true or false"]),
        (broken(genres=["rock"] * 4), "data_type", ["'genres'", "list"]),
        (broken(release_date=["2024-02-30"] * 4), "data_value", ["'release_date'", "row 0", "2024-02-30"]),
        (broken(release_date=["spring", "", "", ""]), "data_value", ["'release_date'", "row 0", "spring"]),
        (broken(audio=["a.ogg", "", None, None]), "data_path", ["'audio'", "row 1", "empty"]),
        (broken(audio=["/etc/passwd"] * 4), "data_path", ["'audio'", "row 0", "absolute"]),
        (broken(audio=["C:\\x.ogg"] * 4), "data_path", ["'audio'", "row 0", "absolute"]),
        (broken(audio=["ok.ogg", "x/../../y.ogg"] * 2), "data_path", ["'audio'", "row 1", "leaves"]),
        (broken(audio=["ok.ogg", "x\\..\\y.ogg"] * 2), "data_path", ["'audio'", "row 1", "leaves"]),
        (broken(playlists={"track_id": ["a"]}), "data_column_missing", ["playlists.parquet", "'playlist_id'"]),
        (
            broken(playlists={"playlist_id": ["p", "p"], "track_id": ["a", "z"]}),
            "data_reference",
            ["playlists.parquet", "'track_id'", "row 1", "'z'"],
        ),
        (
            broken(playlists={"playlist_id": ["p"], "track_id": ["a"], "position": ["first"]}),
            "data_type",
            ["playlists.parquet", "'position'", "row 0"],
        ),
        (broken(listens={"listener_id": ["u"], "track_id": ["a"]}), "data_column_missing", ["'plays'"]),
        (
            broken(listens={"listener_id": ["u"], "track_id": ["a"], "plays": [-1]}),
            "data_value",
            ["listens.parquet", "'plays'", "row 0"],
        ),
        (
            broken(listens={"listener_id": ["u"], "track_id": ["y"], "plays": [1]}),
            "data_reference",
            ["listens.parquet", "'track_id'", "row 0", "'y'"],
        ),
        (
            broken(listens={"listener_id": ["u", "u"], "track_id": ["a", "a"], "plays": [1, 1]}),
            "data_duplicate",
            ["listens.parquet", "row 1", "row 0"],
        ),
        (broken(splits=splits(kind=(0, "song"))), "data_split", ["splits.parquet", "'kind'", "row 0", "'song'"]),
        (broken(splits=splits(split=(2, "dev"))), "data_split", ["splits.parquet", "'split'", "row 2", "'dev'"]),
        (broken(splits=splits(id=(1, "a"))), "data_duplicate", ["splits.parquet", "'id'", "row 1", "'a'"]),
        (broken(splits=splits(id=(3, "e"))), "data_reference", ["splits.parquet", "row 3", "'e'"]),
        (broken(splits=splits(id=(4, "r"))), "data_reference", ["splits.parquet", "row 4", "playlist", "'r'"]),
        (
            broken(splits={name: values[1:] for name, values in all_train.items()}),
            "data_split",
            ["splits.parquet", "track 'a'"],
        ),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, make: Callable[[Path], object], code: str, words: list[str]) -> None:
    make(tmp_path)
    with pytest.raises(DataSetError) as caught:
        DataSet.open(tmp_path)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.detail


def test_a_missing_attribute_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="no column 'mood'") as caught:
        DataSet.open(four_tracks(tmp_path), attributes=("mood",))
    assert caught.value.code == "data_column_missing"


def test_a_folder_without_tracks_and_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"no tracks\.parquet"):
        DataSet.open(tmp_path)
    (tmp_path / "tracks.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataSetError, match=r"tracks\.parquet cannot be read") as caught:
        DataSet.open(tmp_path)
    assert caught.value.code == "data_unreadable"


def test_the_fingerprint_changes_with_the_content_alone(tmp_path: Path) -> None:
    first = DataSet.open(four_tracks(tmp_path / "x")).fingerprint
    assert DataSet.open(four_tracks(tmp_path / "y")).fingerprint == first
    more = four_tracks(tmp_path / "y", playlists={"playlist_id": ["p"], "track_id": ["a"]})
    assert DataSet.open(more).fingerprint != first


def test_the_hash_split_is_the_documented_one() -> None:
    ids = [f"id{k}" for k in range(4000)]
    expected = []
    for key in ids:
        u = int(hashlib.sha256(b"track:" + key.encode()).hexdigest()[:8], 16) / 2**32
        expected.append(TRAIN if u < 0.7 else VALID if u < 0.8 else TEST)
    found = hash_split("track", ids)
    assert found.tolist() == expected
    assert np.abs(np.bincount(found) / len(ids) - [0.7, 0.1, 0.2]).max() < 0.03


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.integers(0, 19), min_size=1), max_size=12))
def test_drawn_splits_keep_whole_playlists_where_they_agree(playlists: list[set[int]]) -> None:
    track_ids = [f"t{k}" for k in range(20)]
    indptr = np.cumsum([0, *map(len, playlists)])
    rows = np.array([track for tracks in playlists for track in sorted(tracks)], np.int64)
    of_playlists = hash_split("playlist", [f"p{k}" for k in range(len(playlists))])
    found = drawn_track_split(track_ids, of_playlists, indptr, rows)
    own = hash_split("track", track_ids)
    for track in range(20):
        parents = {int(of_playlists[p]) for p, tracks in enumerate(playlists) if track in tracks}
        assert found[track] == (parents.pop() if len(parents) == 1 else own[track])


def test_splits_are_drawn_where_the_file_or_a_kind_is_missing(tmp_path: Path) -> None:
    ids = [f"t{k}" for k in range(60)]
    playlists = {f"p{k}": ids[6 * k : 6 * k + 6] for k in range(10)}
    write_dataset(tmp_path / "x", [Track(key) for key in ids], playlists=playlists)
    dataset = DataSet.open(tmp_path / "x")
    assert dataset.playlist_split.tolist() == hash_split("playlist", list(playlists)).tolist()
    assert dataset.track_split.tolist() == np.repeat(dataset.playlist_split, 6).tolist()

    of_tracks = {("track", key): "test" if k < 30 else "train" for k, key in enumerate(ids)}
    write_dataset(tmp_path / "y", [Track(key) for key in ids], playlists=playlists, splits=of_tracks)
    assert DataSet.open(tmp_path / "y").playlist_split.tolist() == [TEST] * 5 + [TRAIN] * 5


def test_members_are_the_tracks_of_the_same_split(tmp_path: Path) -> None:
    names = {"a": "train", "b": "train", "c": "test", "d": "test"}
    write_dataset(
        tmp_path,
        [Track(key) for key in "abcd"],
        playlists={"p": ["c", "b", "a"], "q": ["c", "d"], "r": ["a", "c"]},
        splits={
            **{("track", key): name for key, name in names.items()},
            ("playlist", "p"): "train",
            ("playlist", "q"): "test",
            ("playlist", "r"): "train",
        },
    )
    dataset = DataSet.open(tmp_path)
    train = dataset.members(TRAIN)
    assert (train.ids, train.indptr.tolist(), train.rows.tolist()) == (["p"], [0, 2], [1, 0])
    assert dataset.members(TRAIN, least=1).ids == ["p", "r"]
    assert dataset.members(TEST).ids == ["q"]
    assert dataset.members(VALID).rows.tolist() == []
