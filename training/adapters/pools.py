"""Strict cold start from playlists: pools of tracks that share nothing, drawn in the manner of LARP's data sets.

The paper (section 4.1) draws, and says neither how nor with which seed; the sizes here are those of its table 1 and
of the options its authors name. This is a reconstruction.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.adapters.collection import NONE, Collection, tally
from training.adapters.report import contradiction
from training.data.splits import TEST, TRAIN, VALID

_HELD_OUT = {VALID: "validation", TEST: "test"}


@dataclass(frozen=True)
class PoolSettings:
    """How the pools are drawn.

    train_tracks: distinct tracks of the training pool (100,000 before those without audio go; the paper has 98,552
    left). valid_playlists, test_playlists: how many are held out, each cut to its first `length` tracks (the paper:
    100 for test, 98.12 tracks on average). shortest: a held-out playlist with fewer tracks left is dropped.
    train_first: draw the training tracks first and take them out of the held-out playlists; otherwise hold out whole
    playlists first and take their tracks out of training.
    """

    train_tracks: int = 100_000
    valid_playlists: int = 100
    test_playlists: int = 100
    length: int = 100
    shortest: int = 10
    train_first: bool = True

    def __post_init__(self) -> None:
        if min(self.train_tracks, self.test_playlists) < 1 or self.valid_playlists < 0 or self.shortest < 2:
            raise contradiction(
                "ask for 1 training track, 1 test playlist and 2 tracks of a held-out playlist at least"
            )
        if self.length < self.shortest:
            raise contradiction(
                f"held-out playlists are cut to {self.length} tracks and must keep {self.shortest}: contradictory"
            )


def draw_pools(collection: Collection, settings: PoolSettings, rng: np.random.Generator) -> Collection:
    """Split tracks and playlists into disjoint pools; what is in none is left out.

    Held-out playlists are drawn from those with `length` tracks or more; where the collection has reserved ones, the
    test playlists are drawn from these alone. Training playlists are all others, restricted to the training pool, with
    two tracks or more. Every track has one split, and every entry lies in the pool of its playlist. Raises
    AdapterError when there are too few playlists or tracks.
    """
    return _Draw(collection, settings, rng).run()


class _Draw:
    def __init__(self, collection: Collection, settings: PoolSettings, rng: np.random.Generator) -> None:
        count = len(collection.ids)
        self._collection, self._settings, self._rng = collection, settings, rng
        self._tracks = np.full(collection.tracks.num_rows, NONE, np.int8)
        self._playlists = np.full(count, NONE, np.int8)
        self._reserved = np.zeros(count, bool) if collection.reserved is None else collection.reserved
        self._owner = collection.owner
        self._within = _first_tracks(collection, settings.length)

    def run(self) -> Collection:
        settings = self._settings
        if settings.train_first:
            self._draw_training()
        held_out = [(VALID, settings.valid_playlists), (TEST, settings.test_playlists)]
        for split, count in held_out if settings.train_first else held_out[::-1]:
            self._hold_out(split, count)
        if not settings.train_first:
            self._draw_training()
        self._playlists[(self._playlists == NONE) & ~self._reserved] = TRAIN
        return self._result()

    def _draw_training(self) -> None:
        """Draw from the tracks that are in no pool yet, and that an ordinary playlist holds."""
        collection = self._collection
        usable = np.zeros(len(self._tracks), bool)
        usable[collection.rows[~self._reserved[self._owner]]] = True
        free = np.flatnonzero(usable & (self._tracks == NONE))
        if len(free) < self._settings.train_tracks:
            raise contradiction(
                f"only {len(free)} tracks are left to train on, not {self._settings.train_tracks}: ask for fewer with "
                "--train-tracks"
            )
        self._tracks[self._rng.choice(free, self._settings.train_tracks, replace=False)] = TRAIN

    def _hold_out(self, split: int, count: int) -> None:
        collection = self._collection
        source = self._reserved if split == TEST and self._reserved.any() else ~self._reserved
        fit = source & (collection.lengths >= self._settings.length) & (self._playlists == NONE)
        candidates = np.flatnonzero(fit)
        if len(candidates) < count:
            raise contradiction(
                f"only {len(candidates)} playlists have the {self._settings.length} tracks of a {_HELD_OUT[split]} "
                f"playlist, not {count}: ask for fewer, or for shorter ones with --held-out-length"
            )
        self._playlists[self._rng.choice(candidates, count, replace=False)] = split
        entries = (self._playlists == split)[self._owner] & self._within
        entries &= self._tracks[collection.rows] == NONE
        long_enough = tally(self._owner[entries], len(self._playlists)) >= self._settings.shortest
        self._tracks[collection.rows[entries & long_enough[self._owner]]] = split

    def _result(self) -> Collection:
        collection = replace(self._collection, track_split=self._tracks, playlist_split=self._playlists)
        kept = self._tracks[collection.rows] == self._playlists[self._owner]
        kept &= self._playlists[self._owner] != NONE
        kept &= (self._playlists[self._owner] == TRAIN) | self._within
        collection = collection.keep_entries(kept, 2)
        least = np.where(collection.playlist_split == TRAIN, 2, self._settings.shortest)
        return collection.keep_playlists(collection.lengths >= least).keep_tracks(self._tracks != NONE, 2)


def _first_tracks(collection: Collection, length: int) -> NDArray[np.bool_]:
    """Whether each entry is among the first `length` of its playlist, bool [E]; no playlist is empty."""
    starts = collection.indptr[:-1]
    change = np.zeros(len(collection.rows) + 1, np.int8)
    change[starts] += 1
    change[starts + np.minimum(collection.lengths, length)] -= 1
    return np.cumsum(change[:-1], dtype=np.int8) > 0
