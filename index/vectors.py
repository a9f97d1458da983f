"""What a vector index promises (VectorIndex), and the exact index that is its specification (ExactIndex)."""

import threading
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.growing import GrowingArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a stored vector may be: float16 passes, a forgotten normalisation does not."""

_SCORES_AT_ONCE = 1 << 24
"""Scores held at once by an exact search (64 MiB): queries beyond are searched in blocks."""

_PRODUCTS_AT_ONCE = 1 << 20
"""Products held at once when scoring candidates (8 MiB)."""


class VectorView(Protocol):
    """A vector index at one instant: searches on it neither wait for nor notice what is added and removed."""

    @property
    def dims(self) -> int:
        """Length of a vector."""

    def __len__(self) -> int:
        """Rows that can be found."""

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """Return the k best rows for each query: scores f32 [q, k] and rows i64 [q, k], best first.

        The score is the inner product of query and vector, summed in float64 and rounded to float32, so that
        it depends on nothing but the two; equal scores are ordered by the smaller row. Where fewer than k
        rows qualify the rest is -inf and -1. `queries` is f32 [q, d] or [d] (then q is 1), of any norm.
        `allowed` is bool by row; rows beyond its end are not allowed. Raises ValueError for k < 1, and for
        queries of the wrong shape or not finite.
        """

    def vectors(self, rows: ArrayLike) -> Vectors:
        """Return the vectors f32 [n, d] of `rows` i64 [n]; NaN where the index has none."""


class VectorIndex(VectorView, Protocol):
    """Unit vectors by row, that can be added, removed and searched at the same time, from any thread."""

    def add(self, rows: ArrayLike, vectors: ArrayLike) -> None:
        """Add unit vectors f32 [n, d] under `rows` i64 [n], replacing what a row had.

        All of them become visible together. Raises ValueError, and adds nothing, when a row is negative or
        named twice or a vector is of the wrong shape, not finite or not of norm 1.
        """

    def remove(self, rows: ArrayLike) -> int:
        """Remove `rows` i64 [n] from all later searches; return how many of them were there."""

    def view(self) -> VectorView:
        """Return the index as it is now, for several questions to one state."""


def checked_vectors(vectors: ArrayLike, dims: int) -> Vectors:
    """Return `vectors` as contiguous f32 [n, dims]; ValueError unless they are finite and of norm 1."""
    array = _finite(vectors, dims, "vectors")
    norms = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(np.abs(norms - 1) > UNIT_TOLERANCE)
    if len(wrong):
        raise ValueError(f"vectors must have norm 1; number {wrong[0]} has {norms[wrong[0]]:.6g}: normalise it first")
    return array


def checked_queries(queries: ArrayLike, dims: int, k: int) -> Vectors:
    """Return `queries` as contiguous f32 [q, dims]; ValueError as VectorView.search says."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    array = np.asarray(queries, dtype=np.float32)
    return _finite(array[None] if array.ndim == 1 else array, dims, "queries")


def checked_rows(rows: ArrayLike) -> Rows:
    """Return `rows` as i64 [n]; ValueError for anything but a list of integers from 0 up."""
    array = np.asarray(rows)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"rows must be integers [n], not {array.dtype} {list(array.shape)}")
    found = array.astype(np.int64)
    if found.size and found.min() < 0:
        raise ValueError(f"rows must not be negative, but {found.min()} is")
    return found


def _finite(values: ArrayLike, dims: int, name: str) -> Vectors:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dims:
        raise ValueError(f"{name} must be of shape [n, {dims}], not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but some are NaN or infinite")
    return array


