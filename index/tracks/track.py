"""What is known of a track besides its sound."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Attribute = str | float | list[str]


@dataclass(frozen=True, slots=True)
class Track:
    """Metadata of one track. Only `track_id` is required; None (or an empty tuple) means unknown.

    `duration_s` is in seconds, `release_date` an ISO 8601 date (YYYY-MM-DD), `language` an ISO 639-1 code.
    `attributes` holds further columns of the data set that BCL uses as fields (see `index.models.fields`).
    """

    track_id: str
    title: str | None = None
    artist: str | None = None
    album: str | None = None
    duration_s: float | None = None
    release_date: str | None = None
    explicit: bool | None = None
    language: str | None = None
    genres: tuple[str, ...] = ()
    lyrics: str | None = None
    isrc: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
