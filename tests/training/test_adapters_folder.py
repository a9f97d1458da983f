"""The folder that an import writes: whole or not at all, over nothing but its like, with its audio linked."""

from pathlib import Path

import numpy as np
import pytest
from adapters_small import contents, paper, playlist, random_world, run, spotify_id, unique, write_slice, write_world

from training.adapters.mpd import MpdOptions
from training.adapters.report import AdapterError, ImportReport


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", {0: [1, 2], 1: [3, 4]})
    with pytest.raises(AdapterError, match="no playlist is left"):
        run(source, tmp_path / "set", MpdOptions(occurrences=2))
    with pytest.raises(AdapterError, match=r"holds no mpd\.slice"):
        run(tmp_path, tmp_path / "set")


def test_audio_is_found_in_sub_folders_and_linked(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", {0: [1, 2, 3], 1: [3, 4, 5]})
    mp3 = tmp_path / "mp3"
    for place in (f"{spotify_id(1)}.mp3", f"ab/cd/{spotify_id(3)}.OGG", f"ab/{spotify_id(2)}.mp3", "notes.txt"):
        (mp3 / place).parent.mkdir(parents=True, exist_ok=True)
        (mp3 / place).write_bytes(place.encode())
    (mp3 / "ab" / f"{spotify_id(2)}.flac").write_bytes(b"better")
    (mp3 / "a/b/c").mkdir(parents=True)
    (mp3 / "a/b/c" / f"{spotify_id(4)}.mp3").write_bytes(b"too deep")
    dataset, report = run(source, tmp_path / "set", MpdOptions(audio=mp3))
    assert dataset.audio == [
        f"audio/{spotify_id(1)}.mp3",
        f"audio/ab/{spotify_id(2)}.flac",
        f"audio/ab/cd/{spotify_id(3)}.OGG",
        None,
        None,
    ]
    path = dataset.audio_path(2)
    assert path is not None
    assert path.read_bytes().endswith(b".OGG")
    assert report.figures["all"]["tracks_with_audio"] == 3
    assert "1 audio files were left aside: another file has the same id" in report.notes
    only, _ = run(source, tmp_path / "set", MpdOptions(audio=mp3, audio_only=True))
    assert contents(only) == {0: [1, 2, 3]}
    assert (mp3 / "ab" / f"{spotify_id(2)}.mp3").exists()  # replacing the data set left the files behind its link
    for wrong in (tmp_path / "none", tmp_path / "mpd"):
        with pytest.raises(AdapterError, match=r"audio files|is no folder"):
            run(source, tmp_path / "set", MpdOptions(audio=wrong))


def test_the_same_import_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", random_world(8, longest=40))
    both = []
    for name in ("one", "two"):
        run(source, tmp_path / name, paper())
        run(source, tmp_path / name, paper())
        both.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        assert not list(tmp_path.glob(f"{name}.*"))
    assert both[0] == both[1]
    assert set(both[0]) == {"tracks.parquet", "playlists.parquet", "splits.parquet", "import-report.json"}


def test_only_what_an_import_made_is_replaced(tmp_path: Path) -> None:
    source = write_world(tmp_path / "mpd", {0: [1, 2]})
    target = tmp_path / "set"
    target.mkdir()
    run(source, target)
    run(source, target)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(AdapterError, match=r"holds 'thesis\.txt', which no import made"):
        run(source, target)
    (target / "thesis.txt").unlink()
    (target / "audio").mkdir()
    with pytest.raises(AdapterError, match="holds 'audio'"):
        run(source, target)
    (target / "audio").rmdir()
    for content in ('{"made_by": "somebody"}', "[]", "no json", None):
        report = target / "import-report.json"
        report.unlink() if content is None else report.write_text(content)
        with pytest.raises(AdapterError, match="which no import made"):
            run(source, target)
    assert (target / "tracks.parquet").exists()
    (tmp_path / "file").write_text("x")
    for wrong, words in ((tmp_path / "file", "is no folder"), (tmp_path, "lies within"), (source, "lies within")):
        with pytest.raises(AdapterError, match=words) as caught:
            run(source, wrong)
        assert caught.value.code == "import_target"


def test_nothing_is_left_of_an_import_that_stops_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_world(tmp_path / "mpd", {0: [1, 2]})
    run(source, tmp_path / "set")
    before = (tmp_path / "set" / "tracks.parquet").read_bytes()
    monkeypatch.setattr(ImportReport, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    write_slice(source, 1, [playlist(1, [5, 6])])
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "set")
    assert (tmp_path / "set" / "tracks.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mpd", "set"]


def test_positions_of_long_tables_go_on_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.adapters.folder._BATCH", 7)
    world = random_world(9, playlists=30)
    dataset, _ = run(write_world(tmp_path / "mpd", world), tmp_path / "set")
    assert contents(dataset) == {pid: unique(tracks) for pid, tracks in world.items() if len(set(tracks)) >= 2}
    assert np.diff(dataset.playlists.indptr).min() >= 2
