"""The audience/ folder of a release: who heard what, from both sides, and each listener's vector."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.errors import DebutError
from index.segments import HNSW_FROM, SealedSegment, write_sealed
from index.textcolumn import TextColumn

_ENTRIES_AT_ONCE = 200_000


class AudienceError(DebutError):
    """No audience can be named: codes audience_missing, audience_damaged, audience_no_neighbours."""

    code = "audience_damaged"


@dataclass(frozen=True, slots=True)
class Listening:
    """Who heard what: U listeners, N tracks, n pairs of them. Arrays are memory-mapped."""

    ids: TextColumn
    """[U]"""
    vectors: NDArray[np.float32]
    """f32 [U, d]: l2 of the matching vectors heard, summed with weights log1p(plays); zero: no target."""
    offsets: NDArray[np.int64]
    """i64 [U + 1]: listener u heard rows[offsets[u] : offsets[u + 1]], ascending."""
    rows: NDArray[np.int64]
    plays: NDArray[np.float32]
    track_offsets: NDArray[np.int64]
    """i64 [N + 1]: row r was heard by track_listeners[track_offsets[r] : track_offsets[r + 1]], ascending."""
    track_listeners: NDArray[np.int64]
    track_strengths: NDArray[np.float32]
    """f32 [n]: log1p(plays) over the listener's largest, over the root of the number of tracks they heard."""
    segment: SealedSegment | None
    """The listeners' HNSW index, from HNSW_FROM of them on."""

    def __len__(self) -> int:
        return len(self.vectors)

    def listeners_of(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return who heard the release's track `row`, and their strengths."""
        if not 0 <= row < len(self.track_offsets) - 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        span = slice(int(self.track_offsets[row]), int(self.track_offsets[row + 1]))
        return self.track_listeners[span], self.track_strengths[span]

    @classmethod
    def open(cls, directory: Path) -> "Listening | None":
        """Map the folder; None when there is none. AudienceError when its files do not fit together."""
        if not directory.is_dir():
            return None
        try:
            names = pq.read_table(directory / "listeners.parquet", columns=["listener_id"])
            arrays = {name: _mapped(directory / f"{name}.npy", dtype) for name, dtype in _ARRAYS.items()}
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            raise AudienceError(f"{directory} cannot be read ({error}): publish again") from error
        index = directory / "listeners.faiss"
        segment = SealedSegment(index) if index.exists() else None
        found = cls(ids=TextColumn(names["listener_id"]), segment=segment, **arrays)
        found._check(directory)
        return found

    def _check(self, directory: Path) -> None:
        listeners, pairs = len(self.ids), len(self.rows)
        fits = (
            len(self.vectors) == listeners == len(self.offsets) - 1
            and len(self.plays) == len(self.track_listeners) == len(self.track_strengths) == pairs
            and int(self.offsets[-1]) == int(self.track_offsets[-1]) == pairs
            and (self.segment is None or len(self.segment) == listeners)
        )
        if not fits:
            raise AudienceError(f"{directory}: files differ in their number of listeners or plays: publish again")


_ARRAYS: dict[str, type] = {
    "vectors": np.float32,
    "offsets": np.int64,
    "rows": np.int64,
    "plays": np.float32,
    "track_offsets": np.int64,
    "track_listeners": np.int64,
    "track_strengths": np.float32,
}


def _mapped(path: Path, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # still mapped, but plain
    if array.dtype != dtype:
        raise ValueError(f"{path.name} holds {array.dtype}, not {np.dtype(dtype)}")
    return array


def write_audience(
    directory: Path,
    listener_ids: Sequence[str],
    listener: NDArray[np.int64],
    row: NDArray[np.int64],
    plays: NDArray[np.float32],
    matching: NDArray[np.float32],
    *,
    hnsw_from: int = HNSW_FROM,
) -> None:
    """Write audience/ from n pairs: `listener` i64 [n] (places in `listener_ids`) heard `row` i64 [n].

    `plays` f32 [n] are summed over repeated pairs; pairs without plays are left out. `matching` is f32 [N,
    d], NaN or zero where a track has no vector. Raises ValueError for arrays that do not fit together.
    """
    matching = np.nan_to_num(np.asarray(matching, dtype=np.float32))
    _check_ids(listener_ids)
    _check_pairs(len(listener_ids), listener, row, plays, len(matching))
    listener, row, plays = _merged(listener, row, plays, len(matching))
    offsets = _offsets(listener, len(listener_ids))
    vectors = _listener_vectors(offsets, row, plays, matching)
    by_track = np.lexsort((listener, row))
    directory.mkdir(parents=True, exist_ok=True)
    _write_listeners(directory / "listeners.parquet", listener_ids, offsets, plays)
    arrays: dict[str, NDArray[Any]] = {
        "vectors": vectors,
        "offsets": offsets,
        "rows": row,
        "plays": plays,
        "track_offsets": _offsets(row[by_track], len(matching)),
        "track_listeners": listener[by_track],
        "track_strengths": _strengths(listener, plays, offsets)[by_track],
    }
    for name, array in arrays.items():
        with (directory / f"{name}.npy").open("wb") as file:
            np.save(file, array.astype(_ARRAYS[name], copy=False), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    if len(vectors) >= hnsw_from:
        write_sealed(directory / "listeners.faiss", vectors, hnsw_from=hnsw_from)


def _check_ids(listener_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for listener_id in listener_ids:
        if not listener_id:
            raise ValueError("listener ids must not be empty, but one is")
        if listener_id in seen:
            raise ValueError(f"listener id {listener_id!r} stands twice")
        seen.add(listener_id)


def _check_pairs(listeners: int, listener: NDArray[Any], row: NDArray[Any], plays: NDArray[Any], tracks: int) -> None:
    if not listener.shape == row.shape == plays.shape or listener.ndim != 1:
        raise ValueError(f"listener, row and plays differ in shape: {listener.shape}, {row.shape}, {plays.shape}")
    for name, array, end in (("listener", listener, listeners), ("row", row, tracks)):
        if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < end):
            raise ValueError(f"{name} must be integers from 0 to {end - 1}")
    if not np.isfinite(plays).all() or (plays < 0).any():
        raise ValueError("plays must be finite and not negative")


def _merged(
    listener: NDArray[np.int64], row: NDArray[np.int64], plays: NDArray[np.float32], tracks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    heard = plays > 0
    keys, place = np.unique(listener[heard].astype(np.int64) * tracks + row[heard], return_inverse=True)
    summed = np.bincount(place, weights=plays[heard], minlength=len(keys))
    return keys // max(1, tracks), keys % max(1, tracks), summed.astype(np.float32)


def _offsets(sorted_places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.searchsorted(sorted_places, np.arange(count + 1)).astype(np.int64)


def _listener_vectors(
    offsets: NDArray[np.int64],
    row: NDArray[np.int64],
    plays: NDArray[np.float32],
    matching: NDArray[np.float32],
) -> NDArray[np.float32]:
    """rep(u) = l2(sum of log1p(plays) z_row), in blocks of listeners; zero where nothing was heard."""
    vectors = np.zeros((len(offsets) - 1, matching.shape[1]), dtype=np.float32)
    heard = np.flatnonzero(np.diff(offsets))
    start = 0
    while start < len(heard):
        first = int(offsets[heard[start]])
        stop = int(np.searchsorted(offsets[heard], first + _ENTRIES_AT_ONCE))
        stop = max(start + 1, min(stop, len(heard)))
        block = heard[start:stop]
        last = int(offsets[block[-1] + 1])
        weighted = np.log1p(plays[first:last])[:, None] * matching[row[first:last]]
        vectors[block] = np.add.reduceat(weighted, offsets[block] - first, axis=0)
        start = stop
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > 1e-6, vectors / np.maximum(norms, 1e-6), 0.0).astype(np.float32)


def _strengths(
    listener: NDArray[np.int64], plays: NDArray[np.float32], offsets: NDArray[np.int64]
) -> NDArray[np.float32]:
    strength = np.log1p(plays)
    largest = np.zeros(len(offsets) - 1, dtype=np.float32)
    np.maximum.at(largest, listener, strength)
    found = strength / largest[listener] / np.sqrt(np.diff(offsets)[listener])
    return found.astype(np.float32)


def _write_listeners(
    path: Path, listener_ids: Sequence[str], offsets: NDArray[np.int64], plays: NDArray[np.float32]
) -> None:
    owner = np.repeat(np.arange(len(listener_ids)), np.diff(offsets))
    totals = np.bincount(owner, weights=plays, minlength=len(listener_ids))
    table = pa.table(
        {
            "listener_id": pa.array(listener_ids, pa.string()),
            "plays": pa.array(np.rint(totals).astype(np.int64)),
            "tracks": pa.array(np.diff(offsets).astype(np.int32)),
        }
    )
    pq.write_table(table, path)
