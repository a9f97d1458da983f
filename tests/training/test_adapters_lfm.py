"""LFM-2b's tables: what is read, what is named as broken, what is written."""

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters_listening import NAMES, SMALL, counts_of, playlists_of, random_world, run, steps, write_world

from training.adapters.report import AdapterError
from training.adapters.weekly import WeeklySettings
from training.data.dataset import TEST


def test_counts_are_read_in_spite_of_events_when_asked(tmp_path: Path) -> None:
    source = write_world(tmp_path / "lfm", random_world(1))
    _, report = run(source, tmp_path / "set", interactions="counts")
    assert "listening-counts.tsv" in report.notes[0]
    (source / "listening-events.tsv").unlink()
    with pytest.raises(AdapterError, match=r"holds no listening-events\.tsv"):
        run(source, tmp_path / "set", interactions="events")


def test_songs_have_their_names_and_audio_by_either_id(tmp_path: Path) -> None:
    world = random_world(2)
    mp3 = tmp_path / "mp3"
    mp3.mkdir()
    for name in [*range(0, 300, 3), *(f"{song:022d}" for song in range(300))]:
        (mp3 / f"{name}.mp3").touch()
    dataset, report = run(write_world(tmp_path / "lfm", world), tmp_path / "set", audio=mp3)
    for track, audio in zip(dataset.tracks, dataset.audio, strict=True):
        song = int(track.track_id)
        assert (track.title, track.artist, track.album) == (
            f'Title "{song}"',
            f"Künstler {song // 9}",
            f"Album {song // 3}",
        )
        spotify = f"audio/{song:022d}.mp3" if song % 2 == 0 else None
        assert audio == (f"audio/{song}.mp3" if song % 3 == 0 else spotify)
    assert report.figures["all"]["tracks_with_audio"] == sum(audio is not None for audio in dataset.audio)
    only, _ = run(tmp_path / "lfm", tmp_path / "set", audio=mp3, audio_only=True, listens=True)
    assert [t.track_id for t in only.tracks] == [
        t.track_id for t, a in zip(dataset.tracks, dataset.audio, strict=True) if a
    ]


@pytest.mark.parametrize("interactions", ["events", "counts"])
def test_users_who_heard_nothing_are_no_source(tmp_path: Path, interactions: str) -> None:
    """Users of another download than the listening's."""
    source = write_world(tmp_path / "lfm", random_world(4))
    (source / "users.tsv").write_text("user_id\n" + "".join(f"{user}\n" for user in range(900_000, 900_100)))
    with pytest.raises(AdapterError, match="no row of the 22 users"):
        run(source, tmp_path / "set", interactions=interactions)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("interactions", ["events", "counts"])
def test_listens_are_the_plays_of_the_drawn_users(tmp_path: Path, interactions: str) -> None:
    world = random_world(3)
    source = write_world(tmp_path / "lfm", world)
    dataset, _ = run(source, tmp_path / "set", listens=True, interactions=interactions)
    listens = dataset.listens
    assert listens is not None
    users = set(np.random.default_rng(45).permutation(sorted(world.users)).tolist()[:22])
    songs = {int(track.track_id) for track in dataset.tracks}
    expected = {(u, s): plays for (u, s), plays in counts_of(world).items() if u in users and s in songs}
    found = {
        (int(listens.listener_ids[who]), int(dataset.tracks[row].track_id)): plays
        for who, row, plays in zip(listens.listener.tolist(), listens.row.tolist(), listens.plays.tolist(), strict=True)
    }
    assert found == expected
    drawn, _ = steps(world.heard, SMALL, 45)
    split = {int(key): int(s) for key, s in zip(listens.listener_ids, dataset.listener_split, strict=True)}
    assert all(split[user] == name for name, lists in drawn.items() for user in lists)
    without, _ = run(source, tmp_path / "set", interactions=interactions)
    assert without.listens is None


def test_without_a_table_of_users_they_are_those_who_listened(tmp_path: Path) -> None:
    world = random_world(5)
    source = write_world(tmp_path / "lfm", world)
    (source / "users.tsv").unlink()
    with open(source / "listening-events.tsv", "a", encoding="utf-8") as file:
        file.write("one\ttoo\tfew\n")
    dataset, report = run(source, tmp_path / "set")
    listened = {user: songs for user, songs in world.heard.items() if songs}
    assert {split: playlists_of(dataset, split) for split in NAMES} == steps(listened, SMALL, 45)[0]
    assert report.left_out == 1  # though the file was read twice


def test_other_names_of_columns_and_tables_that_are_not_there(tmp_path: Path) -> None:
    world = random_world(6)
    source = write_world(tmp_path / "lfm", world)
    for name, old, new in (
        ("listening-events", "album_id\ttimestamp", "album\ttime"),
        ("tracks", "artist_name\ttrack_name", "artist\ttrack"),
        ("spotify-uris", "uri", "spotify_uri"),
    ):
        path = source / f"{name}.tsv"
        path.write_text(path.read_text().replace(old, new, 1))
    (source / "albums.tsv").unlink()
    dataset, _ = run(source, tmp_path / "set")
    assert {split: playlists_of(dataset, split) for split in NAMES} == steps(world.heard, SMALL, 45)[0]
    assert {track.album for track in dataset.tracks} == {None}
    assert all(track.title == f'Title "{track.track_id}"' for track in dataset.tracks)
    (source / "tracks.tsv").write_text("track_id\tartist_id\ttrack_name\n")
    with pytest.raises(AdapterError, match=r"tracks\.tsv has no column 'artist_name' or 'artist'; its columns are"):
        run(source, tmp_path / "set")
    (source / "tracks.tsv").unlink()
    with pytest.raises(AdapterError, match=r"holds no tracks\.tsv"):
        run(source, tmp_path / "set")
    with pytest.raises(AdapterError, match=r"holds no listening-events\.tsv or listening-counts\.tsv"):
        run(tmp_path, tmp_path / "set")


