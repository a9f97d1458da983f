"""Track metadata by row: look-up, filters as bool masks, search by title, all while it grows and shrinks."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.growing import GrowingArray
from index.tracks import titles
from index.tracks.catalogue_file import CatalogueError, SealedTracks, write_catalogue
from index.tracks.filters import FilterColumns, Filters, FilterView
from index.tracks.track import Track

__all__ = ["Catalogue", "CatalogueError", "CatalogueView", "Filters", "write_catalogue"]

Mask = NDArray[np.bool_]


class ReleaseFiles(Protocol):
    """What the index needs of index.release.release.Release."""

    @property
    def id(self) -> str:
        """Identity of the release."""

    def file(self, name: str) -> Path:
        """Return the path of a file of the release."""


@dataclass(frozen=True, slots=True)
class CatalogueView:
    """A Catalogue at one instant: rows 0 to size - 1, some of them removed. It never changes.

    Rows are those of the release (`sealed`) and, from len(sealed) on, tracks that were added since. A row is
    never used again: a track that is replaced gets a new one.
    """

    sealed: SealedTracks
    fresh: list[Track] = field(repr=False)
    """Tracks from row len(sealed) on. The list may already hold later ones than this view."""
    fresh_lines: list[str] = field(repr=False)
    newest: dict[str, int] = field(repr=False)
    """Track id -> its latest row, which may lie beyond this view."""
    replaced: list[int] = field(repr=False)
    """The row that each fresh row replaced, -1 for none; as long as `fresh`."""
    origins: NDArray[np.int64]
    """i64 [size]: the release's row that the listening of this row's track is filed under, -1 for none."""
    interactions: NDArray[np.int32]
    """i32 [size]: training playlist entries and listens; 0 is a cold track."""
    columns: FilterView
    live: Mask
    """bool [size]: False for rows that were removed or replaced."""
    count: int
    """Live rows."""

    def __len__(self) -> int:
        return self.count

    @property
    def size(self) -> int:
        """Rows ever used, removed ones included: the length of masks."""
        return len(self.live)

    def row_of(self, track_id: str) -> int | None:
        """Return the row of a track, None when the catalogue does not hold it (any more)."""
        row = self.newest.get(track_id, -1)
        while row >= self.size:  # replaced since this view was taken
            row = self.replaced[row - len(self.sealed)]
        return row if row >= 0 and self.live[row] else None

    def track(self, row: int) -> Track:
        """Return the track of a live row; KeyError for any other."""
        if not 0 <= row < self.size or not self.live[row]:
            raise KeyError(f"row {row} holds no track")
        return self.sealed.track(row) if row < len(self.sealed) else self.fresh[row - len(self.sealed)]

    def is_cold(self, row: int) -> bool:
        """Return whether nothing was known of the track's listening when the release was trained."""
        return int(self.interactions[row]) == 0

    def mask(self, filters: Filters) -> Mask:
        """Return bool [size]: the live rows that pass all of `filters`."""
        mask = self.live & self.columns.mask(filters)
        return mask & (self.interactions == 0) if filters.only_cold else mask

    def search(self, query: str, limit: int = 20) -> list[int]:
        """Return at most `limit` rows whose title or artist has words beginning with each word of `query`.

        Case, accents and punctuation do not count. Tracks whose title is the query come first, then those
        whose artist is, whose title begins with it, and the rest; within each by falling interactions, then
        by row. Raises ValueError for limit < 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        folded = titles.fold(query)
        if not folded:
            return []
        first = len(self.sealed)
        rows, tiers = self.sealed.titles.search(folded)
        more, their = titles.Titles.of(self.fresh_lines[: self.size - first]).search(folded)
        rows, tiers = np.concatenate((rows, more + first)), np.concatenate((tiers, their))
        rows, tiers = rows[self.live[rows]], tiers[self.live[rows]]
        order = np.lexsort((rows, -self.interactions[rows], tiers))
        return [int(row) for row in rows[order[:limit]]]


class Catalogue:
    """The catalogue of one release while it is served: readers take views, a writer publishes the next."""

    def __init__(self, sealed: SealedTracks) -> None:
        size = len(sealed)
        self._writing = threading.Lock()
        self._columns = FilterColumns(sealed)
        self._origins = GrowingArray.of(np.arange(size, dtype=np.int64))
        self._interactions = GrowingArray.of(sealed.interactions)
        self._live = GrowingArray.of(np.ones(size, dtype=bool))
        self._before: tuple[CatalogueView, GrowingArray] | None = None
        self._view = CatalogueView(
            sealed=sealed,
            fresh=[],
            fresh_lines=[],
            newest=dict(sealed.rows),
            replaced=[],
            origins=self._origins.view(),
            interactions=self._interactions.view(),
            columns=self._columns.view(),
            live=self._live.view(),
            count=size,
        )

    @classmethod
    def open(cls, release: ReleaseFiles) -> "Catalogue":
        """Read the tracks.parquet of `release`; raises CatalogueError."""
        return cls(SealedTracks.read(release.file("tracks.parquet")))

    def __len__(self) -> int:
        return len(self._view)

    def row_of(self, track_id: str) -> int | None:
        """See CatalogueView.row_of."""
        return self._view.row_of(track_id)

    def track(self, row: int) -> Track:
        """See CatalogueView.track."""
        return self._view.track(row)

    def is_cold(self, row: int) -> bool:
        """See CatalogueView.is_cold."""
        return self._view.is_cold(row)

    def mask(self, filters: Filters) -> Mask:
        """See CatalogueView.mask."""
        return self._view.mask(filters)

    def search(self, query: str, limit: int = 20) -> list[int]:
        """See CatalogueView.search."""
        return self._view.search(query, limit)

    def view(self) -> CatalogueView:
        """Return the catalogue as it is now, for several questions to one state."""
        return self._view

    def add(self, track: Track, interactions: int | None = None) -> int:
        """Add a track under a new row, which is returned; one of the same id is removed in the same instant.

        Without `interactions` (how often training saw it) those of the last track of this id count, else 0. Whether
        that one is still there or was removed first makes no difference: a ledger that is replayed skips the removal.
        ValueError, and nothing is added, for an empty track id or negative interactions.
        """
        if not track.track_id:
            raise ValueError("a track needs a track_id")
        if interactions is not None and interactions < 0:
            raise ValueError(f"interactions must not be negative, but {interactions} is")
        text = titles.line(track.title, track.artist)
        with self._writing:
            view = self._view
            self._before = view, self._live
            try:
                return self._added(view, track, text, interactions)
            except MemoryError:
                self._undo()
                raise

    def _added(self, view: CatalogueView, track: Track, text: str, interactions: int | None) -> int:
        row, old, last = view.size, view.row_of(track.track_id), view.newest.get(track.track_id, -1)
        if interactions is None:
            interactions = 0 if last < 0 else int(view.interactions[last])
        columns = self._columns.append(track)
        count = view.size - len(view.sealed)
        view.fresh[count:] = [track]  # what an add that was taken back had put there is overwritten
        view.fresh_lines[count:] = [text]
        view.replaced[count:] = [last]
        view.newest[track.track_id] = row
        if old is not None:
            self._live = _without(self._live, old)
        self._view = replace(
            view,
            origins=self._origins.append(np.array([-1 if last < 0 else view.origins[last]])),
            interactions=self._interactions.append(np.array([interactions], dtype=np.int32)),
            columns=columns,
            live=self._live.append(np.ones(1, dtype=bool)),
            count=view.count + (old is None),
        )
        return row

    def remove(self, track_id: str) -> int | None:
        """Remove a track; return the row it had, None when it was not there."""
        with self._writing:
            view = self._view
            row = view.row_of(track_id)
            if row is not None:
                self._before = view, self._live
                self._live = _without(self._live, row)
                self._view = replace(view, live=self._live.view(), count=view.count - 1)
            return row

    def undo(self) -> None:
        """Take the last `add` or `remove` back. Nobody may have a view of it yet.

        Readers of earlier views share its lists: those are left as they are, for the next `add` to overwrite.
        """
        with self._writing:
            self._undo()

    def _undo(self) -> None:
        assert self._before is not None
        self._view, self._live = view, live = self._before
        count = view.size - len(view.sealed)
        for track, last in zip(view.fresh[count:], view.replaced[count:], strict=False):
            if last < 0:
                view.newest.pop(track.track_id, None)
            else:
                view.newest[track.track_id] = last
        for array in (self._origins, self._interactions, live):
            array.cut(view.size)
        self._columns.cut(view.columns)


def _without(live: GrowingArray, row: int) -> GrowingArray:
    """Return a copy of `live` with `row` False: views hold the old one."""
    mask = live.view().copy()
    mask[row] = False
    return GrowingArray.of(mask)
