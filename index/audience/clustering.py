"""Weighted spherical k-means and the silhouette that chooses how many clusters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Weights = NDArray[np.float64]
Labels = NDArray[np.int64]

CHOICES = range(3, 9)
"""Numbers of clusters to choose from."""
SAMPLE = 500
"""Points that are clustered first: k-means and the silhouette look at all pairs of them."""
RESTARTS = 2
MAX_ROUNDS = 25
LAST_ROUNDS = 3
"""Rounds over all points, from the centroids of the sample: they hardly move any more, and each looks at all."""
SEED = 20230804

_SAME = 1e-6
"""Cosine distance below which two float32 vectors count as one."""
_DIRECTION = 1e-3
"""Length of a weighted mean of unit vectors from which it has a direction."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """Unit centroids f32 [m, d], each point's nearest one i64 [n], and the weighted sum of 1 - cos to it."""

    centroids: Points
    labels: Labels
    inertia: float


@dataclass(slots=True)
class _Run:
    """One k-means over all pairs: a centroid is the direction of a weighted sum of points."""

    shares: Points
    """f32 [m, n]: what each point gives to each centroid."""
    similarity: Points
    """f32 [m, n]: cosine of centroid and point."""
    labels: Labels
    moving: bool = True


def cluster(points: Points, weights: Weights, count: int | None = None) -> Clustering:
    """Minimise sum_n w_n (1 - cos(x_n, mu_label(n))) (spherical k-means, Dhillon & Modha 2001).

    `points` are unit f32 [n, d], `weights` [n] > 0. Without a count, the one of CHOICES whose clustering has
    the highest weighted mean silhouette, the smaller of equals. Fewer clusters come back when there are fewer
    distinct points. Of more than SAMPLE points a random SAMPLE is clustered first, and then all, from its
    centroids. The same points always give the same clusters. ValueError for count < 1 or no points.
    """
    if not len(points) or (count is not None and count < 1):
        raise ValueError(f"{count} clusters of {len(points)} points cannot be made")
    some, theirs = points, weights
    if len(points) > SAMPLE:
        sample = np.sort(np.random.default_rng(SEED).choice(len(points), SAMPLE, replace=False))
        some, theirs = points[sample], weights[sample]
    products = some @ some.T
    tried = _clustered(products, theirs, list(CHOICES) if count is None else [count])
    if len(tried) > 1:
        distance = distances(products)
        worth = [float(np.average(silhouettes(distance, run.labels), weights=theirs)) for run in tried]
        tried = [tried[int(np.argmax(worth))]]
    centroids = tried[0].shares @ some
    return _rounds(points, weights, centroids / np.linalg.norm(centroids, axis=1, keepdims=True))


def _clustered(products: Points, weights: Weights, counts: Sequence[int]) -> list[_Run]:
    """Return the best of RESTARTS for each of `counts`, given all products f32 [n, n] of the points.

    The runs go round by round together, so that a round is one matrix product: with all pairs at hand, neither
    centroids nor points are looked at.
    """
    rng, mass = np.random.default_rng(SEED), weights.astype(np.float32)
    runs = [_start(products, _seeds(products, weights, count, rng)) for count in counts for _ in range(RESTARTS)]
    for _ in range(MAX_ROUNDS):
        moving = [run for run in runs if run.moving]
        if not moving:
            break
        wanted = [(np.arange(len(run.shares))[:, None] == run.labels) * mass for run in moving]
        sums = np.vstack(wanted) @ products
        for run, shares in zip(moving, wanted, strict=True):
            _move(run, shares, sums[: len(shares)])
            sums = sums[len(shares) :]
    loss = [float(weights @ (1.0 - run.similarity.max(axis=0))) for run in runs]
    firsts = range(0, len(runs), RESTARTS)
    return [runs[min(range(first, first + RESTARTS), key=loss.__getitem__)] for first in firsts]


def _start(products: Points, seeds: Labels) -> _Run:
    shares = np.zeros((len(seeds), len(products)), dtype=np.float32)
    shares[np.arange(len(seeds)), seeds] = 1.0
    return _Run(shares, products[seeds], np.argmax(products[seeds], axis=0))


def _move(run: _Run, shares: Points, sums: Points) -> None:
    """Move centroids to the `shares` of their points, `sums` [m, n] their products; one without direction stays."""
    lengths = np.sqrt(np.maximum(0, np.einsum("mn,mn->m", shares, sums)))
    usable = (lengths > _DIRECTION * shares.sum(axis=1))[:, None]
    run.shares = np.where(usable, shares, run.shares)
    run.similarity = np.where(usable, sums / np.where(usable, lengths[:, None], 1), run.similarity)
    labels = np.argmax(run.similarity, axis=0)
    run.moving = not np.array_equal(labels, run.labels)
    run.labels = labels


def _seeds(products: Points, weights: Weights, count: int, rng: np.random.Generator) -> Labels:
    """Draw seeds by weight x distance to the nearest seed so far (k-means++, Arthur & Vassilvitskii 2007)."""
    chosen = [int(rng.choice(len(weights), p=weights / weights.sum()))]
    distance = np.full(len(weights), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, 1.0 - products[chosen[-1]])
        odds = weights * np.where(distance > _SAME, distance, 0.0)
        if not odds.any():  # every distinct point is a seed already
            break
        chosen.append(int(rng.choice(len(weights), p=odds / odds.sum())))
    return np.array(chosen)


def _rounds(points: Points, weights: Weights, centroids: Points) -> Clustering:
    """At most LAST_ROUNDS of Lloyd's from `centroids`, until no label changes; an emptied cluster keeps its own."""
    mass, numbers = weights.astype(np.float32), np.arange(len(centroids))[:, None]
    similarity = centroids @ points.T
    labels = np.argmax(similarity, axis=0)
    for _ in range(LAST_ROUNDS):
        shares = (numbers == labels) * mass
        sums = shares @ points
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        usable = lengths > _DIRECTION * shares.sum(axis=1, keepdims=True)
        centroids = np.where(usable, sums / np.where(usable, lengths, 1), centroids)
        similarity = centroids @ points.T
        before, labels = labels, np.argmax(similarity, axis=0)
        if np.array_equal(before, labels):
            break
    return Clustering(centroids, labels, float(weights @ (1.0 - similarity.max(axis=0))))


def distances(products: Points) -> Points:
    """Return the cosine distances f32 [n, n] between unit points, given their products."""
    distance: Points = np.maximum(np.float32(0), np.float32(1) - products)
    np.fill_diagonal(distance, 0)
    return distance


def silhouettes(distance: Points, labels: Labels) -> Weights:
    """Return (b - a) / max(a, b) of each point [n] (Rousseeuw 1987), given all distances [n, n]; 0 if alone.

    a: mean distance to the rest of its cluster; b: the least mean distance to another cluster. With only one
    cluster b does not exist and all are 0.
    """
    names, own = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return np.zeros(len(labels))
    member = (own[:, None] == np.arange(len(names))).astype(np.float32)
    sizes = member.sum(axis=0)
    totals = (distance @ member).astype(np.float64)
    each = np.arange(len(labels))
    inside = totals[each, own] / np.maximum(sizes[own] - 1, 1)
    means = totals / sizes
    means[each, own] = np.inf
    outside = means.min(axis=1)
    larger = np.maximum(inside, outside)
    undecided = (sizes[own] == 1) | (larger == 0)
    return np.where(undecided, 0.0, (outside - inside) / np.where(undecided, 1.0, larger))
