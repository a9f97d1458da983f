"""python -m benchmarks.search [--rows N] [--keep DIR]: search in N clustered 256-d vectors, and while N grows.

FAISS's own call on the same index with the same efSearch is measured in the same rounds. The claims are made for
--rows 1000000; its graph takes minutes to build, so --keep keeps vectors and graph for the next time.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from benchmarks.folder import Folder
from benchmarks.timing import interleaved, milliseconds
from index.search.exact import ExactIndex
from index.search.segmented import SEAL_AT, SegmentedIndex
from index.search.segments import HNSW_SEARCH, write_sealed
from index.tracks.catalogue import Catalogue, write_catalogue
from index.tracks.track import Track

DIMS, K, CLUSTERS, QUERIES, FRESH = 256, 10, 2000, 500, 50_000
Row = tuple[str, str]


@dataclass(frozen=True)
class World:
    """Vectors f32 [n + FRESH, 256] of which the first n are sealed, the cluster of each, and queries [500, 256]."""

    directory: Path
    vectors: np.ndarray
    cluster: np.ndarray
    queries: np.ndarray
    n: int

    @property
    def graph(self) -> Path:
        """The sealed HNSW segment."""
        return self.directory / f"graph-{self.n}.faiss"


def run(rows: int = 100_000, keep: Path | None = None) -> list[Row]:
    """Measure with one thread."""
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) if keep is None else keep
        world = _world(directory, rows)
        return [
            *_opening(world),
            *_plain(world),
            *_filtered(world),
            *_growing(world),
            *_writing(world),
            *_titles(Path(scratch)),
        ]


def _holds(claim: str, holds: bool) -> str:
    return f"  [{claim}: {'holds' if holds else 'FAILS'}]"


def _world(directory: Path, rows: int) -> World:
    """Clusters near a 32-dimensional subspace, with noise in all 256, as learnt vectors lie."""
    total, kept = rows + FRESH + QUERIES, [directory / f"{name}-{rows}.npy" for name in ("vectors", "clusters")]
    if not all(path.exists() for path in kept):
        for path, made in zip(kept, _clustered(np.random.default_rng(0), total), strict=True):
            np.save(path, made)
    vectors, cluster = map(np.load, kept)
    return World(directory, vectors[:-QUERIES], cluster[:-QUERIES], vectors[-QUERIES:], rows)


def _clustered(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    centres = rng.standard_normal((CLUSTERS, 32), dtype=np.float32)
    basis = rng.standard_normal((32, DIMS), dtype=np.float32)
    vectors, cluster = np.empty((n, DIMS), dtype=np.float32), np.empty(n, dtype=np.int64)
    for start in range(0, n, 100_000):
        block, of = vectors[start : start + 100_000], cluster[start : start + 100_000]
        of[:] = rng.integers(0, CLUSTERS, len(block))
        latent = centres[of] + 0.5 * rng.standard_normal((len(block), 32), dtype=np.float32)
        np.matmul(latent, basis, out=block)
        block += rng.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vectors, cluster


def _recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.isin(b[b >= 0], a).mean() for a, b in zip(found, truth, strict=True)]))


def _memory() -> tuple[float, float]:
    """Return MiB of this process that are its own, and those of mapped files."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def _opening(world: World) -> list[Row]:
    rows = []
    if not world.graph.exists():
        began = time.perf_counter()
        write_sealed(world.graph, world.vectors[: world.n], kind="hnsw")
        rows = [(f"HNSW of {world.n}, built", f"{time.perf_counter() - began:.0f} s")]
    before, began = _memory(), time.perf_counter()
    index = SegmentedIndex.open(world.graph)
    first, opened, began = time.perf_counter() - began, _memory(), time.perf_counter()
    SegmentedIndex.open(world.graph)
    again = time.perf_counter() - began
    for query in world.queries:
        index.search(query, K)
    own, mapped = (now - then for now, then in zip(_memory(), before, strict=True))
    return [
        *rows,
        ("opened, from the disk or the page cache as it is", f"{first:.2f} s"),
        ("opened again, from the page cache", f"{again:.2f} s" + _holds("under 2 s", again < 2)),
        (
            "memory of the open index",
            f"{opened[0] - before[0]:.0f} MiB own, {opened[1] - before[1]:.0f} MiB of the file mapped in; after "
            f"{QUERIES} searches {own:.0f} and {mapped:.0f}, of {world.graph.stat().st_size / 2**20:.0f}",
        ),
    ]


