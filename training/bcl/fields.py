"""Which fields BCL reads, where the configuration does not say: whatever the data set can fill."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from index.models.fields import MULTI_SLOTS, FieldSpec, Kind
from index.tracks.track import Track
from training.bcl.config import BclConfig, BclError

MOST_SLOTS = 32  # values of a multi field that are read; most fields have far fewer
_TEXTS = ("title", "album", "lyrics", "isrc")  # of a track, and fields only where they are named


def choose_fields(
    tracks: Sequence[Track],
    vectors: Mapping[str, NDArray[np.float32]],
    config: BclConfig,
    further: Sequence[str] = (),
) -> BclConfig:
    """Return `config` with the fields that `tracks` can fill, unless it names them itself.

    Artist, language, explicit, genres, release date, duration, and each extra attribute; then whatever of
    audio, text and lyrics has a vector. A field with one value or none is left out: it would say nothing.
    Titles, albums, lyrics and ISRC mostly name the track itself: they are fields when they stand in `further`.
    Raises BclError when nothing is left.
    """
    if config.fields:
        return config
    dense = [FieldSpec(name, "dense", name, config.field_dims) for name in _present(vectors)]
    columns = (*_columns(tracks, [name for name in _TEXTS if name in further]), *_attributes(tracks))
    taken = {spec.name for spec in dense}
    specs = (*(replace(c, name=f"{c.name} column") if c.name in taken else c for c in columns), *dense)
    if not specs:
        raise BclError(
            "no track has an artist, language, genre, date, duration or vector, nor a further column: BCL has nothing "
            "to read; name the columns of tracks.parquet that describe a track with --fields",
            code="bcl_no_fields",
        )
    return replace(config, fields=specs)


def _columns(tracks: Sequence[Track], further: Sequence[str]) -> Iterator[FieldSpec]:
    for column in ("artist", "language", "explicit", *further):
        if _varies(getattr(track, column) for track in tracks):
            yield FieldSpec(column, "categorical", column)
    if longest := max(len(track.genres) for track in tracks):
        yield FieldSpec("genres", "multi", "genres", slots=_slots(longest))
    for column in ("release_date", "duration_s"):
        if _varies(getattr(track, column) for track in tracks):
            yield FieldSpec(column, "numeric", column)


def _attributes(tracks: Sequence[Track]) -> Iterator[FieldSpec]:
    for name in sorted({name for track in tracks for name in track.attributes}):
        values = [track.attributes[name] for track in tracks if name in track.attributes]
        if _varies(str(value) for value in values):
            longest = max((len(value) for value in values if isinstance(value, list | tuple)), default=1)
            yield FieldSpec(name, _kind(values), name, slots=_slots(longest))


def _slots(longest: int) -> int:
    return min(max(longest, MULTI_SLOTS), MOST_SLOTS)


def _kind(values: Sequence[object]) -> Kind:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return "numeric"
    if all(map(_is_date, values)):
        return "numeric"
    return "multi" if any(isinstance(value, list | tuple) for value in values) else "categorical"


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and len(value) == len("2026-05-31") and bool(date.fromisoformat(value))
    except ValueError:
        return False


def _varies(values: Iterable[object]) -> bool:
    return len({value for value in values if value is not None}) > 1


def _present(vectors: Mapping[str, NDArray[np.float32]]) -> Iterator[str]:
    for name in ("audio", "text", "lyrics"):
        if name in vectors and np.isfinite(vectors[name]).all(1).any():
            yield name
