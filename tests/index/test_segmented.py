"""Sealing, swapping and reopening: whatever happens to the segments, the answers are those of the exact index."""

import json
import logging
import threading
import time
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from index_examples import unit

from index.search import segmented
from index.search.exact import ExactIndex
from index.search.parts import due
from index.search.segmented import SegmentedIndex
from index.search.segmentfile import sealed_index
from index.search.segments import SegmentError, write_sealed

DIMS = 8
ROWS = 48


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1893)


def pool() -> np.ndarray:
    """Vectors with ties, near ties that float16 cannot tell apart, and plain ones."""
    rng = np.random.default_rng(3)
    some = unit(rng, 12, DIMS)
    close = some[:4, None] + 1e-5 * rng.normal(size=(4, 4, DIMS))
    close = close / np.linalg.norm(close, axis=-1, keepdims=True)
    return np.concatenate([some, close.reshape(-1, DIMS), np.eye(DIMS), -np.eye(DIMS)]).astype(np.float32)


POOL = pool()
rows_drawn = st.lists(st.integers(0, ROWS - 1), max_size=8, unique=True)
vectors_drawn = st.lists(st.integers(0, len(POOL) - 1), min_size=8, max_size=8)


def whole(index, rows: int = ROWS) -> np.ndarray:
    return index.vectors(np.arange(rows))


