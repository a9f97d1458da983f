"""Vectors searched by reading them all: held against the exact index."""

import numpy as np
import pytest

from index.search import scan
from index.search.exact import ExactIndex
from index.search.scan import Parts, ScannedView


def units(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
    vectors = rng.normal(size=(count, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("at_once", [7, 64, 1 << 16])
def test_answers_are_those_of_the_exact_index(monkeypatch, at_once):
    monkeypatch.setattr(scan, "_AT_ONCE", at_once)
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for sealed, fresh in ((0, 5), (90, 0), (90, 33)):
        vectors = units(rng, sealed + fresh, 16)
        vectors[1] = vectors[0]  # equal scores: the smaller row first
        missing, live = rng.random(len(vectors)) < 0.2, rng.random(len(vectors)) < 0.8
        vectors[missing] = np.nan
        view = ScannedView(Parts(vectors[:sealed], vectors[sealed:]), live)
        exact, there = ExactIndex(16), np.flatnonzero(live & ~missing)
        exact.add(there, vectors[there])
        assert (len(view), view.dims) == (len(exact), 16)
        for k in (1, 10, 200):
            for allowed in (None, rng.random(len(vectors)) < 0.3, np.zeros(0, bool), rng.random(300) < 0.5):
                queries = rng.normal(size=(3, 16))
                for found, expected in zip(
                    view.search(queries, k, allowed), exact.search(queries, k, allowed), strict=True
                ):
                    np.testing.assert_array_equal(found, expected)
        rows = rng.integers(0, len(vectors) + 9, 50)
        np.testing.assert_array_equal(view.vectors(rows), exact.vectors(rows))


def test_searches_of_one_query_read_a_row_once_and_again_only_for_its_score(monkeypatch):
    monkeypatch.setattr(scan, "_AT_ONCE", 50)
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    vectors = units(rng, 400, 16)
    vectors[rng.random(400) < 0.2] = np.nan
    parts, live = Parts(vectors[:300], vectors[300:]), rng.random(400) < 0.9
    real, read = Parts.vectors, []
    monkeypatch.setattr(
        Parts, "vectors", lambda of, rows: (read.extend(rows) if of is counted else None, real(of, rows))[1]
    )
    counted = Parts(vectors[:300], vectors[300:])
    view = ScannedView(counted, live)
    for _ in range(2):  # two queries, one after the other
        query, few = rng.normal(size=16), rng.random(400) < 0.1
        view.search(query, 1, few)
        assert few[read].all()
        for k in (1, 4, 16, 64, 256, 400):
            for allowed in (rng.random(400) < 0.2, rng.random(400) < 0.8, None):
                anew = ScannedView(parts, live).search(query, k, allowed)
                for found, expected in zip(view.search(query, k, allowed), anew, strict=True):
                    np.testing.assert_array_equal(found, expected)
        there = live & ~np.isnan(vectors[:, 0])
        np.testing.assert_array_equal(np.bincount(read, minlength=400), np.where(there, 2, live))
        read.clear()
