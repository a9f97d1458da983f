"""The sealed segment: what is written, mapped, refused, and how near HNSW comes to the truth."""

import os
from pathlib import Path

import faiss
import numpy as np
import pytest
from index_examples import unit

from index.search import segmentfile, segments
from index.search.exact import ExactIndex
from index.search.segmented import SegmentedIndex
from index.search.segments import SealedSegment, SegmentError, write_sealed

DIMS = 32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def clustered(rng: np.random.Generator, n: int) -> np.ndarray:
    """Unit vectors around 40 centres, as music lies."""
    vectors = unit(rng, 40, DIMS)[rng.integers(0, 40, n)] + 0.7 * unit(rng, n, DIMS)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.isin(b[b >= 0], a).mean() for a, b in zip(found, truth, strict=True)]))


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("price", [0, segments.STEP_PRICE])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.1, 0.01])
def test_nearly_all_that_is_there_is_recalled(tmp_path, rng, monkeypatch, kind, part, price):
    monkeypatch.setattr(segments, "STEP_PRICE", price)
    monkeypatch.setattr(segments, "IVF_PROBES", 30)  # of 150
    vectors, queries = clustered(rng, 6000), clustered(rng, 50)
    vectors[rng.choice(6000, 300, replace=False)] = 0  # tracks without a vector sit in the graph, too
    write_sealed(tmp_path / "x.faiss", vectors, kind=kind, threads=1)
    index, exact = SegmentedIndex.open(tmp_path / "x.faiss"), ExactIndex(DIMS)
    assert index.view().sealed.kind == kind
    present = np.flatnonzero(vectors.any(axis=1))
    exact.add(present, vectors[present])
    for gone in (index, exact):
        gone.remove(np.arange(0, 6000, 50))
    allowed = None if part == 1 else rng.permutation(6000) < part * 6000
    for k in (10, 100):
        found, truth = index.search(queries, k, allowed), exact.search(queries, k, allowed)
        assert recall(found[1], truth[1]) >= (0.95 if kind == "ivf" and k == 100 else 0.98)
        same = found[1] == truth[1]
        np.testing.assert_array_equal(found[0][same], truth[0][same])


