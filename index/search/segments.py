"""Sealed segments: vectors in a FAISS index, written once, memory-mapped, searched by any number of readers."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.search.segmentfile import (
    HNSW_FROM,
    Kind,
    SegmentError,
    faiss,
    kind_for,
    mapped_index,
    present,
    save_index,
    sealed_index,
    stored_vectors,
    taken_apart,
)
from index.search.vectors import Mask, Rows, Vectors, checked_vectors, slack

__all__ = ["HNSW_FROM", "SealedSegment", "SegmentError", "write_sealed"]

HNSW_SEARCH = 200
"""efSearch of an unfiltered search, for up to 100 results."""

IVF_PROBES = 64
"""Lists an unfiltered search of an ivf segment looks into, of 4 sqrt(n)."""

STEP_PRICE = 35
"""Vectors a scan of what a filter passes takes for one step of an HNSW beam: 90 ns against 3.2 us at 1M x 256."""

_FILTERED = 1.1
"""Slots for each allowed one from which a filter is at work, not just tombstones."""

_SPARE = 8
"""Candidates fetched beyond k, for scores that change places once they are computed precisely."""

_ON_GPU = 2048
"""Results a GPU index can return."""


def write_sealed(
    path: Path,
    vectors: ArrayLike,
    *,
    kind: Kind | None = None,
    hnsw_from: int = HNSW_FROM,
    threads: int | None = None,
) -> None:
    """Write vectors f32 [n, d], row by row, as a FAISS inner-product index that SealedSegment reads.

    A row without a vector is all zero: it keeps its place, so that rows are the release's rows, and is never
    found. All other vectors must have norm 1 (ValueError). Without a `kind`: scan below `hnsw_from` vectors,
    hnsw from there on. With more than one thread (None: all cores) FAISS links an HNSW graph in no fixed
    order: same vectors, slightly different graph.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"vectors must be of shape [n, d] and not empty, not {list(array.shape)}")
    checked_vectors(array[array.any(axis=1)], array.shape[1])
    save_index(path, sealed_index(array, kind or kind_for(len(array), hnsw_from), threads=threads))


