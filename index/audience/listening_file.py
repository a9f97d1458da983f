"""Writes the audience/ folder of a release: listeners in lists of like taste, what they heard, and their vectors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss as untyped_faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.audience.listening import ARRAYS, STEPS
from index.audience.reach import EVERYBODY

faiss: Any = untyped_faiss

LISTS_FROM = EVERYBODY
"""Listeners from which they are put into lists of like taste; fewer are one list, and all looked at anyway."""
LIST_SIZE = 1_000
"""Listeners of a list, on average."""
TRAINED_ON = 64
"""Listeners a list's centroid is learnt from, on average; FAISS wants 39 at least."""
LIST_ROUNDS = 10
SEED = 20230804
ACTIVITY = 0.25
"""Power of a listener's number of tracks in their score, where training had nothing to choose it by."""

_ENTRIES_AT_ONCE = 8_000
_LISTENERS_AT_ONCE = 50_000


def write_audience(
    directory: Path,
    listener_ids: Sequence[str],
    listener: NDArray[np.int64],
    row: NDArray[np.int64],
    plays: NDArray[np.float32],
    matching: NDArray[np.float32],
    *,
    activity: float = ACTIVITY,
    lists_from: int = LISTS_FROM,
) -> None:
    """Write audience/ from n pairs: `listener` i64 [n] (places in `listener_ids`) heard `row` i64 [n].

    `plays` f32 [n] are summed over repeated pairs; pairs without plays are left out. `matching` is f32 [N,
    d], NaN or zero where a track has no vector. A listener who heard n tracks has n^activity in their score (see
    index.audience.reach.Affinity). The folder has the listeners in an order of its own (see
    Listening). Raises ValueError for arrays that do not fit together.
    """
    matching = np.nan_to_num(np.asarray(matching, dtype=np.float32))
    _check_ids(listener_ids)
    _check_pairs(len(listener_ids), listener, row, plays, len(matching))
    listener, row, plays = _merged(listener, row, plays, len(matching))
    vectors = _listener_vectors(_offsets(listener, len(listener_ids)), row, plays, matching)
    order, lists, centroids = _ordered(vectors, lists_from)
    listener, row, plays = _moved(order, listener, row, plays)
    offsets = _offsets(listener, len(order))
    by_track = np.argsort(row, kind="stable")
    directory.mkdir(parents=True, exist_ok=True)
    _write_listeners(directory / "listeners.parquet", [listener_ids[u] for u in order.tolist()], offsets, plays)
    arrays: dict[str, NDArray[Any]] = {
        "vectors": vectors[order],
        "lists": lists,
        "centroids": centroids,
        "activity": np.diff(offsets).astype(np.float64) ** activity,
        "offsets": offsets,
        "rows": row,
        "plays": plays,
        "track_offsets": np.concatenate(([0], np.cumsum(np.bincount(row, minlength=len(matching))))),
        "track_listeners": listener[by_track],
        "track_strengths": _strengths(listener, plays, offsets)[by_track],
    }
    for name, array in arrays.items():
        with (directory / f"{name}.npy").open("wb") as file:
            np.save(file, array.astype(ARRAYS[name], copy=False), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())


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
) -> NDArray[np.int16]:
    """rep(u) = l2(sum of log1p(plays) z_row) in STEPS, in blocks of listeners; zero where nothing was heard."""
    vectors = np.zeros((len(offsets) - 1, matching.shape[1]), dtype=np.int16)
    heard = np.flatnonzero(np.diff(offsets))
    ends = offsets[heard + 1]
    start = 0
    while start < len(heard):
        first = int(offsets[heard[start]])
        stop = max(start + 1, int(np.searchsorted(ends, first + _ENTRIES_AT_ONCE, side="right")))
        block = heard[start:stop]
        last = int(ends[stop - 1])
        weighted = np.log1p(plays[first:last])[:, None] * matching[row[first:last]]
        sums = np.add.reduceat(weighted, offsets[block] - first, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        vectors[block] = np.rint(np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), 0.0) * STEPS)
        start = stop
    return vectors


def _ordered(
    vectors: NDArray[np.int16], lists_from: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the order [U] of the listeners, list by list and those without a vector last, lists, centroids."""
    placed = np.flatnonzero(vectors.any(axis=1))
    rest = np.flatnonzero(~vectors.any(axis=1))
    if len(placed) < lists_from:
        whole = vectors[placed].sum(axis=0, dtype=np.float64)[None]
        centroids = whole / max(1.0, float(np.linalg.norm(whole)))
        return np.concatenate((placed, rest)), np.array([0, len(placed)]), centroids.astype(np.float32)
    centroids = _centroids(vectors, placed, max(1, len(placed) // LIST_SIZE))
    near = faiss.IndexFlatIP(vectors.shape[1])
    near.add(centroids)
    found = np.empty(len(placed), dtype=np.int64)
    for start in range(0, len(placed), _LISTENERS_AT_ONCE):
        block = placed[start : start + _LISTENERS_AT_ONCE]
        found[start : start + len(block)] = near.search(vectors[block].astype(np.float32), 1)[1][:, 0]
    lists = np.concatenate(([0], np.cumsum(np.bincount(found, minlength=len(centroids)))))
    return np.concatenate((placed[np.argsort(found, kind="stable")], rest)), lists, centroids


def _centroids(vectors: NDArray[np.int16], placed: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Learn the centroids f32 [count, d] of the lists by spherical k-means on some of those `placed`."""
    wanted = min(len(placed), count * TRAINED_ON)
    some = np.sort(np.random.default_rng(SEED).choice(placed, wanted, replace=False))
    learner = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=LIST_ROUNDS,
        spherical=True,
        seed=SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINED_ON,
    )
    learner.train(vectors[some] / STEPS)
    learnt: NDArray[np.float32] = learner.centroids
    return learnt


def _moved(
    order: NDArray[np.int64], listener: NDArray[np.int64], row: NDArray[np.int64], plays: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the pairs with listeners named by their place in `order`, sorted by it."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    moved = place[listener]
    again = np.argsort(moved, kind="stable")
    return moved[again], row[again], plays[again]


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