def inner_products(queries: Vectors, stored: Vectors, places: Rows) -> Vectors:
    """Return the scores f32 [q, m] of stored[places], places [q, m]: summed in float64, one by one, then
    rounded.

    BLAS and FAISS add in an order that depends on the batch and on the place of a vector in it, so that the
    same pair differs in the last bits from one call to the next. Answers are scored here, where a score is a
    pure function.
    """
    scores = np.empty(places.shape, dtype=np.float32)
    step = max(1, _PRODUCTS_AT_ONCE // max(1, queries.size))
    for start in range(0, places.shape[1], step):
        span = slice(start, start + step)
        products = np.multiply(stored[places[:, span]], queries[:, None, :], dtype=np.float64)
        scores[:, span] = products.sum(axis=2)
    return scores


def slack(queries: Vectors, dims: int) -> NDArray[np.float64]:
    """Bound the error [q] of float32 products with unit vectors: gamma_d |q| |v| (Higham 2002, eq. 3.5)."""
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    bound: NDArray[np.float64] = (dims + 2) * 2.0**-24 * (1 + UNIT_TOLERANCE) * norms
    return bound


def best(scores: Vectors, rows: Rows, k: int) -> tuple[Vectors, Rows]:
    """Return the k best of candidates [q, m] by score, then smaller row; rows of -1 come last, as -inf."""
    scores = np.where(rows < 0, np.float32(-np.inf), scores)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    found = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    short = k - found[0].shape[1]
    if short <= 0:
        return found
    pad = ((0, 0), (0, short))
    return np.pad(found[0], pad, constant_values=-np.inf), np.pad(found[1], pad, constant_values=-1)


def passing(rows: Rows, allowed: Mask | None) -> Mask:
    """Return which of `rows` i64 [n] the mask `allowed` lets through, bool [n]."""
    if allowed is None:
        return np.ones(len(rows), dtype=bool)
    mask = np.zeros(len(rows), dtype=bool)
    inside = np.flatnonzero(rows < len(allowed))
    mask[inside] = allowed[rows[inside]]
    return mask


@dataclass(frozen=True, slots=True)
class ExactView:
    """An ExactIndex at one instant: slots in the order of their adding, some of them dead."""

    stored: Vectors
    """f32 [n, d]"""
    slot_rows: Rows
    """i64 [n]: the row of each slot."""
    live: Mask
    """bool [at least n]: False for slots that were removed or replaced. Copied on each removal."""
    slot_of: dict[int, int] = field(repr=False)
    """Row -> its latest slot. It may already know rows added after this view: their slots lie beyond n."""
    count: int
    """Live slots."""

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self.stored.shape[1])

    def __len__(self) -> int:
        return self.count

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See VectorView.search."""
        wanted = checked_queries(queries, self.dims, k)
        slots = self._slots(allowed)
        few = len(slots) < len(self.stored) // 4
        stored = self.stored[slots] if few else self.stored
        hidden = None if few or len(slots) == len(self.stored) else self._complement(slots)
        scores = np.full((len(wanted), k), -np.inf, dtype=np.float32)
        rows = np.full((len(wanted), k), -1, dtype=np.int64)
        step = max(1, _SCORES_AT_ONCE // max(1, len(stored)))
        for start in range(0, len(wanted) if len(slots) else 0, step):
            block = wanted[start : start + step]
            rough = block @ stored.T
            if hidden is not None:
                rough[:, hidden] = -np.inf
            for offset, (query, line) in enumerate(zip(block, rough, strict=True)):
                near = near_best(line, min(k, len(slots)), query)
                slot = slots[near] if few else near
                exact = inner_products(query[None], self.stored, slot[None])
                top = best(exact, self.slot_rows[slot][None], k)
                scores[start + offset], rows[start + offset] = top[0][0], top[1][0]
        return scores, rows

    def vectors(self, rows: ArrayLike) -> Vectors:
        """See VectorView.vectors."""
        wanted = checked_rows(rows)
        found = np.full((len(wanted), self.dims), np.nan, dtype=np.float32)
        for place, row in enumerate(wanted.tolist()):
            slot = self.slot(row)
            if slot is not None:
                found[place] = self.stored[slot]
        return found

    def slot(self, row: int) -> int | None:
        """Return where `row` is stored, None when it is not (any more)."""
        slot = self.slot_of.get(row)
        return slot if slot is not None and slot < len(self.stored) and self.live[slot] else None

    def _slots(self, allowed: Mask | None) -> Rows:
        live = self.live[: len(self.stored)]
        return np.flatnonzero(live if allowed is None else live & passing(self.slot_rows, allowed))

    def _complement(self, slots: Rows) -> Rows:
        hidden = np.ones(len(self.stored), dtype=bool)
        hidden[slots] = False
        return np.flatnonzero(hidden)


def near_best(rough: Vectors, k: int, query: Vectors) -> Rows:
    """Return the places in float32 scores `rough` [n] that can be among the k <= n best by inner_products."""
    limit = np.partition(rough, len(rough) - k)[len(rough) - k]
    near: Rows = np.flatnonzero(rough >= limit - 2 * slack(query[None], len(query))[0])
    return near


class ExactIndex:
    """All vectors, all products: the specification that every other index is held against.

    A search takes the current view and works on it. A writer prepares the next view and publishes it by one
    assignment, so searches wait for nobody. Adding costs O(1) amortised; removing copies one byte a slot.
    """

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self._writing = threading.Lock()
        self._stored = GrowingArray(np.float32, (dims,))
        self._rows = GrowingArray(np.int64)
        self._view = ExactView(self._stored.view(), self._rows.view(), np.ones(16, dtype=bool), {}, 0)

    def __len__(self) -> int:
        return len(self._view)

    def view(self) -> ExactView:
        """See VectorIndex.view."""
        return self._view

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See VectorView.search."""
        return self._view.search(queries, k, allowed)

    def vectors(self, rows: ArrayLike) -> Vectors:
        """See VectorView.vectors."""
        return self._view.vectors(rows)

    def add(self, rows: ArrayLike, vectors: ArrayLike) -> None:
        """See VectorIndex.add."""
        new_rows, new = checked_rows(rows), checked_vectors(vectors, self.dims)
        if len(new_rows) != len(new):
            raise ValueError(f"{len(new_rows)} rows were given for {len(new)} vectors")
        if len(np.unique(new_rows)) != len(new_rows):
            raise ValueError("rows to add must not repeat")
        with self._writing:
            self._view = self._with(new_rows, new)

    def remove(self, rows: ArrayLike) -> int:
        """See VectorIndex.remove."""
        wanted = checked_rows(rows)
        with self._writing:
            view = self._view
            slots = [slot for row in set(wanted.tolist()) if (slot := view.slot(row)) is not None]
            if slots:
                self._view = self._compacted(_without(view, slots))
            return len(slots)

    def _with(self, rows: Rows, vectors: Vectors) -> ExactView:
        view = self._view
        known = [row for row in rows.tolist() if row in view.slot_of]
        if known:  # an older view must keep finding the old slots, so its map is left alone
            replaced = [slot for row in known if (slot := view.slot(row)) is not None]
            view = replace(_without(view, replaced), slot_of=dict(view.slot_of))
        first = len(view.stored)
        view.slot_of.update(zip(rows.tolist(), range(first, first + len(rows)), strict=True))
        stored, slot_rows = self._stored.append(vectors), self._rows.append(rows)
        live = view.live
        if len(stored) > len(live):
            live = np.ones(2 * len(stored), dtype=bool)
            live[: len(view.live)] = view.live
        return ExactView(stored, slot_rows, live, view.slot_of, view.count + len(rows))

    def _compacted(self, view: ExactView) -> ExactView:
        """Drop dead slots once they are the larger part: their vectors are then gone from memory as well."""
        if len(view.stored) < 1024 or 2 * view.count > len(view.stored):
            return view
        kept = np.flatnonzero(view.live[: len(view.stored)])
        self._stored = GrowingArray.of(view.stored[kept])
        self._rows = GrowingArray.of(view.slot_rows[kept])
        slot_of = dict(zip(view.slot_rows[kept].tolist(), range(len(kept)), strict=True))
        live = np.ones(max(16, 2 * len(kept)), dtype=bool)
        return ExactView(self._stored.view(), self._rows.view(), live, slot_of, len(kept))


def _without(view: ExactView, slots: list[int]) -> ExactView:
    live = view.live.copy()
    live[slots] = False
    return replace(view, live=live, count=view.count - len(slots))