@pytest.mark.parametrize("part", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("kind", ["exact", "scan"])
def test_a_scan_recalls_everything(tmp_path, rng, kind, part):
    """Also among near duplicates, which float16 takes for equal, and under queries of any norm."""
    vectors = unit(rng, 100, DIMS)[rng.integers(0, 100, 4000)] + 10.0 ** rng.uniform(-8, -1, (4000, 1)) * unit(
        rng, 4000, DIMS
    )
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    write_sealed(tmp_path / "x.faiss", vectors, kind=kind)
    index, exact = SegmentedIndex.open(tmp_path / "x.faiss"), ExactIndex(DIMS)
    exact.add(np.arange(4000), vectors)
    allowed = None if part == 1 else rng.random(4000) < part
    queries = vectors[::100] * 10.0 ** rng.uniform(-3, 3, (40, 1))
    for k in (1, 10, 300):
        for ours, theirs in zip(index.search(queries, k, allowed), exact.search(queries, k, allowed), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_float16_rounds_as_the_bound_says(rng):
    """The error of a scan's products, number by number: 2^-11 of it, 2^-25 where it is tiny."""
    numbers = (10.0 ** rng.uniform(-9, 0, (1000, DIMS)) * rng.choice([-1, 1], (1000, DIMS))).astype(np.float32)
    codec = faiss.IndexScalarQuantizer(DIMS, faiss.ScalarQuantizer.QT_fp16)
    back = codec.sa_decode(codec.sa_encode(numbers)).astype(np.float64)
    assert (np.abs(back - numbers) <= np.maximum(2.0**-11 * np.abs(numbers), 2.0**-25)).all()


def test_a_gpu_scans_what_no_filter_thins_out(tmp_path, rng, monkeypatch):
    """A CPU index stands for the GPU: what is certain is only who is asked what."""
    asked = []

    class Copy:
        def __init__(self, storage):
            self.storage = storage

        def search(self, queries, k):
            asked.append(k)
            return self.storage.search(queries, k)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", Copy, raising=False)
    vectors = unit(rng, 5000, DIMS)
    write_sealed(tmp_path / "x.faiss", vectors)
    index, exact = SegmentedIndex.open(tmp_path / "x.faiss"), ExactIndex(DIMS)
    exact.add(np.arange(5000), vectors)
    half = rng.random(5000) < 0.5
    for k, allowed in ((10, None), (10, half), (3000, None)):
        for ours, theirs in zip(
            index.search(vectors[3], k, allowed), exact.search(vectors[3], k, allowed), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert asked == [18]


def test_the_kind_goes_by_the_number_of_vectors(tmp_path, rng):
    for count, kind in ((99, "scan"), (100, "hnsw")):
        write_sealed(tmp_path / "x.faiss", unit(rng, count, DIMS), hnsw_from=100)
        assert SealedSegment(tmp_path / "x.faiss").kind == kind


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


@pytest.mark.parametrize("kind", ["exact", "scan", "hnsw", "ivf"])
def test_the_file_is_mapped_and_not_copied(tmp_path, rng, kind):
    path = tmp_path / "mapped.faiss"
    vectors = unit(rng, 500, DIMS)
    write_sealed(path, vectors, kind=kind)
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


@pytest.mark.parametrize("kind", ["exact", "scan", "hnsw", "ivf"])
def test_a_damaged_file_is_refused(tmp_path, rng, kind):
    path = tmp_path / "x.faiss"
    write_sealed(path, unit(rng, 40, 8), kind=kind)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 17, len(whole) // 30):  # of the last 17 bytes see the next test
        path.write_bytes(whole[:length])
        with pytest.raises(SegmentError, match="publish again") as caught:
            SealedSegment(path)
        assert caught.value.code == "segment_damaged"
    path.unlink()
    with pytest.raises(SegmentError, match=r"x\.faiss cannot be read"):
        SealedSegment(path)


def test_what_the_end_of_the_file_says_is_checked(tmp_path, rng, monkeypatch):
    """Files of FAISS itself, and of the first releases, end with the index."""
    path, vectors = tmp_path / "x.faiss", unit(rng, 40, 8)
    vectors[[3, 39]] = 0
    write_sealed(path, vectors)
    whole = path.read_bytes()
    present = vectors.any(axis=1)
    endings = [whole[:-length] for length in range(1, 18)]
    endings += [whole[:-place] + bytes([whole[-place] ^ 1]) + whole[len(whole) - place + 1 :] for place in range(1, 18)]
    for ending in endings:
        path.write_bytes(ending)
        np.testing.assert_array_equal(SealedSegment(path).present, present)
    path.write_bytes(whole)
    monkeypatch.setattr("index.search.segmentfile.np.flatnonzero", None)  # nobody looks at the vectors then
    np.testing.assert_array_equal(SealedSegment(path).present, present)


@pytest.mark.parametrize("description", ["Flat", "HNSW8", "IVF2,Flat", "SQ8,RFlat", "SQfp16"])
def test_an_index_of_another_kind_is_refused(tmp_path, rng, description):
    metric = faiss.METRIC_INNER_PRODUCT if "," in description or "SQ" in description else faiss.METRIC_L2
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


@pytest.mark.parametrize("kind", ["exact", "scan", "hnsw", "ivf"])
@pytest.mark.parametrize("lost", [1, 1000])
def test_an_index_whose_end_found_no_room_is_not_written(tmp_path, rng, monkeypatch, kind, lost):
    """FAISS says nothing of it: the last of a file is written as it is closed. Our own part may find room again."""
    writing = segmentfile.faiss.write_index

    def cut(index, name):
        writing(index, name)
        os.truncate(name, os.path.getsize(name) - lost)

    monkeypatch.setattr(segmentfile.faiss, "write_index", cut)
    with pytest.raises(OSError, match="no space left"):
        write_sealed(tmp_path / "a.faiss", unit(rng, 20_000, 4), kind=kind, threads=1)
    assert not list(tmp_path.iterdir())
