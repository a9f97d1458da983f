"""FAISS files: the kinds of index that are written, and what is told of a file that is read."""

import errno
import os
import zlib
from pathlib import Path
from typing import Any, Literal

import faiss as untyped_faiss
import numpy as np

from index.errors import DebutError
from index.search.vectors import Mask, Vectors

faiss: Any = untyped_faiss  # its type stubs know neither selectors nor search parameters

Kind = Literal["exact", "scan", "hnsw", "ivf"]
"""exact: all float32 products. scan: all products with a float16 copy, half the time, and still certain to find
the best. hnsw: a graph, nearly certain. ivf: lists of 8-bit codes, nearly certain, where memory counts: the
float32 vectors stay in the file, and only those of candidates are read."""

HNSW_FROM = 200_000
"""Vectors from which a sealed segment is an HNSW graph: below, a scan is quick enough."""

HNSW_LINKS, HNSW_BUILD = 24, 200
"""M and efConstruction."""


_TAIL = b"present1"
"""The end of a file whose FAISS index is followed by which slots hold a vector."""


class SegmentError(DebutError):
    """A sealed segment, or the folder of an index's state, cannot be read."""

    code = "segment_damaged"


def kind_for(count: int, hnsw_from: int = HNSW_FROM) -> Kind:
    """Return the kind that a segment of `count` vectors has unless told otherwise."""
    return "hnsw" if count >= hnsw_from else "scan"


def sealed_index(vectors: Vectors, kind: Kind, *, threads: int | None = None) -> Any:
    """Return vectors f32 [n, d] as a FAISS index of `kind`, in memory, built by `threads` (None: all cores)."""
    index = _new_index(kind, *vectors.shape)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or os.cpu_count() or 1)
    try:
        index.train(vectors)
        index.add(vectors)
    finally:
        faiss.omp_set_num_threads(before)
    return index


def _new_index(kind: Kind, count: int, dims: int) -> Any:
    metric, codecs = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
    if kind == "exact":
        return faiss.IndexFlatIP(dims)
    if kind == "scan":
        return faiss.IndexRefineFlat(faiss.IndexScalarQuantizer(dims, codecs.QT_fp16, metric))
    if kind == "ivf":
        lists = max(1, min(count // 40, int(4 * count**0.5)))
        coarse = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dims), dims, lists, codecs.QT_8bit, metric)
        coarse.cp.min_points_per_centroid = 1  # a small segment is no reason to warn
        return faiss.IndexRefineFlat(coarse)
    graph = faiss.IndexHNSWFlat(dims, HNSW_LINKS, metric)
    graph.hnsw.efConstruction = HNSW_BUILD
    return graph


def save_index(path: Path, index: Any) -> None:
    """Write a FAISS index to `path`, whole or not at all, and after it which slots hold a vector.

    FAISS reads its index and stops; who opens the file is spared a look at every vector. Raises OSError.
    """
    staged = path.with_name(f".{path.name}.part")
    try:
        _written(staged, index)
        _check_whole(staged)
        with staged.open("ab") as file:
            file.write(_tail(present(stored_vectors(taken_apart(index, str(path))[2]))))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _written(path: Path, index: Any) -> None:
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # FAISS's for whatever a disk refuses
        raise OSError(errno.EIO, f"FAISS cannot write it ({_reason(error)})", str(path)) from error


def _check_whole(path: Path) -> None:
    """Raise OSError where the end of an index found no room: FAISS closes the file and says nothing."""
    try:
        mapped_index(path)
    except SegmentError as error:
        raise OSError(errno.ENOSPC, "no space left on device", str(path)) from error


def mapped_index(path: Path) -> Any:
    """Return the FAISS index in the file at `path`, memory-mapped; SegmentError when there is none."""
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)  # IO_FLAG_MMAP would read it into memory
    except (RuntimeError, MemoryError) as error:
        raise SegmentError(f"{path} cannot be read as a FAISS index ({_reason(error)}): publish again") from error


def taken_apart(index: Any, name: str) -> tuple[Kind, Any, Any]:
    """Return the kind of a FAISS index, what is searched roughly, and its float32 vectors; or SegmentError."""
    kind: Kind = "exact"
    rough, storage = index, index
    if isinstance(index, faiss.IndexHNSWFlat):
        kind, storage = "hnsw", faiss.downcast_index(index.storage)
    elif isinstance(index, faiss.IndexRefineFlat):
        rough, storage = faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
        kind = "ivf" if isinstance(rough, faiss.IndexIVFScalarQuantizer) else "scan"
        if kind == "scan" and not _is_float16(rough):
            storage = None
    if (
        not isinstance(storage, faiss.IndexFlat)
        or {part.metric_type for part in (index, rough, storage)} != {faiss.METRIC_INNER_PRODUCT}
        or {(part.ntotal, part.d) for part in (rough, storage)} != {(index.ntotal, index.d)}
    ):
        raise SegmentError(f"{name} is no inner-product index of a kind that is written here: publish again")
    return kind, rough, storage


def _is_float16(index: Any) -> bool:
    return isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16


def stored_vectors(storage: Any) -> Vectors:
    """Return the vectors f32 [n, d] of a flat FAISS index, where they are, read-only."""
    stored: Vectors = faiss.rev_swig_ptr(storage.get_xb(), int(storage.ntotal * storage.d)).reshape(-1, storage.d)
    stored.flags.writeable = False
    return stored


def present(stored: Vectors, path: Path | None = None) -> Mask:
    """Return which slots hold a vector, bool [n]: all but the all-zero ones, as the end of the file says.

    Where it does not say so, one number of most vectors is looked at: a gigabyte of pages for a million.
    """
    known = None if path is None else _read_tail(path, len(stored))
    if known is not None:
        return known
    found: Mask = stored[:, 0] != 0
    unsure = np.flatnonzero(~found)
    found[unsure] = stored[unsure].any(axis=1)
    return found


def _tail(mask: Mask) -> bytes:
    bits = np.packbits(mask).tobytes()
    return bits + zlib.crc32(bits).to_bytes(4, "little") + _TAIL


def _read_tail(path: Path, count: int) -> Mask | None:
    size = (count + 7) // 8
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size - 4 - len(_TAIL)))
        bits, rest = file.read(size), file.read()
    if rest != zlib.crc32(bits).to_bytes(4, "little") + _TAIL:
        return None
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)


def _reason(error: Exception) -> str:
    """Return the end of FAISS's message, which begins with a C++ signature."""
    return str(error).rpartition("failed: ")[2].strip() or type(error).__name__
