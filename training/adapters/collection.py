"""Tracks, playlists and listens as columns: tens of millions of entries, and no Python object for any of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.splits import TEST, TRAIN, VALID

_AT_ONCE = 1 << 22  # values
NONE = -1  # the split of what the data set is to leave out
SPLIT_NAMES = {TRAIN: "train", VALID: "valid", TEST: "test"}
TRACK_SCHEMA = pa.schema(
    {
        "track_id": pa.string(),
        "title": pa.string(),
        "artist": pa.string(),
        "album": pa.string(),
        "duration_s": pa.float64(),
        "audio": pa.string(),
    }
)


@dataclass(frozen=True)
class PlayCounts:
    """Entry k: listener ids[listener[k]] played track row[k] plays[k] times. listener i32, row i32, plays f32."""

    ids: pa.StringArray
    listener: NDArray[np.int32]
    row: NDArray[np.int32]
    plays: NDArray[np.float32]


@dataclass(frozen=True)
class Collection:
    """What becomes a data set. Playlist p holds tracks rows[indptr[p]:indptr[p + 1]] in order, each once.

    tracks: TRACK_SCHEMA, a row a track. ids, names [P]. indptr i64 [P + 1], rows i32 [E]. reserved bool [P]:
    playlists that may only be test playlists. Splits are i8, NONE for what is in none; without track_split the reader
    of the data set draws them by hash.
    """

    tracks: pa.Table
    ids: pa.StringArray
    names: pa.StringArray
    indptr: NDArray[np.int64]
    rows: NDArray[np.int32]
    reserved: NDArray[np.bool_] | None = None
    track_split: NDArray[np.int8] | None = None
    playlist_split: NDArray[np.int8] | None = None
    listens: PlayCounts | None = None
    listener_split: NDArray[np.int8] | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tracks of each playlist, i64 [P]."""
        return np.diff(self.indptr)

    @property
    def owner(self) -> NDArray[np.int32]:
        """The playlist of each entry, i32 [E]."""
        return np.repeat(np.arange(len(self.ids), dtype=np.int32), self.lengths)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        """In how many playlists each track is, i64 [N]."""
        return tally(self.rows, self.tracks.num_rows)

    def keep_entries(self, kept: NDArray[np.bool_], least: int) -> "Collection":
        """Keep the entries of a mask [E], then the playlists that still have `least` of them."""
        if kept.all():
            return self.keep_playlists(self.lengths >= least)
        lengths = tally(self.owner[kept], len(self.ids))
        slim = replace(self, indptr=_indptr(lengths), rows=self.rows[kept])
        return slim.keep_playlists(lengths >= least)

    def keep_playlists(self, kept: NDArray[np.bool_]) -> "Collection":
        """Keep the playlists of a mask [P]; tracks stay."""
        if kept.all():
            return self
        mask = pa.array(kept)
        return replace(
            self,
            ids=self.ids.filter(mask),
            names=self.names.filter(mask),
            indptr=_indptr(self.lengths[kept]),
            rows=self.rows[np.repeat(kept, self.lengths)],
            reserved=None if self.reserved is None else self.reserved[kept],
            playlist_split=None if self.playlist_split is None else self.playlist_split[kept],
        )

    def keep_tracks(self, kept: NDArray[np.bool_], least: int) -> "Collection":
        """Keep the tracks of a mask [N] and what speaks of them; playlists left with under `least` tracks go."""
        slim = self.keep_entries(kept[self.rows], least)
        new_row = np.cumsum(kept, dtype=np.int32) - 1
        listens = slim.listens
        if listens is not None:
            heard = kept[listens.row]
            listens = replace(
                listens,
                listener=listens.listener[heard],
                row=new_row[listens.row[heard]],
                plays=listens.plays[heard],
            )
        return replace(
            slim,
            tracks=slim.tracks.filter(pa.array(kept)),
            rows=new_row[slim.rows],
            track_split=None if slim.track_split is None else slim.track_split[kept],
            listens=listens,
        )

    def keep_used_tracks(self) -> "Collection":
        """Drop the tracks that no playlist holds."""
        return self.keep_tracks(self.occurrences > 0, 0)

    def with_audio(self, paths: Sequence[str | None]) -> "Collection":
        """Set the tracks' audio column [N]."""
        column = self.tracks.schema.get_field_index("audio")
        return replace(self, tracks=self.tracks.set_column(column, "audio", pa.array(paths, pa.string())))


def tally(values: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """How often each of 0 .. count - 1 stands in `values`, i64 [count]: bincount without its wide copy of all."""
    found = np.zeros(count, np.int64)
    for first in range(0, len(values), _AT_ONCE):
        found += np.bincount(values[first : first + _AT_ONCE], minlength=count)
    return found


def trim(collection: Collection, shortest: int, occurrences: int) -> Collection:
    """Drop tracks in fewer than `occurrences` playlists and playlists under `shortest` tracks, until neither is
    left.
    """
    while True:
        common = collection.occurrences >= occurrences
        slim = collection.keep_entries(common[collection.rows], shortest)
        if len(slim.rows) == len(collection.rows) and len(slim.ids) == len(collection.ids):
            return slim
        collection = slim


def figures(collection: Collection) -> dict[str, dict[str, float]]:
    """Tracks, playlists and their ratios, in all and by split: the columns of LARP's table 1."""
    out = {"all": _figures(collection.tracks.num_rows, collection.lengths)}
    if collection.track_split is not None and collection.playlist_split is not None:
        for split, name in SPLIT_NAMES.items():
            tracks = int((collection.track_split == split).sum())
            out[name] = _figures(tracks, collection.lengths[collection.playlist_split == split])
    return out


def _figures(tracks: int, lengths: NDArray[np.int64]) -> dict[str, float]:
    entries = int(lengths.sum())
    return {
        "tracks": tracks,
        "playlists": len(lengths),
        "entries": entries,
        "tracks_per_playlist": round(entries / max(len(lengths), 1), 2),
        "playlists_per_track": round(entries / max(tracks, 1), 2),
    }


def _indptr(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
