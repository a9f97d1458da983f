"""Small worlds of listening in the format of LFM-2b, and Weekly Discovery in plain sets; all names are invented."""

import bz2
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from training.adapters.lfm import LfmOptions, import_lfm
from training.adapters.report import ImportReport
from training.adapters.weekly import WeeklySettings
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.progress import Silent

SMALL = WeeklySettings(train_users=8, valid_users=4, test_users=10, train_songs=60, fewest=5, most=12)
NAMES = {TRAIN: "train", VALID: "valid", TEST: "test"}


@dataclass
class World:
    """Who heard what: events are (user, song, album, second)."""

    events: list[tuple[int, int, int, int]]
    users: list[int]
    songs: int
    heard: dict[int, list[int]] = field(init=False)
    """The songs of each user in order of time, with repeats."""

    def __post_init__(self) -> None:
        in_time = sorted(self.events, key=lambda event: event[3])
        self.heard = {u: [song for user, song, _, _ in in_time if user == u] for u in self.users}


def random_world(seed: int, users: int = 40, songs: int = 300, longest: int = 60) -> World:
    """Users with strange ids, some with few songs or none; times in no order, and some at the same second."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    ids = rng.sample(range(10_000), users)
    events = []
    for user in ids:
        for _ in range(rng.choice([0, 4, longest // 2, longest, longest])):
            song = int(songs * rng.random() ** 2)
            events.append((user, song, song // 3, rng.randrange(10**9)))
    rng.shuffle(events)
    return World(events, ids, songs)


def moment(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")


def write_table(path: Path, header: str, rows: list[str]) -> None:
    content = "".join(f"{row}\n" for row in [header, *rows]).encode()
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)


def counts_of(world: World) -> dict[tuple[int, int], int]:
    """Plays of user and song, in the order in which the pairs come up in the events."""
    plays: dict[tuple[int, int], int] = {}
    for user, song, _, _ in world.events:
        plays[user, song] = plays.get((user, song), 0) + 1
    return plays


def write_world(folder: Path, world: World, *, events: bool = True, end: str = "") -> Path:
    """The tables as LFM-2b has them; `end` ".bz2" packs them."""
    folder.mkdir(exist_ok=True)
    if events:
        rows = [f"{user}\t{song}\t{album}\t{moment(second)}" for user, song, album, second in world.events]
        write_table(folder / f"listening-events.tsv{end}", "user_id\ttrack_id\talbum_id\ttimestamp", rows)
    rows = [f"{user}\t{song}\t{plays}" for (user, song), plays in counts_of(world).items()]
    write_table(folder / f"listening-counts.tsv{end}", "user_id\ttrack_id\tcount", rows)
    rows = [f"{user}\tAT\t30\tf\t2009-01-31 08:00:00" for user in world.users]
    write_table(folder / f"users.tsv{end}", "user_id\tcountry\tage\tgender\tcreation_time", rows)
    rows = [f'{song}\tKünstler {song // 9}\tTitle "{song}"' for song in range(world.songs)]
    write_table(folder / f"tracks.tsv{end}", "track_id\tartist_name\ttrack_name", rows)
    rows = [f"{album}\tAlbum {album}\tKünstler {album // 3}" for album in range(world.songs // 3 + 1)]
    write_table(folder / f"albums.tsv{end}", "album_id\talbum_name\tartist_name", rows)
    rows = [f"{song}\tspotify:track:{song:022d}" for song in range(0, world.songs, 2)]
    write_table(folder / f"spotify-uris.tsv{end}", "track_id\turi", rows)
    return folder


def run(source: Path, target: Path, **options: Any) -> tuple[DataSet, ImportReport]:
    report = import_lfm(source, target, LfmOptions(**({"weekly": SMALL} | options)), Silent())
    return DataSet.open(target), report


def playlists_of(dataset: DataSet, split: int) -> dict[int, list[int]]:
    lists = dataset.playlists
    return {
        int(key): [int(dataset.tracks[row].track_id) for row in lists.tracks(p)]
        for p, key in enumerate(lists.ids)
        if dataset.playlist_split[p] == split
    }


def unique(songs: list[int]) -> list[int]:
    return list(dict.fromkeys(songs))


def steps(
    heard: dict[int, list[int]], settings: WeeklySettings, seed: int
) -> tuple[dict[int, dict[int, list[int]]], dict[int, set[int]]]:
    """The paper's four steps in plain sets; the draws are made in the documented order."""
    rng = np.random.default_rng(seed)
    # (1) We randomly select a series of users for each split.
    drawn = rng.permutation(sorted(heard)).tolist()
    sizes = {TRAIN: settings.train_users, VALID: settings.valid_users, TEST: settings.test_users}
    users: dict[int, list[int]] = {}
    for split, size in sizes.items():
        users[split], drawn = sorted(drawn[:size]), drawn[size:]
    pools: dict[int, set[int]] = {TRAIN: {song for user in users[TRAIN] for song in heard[user]}}
    if settings.train_songs is not None and settings.train_songs < len(pools[TRAIN]):
        pools[TRAIN] = set(rng.choice(sorted(pools[TRAIN]), settings.train_songs, replace=False).tolist())
    # (2) We treat each user as a playlist of all the songs that they have listened to.
    lists = {TRAIN: {user: [s for s in unique(heard[user]) if s in pools[TRAIN]] for user in users[TRAIN]}}
    for split in (VALID, TEST):
        lists[split] = {}
        for user in users[split]:
            # (3) Songs of the earlier pools are removed from the later ones.
            left = [song for song in heard[user] if all(song not in pool for pool in pools.values())]
            # (4) A contiguous subset of interactions with at least `fewest` songs and at most `most`.
            if split == TEST or settings.cut_valid:
                lists[split][user] = window(left, settings, rng)
            else:
                lists[split][user] = unique(left)
        pools[split] = {song for songs in lists[split].values() for song in songs}
    return {split: {u: songs for u, songs in found.items() if len(songs) >= 2} for split, found in lists.items()}, pools


def window(songs: list[int], settings: WeeklySettings, rng: np.random.Generator) -> list[int]:
    size = min(len(set(songs)), settings.most)
    if size < settings.fewest:
        return []
    starts = [start for start in range(len(songs)) if len(set(songs[start:])) >= size]
    start = starts[rng.integers(len(starts))]
    stop = next(stop for stop in range(len(songs) + 1) if len(set(songs[start:stop])) == size)
    return unique(songs[start:stop])
