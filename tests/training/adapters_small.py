"""Small worlds of playlists in the exact format of the Million Playlist Dataset; all that they name is invented."""

import json
import random
from pathlib import Path
from typing import Any

from training.adapters.mpd import MpdOptions, import_mpd
from training.adapters.pools import PoolSettings
from training.adapters.report import ImportReport
from training.data.dataset import DataSet
from training.progress import Silent

World = dict[int, list[int]]
"""pid -> the tracks of the playlist by number, in order."""


def spotify_id(track: int) -> str:
    return f"{track:022d}"


def entry(track: int, pos: int) -> dict[str, Any]:
    return {
        "pos": pos,
        "artist_name": f"Künstler {track // 3}",
        "track_uri": f"spotify:track:{spotify_id(track)}",
        "artist_uri": f"spotify:artist:{track // 3:022d}",
        "track_name": f'Title "{track}"',
        "album_uri": f"spotify:album:{track // 2:022d}",
        "duration_ms": 1000 * track + 1,
        "album_name": f"Album\t{track // 2}",
    }


def playlist(pid: int, tracks: list[int]) -> dict[str, Any]:
    return {
        "name": f"Mix {pid}",
        "collaborative": "false",
        "pid": pid,
        "modified_at": 1493424000,
        "num_tracks": len(tracks),
        "num_albums": 1,
        "num_followers": 1,
        "tracks": [entry(track, pos) for pos, track in enumerate(tracks)],
        "num_edits": 6,
        "duration_ms": 11532414,
        "num_artists": 1,
    }


def write_slice(folder: Path, first: int, playlists: list[Any], indent: int | None = 4) -> Path:
    folder.mkdir(exist_ok=True)
    name = f"{first}-{first + len(playlists) - 1}"
    content = {"info": {"generated_on": "2017-12-03", "slice": name, "version": "v1"}, "playlists": playlists}
    path = folder / f"mpd.slice.{name}.json"
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    return path


def write_world(folder: Path, world: World, size: int = 50) -> Path:
    playlists = [playlist(pid, tracks) for pid, tracks in world.items()]
    for first in range(0, len(playlists), size):
        write_slice(folder, first, playlists[first : first + size])
    return folder


def random_world(seed: int, playlists: int = 120, tracks: int = 400, longest: int = 30) -> World:
    """Playlists with repeats, over tracks of which some are much more common than others."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    return {pid: [int(tracks * rng.random() ** 2) for _ in range(rng.randint(2, longest))] for pid in range(playlists)}


def run(source: Path, target: Path, options: MpdOptions | None = None) -> tuple[DataSet, ImportReport]:
    report = import_mpd(source, target, options or MpdOptions(), Silent())
    return DataSet.open(target), report


def contents(dataset: DataSet, split: int | None = None) -> World:
    """The playlists of a data set as they were in the world: pid -> tracks by number."""
    lists = dataset.playlists
    return {
        int(key): [int(dataset.tracks[row].track_id) for row in lists.tracks(p)]
        for p, key in enumerate(lists.ids)
        if split is None or dataset.playlist_split[p] == split
    }


def unique(tracks: list[int]) -> list[int]:
    return list(dict.fromkeys(tracks))


def paper(**changes: Any) -> MpdOptions:
    pools = {"train_tracks": 120, "valid_playlists": 4, "test_playlists": 6, "length": 20, "shortest": 3} | changes
    seed = pools.pop("seed", 45)
    challenge = pools.pop("challenge", None)
    return MpdOptions(splits="paper", pools=PoolSettings(**pools), seed=seed, challenge=challenge)
