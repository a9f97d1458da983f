"""Spherical k-means and silhouettes against scikit-learn and the definitions."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_examples import unit
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from index.audience import clustering
from index.audience.clustering import cluster, distances, silhouettes


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def planted(rng: np.random.Generator, sizes: list[int], spread: float = 0.3, dims: int = 16):
    centres = np.linalg.qr(rng.normal(size=(dims, len(sizes))))[0].T
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = centres[labels] + spread / np.sqrt(dims) * rng.normal(size=(len(labels), dims))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def loss(points: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> float:
    """sum_n w_n (1 - cos(x_n, mu)), with mu the direction of the weighted sum of each cluster, in float64."""
    total = 0.0
    for label in np.unique(labels):
        mine, their = points[labels == label].astype(np.float64), weights[labels == label]
        centroid = (their[:, None] * mine).sum(axis=0)
        total += (their * (1 - mine @ (centroid / np.linalg.norm(centroid)))).sum()
    return total


@pytest.mark.parametrize("count", [3, 5, 8])
@pytest.mark.parametrize("structured", [True, False])
def test_no_worse_than_scikit_learn(rng, count, structured):
    """Euclidean k-means on the sphere minimises nearly the same: its labels, measured our way, are the mark."""
    points = planted(rng, [60] * 5)[0] if structured else unit(rng, 400, 16)
    weights = rng.gamma(1.0, size=len(points)) + 0.01
    ours = cluster(points, weights, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KMeans(count, n_init=10, random_state=0).fit(points, sample_weight=weights).labels_
    assert loss(points, weights, ours.labels) <= loss(points, weights, theirs) * 1.05
    assert ours.inertia == pytest.approx(loss(points, weights, ours.labels), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), count=st.integers(1, 9))
def test_centroids_are_unit_and_labels_nearest(seed, n, count):
    rng = np.random.default_rng(seed)
    points, weights = unit(rng, n, 5), rng.random(n) + 0.1
    found = cluster(points, weights, count)
    assert len(found.centroids) == min(n, count)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    similarity = points @ found.centroids.T
    np.testing.assert_allclose(similarity[np.arange(n), found.labels], similarity.max(axis=1), atol=1e-6)
    again = cluster(points, weights, count)
    np.testing.assert_array_equal(again.labels, found.labels)
    np.testing.assert_array_equal(again.centroids, found.centroids)


def test_weights_pull_the_centroid(rng):
    points = unit(rng, 2, 6)
    found = cluster(points, np.array([9.0, 1.0]), 1)
    expected = 9 * points[0] + points[1]
    np.testing.assert_allclose(found.centroids[0], expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize("sizes", [[80, 80, 80], [50, 120, 30, 60], [40] * 8])
def test_the_silhouette_finds_the_planted_number(rng, sizes):
    points, labels = planted(rng, sizes)
    found = cluster(points, np.ones(len(points)))
    assert len(found.centroids) == len(sizes)
    assert adjusted_rand_score(labels, found.labels) > 0.99


def test_of_many_points_a_sample_chooses_and_all_are_clustered(rng):
    points, labels = planted(rng, [900, 300, 500, 700])
    assert len(points) > clustering.SAMPLE
    found = cluster(points, np.ones(len(points)))
    assert len(found.centroids) == 4
    assert len(found.labels) == len(points)
    assert adjusted_rand_score(labels, found.labels) > 0.99
    np.testing.assert_array_equal(found.labels, cluster(points, np.ones(len(points))).labels)


def test_a_given_number_is_kept(rng):
    points, _ = planted(rng, [80, 80, 80])
    assert len(cluster(points, np.ones(len(points)), 7).centroids) == 7
    assert len(cluster(points, np.ones(len(points)), 1).centroids) == 1


@pytest.mark.parametrize("count", [None, 1, 4])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_identical_points_are_one_cluster(rng, n, count):
    point = unit(rng, 16)
    found = cluster(np.tile(point, (n, 1)), np.ones(n), count)
    assert len(found.centroids) == 1
    np.testing.assert_allclose(found.centroids[0], point, atol=1e-6)
    assert found.inertia == pytest.approx(0, abs=1e-4)


def test_opposite_points_leave_a_usable_centroid():
    points = np.array([[1, 0], [-1, 0]], dtype=np.float32)  # their sum has no direction
    found = cluster(points, np.ones(2), 1)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)


def test_refuses_nothing_to_cluster():
    with pytest.raises(ValueError, match="0 clusters"):
        cluster(np.eye(2, dtype=np.float32), np.ones(2), 0)
    with pytest.raises(ValueError, match="of 0 points"):
        cluster(np.empty((0, 2), np.float32), np.ones(0), 3)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 40), names=st.integers(2, 5))
def test_silhouettes_are_those_of_scikit_learn(seed, n, names):
    rng = np.random.default_rng(seed)
    points, labels = unit(rng, n, 4), rng.integers(0, names, n) * 3
    labels[:2] = 0, 3
    if len(np.unique(labels)) < n:
        expected = silhouette_samples(points, labels, metric="cosine")
        np.testing.assert_allclose(silhouettes(distances(points @ points.T), labels), expected, atol=1e-5)


def test_silhouettes_by_definition(rng):
    points, labels = unit(rng, 25, 4), rng.integers(0, 3, 25)
    labels[7] = 9  # alone
    expected = []
    for i in range(25):

        def mean(label, i=i):
            return np.mean([1 - points[i] @ points[j] for j in range(25) if labels[j] == label and j != i])

        if labels[i] == 9:
            expected.append(0.0)
            continue
        a, b = mean(labels[i]), min(mean(label) for label in set(labels.tolist()) - {labels[i]})
        expected.append((b - a) / max(a, b))
    np.testing.assert_allclose(silhouettes(distances(points @ points.T), labels), expected, atol=1e-5)


def test_one_cluster_has_no_silhouette(rng):
    assert not silhouettes(distances(np.eye(5, dtype=np.float32)), np.zeros(5, int)).any()
