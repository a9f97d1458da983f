"""Milvus (Milvus Lite, in this process) keeps what every VectorIndex keeps; and what is its own."""

import gc
import importlib
import inspect
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import test_vector_index as suite
from index_examples import unit
from test_vector_index import DIMS, SEALED, exact, rng

from index.__main__ import main
from index.release.release import publish
from index.search import milvus
from index.search.milvus import Milvus, MilvusError, collection_name
from index.search.segmented import SegmentedIndex
from index.search.segments import write_sealed

assert rng  # the suite's generator
NUMBER = itertools.count()

# The suite, with `make` from here.
for _name, _test in vars(suite).items():
    if _name.startswith("test_") and "make" in inspect.signature(_test).parameters:
        globals()[_name] = _test


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Milvus:
    for package in ("pymilvus", "milvus_lite"):
        pytest.importorskip(package, reason="the extra milvus is not installed: pip install 'debut[milvus]'")
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


def write(directory: Path, vectors: np.ndarray, without: tuple = ()) -> Path:
    vectors = vectors.copy()
    vectors[list(without)] = 0
    write_sealed(directory / "x.faiss", vectors, kind="exact")
    return directory / "x.faiss"


def asked(index: SegmentedIndex, monkeypatch) -> list[int]:
    """The limits of all searches that reach Milvus from now on."""
    remote = index.view().sealed._remote
    limits: list[int] = []
    nearest = remote.nearest
    monkeypatch.setattr(remote, "nearest", lambda query, limit: (limits.append(limit), nearest(query, limit))[1])
    return limits


def same(found: tuple, expected: tuple) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def entities(name: str, server: Milvus):
    """The client, and the rows that the collection holds."""
    client = importlib.import_module("pymilvus").MilvusClient(server.uri)
    return client, [found["row"] for found in client.query(name, filter="row >= 0", output_fields=["row"])]


def test_fills_a_collection_once_and_mends_it(server, tmp_path, rng, monkeypatch):
    path = write(tmp_path, unit(rng, SEALED, DIMS), without=[3, 77])
    monkeypatch.setattr(milvus, "_AT_ONCE", 100)
    name = f"t{next(NUMBER)}"
    server.open(path, name)
    client, rows = entities(name, server)
    assert rows == [row for row in range(SEALED) if row not in (3, 77)]
    upserts: list[int] = []
    plain = type(client).upsert
    monkeypatch.setattr(
        type(client), "upsert", lambda self, name, data, **more: upserts.append(len(data)) or plain(self, name, data)
    )
    server.open(path, name)
    assert not upserts
    client.delete(name, ids=[5, 6])  # as if filling had broken off
    index = server.open(path, name)
    assert upserts == [100, 100, 98]
    assert entities(name, server)[1] == rows
    assert set(index.search(np.ones(DIMS), SEALED)[1][0].tolist()) == {*rows, -1}


def test_services_share_a_collection_and_keep_their_own_changes(server, tmp_path, rng):
    path, name = write(tmp_path, unit(rng, SEALED, DIMS)), f"t{next(NUMBER)}"
    one, other = server.open(path, name), server.open(path, name)
    fresh = unit(rng, 1, DIMS)
    one.add([SEALED], fresh)
    one.remove([7])
    assert one.search(fresh, 1)[1].tolist() == [[SEALED]]
    assert other.search(fresh, SEALED + 1)[1].max() == SEALED - 1
    assert 7 in other.search(fresh, SEALED)[1]
    assert len(entities(name, server)[1]) == SEALED


def test_what_was_sealed_while_serving_is_there_again(server, tmp_path, rng):
    path, name = write(tmp_path, unit(rng, SEALED, DIMS)), f"t{next(NUMBER)}"
    index = server.open(path, name, tmp_path / "state")
    fresh = unit(rng, 2, DIMS)
    index.add([SEALED, SEALED + 1], fresh)
    index.remove([0])
    index.seal()
    again = server.open(path, name, tmp_path / "state")
    assert len(again) == SEALED + 1
    assert again.search(fresh, 1)[1].tolist() == [[SEALED], [SEALED + 1]]
    assert np.isnan(again.vectors([0])).all()