def _plain(world: World) -> list[Row]:
    """The graph, and the other kinds on as many vectors as they are for."""
    index, queries = SegmentedIndex.open(world.graph), world.queries
    exact = ExactIndex(DIMS)
    exact.add(np.arange(world.n), world.vectors[: world.n])
    graph, parameters = index.view().sealed.faiss_index, faiss.SearchParametersHNSW(efSearch=HNSW_SEARCH)
    flat = faiss.downcast_index(graph.storage)
    recall = _recall(index.search(queries, K)[1], exact.search(queries, K)[1])
    calls: dict[str, Callable[[int], object]] = {
        "FAISS": lambda i: graph.search(queries[i : i + 1], K, params=parameters),
        "ours": lambda i: index.search(queries[i], K),
    }
    seconds = interleaved(calls, rounds=QUERIES)
    scans = interleaved({"flat": lambda i: flat.search(queries[i : i + 1], K)}, rounds=40)
    ratio, faster = seconds["ours"] / seconds["FAISS"], scans["flat"] / seconds["ours"]
    return [
        (f"exact scan, FAISS's own call, k={K}", milliseconds(scans["flat"])),
        (f"HNSW, FAISS's own call, efSearch {HNSW_SEARCH}", milliseconds(seconds["FAISS"])),
        (
            "SegmentedIndex over it",
            milliseconds(seconds["ours"]) + _holds(f"{ratio:.2f} x FAISS <= 1.5", ratio <= 1.5),
        ),
        ("  against the exact scan", f"{faster:.0f} x as fast" + _holds(">= 20", faster >= 20)),
        (f"  recall@{K}", f"{recall:.4f}" + _holds(">= .98", recall >= 0.98)),
        *_kinds(world),
    ]


def _kinds(world: World) -> list[Row]:
    count, queries = min(world.n, 100_000), world.queries
    exact = ExactIndex(DIMS)
    exact.add(np.arange(count), world.vectors[:count])
    truth = exact.search(queries, 100)[1]
    indexes = {}
    for kind in ("exact", "scan", "ivf"):
        path = world.directory / f"{kind}-{count}.faiss"
        if not path.exists():
            write_sealed(path, world.vectors[:count], kind=kind)  # type: ignore[arg-type]
        indexes[kind] = SegmentedIndex.open(path)
    flat = indexes["exact"].view().sealed.faiss_index
    calls = {kind: lambda i, index=index: index.search(queries[i], 100) for kind, index in indexes.items()}
    answers = {kind: index.search(queries, 100)[1] for kind, index in indexes.items()}  # reads the files, too
    seconds = interleaved({"FAISS": lambda i: flat.search(queries[i : i + 1], 100), **calls}, rounds=60)
    rows = [(f"{count} vectors, k=100: FAISS's exact scan", milliseconds(seconds["FAISS"]))]
    for kind, found in answers.items():
        figures = f"recall@10 {_recall(found[:, :10], truth[:, :10]):.4f}, @100 {_recall(found, truth):.4f}"
        ratio = seconds[kind] / seconds["FAISS"]
        rows.append((f"  a segment of kind {kind}", f"{milliseconds(seconds[kind])}  {ratio:.2f} x FAISS, {figures}"))
    return rows


def _filtered(world: World) -> list[Row]:
    """Filters that pass rows at random, and filters that pass whole clusters."""
    index, queries, rng = SegmentedIndex.open(world.graph), world.queries, np.random.default_rng(1)
    exact, order = ExactIndex(DIMS), rng.permutation(CLUSTERS)
    exact.add(np.arange(world.n), world.vectors[: world.n])
    rows = []
    for part in (0.01, 0.1, 0.5):
        some = np.isin(world.cluster, order[: int(part * CLUSTERS)])[: world.n]
        for name, allowed in (("rows", rng.random(world.n) < part), ("clusters", some)):
            found, truth = index.search(queries, K, allowed)[1], exact.search(queries, K, allowed)[1]
            recall, right = _recall(found, truth), bool(allowed[found].all() and (found >= 0).all())
            call = {"search": lambda i, allowed=allowed: index.search(queries[i], K, allowed)}
            figure = f"{milliseconds(interleaved(call, rounds=60)['search'])}, recall@{K} {recall:.4f}"
            claim = _holds(">= .98 and all allowed", recall >= 0.98 and right)
            rows.append((f"a filter passes {part:.0%} of {name}", figure + claim))
    return rows


