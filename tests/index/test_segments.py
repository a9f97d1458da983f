"""The sealed segment: what is written, mapped, refused, and how near HNSW comes to the truth."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from index_examples import unit

from index import segments
from index.exact import ExactIndex
from index.segmented import SegmentedIndex
from index.segments import SealedSegment, SegmentError, write_sealed

DIMS = 32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def clustered(rng: np.random.Generator, n: int) -> np.ndarray:
    """Unit vectors around 40 centres, as music lies."""
    vectors = unit(rng, 40, DIMS)[rng.integers(0, 40, n)] + 0.7 * unit(rng, n, DIMS)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@pytest.mark.parametrize("price", [0, 1, segments.STEP_PRICE])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.15, 0.05])
def test_hnsw_recalls_what_is_there(tmp_path, rng, monkeypatch, part, price):
    monkeypatch.setattr(segments, "STEP_PRICE", price)
    vectors, queries = clustered(rng, 6000), clustered(rng, 100)
    vectors[rng.choice(6000, 300, replace=False)] = 0  # tracks without a vector sit in the graph, too
    write_sealed(tmp_path / "x.faiss", vectors, hnsw_from=1000, threads=1)
    index, exact = SegmentedIndex.open(tmp_path / "x.faiss"), ExactIndex(DIMS)
    assert index.view().sealed.kind == "hnsw"
    present = np.flatnonzero(vectors.any(axis=1))
    exact.add(present, vectors[present])
    for gone in (index, exact):
        gone.remove(np.arange(0, 6000, 50))
    allowed = None if part == 1 else np.arange(6000) < part * 6000
    for k in (10, 100):
        found, truth = index.search(queries, k, allowed), exact.search(queries, k, allowed)
        assert recall(found[1], truth[1]) >= 0.98
        same = found[1] == truth[1]
        np.testing.assert_array_equal(found[0][same], truth[0][same])


def test_a_filter_far_from_the_query_finds_the_same_rows(tmp_path, rng, monkeypatch):
    """What passes lies on the other side: a beam around the query meets none of it, or only a few by
    chance.
    """
    monkeypatch.setattr(segments, "STEP_PRICE", 0)
    vectors = clustered(rng, 4000)
    write_sealed(tmp_path / "x.faiss", vectors, hnsw_from=1000, threads=1)
    index, exact = SegmentedIndex.open(tmp_path / "x.faiss"), ExactIndex(DIMS)
    exact.add(np.arange(4000), vectors)
    for query in clustered(rng, 20):
        allowed = vectors @ query < np.quantile(vectors @ query, 0.4)
        found, truth = index.search(query, 20, allowed), exact.search(query, 20, allowed)
        np.testing.assert_array_equal(found[1], truth[1])


def test_rows_without_a_vector_keep_their_place_and_are_never_found(tmp_path, rng):
    vectors = unit(rng, 50, DIMS)
    vectors[[0, 20, 49]] = 0
    vectors[7, 0] = 0  # one zero does not make a missing vector
    vectors[7] /= np.linalg.norm(vectors[7])
    for hnsw_from in (1, 1000):
        write_sealed(tmp_path / "x.faiss", vectors, hnsw_from=hnsw_from)
        index = SegmentedIndex.open(tmp_path / "x.faiss")
        assert len(index) == 47
        scores, rows = index.search(-vectors[[1, 7]], 50)
        assert not np.isin(rows, [0, 20, 49]).any()
        assert (scores[:, :47] > -np.inf).all()
        assert index.search(vectors[7], 1)[1] == 7
        assert np.isnan(index.vectors([0, 20, 49])).all()
        index.add([20], vectors[1:2])
        assert index.search(vectors[1], 2)[1].tolist() == [[1, 20]]


@pytest.mark.parametrize("hnsw_from", [1, 1000])
def test_the_file_is_mapped_and_not_copied(tmp_path, rng, hnsw_from):
    path = tmp_path / "mapped.faiss"
    vectors = unit(rng, 500, DIMS)
    write_sealed(path, vectors, hnsw_from=hnsw_from)
    segment = SealedSegment(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    np.testing.assert_array_equal(segment.stored, vectors)
    with pytest.raises(ValueError, match="read-only"):
        segment.stored[0, 0] = 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["mapped.faiss"]


def test_duplicates_beyond_k_do_not_push_out_the_smaller_rows(tmp_path, rng):
    """FAISS fetches an arbitrary choice of equals: the exact scan has to look further."""
    vectors = np.repeat(unit(rng, 3, DIMS), 400, axis=0)
    write_sealed(tmp_path / "x.faiss", vectors)
    rows = SegmentedIndex.open(tmp_path / "x.faiss").search(vectors[[0, 400, 800]], 5)[1]
    assert rows.tolist() == [[0, 1, 2, 3, 4], [400, 401, 402, 403, 404], [800, 801, 802, 803, 804]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.full((3, 4), np.nan), "finite"),
        (np.ones((3, 4)), "norm 1; number 0 has 2"),
        (np.zeros((0, 4)), "not empty"),
        (np.ones(4), "shape"),
    ],
)
def test_writes_unit_vectors_or_nothing(tmp_path, vectors, message):
    with pytest.raises(ValueError, match=message):
        write_sealed(tmp_path / "x.faiss", vectors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hnsw_from", [1, 1000])
def test_a_damaged_file_is_refused(tmp_path, rng, hnsw_from):
    path = tmp_path / "x.faiss"
    write_sealed(path, unit(rng, 40, 8), hnsw_from=hnsw_from)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 30):
        path.write_bytes(whole[:length])
        with pytest.raises(SegmentError, match="publish again") as caught:
            SealedSegment(path)
        assert caught.value.code == "segment_damaged"
    path.unlink()
    with pytest.raises(SegmentError, match=r"x\.faiss cannot be read"):
        SealedSegment(path)


@pytest.mark.parametrize("description", ["Flat", "HNSW8", "IVF2,Flat"])
def test_an_index_of_another_kind_is_refused(tmp_path, rng, description):
    metric = faiss.METRIC_INNER_PRODUCT if description.startswith("IVF") else faiss.METRIC_L2
    other = faiss.index_factory(8, description, metric)
    other.train(unit(rng, 100, 8))
    other.add(unit(rng, 100, 8))
    faiss.write_index(other, str(tmp_path / "other.faiss"))
    with pytest.raises(SegmentError, match="no inner-product index of a kind that is written here"):
        SealedSegment(tmp_path / "other.faiss")


def test_writing_leaves_the_number_of_threads_as_it_was(tmp_path, rng):
    before = faiss.omp_get_max_threads()
    write_sealed(tmp_path / "x.faiss", unit(rng, 40, 8), threads=3)
    assert faiss.omp_get_max_threads() == before