BROKEN = {
    "listening-events": ["1\t2\t3", "1\t2\t3\tsoon", "x\t2\t3\t2019-01-31 08:00:00", "1\t-2\t3\t2019-01-31 08:00:00"],
    "tracks": ["1\tan artist", "1\tan artist\ta title\tand more"],
    "users": ["nobody\tAT\t30\tf\t2009-01-31 08:00:00"],
}


def test_broken_rows_are_named_by_file_and_line_and_left_out(tmp_path: Path) -> None:
    world = random_world(7)
    source = write_world(tmp_path / "lfm", world)
    for name, rows in BROKEN.items():
        path = source / f"{name}.tsv"
        lines = path.read_text().splitlines(keepends=True)
        sound = {"users": 200, "tracks": 300, "listening-events": 0}[name]
        extra = [lines[1].replace(lines[1].split("\t")[0], str(20_000 + k), 1) for k in range(sound)]
        path.write_text("".join(lines[:1] + [row + "\n" for row in rows] + lines[1:] + extra))
    world.users += range(20_000, 20_200)
    world.__post_init__()
    dataset, report = run(source, tmp_path / "set")
    assert {split: playlists_of(dataset, split) for split in NAMES} == steps(world.heard, SMALL, 45)[0]
    assert [line.split(": ")[0] for line in report.named] == [
        *(f"users.tsv, line {n}" for n in (2,)),
        *(f"listening-events.tsv, line {n}" for n in (2, 3, 4, 5)),
        *(f"tracks.tsv, line {n}" for n in (2, 3)),
    ]
    words = (
        "is no number from 0 on, has 3 columns, is no time, is no number, is no number, has 2 columns, has 4 columns"
    )
    assert all(word in line for word, line in zip(words.split(", "), report.named, strict=True))


def test_over_one_per_cent_of_broken_rows_of_any_table_fail(tmp_path: Path) -> None:
    source = write_world(tmp_path / "lfm", random_world(8))
    path = source / "tracks.tsv"
    path.write_bytes(path.read_bytes() + b"999\tA\tB\xff\n" * 4)
    with pytest.raises(AdapterError, match=r"4 of 304 rows of tracks\.tsv are broken \(over 1 %\), the first: tracks"):
        run(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_uris_that_are_none_are_named(tmp_path: Path) -> None:
    world = random_world(9)
    source = write_world(tmp_path / "lfm", world)
    dataset, _ = run(source, tmp_path / "set")
    song = next(int(t.track_id) for t in dataset.tracks if int(t.track_id) % 2 == 0)
    path = source / "spotify-uris.tsv"
    path.write_text(path.read_text().replace(f"spotify:track:{song:022d}", "spotify:local:x"))
    _, report = run(source, tmp_path / "set")
    assert report.named == [f"spotify-uris.tsv, track_id {song}: uri is no Spotify id (got 'spotify:local:x')"]


def test_a_table_that_is_cut_off_is_named_and_the_import_goes_on(tmp_path: Path) -> None:
    source = write_world(tmp_path / "lfm", random_world(10, users=400), end=".bz2")
    path = source / "listening-events.tsv.bz2"
    content = bz2.decompress(path.read_bytes())
    half = content.index(b"\n", len(content) // 2) + 1
    path.write_bytes(bz2.compress(content[:half]) + bz2.compress(content[half:])[:-20])
    dataset, report = run(source, tmp_path / "set")
    assert len(playlists_of(dataset, TEST)) > 0
    lines = content[:half].count(b"\n")
    assert report.named == [f"{path.name}, after line {lines}: cut off or damaged: what follows is missing"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: {"weekly": WeeklySettings(30, 10, 10)}, "there are 40 users, not the 50"),
        (lambda: {"weekly": WeeklySettings(0, 1, 1)}, "at least"),
        (lambda: {"weekly": WeeklySettings(train_songs=0)}, "at least"),
        (lambda: {"weekly": WeeklySettings(fewest=40, most=30)}, "40 songs or more, at least 2, and 30 or fewer"),
        (lambda: {"interactions": "both"}, "auto, events, counts, not 'both'"),
        (lambda: {"occurrences": 0}, "at least"),
        (lambda: {"audio_only": True}, "needs --audio"),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, options: Any, words: str) -> None:
    source = write_world(tmp_path / "lfm", random_world(11))
    with pytest.raises(AdapterError, match=words) as caught:
        run(source, tmp_path / "set", **options())
    assert caught.value.code == "import_options"


def test_the_same_import_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_world(tmp_path / "lfm", random_world(12))
    both = []
    for name in ("one", "two"):
        run(source, tmp_path / name, listens=True)
        run(source, tmp_path / name, listens=True)
        both.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert both[0] == both[1]
    assert len(both[0]) == 5
