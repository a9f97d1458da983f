"""Writes a data set directory: what adapters, synthetic worlds and tests produce."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index.tracks.track import Track

_TRACK_SCHEMA = pa.schema(
    {
        "track_id": pa.string(),
        "title": pa.string(),
        "artist": pa.string(),
        "album": pa.string(),
        "duration_s": pa.float64(),
        "release_date": pa.string(),
        "explicit": pa.bool_(),
        "language": pa.string(),
        "genres": pa.list_(pa.string()),
        "lyrics": pa.string(),
        "isrc": pa.string(),
        "audio": pa.string(),
    }
)
_PLAYLIST_SCHEMA = pa.schema(
    {"playlist_id": pa.string(), "name": pa.string(), "position": pa.int32(), "track_id": pa.string()}
)
_LISTEN_SCHEMA = pa.schema(
    {"listener_id": pa.string(), "track_id": pa.string(), "plays": pa.float32(), "liked": pa.bool_()}
)
_SPLIT_SCHEMA = pa.schema({"kind": pa.string(), "id": pa.string(), "split": pa.string()})


def write_dataset(
    root: Path,
    tracks: Sequence[Track],
    *,
    audio: Mapping[str, str] | None = None,
    playlists: Mapping[str, Sequence[str]] | None = None,
    playlist_names: Mapping[str, str] | None = None,
    listens: Iterable[tuple[str, str, float, bool]] | None = None,
    splits: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Write tracks.parquet, and the other tables that are given, each in one piece.

    audio: track id -> path relative to `root`; playlists: playlist id -> track ids in order; listens:
    (listener id, track id, plays, liked); splits: (kind, id) -> "train", "valid" or "test". Attributes of the
    tracks become columns.
    """
    root.mkdir(parents=True, exist_ok=True)
    _write_tracks(root / "tracks.parquet", tracks, audio or {})
    if playlists is not None:
        names = playlist_names or {}
        entries = [
            (playlist, names.get(playlist), position, track_id)
            for playlist, track_ids in playlists.items()
            for position, track_id in enumerate(track_ids)
        ]
        _write(root / "playlists.parquet", _table(entries, _PLAYLIST_SCHEMA))
    if listens is not None:
        _write(root / "listens.parquet", _table(list(listens), _LISTEN_SCHEMA))
    if splits is not None:
        rows = [(kind, key, split) for (kind, key), split in splits.items()]
        _write(root / "splits.parquet", _table(rows, _SPLIT_SCHEMA))


def _write_tracks(path: Path, tracks: Sequence[Track], audio: Mapping[str, str]) -> None:
    columns: dict[str, Any] = {
        name: [getattr(track, name) for track in tracks] for name in _TRACK_SCHEMA.names if name != "audio"
    }
    columns["genres"] = [list(track.genres) or None for track in tracks]
    columns["audio"] = [audio.get(track.track_id) for track in tracks]
    table = pa.table(columns, schema=_TRACK_SCHEMA)
    for name in sorted({key for track in tracks for key in track.attributes}):
        table = table.append_column(name, pa.array([track.attributes.get(name) for track in tracks]))
    _write(path, table)


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema.names)
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def _write(path: Path, table: pa.Table) -> None:
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part)
    os.replace(part, path)
