"""Upload -> decode -> features -> encoder -> ledger -> index: one pipeline for either form of upload."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

from index.sound.audio import AudioLimits
from index.sound.features import quantise
from index.tracks.track import Track
from service.decode.pool import Decoding
from service.decode.wire import Heard
from service.http.limits import Places
from service.http.problems import Problem
from service.http.upload import Upload
from service.ingest.duplicates import Near, nearest_sound
from service.ledger.ledger import Embedding, Ledger, TrackAdded, TrackRemoved
from service.ledger.records import PackedFeatures
from service.metrics import Metrics, Stopwatch
from service.serving.serving import Current, Serving
from service.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Ingested:
    """A track that can be recommended. `recording` is None when nothing had to be done ("unchanged")."""

    track: Track
    cold: bool
    outcome: Literal["created", "replaced", "unchanged"]
    recording: Heard | None
    release_id: str
    near: Near | None = None
    """The track that it may be another copy of, among those that were here when it came."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A track that is gone from all answers, and who still holds something of it until the next fold."""

    in_release: bool
    in_ledger: bool
    release_id: str


@dataclass(frozen=True, slots=True)
class _Analysed:
    """What an upload holds, whichever models are to read it."""

    track: Track
    recording: Heard
    features: PackedFeatures


class Ingest:
    """Takes tracks in and takes them down: this process's only writer of the ledger.

    Work on one track id is done one after the other, so the same upload twice at once is one track. Between replicas
    the ledger decides who was first (`Ledger.append`).
    `settings.ingest_threads` threads see it through decoding (in processes of their own: `service.decode`) and
    encoding; at most `settings.queue_size` uploads are in hand.
    """

    def __init__(self, current: Current, ledger: Ledger, settings: Settings, metrics: Metrics) -> None:
        self._current, self._ledger, self._settings, self._metrics = current, ledger, settings, metrics
        self._limits = AudioLimits(min_s=settings.min_audio_s, max_s=settings.max_audio_s)
        self._pool = ThreadPoolExecutor(settings.ingest_threads, thread_name_prefix="ingest")
        self.decoding = Decoding(settings, metrics)
        metrics.decode_queue.set_function(lambda: self._pool._work_queue.qsize() + self.decoding.waiting)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._places = Places(settings.queue_size)
        metrics.uploads.set_function(lambda: self._places.taken)

    @contextmanager
    def place_in_queue(self, key: str | None) -> Iterator[None]:
        """Hold a place while an upload, sent with an API key or without, is received and worked on.

        Raises Problem: queue_full, key_queue_full.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self._places.place(key))
            except Problem:
                self._metrics.refused.inc()
                raise
            yield

    async def add(self, upload: Upload, watch: Stopwatch) -> Ingested:
        """Take a track in; once this returns it can be recommended, now and after any crash.

        Raises Problem `track_exists` for a known id with other content or metadata (unless it is to be
        replaced), AudioError and the Problems of `Decoding.hear` for what cannot be decoded, LedgerError when
        the ledger cannot be written.
        """
        return await self._one_by_one(upload.track.track_id, self._pool, lambda: self._add(upload, watch))

    async def remove(self, track_id: str) -> Removed | None:
        """Take a track down; return a receipt, None when there is no such track."""
        # Not among the uploads: a take-down must not wait until they are decoded.
        return await self._one_by_one(track_id, None, lambda: self._remove(track_id))

    async def _one_by_one(self, track_id: str, pool: Executor | None, work: Callable[[], Result]) -> Result:
        lock = self._locks.get(track_id)
        if lock is None:
            lock = self._locks[track_id] = asyncio.Lock()
        async with lock:
            return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _add(self, upload: Upload, watch: Stopwatch) -> Ingested:
        """Decode, embed and commit; looks and embeds anew when a swap, or another replica's upload, was quicker."""
        analysed: _Analysed | None = None
        while True:
            serving = self._current.caught_up(self._ledger)
            catalogue = serving.collection.catalogue
            old = catalogue.row_of(upload.track.track_id)
            if old is not None and (known := self._unchanged(upload)) is not None:
                return Ingested(known, catalogue.is_cold(old), "unchanged", None, serving.release.id)
            analysed = analysed or self._analyse(upload, watch)
            with watch.stage("encode"):
                embedding = serving.embed(analysed.track, analysed.recording.log_mel)
            near = self._near(serving, analysed.track.track_id, embedding)
            event = TrackAdded(analysed.track, upload.content_sha256, analysed.features, embedding, _now())
            if (cold := self._commit(serving, event, old, watch)) is not None:
                outcome: Literal["created", "replaced"] = "created" if old is None else "replaced"
                return Ingested(analysed.track, cold, outcome, analysed.recording, serving.release.id, near)

    def _near(self, serving: Serving, track_id: str, embedding: Embedding) -> Near | None:
        sketch, at_least = embedding.vectors.sketch, self._settings.duplicate_similarity
        if sketch is None or at_least >= 1:
            return None
        return nearest_sound(serving.collection.view(), sketch, track_id, at_least)

    def _commit(self, serving: Serving, event: TrackAdded, old: int | None, watch: Stopwatch) -> bool | None:
        """Write the event down and index it; return whether the track is cold.

        Returns None if `serving` is served no more, or the track's row is no longer `old`: another replica took the
        track in, or down.
        """
        with self._current.committing:
            while self._current.serving is serving and serving.collection.catalogue.row_of(event.track_id) == old:
                with watch.stage("ledger"):
                    written = self._current.write(self._ledger, event)
                if written:
                    with watch.stage("index"), self._current.applying():
                        row = serving.collection.add(event.track, event.embedding.vectors, event.embedding.matching)
                    return serving.collection.catalogue.is_cold(row)
        return None

    def _unchanged(self, upload: Upload) -> Track | None:
        """Return the known track if the upload says nothing new of it, None if it replaces it; else raise."""
        track_id = upload.track.track_id
        known = self._ledger.known(track_id)
        same_content = known is not None and known.content_sha256 == upload.content_sha256
        if known and same_content and dataclasses.replace(known.track, duration_s=None) == upload.track:
            return known.track
        if upload.replace:
            return None
        other = "other metadata" if same_content else "other content"
        origin = other if known else "audio that came with the release and cannot be compared"
        raise Problem("track_exists", f"{track_id!r} is here already, with {origin}; replace=true replaces it.")

    def _analyse(self, upload: Upload, watch: Stopwatch) -> _Analysed:
        with watch.stage("decode"):
            recording = self.decoding.hear(upload.audio, self._limits)
        with watch.stage("features"):
            features = PackedFeatures.pack(quantise(recording.log_mel))
        watch.move(recording.features_s, "decode", "features")
        track = dataclasses.replace(upload.track, duration_s=recording.duration_s)
        return _Analysed(track, recording, features)

    def _remove(self, track_id: str) -> Removed | None:
        self._current.caught_up(self._ledger)
        with self._current.committing:
            serving = self._current.serving
            while (row := (catalogue := serving.collection.catalogue).row_of(track_id)) is not None:
                in_ledger = self._ledger.known(track_id) is not None
                if self._current.write(self._ledger, TrackRemoved(track_id, _now())):
                    with self._current.applying():
                        serving.collection.remove(track_id)
                    return Removed(int(catalogue.origins[row]) >= 0, in_ledger, serving.release.id)
        return None

    def close(self) -> None:
        """End the decoding processes, finish what else is being worked on and stop the threads."""
        self.decoding.close()
        self._pool.shutdown()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