class SameAnswers(RuleBasedStateMachine):
    """The specification and an index with a state folder, through everything that can happen to both."""

    directory: Path
    operations = 0

    @initialize(sealed=st.lists(st.none() | st.integers(0, len(POOL) - 1), min_size=1, max_size=32))
    def start(self, sealed):
        self.room = Path(mkdtemp(dir=self.directory))
        vectors = np.array([np.zeros(DIMS) if n is None else POOL[n] for n in sealed], dtype=np.float32)
        present = np.flatnonzero(vectors.any(axis=1))
        self.exact = ExactIndex(DIMS)
        self.exact.add(present, vectors[present])
        self.base = self.room / "0.faiss"
        write_sealed(self.base, vectors)
        self.index = self.opened()
        self.durable, self.since = whole(self.exact), []
        self.earlier = []

    def opened(self) -> SegmentedIndex:
        return SegmentedIndex.open(self.base, self.room / "state", seal_at=None)

    def both(self, name, *arguments):
        type(self).operations += 1
        self.since.append((name, arguments))
        assert getattr(self.exact, name)(*arguments) == getattr(self.index, name)(*arguments)

    @rule(rows=rows_drawn, vectors=vectors_drawn)
    def add(self, rows, vectors):
        self.both("add", np.array(rows, dtype=int), POOL[vectors[: len(rows)]])

    @rule(rows=rows_drawn)
    def remove(self, rows):
        self.both("remove", np.array(rows, dtype=int))

    @rule(query=st.integers(0, len(POOL) - 1) | st.none(), k=st.integers(1, 60), share=st.none() | st.floats(0, 1))
    def search(self, query, k, share):
        type(self).operations += 1
        allowed = None if share is None else np.random.default_rng(k).random(ROWS - 5) < share
        queries = np.zeros(DIMS) if query is None else POOL[query] * np.float32(3)
        for ours, expected in zip(
            self.index.search(queries, k, allowed), self.exact.search(queries, k, allowed), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)

    @rule(query=st.integers(0, len(POOL) - 1))
    def remember(self, query):
        view = self.index.view()
        self.earlier.append((view, POOL[query], self.exact.search(POOL[query], 30), whole(view)))

    @rule()
    def look_back(self):
        type(self).operations += 1
        for view, query, expected, vectors in self.earlier[-3:]:
            for ours, theirs in zip(view.search(query, 30), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(whole(view), vectors)

    def while_building(self, rows, gone, vectors, act):
        """Let rows be added and removed while a segment is built: an undisturbed seal would not notice."""
        made = self.index._made

        def meanwhile(*arguments):
            self.add(rows, vectors)
            self.remove(gone)
            return made(*arguments)

        self.durable, self.since = whole(self.exact), []
        type(self).operations += 1
        self.index._made = meanwhile
        try:
            return act()
        finally:
            del self.index._made

    @rule(compact=st.booleans(), rows=rows_drawn, gone=rows_drawn, vectors=vectors_drawn)
    def seal(self, compact, rows, gone, vectors):
        fresh = len(self.index.view().fresh)
        receipt = self.while_building(rows, gone, vectors, lambda: self.index.seal(compact=compact))
        assert receipt.sealed == fresh
        assert all(len(part.segment) for part in self.index.view().parts)  # nothing is left unsealed
        assert not compact or len(self.index.view().parts) <= 2

    @rule(dropped=rows_drawn, rows=rows_drawn, gone=rows_drawn, vectors=vectors_drawn)
    def swap(self, dropped, rows, gone, vectors):
        """The new file may lack rows, and have others that the index does not have."""
        content = np.nan_to_num(whole(self.exact))
        content[dropped] = POOL[vectors[: len(dropped)]]
        self.base = self.base.with_name(f"{int(self.base.stem) + 1}.faiss")
        write_sealed(self.base, content[: ROWS - len(dropped)])
        self.while_building(rows, gone, vectors, lambda: self.index.swap(self.base))
        assert self.index.view().sealed.path == self.base

    @rule()
    def reopen(self):
        """What was not sealed is the ledger's to bring back."""
        type(self).operations += 1
        self.index = self.opened()
        np.testing.assert_array_equal(whole(self.index), self.durable)
        for name, arguments in self.since:
            getattr(self.index, name)(*arguments)

    @invariant()
    def holds(self):
        assert len(self.index) == len(self.exact)
        np.testing.assert_array_equal(whole(self.index), whole(self.exact))

    def teardown(self):
        if hasattr(self, "room"):
            rmtree(self.room)


@pytest.mark.parametrize("examples", [40, pytest.param(350, marks=pytest.mark.long)])
def test_any_history_gives_the_same_answers(tmp_path, examples, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)  # nobody pulls the plug here
    machine = type("Machine", (SameAnswers,), {"directory": tmp_path, "operations": 0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    print(f"{machine.operations} operations")
    assert machine.operations > 30 * examples


# Sealing by itself


def opened(directory: Path, vectors: np.ndarray, state: str | None = "state", **options) -> SegmentedIndex:
    path = directory / "base.faiss"
    if not path.exists():
        write_sealed(path, vectors)
    return SegmentedIndex.open(path, None if state is None else directory / state, **options)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("state", ["state", None])
def test_what_is_fresh_is_sealed_in_time_while_everything_goes_on(tmp_path, rng, state):
    vectors = unit(rng, 3000, DIMS)
    index, exact = opened(tmp_path, vectors[:100], state, seal_at=200), ExactIndex(DIMS)
    exact.add(np.arange(100), vectors[:100])
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            view = index.view()
            rows = view.search(vectors[0], 5000)[1][0]
            rows = rows[rows >= 0]
            if len(rows) != len(view) or len(np.unique(rows)) != len(rows) or np.isnan(view.vectors(rows)).any():
                failures.append(rows)

    reader = threading.Thread(target=read)
    reader.start()
    for start in range(100, 3000, 20):
        block = np.arange(start, start + 20)
        again, gone = rng.choice(start, 5, replace=False), rng.choice(start, 5, replace=False)
        for one in (index, exact):
            one.add(block, vectors[block])
            one.add(again, vectors[again - 50])
            one.remove(gone)
    wait_for(lambda: index.view().fresh.size < 200)
    stop.set()
    reader.join(timeout=60)
    assert not failures
    index.seal()
    assert len(index.view().parts) < 9
    np.testing.assert_array_equal(index.vectors(np.arange(3000)), exact.vectors(np.arange(3000)))
    for ours, theirs in zip(index.search(vectors[:20], 50), exact.search(vectors[:20], 50), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if state:
        again = opened(tmp_path, vectors, state)
        np.testing.assert_array_equal(again.vectors(np.arange(3000)), exact.vectors(np.arange(3000)))


def test_neither_searches_nor_additions_wait_for_a_segment_to_be_built(tmp_path, rng, monkeypatch):
    vectors = unit(rng, 100, DIMS)
    index = opened(tmp_path, vectors[:50])
    index.add(np.arange(50, 90), vectors[50:90])
    building, go_on = threading.Event(), threading.Event()

    def slow(*arguments, **named):
        building.set()
        assert go_on.wait(60)
        return sealed_index(*arguments, **named)

    monkeypatch.setattr(segmented, "sealed_index", slow)
    sealing = threading.Thread(target=index.seal)
    sealing.start()
    assert building.wait(60)
    index.add([90, 50], vectors[[90, 91]])
    assert index.remove([51, 0, 99]) == 2
    assert index.search(vectors[90], 1)[1] == 90
    assert index.search(vectors[60], 1)[1] == 60
    assert len(index) == 89
    go_on.set()
    sealing.join(60)
    assert len(index) == 89
    assert len(index.view().fresh) == 2
    np.testing.assert_array_equal(index.vectors([50, 60, 90]), vectors[[91, 60, 90]])
    assert np.isnan(index.vectors([0, 51])).all()


def test_removed_vectors_leave_memory_and_files(tmp_path, rng):
    vectors = unit(rng, 400, DIMS)
    index = opened(tmp_path, vectors[:1])
    index.add(np.arange(1, 300), vectors[1:300])
    index.remove([298, 299])
    receipt = index.seal()
    assert (receipt.sealed, receipt.purged) == (297, 2)
    assert receipt.seconds > 0
    index.remove(np.arange(1, 50))  # less than a quarter of them
    index.add([300], vectors[300:301])
    receipt = index.seal()
    assert (receipt.sealed, receipt.purged) == (1, 0)
    assert [part.size for part in index.view().parts] == [1, 297, 1]
    receipt = index.seal(compact=True)
    assert (receipt.sealed, receipt.purged) == (0, 49)
    assert [part.size for part in index.view().parts] == [1, 249]
    content = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert [vectors[row].tobytes() in content for row in (1, 49, 50, 300, 299)] == [False, False, True, True, False]
    index.remove(np.arange(50, 200))
    assert index.seal().purged == 150  # more than a quarter
    index.remove(np.arange(400))
    assert index.seal().purged == 99
    assert len(index) == 0
    assert sorted(path.suffix for path in (tmp_path / "state").iterdir()) == [".json", ".npy"]
    assert index.search(vectors[:2], 3)[1].tolist() == [[-1] * 3] * 2


def test_segments_stay_few_and_a_vector_is_rewritten_seldom(tmp_path, rng):
    index = opened(tmp_path, unit(rng, 1, DIMS), None, seal_at=None)
    written = 0
    for turn in range(200):
        index.add(np.arange(100 + 10 * turn, 110 + 10 * turn), unit(rng, 10, DIMS))
        before = {id(part.segment) for part in index.view().parts}
        index.seal()
        written += sum(part.size for part in index.view().parts if id(part.segment) not in before)
        sizes = sorted((len(part) for part in index.view().parts[1:]), reverse=True)
        assert len(sizes) <= np.log2(turn + 1) + 1
        assert all(size > sum(sizes[place + 1 :]) for place, size in enumerate(sizes))
    assert written <= 2000 * (np.log2(200) + 1)
    assert due(index.view().parts[1:], compact=False) == []


def test_large_segments_beside_a_graph_are_graphs(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(segmented, "HNSW_BESIDE", 100)
    write_sealed(tmp_path / "base.faiss", unit(rng, 50, DIMS), kind="hnsw", threads=1)
    index = opened(tmp_path, np.empty(0))
    for rows, kinds in ((np.arange(100, 160), ["hnsw", "scan"]), (np.arange(160, 220), ["hnsw", "hnsw"])):
        index.add(rows, unit(rng, 60, DIMS))
        index.seal()
        assert [part.segment.kind for part in index.view().parts] == kinds
    assert opened(tmp_path, np.empty(0)).view().parts[1].segment.kind == "hnsw"


def test_what_cannot_be_written_is_served_from_memory_and_tried_again(tmp_path, rng, monkeypatch, caplog):
    vectors = unit(rng, 60, DIMS)
    index = opened(tmp_path, vectors[:20], seal_at=10)

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("index.search.statefolder.save_index", full)
        index.add(np.arange(20, 30), vectors[20:30])
        wait_for(lambda: caplog.records)
        with pytest.raises(OSError, match="no space"):
            index.seal()
    assert caplog.record_tuples[0][1:] == (
        logging.ERROR, "sealing failed, and is tried again after 10 more vectors: no space left on device"
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("index.search.statefolder._write", full)
        with pytest.raises(OSError, match="no space"):
            index.seal()
    index.add([30], vectors[30:31])
    assert index.search(vectors[25], 1)[1] == 25
    assert index.seal().sealed == 11
    assert sorted(path.suffix for path in (tmp_path / "state").iterdir()) == [".faiss", ".json", ".npy", ".npy"]
    np.testing.assert_array_equal(opened(tmp_path, vectors).vectors(np.arange(31)), vectors[:31])


def test_an_addition_holds_though_no_thread_can_be_started(tmp_path, rng, monkeypatch, caplog):
    vectors = unit(rng, 40, DIMS)
    index = opened(tmp_path, vectors[:20], seal_at=10)

    def none_left(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        index.add(np.arange(20, 30), vectors[20:30])
    assert "can't start new thread" in caplog.text
    assert index.search(vectors[25], 1)[1] == 25
    index.add([30], vectors[30:31])
    wait_for(lambda: not index.view().fresh.size and len(index.view().parts) == 2)
    np.testing.assert_array_equal(index.vectors(np.arange(31)), vectors[:31])


def test_old_files_that_cannot_be_deleted_do_no_harm(tmp_path, rng, monkeypatch):
    vectors = unit(rng, 40, DIMS)
    index = opened(tmp_path, vectors[:20], seal_at=None)
    index.add(np.arange(20, 30), vectors[20:30])
    index.seal()
    index.add(np.arange(30, 40), vectors[30:])
    deleting, left = Path.unlink, [1]

    def some(path, missing_ok=False):
        if path.exists():
            if not left:
                raise PermissionError("not permitted")
            left.pop()
        deleting(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", some)
        index.seal()
    index.remove([35])
    index.seal()
    found = opened(tmp_path, vectors).vectors(np.arange(40))
    np.testing.assert_array_equal(found[:35], vectors[:35])


# The state folder


@pytest.fixture
def state(tmp_path, rng) -> Path:
    index = opened(tmp_path, unit(rng, 20, DIMS), seal_at=None)
    for rows in (np.arange(20, 50), np.arange(50, 60)):
        index.add(rows, unit(rng, len(rows), DIMS))
        index.seal()
    index.remove([3, 33])
    index.seal()
    assert len(index.view().parts) == 3
    return tmp_path / "state"


def test_any_flipped_bit_is_noticed(state, rng):
    refused = 0
    for path in sorted(state.iterdir()):
        whole = path.read_bytes()
        places = range(len(whole)) if path.suffix == ".json" else rng.choice(len(whole), 40)
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(SegmentError, match="delete the folder, and what was added") as caught:
                opened(state.parent, np.empty(0))
            assert str(state) in caught.value.detail
            assert caught.value.code == "segment_damaged"
            refused += 1
        for short in (b"", whole[: len(whole) // 2]):
            path.write_bytes(short)
            with pytest.raises(SegmentError):
                opened(state.parent, np.empty(0))
        if path.suffix != ".json":
            path.unlink()
            with pytest.raises(SegmentError, match=rf"{path.name} cannot be read \(No such file"):
                opened(state.parent, np.empty(0))
        path.write_bytes(whole)
    assert refused > 500
    assert len(opened(state.parent, np.empty(0))) == 58


def test_a_state_goes_with_one_file(state, rng):
    write_sealed(state.parent / "other.faiss", unit(rng, 20, DIMS))
    with pytest.raises(SegmentError, match="goes with another file than"):
        SegmentedIndex.open(state.parent / "other.faiss", state)


def test_a_state_of_a_later_format_is_refused(state):
    path = state / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(SegmentError, match="of format 2, not 1"):
        opened(state.parent, np.empty(0))


def test_what_a_crash_left_behind_is_swept_up_and_nothing_else(state):
    kept = ["notes.txt", "77.txt", "old.faiss"]
    for name in ("99.faiss", "99.rows.npy", "98.live.npy", ".99.faiss.part", ".manifest.json.part", *kept):
        (state / name).write_bytes(b"junk")
    index = opened(state.parent, np.empty(0))
    index.seal()
    names = {path.name for path in state.iterdir()}
    assert set(kept) < names
    assert not names & {"99.faiss", "99.rows.npy", "98.live.npy", ".99.faiss.part", ".manifest.json.part"}
    assert len(opened(state.parent, np.empty(0))) == len(index) == 58


def test_sealing_breaks_off_anywhere_and_leaves_one_of_two_states(state, rng, monkeypatch):
    """Each flush to the disk that a seal does fails once; only after the last one has all been written."""
    outcomes = []
    while not outcomes or outcomes[-1] != "sealed":
        left, before = len(outcomes), opened(state.parent, np.empty(0), seal_at=None)
        index = opened(state.parent, np.empty(0), seal_at=None)
        index.add(np.arange(60, 80), unit(rng, 20, DIMS))

        def failing(_):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("unplugged")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", failing)
            try:
                index.seal()
                outcomes.append("sealed")
            except OSError:
                outcomes.append("before")
        found = whole(opened(state.parent, np.empty(0)), 80)
        if outcomes[-1] == "before" and not np.array_equal(found, whole(before, 80), equal_nan=True):
            outcomes[-1] = "written"
        if outcomes[-1] != "before":
            np.testing.assert_array_equal(found, whole(index, 80))
    assert outcomes == ["before"] * (len(outcomes) - 2) + ["written", "sealed"]
    assert len(outcomes) > 5


def test_a_file_of_another_space_is_not_swapped_in(tmp_path, rng):
    index = opened(tmp_path, unit(rng, 20, DIMS))
    write_sealed(tmp_path / "wide.faiss", unit(rng, 20, 2 * DIMS))
    with pytest.raises(SegmentError, match="length 16, not 8"):
        index.swap(tmp_path / "wide.faiss")
    assert len(index) == 20
