"""The release's tracks.parquet: its columns, how it is written, and compact access to it by row."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from index.errors import DebutError
from index.tracks.textcolumn import TextColumn
from index.tracks.titles import Titles, line
from index.tracks.track import Track

SCHEMA = pa.schema(
    [
        pa.field("track_id", pa.string(), nullable=False),
        ("title", pa.string()),
        ("artist", pa.string()),
        ("album", pa.string()),
        ("duration_s", pa.float64()),
        ("release_date", pa.string()),
        ("explicit", pa.bool_()),
        ("language", pa.string()),
        ("genres", pa.list_(pa.string())),
        ("isrc", pa.string()),
        ("attributes", pa.string()),
        pa.field("searched", pa.string(), nullable=False),
        pa.field("interactions", pa.int32(), nullable=False),
    ]
)
"""Columns of tracks.parquet. `attributes` is a JSON object; lyrics stay with the trainer. `searched` is what
`index.tracks.titles` finds a track by, its line ended by a line feed, kept so that a million tracks open at once."""

_TEXTS = ("track_id", "title", "artist", "album", "release_date", "language", "isrc", "attributes")


class CatalogueError(DebutError):
    """tracks.parquet is unfit: catalogue_missing, catalogue_damaged, catalogue_column, catalogue_row."""

    code = "catalogue_damaged"


def write_catalogue(path: Path, tracks: Sequence[Track], interactions: ArrayLike) -> None:
    """Write `tracks` in row order with their training `interactions` i32 [n] (0: cold).

    Raises CatalogueError for a repeated or empty track id and for numbers of interactions that do not fit.
    """
    counts = np.asarray(interactions)
    counts = counts if counts.size else counts.astype(np.int32)
    if counts.shape != (len(tracks),) or counts.dtype.kind not in "iu" or (counts.size and counts.min() < 0):
        raise CatalogueError(
            f"interactions must be {len(tracks)} whole numbers from 0 up, one a track, not {counts.dtype} "
            f"{list(counts.shape)}",
            code="catalogue_column",
        )
    _check_ids([track.track_id for track in tracks], "the tracks to write")
    columns: dict[str, Any] = {
        name: [getattr(track, name) for track in tracks]
        for name in SCHEMA.names
        if name not in ("genres", "attributes", "searched", "interactions")
    }
    columns["genres"] = [list(track.genres) for track in tracks]
    columns["attributes"] = [_json(row, track) for row, track in enumerate(tracks)]
    columns["searched"] = [f"{line(track.title, track.artist)}\n" for track in tracks]
    columns["interactions"] = counts
    staged = path.with_name(f".{path.name}.part")
    pq.write_table(pa.table(columns, schema=SCHEMA), staged)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)


def _json(row: int, track: Track) -> str | None:
    if not track.attributes:
        return None
    try:
        return json.dumps(dict(track.attributes), ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CatalogueError(
            f"the tracks to write: attributes, row {row} ({track.track_id!r}): {error}", code="catalogue_row"
        ) from error


@dataclass(frozen=True, slots=True)
class SealedTracks:
    """tracks.parquet, read. Genres of a row are genres[genre_starts[row] : genre_starts[row + 1]]."""

    texts: dict[str, TextColumn]
    rows: dict[str, int]
    """Row of each track id."""
    titles: Titles
    duration_s: NDArray[np.float64]
    """NaN where unknown."""
    explicit: NDArray[np.int8]
    """-1 unknown, 0, 1."""
    interactions: NDArray[np.int32]
    genre_starts: NDArray[np.int64]
    genres: TextColumn

    @classmethod
    def read(cls, path: Path) -> "SealedTracks":
        """Read the file at `path`; raises CatalogueError naming the column or row that is wrong."""
        table = _table(path)
        texts = {name: TextColumn(table[name]) for name in _TEXTS}
        rows = _check_ids(texts["track_id"].to_list(), str(path))
        interactions = table["interactions"].to_numpy()
        if table["interactions"].null_count or (len(interactions) and interactions.min() < 0):
            row = next(i for i, n in enumerate(table["interactions"].to_pylist()) if n is None or n < 0)
            raise CatalogueError(
                f"{path}: column interactions, row {row}: a count from 0 up is needed", code="catalogue_row"
            )
        starts, genres = _lists(table["genres"])
        explicit = table["explicit"].cast(pa.int8()).fill_null(-1)
        return cls(
            texts=texts,
            rows=rows,
            titles=Titles(*TextColumn(table["searched"]).joined()),
            duration_s=table["duration_s"].fill_null(np.nan).to_numpy(),
            explicit=explicit.to_numpy(),
            interactions=interactions.astype(np.int32),
            genre_starts=starts,
            genres=genres,
        )

    def __len__(self) -> int:
        return len(self.interactions)

    def track(self, row: int) -> Track:
        """Return the track of `row`, without lyrics, which a release does not carry."""
        text = {name: column[row] for name, column in self.texts.items()}
        duration = float(self.duration_s[row])
        explicit = int(self.explicit[row])
        return Track(
            track_id=text["track_id"] or "",
            title=text["title"],
            artist=text["artist"],
            album=text["album"],
            duration_s=None if duration != duration else duration,
            release_date=text["release_date"],
            explicit=None if explicit < 0 else bool(explicit),
            language=text["language"],
            genres=self.genres_of(row),
            isrc=text["isrc"],
            attributes=self._attributes(row, text["attributes"]),
        )

    def genres_of(self, row: int) -> tuple[str, ...]:
        """Return the genres of `row`."""
        entries = range(int(self.genre_starts[row]), int(self.genre_starts[row + 1]))
        return tuple(genre for entry in entries if (genre := self.genres[entry]) is not None)

    def _attributes(self, row: int, text: str | None) -> dict[str, Any]:
        try:
            found = json.loads(text) if text else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CatalogueError(
                f"tracks.parquet: column attributes, row {row}: not a JSON object", code="catalogue_row"
            )
        return found


def _table(path: Path) -> pa.Table:
    if not path.is_file():
        raise CatalogueError(f"{path} is missing: publish the release again", code="catalogue_missing")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise CatalogueError(f"{path} is not a Parquet file that can be read ({error})") from error
    for field in SCHEMA:
        if field.name not in table.column_names:
            raise CatalogueError(
                f"{path}: column {field.name} is missing: it must be {field.type}. Another version of Debut wrote it: "
                "publish the release again (`python -m training publish`)",
                code="catalogue_column",
            )
        found = table.schema.field(field.name).type
        if not _fits(found, field.type):
            raise CatalogueError(
                f"{path}: column {field.name} is {found}, it must be {field.type}", code="catalogue_column"
            )
    return table


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_list(wanted):
        listed = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(listed and _fits(found.value_type, wanted.value_type))
    return bool(found == wanted)


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], TextColumn]:
    lengths = pc.list_value_length(column).fill_null(0).cast(pa.int64()).to_numpy()
    values = pa.chunked_array([chunk.flatten() for chunk in column.chunks], pa.string())
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), TextColumn(values)


def _check_ids(ids: Sequence[str | None], where: str) -> dict[str, int]:
    """Return the row of each id; raises CatalogueError for an empty one and for one that stands twice."""
    found = dict(zip(ids, range(len(ids)), strict=True))
    if len(found) == len(ids) and "" not in found and None not in found:
        return cast("dict[str, int]", found)
    seen: dict[str, int] = {}
    for row, track_id in enumerate(ids):
        if not track_id:
            raise CatalogueError(f"{where}: column track_id, row {row}: empty", code="catalogue_row")
        if track_id in seen:
            raise CatalogueError(
                f"{where}: column track_id, row {row}: {track_id!r} stands in row {seen[track_id]} already",
                code="catalogue_row",
            )
        seen[track_id] = row
    return seen
