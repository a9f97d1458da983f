"""Reads LFM-2b's tables: who heard what of the drawn users, and what the songs are called."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.adapters.report import AdapterError, ImportReport
from training.adapters.tsv import COUNT, LINK, TEXT, TIME, Column, TsvTable, find_table
from training.progress import Progress

EVENTS, COUNTS = "listening-events", "listening-counts"
_USER = Column("user_id", COUNT, ("user_id", "user"))
_TRACK = Column("track_id", COUNT, ("track_id",))
_COLUMNS = {
    EVENTS: (
        _USER,
        _TRACK,
        Column("time", TIME, ("timestamp", "time")),
        Column("album_id", LINK, ("album_id",), optional=True),
    ),
    COUNTS: (_USER, _TRACK, Column("plays", COUNT, ("count", "play_count", "playcount", "plays"))),
}
_TITLE = Column("title", TEXT, ("track_name", "track", "title"))
_ARTIST = Column("artist", TEXT, ("artist_name", "artist"))
_ALBUM = Column("album", TEXT, ("album_name", "album"))
_ALBUM_ID = Column("album_id", COUNT, ("album_id",))
_URI = Column("uri", TEXT, ("uri", "spotify_uri", "track_uri"))
_SPOTIFY = re.compile("(?:spotify:track:)?([0-9A-Za-z]{22})")


@dataclass(frozen=True)
class Interactions:
    """Rows of the drawn users by ascending user and, within a user, in order of time (or of the file).

    user i32 [E]: place among the drawn users; song i32 [E]: place in `songs`, LFM's track ids i64 [S], ascending;
    plays i64 [E]; albums i64 [S]: LFM's album id of each song where it is known, else -1.
    """

    user: NDArray[np.int32]
    song: NDArray[np.int32]
    plays: NDArray[np.int64]
    songs: NDArray[np.int64]
    albums: NDArray[np.int64]

    def keep(self, kept: NDArray[np.bool_]) -> "Interactions":
        """Keep the rows of a mask [E]; songs stay."""
        return replace(self, user=self.user[kept], song=self.song[kept], plays=self.plays[kept])


def all_users(source: Path, interactions: Path, report: ImportReport, progress: Progress) -> NDArray[np.int64]:
    """The ids of all users, by users.tsv; without it by one more pass over the interactions. i64 [U], ascending."""
    path = find_table(source, "users")
    if path is None:  # its broken rows are counted in the other pass
        path, report = interactions, ImportReport("lfm", {})
    found = np.empty(0, np.int64)
    for block in TsvTable(path, [_USER], report).blocks(progress):
        found = np.union1d(found, block["user_id"].to_numpy())
    return found


def read_interactions(
    path: Path, name: str, users: NDArray[np.int64], report: ImportReport, progress: Progress
) -> Interactions:
    """Read the rows of `users` (ascending ids) from the events or the counts. Raises AdapterError without any."""
    table = TsvTable(path, _COLUMNS[name], report)
    blocks = [block for block in (_of_users(block, users) for block in table.blocks(progress)) if block.num_rows]
    if not blocks:
        raise AdapterError(f"{path.name} has no row of the {len(users)} users that were drawn", code="import_empty")
    rows = pa.concat_tables(blocks)
    track = rows["track_id"].to_numpy()
    songs, song = np.unique(track, return_inverse=True)
    user = rows["user"].to_numpy()
    order = np.lexsort((rows["time"].to_numpy(), user)) if name == EVENTS else np.argsort(user, kind="stable")
    plays = rows["plays"].to_numpy() if name == COUNTS else np.ones(len(user), np.int64)
    albums = _first_albums(rows, track, songs) if table.has("album_id") else np.full(len(songs), -1)
    return Interactions(user[order], song.astype(np.int32)[order], plays[order], songs, albums)


def _of_users(block: pa.Table, users: NDArray[np.int64]) -> pa.Table:
    ids = block["user_id"].to_numpy()
    place = np.minimum(np.searchsorted(users, ids), len(users) - 1)
    kept = users[place] == ids
    columns = block.drop_columns("user_id").filter(pa.array(kept))
    return columns.append_column("user", pa.array(place[kept], pa.int32()))


def _first_albums(rows: pa.Table, track: NDArray[np.int64], songs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The album that each song was first seen on, in the order of the file; -1 where none is named."""
    album = rows["album_id"].fill_null(-1).to_numpy()
    named = album >= 0
    known, first = np.unique(track[named], return_index=True)
    albums = np.full(len(songs), -1)
    albums[np.searchsorted(songs, known)] = album[named][first]
    return albums


class Titles:
    """The tables that name songs: tracks, and albums and Spotify ids where their files are there.

    Raises AdapterError without a table of tracks, and for one that lacks a column.
    """

    def __init__(self, source: Path, report: ImportReport) -> None:
        self._report = report
        tracks = self._open(source, "tracks", _TRACK, _TITLE, _ARTIST)
        if tracks is None:
            raise AdapterError(
                f"{source} holds no tracks.tsv (nor .tsv.bz2): songs have no names", code="import_source"
            )
        self._tracks = tracks
        self._albums = self._open(source, "albums", _ALBUM_ID, _ALBUM)
        self._uris = self._open(source, "spotify-uris", _TRACK, _URI)

    def _open(self, source: Path, name: str, *columns: Column) -> TsvTable | None:
        path = find_table(source, name)
        return None if path is None else TsvTable(path, columns, self._report)

    def read(
        self, songs: NDArray[np.int64], albums: NDArray[np.int64], progress: Progress
    ) -> tuple[dict[str, pa.Array], list[str | None]]:
        """Title, artist and album as columns [S], and Spotify ids, of songs by LFM's track ids and album ids."""
        columns = _look_up(self._tracks, songs, progress)
        columns["album"] = pa.nulls(len(songs), pa.string())
        if self._albums is not None and (albums >= 0).any():
            columns["album"] = _look_up(self._albums, albums, progress)["album"]
        if self._uris is None:
            return columns, [None] * len(songs)
        return columns, self._spotify_ids(_look_up(self._uris, songs, progress)["uri"], songs, self._uris.path.name)

    def _spotify_ids(self, uris: pa.Array, songs: NDArray[np.int64], file: str) -> list[str | None]:
        """The 22 characters of each URI; one that is none counts as a broken row."""
        ids: list[str | None] = []
        for song, uri in zip(songs.tolist(), uris.to_pylist(), strict=True):
            match = _SPOTIFY.fullmatch(uri) if uri else None
            ids.append(match[1] if match else None)
            if uri and not match:
                self._report.broken(file, f"{file}, track_id {song}", "uri is no Spotify id", uri)
        return ids


def _look_up(table: TsvTable, ids: NDArray[np.int64], progress: Progress) -> dict[str, pa.Array]:
    """The columns after the first for `ids` [n], of the first row whose first column has each; null where there is
    none, and for empty text.
    """
    wanted = np.unique(ids)
    parts = [block.filter(pa.array(np.isin(block[0].to_numpy(), wanted))) for block in table.blocks(progress)]
    rows = pa.concat_tables([table.schema.empty_table(), *parts]).combine_chunks()
    found, first = np.unique(rows[0].to_numpy(), return_index=True)
    if not len(found):
        return {name: pa.nulls(len(ids), pa.string()) for name in rows.column_names[1:]}
    place = np.minimum(np.searchsorted(found, ids), len(found) - 1)
    take = pa.array(first[place], mask=found[place] != ids)
    texts = {name: rows[name].take(take).combine_chunks() for name in rows.column_names[1:]}
    return {name: pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text) for name, text in texts.items()}
