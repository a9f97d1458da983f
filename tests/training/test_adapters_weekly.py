"""Weekly Discovery, from the files to the data set, against the paper's four steps in plain sets."""

import random
from pathlib import Path

import numpy as np
import pytest
from adapters_listening import NAMES, SMALL, counts_of, playlists_of, random_world, run, steps, unique, write_world

from training.adapters.weekly import WeeklySettings
from training.data.dataset import TEST, TRAIN


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("train_songs", [60, None])
@pytest.mark.parametrize("cut_valid", [True, False])
def test_weekly_discovery_is_the_papers_four_steps(
    tmp_path: Path, seed: int, train_songs: int | None, cut_valid: bool
) -> None:
    world = random_world(seed)
    weekly = WeeklySettings(8, 4, 10, train_songs, 5, 12, cut_valid)
    source = write_world(tmp_path / "lfm", world, end=random.Random(seed).choice(["", ".bz2"]))
    dataset, report = run(source, tmp_path / "set", weekly=weekly, seed=seed)
    expected, pools = steps(world.heard, weekly, seed)
    for split in NAMES:
        assert playlists_of(dataset, split) == expected[split]
        assert report.figures[NAMES[split]]["playlists"] == len(expected[split])
    found = {int(t.track_id): int(s) for t, s in zip(dataset.tracks, dataset.track_split, strict=True)}
    wanted = {song: split for split, pool in pools.items() for song in pool}
    assert sum(map(len, pools.values())) == len(wanted)  # the pools share nothing
    assert found == wanted
    assert expected[TEST]
    assert expected[TRAIN]


def test_a_test_playlist_is_a_run_of_what_is_left_in_time(tmp_path: Path) -> None:
    world = random_world(100)
    dataset, report = run(write_world(tmp_path / "lfm", world), tmp_path / "set")
    taken = {int(t.track_id) for t, s in zip(dataset.tracks, dataset.track_split, strict=True) if s != TEST}
    for user, songs in playlists_of(dataset, TEST).items():
        left = [song for song in world.heard[user] if song not in taken]
        runs = [unique(left[start:stop]) for stop in range(len(left) + 1) for start in range(stop)]
        assert songs in runs
        assert 5 <= len(songs) <= 12
    assert report.notes == ["playlists are from listening-events.tsv: the songs of a user are in order of time"]


@pytest.mark.parametrize("seed", range(6))
def test_without_times_the_order_is_the_files(tmp_path: Path, seed: int) -> None:
    world = random_world(seed)
    source = write_world(tmp_path / "lfm", world, events=False)
    dataset, report = run(source, tmp_path / "set", seed=seed)
    in_file = {user: [song for u, song in counts_of(world) if u == user] for user in world.users}
    expected, _ = steps(in_file, SMALL, seed)
    assert {split: playlists_of(dataset, split) for split in NAMES} == expected
    assert "in order of the file, for counts have no time" in report.notes[0]
    assert {track.album for track in dataset.tracks} == {None}


def test_a_track_must_be_heard_by_enough_of_the_drawn_users(tmp_path: Path) -> None:
    world = random_world(4)
    users = np.random.default_rng(45).permutation(sorted(world.users)).tolist()[:22]
    heard_by = {song: sum(song in world.heard[user] for user in users) for song in range(world.songs)}
    common = {user: [song for song in songs if heard_by[song] >= 4] for user, songs in world.heard.items()}
    dataset, _ = run(write_world(tmp_path / "lfm", world), tmp_path / "set", occurrences=4)
    assert {split: playlists_of(dataset, split) for split in NAMES} == steps(common, SMALL, 45)[0]
