"""Filters on tracks and the columns of codes that turn them into bool masks by row."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.growing import GrowingArray
from index.tracks.catalogue_file import SealedTracks
from index.tracks.textcolumn import TextColumn
from index.tracks.titles import fold
from index.tracks.track import Track

_DATE = re.compile(r"(\d{4})(?:-(0[1-9]|1[0-2])(?:-(0[1-9]|[12]\d|3[01]))?)?")


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that all have to hold; the default lets everything pass.

    A track whose value is unknown does not pass a filter on it. The exception is explicit=False, which keeps
    out what is marked explicit: most catalogues mark nothing else. Names are compared without case, accents
    and punctuation.
    """

    explicit: bool | None = None
    """True: only tracks marked explicit. False: none of those."""
    languages: tuple[str, ...] = ()
    """Any of these (ISO 639-1 codes)."""
    genres: tuple[str, ...] = ()
    """At least one of these."""
    artists: tuple[str, ...] = ()
    """Any of these, by the whole artist name."""
    released_from: str | None = None
    """First date, YYYY, YYYY-MM or YYYY-MM-DD. ValueError for anything else."""
    released_to: str | None = None
    """Last date, which is still in: 2019 means up to 2019-12-31."""
    only_cold: bool = False
    """Only tracks without listening in the training data."""

    def __post_init__(self) -> None:
        for name in ("released_from", "released_to"):
            value = getattr(self, name)
            if value is not None and not _DATE.fullmatch(value):
                raise ValueError(f"{name} must be YYYY, YYYY-MM or YYYY-MM-DD, not {value!r}")

    def __bool__(self) -> bool:
        """Whether any condition is set."""
        return self != Filters()


@dataclass(frozen=True, slots=True)
class FilterView:
    """The columns at one instant; they never change."""

    explicit: NDArray[np.int8]
    """i8 [n]: -1 unknown, 0, 1"""
    languages: NDArray[np.int32]
    """i32 [n], codes of `names`; 0 unknown"""
    artists: NDArray[np.int32]
    """i32 [n], codes; 0 unknown"""
    released: NDArray[np.int32]
    """i32 [n], year * 10000 + month * 100 + day (1 where not known); 0 unknown"""
    genre_rows: NDArray[np.int64]
    """i64 [m], ascending: one entry a track and genre"""
    genre_codes: NDArray[np.int32]
    """i32 [m]"""
    names: dict[str, int] = field(repr=False)
    """Folded name -> code from 1 up; it may already know names that came after this view."""

    def mask(self, filters: Filters) -> NDArray[np.bool_]:
        """Return bool [n]: the rows that pass all conditions but only_cold, which the columns do not know."""
        mask = np.ones(len(self.explicit), dtype=bool)
        if filters.explicit is not None:
            mask &= (self.explicit == 1) if filters.explicit else (self.explicit != 1)
        if filters.languages:
            mask &= self._wanted(filters.languages)[self.languages]
        if filters.artists:
            mask &= self._wanted(filters.artists)[self.artists]
        if filters.genres:
            having = np.zeros(len(mask), dtype=bool)
            having[self.genre_rows[self._wanted(filters.genres)[self.genre_codes]]] = True
            mask &= having
        if filters.released_from is not None:
            mask &= self.released >= _date(filters.released_from)
        if filters.released_to is not None:
            mask &= (self.released <= _date(filters.released_to, last=True)) & (self.released > 0)
        return mask

    def _wanted(self, names: Iterable[str]) -> NDArray[np.bool_]:
        codes = [self.names.get(fold(name), 0) for name in names]  # first: a writer may add names meanwhile
        wanted = np.zeros(len(self.names) + 1, dtype=bool)
        wanted[codes] = True
        wanted[0] = False
        return wanted


class FilterColumns:
    """Fills the columns, from the release's tracks and then track by track; one writer at a time."""

    def __init__(self, sealed: SealedTracks) -> None:
        self._names: dict[str, int] = {}
        languages, artists = (self._codes(sealed.texts[name]) for name in ("language", "artist"))
        genres = self._codes(sealed.genres)
        dates, known = sealed.texts["release_date"].encoded()
        released = np.array([0, *map(_known_date, known)], dtype=np.int32)[dates]
        rows = np.repeat(np.arange(len(sealed)), np.diff(sealed.genre_starts))
        self._explicit = GrowingArray.of(sealed.explicit)
        self._languages, self._artists = GrowingArray.of(languages), GrowingArray.of(artists)
        self._released = GrowingArray.of(released)
        self._genre_rows, self._genre_codes = GrowingArray.of(rows), GrowingArray.of(genres)

    def view(self) -> FilterView:
        """Return the columns as they are now."""
        return FilterView(
            explicit=self._explicit.view(),
            languages=self._languages.view(),
            artists=self._artists.view(),
            released=self._released.view(),
            genre_rows=self._genre_rows.view(),
            genre_codes=self._genre_codes.view(),
            names=self._names,
        )

    def append(self, track: Track) -> FilterView:
        """Append `track` under the next row and return the columns with it."""
        codes = np.array([self._code(name) for name in (track.language, track.artist, *track.genres)], np.int32)
        explicit = np.array([-1 if track.explicit is None else int(track.explicit)], np.int8)
        released = np.array([_known_date(track.release_date)], np.int32)
        row = len(self._explicit.view())  # all that could fail has been done: the columns stay of one length
        self._explicit.append(explicit)
        self._released.append(released)
        self._languages.append(codes[:1])
        self._artists.append(codes[1:2])
        self._genre_rows.append(np.full(len(codes) - 2, row))
        self._genre_codes.append(codes[2:])
        return self.view()

    def cut(self, view: FilterView) -> None:
        """Forget what was appended since `view`, which was the last that anybody has; names may stay."""
        self._explicit.cut(len(view.explicit))
        self._released.cut(len(view.released))
        self._languages.cut(len(view.languages))
        self._artists.cut(len(view.artists))
        self._genre_rows.cut(len(view.genre_rows))
        self._genre_codes.cut(len(view.genre_codes))

    def _codes(self, column: TextColumn) -> NDArray[np.int32]:
        places, values = column.encoded()
        return np.array([0, *map(self._code, values)], dtype=np.int32)[places]

    def _code(self, name: str | None) -> int:
        folded = fold(name)
        return self._names.setdefault(folded, len(self._names) + 1) if folded else 0


def _date(text: str, *, last: bool = False) -> int:
    """Return the first (or last) day of YYYY, YYYY-MM or YYYY-MM-DD as a number, 0 for anything else."""
    found = _DATE.fullmatch(text)
    if found is None:
        return 0
    year, month, day = found.groups()
    return int(year) * 10_000 + int(month or (12 if last else 1)) * 100 + int(day or (31 if last else 1))


def _known_date(text: str | None) -> int:
    """Return the date a track carries as a number, 0 when it has none or one that is not ISO 8601."""
    return _date(text.strip()[:10]) if text else 0