def _growing(world: World) -> list[Row]:
    """What fresh rows cost a search, and what sealing them costs and saves."""
    index, queries, rows = SegmentedIndex.open(world.graph, seal_at=None), world.queries, []
    added = 0
    for fresh in (0, 5_000, 10_000, 20_000):
        index.add(np.arange(world.n + added, world.n + fresh), world.vectors[world.n + added : world.n + fresh])
        added = fresh
        seconds = interleaved({"search": lambda i: index.search(queries[i], K)}, rounds=100)["search"]
        rows.append((f"{fresh} vectors fresh", milliseconds(seconds)))
    for _ in range(2):
        receipt = index.seal()
        seconds = interleaved({"search": lambda i: index.search(queries[i], K)}, rounds=100)["search"]
        size = added + receipt.sealed
        rows.append((f"{receipt.sealed} sealed in {receipt.seconds:.2f} s", f"{milliseconds(seconds)} a search then"))
        if size > FRESH:
            break
        index.add(np.arange(world.n + added, world.n + size), world.vectors[world.n + added : world.n + size])
        added = size
    return rows


def _writing(world: World) -> list[Row]:
    """Search while another thread adds 200 vectors a second, in turns with searching alone; a seal falls into it."""
    index, queries = SegmentedIndex.open(world.graph), world.queries
    start = world.n + SEAL_AT - 500
    index.add(np.arange(world.n, start), world.vectors[world.n : start])
    quiet, busy, adding = [], [], []

    def add(stop: threading.Event) -> None:
        due = time.perf_counter()
        while not stop.wait(max(0.0, due - time.perf_counter())):
            row, due = start + len(adding), due + 1 / 200
            began = time.perf_counter()
            index.add([row], world.vectors[row : row + 1])
            adding.append(time.perf_counter() - began)

    for _ in range(8):
        quiet += _latencies(index, queries, 2.0)
        stop = threading.Event()
        writer = threading.Thread(target=add, args=(stop,))
        writer.start()
        busy += _latencies(index, queries, 2.0)
        stop.set()
        writer.join()
    rate, ratio = len(adding) / 16, np.quantile(busy, 0.99) / np.quantile(quiet, 0.99)
    parts = f"{len(index.view().parts)} segments, {len(index.view().fresh)} fresh at the end"
    return [
        (f"searches alone ({len(quiet)})", _quantiles(quiet)),
        (
            f"searches while {rate:.0f} a second are added ({len(busy)})",
            _quantiles(busy) + f", {parts}" + _holds(f"p99 {ratio:.2f} x <= 3", ratio <= 3),
        ),
        (
            "adding one, until it is found",
            _quantiles(adding) + f", longest {milliseconds(max(adding))}"
            + _holds("p99 under 5 ms", float(np.quantile(adding, 0.99)) < 0.005),
        ),
    ]  # fmt: skip


def _latencies(index: SegmentedIndex, queries: np.ndarray, seconds: float) -> list[float]:
    found, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        index.search(queries[len(found) % len(queries)], K)
        found.append(time.perf_counter() - began)
    return found


def _quantiles(seconds: Sequence[float]) -> str:
    return f"p50 {milliseconds(np.quantile(seconds, 0.5))}, p99 {milliseconds(np.quantile(seconds, 0.99))}"


def _titles(directory: Path) -> list[Row]:
    rng, n = np.random.default_rng(0), 100_000
    words = ["".join(rng.choice(list("abcdefghiklmnoprstuvé"), rng.integers(2, 9))) for _ in range(5000)]
    drawn = np.array(words)[rng.integers(0, len(words), (n, 5))].tolist()
    tracks = [Track(str(row), title=" ".join(named[:3]), artist=" ".join(named[3:])) for row, named in enumerate(drawn)]
    write_catalogue(directory / "tracks.parquet", tracks, np.zeros(n, np.int32))
    began = time.perf_counter()
    view = Catalogue.open(Folder(directory)).view()
    opened = time.perf_counter() - began
    queries = ["a", words[0], f"{words[1]} {words[2][:2]}"]
    seconds = interleaved({query: lambda _, query=query: view.search(query) for query in queries}, rounds=20)
    return [
        (f"catalogue of {n} tracks, opened", f"{opened:.2f} s"),
        ("title search: one letter, a word, two words", ", ".join(milliseconds(s) for s in seconds.values())),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors that are sealed")
    parser.add_argument("--keep", type=Path, help="folder that keeps vectors and indexes for the next time")
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    for what, figure in run(given.rows, given.keep):
        print(f"{what:<60}  {figure}")
