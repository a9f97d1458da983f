"""What is drawn of the playlists: samples, limits, and pools that share no track."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from adapters_small import World, contents, paper, playlist, random_world, run, unique, write_world

from training.adapters.mpd import MpdOptions
from training.adapters.report import AdapterError
from training.data.dataset import TEST, TRAIN, VALID


def test_a_sample_is_a_subset_of_a_larger_one_whatever_the_slices(tmp_path: Path) -> None:
    world = random_world(3, playlists=150)
    one = write_world(tmp_path / "one", world, size=150)
    two = write_world(tmp_path / "two", dict(reversed(world.items())), size=17)
    found: dict[tuple[str, int], World] = {}
    for source in (one, two):
        for count in (10, 40):
            options = MpdOptions(playlists=count, shortest=5, seed=9)
            dataset, _ = run(source, tmp_path / "set", options)
            found[source.name, count] = contents(dataset)
            assert len(found[source.name, count]) == count
    assert found["one", 40] == found["two", 40]
    assert found["one", 10].items() <= found["one", 40].items()
    assert all(len(tracks) >= 5 for tracks in found["one", 40].values())
    other, _ = run(one, tmp_path / "set", MpdOptions(playlists=40, shortest=5, seed=10))
    assert set(contents(other)) != set(found["one", 40])
    everything, _ = run(one, tmp_path / "set", MpdOptions(playlists=1000))
    assert len(contents(everything)) == sum(len(set(tracks)) >= 2 for tracks in world.values())


@pytest.mark.parametrize("seed", range(8))
def test_limits_of_length_and_occurrence_hold_together(tmp_path: Path, seed: int) -> None:
    """Against the definition: take away what breaks a limit, one thing at a time, until nothing does."""
    world = random_world(seed, playlists=100, tracks=120, longest=25)
    options = MpdOptions(shortest=4, longest=18, occurrences=5)
    left = {pid: unique(tracks) for pid, tracks in world.items() if 4 <= len(set(tracks)) <= 18}
    while True:
        counts: dict[int, int] = {}
        for tracks in left.values():
            for track in tracks:
                counts[track] = counts.get(track, 0) + 1
        rare = next((track for track, count in counts.items() if count < 5), None)
        short = next((pid for pid, tracks in left.items() if len(tracks) < 4), None)
        if rare is not None:
            left = {pid: [track for track in tracks if track != rare] for pid, tracks in left.items()}
        elif short is not None:
            del left[short]
        else:
            break
    dataset, _ = run(write_world(tmp_path / "mpd", world), tmp_path / "set", options)
    assert left
    assert contents(dataset) == left
    assert {int(track.track_id) for track in dataset.tracks} == set(counts)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("train_first", [True, False])
def test_paper_pools_share_no_track_and_follow_from_one_another(tmp_path: Path, seed: int, train_first: bool) -> None:
    """What is drawn at random is which tracks and playlists; all else must follow from these by plain sets."""
    world = random_world(seed, playlists=100, longest=40)
    options = paper(seed=seed, train_first=train_first)
    dataset, report = run(write_world(tmp_path / "mpd", world), tmp_path / "set", options)
    pool = {
        split: {int(t.track_id) for t, s in zip(dataset.tracks, dataset.track_split, strict=True) if s == split}
        for split in (TRAIN, VALID, TEST)
    }
    train, valid, test = (contents(dataset, split) for split in (TRAIN, VALID, TEST))
    assert len(pool[TRAIN]) == 120
    assert 1 <= len(valid) <= 4
    assert 1 <= len(test) <= 6
    # Strict cold start: whatever a training playlist holds, no held-out playlist does, and the other way round.
    for split, lists in ((TRAIN, train), (VALID, valid), (TEST, test)):
        assert all(set(tracks) <= pool[split] for tracks in lists.values())
        if split != TRAIN:
            assert pool[split] == {track for tracks in lists.values() for track in tracks}
    # Held-out playlists: the first 20 tracks of a long one, without those of the pools drawn before.
    before_test = pool[TRAIN] | pool[VALID] if train_first else set()
    before_valid = pool[TRAIN] if train_first else pool[TEST]
    for lists, earlier in ((valid, before_valid), (test, before_test)):
        for pid, tracks in lists.items():
            source = unique(world[pid])
            assert len(source) >= 20
            assert tracks == [track for track in source[:20] if track not in earlier]
            assert 3 <= len(tracks) <= 20
    # Training playlists: all the others, restricted to the training pool.
    others = {pid: [t for t in unique(world[pid]) if t in pool[TRAIN]] for pid in world if pid not in {*valid, *test}}
    dropped = {pid for pid, tracks in others.items() if len(tracks) >= 2 and pid not in train}
    assert len(dropped) == 10 - len(valid) - len(test)  # held out, but with under 3 tracks left
    assert train == {pid: tracks for pid, tracks in others.items() if len(tracks) >= 2 and pid not in dropped}
    assert report.figures["test"]["tracks"] == len(pool[TEST])
    assert dataset.members(TEST).ids == [str(pid) for pid in test]


def test_held_out_first_keeps_test_playlists_whole(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", random_world(4, longest=40))
    dataset, _ = run(source, tmp_path / "set", paper(train_first=False))
    assert {len(tracks) for tracks in contents(dataset, TEST).values()} == {20}


def test_the_challenge_set_makes_the_test_playlists(tmp_path: Path) -> None:
    world = random_world(5, longest=40)
    source = write_world(tmp_path / "mpd", world)
    rng = random.Random(5)
    challenge = {1000 + k: rng.sample(range(600), 20 if k % 2 else 10) for k in range(30)}
    lists = [playlist(pid, tracks) | {"num_holdouts": 5} for pid, tracks in challenge.items()]
    for each in lists:
        each.pop("name")
    path = tmp_path / "challenge_set.json"
    path.write_text(json.dumps({"date": "2018-01-16 08:47:28", "version": "v1", "playlists": lists}), encoding="utf-8")
    dataset, _ = run(source, tmp_path / "set", paper(challenge=path))
    test = contents(dataset, TEST)
    assert len(test) == 6
    assert all(pid % 2 == 1 and pid >= 1000 for pid in test)
    assert all(pid < 1000 for split in (TRAIN, VALID) for pid in contents(dataset, split))
    with pytest.raises(AdapterError, match="only 15 playlists have the 20 tracks of a test playlist, not 16"):
        run(source, tmp_path / "set", paper(challenge=path, test_playlists=16))
    path.write_text('{"playlists": []}', encoding="utf-8")  # ordinary playlists must not take the place of these
    with pytest.raises(AdapterError, match="holds no playlist within these limits"):
        run(source, tmp_path / "set", paper(challenge=path))
    assert contents(dataset, TEST) == test


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: paper(train_tracks=10_000), "tracks are left to train on, not 10000"),
        (lambda: paper(test_playlists=1000), "playlists have the 20 tracks of a test playlist, not 1000"),
        (lambda: paper(length=2), "cut to 2 tracks and must keep 3"),
        (lambda: paper(shortest=1), "2 tracks of a held-out playlist at least"),
        (lambda: MpdOptions(splits="random"), "hash or paper, not 'random'"),
        (lambda: MpdOptions(playlists=0), "at least"),
        (lambda: MpdOptions(shortest=9, longest=8), "9 tracks or more and 8 or fewer"),
        (lambda: MpdOptions(audio_only=True), "--audio-only needs --audio"),
        (lambda: MpdOptions(challenge=Path("x.json")), "--splits paper"),
    ],
)
def test_options_that_cannot_be_met(tmp_path: Path, options: Any, words: str) -> None:
    source = write_world(tmp_path / "mpd", random_world(6, longest=40))
    with pytest.raises(AdapterError, match=words) as caught:
        run(source, tmp_path / "set", options())
    assert caught.value.code == "import_options"
    assert not (tmp_path / "set").exists()


def test_audio_only_leaves_the_drawn_splits_as_they_are(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", random_world(7, longest=40))
    whole, _ = run(source, tmp_path / "set", paper())
    split = {t.track_id: int(s) for t, s in zip(whole.tracks, whole.track_split, strict=True)}
    had = [key for k, key in enumerate(split) if k % 5]
    (tmp_path / "mp3").mkdir()
    for key in had:
        (tmp_path / "mp3" / f"{key}.mp3").touch()
    options = paper()
    options = MpdOptions(
        splits="paper", pools=options.pools, seed=options.seed, audio=tmp_path / "mp3", audio_only=True
    )
    slim, _ = run(source, tmp_path / "set", options)
    assert {t.track_id: int(s) for t, s in zip(slim.tracks, slim.track_split, strict=True)} == {
        k: split[k] for k in had
    }
