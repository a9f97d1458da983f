"""The index that serves: the release's sealed FAISS segment, a fresh one and tombstones, searched as one."""

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss as untyped_faiss
import numpy as np
from numpy.typing import ArrayLike

from index.errors import DebutError
from index.vectors import (
    ExactIndex,
    ExactView,
    Mask,
    Rows,
    Vectors,
    best,
    checked_queries,
    checked_rows,
    checked_vectors,
    inner_products,
    slack,
)

faiss: Any = untyped_faiss  # its type stubs know neither selectors nor search parameters

HNSW_FROM = 200_000
"""Vectors from which a sealed segment is an HNSW graph: below, an exact scan is quick enough."""

HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 24, 200, 200
"""M, efConstruction and efSearch."""

STEP_PRICE = 50
"""Vectors an exact scan passes in one step of an HNSW beam: 32 ns against 1.8 us at 256-d on one core."""


_SPARE = 8
"""Candidates fetched beyond k, for scores that change places once they are computed precisely."""


class SegmentError(DebutError):
    """A sealed segment cannot be read."""

    code = "segment_damaged"


def write_sealed(path: Path, vectors: ArrayLike, *, hnsw_from: int = HNSW_FROM, threads: int | None = None) -> None:
    """Write vectors f32 [n, d], row by row, as a FAISS inner-product index that SealedSegment reads.

    A row without a vector is all zero: it keeps its place, so that rows are the release's rows, and is never
    found. All other vectors must have norm 1 (ValueError). Flat below `hnsw_from` vectors, HNSW from there
    on. With more than one thread (None: all cores) FAISS links an HNSW graph in no fixed order: same vectors,
    slightly different graph.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"vectors must be of shape [n, d] and not empty, not {list(array.shape)}")
    checked_vectors(array[array.any(axis=1)], array.shape[1])
    index = _new_faiss_index(array.shape[1], hnsw=len(array) >= hnsw_from)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or os.cpu_count() or 1)
    try:
        index.add(array)
    finally:
        faiss.omp_set_num_threads(before)
    staged = path.with_name(f".{path.name}.part")
    faiss.write_index(index, str(staged))
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, path)


def _new_faiss_index(dims: int, *, hnsw: bool) -> Any:
    if not hnsw:
        return faiss.IndexFlatIP(dims)
    index = faiss.IndexHNSWFlat(dims, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    return index


class SealedSegment:
    """A FAISS index file, memory-mapped and never written: rows 0 to n - 1, any number of readers."""

    def __init__(self, path: Path) -> None:
        """Map the file at `path`; raises SegmentError when it is not an index that write_sealed writes."""
        try:
            self.faiss_index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, MemoryError) as error:
            raise SegmentError(f"{path} cannot be read as a FAISS index ({_reason(error)}): publish again") from error
        self.hnsw = isinstance(self.faiss_index, faiss.IndexHNSWFlat)
        storage = faiss.downcast_index(self.faiss_index.storage) if self.hnsw else self.faiss_index
        if not isinstance(storage, faiss.IndexFlat) or self.faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise SegmentError(f"{path} is not a flat or HNSW inner-product index: publish again")
        self._storage: Any = storage  # exact scans, also of an HNSW graph's own vectors
        self.dims = int(self.faiss_index.d)
        self.stored: Vectors = faiss.rev_swig_ptr(storage.get_xb(), int(self.faiss_index.ntotal) * self.dims).reshape(
            -1, self.dims
        )
        self.stored.flags.writeable = False
        self.present: Mask = _present(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def candidates(self, queries: Vectors, k: int, allowed: Mask, count: int) -> Rows:
        """Return rows i64 [q, m], the k best of the `count` rows in `allowed` bool [n] among them; -1: none.

        In a flat segment they are certainly among them; in HNSW nearly always, and there are always min(k,
        count).
        """
        k = min(k, count)
        if k == 0:
            return np.full((len(queries), 0), -1, dtype=np.int64)
        beam = int(max(HNSW_SEARCH, 2 * k) * len(self) / count)  # so many near rows hold 2 k (or more) allowed ones
        if not self.hnsw or count <= STEP_PRICE * beam:
            return self._exact(queries, k, allowed, count)
        return self._near(queries, k, allowed, count, min(beam, len(self)))

    def _near(self, queries: Vectors, k: int, allowed: Mask, count: int, beam: int) -> Rows:
        """Walk the graph for the `beam` nearest rows of all and keep those allowed; scan where that leaves
        too few.

        FAISS could filter while it walks, but it then fills up with whatever it happened to pass, without a
        word.
        """
        parameters = faiss.SearchParametersHNSW(efSearch=beam)
        rows: Rows = self.faiss_index.search(queries, beam, params=parameters)[1]
        passed = (rows >= 0) & allowed[rows]
        order = np.argsort(~passed, axis=1, kind="stable")[:, : k + _SPARE]
        found = np.where(np.take_along_axis(passed, order, 1), np.take_along_axis(rows, order, 1), -1)
        short = np.flatnonzero(passed.sum(axis=1) < k)
        if len(short):
            scanned = self._exact(queries[short], k, allowed, count)
            wider = np.full((len(queries), max(found.shape[1], scanned.shape[1])), -1, dtype=np.int64)
            wider[:, : found.shape[1]] = found
            wider[short] = -1
            wider[short, : scanned.shape[1]] = scanned
            found = wider
        return found

    def _exact(self, queries: Vectors, k: int, allowed: Mask, count: int) -> Rows:
        """Scan, and fetch more than k, until nothing beyond can be among the k best once scored precisely."""
        parameters = None
        if count < len(self):
            bits = np.packbits(allowed, bitorder="little")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        fetched = min(count, k + _SPARE + k // 32)
        doubt = 2 * slack(queries, self.dims)
        while True:
            rough, rows = self._storage.search(queries, fetched, params=parameters)
            if fetched == count or bool((rough[:, -1] < rough[:, k - 1] - doubt).all()):
                return np.asarray(rows, dtype=np.int64)
            fetched = min(count, 4 * fetched)


def _present(stored: Vectors) -> Mask:
    """Return which rows hold a vector: all but the all-zero ones. Most need one look at one number."""
    present: Mask = stored[:, 0] != 0
    unsure = np.flatnonzero(~present)
    present[unsure] = stored[unsure].any(axis=1)
    return present


def _reason(error: Exception) -> str:
    """Return the end of FAISS's message, which begins with a C++ signature."""
    return str(error).rpartition("failed: ")[2].strip() or type(error).__name__


