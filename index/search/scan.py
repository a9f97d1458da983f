"""Vectors without an index of their own, the audio and text parts of a release, searched by reading them all."""

from collections.abc import Iterator
from dataclasses import dataclass, field

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

_UNREAD, _ROUGH, _SCORED = (np.uint8(number) for number in range(3))
"""What is known of a row's product: nothing, float32's, the score."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The audio (or text) vectors: those of the release, memory-mapped, then the fresh ones."""

    sealed: NDArray[np.float32]
    """f32 [n, 256], NaN where a track has none."""
    fresh: NDArray[np.float32]

    def vectors(self, rows: Rows) -> Vectors:
        """Return f32 [n, 256] for `rows`, NaN where there is none."""
        found = np.full((len(rows), self.sealed.shape[1]), np.nan, dtype=np.float32)
        old = np.flatnonzero(rows < len(self.sealed))
        new = np.flatnonzero((rows >= len(self.sealed)) & (rows < len(self.sealed) + len(self.fresh)))
        found[old] = self.sealed[rows[old]]
        found[new] = self.fresh[rows[new] - len(self.sealed)]
        return found


@dataclass(slots=True)
class ScannedView:
    """A VectorView of those `parts` whose rows are `live`: exact, 1 KB read for each row of the first search.

    What a search found out stays: another of the same query, for more rows or under another mask, as one request makes
    them, reads only what none did before. So take a view for a request and in one thread: it keeps 5 bytes a row.
    """

    parts: Parts
    live: Mask
    """bool [size]: False for rows that were removed."""
    _last: "_Scores | None" = field(default=None, init=False, repr=False, compare=False)

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self.parts.sealed.shape[1])

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in _blocks(self.parts, np.flatnonzero(self.live)))

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See VectorView.search."""
        wanted = checked_queries(queries, self.dims, k)
        rows = np.flatnonzero(self.live)
        rows = rows[passing(rows, allowed)]
        found = [self._scores_of(query).best(rows, k) for query in wanted]
        if not found:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, places = zip(*found, strict=True)
        return np.concatenate(scores), np.concatenate(places)

    def _scores_of(self, query: Vectors) -> "_Scores":
        last = self._last
        if last is None or not np.array_equal(last.query, query):
            last = self._last = _Scores(self.parts, query.copy(), len(self.live))
        return last

    def vectors(self, rows: ArrayLike) -> Vectors:
        """See VectorView.vectors."""
        wanted = checked_rows(rows)
        found = self.parts.vectors(wanted)
        found[~passing(wanted, self.live)] = np.nan
        return found


class _Scores:
    """One query's products with the vectors of `parts`, as far as they were asked for: float32's, then the scores.

    Either is within `slack` of the true product, so that near_best may be given both.
    """

    def __init__(self, parts: Parts, query: Vectors, size: int) -> None:
        self.query = query
        self._parts = parts
        self._products = np.full(size, np.nan, dtype=np.float32)
        """f32 [size], NaN where there is no vector."""
        self._known = np.full(size, _UNREAD)

    def best(self, rows: Rows, k: int) -> tuple[Vectors, Rows]:
        """Return the k best of `rows` as VectorView.search does for one query."""
        for block, vectors in self._reading(rows, _UNREAD, _ROUGH):
            self._products[block] = vectors @ self.query
        products = self._products[rows]
        there = ~np.isnan(products)
        rows, products = rows[there], products[there]
        if len(rows):
            rows = rows[near_best(products, min(k, len(rows)), self.query)]
        for block, vectors in self._reading(rows, _ROUGH, _SCORED):
            self._products[block] = inner_products(self.query[None], vectors, np.arange(len(block))[None])[0]
        return best(self._products[rows][None], rows[None], k)

    def _reading(self, rows: Rows, before: np.uint8, after: np.uint8) -> Iterator[tuple[Rows, Vectors]]:
        """Yield those of `rows` of which only `before` is known, and their vectors; then it is `after`."""
        wanted = rows[self._known[rows] == before]
        yield from _blocks(self._parts, wanted)
        self._known[wanted] = after


def _blocks(parts: Parts, rows: Rows) -> Iterator[tuple[Rows, Vectors]]:
    """Yield those of `rows` that have a vector, and their vectors."""
    for start in range(0, len(rows), _AT_ONCE):
        block = rows[start : start + _AT_ONCE]
        vectors = parts.vectors(block)
        there = ~np.isnan(vectors[:, 0])
        if there.any():
            yield (block, vectors) if there.all() else (block[there], vectors[there])
