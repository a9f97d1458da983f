"""The exact index: all vectors, all products. It is the specification that every other index is held against."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from index.growing import GrowingArray
from index.search.vectors import (
    Mask,
    Rows,
    Vectors,
    best,
    checked_queries,
    checked_rows,
    checked_vectors,
    inner_products,
    near_best,
    passing,
)

_SCORES_AT_ONCE = 1 << 24
"""Scores held at once by an exact search (64 MiB): queries beyond are searched in blocks."""


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

    @property
    def size(self) -> int:
        """Slots, dead ones included."""
        return len(self.stored)

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
        self.put(wanted, found)
        return found

    def put(self, rows: Rows, found: Vectors) -> None:
        """Write the vectors of those `rows` [n] that are here into `found` [n, d], and leave the others alone."""
        for place, row in enumerate(rows.tolist()):
            slot = self.slot(row)
            if slot is not None:
                found[place] = self.stored[slot]

    def slot(self, row: int) -> int | None:
        """Return where `row` is stored, None when it is not (any more)."""
        slot = self.slot_of.get(row)
        return slot if slot is not None and slot < len(self.stored) and self.live[slot] else None

    def without(self, rows: Rows) -> "ExactView":
        """Return this view without `rows`; the view itself if it has none of them."""
        slots = [slot for row in set(rows.tolist()) if (slot := self.slot(row)) is not None]
        if not slots:
            return self
        live = self.live.copy()
        live[slots] = False
        return replace(self, live=live, count=self.count - len(slots))

    def gone_since(self, before: "ExactView") -> Rows:
        """Return the rows that `before`, an earlier view of the same slots, still had."""
        size = len(self.stored)
        return self.slot_rows[before.live[:size] & ~self.live[:size]]

    def contents(self) -> Iterator[tuple[Rows, Vectors]]:
        """Yield the rows i64 [n] that can be found and their vectors f32 [n, d], in blocks."""
        slots = self._slots(None)
        yield self.slot_rows[slots], self.stored[slots]

    def _slots(self, allowed: Mask | None) -> Rows:
        live = self.live[: len(self.stored)]
        return np.flatnonzero(live if allowed is None else live & passing(self.slot_rows, allowed))

    def _complement(self, slots: Rows) -> Rows:
        hidden = np.ones(len(self.stored), dtype=bool)
        hidden[slots] = False
        return np.flatnonzero(hidden)


class ExactIndex:
    """All vectors, all products: the specification that every other index is held against.

    A search takes the current view and works on it. A writer prepares the next view and publishes it by one
    assignment, so searches wait for nobody. Adding costs O(1) amortised; removing copies one byte a slot.
    """

    def __init__(self, dims: int, capacity: int = 16) -> None:
        """Make room for `capacity` vectors of length `dims`: up to there, adding never has to move any."""
        self.dims = dims
        self._writing = threading.Lock()
        self._stored = GrowingArray(np.float32, (dims,), capacity)
        self._rows = GrowingArray(np.int64, (), capacity)
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
            self._view = self._compacted(view.without(wanted))
            return view.count - self._view.count

    def _with(self, rows: Rows, vectors: Vectors) -> ExactView:
        view = self._view
        if any(row in view.slot_of for row in rows.tolist()):
            # an older view must keep finding the old slots, so its map is left alone
            view = replace(view.without(rows), slot_of=dict(view.slot_of))
        first = len(view.stored)
        try:
            view.slot_of.update(zip(rows.tolist(), range(first, first + len(rows)), strict=True))
            stored, slot_rows = self._stored.append(vectors), self._rows.append(rows)
            live = view.live
            if len(stored) > len(live):
                live = np.ones(2 * len(stored), dtype=bool)
                live[: len(view.live)] = view.live
            return ExactView(stored, slot_rows, live, view.slot_of, view.count + len(rows))
        except MemoryError:  # all or nothing: slots, rows and vectors stay side by side
            self._stored.cut(first)
            self._rows.cut(first)
            for row in rows.tolist():
                view.slot_of.pop(row, None)
            raise

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
