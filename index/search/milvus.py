"""A release's vectors searched by Milvus: for spaces whose index is more than the memory of one machine holds."""

import importlib
import logging
import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import DebutError
from index.search.parts import LiveSegment
from index.search.segmented import SegmentedIndex
from index.search.segmentfile import HNSW_BUILD, HNSW_FROM, HNSW_LINKS
from index.search.segments import HNSW_SEARCH, SealedSegment
from index.search.statefolder import StateFolder
from index.search.vectors import Mask, Rows, Vectors, slack

_LIMIT = 16_384
"""Results that Milvus returns at most, and the largest `ef` that makes sense of them."""

_SPARE = 8
"""Candidates fetched beyond k, for scores that change places once they are computed precisely."""

_AT_ONCE = 2048
"""Vectors in one message while a collection is filled (2 MiB at 256-d; Milvus takes 64)."""

_TIMEOUT_S, _FILL_TIMEOUT_S = 5.0, 600.0
"""How long one question may take, in seconds, and how long one step of filling."""

_PREFIX = "debut_"

_log = logging.getLogger(__name__)


class MilvusError(DebutError):
    """Milvus is not installed (milvus_missing), or did not answer (index_unavailable)."""

    code = "index_unavailable"


@dataclass(frozen=True, slots=True)
class Milvus:
    """Where Milvus is and what opens it."""

    uri: str
    """http(s)://host:port, or the path of a folder ending in .db: Milvus Lite in this process."""
    token: str = field(default="", repr=False)
    """`user:password` or an API key; "" where Milvus asks for none."""

    def open(self, path: Path, name: str, directory: Path | None = None) -> SegmentedIndex:
        """Return the index of the release's segment at `path`, searched by the collection `name` of Milvus.

        A collection that is not there yet, or not whole, is filled first. It is never changed afterwards, so that
        any number of services can share it: what is added or removed while serving is kept here (in `directory`,
        as SegmentedIndex.open says), beside it. Raises SegmentError and MilvusError.
        """
        base = MilvusSegment(path, self, name)
        if directory is None:
            return SegmentedIndex((LiveSegment.of(base),))
        folder = StateFolder(directory)
        return SegmentedIndex(folder.read(base), folder)

    def leftovers(self, release_ids: Iterable[str], *, drop: bool = False) -> list[str]:
        """Return the names of Debut's collections that are not of these releases, having dropped them with `drop`.

        Those of releases in other folders count as left over, too: one Milvus, one folder. Raises MilvusError.
        """
        connection = _Connection(self)
        kept = tuple(collection_name(release_id, "") for release_id in release_ids)
        names: list[str] = sorted(connection.ask("list_collections"))
        found = [name for name in names if name.startswith(_PREFIX) and not name.startswith(kept)]
        for name in found if drop else ():
            connection.ask("drop_collection", name)
        return found


def collection_name(release_id: str, space: str) -> str:
    """Return the collection that holds `space` of a release: Milvus allows letters, digits and underscores."""
    return re.sub(r"\W", "_", f"{_PREFIX}{release_id}_{space}", flags=re.ASCII)


