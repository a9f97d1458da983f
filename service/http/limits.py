"""Limits that an operator sets: a request beyond one is refused, naming the setting that moves it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.http.problems import Problem
from service.http.schemas import ContinueRequest, TrackMetadata
from service.settings import Settings


def within(settings: Settings, setting: str, field: str, size: int, unit: str) -> None:
    """Raise Problem `invalid_request` when `size` (of `field`, in `unit`) exceeds the limit `setting`."""
    limit = getattr(settings, setting)
    if size > limit:
        message = f"is {size} {unit}, more than the {limit} that are allowed"
        raise Problem(
            "invalid_request",
            f"{field}: {message}.",
            setting=setting,
            errors=[{"field": field, "message": message}],
        )


def check_metadata(metadata: TrackMetadata, settings: Settings) -> None:
    """Hold a track's metadata against the limits."""
    within(settings, "max_id_chars", "metadata.track_id", len(metadata.track_id or ""), "characters")
    within(settings, "max_lyrics_chars", "metadata.lyrics", len(metadata.lyrics or ""), "characters")
    within(settings, "max_genres", "metadata.genres", len(metadata.genres), "genres")
    within(settings, "max_attributes", "metadata.attributes", len(metadata.attributes), "attributes")
    for name in ("title", "artist", "album"):
        within(settings, "max_text_chars", f"metadata.{name}", len(getattr(metadata, name) or ""), "characters")
    for genre in metadata.genres:
        within(settings, "max_text_chars", "metadata.genres", len(genre), "characters")
    for name, value in metadata.attributes.items():
        field = f"metadata.attributes.{name[:40]}"
        values = value if isinstance(value, list) else [value]
        within(settings, "max_attributes", field, len(values), "values")
        for text in [name, *(v for v in values if isinstance(v, str))]:
            within(settings, "max_text_chars", field, len(text), "characters")


def check_continue(request: ContinueRequest, settings: Settings) -> None:
    """Hold a request for a playlist's continuation against the limits."""
    within(settings, "max_seeds", "seeds", len(request.seeds), "ids")
    within(settings, "max_seeds", "negatives", len(request.negatives), "ids")
    within(settings, "max_exclude", "exclude", len(request.exclude), "ids")
    within(settings, "max_k", "k", request.k, "tracks")
    for name in ("languages", "genres", "artists"):
        values = getattr(request.filters, name) or ()
        within(settings, "max_filter_values", f"filters.{name}", len(values), "values")
        for text in values:
            within(settings, "max_text_chars", f"filters.{name}", len(text), "characters")


class Places:
    """Places for the uploads in hand; to be used by one event loop.

    First come, first served; but one API key may hold at most as many places as are free (dynamic thresholds:
    Choudhury and Hahne, 1998). So one alone holds half of them, two a third each, and whoever comes finds a place.
    """

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0
        self._of = Counter[str]()

    @contextmanager
    def place(self, key: str | None) -> Iterator[None]:
        """Hold a place for a key, or for nobody in particular. Raises Problem: queue_full, key_queue_full."""
        if self.taken >= self.size:
            detail = f"{self.taken} uploads are in hand already; try again shortly."
            raise Problem("queue_full", detail, setting="queue_size")
        if key is not None and self._of[key] >= self.size - self.taken:
            detail = (
                f"{self._of[key]} uploads of {key} are in hand already, and others want a place; try again shortly."
            )
            raise Problem("key_queue_full", detail, setting="queue_size")
        self.taken += 1
        self._of.update([key] if key is not None else [])
        try:
            yield
        finally:
            self.taken -= 1
            if key is not None:
                self._of -= Counter([key])  # and forgets keys without any


class Queue:
    """Places for as much as may be in hand at once; to be used by one event loop."""

    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Raises Problem `busy` when there is none."""
        if self.taken >= self.size:
            raise Problem("busy", f"{self.taken} searches are in hand already: try again soon.", setting="search_queue")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
