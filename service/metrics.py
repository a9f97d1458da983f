"""What the service measures of itself, for Prometheus."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

from index.collection import CollectionView

__all__ = ["CONTENT_TYPE", "Metrics", "Stopwatch"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # when each series began: nobody asks for it

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The instruments of one application, in a registry of its own (so that tests can make several)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.request_seconds = Histogram(
            "debut_request_seconds",
            "Time to answer a request.",
            ("route", "method", "status"),
            buckets=_FAST,
            registry=registry,
        )
        self.ingest_seconds = Histogram(
            "debut_ingest_seconds",
            "Time of one stage of an ingest: receive, decode, features, encode, ledger, index.",
            ("stage",),
            buckets=_FAST,
            registry=registry,
        )
        self.freshness_seconds = Histogram(
            "debut_freshness_seconds",
            "From the first byte of an upload until its track can be recommended.",
            buckets=_FAST,
            registry=registry,
        )
        self.uploads = Gauge("debut_uploads_in_hand", "Uploads being received or worked on.", registry=registry)
        self.refused = Counter(
            "debut_uploads_refused", "Uploads refused because the queue was full.", registry=registry
        )
        self.decode_queue = Gauge(
            "debut_decode_queue", "Uploads that arrived and wait for a thread or a decoding process.", registry=registry
        )
        self.decode_replaced = Counter(
            "debut_decode_workers_replaced",
            "Decoding processes replaced: time, cpu, memory, crash, start, unheard (gone between files), retired.",
            ("reason",),
            registry=registry,
        )
        self.ingest_jobs = Gauge(
            "debut_ingest_jobs", "Uploads answered with 202 that are not over yet.", registry=registry
        )
        self.tracks = Gauge("debut_index_vectors", "Tracks that can be recommended.", registry=registry)
        self.fresh = Gauge(
            "debut_index_fresh_vectors", "Tracks beside those of the release, searched exactly.", registry=registry
        )
        self.tombstones = Gauge(
            "debut_index_tombstones", "Rows of tracks taken down or replaced, until the next fold.", registry=registry
        )
        self.ledger_events = Gauge("debut_ledger_events", "Events in the ledger.", registry=registry)
        self.release = Gauge(
            "debut_release_info", "The release being served.", ("release", "encoder"), registry=registry
        )
        self.swaps = Counter(
            "debut_release_swaps",
            "Releases that were taken up while serving, or refused.",
            ("outcome",),
            registry=registry,
        )
        self.build = Gauge("debut_build_info", "The running version.", ("version",), registry=registry)

    def watch(self, view: Callable[[], CollectionView], ledger_events: Callable[[], float]) -> None:
        """Read these figures whenever the metrics are asked for."""
        self.tracks.set_function(lambda: len(view().continuation))
        self.fresh.set_function(lambda: len(view().audio.fresh))
        self.tombstones.set_function(lambda: (now := view().catalogue).size - len(now))
        self.ledger_events.set_function(ledger_events)

    def show_release(self, release: str, encoder: str) -> None:
        """Name the release that is served, and no other."""
        self.release.clear()
        self.release.labels(release, encoder).set(1)

    def exposition(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class Stopwatch:
    """The seconds of one ingest's stages, for its answer and for the metrics."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.current: str | None = None
        """The stage that began last."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; a stage that fails is not noted."""
        started, self.current = time.perf_counter(), name
        yield
        self.seconds[name] = time.perf_counter() - started

    def move(self, seconds: float, stage: str, to: str) -> None:
        """Count `seconds` of a stage as part of another."""
        self.seconds[stage] -= seconds
        self.seconds[to] = self.seconds.get(to, 0.0) + seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self.started

    def note(self, metrics: Metrics) -> None:
        """Add the stages to the metrics."""
        for name, seconds in self.seconds.items():
            metrics.ingest_seconds.labels(name).observe(seconds)