class MilvusSegment(SealedSegment):
    """A sealed segment whose file stays on disk, and whose nearest slots Milvus finds.

    Milvus is asked for candidates only. Their vectors are read from the file, memory-mapped, and scored as those
    of every other segment, so that scores and their order are the same. Below HNSW_FROM vectors Milvus scans
    (FLAT) and the best are certain to be found.
    """

    def __init__(self, path: Path, milvus: Milvus, name: str) -> None:
        """Map the file at `path` and open the collection `name`, filled from it if need be."""
        super().__init__(path)
        self.kind = "hnsw" if len(self) >= HNSW_FROM else "exact"
        self._remote = _Remote(_Connection(milvus), name, flat=self.exact)
        self._remote.hold(self)

    def candidates(self, queries: Vectors, k: int, allowed: Mask, count: int) -> Rows:
        """See SealedSegment.candidates.

        Rows are scanned here, in the file, where those allowed are fewer than the answers that Milvus would have to
        give for k of them to be among these, and where they lie so far away that Milvus's answers do not reach them.
        """
        k = min(k, count)
        fetched = int(1.1 * (k + _SPARE + k // 32) * len(self) / max(1, count))
        if k == 0 or fetched > min(_LIMIT, count):
            return self._exact(queries, k, allowed, count) if k else np.full((len(queries), 0), -1, dtype=np.int64)
        near = [self._near(query, k, allowed, count, fetched) for query in queries]
        slots = np.full((len(queries), max(map(len, near))), -1, dtype=np.int64)
        for line, those in zip(slots, near, strict=True):
            line[: len(those)] = those
        return slots

    def _near(self, query: Vectors, k: int, allowed: Mask, count: int, fetched: int) -> Rows:
        """Ask for more and more until nothing beyond can be among the k best allowed, or Milvus gives no more.

        Then, if there are not yet k, scan.
        """
        doubt = 2 * slack(query[None], self.dims)[0]
        most = min(_LIMIT, len(self))
        while True:
            fetched = min(fetched, most)
            rough, slots = self._remote.nearest(query, fetched)
            passed = allowed[slots]
            near = rough[passed]
            those: Rows = slots[passed]
            ended = fetched == most or len(slots) < fetched
            if len(near) >= k and (ended or rough[-1] < near[k - 1] - doubt):
                break
            if ended:
                those = self._exact(query[None], k, allowed, count)[0]
                return those
            fetched *= 4
        those = those[near >= near[k - 1] - doubt]
        return those


class _Connection:
    """Milvus's client; what goes wrong there is a MilvusError. It is closed with the last use of the object."""

    def __init__(self, milvus: Milvus) -> None:
        self.package = _pymilvus()
        self._place = milvus.uri.rpartition("@")[2]  # without a password that somebody wrote before it
        self._errors = (self.package.MilvusException, importlib.import_module("grpc").RpcError)
        with self._sentences():
            # Clients share a connection otherwise, and none of them ever closes it.
            self.client = self.package.MilvusClient(milvus.uri, token=milvus.token, timeout=_TIMEOUT_S, dedicated=True)
        weakref.finalize(self, self.client.close).atexit = False  # no view searches it any more

    def ask(self, call: str, *given: Any, **named: Any) -> Any:
        """Return what the client's method `call` returns."""
        with self._sentences():
            return getattr(self.client, call)(*given, **{"timeout": _TIMEOUT_S, **named})

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            reason = getattr(error, "message", None) or str(error)
            raise MilvusError(f"Milvus at {self._place} did not answer as it should ({reason}): is it up?") from error


class _Remote:
    """One collection of Milvus: rows and their vectors, as the release has them."""

    def __init__(self, connection: _Connection, name: str, *, flat: bool) -> None:
        self._connection, self._name, self._flat = connection, name, flat

    def hold(self, segment: SealedSegment) -> None:
        """Make sure that all vectors of `segment` are there."""
        ask, rows = self._connection.ask, np.flatnonzero(segment.present)
        if not ask("has_collection", self._name):
            self._create(segment.dims)
        ask("load_collection", self._name, timeout=_FILL_TIMEOUT_S)
        if self._count() == len(rows):
            return
        _log.info("filling %s of Milvus with %s vectors", self._name, len(rows))
        for start in range(0, len(rows), _AT_ONCE):
            block = rows[start : start + _AT_ONCE]
            vectors = segment.stored[block]
            data = [{"row": row, "vector": vector} for row, vector in zip(block.tolist(), vectors, strict=True)]
            ask("upsert", self._name, data, timeout=_FILL_TIMEOUT_S)
        ask("flush", self._name, timeout=_FILL_TIMEOUT_S)
        if (found := self._count()) != len(rows):
            raise MilvusError(f"{self._name} of Milvus holds {found} vectors, not {len(rows)}: drop it and start again")

    def nearest(self, query: Vectors, limit: int) -> tuple[Vectors, Rows]:
        """Return scores f32 [m], rounded as Milvus rounds, falling, and slots i64 [m], m <= limit."""
        parameters = {} if self._flat else {"ef": max(HNSW_SEARCH, limit)}
        found = self._connection.ask(
            "search", self._name, data=[query], anns_field="vector", limit=limit, consistency_level="Session",
            search_params={"metric_type": "IP", "params": parameters},
        )[0]  # fmt: skip
        scores, slots = np.array(found.distances, dtype=np.float32), np.array(found.ids, dtype=np.int64)
        order = np.argsort(-scores, kind="stable")
        return scores[order], slots[order]

    def _create(self, dims: int) -> None:
        types, client = self._connection.package.DataType, self._connection.client
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", types.INT64, is_primary=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dims)
        index, graph = client.prepare_index_params(), {"M": HNSW_LINKS, "efConstruction": HNSW_BUILD}
        kind, parameters = ("FLAT", {}) if self._flat else ("HNSW", graph)
        index.add_index("vector", metric_type="IP", index_type=kind, params=parameters)
        self._connection.ask("create_collection", self._name, schema=schema, index_params=index)

    def _count(self) -> int:
        found = self._connection.ask(
            "query", self._name, filter="row >= 0", output_fields=["count(*)"], timeout=_FILL_TIMEOUT_S,
            consistency_level="Strong",
        )  # fmt: skip
        return int(found[0]["count(*)"])


def _pymilvus() -> Any:
    """Import the client; it is an extra, and without the stack traces that it logs for each error."""
    try:
        package = importlib.import_module("pymilvus")
    except ImportError as error:
        raise MilvusError(
            "the client of Milvus is not installed: pip install 'debut[milvus]'", code="milvus_missing"
        ) from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return package
