"""Vectors without an index of their own, the parts of a release's tracks, searched by reading them all."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.search.vectors import (
    Mask,
    Rows,
    Vectors,
    best,
    checked_queries,
    checked_rows,
    inner_products,
    near_best,
    passing,
)

_AT_ONCE = 1 << 16
"""Vectors read at once (64 MiB at 256-d)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The audio vectors (or text vectors, or sketches): those of the release, memory-mapped, then the fresh ones."""

    sealed: NDArray[np.float32]
    """f32 [n, d], NaN where a track has none; d is 256, of sketches 160."""
    fresh: NDArray[np.float32]

    def vectors(self, rows: Rows) -> Vectors:
        """Return f32 [n, d] for `rows`, NaN where there is none."""
        found = np.full((len(rows), self.sealed.shape[1]), np.nan, dtype=np.float32)
        old = np.flatnonzero(rows < len(self.sealed))
        new = np.flatnonzero((rows >= len(self.sealed)) & (rows < len(self.sealed) + len(self.fresh)))
        found[old] = self.sealed[rows[old]]
        found[new] = self.fresh[rows[new] - len(self.sealed)]
        return found


@dataclass(frozen=True, slots=True)
class ScannedView:
    """A VectorView of those `parts` whose rows are `live`: exact, 1 KB read for each row of each search."""

    parts: Parts
    live: Mask
    """bool [size]: False for rows that were removed."""

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self.parts.sealed.shape[1])

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self._blocks(np.flatnonzero(self.live)))

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See VectorView.search."""
        wanted = checked_queries(queries, self.dims, k)
        rows = np.flatnonzero(self.live)
        found = np.full((len(wanted), k), -np.inf, np.float32), np.full((len(wanted), k), -1, np.int64)
        for block, vectors in self._blocks(rows[passing(rows, allowed)]):
            for number, query in enumerate(wanted):
                near = near_best(vectors @ query, min(k, len(block)), query)
                scores = np.append(found[0][number], inner_products(query[None], vectors, near[None])[0])
                top = best(scores[None], np.append(found[1][number], block[near])[None], k)
                found[0][number], found[1][number] = top[0][0], top[1][0]
        return found

    def vectors(self, rows: ArrayLike) -> Vectors:
        """See VectorView.vectors."""
        wanted = checked_rows(rows)
        found = self.parts.vectors(wanted)
        found[~passing(wanted, self.live)] = np.nan
        return found

    def _blocks(self, rows: Rows) -> Iterator[tuple[Rows, Vectors]]:
        """Yield those of `rows` that have a vector, and their vectors."""
        for start in range(0, len(rows), _AT_ONCE):
            block = rows[start : start + _AT_ONCE]
            vectors = self.parts.vectors(block)
            there = ~np.isnan(vectors[:, 0])
            if there.any():
                yield (block, vectors) if there.all() else (block[there], vectors[there])
