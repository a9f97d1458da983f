"""The Million Playlist Dataset's slices: what is read, and what is named as broken."""

import json
from pathlib import Path
from typing import Any

import pytest
from adapters_small import World, contents, playlist, random_world, run, unique, write_slice, write_world

from training.adapters.mpd import MpdOptions, import_mpd
from training.adapters.report import NAMED, AdapterError
from training.data.splits import drawn_track_split, hash_split
from training.progress import Silent


def test_what_the_slices_say_is_in_the_data_set(tmp_path: Path) -> None:
    world = random_world(1)
    dataset, report = run(write_world(tmp_path / "mpd", world), tmp_path / "set")
    expected = {pid: unique(tracks) for pid, tracks in world.items() if len(set(tracks)) >= 2}
    assert contents(dataset) == expected
    assert dataset.playlists.names == [f"Mix {pid}" for pid in expected]
    assert len(dataset.tracks) == len({track for tracks in expected.values() for track in tracks})
    for track in dataset.tracks:
        number = int(track.track_id)
        assert (track.title, track.artist, track.album) == (
            f'Title "{number}"',
            f"Künstler {number // 3}",
            f"Album\t{number // 2}",
        )
        assert track.duration_s == pytest.approx(number + 0.001)
    assert dataset.audio == [None] * len(dataset.tracks)
    written = json.loads((tmp_path / "set" / "import-report.json").read_text())
    entries = sum(map(len, world.values()))
    assert written["rows"]["playlists"] == {"read": 120, "broken": 0}
    assert written["rows"]["entries"] == {"read": entries, "broken": 0}
    assert written["figures"]["all"]["entries"] == sum(map(len, expected.values()))
    assert report.figures == written["figures"]


def test_the_default_splits_are_the_data_sets_own(tmp_path: Path) -> None:
    dataset, _ = run(write_world(tmp_path / "mpd", random_world(2)), tmp_path / "set")
    assert not (tmp_path / "set" / "splits.parquet").exists()
    lists = dataset.playlists
    assert dataset.playlist_split.tolist() == hash_split("playlist", lists.ids).tolist()
    tracks = drawn_track_split([t.track_id for t in dataset.tracks], dataset.playlist_split, lists.indptr, lists.rows)
    assert dataset.track_split.tolist() == tracks.tolist()


def test_slices_may_be_compact_lie_in_data_and_have_their_tracks_out_of_order(tmp_path: Path) -> None:
    lists = [playlist(0, [5, 6, 7]), playlist(1, [7, 5])]
    lists[0]["tracks"].reverse()
    lists[1].pop("name")
    (tmp_path / "mpd").mkdir()
    write_slice(tmp_path / "mpd" / "data", 0, lists, indent=None)
    dataset, _ = run(tmp_path / "mpd", tmp_path / "set")
    assert contents(dataset) == {0: [5, 6, 7], 1: [7, 5]}
    assert dataset.playlists.names == ["Mix 0", None]


def test_slices_are_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    write_slice(tmp_path / "mpd", 1000, [playlist(1000, [3, 4])])
    write_slice(tmp_path / "mpd", 200, [playlist(200, [1, 2])])
    dataset, _ = run(tmp_path / "mpd", tmp_path / "set")
    assert dataset.playlists.ids == ["200", "1000"]


WORLD = {pid: [pid, pid + 1, pid + 2, pid + 3] for pid in range(120)}


