"""Milvus (Milvus Lite, in this process) keeps what every VectorIndex keeps; and what is its own."""

import inspect
import itertools

import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="the extra milvus is not installed: pip install 'debut[milvus]'")
pytest.importorskip("milvus_lite", reason="the extra milvus is not installed: pip install 'debut[milvus]'")

import test_vector_index as suite
from index_examples import unit
from test_vector_index import DIMS, SEALED, exact, rng

from index import milvus
from index.milvus import Milvus, MilvusError, MilvusSegment, collection_name
from index.segmented import SegmentedIndex
from index.segments import write_sealed

assert rng  # the suite's generator
NUMBER = itertools.count()

# The suite, with `make` from here.
for _name, _test in vars(suite).items():
    if _name.startswith("test_") and "make" in inspect.signature(_test).parameters:
        globals()[_name] = _test


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Milvus:
    return Milvus(str(tmp_path_factory.mktemp("milvus") / "lite.db"))


@pytest.fixture(params=["whole", "+fresh"])
def make(request, server, tmp_path):
    def build(vectors: np.ndarray) -> SegmentedIndex:
        count = max(1, len(vectors) // 2) if request.param == "+fresh" else len(vectors)
        write_sealed(tmp_path / "x.faiss", vectors[:count], kind="exact")
        index = server.open(tmp_path / "x.faiss", f"t{next(NUMBER)}")
        index.add(np.arange(count, len(vectors)), vectors[count:])
        return index

    return build


@pytest.fixture
def opened(server, tmp_path, rng):
    """An index on Milvus and its vectors; some rows have none."""
    vectors = unit(rng, SEALED, DIMS)
    vectors[[3, 77]] = 0
    write_sealed(tmp_path / "x.faiss", vectors, kind="exact")
    return server.open(tmp_path / "x.faiss", f"t{next(NUMBER)}"), vectors


def asked(index: SegmentedIndex, monkeypatch) -> list[int]:
    """The limits of all searches that reach Milvus from now on."""
    remote = index.view().sealed._remote
    limits: list[int] = []
    nearest = remote.nearest
    monkeypatch.setattr(remote, "nearest", lambda query, limit: (limits.append(limit), nearest(query, limit))[1])
    return limits
