"""The audience/ folder of a release as it is served: who heard what, from both sides, and each listener's vector."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.errors import DebutError
from index.search.vectors import Rows, Vectors
from index.tracks.textcolumn import TextColumn

STEPS = np.float32(32767)
"""A component of a listener's vector, from -1 to 1, is kept in so many steps a side: int16, twice as fine as the
float16 of a number near 1/16, and decoded ten times as fast."""


class AudienceError(DebutError):
    """No audience can be named: codes audience_missing, audience_damaged, audience_no_neighbours."""

    code = "audience_damaged"


@dataclass(frozen=True, slots=True)
class Listening:
    """Who heard what: U listeners, N tracks, n pairs of them. Arrays are memory-mapped.

    Listeners stand list by list: those of one list have vectors near its centroid, so that the nearest to a
    song lie together, with all they heard. Those without a vector come last, in no list.
    """

    ids: TextColumn
    """[U]"""
    vectors: NDArray[np.int16]
    """i16 [U, d], in STEPS: l2 of the matching vectors heard, summed with weights log1p(plays); zero: no target."""
    lists: NDArray[np.int64]
    """i64 [L + 1]: list l holds the listeners from lists[l] to lists[l + 1]."""
    centroids: NDArray[np.float32]
    """f32 [L, d], unit."""
    activity: NDArray[np.float32]
    """f32 [U]: the number of tracks they heard, to a power that training chose."""
    offsets: NDArray[np.int64]
    """i64 [U + 1]: listener u heard rows[offsets[u] : offsets[u + 1]], ascending."""
    rows: NDArray[np.int32]
    plays: NDArray[np.float32]
    """f32 [n], as `rows`: read when a release is made from this one, not while serving."""
    track_offsets: NDArray[np.int64]
    """i64 [N + 1]: row r was heard by track_listeners[track_offsets[r] : track_offsets[r + 1]], ascending."""
    track_listeners: NDArray[np.int32]
    track_strengths: NDArray[np.float32]
    """f32 [n]: log1p(plays) over the listener's largest, over the root of the number of tracks they heard."""

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def placed(self) -> int:
        """How many listeners have a vector: the first ones. All of them heard something."""
        return int(self.lists[-1])

    @property
    def power(self) -> float:
        """The power of `activity`, to six digits; 0 where nobody heard two tracks."""
        most = int(np.diff(self.offsets).max(initial=0))
        return round(float(np.log(self.activity.max()) / np.log(most)), 6) if most > 1 else 0.0

    def points(self, listeners: Rows | slice) -> Vectors:
        """Return the vectors f32 [n, d] of `listeners`."""
        decoded: Vectors = self.vectors[listeners] * (1 / STEPS)
        return decoded

    def histories(self, listeners: Rows | slice) -> tuple[Rows, NDArray[np.int32]]:
        """Return what `listeners` i64 [n] (or a slice) heard, one after the other: ends i64 [n], and rows."""
        if isinstance(listeners, slice):
            bounds = self.offsets[listeners.start : listeners.stop + 1]
            return bounds[1:] - bounds[0], self.rows[bounds[0] : bounds[-1]]
        return _gathered(self.offsets, self.rows, listeners)

    def listeners_of(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return who heard the release's track `row`, and their strengths."""
        if not 0 <= row < len(self.track_offsets) - 1:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        span = slice(int(self.track_offsets[row]), int(self.track_offsets[row + 1]))
        return self.track_listeners[span], self.track_strengths[span]

    def fans(self, rows: Rows) -> NDArray[np.int32]:
        """Return who heard any of the release's tracks `rows` i64 [n], more than once who heard more than one."""
        return _gathered(self.track_offsets, self.track_listeners, rows)[1]

    @classmethod
    def open(cls, directory: Path) -> "Listening | None":
        """Map the folder; None when there is none. AudienceError when its files do not fit together."""
        if not directory.is_dir():
            return None
        try:
            names = pq.read_table(directory / "listeners.parquet", columns=["listener_id"])
            arrays = {name: _mapped(directory / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        except (OSError, ValueError, EOFError, KeyError, pa.ArrowInvalid) as error:
            raise AudienceError(f"{directory} cannot be read ({error}): publish again") from error
        found = cls(ids=TextColumn(names["listener_id"]), **arrays)
        found._check(directory)
        return found

    def _check(self, directory: Path) -> None:
        listeners, pairs = len(self.ids), len(self.rows)
        fits = (
            self.vectors.ndim == self.centroids.ndim == 2
            and self.vectors.shape[1] == self.centroids.shape[1]
            and len(self.vectors) == listeners == len(self.offsets) - 1
            and len(self.centroids) == len(self.lists) - 1
            and len(self.activity) == listeners
            and self.placed <= listeners
            and len(self.plays) == len(self.track_listeners) == len(self.track_strengths) == pairs
            and int(self.offsets[-1]) == int(self.track_offsets[-1]) == pairs
        )
        if not fits:
            raise AudienceError(f"{directory}: files differ in their number of listeners or plays: publish again")


ARRAYS: dict[str, type] = {
    "vectors": np.int16,
    "lists": np.int64,
    "centroids": np.float32,
    "activity": np.float32,
    "offsets": np.int64,
    "rows": np.int32,
    "plays": np.float32,
    "track_offsets": np.int64,
    "track_listeners": np.int32,
    "track_strengths": np.float32,
}
"""The NumPy files of the folder, each NAME.npy."""


def _gathered(offsets: NDArray[np.int64], values: NDArray[np.int32], places: Rows) -> tuple[Rows, NDArray[np.int32]]:
    """Return values[offsets[p] : offsets[p + 1]] of all `places` p, one after the other, and where each ends."""
    starts, counts = offsets[places], offsets[places + 1] - offsets[places]
    ends = np.cumsum(counts)
    return ends, values[np.arange(int(counts.sum())) + np.repeat(starts - (ends - counts), counts)]


def _mapped(path: Path, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # still mapped, but plain
    if array.dtype != dtype:
        raise ValueError(f"{path.name} holds {array.dtype}, not {np.dtype(dtype)}")
    if not len(array) and path.stem in ("lists", "offsets", "track_offsets"):
        raise ValueError(f"{path.name} is empty")
    return array