def test_few_allowed_rows_are_scanned_here_and_far_ones_asked_for(server, tmp_path, rng, monkeypatch):
    vectors = unit(rng, SEALED, DIMS)
    index = server.open(write(tmp_path, vectors), f"t{next(NUMBER)}")
    specification, query = exact(vectors), vectors[0]
    limits = asked(index, monkeypatch)
    by_distance = np.argsort(-(vectors @ query))
    far = np.zeros(SEALED, dtype=bool)
    far[by_distance[100:]] = True
    for allowed in (None, far):
        for found, expected in zip(
            index.search(query, 5, allowed), specification.search(query, 5, allowed), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    assert limits == [14, 21, 84, 300]  # 1.1 x 13; then 1.1 x 13 x 300 / 200, and four times as many
    monkeypatch.setattr(milvus, "_LIMIT", 90)
    limits.clear()
    few = np.zeros(SEALED, dtype=bool)
    few[by_distance[-20:]] = True
    for allowed in (far, few):  # beyond what may be asked for: the rest is scanned in the file
        for found, expected in zip(
            index.search(query, 5, allowed), specification.search(query, 5, allowed), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    assert limits == [21, 84, 90]


def test_a_graph_scores_what_it_finds_as_the_specification_does(server, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(milvus, "HNSW_FROM", 1)
    vectors, queries = unit(rng, SEALED, DIMS), unit(rng, 5, DIMS)
    index = server.open(write(tmp_path, vectors), f"t{next(NUMBER)}")
    assert index.view().sealed.kind == "hnsw"
    scores, rows = index.search(queries, 10)
    expected = exact(vectors).search(queries, 10)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, expected[1], strict=True)])
    assert recall > 0.9
    products = (vectors[rows].astype(np.float64) * queries[:, None].astype(np.float64)).sum(axis=2)
    np.testing.assert_array_equal(scores, products.astype(np.float32))


def test_collections_of_releases_that_are_gone_are_found_and_dropped(server, tmp_path, rng, capsys):
    path = write(tmp_path, unit(rng, 20, DIMS))
    vectors = unit(rng, 9, DIMS)
    root = tmp_path / "releases"
    old, new = (publish(root, lambda folder: write(folder, vectors) and None, facts={"n": n}) for n in (1, 2))
    names = [collection_name(release.id, space) for release in (old, new) for space in ("continuation", "matching")]
    for name in names:
        server.open(path, name)
    server.open(path, f"t{next(NUMBER)}")
    asked = ["milvus", "--releases", str(tmp_path / "releases"), "--uri", server.uri]
    assert main(asked) == 0
    assert not capsys.readouterr().out
    shutil.rmtree(old.path)
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name} is left over: --drop drops it" for name in names[:2]]
    assert main([*asked, "--drop"]) == 0
    client = importlib.import_module("pymilvus").MilvusClient(server.uri)
    left = client.list_collections()
    assert set(names[2:]) <= set(left)
    assert set(names[:2]).isdisjoint(left)
    assert len(left) > 2  # what is not Debut's is not touched
    assert main(["milvus", "--releases", str(tmp_path), "--uri", server.uri, "--drop"]) == 1
    assert set(client.list_collections()) == set(left)


def test_says_so_when_milvus_does_not_answer(server, tmp_path, rng, monkeypatch):
    path = write(tmp_path, unit(rng, 20, DIMS))
    index = server.open(path, f"t{next(NUMBER)}")
    client = importlib.import_module("pymilvus").MilvusClient(server.uri)
    client.drop_collection(f"t{next(NUMBER) - 1}")
    with pytest.raises(MilvusError, match=r"Milvus at .*lite.db did not answer as it should .*: is it up\?") as caught:
        index.search(np.ones(DIMS), 3)
    assert caught.value.code == "index_unavailable"
    monkeypatch.setattr(milvus, "_TIMEOUT_S", 0.5)
    with pytest.raises(MilvusError, match=r"Milvus at 127\.0\.0\.1:9 did not") as caught:
        Milvus("http://root:secret@127.0.0.1:9", token="root:secret").open(path, "never")
    assert "secret" not in str(caught.value)


def test_says_so_when_the_client_is_not_installed(tmp_path, rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    path = write(tmp_path, unit(rng, 20, DIMS))
    with pytest.raises(MilvusError, match="pip install 'debut\\[milvus\\]'") as caught:
        Milvus("http://127.0.0.1:19530").open(path, "never")
    assert caught.value.code == "milvus_missing"


def test_the_token_is_not_shown_and_names_are_what_milvus_takes():
    assert "secret" not in repr(Milvus("http://127.0.0.1:19530", "root:secret"))
    name = collection_name("20250301T101500Z-0123456789abcdef", "matching")
    assert name == "debut_20250301T101500Z_0123456789abcdef_matching"


def connections() -> set[int]:
    """Pymilvus's open connections in this process, shared ones too."""
    gc.collect()  # what tests before left behind
    manager = importlib.import_module("pymilvus.client.connection_manager").ConnectionManager.get_instance()
    return {*manager._dedicated, *(id(managed.handler) for managed in manager._registry.values())}


def test_a_connection_ends_with_the_last_view_that_searches_it(server, tmp_path, rng):
    before = connections()
    path = write(tmp_path, unit(rng, 20, DIMS))
    index = server.open(path, f"t{next(NUMBER)}")
    [handler] = [index.view().sealed._remote._connection.client._handler]
    assert connections() - before == {id(handler)}
    view = index.view()
    del index
    assert connections() - before == {id(handler)}
    assert len(view.search(np.ones(DIMS, np.float32), 3)[1][0]) == 3  # a request that is under way
    del view
    assert connections() == before
    assert handler._channel is None


def test_looking_for_leftovers_leaves_no_connection(server):
    before = connections()
    server.leftovers(["20250101T000000Z-0000000000000000"])
    assert connections() == before
