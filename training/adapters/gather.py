"""Gathers the playlists of many slices into columns: 4 bytes an entry, and each distinct track once."""

import hashlib
import heapq
from array import array
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from training.adapters.collection import TRACK_SCHEMA, Collection
from training.adapters.report import ImportReport
from training.adapters.slices import (
    ENTRIES,
    ID_FROM,
    LARGEST,
    PLAYLISTS,
    TEXTS,
    entry_problem,
    playlist_problem,
    read_playlists,
)


class Gathering:
    """Playlists kept so far. Those under `shortest` or over `longest` distinct tracks never are.

    `sample`: keep that many, those with the least hash of seed and pid, so that a larger sample holds every smaller
    one; None keeps all.
    """

    def __init__(
        self,
        report: ImportReport,
        *,
        shortest: int = 2,
        longest: int | None = None,
        sample: int | None = None,
        seed: int = 0,
    ) -> None:
        self._report = report
        self._shortest, self._longest = shortest, longest or LARGEST
        self._draw = _Sample(sample, seed)
        self._pids: set[int] = set()
        self._row_of: dict[str, int] = {}
        self._fresh: list[tuple[str, str | None, str | None, str | None, float]] = []
        self._tracks: list[pa.Table] = []
        self._ids: list[str] = []
        self._names: list[str | None] = []
        self._hashes, self._reserved = array("q"), array("b")
        self._lengths, self._rows = array("q"), array("i")
        self.repeats = 0
        """Entries of a track that its playlist held already."""

    def read(self, path: Path, *, reserved: bool = False) -> None:
        """Add the playlists of a slice; `reserved` ones are kept whatever the sample is."""
        for number, playlist in enumerate(read_playlists(path, self._report)):
            self._report.read(PLAYLISTS)
            place = f"{path.name}, playlist {number}"
            problem = playlist_problem(playlist)
            if problem is None and playlist["pid"] in self._pids:
                problem = "pid stands twice", playlist["pid"]
            if problem is not None:
                self._report.broken(PLAYLISTS, place, *problem)
                continue
            self._pids.add(playlist["pid"])
            self._add(playlist, f"{place} (pid {playlist['pid']})", reserved)
        self._flush()

    def collection(self) -> Collection:
        """All that is kept. Tracks are in order of first sight."""
        reserved = np.array(self._reserved, bool)
        everything = Collection(
            pa.concat_tables([TRACK_SCHEMA.empty_table(), *self._tracks]),
            pa.array(self._ids, pa.string()),
            pa.array(self._names, pa.string()),
            np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64),
            np.asarray(self._rows),  # a view: i32
            reserved,
        )
        return everything.keep_playlists(reserved | (np.array(self._hashes, np.int64) <= self._draw.limit))

    def _add(self, playlist: dict[str, Any], place: str, reserved: bool) -> None:
        key = self._draw.key(playlist["pid"])
        if not reserved and key > self._draw.limit:
            return
        rows = self._read_entries(playlist["tracks"], place)
        if not self._shortest <= len(rows) <= self._longest:
            return
        if not reserved:
            self._draw.take(key)
        self._ids.append(str(playlist["pid"]))
        self._names.append(playlist.get("name") or None)
        self._hashes.append(key)
        self._reserved.append(reserved)
        self._lengths.append(len(rows))
        self._rows.extend(rows)

    def _read_entries(self, entries: list[Any], place: str) -> list[int]:
        """Rows of the sound entries in order of pos, each once; a track met for the first time gets a row."""
        self._report.read(ENTRIES, len(entries))
        placed = []
        for number, entry in enumerate(entries):
            if (problem := entry_problem(entry)) is not None:
                self._report.broken(ENTRIES, f"{place}, track {number}", *problem)
                continue
            key = entry["track_uri"][ID_FROM:]
            row = self._row_of.get(key)
            if row is None:
                row = self._row_of[key] = len(self._row_of)
                title, artist, album = (entry[name] or None for name in TEXTS)
                self._fresh.append((key, title, artist, album, entry["duration_ms"] / 1000))
            placed.append((entry["pos"], row))
        placed.sort(key=itemgetter(0))
        rows = list(dict.fromkeys(row for _, row in placed))
        self.repeats += len(placed) - len(rows)
        return rows

    def _flush(self) -> None:
        columns = list(zip(*self._fresh, strict=True)) or [()] * 5
        self._tracks.append(pa.table([*columns, pa.nulls(len(self._fresh), pa.string())], schema=TRACK_SCHEMA))
        self._fresh = []


class _Sample:
    """The `size` least keys of those taken; `limit` is the greatest that still counts."""

    def __init__(self, size: int | None, seed: int) -> None:
        self._size, self._seed = size, seed
        self._negated: list[int] = []  # a heap with the greatest key on top

    def key(self, pid: int) -> int:
        """The first 63 bits of sha256("sample:seed:pid")."""
        digest = hashlib.sha256(f"sample:{self._seed}:{pid}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @property
    def limit(self) -> int:
        """No key above this is in the sample."""
        full = self._size is not None and len(self._negated) >= self._size
        return -self._negated[0] if full else 2**63 - 1

    def take(self, key: int) -> None:
        """Count a key in; it may push out the greatest."""
        if self._size is None:
            return
        if len(self._negated) >= self._size:
            heapq.heappushpop(self._negated, -key)
        else:
            heapq.heappush(self._negated, -key)
