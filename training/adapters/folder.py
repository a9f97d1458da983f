"""Writes a collection as a data set directory, column by column, whole or not at all."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.adapters.audio import LINK, AudioFolder
from training.adapters.collection import SPLIT_NAMES, Collection, PlayCounts, figures
from training.adapters.report import NAME, AdapterError, ImportReport, is_import
from training.data.dataset import FILES
from training.folders import replace_folder
from training.progress import Progress

_BATCH = 1 << 20  # rows that are turned into text at a time
_PLAYLIST_SCHEMA = pa.schema(
    {"playlist_id": pa.string(), "name": pa.string(), "position": pa.int32(), "track_id": pa.string()}
)
_LISTEN_SCHEMA = pa.schema({"listener_id": pa.string(), "track_id": pa.string(), "plays": pa.float32()})
_SPLIT_SCHEMA = pa.schema({"kind": pa.string(), "id": pa.string(), "split": pa.string()})


def check_target(target: Path, inputs: Sequence[Path]) -> None:
    """Raise AdapterError unless `target` may be written: absent, empty, or what an import left there and no more.

    Nothing of `inputs` may lie within it, for it is replaced whole.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise AdapterError(f"{target} is no folder: name another target", code="import_target")
    for path in inputs:
        if path.resolve().is_relative_to(target.resolve()):
            raise AdapterError(
                f"{path} lies within {target}, which is replaced whole: name another target", code="import_target"
            )
    found = sorted(target.iterdir()) if target.exists() else []
    strangers = [path.name for path in found if path.name not in (*FILES, NAME) and not _is_link(path)]
    if strangers or (found and not is_import(target)):
        what = strangers[0] if strangers else found[0].name
        raise AdapterError(
            f"{target} holds {what!r}, which no import made, and would be replaced: name another target, or empty it",
            code="import_target",
        )


def attach_audio(
    collection: Collection, audio: AudioFolder, keys: Sequence[Sequence[str | None]], only: bool
) -> Collection:
    """Give each track its file by any of its keys; with `only`, tracks without one go."""
    paths = audio.find(keys)
    collection = collection.with_audio(paths)
    return collection.keep_tracks(np.array([path is not None for path in paths], bool), 2) if only else collection


def finish(
    target: Path, collection: Collection, audio: AudioFolder | None, report: ImportReport, progress: Progress
) -> None:
    """Put the data set directory in place of `target`, with the report and a link to the audio, and say what it holds.

    A former import there stays until the new one is whole. Raises AdapterError when there is nothing to write.
    """
    if not len(collection.ids):
        raise AdapterError("no playlist is left to write: ask for more, or loosen the limits", code="import_empty")
    report.figures = figures(collection)
    found = collection.tracks.num_rows - collection.tracks["audio"].null_count
    report.figures["all"]["tracks_with_audio"] = found
    if audio is not None and audio.doubles:
        report.note(f"{audio.doubles} audio files were left aside: another file has the same id")

    def fill(folder: Path) -> None:
        pq.write_table(collection.tracks, folder / "tracks.parquet")
        _write(folder / "playlists.parquet", _PLAYLIST_SCHEMA, _playlist_batches(collection))
        if collection.listens is not None:
            _write(folder / "listens.parquet", _LISTEN_SCHEMA, _listen_batches(collection, collection.listens))
        if collection.track_split is not None:
            _write(folder / "splits.parquet", _SPLIT_SCHEMA, _split_batches(collection))
        if audio is not None:
            audio.link(folder)
        report.write(folder)

    replace_folder(target, fill)
    for name, row in report.figures.items():
        progress.say(f"{target.name}, {name}: " + ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in row.items()))


def settings_of(options: Any) -> dict[str, Any]:
    """Options as JSON, of paths only the last name: where they lie says nothing of the data."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(options), default=lambda path: path.name))
    return values


def _is_link(path: Path) -> bool:
    return path.name == LINK and path.is_symlink()


def _write(path: Path, schema: pa.Schema, batches: Iterator[list[pa.Array]]) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for columns in batches:
            writer.write_table(pa.table(columns, schema=schema))


def _spans(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _BATCH, count)) for first in range(0, count, _BATCH))


def _playlist_batches(collection: Collection) -> Iterator[list[pa.Array]]:
    track_ids = _one(collection.tracks["track_id"])
    owner = collection.owner
    for span in _spans(len(owner)):
        playlist = owner[span]
        position = np.arange(span.start, span.stop) - collection.indptr[playlist]
        yield [
            collection.ids.take(pa.array(playlist)),
            collection.names.take(pa.array(playlist)),
            pa.array(position, pa.int32()),
            track_ids.take(pa.array(collection.rows[span])),
        ]


def _listen_batches(collection: Collection, listens: PlayCounts) -> Iterator[list[pa.Array]]:
    track_ids = _one(collection.tracks["track_id"])
    for span in _spans(len(listens.row)):
        yield [
            listens.ids.take(pa.array(listens.listener[span])),
            track_ids.take(pa.array(listens.row[span])),
            pa.array(listens.plays[span]),
        ]


def _split_batches(collection: Collection) -> Iterator[list[pa.Array]]:
    yield _split_columns("track", _one(collection.tracks["track_id"]), collection.track_split)
    yield _split_columns("playlist", collection.ids, collection.playlist_split)
    if collection.listens is not None and collection.listener_split is not None:
        # A listener whose tracks are all left out has no listens, and the reader wants no split of it.
        heard = np.bincount(collection.listens.listener, minlength=len(collection.listens.ids)) > 0
        yield _split_columns(
            "listener", collection.listens.ids.filter(pa.array(heard)), collection.listener_split[heard]
        )


def _split_columns(kind: str, ids: pa.StringArray, split: NDArray[np.int8] | None) -> list[pa.Array]:
    names = pa.array([SPLIT_NAMES[k] for k in range(len(SPLIT_NAMES))])
    return [pa.array([kind] * len(ids), pa.string()), ids, names.take(pa.array(split, pa.int8()))]


def _one(column: pa.ChunkedArray) -> pa.StringArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
