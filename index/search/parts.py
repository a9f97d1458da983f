"""What a segmented index is made of: sealed segments with their rows and tombstones, and how small ones are merged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np

from index.search.exact import ExactView
from index.search.segments import SealedSegment
from index.search.vectors import Mask, Rows, Vectors, inner_products, passing

_AT_ONCE = 1 << 16
"""Vectors in a block of a segment's contents (64 MiB at 256-d)."""


class Part(Protocol):
    """Some rows of an index at one instant: a LiveSegment or an ExactView."""

    def __len__(self) -> int:
        """Rows that can be found."""

    @property
    def size(self) -> int:
        """Vectors stored, those of rows that were removed included."""

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """Return scores and rows [q, m] as VectorView.search, but in any order and any number m."""

    def put(self, rows: Rows, found: Vectors) -> None:
        """Write the vectors of those `rows` [n] that are here into `found` [n, d], and leave the others alone."""

    def without(self, rows: Rows) -> Self:
        """Return this part without `rows`."""

    def gone_since(self, before: Self) -> Rows:
        """Return the rows that `before`, an earlier state of this part, still had."""

    def contents(self) -> Iterator[tuple[Rows, Vectors]]:
        """Yield the rows that can be found and their vectors, in blocks."""


@dataclass(frozen=True, slots=True)
class LiveSegment:
    """A sealed segment at one instant."""

    segment: SealedSegment
    rows: Rows | None = field(repr=False)
    """i64 [n], ascending: the row of each slot. None: the slots are the rows."""
    live: Mask = field(repr=False)
    """bool [n]: False for tombstones and slots that never had a vector. Copied on each removal."""
    count: int
    """Live slots."""

    @classmethod
    def of(cls, segment: SealedSegment, rows: Rows | None = None, live: Mask | None = None) -> "LiveSegment":
        """Return `segment` with those of its vectors that are `live`, None for all."""
        live = segment.present if live is None else live
        return cls(segment, rows, live, int(np.count_nonzero(live)))

    def __len__(self) -> int:
        return self.count

    @property
    def size(self) -> int:
        """See Part.size."""
        return len(self.segment)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See Part.search."""
        mask, count = self._allowed(allowed)
        slots = self.segment.candidates(queries, k, mask, count)
        scores = inner_products(queries, self.segment.stored, slots)
        return scores, slots if self.rows is None else np.where(slots < 0, -1, self.rows[slots])

    def put(self, rows: Rows, found: Vectors) -> None:
        """See Part.put."""
        places, slots = self._found(rows)
        found[places] = self.segment.stored[slots]

    def without(self, rows: Rows) -> "LiveSegment":
        """See Part.without."""
        slots = self._found(rows)[1]
        if not len(slots):
            return self
        live = self.live.copy()
        live[slots] = False
        return replace(self, live=live, count=int(np.count_nonzero(live)))

    def gone_since(self, before: "LiveSegment") -> Rows:
        """See Part.gone_since."""
        return self._rows_of(np.flatnonzero(before.live & ~self.live))

    def contents(self) -> Iterator[tuple[Rows, Vectors]]:
        """See Part.contents."""
        slots = np.flatnonzero(self.live)
        for start in range(0, len(slots), _AT_ONCE):
            block = slots[start : start + _AT_ONCE]
            yield self._rows_of(block), self.segment.stored[block]

    def _allowed(self, allowed: Mask | None) -> tuple[Mask, int]:
        if allowed is None:
            return self.live, self.count
        if self.rows is None:
            mask = np.zeros(self.size, dtype=bool)
            inside = min(len(mask), len(allowed))
            np.logical_and(self.live[:inside], allowed[:inside], out=mask[:inside])
        else:
            mask = self.live & passing(self.rows, allowed)
        return mask, int(np.count_nonzero(mask))

    def _found(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return the places in `rows` of those that are here, and their slots."""
        slots = rows if self.rows is None else np.searchsorted(self.rows, rows)
        places = np.flatnonzero(slots < self.size)
        slots = slots[places]
        here = self.live[slots] if self.rows is None else self.live[slots] & (self.rows[slots] == rows[places])
        return places[here], slots[here]

    def _rows_of(self, slots: Rows) -> Rows:
        return slots if self.rows is None else self.rows[slots]


def gathered(parts: Sequence[Part], dims: int) -> tuple[Rows, Vectors]:
    """Return all that can be found in `parts`: rows i64 [n], ascending, and their vectors f32 [n, dims]."""
    blocks = [block for part in parts for block in part.contents()]
    rows = np.concatenate([np.empty(0, np.int64), *(block[0] for block in blocks)])
    vectors = np.concatenate([np.empty((0, dims), np.float32), *(block[1] for block in blocks)])
    order = np.argsort(rows)
    return rows[order], vectors[order]


def due(parts: Sequence[Part], *, compact: bool) -> list[int]:
    """Return which of `parts` to seal as one: what is fresh, a quarter dead, or not twice as large as that.

    Each segment that is left is then larger than all smaller ones together, so that there are O(log n) of
    them, and a vector is rewritten O(log n) times (O'Neil et al. 1996, The log-structured merge-tree).
    `compact`: all of them.
    """
    dead = [part.size - len(part) for part in parts]
    if compact and (len(parts) > 1 or any(dead)):
        return list(range(len(parts)))
    chosen = [n for n, part in enumerate(parts) if isinstance(part, ExactView) or 4 * dead[n] > part.size]
    merged = sum(len(parts[n]) for n in chosen)
    for n in sorted(set(range(len(parts))) - set(chosen), key=lambda n: len(parts[n])):
        if len(parts[n]) < 2 * merged:
            merged += len(parts[n])
            chosen.append(n)
    return chosen


def carried(parts: Sequence[Part], base: SealedSegment) -> tuple[LiveSegment, Rows, Vectors]:
    """Return `base` with what it and `parts` have in common, and the rows and vectors that it lacks."""
    live = np.zeros(len(base), dtype=bool)
    rows, vectors = [np.empty(0, np.int64)], [np.empty((0, base.dims), np.float32)]
    for part in parts:
        for block, theirs in part.contents():
            inside = np.flatnonzero(block < len(base))
            slots = block[inside]
            same = inside[(base.stored[slots] == theirs[inside]).all(axis=1)]  # no vector is all zero
            live[block[same]] = True
            rows.append(np.delete(block, same))
            vectors.append(np.delete(theirs, same, axis=0))
    order = np.argsort(np.concatenate(rows))
    return LiveSegment.of(base, None, live), np.concatenate(rows)[order], np.concatenate(vectors)[order]