class SealedSegment:
    """A FAISS index that is never written: slots 0 to n - 1, any number of readers."""

    def __init__(self, source: Path | Any) -> None:
        """Map the file at `source`, or take a FAISS index; SegmentError unless it is one that write_sealed writes."""
        self.path = source if isinstance(source, Path) else None
        self.faiss_index: Any = mapped_index(source) if isinstance(source, Path) else source
        self.kind, self._rough, self._storage = taken_apart(self.faiss_index, str(self.path))
        self.dims = int(self.faiss_index.d)
        self.stored: Vectors = stored_vectors(self._storage)
        """f32 [n, d]"""
        self.present: Mask = present(self.stored, self.path)
        """bool [n]: which slots hold a vector."""
        self._gpu = _Gpu(self._storage) if faiss.get_num_gpus() else None

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def exact(self) -> bool:
        """Whether candidates are certain to hold the best."""
        return self.kind in ("exact", "scan")

    def candidates(self, queries: Vectors, k: int, allowed: Mask, count: int) -> Rows:
        """Return slots i64 [q, m], the k best of the `count` slots in `allowed` bool [n] among them; -1: none.

        In an exact segment they are certainly among them, in the others nearly always, and there are always
        min(k, count).
        """
        k = min(k, count)
        if k == 0:
            return np.full((len(queries), 0), -1, dtype=np.int64)
        thinner = len(self) / count  # so much wider a look holds as many allowed slots
        filtered = thinner > _FILTERED
        if self.kind == "hnsw":
            aimed = max(HNSW_SEARCH, 4 * k if filtered else 2 * k)
            beam = min(int(aimed * thinner), len(self))
            if count > STEP_PRICE * beam:
                slots, met = self._walked(queries, k, None if count == len(self) else allowed, beam)
                trusted = met >= (aimed // 2 if filtered else k)
                return slots if trusted.all() else self._completed(slots, trusted, queries, k, allowed, count)
        elif self.kind == "ivf":
            probes = int(IVF_PROBES * thinner)
            if 2 * probes < self._rough.nlist:
                slots = self._probed(queries, k, allowed, count, probes)
                trusted = (slots >= 0).sum(axis=1) >= k
                return slots if trusted.all() else self._completed(slots, trusted, queries, k, allowed, count)
        return self._exact(queries, k, allowed, count)

    def _walked(self, queries: Vectors, k: int, allowed: Mask | None, beam: int) -> tuple[Rows, NDArray[np.int64]]:
        """Walk the graph for the `beam` nearest slots of all; keep the best allowed (None: all are), count them.

        FAISS could filter while it walks, but it then fills up with whatever it happened to pass, without a
        word. A count far below what the filter lets expect says the same here: the filter keeps out the
        query's surroundings, and far from them a beam has gaps.
        """
        parameters = faiss.SearchParametersHNSW(efSearch=beam)
        fetched = min(k + _SPARE, len(self)) if allowed is None else beam
        slots: Rows = self.faiss_index.search(queries, fetched, params=parameters)[1]
        if allowed is None:
            return slots, (slots >= 0).sum(axis=1)
        passed = (slots >= 0) & allowed[slots]
        found = np.full((len(queries), k + _SPARE), -1, dtype=np.int64)
        for line, near, good in zip(found, slots, passed, strict=True):
            kept = near[good][: k + _SPARE]
            line[: len(kept)] = kept
        return found, passed.sum(axis=1)

    def _probed(self, queries: Vectors, k: int, allowed: Mask, count: int, probes: int) -> Rows:
        """Look through the nearest lists; the codes are rough, so twice as many are fetched as are wanted."""
        parameters = faiss.SearchParametersIVF(nprobe=probes, sel=None if count == len(self) else _bitmap(allowed))
        slots: Rows = self._rough.search(queries, min(count, 2 * k + _SPARE), params=parameters)[1]
        return slots

    def _completed(self, slots: Rows, trusted: Mask, queries: Vectors, k: int, allowed: Mask, count: int) -> Rows:
        """Return `slots` [q, m] with a scan's instead for the queries that are not `trusted` [q]."""
        short = np.flatnonzero(~trusted)
        scanned = self._exact(queries[short], k, allowed, count)
        wider = np.full((len(queries), max(slots.shape[1], scanned.shape[1])), -1, dtype=np.int64)
        wider[:, : slots.shape[1]] = slots
        wider[short] = -1
        wider[short, : scanned.shape[1]] = scanned
        return wider

    def _exact(self, queries: Vectors, k: int, allowed: Mask, count: int) -> Rows:
        """Scan, and fetch more than k, until nothing beyond can be among the k best once scored precisely."""
        scanned, parameters = self._scanned(allowed, count)
        fetched = min(count, k + _SPARE + k // 32)
        doubt = 2 * self._error(queries, rounded=scanned is not self._storage)
        while True:
            if self._gpu is not None and parameters is None and fetched <= _ON_GPU:
                rough, slots = self._gpu.search(queries, fetched)
            else:
                rough, slots = scanned.search(queries, fetched, params=parameters)
            if fetched == count or bool((rough[:, -1] < rough[:, k - 1] - doubt).all()):
                return np.asarray(slots, dtype=np.int64)
            fetched = min(count, 4 * fetched)

    def _scanned(self, allowed: Mask, count: int) -> tuple[Any, Any]:
        """Return the index to scan and FAISS's parameters for it.

        A flat index goes straight to the slots that are listed, at 50 to 90 ns each; every other filter is
        asked about each slot.
        """
        if 2 * count < len(self):
            return self._storage, faiss.SearchParameters(sel=faiss.IDSelectorArray(np.flatnonzero(allowed)))
        whole = self._rough if self.kind == "scan" else self._storage
        return whole, None if count == len(self) else faiss.SearchParameters(sel=_bitmap(allowed))

    def _error(self, queries: Vectors, *, rounded: bool) -> NDArray[np.float64]:
        """Bound the error [q] of a scan's products: that of float32 and, with `rounded` vectors, that of float16.

        float16 rounds a number by at most 2^-11 of it, or by 2^-25 where it is tiny; Cauchy-Schwarz does the
        rest.
        """
        bound = slack(queries, self.dims)
        if rounded:
            norms = np.linalg.norm(queries.astype(np.float64), axis=1)
            bound = bound + norms * (2.0**-11 * 1.01 + self.dims**0.5 * 2.0**-25)
        return bound


def _bitmap(allowed: Mask) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


class _Gpu:
    """Exact float32 scans on all GPUs that FAISS sees; a GPU index takes one search at a time.

    Nobody has run this on a GPU yet: the tests let a CPU index stand for it.
    """

    def __init__(self, storage: Any) -> None:
        self._index = faiss.index_cpu_to_all_gpus(storage)
        self._one = threading.Lock()

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Return scores f32 [q, k], rounded as a GPU rounds, and slots i64 [q, k]."""
        with self._one:
            found: tuple[Vectors, Rows] = self._index.search(queries, k)
            return found
