"""The clip cache on disk: excerpts end to end in one data file, and a log with a line for every file decoded.

Both only grow, the data always before the line that speaks of it, so that whatever a killed process leaves behind is a
shorter, whole cache. The latest line of a file counts. `compact` writes both anew.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index.errors import DebutError
from training.data.frontend import FrontEnd

FORMAT = 2
EXCERPT_S = 30.0
LOG = "log.jsonl"
COMMIT = 16  # excerpts between two writes to the log: what a power cut costs at most
_FORMER = ("index.json", "clips-*.f16", "*.part")  # of format 1, and of writes that were broken off
_COPIED = 1 << 16  # rows copied at once


class ClipError(DebutError):
    """Too much audio that cannot be read, a clip that is not there, or a cache that another process fills."""

    code = "clips_unreadable"


@dataclass(frozen=True, slots=True)
class Entry:
    """An audio file as it was decoded: size and time to see a change, content hash to judge it."""

    size: int
    mtime_ns: int
    sha256: str
    """"" when it could not even be read."""
    start: int = 0
    """First row in the data file."""
    rows: int = 0
    """0 when the file could not be decoded."""
    problem: str = ""


class Excerpts:
    """The entries by audio file, and where their rows are. `rows`: of the data file, with those that nothing needs."""

    def __init__(
        self, directory: Path, front_end: FrontEnd, name: str, entries: dict[str, Entry], rows: int, log_bytes: int
    ) -> None:
        self.directory, self.front_end, self.name = directory, front_end, name
        self.entries, self.rows, self._log_bytes = entries, rows, log_bytes

    @classmethod
    def load(cls, directory: Path, front_end: FrontEnd) -> "Excerpts | None":
        """Read the log; None when there is no cache, another front end's or format's, or a damaged one."""
        try:
            text = (directory / LOG).read_bytes()
            text = text[: text.rfind(b"\n") + 1]  # a line that was being written when the process died
            head, _, lines = text.partition(b"\n")
            header = json.loads(head)
            if {**header, "data": ""} != _header(front_end, ""):
                return None
            found = json.loads(b"[" + lines.rstrip().replace(b"\n", b",") + b"]")
            name = Path(header["data"]).name
            there = (directory / name).stat().st_size // _row_bytes(front_end)
            read = [(audio, Entry(*entry)) for audio, *entry in found]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        entries = {audio: entry for audio, entry in read if entry.start + entry.rows <= there}
        rows = max((entry.start + entry.rows for entry in entries.values()), default=0)
        return cls(directory, front_end, name, entries, rows, len(text))

    @classmethod
    def create(cls, directory: Path, front_end: FrontEnd) -> "Excerpts":
        """Begin an empty cache in the place of whatever lies in `directory`."""
        return _replaced(directory, front_end, _name(front_end, 0), {}, iter(()))

    def data(self) -> NDArray:
        """The rows [rows, width], memory-mapped. Raises OSError when the file has gone since."""
        shape = (self.rows, self.front_end.width)
        if not self.rows:
            return np.empty(shape, self.front_end.dtype)
        return np.memmap(self.directory / self.name, self.front_end.dtype, "r", shape=shape)

    def writer(self) -> "Writer":
        """Go on where the log ends. The caller holds the lock."""
        return Writer(self, self._log_bytes)

    def compact(self, kept: Mapping[str, Entry]) -> "Excerpts":
        """Write a data file of these entries alone, then the log that names it, then drop the old one."""
        data, moved, start = self.data(), {}, 0
        for audio, entry in kept.items():
            moved[audio] = replace(entry, start=start)
            start += entry.rows
        parts = (part for entry in kept.values() for part in _parts(data, entry))
        number = int(self.name.partition(".")[0].rpartition("-")[2]) + 1
        return _replaced(self.directory, self.front_end, _name(self.front_end, number), moved, parts)


class Writer:
    """Appends excerpts: data first, and the log's lines when the data is safe."""

    def __init__(self, excerpts: Excerpts, log_bytes: int) -> None:
        self._excerpts, self._pending = excerpts, dict[str, Entry]()
        self._data = _opened_at(excerpts.directory / excerpts.name, excerpts.rows * _row_bytes(excerpts.front_end))
        self._log = _opened_at(excerpts.directory / LOG, log_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._data, self._log:
            self.commit()

    def add(self, audio: str, entry: Entry, rows: NDArray) -> None:
        """Append an excerpt; `entry` comes without its start."""
        held = self._excerpts
        self._data.write(np.ascontiguousarray(rows, held.front_end.dtype).data)
        self._pending[audio] = replace(entry, start=held.rows, rows=len(rows))
        held.rows += len(rows)
        if len(self._pending) >= COMMIT:
            self.commit()

    def note(self, audio: str, entry: Entry) -> None:
        """Put an entry whose rows are there already into the log."""
        self._pending[audio] = entry

    def commit(self) -> None:
        """Make what was added last."""
        if self._pending:
            _sync(self._data)
            self._log.write(_lines(self._pending))
            _sync(self._log)
            self._excerpts.entries.update(self._pending)
            self._pending.clear()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the cache alone while the block runs. Raises ClipError where another process does."""
    with open(directory / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClipError(
                f"another process is filling the clip cache {directory}; wait until it is done, or give another --work",
                code="clips_locked",
            ) from error
        yield  # closing the file, or dying, lets go


def _replaced(
    directory: Path, front_end: FrontEnd, name: str, entries: dict[str, Entry], parts: Iterator[NDArray]
) -> Excerpts:
    with open(directory / name, "wb") as data:
        for part in parts:
            data.write(np.ascontiguousarray(part).data)
        _sync(data)
        rows = data.tell() // _row_bytes(front_end)
    text = json.dumps(_header(front_end, name)).encode() + b"\n" + _lines(entries)
    with open(directory / f"{LOG}.part", "wb") as log:
        log.write(text)
        _sync(log)
    os.replace(directory / f"{LOG}.part", directory / LOG)
    for stale in (path for pattern in (*_FORMER, "excerpts-*") for path in directory.glob(pattern)):
        if stale.name != name:
            stale.unlink()
    return Excerpts(directory, front_end, name, entries, rows, len(text))


def _parts(data: NDArray, entry: Entry) -> Iterator[NDArray]:
    for start in range(entry.start, entry.start + entry.rows, _COPIED):
        yield data[start : min(start + _COPIED, entry.start + entry.rows)]


def _opened_at(path: Path, size: int) -> Any:
    """The file, cut to what counts of it, at its end."""
    file = open(path, "r+b")  # noqa: SIM115 (the Writer closes it)
    file.truncate(size)
    file.seek(size)
    return file


def _header(front_end: FrontEnd, name: str) -> dict[str, Any]:
    return {"format": FORMAT, "excerpt_s": EXCERPT_S, "kind": front_end.kind, "rate": front_end.rate, "data": name}


def _name(front_end: FrontEnd, number: int) -> str:
    return f"excerpts-{number}.{'f16' if front_end.kind == 'log_mel' else 'i16'}"


def _lines(entries: Mapping[str, Entry]) -> bytes:
    return "".join(json.dumps([audio, *astuple(entry)]) + "\n" for audio, entry in entries.items()).encode()


def _row_bytes(front_end: FrontEnd) -> int:
    return front_end.width * front_end.dtype.itemsize


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
