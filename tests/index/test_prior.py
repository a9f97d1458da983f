"""Retrieval with a prior against the full ranking."""

import numpy as np
import pytest

from index.search.exact import ExactIndex
from index.search.prior import popularity, search_with_prior

SEED = 11


def place(n: int, rng: np.random.Generator, dims: int = 12) -> tuple[ExactIndex, np.ndarray]:
    vectors = rng.standard_normal((n, dims)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = ExactIndex(dims)
    index.add(np.arange(n), vectors)
    return index, vectors


def whole(vectors, query, prior, weight, allowed, k):
    """Score everything, sort everything."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64) + weight * prior
    rows = [row for row in range(len(vectors)) if allowed[row]]
    return sorted(rows, key=lambda row: (-round(scores[row], 6), row))[:k], scores


@pytest.mark.parametrize("weight", [0.0, 0.03, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_it_is_the_full_ranking(weight: float, k: int) -> None:
    rng = np.random.default_rng([SEED, k])
    print("seed", SEED)
    for n in (k, 300, 2000):
        index, vectors = place(n, rng)
        prior = popularity(np.floor(rng.pareto(0.9, n)))
        allowed = rng.random(n) < 0.6
        query = rng.standard_normal(12).astype(np.float32)
        query /= np.linalg.norm(query)
        scores, cosines, rows = search_with_prior(index.view(), query, k, prior, weight, allowed)
        expected, all_scores = whole(vectors, query, prior, weight, allowed, k)
        assert len(rows) == len(expected)
        assert scores == pytest.approx(all_scores[expected], abs=1e-6)
        assert scores == pytest.approx(all_scores[rows], abs=1e-6)
        assert cosines == pytest.approx(vectors[rows] @ query, abs=1e-6)
        assert allowed[rows].all()


def test_it_reads_a_small_part_of_a_large_index() -> None:
    rng = np.random.default_rng(SEED)
    index, _ = place(20_000, rng)
    prior, read = popularity(np.floor(rng.pareto(0.9, 20_000))), []
    view = index.view()

    class Counting:
        dims = view.dims

        def search(self, queries, k, allowed=None):
            read.append(k)
            return view.search(queries, k, allowed)

        def vectors(self, rows):
            return view.vectors(rows)

    search_with_prior(Counting(), view.vectors([5])[0], 50, prior, 0.05)
    assert max(read) < 5000


def test_removed_rows_and_rows_without_a_vector_are_not_found() -> None:
    index, _ = place(50, np.random.default_rng(SEED))
    index.remove([3])
    prior = np.zeros(60)
    prior[[3, 55]] = 100.0
    _, _, rows = search_with_prior(index.view(), index.vectors([0])[0], 60, prior, 1.0)
    assert sorted(rows) == [row for row in range(50) if row != 3]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    index, _ = place(5, np.random.default_rng(SEED))
    with pytest.raises(ValueError, match="weight of the prior"):
        search_with_prior(index.view(), index.vectors([0])[0], 2, np.zeros(5), weight)
