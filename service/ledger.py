"""The ledger: what happened to the catalogue since the release, so that no acknowledged track is lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index.encoder import TrackVectors
from index.errors import DebutError
from index.tracks import Track
from service.ledger_records import PackedFeatures


class LedgerError(DebutError):
    """The ledger cannot be used. Codes: ledger_unwritable, ledger_damaged, ledger_format, ledger_busy."""

    code = "ledger_unwritable"


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


class Ledger(Protocol):
    """Append-only and durable; safe to use from several threads.

    Every method raises LedgerError when the store fails.
    """

    def append(self, event: Event) -> int:
        """Add an event and return its sequence number; once this returns, the event survives SIGKILL."""
        ...

    def replay(self) -> Iterator[tuple[int, Event]]:
        """Yield the last event of every track in the order of their sequence numbers."""
        ...

    def known(self, track_id: str) -> Known | None:
        """Return what was last added under this id; None when nothing was, or it was removed since."""
        ...

    def renew(self, sequence: int, embedding: Embedding) -> None:
        """Replace the embedding of an added track by that of the models now served (the event stays)."""
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