def broken_entry(tmp_path: Path, **changes: Any) -> tuple[Path, World]:
    """120 playlists of which playlist 7 of the second slice has one broken track, at place 2."""
    lists = [playlist(pid, tracks) for pid, tracks in WORLD.items()]
    bad = lists[67]["tracks"][2]
    for key, value in changes.items():
        bad.pop(key) if value is None else bad.update({key: value})
    write_slice(tmp_path, 0, lists[:60])
    write_slice(tmp_path, 60, lists[60:])
    return tmp_path, WORLD | {67: [67, 68, 70]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"track_name": None}, "has no track_name"),
        ({"duration_ms": None}, "has no duration_ms"),
        ({"track_uri": None}, "has no track_uri"),
        ({"track_uri": "spotify:track:short"}, "track_uri is no spotify:track:<22 letters and digits> (got 'spotify"),
        ({"track_uri": "spotify:album:" + 22 * "0"}, "track_uri is no spotify"),
        ({"track_uri": "spotify:track:" + 21 * "0" + "-"}, "track_uri is no spotify"),
        ({"track_uri": f"spotify:track:{69:022d}\n"}, "track_uri is no spotify"),
        ({"track_uri": 69}, "track_uri is no text (got 69)"),
        ({"artist_name": ["x"]}, "artist_name is no text (got ['x'])"),
        ({"duration_ms": -1}, "duration_ms is no number from 0 on (got -1)"),
        ({"duration_ms": "1000"}, "duration_ms is no number from 0 on (got '1000')"),
        ({"duration_ms": 10**30}, "duration_ms is no number from 0 on (got 1000"),
        ({"pos": True}, "pos is no number from 0 on (got True)"),
        ({"pos": 1.5}, "pos is no number from 0 on (got 1.5)"),
        ({"album_name": "\ud800"}, "album_name is no UTF-8 (got '\\ud800')"),
    ],
)
def test_a_broken_entry_is_named_and_left_out(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    source, expected = broken_entry(tmp_path / "mpd", **changes)
    dataset, report = run(source, tmp_path / "set")
    assert contents(dataset) == expected
    assert report.left_out == 1
    assert report.named[0].startswith(f"mpd.slice.60-119.json, playlist 7 (pid 67), track 2: {words}")


def test_an_entry_that_is_no_object(tmp_path: Path) -> None:
    lists = [playlist(pid, tracks) for pid, tracks in WORLD.items()]
    lists[3]["tracks"][1] = "a track"
    write_slice(tmp_path / "mpd", 0, lists)
    dataset, report = run(tmp_path / "mpd", tmp_path / "set")
    assert contents(dataset)[3] == [3, 5, 6]
    assert report.named == ["mpd.slice.0-119.json, playlist 3 (pid 3), track 1: is no track (got 'a track')"]


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", WORLD, size=120)
    path = source / "mpd.slice.0-119.json"
    text = path.read_bytes().replace(b'"Title \\"9\\""', b'"Title \xff"', 1)
    path.write_bytes(text)
    dataset, report = run(source, tmp_path / "set")
    assert report.named == [
        "mpd.slice.0-119.json, playlist 6 (pid 6), track 3: track_name is no UTF-8 (got 'Title \\udcff')"
    ]
    assert contents(dataset) == WORLD | {6: [6, 7, 8]}
    assert "udcff" in (tmp_path / "set" / "import-report.json").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.pop("pid"), "has no pid"),
        (lambda p: p.pop("tracks"), "has no tracks"),
        (lambda p: p.update(pid="5"), "pid is no number from 0 on (got '5')"),
        (lambda p: p.update(pid=-5), "pid is no number from 0 on (got -5)"),
        (lambda p: p.update(pid=4), "pid stands twice (got 4)"),
        (lambda p: p.update(tracks={"0": 1}), "tracks is no list (got {'0': 1})"),
        (lambda p: p.update(name=17), "name is no text (got 17)"),
        (lambda p: p.update(name="\udfff"), "name is no UTF-8 (got '\\udfff')"),
    ],
)
def test_a_broken_playlist_is_named_and_left_out(tmp_path: Path, change: Any, words: str) -> None:
    lists = [playlist(pid, tracks) for pid, tracks in WORLD.items()]
    change(lists[5])
    write_slice(tmp_path / "mpd", 0, lists)
    dataset, report = run(tmp_path / "mpd", tmp_path / "set")
    assert contents(dataset) == {pid: tracks for pid, tracks in WORLD.items() if pid != 5}
    assert report.named == [f"mpd.slice.0-119.json, playlist 5: {words}"]


