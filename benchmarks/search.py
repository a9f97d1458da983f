"""Search at 100,000 x 256: what our indexes cost over FAISS's own call, filters, and searching while adding."""

import tempfile
import threading
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks.folder import Folder
from benchmarks.timing import interleaved, milliseconds
from index.catalogue import Catalogue, write_catalogue
from index.exact import ExactIndex
from index.segmented import SegmentedIndex
from index.segments import write_sealed
from index.tracks import Track

N, DIMS, K, FRESH = 100_000, 256, 100, 5_000
Row = tuple[str, str]


def run() -> list[Row]:
    """Measure with one thread, on vectors that lie near a 24-dimensional subspace, as learnt ones do."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    points = _points(rng, N + FRESH + 200)
    vectors, queries = points[:-200], points[-200:]
    with tempfile.TemporaryDirectory() as directory:
        return [
            *_flat(Path(directory), vectors, queries, rng),
            *_hnsw(Path(directory), vectors[: N // 10], queries),
            *_writing(Path(directory), vectors, queries),
            *_titles(Path(directory), rng),
        ]


def _points(rng: np.random.Generator, n: int) -> np.ndarray:
    latent = rng.standard_normal((n, 24), dtype=np.float32)
    vectors = latent @ rng.standard_normal((24, DIMS), dtype=np.float32)
    vectors += rng.standard_normal((n, DIMS), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _flat(directory: Path, vectors: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> list[Row]:
    write_sealed(directory / "flat.faiss", vectors[:N])
    segmented, mixed = (SegmentedIndex.open(directory / "flat.faiss") for _ in range(2))
    raw = segmented.view().sealed.faiss_index
    mixed.add(np.arange(N, N + FRESH), vectors[N:])
    mixed.remove(np.arange(0, N, 1000))
    exact = ExactIndex(DIMS)
    exact.add(np.arange(N), vectors[:N])
    third, few = rng.random(N) < 1 / 3, rng.random(N) < 0.01
    seconds = interleaved(
        {
            "FAISS": lambda i: raw.search(queries[i : i + 1], K),
            "segmented": lambda i: segmented.search(queries[i], K),
            "mixed": lambda i: mixed.search(queries[i], K),
            "third": lambda i: mixed.search(queries[i], K, third),
            "few": lambda i: mixed.search(queries[i], K, few),
            "exact": lambda i: exact.search(queries[i], K),
        },
        rounds=100,
    )
    named = {
        "FAISS": f"IndexFlatIP, FAISS's own call, k={K}",
        "segmented": "SegmentedIndex, sealed",
        "mixed": f"SegmentedIndex, sealed + {FRESH} fresh + {N // 1000} tombstones",
        "third": "the same, a filter lets a third pass",
        "few": "the same, a filter lets 1 in 100 pass",
        "exact": "ExactIndex (numpy)",
    }
    return [
        (named[name], f"{milliseconds(measured)}  {measured / seconds['FAISS']:.2f} x FAISS")
        for name, measured in seconds.items()
    ]


def _hnsw(directory: Path, vectors: np.ndarray, queries: np.ndarray) -> list[Row]:
    began = time.perf_counter()
    write_sealed(directory / "hnsw.faiss", vectors, hnsw_from=1)
    built = time.perf_counter() - began
    index = SegmentedIndex.open(directory / "hnsw.faiss")
    raw = index.view().sealed.faiss_index
    parameters = faiss.SearchParametersHNSW(efSearch=2 * K)
    seconds = interleaved(
        {
            "FAISS": lambda i: raw.search(queries[i : i + 1], K, params=parameters),
            "segmented": lambda i: index.search(queries[i], K),
        },
        rounds=200,
    )
    exact = ExactIndex(DIMS)
    exact.add(np.arange(len(vectors)), vectors)
    found, truth = index.search(queries, K)[1], exact.search(queries, K)[1]
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)])
    ratio = seconds["segmented"] / seconds["FAISS"]
    return [
        (f"HNSW of {len(vectors)}, built", f"{built:.1f} s"),
        ("HNSW, FAISS's own call, efSearch 200", milliseconds(seconds["FAISS"])),
        ("SegmentedIndex over it", f"{milliseconds(seconds['segmented'])}  {ratio:.2f} x FAISS, recall {recall:.3f}"),
    ]


def _writing(directory: Path, vectors: np.ndarray, queries: np.ndarray) -> list[Row]:
    """Search while another thread adds one vector after the other, and without."""
    index = SegmentedIndex.open(directory / "flat.faiss")
    quiet = interleaved({"search": lambda i: index.search(queries[i], K)}, rounds=100)["search"]
    stop, added = threading.Event(), [0]

    def add() -> None:
        while not stop.is_set():
            place = N + added[0] % FRESH
            index.add([N + added[0]], vectors[place : place + 1])
            added[0] += 1
            time.sleep(0.001)  # a thousand a second are more than uploads bring

    writer = threading.Thread(target=add)
    writer.start()
    began = time.perf_counter()
    busy = interleaved({"search": lambda i: index.search(queries[i], K)}, rounds=100)["search"]
    elapsed = time.perf_counter() - began
    stop.set()
    writer.join()
    began = time.perf_counter()
    for row in range(1000):
        index.add([10 * N + row], vectors[row : row + 1])
    single = (time.perf_counter() - began) / 1000
    return [
        ("search, nobody writing", milliseconds(quiet)),
        (f"search while {added[0] / elapsed:.0f} vectors a second are added", f"{milliseconds(busy)}"),
        ("adding one vector", f"{single * 1e6:.0f} us"),
    ]


def _titles(directory: Path, rng: np.random.Generator) -> list[Row]:
    words = ["".join(rng.choice(list("abcdefghiklmnoprstuvé"), rng.integers(2, 9))) for _ in range(5000)]
    drawn = np.array(words)[rng.integers(0, len(words), (N, 5))].tolist()
    tracks = [Track(str(row), title=" ".join(named[:3]), artist=" ".join(named[3:])) for row, named in enumerate(drawn)]
    write_catalogue(directory / "tracks.parquet", tracks, np.zeros(N, np.int32))
    began = time.perf_counter()
    view = Catalogue.open(Folder(directory)).view()
    opened = time.perf_counter() - began
    queries = ["a", words[0], f"{words[1]} {words[2][:2]}"]
    seconds = interleaved({query: lambda _, query=query: view.search(query) for query in queries}, rounds=20)
    return [
        (f"catalogue of {N} tracks, opened", f"{opened:.2f} s"),
        ("title search: one letter, a word, two words", ", ".join(milliseconds(s) for s in seconds.values())),
    ]
