"""Retrieval with a prior on the candidates: cosine + weight x prior, the exact best k of it, over any index."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.search.vectors import Mask, Rows, Vectors, VectorView, checked_queries, inner_products

_FIRST, _FASTER = 4, 4


def popularity(listeners: ArrayLike) -> NDArray[np.float64]:
    """Return ln(1 + listeners) of `listeners` [N]: two tracks share listeners more easily where both have many."""
    return np.log1p(np.asarray(listeners, dtype=np.float64))


def search_with_prior(
    view: VectorView, query: ArrayLike, k: int, prior: NDArray[np.float64], weight: float, allowed: Mask | None = None
) -> tuple[NDArray[np.float64], Vectors, Rows]:
    """Return the k rows with the highest score = cosine + weight x prior[row]: scores f64, cosines f32, rows i64 [n].

    Best first, equal scores by the smaller row; n < k where fewer rows qualify. `query` f32 [d], `prior` f64 [N] by
    row (rows beyond it are not found), `allowed` as in VectorView.search. As precise as the index's own search: the
    lists of the nearest and of the highest prior are read until no unread row can reach the k-th score (Fagin, Lotem
    and Naor 2003, the threshold algorithm). Raises ValueError for a weight below 0 or infinite, and as search does.
    """
    if not 0 <= weight < np.inf:
        raise ValueError(f"the weight of the prior must be finite and not negative, not {weight}")
    wanted = checked_queries(query, view.dims, k)
    inside = np.ones(len(prior), dtype=bool)
    if allowed is not None:
        inside[len(allowed) :] = False
        inside[: len(allowed)] &= allowed[: len(prior)]
    by_prior = np.flatnonzero(inside)
    by_prior = by_prior[np.argsort(-prior[by_prior], kind="stable")]
    depth = _FIRST * k
    while True:
        near, bound = _nearest(view, wanted, depth, inside)
        popular = by_prior[:depth]
        rows = np.union1d(near, popular)
        cosines = inner_products(wanted, view.vectors(rows), np.arange(len(rows))[None])[0]
        there = np.isfinite(cosines)
        rows, cosines = rows[there], cosines[there]
        scores = cosines.astype(np.float64) + weight * prior[rows]
        order = np.lexsort((rows, -scores))[:k]
        # An unread row is no nearer than the last of the one list, and has no more prior than the last of the other.
        unread = bound + weight * prior[popular[-1]] if len(popular) else -np.inf
        if depth >= len(by_prior) or bound == -np.inf or (len(order) == k and scores[order[-1]] > unread):
            return scores[order], cosines[order], rows[order]
        depth *= _FASTER


def _nearest(view: VectorView, query: Vectors, count: int, allowed: Mask) -> tuple[Rows, float]:
    """Rows i64 of the `count` nearest, and the cosine that no other exceeds: -inf when there are no others."""
    cosines, rows = view.search(query, count, allowed)
    found = rows[0] >= 0
    return rows[0][found], float(cosines[0][-1])
