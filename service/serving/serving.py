"""What the service serves from: one release, opened, and the ledger's tracks on top of it."""

import dataclasses
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from index.audience.cat import Audience
from index.collection import Collection
from index.models.encoder import Encoder, EncoderError, TrackVectors
from index.models.matcher import Matcher
from index.models.onnxmodel import ModelError
from index.release.fold import read_marks
from index.release.prune import hold
from index.release.release import Release, ReleaseError
from index.search.vectors import checked_vectors
from index.sound.features import FRAMES, MELS, dequantise
from index.sound.sketch import WIDTH
from index.tracks.track import Track
from service.ledger.ledger import Embedding, Event, Head, Ledger, LedgerError, Overtaken, TrackAdded
from service.serving.spaces import open_space
from service.settings import Settings

log = structlog.get_logger("debut.serving")


@dataclass(frozen=True)
class Serving:
    """One release with its models and the collection that grows on it.

    `encoder_id` and `matcher_id` are hashes of the models' files: a vector belongs to exactly one such pair.
    """

    release: Release
    encoder: Encoder
    matcher: Matcher
    collection: Collection
    audience: Audience
    encoder_id: str
    matcher_id: str
    marks: NDArray[np.uint64]
    """u64 [release's rows]: the ledger's event that each was folded from (`Head.mark`), 0 for none."""
    warm_up_s: float
    """How long the first inference took, both models."""

    @classmethod
    def open(cls, settings: Settings) -> "Serving":
        """Open and verify the release, and run both models once so that the first request finds them warm.

        Raises DebutError (ReleaseError and the errors of its parts) when anything is missing or damaged, or the models
        do not make vectors such as the release holds.
        """
        path = Release.open(settings.releases, verify=False).path
        held = hold(path)  # nobody prunes it while it is looked at, and served
        try:
            serving = cls._opened(Release.open(path), settings)
        except BaseException:
            os.close(held)
            raise
        weakref.finalize(serving, os.close, held)
        return serving

    @classmethod
    def _opened(cls, release: Release, settings: Settings) -> "Serving":
        threads = settings.encoder_threads or None
        encoder = Encoder.open(release.path / "encoder", threads)
        matcher = Matcher.open(release.path / "matcher", threads)
        serving = cls(
            release=release,
            encoder=encoder,
            matcher=matcher,
            collection=Collection.open(release, open_space(settings, release.id)),
            audience=Audience.open(release),
            encoder_id=encoder.id,
            matcher_id=_matcher_id(release),
            marks=read_marks(release),
            warm_up_s=0.0,
        )
        if release.manifest.encoder_id not in (None, encoder.id):
            raise ReleaseError(f"release {release.id} has vectors of another encoder than its own: publish it again")
        if (width := serving.collection.view().space("sketch").dims) != WIDTH:
            raise ReleaseError(f"release {release.id} has sketches of {width} numbers, not {WIDTH}: publish it again")
        started = time.perf_counter()
        serving.embed(Track("warm-up", title="Warm up"), np.zeros((1, FRAMES, MELS), np.float32))
        return dataclasses.replace(serving, warm_up_s=time.perf_counter() - started)

    def embed(self, track: Track, log_mel: NDArray[np.float32]) -> Embedding:
        """Return where a track lies in both spaces, from its log-mel f32 [clips, 1001, 64] and metadata.

        Raises ModelError when a model's answer is no unit vector of its space: it must not get into a ledger.
        """
        vectors = self.encoder.track(log_mel, self.encoder.caption(track), track.lyrics)
        matching = self.match(track, vectors)
        view = self.collection.view()
        try:
            for vector in (vectors.audio, vectors.text, vectors.lyrics, vectors.continuation):
                if vector is not None:
                    checked_vectors(vector[None], view.continuation.dims)
            checked_vectors(matching[None], view.matching.dims)
        except ValueError as error:
            raise ModelError(
                f"The models of release {self.release.id} cannot place {track.track_id!r}: {error}."
            ) from None
        return Embedding(vectors, matching, self.encoder_id, self.matcher_id)

    def match(self, track: Track, vectors: TrackVectors) -> NDArray[np.float32]:
        """Return a track's unit vector f32 [d] in the matching space."""
        dense = {name: _row(getattr(vectors, name), self.encoder.dims) for name in ("audio", "text", "lyrics")}
        matching: NDArray[np.float32] = self.matcher.vectors([track], dense)[0]
        return matching

    def replay(self, ledger: Ledger, after: int = 0, *, marks: dict[str, int] | None = None) -> int:
        """Bring the collection from where the ledger was at event `after` to where it says it is; return its last.

        Tracks that the release holds already, folded into it, are passed over. Tracks that other models embedded are
        embedded anew from their stored features (nothing has to be uploaded again), and the ledger keeps the result
        for the next start. With `marks`, to fold, it is only read, and the marks of the added tracks are put there.
        Raises LedgerError, and ModelError (see `embed`).
        """
        counts = {"added": 0, "removed": 0, "renewed": 0}

        def held(head: Head) -> bool:
            nonlocal after
            if holds := self._holds(head):
                after = max(after, head.sequence)  # nobody has to look at it again
            return holds

        for sequence, event in ledger.replay(after, held):
            if isinstance(event, TrackAdded):
                embedding = self._current(event)
                if marks is not None:
                    marks[event.track_id] = Head.of(sequence, event).mark
                if embedding is not event.embedding:
                    if marks is None:
                        ledger.renew(sequence, embedding)
                    counts["renewed"] += 1
                    if counts["renewed"] % 100 == 0:
                        log.info("embedding the ledger's tracks anew", done=counts["renewed"])
                self.collection.add(event.track, embedding.vectors, embedding.matching)
            else:
                self.collection.remove(event.track_id)
            counts["added" if isinstance(event, TrackAdded) else "removed"] += 1
            after = max(after, sequence)
        if any(counts.values()):
            log.info("ledger replayed", release=self.release.id, **counts)
        return after

    def _holds(self, head: Head) -> bool:
        """Whether the release has the track just as this event left it."""
        row = self.collection.catalogue.row_of(head.track_id)
        return row is not None and row < len(self.marks) and int(self.marks[row]) == head.mark

    def _current(self, event: TrackAdded) -> Embedding:
        """Return the event's embedding if this release's models made it, else a new one."""
        embedding = event.embedding
        if embedding.encoder_id != self.encoder_id:
            try:
                return self.embed(event.track, dequantise(_unpacked(event)))
            except EncoderError as error:
                raise EncoderError(
                    f"Release {self.release.id} cannot place {event.track_id!r} of the ledger ({error.detail}): take "
                    "that track down, or publish a release whose encoder reads what it has."
                ) from None
        if embedding.matcher_id != self.matcher_id:
            matching = self.match(event.track, embedding.vectors)
            return dataclasses.replace(embedding, matching=matching, matcher_id=self.matcher_id)
        return embedding


