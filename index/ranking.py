"""From scores to the listeners that are named: roughly for all that are looked at, exactly for those who matter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.listening import STEPS
from index.reach import LISTENERS_AT_ONCE, SHARPNESS, Affinity, Span, blocks
from index.vectors import Mask, Rows, Vectors, inner_products, slack


@dataclass(frozen=True, slots=True)
class Survey:
    """Listeners n that were looked at."""

    listeners: Rows
    """i64 [n]"""
    rough: NDArray[np.float64]
    """[n]: the score lies between rough (1 - doubt) and rough (1 + doubt)."""
    labels: Rows
    """i64 [n]: number of the nearest centroid, the smaller of equals."""
    doubt: float

    def where(self, chosen: Mask | Rows) -> "Survey":
        """Return the survey of some of the listeners."""
        return Survey(self.listeners[chosen], self.rough[chosen], self.labels[chosen], self.doubt)


def survey(affinity: Affinity, centroids: Vectors, spans: Sequence[Span], min_score: float | None = None) -> Survey:
    """Look at the placed listeners of `spans`, for whom float32 products will do, and name their nearest centroid.

    `centroids` are f32 [m, d]. With `min_score`, those are left out whose cosine alone shows that they cannot
    reach it: neither what they heard nor their nearest centroid is looked at.
    """
    listening, query = affinity.listening, affinity.query
    unsure = slack(np.vstack((query[None], centroids)), len(query) + 4)
    least = -np.inf if min_score is None else affinity.least_cosine(min_score) - float(unsure[0])
    direction, doubt = query / STEPS, 2 * float(unsure[1:].max() * STEPS)
    decoded = np.empty((LISTENERS_AT_ONCE, len(query)), dtype=np.float32)
    parts: list[tuple[Rows, NDArray[np.float64], Rows]] = []
    for span, listeners in blocks(spans):
        points = decoded[: len(listeners)]
        np.copyto(points, listening.vectors[span])  # in steps
        cosine = (points @ direction).astype(np.float64)
        able = np.flatnonzero(cosine >= least)
        if len(able) < len(listeners):
            span = listeners = listeners[able]
            points, cosine = points[able], cosine[able]
        labels = _labels(centroids, points, doubt)
        parts.append((listeners, np.exp(SHARPNESS * (cosine - 1)) * affinity.heard(span), labels))
    if not parts:
        return Survey(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), 0.0)
    listeners, rough, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Survey(listeners, rough, labels, float(np.expm1(SHARPNESS * unsure[0])) + 2.0**-22)


def _labels(centroids: Vectors, points: Vectors, doubt: float) -> Rows:
    """Return the nearest centroid of `points` f32 [n, d] of any one length; of products within `doubt`, by float64."""
    labels = np.zeros(len(points), dtype=np.int64)
    similarity = centroids @ points.T
    best, second = similarity[0], np.full(len(points), -np.inf, np.float32)
    for number, other in enumerate(similarity[1:], start=1):
        labels[other > best] = number
        second = np.maximum(second, np.minimum(best, other))
        best = np.maximum(best, other)
    close = np.flatnonzero(best - second <= doubt)
    if len(close):
        exact = np.stack([inner_products(one[None], points, close[None])[0] for one in centroids])
        labels[close] = exact.argmax(axis=0)
    return labels


def ranked(
    affinity: Affinity, seen: Survey, shares: NDArray[np.float64], limit: int, min_score: float | None
) -> tuple[Rows, Vectors, Rows, int]:
    """Name at most `limit` of those `seen`, by quotas: listeners i64, scores f32, labels i64, and how many could be.

    With `min_score`, those who score at least so much. Who is named, and the count, are as if all had been scored
    exactly: exact scores are taken of everybody for whom the rough one leaves a doubt.
    """
    if min_score is not None:
        seen = seen.where(_passing(affinity, seen, min_score))
    contenders = seen.where(_contenders(seen, quotas(shares, min(limit, len(seen.listeners))), limit))
    scores = affinity.scores(contenders.listeners)
    chosen = select(contenders.listeners, scores, contenders.labels, shares, limit)
    return contenders.listeners[chosen], scores[chosen], contenders.labels[chosen], len(seen.listeners)


def _passing(affinity: Affinity, seen: Survey, bar: float) -> Mask:
    """Return who scores at least `bar`, bool [n]."""
    passing: Mask = seen.rough * (1 - seen.doubt) >= bar
    unsure = np.flatnonzero(~passing & (seen.rough * (1 + seen.doubt) >= bar))
    passing[unsure] = affinity.scores(seen.listeners[unsure]).astype(np.float64) >= bar
    return passing


def _contenders(seen: Survey, wanted: Rows, limit: int) -> Rows:
    """Return the places of all who can be among the best of their label: so many as are `wanted` i64 [m] of it.

    Where one label has fewer, others fill up, and then `limit` of each are taken: nobody else is named.
    """
    groups = [np.flatnonzero(seen.labels == number) for number in range(len(wanted))]
    enough = all(len(mine) >= most for mine, most in zip(groups, wanted.tolist(), strict=True))
    mosts = wanted.tolist() if enough else [limit] * len(groups)
    found = [np.empty(0, dtype=np.int64)]
    for mine, most in zip(groups, mosts, strict=True):
        if 0 < most < len(mine):
            rough = seen.rough[mine]
            least = np.partition(rough, len(mine) - most)[len(mine) - most]
            mine = mine[rough * (1 + seen.doubt) >= least * (1 - seen.doubt)]
        if most:
            found.append(mine)
    return np.concatenate(found)


def quotas(shares: NDArray[np.float64], limit: int) -> Rows:
    """Share out `limit` places i64 [m] by `shares` [m] (sum 1): largest remainders, the earlier of equals."""
    exact = shares * limit
    whole = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: limit - int(whole.sum())]] += 1
    return whole


def select(candidates: Rows, scores: Vectors, labels: Rows, shares: NDArray[np.float64], limit: int) -> Rows:
    """Return the places i64 of at most `limit` of `candidates` i64, best score first, then the smaller candidate.

    Each cluster gives the best of its quota by `shares` [m]; where one has too few, the best of all the others
    fill up.
    """
    limit = min(limit, len(candidates))
    order = np.lexsort((candidates, -scores))
    taken = np.zeros(len(order), dtype=bool)
    for number, quota in enumerate(quotas(shares, limit).tolist()):
        taken[np.flatnonzero(labels[order] == number)[:quota]] = True
    taken[np.flatnonzero(~taken)[: limit - int(taken.sum())]] = True
    return np.asarray(order[taken])
