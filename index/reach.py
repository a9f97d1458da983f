"""From centroids to listeners: each scored by the nearest centroid, taken by quota, then by score."""

import numpy as np
from numpy.typing import NDArray

from index import segments
from index.listening import Listening
from index.segments import SealedSegment
from index.vectors import Mask, Rows, Vectors, inner_products, near_best, slack

_LISTENERS_AT_ONCE = 1 << 16


def quotas(shares: NDArray[np.float64], limit: int) -> Rows:
    """Share out `limit` places i64 [m] by `shares` [m] (sum 1): largest remainders, the earlier of equals."""
    exact = shares * limit
    whole = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: limit - int(whole.sum())]] += 1
    return whole


def select(
    listening: Listening, centroids: Vectors, shares: NDArray[np.float64], limit: int, eligible: Mask
) -> tuple[Rows, Vectors, Rows]:
    """Return at most `limit` listeners i64, their scores f32 and clusters i64, best first, then by place.

    score(u) = max over m of cos(rep(u), centroids[m]); the smaller m of equals is the cluster. Each cluster
    gives the best of its quota; where one has too few, the best of all the others fill up. Only `eligible`
    bool [U] count.
    """
    limit = min(limit, int(eligible.sum()))
    places = quotas(shares, limit)
    steps = len(centroids) * max(segments.HNSW_SEARCH, 2 * limit)  # of all beams; a scan serves all centroids
    if listening.segment is not None and steps * segments.STEP_PRICE < len(listening):
        candidates = _searched(listening.segment, centroids, places, limit, eligible)
    else:
        candidates = _scanned(listening.vectors, centroids, places, limit, eligible)
    scores, labels = _scored(listening.vectors, centroids, candidates)
    order = np.lexsort((candidates, -scores))
    taken = np.zeros(len(order), dtype=bool)
    for number, quota in enumerate(places.tolist()):
        taken[np.flatnonzero(labels[order] == number)[:quota]] = True
    taken[np.flatnonzero(~taken)[: limit - int(taken.sum())]] = True
    chosen = order[taken]
    return candidates[chosen], scores[chosen], labels[chosen]


def _scored(vectors: Vectors, centroids: Vectors, listeners: Rows) -> tuple[Vectors, Rows]:
    """Return the score f32 [n] and the cluster i64 [n] of `listeners`."""
    similarity = np.stack([inner_products(one[None], vectors, listeners[None])[0] for one in centroids])
    return similarity.max(axis=0), similarity.argmax(axis=0)


def _scanned(vectors: Vectors, centroids: Vectors, places: Rows, limit: int, eligible: Mask) -> Rows:
    """Look at all listeners; return those that can be among a cluster's quota or the `limit` best of all."""
    doubt = 2 * slack(centroids, centroids.shape[1]).max()
    scores = np.empty(len(vectors), dtype=np.float32)
    member = np.empty((len(centroids), len(vectors)), dtype=bool)
    for start in range(0, len(vectors), _LISTENERS_AT_ONCE):
        span = slice(start, start + _LISTENERS_AT_ONCE)
        similarity = centroids @ vectors[span].T
        scores[span] = similarity.max(axis=0)
        member[:, span] = similarity >= scores[span] - doubt  # of two clusters, when rounding could decide
    found = [np.empty(0, dtype=np.int64)]
    for among, wanted in ((eligible, limit), *zip(member & eligible, places.tolist(), strict=True)):
        listeners = np.flatnonzero(among)
        wanted = min(wanted, len(listeners))
        if wanted:
            found.append(listeners[near_best(scores[listeners], wanted, centroids[0])])
    return np.unique(np.concatenate(found))


def _searched(segment: SealedSegment, centroids: Vectors, places: Rows, limit: int, eligible: Mask) -> Rows:
    """Search for eligible listeners: each cluster's quota and the `limit` best of all are among them.

    Whoever is among the limit best of all is among the limit nearest of a centroid. Whoever is nearer to
    another centroid is of no use to the quota: the lists are then made longer.
    """
    count = int(eligible.sum())
    asked = limit
    while True:
        lists = segment.candidates(centroids, asked, eligible, count)
        candidates = np.unique(lists[lists >= 0])
        _, labels = _scored(segment.stored, centroids, candidates)
        of = np.bincount(labels, minlength=len(centroids))
        if asked >= count or (of >= places).all():
            return candidates
        asked = min(count, 4 * asked)
