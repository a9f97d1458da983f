"""What every VectorIndex keeps: one suite, run on the exact index and on segmented ones, flat and HNSW."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from index_examples import unit

from index.search import segments
from index.search.exact import ExactIndex
from index.search.segmented import SegmentedIndex
from index.search.segmentfile import Kind
from index.search.segments import write_sealed
from index.search.vectors import VectorIndex

DIMS = 16
SEALED = 300
Make = Callable[[np.ndarray], VectorIndex]


def reference(stored: dict[int, np.ndarray], queries: np.ndarray, k: int, allowed: np.ndarray | None):
    """The specification in float64: inner product, ties by the smaller row, -inf and -1 for what is
    missing.
    """
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1)
    passing = [row for row in stored if allowed is None or (row < len(allowed) and allowed[row])]
    for place, query in enumerate(queries.astype(np.float64)):
        products = [(-np.float32((stored[row].astype(np.float64) * query).sum()), row) for row in passing]
        for rank, (negative, row) in enumerate(sorted(products)[:k]):
            scores[place, rank], rows[place, rank] = -negative, row
    return scores, rows


def exact(vectors: np.ndarray) -> ExactIndex:
    index = ExactIndex(vectors.shape[1])
    index.add(np.arange(len(vectors)), vectors)
    return index


def segmented(path: Path, vectors: np.ndarray, kind: Kind, more: str) -> SegmentedIndex:
    """The first half in the sealed segment, the others fresh or, but for ten, in one that was sealed later."""
    count = max(1, len(vectors) // 2) if more else len(vectors)
    write_sealed(path, vectors[:count], kind=kind, threads=1)
    index = SegmentedIndex.open(path)
    for stop in (max(count, len(vectors) - 10), len(vectors)):
        index.add(np.arange(count, stop), vectors[count:stop])
        count = stop
        if more == "sealed":
            index.seal()
            more = "fresh"
    return index


KINDS = ["reference", "exact", "scan", "hnsw", "ivf", "exact+fresh", "scan+sealed", "hnsw+fresh", "hnsw+sealed"]


@pytest.fixture(params=KINDS)
def make(request, tmp_path, monkeypatch) -> Make:
    kind, _, more = request.param.partition("+")
    monkeypatch.setattr(segments, "STEP_PRICE", 0)  # walk the graph, though it is small

    def build(vectors: np.ndarray) -> VectorIndex:
        return exact(vectors) if kind == "reference" else segmented(tmp_path / "x.faiss", vectors, kind, more)

    return build


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250301)


def test_finds_what_the_specification_finds(make, rng):
    vectors, queries = unit(rng, SEALED, DIMS), rng.normal(size=(7, DIMS)).astype(np.float32)
    index = make(vectors)
    stored = dict(enumerate(vectors))
    half = rng.random(SEALED) < 0.5
    for allowed in (None, half, half[:100], np.zeros(SEALED, dtype=bool), np.ones(2 * SEALED, dtype=bool)):
        for k in (1, 10, SEALED + 5):
            scores, rows = index.search(queries, k, allowed)
            expected = reference(stored, queries, k, allowed)
            assert scores.dtype == np.float32
            assert rows.dtype == np.int64
            np.testing.assert_array_equal(rows, expected[1])
            np.testing.assert_array_equal(scores, expected[0])


def test_a_score_does_not_depend_on_the_batch(make, rng):
    vectors, queries = unit(rng, SEALED, DIMS), unit(rng, 40, DIMS)
    index = make(vectors)
    together = index.search(queries, 20)
    for place, query in enumerate(queries):
        alone = index.search(query, 20)
        np.testing.assert_array_equal(alone[0][0], together[0][place])
        np.testing.assert_array_equal(alone[1][0], together[1][place])


def test_equal_scores_come_in_the_order_of_rows(make, rng):
    few = unit(rng, 3, DIMS)
    vectors = few[rng.integers(0, 3, SEALED)]
    index = make(vectors)
    expected = reference(dict(enumerate(vectors)), few, 40, None)
    scores, rows = index.search(few, 40)
    np.testing.assert_array_equal(scores, expected[0])
    if not isinstance(index, SegmentedIndex) or index.view().sealed.kind != "hnsw":
        np.testing.assert_array_equal(rows, expected[1])
    for line in range(3):  # HNSW may miss a duplicate, but never disorders what it found
        assert (np.lexsort((rows[line], -scores[line])) == np.arange(40)).all()


def test_near_duplicates_are_ranked_by_their_precise_scores(make, rng):
    """They differ by less than BLAS and FAISS round by, which would order them by chance."""
    vectors = unit(rng, 1, DIMS) + 1e-7 * rng.normal(size=(SEALED, DIMS))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = unit(rng, 20, DIMS)
    index = make(vectors)
    scores, rows = index.search(queries, 5)
    expected = reference(dict(enumerate(vectors)), queries, 5, None)
    if (
        isinstance(index, SegmentedIndex) and index.view().sealed.kind == "hnsw"
    ):  # may miss some, but scores what it found
        np.testing.assert_allclose(scores, expected[0], atol=1e-6)
    else:
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(scores, expected[0])


def test_scores_are_the_same_in_any_blocks(make, rng, monkeypatch):
    vectors, queries = unit(rng, SEALED, DIMS), unit(rng, 5, DIMS)
    index = make(vectors)
    whole = index.search(queries, 100)
    monkeypatch.setattr("index.search.vectors._PRODUCTS_AT_ONCE", 1000)
    monkeypatch.setattr("index.search.exact._SCORES_AT_ONCE", 1000)
    for one, other in zip(whole, index.search(queries, 100), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_query_of_no_direction_is_as_near_to_all(make, rng):
    index = make(unit(rng, SEALED, DIMS))
    scores, rows = index.search(np.zeros(DIMS), 4)
    assert scores.tolist() == [[0, 0, 0, 0]]
    if isinstance(index, SegmentedIndex) and index.view().sealed.kind == "hnsw":  # any four will do
        assert (np.diff(rows) > 0).all()
    else:
        assert rows.tolist() == [[0, 1, 2, 3]]


def test_removed_rows_are_gone_and_can_come_back(make, rng):
    vectors = unit(rng, SEALED, DIMS)
    index = make(vectors)
    assert index.remove([5, 290, 5, 100_000]) == 2
    assert len(index) == SEALED - 2
    assert not np.isin(index.search(vectors[[5, 290]], SEALED)[1], [5, 290]).any()
    assert np.isnan(index.vectors([5, 290])).all()
    index.add([5, 290], vectors[[290, 5]])
    assert len(index) == SEALED
    assert index.search(vectors[[5, 290]], 1)[1].tolist() == [[290], [5]]
    np.testing.assert_array_equal(index.vectors([290, 4, 5]), vectors[[5, 4, 290]])


def test_adding_a_row_that_is_there_replaces_it(make, rng):
    vectors = unit(rng, SEALED, DIMS)
    index = make(vectors)
    fresh = unit(rng, 2, DIMS)
    index.add([0, 299], fresh)
    assert len(index) == SEALED
    np.testing.assert_array_equal(index.vectors([0, 299]), fresh)
    everything = np.sort(index.search(fresh[0], SEALED + 10)[1][0])
    np.testing.assert_array_equal(everything, [*[-1] * 10, *range(SEALED)])


def test_a_view_never_changes(make, rng):
    vectors, queries = unit(rng, SEALED, DIMS), unit(rng, 3, DIMS)
    index = make(vectors)
    view = index.view()
    before = view.search(queries, 50)
    index.remove(before[1][0, :20])
    index.add([0, 7, SEALED, SEALED + 1], unit(rng, 4, DIMS))
    index.remove(np.arange(SEALED // 2))
    after = view.search(queries, 50)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(view.vectors(np.arange(SEALED)), vectors)
    assert np.isnan(view.vectors([SEALED, SEALED + 1])).all()
    assert len(view) == SEALED
    assert len(index) == SEALED // 2 + 2 - np.isin(before[1][0, :20], np.arange(SEALED // 2, SEALED)).sum()


def test_a_filter_that_leaves_few_rows_still_gives_them_all(make, rng):
    vectors = unit(rng, SEALED, DIMS)
    index = make(vectors)
    allowed = np.zeros(SEALED, dtype=bool)
    allowed[[2, 3, 150, 299]] = True
    assert set(index.search(vectors[0], 10, allowed)[1][0].tolist()) == {2, 3, 150, 299, -1}


def test_k_results_whenever_k_rows_are_allowed(make, rng):
    """Also when nearly all vectors are the same, where an HNSW graph falls apart."""
    vectors = np.repeat(unit(rng, 2, DIMS), SEALED // 2, axis=0)
    index = make(vectors)
    index.remove(np.arange(0, SEALED, 3))
    allowed = rng.random(SEALED) < 0.7
    possible = int(allowed[np.arange(SEALED) % 3 != 0].sum())
    for k in (1, 50, possible, possible + 1):
        rows = index.search(unit(rng, 1, DIMS), k, allowed)[1][0]
        found = rows[rows >= 0]
        assert len(np.unique(found)) == len(found) == min(k, possible)
        assert allowed[found].all()
        assert (found % 3 != 0).all()


@pytest.mark.parametrize(
    ("rows", "vectors", "message"),
    [
        ([500], np.zeros((1, DIMS + 1)), "shape"),
        ([500], np.zeros(DIMS), "shape"),
        ([500], np.full((1, DIMS), np.nan), "finite"),
        ([500], np.full((1, DIMS), np.inf), "finite"),
        ([500], np.zeros((1, DIMS)), "norm 1"),
        ([500], np.ones((1, DIMS)), "norm 1"),
        ([500, 501], np.eye(DIMS)[:1], "2 rows were given for 1"),
        ([500, 500], np.eye(DIMS)[:2], "repeat"),
        ([-1], np.eye(DIMS)[:1], "negative"),
        ([0.5], np.eye(DIMS)[:1], "integers"),
        ([[500]], np.eye(DIMS)[:1], "integers"),
    ],
)
def test_refuses_what_it_cannot_hold_and_stays_as_it_was(make, rng, rows, vectors, message):
    index = make(unit(rng, 20, DIMS))
    with pytest.raises(ValueError, match=message):
        index.add(rows, vectors)
    assert len(index) == 20
    assert np.isnan(index.vectors([500, 501])).all()


def test_refuses_queries_that_cannot_be_answered(make, rng):
    index = make(unit(rng, 20, DIMS))
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        index.search(np.ones(DIMS), 0)
    with pytest.raises(ValueError, match=r"shape \[n, 16\], not \[1, 15\]"):
        index.search(np.ones(DIMS - 1), 3)
    with pytest.raises(ValueError, match="finite"):
        index.search(np.full(DIMS, np.nan), 3)


def test_a_search_waits_for_no_writer(make, rng):
    vectors = unit(rng, 50, DIMS)
    index = make(vectors)
    found: list[int] = []
    with index._writing:  # type: ignore[attr-defined]  # a writer that never ends
        reader = threading.Thread(target=lambda: found.append(int(index.search(vectors[3], 1)[1][0, 0])))
        reader.start()
        reader.join(timeout=20)
    assert found == [3]


def test_readers_see_whole_additions_and_no_removed_row(make, rng):
    """Vectors come and go ten at a time, all equal: a search for them must find ten or none."""
    base = unit(rng, 40, DIMS)
    index = make(base)
    stop, failures = threading.Event(), []
    signal = unit(rng, 1, DIMS)[0]

    def read() -> None:
        while not stop.is_set():
            scores, rows = index.search(signal, 25)
            near = rows[0][scores[0] > 0.999]
            if len(near) not in (0, 10) or len(np.unique(rows[0])) != len(rows[0]):
                failures.append(near)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(120):
        rows = np.arange(1000 + 10 * turn, 1010 + 10 * turn)
        index.add(rows, np.tile(signal, (10, 1)))
        assert index.remove(rows) == 10
    stop.set()
    for reader in readers:
        reader.join(timeout=20)
    assert not failures
    assert len(index) == 40


QUARTERS = [
    np.array(signs, dtype=np.float32) / 2 for signs in np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
] + [sign * axis for axis in np.eye(4, dtype=np.float32) for sign in (1, -1)]
"""Unit vectors whose inner products are exact in float32, and often equal."""

rows_drawn = st.lists(st.integers(0, 30), max_size=6, unique=True)


class SameAnswers(RuleBasedStateMachine):
    """Any order of additions, removals and searches: exact and segmented give the specification's answers."""

    directory: Path

    @initialize(sealed=st.lists(st.sampled_from([*QUARTERS, np.zeros(4, dtype=np.float32)]), min_size=1, max_size=24))
    def start(self, sealed):
        vectors = np.array(sealed)
        present = np.flatnonzero(vectors.any(axis=1))
        self.model = {int(row): vectors[row] for row in present}
        self.exact = ExactIndex(4)
        self.exact.add(present, vectors[present])
        self.indexes: list[VectorIndex] = [self.exact]
        for hnsw_from in (1000, 1):
            write_sealed(self.directory / "sealed.faiss", vectors, hnsw_from=hnsw_from, threads=1)
            self.indexes.append(SegmentedIndex.open(self.directory / "sealed.faiss"))
        self.earlier: list[tuple] = []

    @rule(rows=rows_drawn, data=st.data())
    def add(self, rows, data):
        vectors = [data.draw(st.sampled_from(QUARTERS)) for _ in rows]
        for index in self.indexes:
            index.add(np.array(rows, dtype=int), np.array(vectors, dtype=np.float32).reshape(-1, 4))
        self.model |= dict(zip(rows, vectors, strict=True))

    @rule(rows=rows_drawn)
    def remove(self, rows):
        gone = [row for row in rows if self.model.pop(row, None) is not None]
        for index in self.indexes:
            assert index.remove(np.array(rows, dtype=int)) == len(gone)

    @rule(
        query=st.tuples(*[st.integers(-2, 2)] * 4),
        k=st.integers(1, 40),
        filtered=st.none() | st.sets(st.integers(0, 40)),
    )
    def search(self, query, k, filtered):
        allowed = None if filtered is None else np.isin(np.arange(max(filtered, default=0)), list(filtered))
        queries = np.array([query], dtype=np.float32)
        expected = reference(self.model, queries, k, allowed)
        for index in self.indexes[:2]:
            scores, rows = index.search(queries, k, allowed)
            np.testing.assert_array_equal(rows, expected[1])
            np.testing.assert_array_equal(scores, expected[0])
        scores, rows = self.indexes[2].search(queries, k, allowed)  # HNSW: as many, of right scores, in order
        assert (rows >= 0).sum() == (expected[1] >= 0).sum()
        assert len(set(rows[0][rows[0] >= 0].tolist())) == (rows >= 0).sum()
        assert (np.lexsort((rows[0], -scores[0]))[: (rows >= 0).sum()] == np.arange((rows >= 0).sum())).all()
        for score, row in zip(scores[0], rows[0], strict=True):
            assert row < 0 or score == np.float32(self.model[row] @ queries[0])

    @rule()
    def remember(self):
        queries = np.eye(4, dtype=np.float32)
        self.earlier.append(tuple((view, *view.search(queries, 9)) for view in (i.view() for i in self.indexes)))

    @invariant()
    def holds(self):
        rows = np.arange(32)
        expected = np.array([self.model.get(row, np.full(4, np.nan)) for row in rows.tolist()])
        for index in self.indexes:
            assert len(index) == len(self.model)
            np.testing.assert_array_equal(index.vectors(rows), expected)

    def teardown(self):
        for views in getattr(self, "earlier", ()):
            for view, scores, rows in views:
                again = view.search(np.eye(4, dtype=np.float32), 9)
                np.testing.assert_array_equal(again[0], scores)
                np.testing.assert_array_equal(again[1], rows)


def test_any_history_gives_the_same_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "STEP_PRICE", 0)

    class Machine(SameAnswers):
        directory = tmp_path

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_dead_slots_are_given_back(rng):
    """A removed vector does not stay in memory for good."""
    index = exact(unit(rng, 3000, DIMS))
    index.remove(np.arange(2000))
    assert len(index.view().stored) == 1000
    np.testing.assert_array_equal(np.sort(index.search(np.ones(DIMS), 1000)[1][0]), np.arange(2000, 3000))
    index.add([1], unit(rng, 1, DIMS))
    assert len(index) == 1001


def test_adding_one_by_one_costs_the_same_at_any_size(rng):
    """Counts copies instead of seconds: doubling moves each vector about once in total."""
    index = ExactIndex(4)
    moved, block = 0, None
    for row in range(2000):
        index.add([row], [[1, 0, 0, 0]])
        base = index.view().stored.base
        if base is not block:
            moved, block = moved + row, base
    assert moved < 2 * 2000
