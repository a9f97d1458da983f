"""The importers' command line: every option reaches its import."""

import json
from pathlib import Path

import adapters_listening
import adapters_small
import pytest
from typer.testing import CliRunner

from training.adapters.commands import app
from training.adapters.report import AdapterError


def settings(*words: object) -> dict:
    """Run a command and return the settings that its report names."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None:
        raise done.exception
    return json.loads((Path(str(words[2])) / "import-report.json").read_text())["settings"]


def test_mpd_passes_its_options_on(tmp_path: Path) -> None:
    source = adapters_small.write_world(tmp_path / "mpd", adapters_small.random_world(1, longest=40))
    (tmp_path / "mp3").mkdir()
    for track in range(400):
        (tmp_path / "mp3" / f"{track:022d}.mp3").touch()
    challenge = tmp_path / "challenge_set.json"
    lists = [adapters_small.playlist(1000 + k, list(range(7 * k, 7 * k + 20))) for k in range(5)]
    challenge.write_text(json.dumps({"version": "v1", "playlists": lists}))
    found = settings(
        *("mpd", source, tmp_path / "set", "--playlists", 110, "--shortest", 3, "--longest", 38, "--occurrences", 2),
        *("--splits", "paper", "--train-tracks", 90, "--valid-playlists", 2, "--test-playlists", 3),
        *("--held-out-length", 16, "--held-out-shortest", 4, "--held-out-first", "--challenge", challenge),
        *("--audio", tmp_path / "mp3", "--audio-only", "--seed", 7),
    )
    assert found == {
        "playlists": 110,
        "shortest": 3,
        "longest": 38,
        "occurrences": 2,
        "splits": "paper",
        "pools": {
            "train_tracks": 90,
            "valid_playlists": 2,
            "test_playlists": 3,
            "length": 16,
            "shortest": 4,
            "train_first": False,
        },
        "seed": 7,
        "challenge": "challenge_set.json",
        "audio": "mp3",
        "audio_only": True,
    }


def test_lfm_passes_its_options_on(tmp_path: Path) -> None:
    source = adapters_listening.write_world(tmp_path / "lfm", adapters_listening.random_world(1))
    (tmp_path / "mp3").mkdir()
    for song in range(300):
        (tmp_path / "mp3" / f"{song}.mp3").touch()
    command = ("lfm", source, tmp_path / "set", "--train-users", 7, "--valid-users", 3, "--test-users", 9)
    found = settings(
        *(*command, "--train-songs", 50, "--fewest", 4, "--most", 13, "--whole-valid", "--interactions", "counts"),
        *("--occurrences", 2, "--listens", "--audio", tmp_path / "mp3", "--audio-only", "--seed", 7),
    )
    assert found == {
        "weekly": {
            "train_users": 7,
            "valid_users": 3,
            "test_users": 9,
            "train_songs": 50,
            "fewest": 4,
            "most": 13,
            "cut_valid": False,
        },
        "interactions": "counts",
        "occurrences": 2,
        "listens": True,
        "seed": 7,
        "audio": "mp3",
        "audio_only": True,
    }
    assert settings(*command, "--train-songs", 0, "--fewest", 4)["weekly"]["train_songs"] is None


def test_what_a_user_can_mend_is_raised_for_the_command_line_to_print(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"holds no mpd\.slice"):
        settings("mpd", tmp_path, tmp_path / "set")
    with pytest.raises(AdapterError, match="holds no listening-events"):
        settings("lfm", tmp_path, tmp_path / "set")
