"""The index that serves: sealed segments, a fresh one that takes what is added, and tombstones, searched as one."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from index.errors import DebutError
from index.search.exact import ExactIndex, ExactView
from index.search.parts import LiveSegment, Part, carried, due, gathered
from index.search.segmentfile import HNSW_FROM, SegmentError, kind_for, sealed_index
from index.search.segments import SealedSegment
from index.search.statefolder import StateFolder
from index.search.vectors import Mask, Rows, Vectors, best, checked_queries, checked_rows

SEAL_AT = 5_000
"""Vectors in the fresh segment from which they are sealed: 70 us each thousand add to a search, 25 once sealed."""

HNSW_BESIDE = 50_000
"""Vectors from which a segment is an HNSW graph where the release's is no exact one either."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What sealing did."""

    sealed: int
    """Vectors that were fresh and are sealed now."""
    purged: int
    """Vectors of removed rows that left memory and files."""
    seconds: float


@dataclass(frozen=True, slots=True)
class SegmentedView:
    """A SegmentedIndex at one instant."""

    parts: tuple[Part, ...]
    """The release's segment, those sealed since, and fresh ones that are being sealed. A row is in one at most."""
    fresh: ExactView

    @property
    def sealed(self) -> SealedSegment:
        """The release's segment."""
        base = self.parts[0]
        assert isinstance(base, LiveSegment)
        return base.segment

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return self.fresh.dims

    def __len__(self) -> int:
        return sum(map(len, self.parts)) + len(self.fresh)

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See VectorView.search. Exact where all sealed segments are."""
        wanted = checked_queries(queries, self.dims, k)
        found = [part.search(wanted, k, allowed) for part in (*self.parts, self.fresh) if len(part)]
        if len(found) == 1:
            return best(*found[0], k)
        none = np.empty((len(wanted), 0), np.float32), np.empty((len(wanted), 0), np.int64)
        scores, rows = (np.concatenate(arrays, axis=1) for arrays in zip(none, *found, strict=True))
        return best(scores, rows, k)

    def vectors(self, rows: ArrayLike) -> Vectors:
        """See VectorView.vectors."""
        wanted = checked_rows(rows)
        found = np.full((len(wanted), self.dims), np.nan, dtype=np.float32)
        for part in (*self.parts, self.fresh):
            if len(part):
                part.put(wanted, found)
        return found


class SegmentedIndex:
    """The VectorIndex of the service.

    What is added is found at once, in the fresh segment. When that has grown to `seal_at` vectors (None:
    whenever `seal` is called), a thread makes a sealed one of them, while searches, additions and removals go
    on: it builds from a view and swaps under the lock, with the removals of that time carried over.
    """

    def __init__(
        self, parts: tuple[LiveSegment, ...], folder: StateFolder | None = None, *, seal_at: int | None = SEAL_AT
    ) -> None:
        """Serve `parts`, the release's segment first, and keep what is sealed in `folder` (None: in memory)."""
        self.dims = parts[0].segment.dims
        self._folder, self._seal_at = folder, seal_at
        self._writing = threading.Lock()
        self._sealing = threading.Lock()  # taken before _writing, and for long
        self._seal_wanted = False
        self._fresh = ExactIndex(self.dims, capacity=seal_at or 0)
        self._view = SegmentedView(parts, self._fresh.view())

    @classmethod
    def open(cls, path: Path, directory: Path | None = None, *, seal_at: int | None = SEAL_AT) -> "SegmentedIndex":
        """Map the release's sealed segment at `path` and what was sealed into `directory`, if there is such.

        The index is then as it was when the last `seal` began; later additions and removals are for a ledger
        to replay. Raises SegmentError for files that are damaged or do not belong together.
        """
        base = SealedSegment(path)
        if directory is None:
            return cls((LiveSegment.of(base),), seal_at=seal_at)
        folder = StateFolder(directory)
        return cls(folder.read(base), folder, seal_at=seal_at)

    def __len__(self) -> int:
        return len(self._view)

    def view(self) -> SegmentedView:
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
        with self._writing:
            self._fresh.add(rows, vectors)
            self._publish(checked_rows(rows))
            start = self._seal_at is not None and self._view.fresh.size >= self._seal_at and not self._seal_wanted
            self._seal_wanted |= start
        if start:
            self._start_sealing()

    def remove(self, rows: ArrayLike) -> int:
        """See VectorIndex.remove."""
        with self._writing:
            wanted = np.unique(checked_rows(rows))
            before = len(self._view)
            self._fresh.remove(wanted)
            self._publish(wanted)
            return before - len(self._view)

    def seal(self, *, compact: bool = False) -> Receipt:
        """Seal what is fresh, merged with smaller segments; searches and changes go on meanwhile.

        Dead vectors leave with the segments that are merged; `compact` merges all but the release's. In a
        state folder this is durable on return. Raises OSError or SegmentError when it cannot be written: the
        index then serves on from memory, and the next call tries again.
        """
        with self._sealing:
            began = time.perf_counter()
            parts = self._frozen()
            merged = [1 + n for n in due(parts[1:], compact=compact)]
            rows, vectors = gathered([parts[n] for n in merged], self.dims)
            return self._exchange(parts, merged, self._made(rows, vectors, self._view.sealed), began)

    def swap(self, path: Path) -> Receipt:
        """Put the sealed file at `path` in the place of the release's; what the index holds stays the same.

        Rows whose vectors the file has are served from it, all others are sealed beside it. Write the file
        with write_sealed from a view, and the tombstones and small segments of years become one segment again.
        Raises as `seal`.
        """
        base = SealedSegment(path)
        if base.dims != self.dims:
            raise SegmentError(f"{path} has vectors of length {base.dims}, not {self.dims}: write it from this index")
        with self._sealing:
            began = time.perf_counter()
            parts = self._frozen()
            live, rows, vectors = carried(parts, base)
            made = [live, *self._made(rows, vectors, base)]
            return self._exchange(parts, list(range(len(parts))), made, began)

    def _start_sealing(self) -> None:
        """Seal in a thread of its own; what was added is there, whether a thread is to be had or not."""
        try:
            threading.Thread(target=self._seal_aside, name="seal", daemon=True).start()
        except RuntimeError as error:
            self._seal_wanted = False
            _log.error("sealing could not start, and is tried again with the next vector: %s", error)

    def _seal_aside(self) -> None:
        try:
            self.seal()
        except (
            OSError,
            RuntimeError,
            MemoryError,
            DebutError,
        ) as error:  # FAISS raises RuntimeError where it cannot write
            _log.error("sealing failed, and is tried again after %s more vectors: %s", self._seal_at, error)

    def _frozen(self) -> tuple[Part, ...]:
        """Make the fresh segment one of the parts, which can only lose rows, and start an empty one."""
        with self._writing:
            self._seal_wanted = False
            view = self._view
            if view.fresh.size:
                self._fresh = ExactIndex(self.dims, self._seal_at or 0)
                self._view = SegmentedView((*view.parts, view.fresh), self._fresh.view())
            return self._view.parts

    def _made(self, rows: Rows, vectors: Vectors, base: SealedSegment) -> list[LiveSegment]:
        """Return the segment of `rows`, ascending, and `vectors`; none if there are none."""
        if not len(rows):
            return []
        kind = kind_for(len(rows), HNSW_FROM if base.exact else HNSW_BESIDE)
        index = sealed_index(vectors, kind, threads=1)
        return [LiveSegment.of(SealedSegment(index) if self._folder is None else self._folder.add(index, rows), rows)]

    def _exchange(
        self, parts: Sequence[Part], merged: Sequence[int], made: Sequence[LiveSegment], began: float
    ) -> Receipt:
        """Serve `made` in the place of `merged` ones of `parts`, less what was removed since `parts` were seen."""
        kept = [n for n in range(len(parts)) if n not in merged]
        if self._folder is not None:
            self._folder.write([part for n in kept if isinstance(part := parts[n], LiveSegment)] + list(made))
        with self._writing:
            now = self._view.parts
            gone = np.concatenate([np.empty(0, np.int64), *(now[n].gone_since(parts[n]) for n in merged)])
            self._view = replace(self._view, parts=(*(now[n] for n in kept), *(part.without(gone) for part in made)))
        return Receipt(
            sealed=sum(len(part) for part in parts if isinstance(part, ExactView)),
            purged=sum(parts[n].size - len(parts[n]) for n in merged),
            seconds=time.perf_counter() - began,
        )

    def _publish(self, buried: Rows) -> None:
        """Publish the fresh segment, and tombstones for `buried` rows in all others, as one view."""
        parts = tuple(part.without(buried) for part in self._view.parts)
        self._view = SegmentedView(parts, self._fresh.view())
