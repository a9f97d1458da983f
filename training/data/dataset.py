"""The data set directory: tracks, playlists, listens and splits, read once and checked in full."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.tracks.track import Track
from training.data.splits import (
    TEST,
    TRAIN,
    VALID,
    SplitFile,
    drawn_playlist_split,
    drawn_track_split,
    hash_split,
)
from training.data.tables import DataSetError, Table, index_ids, rows_of

__all__ = ["TEST", "TRAIN", "VALID", "DataSet", "DataSetError", "Listens", "Playlists"]

FILES = ("tracks.parquet", "playlists.parquet", "listens.parquet", "splits.parquet")
_TRACK_COLUMNS = {
    "title": "text",
    "artist": "text",
    "album": "text",
    "duration_s": "number",
    "release_date": "date",
    "explicit": "flag",
    "language": "text",
    "genres": "texts",
    "lyrics": "text",
    "isrc": "text",
}


@dataclass(frozen=True)
class Playlists:
    """Playlists as CSR: the tracks of playlist p are rows[indptr[p]:indptr[p + 1]], in order, each once."""

    ids: list[str]
    names: list[str | None]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]

    def tracks(self, playlist: int) -> NDArray[np.int64]:
        """Track rows of one playlist."""
        return self.rows[self.indptr[playlist] : self.indptr[playlist + 1]]


@dataclass(frozen=True)
class Listens:
    """Who played what: entry k says that listener_ids[listener[k]] played track row[k] plays[k] times."""

    listener_ids: list[str]
    listener: NDArray[np.int64]
    row: NDArray[np.int64]
    plays: NDArray[np.float32]
    liked: NDArray[np.bool_]


@dataclass(frozen=True)
class DataSet:
    """A data set directory in memory; open it with `DataSet.open`.

    Tracks are in file order, which is their row everywhere. Splits are i8 arrays of TRAIN, VALID and TEST.
    """

    root: Path
    tracks: list[Track]
    row_of: dict[str, int]
    audio: list[str | None]
    playlists: Playlists
    listens: Listens | None
    track_split: NDArray[np.int8]
    playlist_split: NDArray[np.int8]
    listener_split: NDArray[np.int8]
    fingerprint: str

    @classmethod
    def open(cls, root: Path | str, attributes: Collection[str] = ()) -> "DataSet":
        """Read and check the directory.

        `attributes` names further columns of tracks.parquet to keep (text, number, date or list of texts). A
        playlist's second entry of one track is dropped (playlists are sets); where splits are missing they
        are drawn by hash (`training.data.splits`). Raises DataSetError naming file, column and row.
        """
        root = Path(root)
        if not (root / FILES[0]).is_file():
            raise DataSetError(f"{root} holds no tracks.parquet; it is no data set directory", code="data_missing")
        table = Table(root / FILES[0])
        tracks, audio = _read_tracks(table, attributes)
        row_of = index_ids(table, "track_id", [track.track_id for track in tracks])
        playlists = _read_playlists(root / FILES[1], row_of)
        listens = _read_listens(root / FILES[2], row_of)
        splits = _read_splits(root / FILES[3], list(row_of), playlists, listens)
        return cls(root, tracks, row_of, audio, playlists, listens, *splits, fingerprint=_fingerprint(root))

    def audio_path(self, row: int) -> Path | None:
        """The audio file of a track; None when it has none. Whether it exists is seen when it is read."""
        relative = self.audio[row]
        return None if relative is None else self.root / relative

    def members(self, split: int, least: int = 2) -> Playlists:
        """Return the playlists of a split with their tracks of the same split; those under `least` go."""
        kept = self.track_split[self.playlists.rows] == split
        owner = np.repeat(np.arange(len(self.playlists.ids)), np.diff(self.playlists.indptr))
        kept &= self.playlist_split[owner] == split
        kept &= np.bincount(owner[kept], minlength=len(self.playlists.ids))[owner] >= least
        chosen, counts = np.unique(owner[kept], return_counts=True)
        return Playlists(
            [self.playlists.ids[p] for p in chosen],
            [self.playlists.names[p] for p in chosen],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            self.playlists.rows[kept],
        )


def _read_tracks(table: Table, attributes: Collection[str]) -> tuple[list[Track], list[str | None]]:
    ids = table.required("track_id", "text")
    columns = {name: table.optional(name, kind) for name, kind in _TRACK_COLUMNS.items()}
    columns = {name: values for name, values in columns.items() if values is not None}
    for row, seconds in enumerate(columns.get("duration_s", [])):
        if seconds is not None and seconds < 0:
            raise table.error("duration_s", row, f"{seconds} is negative", "data_value")
    columns["genres"] = [tuple(value or ()) for value in columns.get("genres", [None] * table.count)]
    extra = {name: _read_attribute(table, name) for name in attributes if name not in Track.__slots__}
    tracks = [
        Track(
            track_id,
            **{name: values[row] for name, values in columns.items()},
            attributes={name: values[row] for name, values in extra.items() if values[row] is not None},
        )
        for row, track_id in enumerate(ids)
    ]
    audio = table.optional("audio", "text") or [None] * table.count
    for row, path in enumerate(audio):
        if path is not None and (problem := _path_problem(path)):
            raise table.error("audio", row, f"{path!r} {problem}", "data_path")
    return tracks, audio


def _read_attribute(table: Table, name: str) -> list[Any]:
    if name not in table.names:
        raise DataSetError(
            f"{table.path.name} has no column {name!r}, which is named as an attribute; its columns are "
            f"{', '.join(table.names)}",
            code="data_column_missing",
        )
    kind = table.kind(name)
    if pa.types.is_boolean(kind):
        return [value if value is None else str(value).lower() for value in table.optional(name, "flag") or []]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return table.optional(name, "texts") or []
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return table.optional(name, "date") or []
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return table.optional(name, "number" if number else "text") or []


def _path_problem(path: str) -> str | None:
    if not path.strip():
        return "is empty; leave it null for a track without audio"
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor or PureWindowsPath(path).drive:
        return "is absolute; write it relative to the data set directory"
    if ".." in PureWindowsPath(path).parts:
        return "leaves the data set directory"
    return None


def _read_playlists(path: Path, row_of: dict[str, int]) -> Playlists:
    if not path.is_file():
        return Playlists([], [], np.zeros(1, np.int64), np.empty(0, np.int64))
    table = Table(path)
    ids, track_ids = table.required("playlist_id", "text"), table.required("track_id", "text")
    names = table.optional("name", "text") or [None] * table.count
    order = table.required("position", "integer") if "position" in table.names else range(table.count)
    rows = np.array(rows_of(table, "track_id", track_ids, row_of, "tracks.parquet"), np.int64)
    unique = list(dict.fromkeys(ids))
    place = {key: p for p, key in enumerate(unique)}
    owner = np.array([place[key] for key in ids], np.int64)
    entry = np.lexsort((np.array(order, np.int64), owner))
    _, first = np.unique(owner[entry] * len(row_of) + rows[entry], return_index=True)
    entry = entry[np.sort(first)]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owner[entry], minlength=len(unique)))])
    named: dict[str, str | None] = {}
    for key, name in zip(ids, names, strict=True):
        named[key] = named.get(key) or name
    return Playlists(unique, [named[key] for key in unique], indptr.astype(np.int64), rows[entry])


def _read_listens(path: Path, row_of: dict[str, int]) -> Listens | None:
    if not path.is_file():
        return None
    table = Table(path)
    ids, track_ids = table.required("listener_id", "text"), table.required("track_id", "text")
    plays = table.required("plays", "number")
    liked = table.optional("liked", "flag") or [False] * table.count
    rows = rows_of(table, "track_id", track_ids, row_of, "tracks.parquet")
    seen: dict[tuple[str, int], int] = {}
    for k, (key, row, count) in enumerate(zip(ids, rows, plays, strict=True)):
        if count < 0:
            raise table.error("plays", k, f"{count} is negative", "data_value")
        if seen.setdefault((key, row), k) != k:
            first = seen[key, row]
            raise table.error(
                "track_id",
                k,
                f"listener {key!r} has {track_ids[k]!r} already in row {first}",
                "data_duplicate",
            )
    unique = list(dict.fromkeys(ids))
    place = {key: u for u, key in enumerate(unique)}
    return Listens(
        unique,
        np.array([place[key] for key in ids], np.int64),
        np.array(rows, np.int64),
        np.array(plays, np.float32),
        np.array([bool(value) for value in liked], bool),
    )


def _read_splits(
    path: Path, track_ids: Sequence[str], playlists: Playlists, listens: Listens | None
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]:
    file = SplitFile(path) if path.is_file() else None
    listener_ids = listens.listener_ids if listens else []
    tracks = file.of("track", track_ids) if file else None
    of_playlists = file.of("playlist", playlists.ids) if file else None
    listeners = file.of("listener", listener_ids) if file else None
    if of_playlists is None:
        drawn = hash_split("playlist", playlists.ids)
        if tracks is not None:
            drawn = drawn_playlist_split(playlists.ids, tracks, playlists.indptr, playlists.rows)
        of_playlists = drawn
    if tracks is None:
        tracks = drawn_track_split(track_ids, of_playlists, playlists.indptr, playlists.rows)
    return tracks, of_playlists, hash_split("listener", listener_ids) if listeners is None else listeners


def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256()
    for name in FILES:
        if (root / name).is_file():
            with open(root / name, "rb") as file:
                digest.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
