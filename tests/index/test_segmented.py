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

from index import segmented, segments
from index.exact import ExactIndex
from index.parts import due
from index.segmented import SegmentedIndex
from index.segments import SegmentError, write_sealed

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


def whole(index) -> np.ndarray:
    return index.vectors(np.arange(ROWS))


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


@pytest.mark.parametrize("examples", [60, pytest.param(600, marks=pytest.mark.long)])
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
