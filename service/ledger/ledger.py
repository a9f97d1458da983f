"""The ledger: what happened to the catalogue since the release, so that no acknowledged track is lost."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import DebutError
from index.models.encoder import TrackVectors
from index.tracks.track import Track
from service.ledger.records import PackedFeatures


class LedgerError(DebutError):
    """The ledger cannot be used. Codes: ledger_unwritable, ledger_full (its disk is), ledger_damaged, ledger_format,
    ledger_busy, ledger_missing, ledger_overtaken, ledger_unsafe (it forgets what it acknowledges), ledger_lost (it has
    forgotten).

    `readable`: it takes nothing in, and what it holds can be read.
    """

    code = "ledger_unwritable"

    def __init__(self, detail: str, *, code: str | None = None, readable: bool = False) -> None:
        super().__init__(detail, code=code)
        self.readable = readable


class Overtaken(LedgerError):  # noqa: N818 - not a failure
    """An event was not appended: there are later ones than the writer knows of. Code ledger_overtaken."""

    def __init__(self, last: int) -> None:
        """`last` is the ledger's newest event."""
        super().__init__("Another replica wrote to the ledger meanwhile; try again.", code="ledger_overtaken")
        self.last = last


@dataclass(frozen=True, slots=True)
class Embedding:
    """A track's place in both spaces, and which models put it there.

    `encoder_id` and `matcher_id` name the models (see service.serving): vectors of other models than the
    release's are never mixed with its own, they are computed anew. `matching` is f32 [d], unit.
    """

    vectors: TrackVectors
    matching: NDArray[np.float32]
    encoder_id: str
    matcher_id: str


@dataclass(frozen=True, slots=True)
class TrackAdded:
    """A track was taken in, or replaced.

    `content_sha256` is the hex digest of the uploaded bytes; `features` are what any later release's encoder
    needs to embed the track without the audio; `created` is ISO 8601, UTC.
    """

    track: Track
    content_sha256: str
    features: PackedFeatures
    embedding: Embedding
    created: str

    @property
    def track_id(self) -> str:
        """The id of the track."""
        return self.track.track_id


@dataclass(frozen=True, slots=True)
class TrackRemoved:
    """A track was taken down; `created` is ISO 8601, UTC."""

    track_id: str
    created: str


Event = TrackAdded | TrackRemoved


class Known(NamedTuple):
    """What the ledger last heard of a track: the uploaded content's hash and metadata."""

    content_sha256: str
    track: Track


class Head(NamedTuple):
    """Which event it is, without what it carries. `content_sha256` is None for a removal."""

    sequence: int
    track_id: str
    created: str
    content_sha256: str | None

    @classmethod
    def of(cls, sequence: int, event: TrackAdded) -> "Head":
        """Return the head of an addition."""
        return cls(sequence, event.track_id, event.created, event.content_sha256)

    @property
    def mark(self) -> int:
        """An unsigned 64-bit number, never 0, that names this event among those of all ledgers.

        A release into which the ledger was folded has it beside the row (`index.release.fold`), so that a replay knows
        what is there already. A hash, not the sequence number alone: another ledger, or one restored from a backup,
        numbers other events alike.
        """
        text = "\n".join((str(self.sequence), self.track_id, self.created, self.content_sha256 or ""))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


class Ledger(Protocol):
    """Durable, and only ever appended to but for `trim`; safe to use from several threads.

    Every method raises LedgerError when the store fails.
    """

    def append(self, event: Event, after: int | None = None) -> int:
        """Add an event and return its sequence number; once this returns, the event survives SIGKILL.

        With `after` it is added only while that is the newest event (0: none yet). So whoever has applied all events
        up to `after` decides knowing everything, and of several replicas one is first. Raises Overtaken otherwise.
        """
        ...

    def replay(self, after: int = 0, held: Callable[[Head], bool] | None = None) -> Iterator[tuple[int, Event]]:
        """Yield the last event of every track in the order of their sequence numbers, from `after` on (exclusive).

        Events that come in meanwhile are yielded as well. Additions for which `held` is true are passed over, and
        their features are not read.
        """
        ...

    def newest(self) -> int:
        """Return the sequence number of the newest event; 0 when there was none."""
        ...

    def known(self, track_id: str) -> Known | None:
        """Return what was last added under this id; None when nothing was, or it was removed since."""
        ...

    def renew(self, sequence: int, embedding: Embedding) -> None:
        """Replace the embedding of an added track by that of the models now served (the event stays)."""
        ...

    def trim(self) -> int:
        """Delete every event that a later one of the same track has overtaken; return how many.

        What is left replays to the same state over any release. Of a track that was removed only that remains: who it
        was and when it went, so that no release trained on older data brings it back.
        """
        ...

    def check(self) -> None:
        """Carry out a real write transaction."""
        ...

    def __len__(self) -> int:
        """Return the number of events."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...


class SharedLedger(Ledger, Protocol):
    """A ledger that other processes write to as well."""

    def wait(self, after: int, seconds: float) -> bool:
        """Return True as soon as there is an event after `after`, False when `seconds` have passed without."""
        ...