class Current:
    """Which release is served now.

    A request takes `serving` once, at its start, and answers from it wholly. Whoever writes to the ledger holds
    `committing` from before the event until the track is in the collection of `serving`; a swap holds it from the last
    events it carries over until `serving` is the new one. So no event falls between the two. With a ledger that several
    replicas share, `service.serving.follow` holds it while it applies the events of the others.
    """

    def __init__(self, serving: Serving, reached: int) -> None:
        self.serving = serving
        self.committing = threading.Lock()
        self.reached = reached
        """The ledger's event up to which the collection of `serving` has everything."""
        self._before = reached

    def write(self, ledger: Ledger, event: Event) -> bool:
        """Write an event down that the caller then applies to the collection, within `applying`. Hold `committing`.

        Returns False if other replicas wrote meanwhile: their events are applied, nothing was written, and the caller
        decides again whether it should be. Raises LedgerError, and what `Serving.replay` raises.
        """
        self._before = self.reached
        try:
            self.reached = ledger.append(event, self.reached)
        except Overtaken as overtaken:
            self.catch_up(ledger)
            self.reached = max(self.reached, overtaken.last)
            return False
        return True

    @contextmanager
    def applying(self) -> Iterator[None]:
        """Apply the event that was just written. Without the memory for it, whoever catches up next does it.

        The event is in the ledger, so it will be in the collection: with the next upload or take-down, or a restart.
        """
        try:
            yield
        except MemoryError:
            self.reached = self._before
            raise

    def catch_up(self, ledger: Ledger) -> None:
        """Apply what others wrote to the ledger, in its order. Hold `committing`."""
        self.reached = self.serving.replay(ledger, self.reached)

    def caught_up(self, ledger: Ledger) -> Serving:
        """Return what is served, with all that any replica had acknowledged when this was called."""
        with self.committing:
            if ledger.newest() > self.reached:
                self.catch_up(ledger)
            return self.serving


def _unpacked(event: TrackAdded) -> NDArray[np.uint8]:
    try:
        return event.features.unpack()
    except ValueError as error:
        raise LedgerError(
            f"The ledger's features of {event.track_id!r} cannot be read ({error}): restore it from a backup.",
            code="ledger_damaged",
        ) from None


def _matcher_id(release: Release) -> str:
    """Return the SHA-256 over the checksums of the matcher's files, as the manifest has them."""
    files = release.manifest.files
    sums = "".join(f"{name}:{files[name].sha256}\n" for name in sorted(files) if name.startswith("matcher/"))
    return hashlib.sha256(sums.encode()).hexdigest()


def _row(vector: NDArray[np.float32] | None, dims: int) -> NDArray[np.float32]:
    return np.full((1, dims), np.nan, np.float32) if vector is None else vector[None]
