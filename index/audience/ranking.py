"""From scores to the listeners that are named: roughly for all that are looked at, exactly for those who matter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.audience.listening import STEPS, Listening
from index.audience.reach import LISTENERS_AT_ONCE, SHARPNESS, Affinity, Span, blocks
from index.search.vectors import Mask, Rows, Vectors, inner_products, slack

FRONT, STEP = 4, 8
"""Clusters are looked for among FRONT times the listeners wanted, then STEP times as many, until all have enough."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Listeners n that were looked at."""

    listeners: Rows
    """i64 [n]"""
    rough: NDArray[np.float64]
    """[n]: the score lies between rough (1 - doubt) and rough (1 + doubt)."""
    doubt: float

    def where(self, chosen: Mask | Rows) -> "Survey":
        """Return the survey of some of the listeners."""
        return Survey(self.listeners[chosen], self.rough[chosen], self.doubt)

    def best(self, count: int) -> Mask:
        """Return bool [n]: all who can be among the `count` <= n best."""
        return self.rough * (1 + self.doubt) >= self.least(count) * (1 - self.doubt)

    def least(self, count: int) -> float:
        """Return the `count`-th largest rough score."""
        place = len(self.rough) - count
        return float(np.partition(self.rough, place)[place])


def survey(affinity: Affinity, spans: Sequence[Span], min_score: float | None = None) -> Survey:
    """Look at the placed listeners of `spans`, for whom float32 products will do.

    With `min_score`, those are left out whose cosine alone shows that they cannot reach it: what they heard is
    not even looked at.
    """
    listening, query = affinity.listening, affinity.query
    unsure = float(slack(query[None], len(query) + 4)[0])
    least = -np.inf if min_score is None else affinity.least_cosine(min_score) - unsure
    direction, decoded = query / STEPS, np.empty((LISTENERS_AT_ONCE, len(query)), dtype=np.float32)
    found, rough = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for span, listeners in blocks(spans):
        np.copyto(decoded[: len(listeners)], listening.vectors[span])
        cosine = (decoded[: len(listeners)] @ direction).astype(np.float64)
        able = np.flatnonzero(cosine >= least)
        if len(able) < len(listeners):
            span, listeners, cosine = listeners[able], listeners[able], cosine[able]
        found.append(listeners)
        rough.append(np.exp(SHARPNESS * (cosine - 1)) * affinity.heard(span))
    return Survey(np.concatenate(found), np.concatenate(rough), float(np.expm1(SHARPNESS * unsure)) + 2.0**-22)


def labelled(listening: Listening, centroids: Vectors, listeners: Rows) -> Rows:
    """Return the number of the nearest of `centroids` f32 [m, d] to each of `listeners`, the smaller of equals."""
    labels = np.empty(len(listeners), dtype=np.int64)
    doubt = 2 * float(slack(centroids, centroids.shape[1] + 4).max())
    for start in range(0, len(listeners), LISTENERS_AT_ONCE):
        points = listening.points(listeners[start : start + LISTENERS_AT_ONCE])
        labels[start : start + len(points)] = _nearest(centroids, points, doubt)
    return labels


def _nearest(centroids: Vectors, points: Vectors, doubt: float) -> Rows:
    labels = np.zeros(len(points), dtype=np.int64)
    similarity = centroids @ points.T
    best, second = similarity[0], np.full(len(points), -np.inf, np.float32)
    for number, other in enumerate(similarity[1:], start=1):
        labels[other > best] = number
        second = np.maximum(second, np.minimum(best, other))
        best = np.maximum(best, other)
    close = np.flatnonzero(best - second <= doubt)
    if len(close):  # rounding could decide
        exact = np.stack([inner_products(one[None], points, close[None])[0] for one in centroids])
        labels[close] = exact.argmax(axis=0)
    return labels


def ranked(
    affinity: Affinity,
    centroids: Vectors,
    seen: Survey,
    shares: NDArray[np.float64],
    limit: int,
    min_score: float | None,
) -> tuple[Rows, Vectors, Rows, int]:
    """Name at most `limit` of those `seen`: listeners i64, scores f32, nearest centroids i64, and how many could be.

    With `min_score`, those who score at least so much. Who is named (see select; `shares` [m] are the
    clusters'), and the count, are as if all had been scored exactly and given to a cluster: that is done
    wherever the rough score leaves a doubt.
    """
    if min_score is not None:
        seen = seen.where(_passing(affinity, seen, min_score))
    passing = len(seen.listeners)
    wanted = quotas(shares, min(limit, passing))
    front, labels = _front(affinity.listening, centroids, seen, wanted)
    chosen = _contenders(front, labels, wanted, limit)
    listeners, labels = front.listeners[chosen], labels[chosen]
    scores = affinity.scores(listeners)
    chosen = select(listeners, scores, labels, shares, limit)
    return listeners[chosen], scores[chosen], labels[chosen], passing


def _front(listening: Listening, centroids: Vectors, seen: Survey, wanted: Rows) -> tuple[Survey, Rows]:
    """Return the best of those `seen` and their nearest centroids i64: so many that each has as many as are `wanted`.

    Everybody else scores less than all whom the centroids need. Everybody is returned where a centroid has too
    few.
    """
    many = FRONT * int(wanted.sum())
    while 0 < many < len(seen.listeners):
        front, least = seen.where(seen.best(many)), seen.least(many)
        labels = labelled(listening, centroids, front.listeners)
        if (np.bincount(labels[front.rough >= least], minlength=len(wanted)) >= wanted).all():
            return front, labels
        many *= STEP
    return seen, labelled(listening, centroids, seen.listeners)


def _passing(affinity: Affinity, seen: Survey, bar: float) -> Mask:
    """Return who scores at least `bar`, bool [n]."""
    passing: Mask = seen.rough * (1 - seen.doubt) >= bar
    unsure = np.flatnonzero(~passing & (seen.rough * (1 + seen.doubt) >= bar))
    passing[unsure] = affinity.scores(seen.listeners[unsure]).astype(np.float64) >= bar
    return passing


def _contenders(front: Survey, labels: Rows, wanted: Rows, limit: int) -> Rows:
    """Return the places of all who can be among the best of their cluster: so many as are `wanted` i64 [m] of it.

    Where one cluster has fewer, others fill up, and then `limit` of each are taken: nobody else is named.
    """
    groups = [np.flatnonzero(labels == number) for number in range(len(wanted))]
    if any(len(mine) < most for mine, most in zip(groups, wanted.tolist(), strict=True)):
        wanted = np.full(len(groups), limit)
    found = [np.empty(0, dtype=np.int64)]
    for mine, most in zip(groups, wanted.tolist(), strict=True):
        if 0 < most < len(mine):
            mine = mine[front.where(mine).best(most)]
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
