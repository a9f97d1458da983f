"""What a vector index promises (VectorView, VectorIndex), and how its answers are scored and ordered."""

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a stored vector may be: float16 passes, a forgotten normalisation does not."""

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
    line = np.arange(len(order))[:, None]
    found = scores[line, order], rows[line, order]
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


def near_best(rough: Vectors, k: int, query: Vectors) -> Rows:
    """Return the places in float32 scores `rough` [n] that can be among the k <= n best by inner_products."""
    limit = np.partition(rough, len(rough) - k)[len(rough) - k]
    near: Rows = np.flatnonzero(rough >= limit - 2 * slack(query[None], len(query))[0])
    return near
