"""Weighted spherical k-means and the silhouette that chooses how many clusters."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Weights = NDArray[np.float64]
Labels = NDArray[np.int64]

CHOICES = range(3, 9)
"""Numbers of clusters to choose from."""
SAMPLE = 500
"""Points on which that number is chosen: the silhouette looks at all pairs."""
RESTARTS = 2
MAX_ROUNDS = 25
LAST_ROUNDS = 5
"""Rounds over all points, from the centroids of the sample: they hardly move any more, and each looks at all."""
SEED = 20230804

_SAME = 1e-6
"""Cosine distance below which two float32 vectors count as one."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """Unit centroids f32 [m, d], each point's nearest one i64 [n], and the weighted sum of 1 - cos to it."""

    centroids: Points
    labels: Labels
    inertia: float


def cluster(points: Points, weights: Weights, count: int | None = None) -> Clustering:
    """Cluster unit `points` f32 [n, d] with `weights` [n] > 0 into `count` clusters; see spherical_kmeans.

    Without a count, the one of CHOICES whose clustering has the highest weighted mean silhouette, the smaller
    of equals. Of more than SAMPLE points a random SAMPLE is clustered first, and then all, from its
    centroids. The same points always give the same clusters.
    """
    if len(points) <= SAMPLE:
        return _clustered(points, weights, count)
    sample = np.sort(np.random.default_rng(SEED).choice(len(points), SAMPLE, replace=False))
    return _rounds(points, weights, _clustered(points[sample], weights[sample], count).centroids, LAST_ROUNDS)


def _clustered(points: Points, weights: Weights, count: int | None) -> Clustering:
    if count is not None:
        return spherical_kmeans(points, weights, count)
    tried = [spherical_kmeans(points, weights, number) for number in CHOICES]
    distance = distances(points)
    worth = [float(np.average(silhouettes(distance, found.labels), weights=weights)) for found in tried]
    return tried[int(np.argmax(worth))]


def spherical_kmeans(points: Points, weights: Weights, count: int, restarts: int = RESTARTS) -> Clustering:
    """Minimise sum_n w_n (1 - cos(x_n, mu_label(n))) (Dhillon & Modha 2001): the best of `restarts`.

    Fewer than `count` clusters come back when there are fewer distinct points. ValueError for count < 1 or no
    points.
    """
    if count < 1 or not len(points):
        raise ValueError(f"{count} clusters of {len(points)} points cannot be made")
    rng = np.random.default_rng(SEED)
    tried = [_rounds(points, weights, _seeds(points, weights, count, rng)) for _ in range(restarts)]
    return min(tried, key=lambda found: found.inertia)


def _seeds(points: Points, weights: Weights, count: int, rng: np.random.Generator) -> Points:
    """Draw seeds by weight x distance to the nearest seed so far (k-means++, Arthur & Vassilvitskii 2007)."""
    chosen = [int(rng.choice(len(points), p=weights / weights.sum()))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, 1.0 - points @ points[chosen[-1]])
        odds = weights * np.where(distance > _SAME, distance, 0.0)
        if not odds.any():  # every distinct point is a seed already
            break
        chosen.append(int(rng.choice(len(points), p=odds / odds.sum())))
    return points[chosen]


def _rounds(points: Points, weights: Weights, centroids: Points, most: int = MAX_ROUNDS) -> Clustering:
    """At most `most` of Lloyd's rounds from `centroids`, until no label changes; an emptied cluster keeps its own."""
    weighted = points * weights[:, None].astype(np.float32)
    numbers = np.arange(len(centroids))[:, None]
    labels = np.full(len(points), -1)
    for _ in range(most):
        nearest = np.argmax(points @ centroids.T, axis=1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        sums = (numbers == labels).astype(np.float32) @ weighted
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        usable = norms > np.finfo(np.float32).tiny
        centroids = np.where(usable, sums / np.where(usable, norms, 1), centroids).astype(np.float32)
    similarity = points @ centroids.T
    labels = np.argmax(similarity, axis=1)
    inertia = float(weights @ (1.0 - similarity[np.arange(len(points)), labels]))
    return Clustering(centroids, labels, inertia)


def distances(points: Points) -> Points:
    """Return the cosine distances f32 [n, n] between unit `points`."""
    distance: Points = np.maximum(np.float32(0), np.float32(1) - points @ points.T)
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
