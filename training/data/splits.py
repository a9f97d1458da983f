"""Which tracks, playlists and listeners are for training, validation and test: as given, or drawn by hash."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.tables import DataSetError, Table

TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}
SHARES = (0.7, 0.1, 0.2)
KINDS = ("track", "playlist", "listener")


def hash_split(kind: str, ids: Sequence[str]) -> NDArray[np.int8]:
    """Split ids by u = (first 8 hex digits of sha256 of "kind:id") / 2^32. i8 [n].

    Below .7 train, below .8 valid, else test. A new id never moves an old one.
    """
    u = np.array([int(hashlib.sha256(f"{kind}:{key}".encode()).hexdigest()[:8], 16) / 2**32 for key in ids], np.float64)
    return (np.searchsorted(np.cumsum(SHARES)[:2], u, side="right")).astype(np.int8)


def drawn_track_split(
    track_ids: Sequence[str],
    playlist_split: NDArray[np.int8],
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.int8]:
    """Give each track the split of its playlists where they all agree, so that whole playlists stay together.

    A track whose playlists disagree, or that is in none, goes by its own hash. i8 [N].
    """
    split = hash_split("track", track_ids)
    seen = np.zeros((3, len(track_ids)), bool)
    seen[np.repeat(playlist_split, np.diff(indptr)), rows] = True
    agreed = seen.sum(0) == 1
    split[agreed] = seen.argmax(0)[agreed]
    return split


def drawn_playlist_split(
    playlist_ids: Sequence[str],
    track_split: NDArray[np.int8],
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.int8]:
    """Give each playlist the split of its tracks where they agree; any other goes by its own hash. i8 [P]."""
    split = hash_split("playlist", playlist_ids)
    seen = np.zeros((3, len(playlist_ids)), bool)
    owner = np.repeat(np.arange(len(playlist_ids)), np.diff(indptr))
    seen[track_split[rows], owner] = True
    agreed = seen.sum(0) == 1
    split[agreed] = seen.argmax(0)[agreed]
    return split


class SplitFile:
    """splits.parquet: kind (track, playlist, listener), id, split (train, valid, test)."""

    def __init__(self, path: Path) -> None:
        self._table = table = Table(path)
        kinds, ids = table.required("kind", "text"), table.required("id", "text")
        names = table.required("split", "text")
        self._entries: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        self._splits = names
        for row, (kind, key, name) in enumerate(zip(kinds, ids, names, strict=True)):
            if kind not in KINDS:
                raise table.error("kind", row, f"{kind!r} is none of {', '.join(KINDS)}", "data_split")
            if name not in SPLITS:
                raise table.error("split", row, f"{name!r} is none of {', '.join(SPLITS)}", "data_split")
            if self._entries[kind].setdefault(key, row) != row:
                raise table.error("id", row, f"{kind} {key!r} is split twice", "data_duplicate")

    def of(self, kind: str, ids: Sequence[str]) -> NDArray[np.int8] | None:
        """Return the split of each id, i8 [n]; None when the file has no row of this kind.

        Raises DataSetError when an id has no split, or a split has no id.
        """
        entries = self._entries[kind]
        known = set(ids)
        for key, row in entries.items():
            if key not in known:
                raise self._table.error("id", row, f"no {kind} is called {key!r}", "data_reference")
        if not entries:
            return None
        for key in ids:
            if key not in entries:
                raise DataSetError(
                    f"{self._table.path.name} has no row for {kind} {key!r}; add it, or remove the "
                    "file to have all splits drawn by hash",
                    code="data_split",
                )
        return np.array([SPLITS[self._splits[entries[key]]] for key in ids], np.int8)