@dataclass(frozen=True, slots=True)
class SegmentedView:
    """A SegmentedIndex at one instant."""

    sealed: SealedSegment
    live: Mask
    """bool [sealed rows]: False for tombstones and rows that never had a vector. Copied on each removal."""
    live_count: int
    fresh: ExactView

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return self.sealed.dims

    def __len__(self) -> int:
        return self.live_count + len(self.fresh)

    def search(self, queries: ArrayLike, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """See VectorView.search. Exact for a flat sealed segment."""
        wanted = checked_queries(queries, self.dims, k)
        mask, count = self._allowed(allowed)
        rows = self.sealed.candidates(wanted, k, mask, count)
        scores = inner_products(wanted, self.sealed.stored, rows)
        if len(self.fresh):
            more = self.fresh.search(wanted, k, allowed)
            scores, rows = np.hstack((scores, more[0])), np.hstack((rows, more[1]))
        return best(scores, rows, k)

    def vectors(self, rows: ArrayLike) -> Vectors:
        """See VectorView.vectors."""
        wanted = checked_rows(rows)
        found = self.fresh.vectors(wanted)
        inside = np.flatnonzero(wanted < len(self.sealed))
        inside = inside[self.live[wanted[inside]]]
        found[inside] = self.sealed.stored[wanted[inside]]
        return found

    def _allowed(self, allowed: Mask | None) -> tuple[Mask, int]:
        if allowed is None:
            return self.live, self.live_count
        mask = np.zeros(len(self.sealed), dtype=bool)
        inside = min(len(mask), len(allowed))
        np.logical_and(self.live[:inside], allowed[:inside], out=mask[:inside])
        return mask, int(mask.sum())


class SegmentedIndex:
    """The VectorIndex of the service. A sealed row that is added again lives in the fresh segment."""

    def __init__(self, sealed: SealedSegment) -> None:
        self.dims = sealed.dims
        self._writing = threading.Lock()
        self._fresh = ExactIndex(sealed.dims)
        self._view = SegmentedView(sealed, sealed.present, int(sealed.present.sum()), self._fresh.view())

    @classmethod
    def open(cls, path: Path) -> "SegmentedIndex":
        """Map the sealed segment at `path`; raises SegmentError."""
        return cls(SealedSegment(path))

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

    def remove(self, rows: ArrayLike) -> int:
        """See VectorIndex.remove."""
        with self._writing:
            wanted = np.unique(checked_rows(rows))
            before = len(self._view)
            self._fresh.remove(wanted)
            self._publish(wanted)
            return before - len(self._view)

    def _publish(self, buried: Rows) -> None:
        """Publish the fresh segment and tombstones for `buried` rows of the sealed one, as one view."""
        view = self._view
        buried = buried[buried < len(view.sealed)]
        buried = buried[view.live[buried]]
        live = view.live
        if len(buried):
            live = live.copy()
            live[buried] = False
        self._view = replace(view, live=live, live_count=view.live_count - len(buried), fresh=self._fresh.view())
