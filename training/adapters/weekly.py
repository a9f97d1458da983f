"""LARP's playlists from listening (section 4.1.1, "Weekly Discovery"): steps (1) to (4) over arrays."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.adapters.collection import NONE
from training.adapters.report import contradiction
from training.data.splits import TEST, TRAIN, VALID

Songs = NDArray[np.int32]
Splits = NDArray[np.int8]


@dataclass(frozen=True)
class WeeklySettings:
    """How many users a split has, and how their playlists are cut.

    The paper's table 1 has 1,000 test playlists of 91.04 songs on average and 87,558 training songs; it names no
    number of training or validation users. train_songs: songs drawn for the training pool from all that the training
    users heard (None: all of them). fewest, most: songs of a test playlist ("more than 30 and less than 100").
    cut_valid: cut validation playlists, too, where the paper speaks of the test alone.
    """

    train_users: int = 1000
    valid_users: int = 100
    test_users: int = 1000
    train_songs: int | None = 100_000
    fewest: int = 31
    most: int = 99
    cut_valid: bool = True

    def __post_init__(self) -> None:
        songs = 1 if self.train_songs is None else self.train_songs
        if min(self.train_users, self.test_users, songs) < 1 or self.valid_users < 0:
            raise contradiction("ask for 1 training user, 1 test user and 1 training song at least")
        if not 2 <= self.fewest <= self.most:
            raise contradiction(f"no playlist has {self.fewest} songs or more, at least 2, and {self.most} or fewer")


@dataclass(frozen=True)
class WeeklyPools:
    """The entries of all playlists in order, user i32 [E] and song i32 [E], and the split of each song, i8 [S]."""

    user: Songs
    song: Songs
    song_split: Splits


def draw_users(
    users: NDArray[np.int64], settings: WeeklySettings, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Splits]:
    """Step (1): draw users for each split, without replacement. -> their ids in ascending order, i64 [U], i8 [U].

    Raises AdapterError when there are not enough.
    """
    counts = {TRAIN: settings.train_users, VALID: settings.valid_users, TEST: settings.test_users}
    users, wanted = np.unique(users), sum(counts.values())
    if len(users) < wanted:
        raise contradiction(f"there are {len(users)} users, not the {wanted} that the splits need: ask for fewer")
    drawn = rng.permutation(users)[:wanted]
    order = np.argsort(drawn)
    return drawn[order], np.repeat(np.array([*counts], np.int8), [*counts.values()])[order]


def weekly_discovery(
    user: Songs, song: Songs, user_split: Splits, songs: int, settings: WeeklySettings, rng: np.random.Generator
) -> WeeklyPools:
    """Steps (2) to (4): what each user heard, without the songs of earlier pools, cut for the test.

    user, song i32 [E]: interactions by ascending user and in order of time; `user_split` i8 [U]; `songs` is S. A
    training playlist is all that its user heard of the training pool. From the validation users the training pool is
    taken, from the test users both; what is left is cut to a window of consecutive interactions with `most` songs (all
    of them where there are fewer), which begins anywhere it can; users with under `fewest` have no playlist.
    """
    split = np.full(songs, NONE, np.int8)
    heard = np.unique(song[user_split[user] == TRAIN])
    if settings.train_songs is not None and settings.train_songs < len(heard):
        heard = rng.choice(heard, settings.train_songs, replace=False)
    split[heard] = TRAIN
    parts = [_distinct(user, song, (user_split[user] == TRAIN) & (split[song] == TRAIN))]
    for name in (VALID, TEST):
        left = (user_split[user] == name) & (split[song] == NONE)
        cut = name == TEST or settings.cut_valid
        parts.append(_windows(user[left], song[left], settings, rng) if cut else _distinct(user, song, left))
        split[parts[-1][1]] = name
    users, found = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(users, kind="stable")
    return WeeklyPools(users[order], found[order], split)


def _distinct(user: Songs, song: Songs, kept: NDArray[np.bool_]) -> tuple[Songs, Songs]:
    """Step (2) for the kept interactions: each song of a user once, where it stands first."""
    user, song = user[kept], song[kept]
    _, first = np.unique(user.astype(np.int64) << 32 | song, return_index=True)
    first.sort()
    return user[first], song[first]


def _windows(user: Songs, song: Songs, settings: WeeklySettings, rng: np.random.Generator) -> tuple[Songs, Songs]:
    """Step (4) for each user; users are in ascending order."""
    bounds = np.flatnonzero(np.diff(user, prepend=-1, append=-1))
    users, windows = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for first, last in pairwise(bounds.tolist()):
        window = _window(song[first:last], settings, rng)
        windows.append(window)
        users.append(np.full(len(window), user[first], np.int32))
    return np.concatenate(users), np.concatenate(windows)


def _window(song: Songs, settings: WeeklySettings, rng: np.random.Generator) -> Songs:
    backwards = song[::-1]
    last = np.zeros(len(song), bool)  # where a song is heard for the last time
    last[len(song) - 1 - np.unique(backwards, return_index=True)[1]] = True
    ahead = np.cumsum(last[::-1])[::-1]  # different songs from here to the end
    if ahead[0] < settings.fewest:
        return np.empty(0, np.int32)
    size = min(int(ahead[0]), settings.most)
    start = rng.integers(np.count_nonzero(ahead >= size))
    first = np.sort(np.unique(song[start:], return_index=True)[1])
    return song[start:][first[:size]]