def test_a_pid_stands_twice_across_slices(tmp_path: Path) -> None:
    write_slice(tmp_path / "mpd", 0, [playlist(pid, tracks) for pid, tracks in WORLD.items()])
    write_slice(tmp_path / "mpd", 120, [playlist(8, [900, 901])])
    dataset, report = run(tmp_path / "mpd", tmp_path / "set")
    assert contents(dataset) == WORLD
    assert report.named == ["mpd.slice.120-120.json, playlist 0: pid stands twice (got 8)"]


def test_a_slice_that_is_cut_off_gives_what_comes_before(tmp_path: Path) -> None:
    world = {pid: [pid, pid + 1] for pid in range(400)}
    source = write_world(tmp_path / "mpd", world, size=200)
    path = source / "mpd.slice.200-399.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index('"Mix 398"')], encoding="utf-8")
    dataset, report = run(source, tmp_path / "set")
    assert contents(dataset) == {pid: tracks for pid, tracks in world.items() if pid < 398}
    assert report.left_out == 2
    assert report.named[0].startswith("mpd.slice.200-399.json, after 198 playlists: cut off or no JSON")
    assert report.kinds["playlists"].rows == 400


@pytest.mark.parametrize("content", ["", "{", "[]", '{"playlists": [1, ', '{"playlists": ' + 100_000 * "[", "\0"])
def test_a_slice_that_is_no_slice_counts_with_all_its_playlists(tmp_path: Path, content: str) -> None:
    source = write_world(tmp_path / "mpd", WORLD, size=120)
    (source / "mpd.slice.120-219.json").write_text(content, encoding="utf-8")
    with pytest.raises(AdapterError, match=r"\d+ of 220 playlists are broken \(over 1 %\), the first: mpd") as caught:
        run(source, tmp_path / "set")
    assert caught.value.code == "import_broken"
    assert not (tmp_path / "set").exists()


def test_over_one_per_cent_of_broken_entries_fail_and_exactly_one_does_not(tmp_path: Path) -> None:
    lists = [playlist(pid, [10 * pid + k for k in range(10)]) for pid in range(100)]
    for pid in range(10):
        lists[pid]["tracks"][0].pop("track_name")
    write_slice(tmp_path / "mpd", 0, lists)
    _, report = run(tmp_path / "mpd", tmp_path / "set")
    assert report.left_out == 10
    lists[50]["tracks"][0].pop("track_name")
    write_slice(tmp_path / "mpd", 0, lists)
    before = (tmp_path / "set" / "playlists.parquet").read_bytes()
    with pytest.raises(AdapterError, match=r"11 of 1000 entries are broken \(over 1 %\)"):
        run(tmp_path / "mpd", tmp_path / "set")
    assert (tmp_path / "set" / "playlists.parquet").read_bytes() == before


def test_the_first_twenty_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    lists = [playlist(pid, [50 * pid + k for k in range(50)]) for pid in range(100)]
    for pid in range(30):
        lists[pid]["tracks"][0].update(duration_ms=-pid - 1)
    write_slice(tmp_path / "mpd", 0, lists)
    said: list[str] = []
    progress = Silent()
    progress.say = said.append  # type: ignore[method-assign]
    import_mpd(tmp_path / "mpd", tmp_path / "set", MpdOptions(), progress)
    written = json.loads((tmp_path / "set" / "import-report.json").read_text())["broken"]
    assert len(written["first"]) == NAMED == 20
    assert written["by_problem"] == {"duration_ms is no number from 0 on": 30}
    assert sum(line.startswith("broken: mpd.slice") for line in said) == 20
    assert any("broken rows: 30 in all" in line for line in said)
