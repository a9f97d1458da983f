"""python -m benchmarks.milvus [ROWS ...]: Milvus Lite beside our own index, in one run, one thread, 256-d, k = 100."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks.search import DIMS
from benchmarks.timing import interleaved, milliseconds
from index.search.milvus import Milvus, MilvusSegment
from index.search.segmented import SegmentedIndex
from index.search.segments import write_sealed

K, ROUNDS = 100, 20


def main(sizes: list[int]) -> None:
    """Print one table for each number of rows."""
    faiss.omp_set_num_threads(1)
    for rows in sizes:
        rng = np.random.default_rng(0)
        points = _points(rng, rows + 200)
        with tempfile.TemporaryDirectory() as directory:
            print(f"\n{rows} rows")
            for what, figure in _measured(Path(directory), points[:-200], points[-200:], rng):
                print(f"  {what:<62}  {figure}")


def _points(rng: np.random.Generator, n: int) -> np.ndarray:
    latent = rng.standard_normal((n, 24), dtype=np.float32)
    vectors = latent @ rng.standard_normal((24, DIMS), dtype=np.float32)
    vectors += rng.standard_normal((n, DIMS), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _measured(
    directory: Path, vectors: np.ndarray, queries: np.ndarray, rng: np.random.Generator
) -> list[tuple[str, str]]:
    n = len(vectors)
    began = time.perf_counter()
    write_sealed(directory / "x.faiss", vectors, kind="scan")
    built = time.perf_counter() - began
    ours = SegmentedIndex.open(directory / "x.faiss")
    server = Milvus(str(directory / "lite.db"))
    began = time.perf_counter()
    theirs = server.open(directory / "x.faiss", "bench")
    filled = time.perf_counter() - began
    base = theirs.view().sealed
    assert isinstance(base, MilvusSegment)
    third, few = rng.random(n) < 1 / 3, rng.random(n) < 0.01
    for query in queries[:20]:
        assert (ours.search(query, K)[1] == theirs.search(query, K)[1]).all()
    seconds = interleaved(
        {
            "ours": lambda i: ours.search(queries[i], K),
            "theirs": lambda i: theirs.search(queries[i], K),
            "ours, a third": lambda i: ours.search(queries[i], K, third),
            "theirs, a third": lambda i: theirs.search(queries[i], K, third),
            "ours, 1 in 100": lambda i: ours.search(queries[i], K, few),
            "theirs, 1 in 100": lambda i: theirs.search(queries[i], K, few),
        },
        rounds=ROUNDS,
    )
    client = importlib.import_module("pymilvus").MilvusClient(server.uri)

    def add_there(i: int) -> None:
        client.upsert("bench", [{"row": n + i, "vector": queries[i]}])
        found = client.search("bench", data=queries[i : i + 1], limit=1)
        assert found[0].ids[0] == n + i

    def add_here(i: int) -> None:
        theirs.add([n + i], queries[i : i + 1])
        assert theirs.view().fresh.search(queries[i], 1)[1][0, 0] == n + i

    added = interleaved({"there": add_there, "here": add_here}, rounds=ROUNDS)
    return [
        ("our file, written", f"{built:.1f} s"),
        ("the collection, filled from it", f"{filled:.1f} s"),
        *((f"search, {name}", milliseconds(measured)) for name, measured in seconds.items()),
        ("add -> searchable, in the fresh segment", milliseconds(added["here"])),
        ("add -> searchable, by Milvus's own upsert", milliseconds(added["there"])),
    ]


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [20_000, 100_000])
