"""The clip cache: the middle 30 s of each track, decoded once, cut to 10 s clips in training."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from index.sound.audio import AudioError, decode_span, repeat_pad
from index.sound.features import CLIP_SAMPLES
from training.data.dataset import DataSet
from training.data.excerpts import EXCERPT_S, ClipError, Entry, Excerpts, Writer, locked
from training.data.frontend import LOG_MEL, FrontEnd
from training.progress import Progress

__all__ = ["ClipCache", "ClipError", "FrontEnd"]

MOST_BAD = 0.01  # share of the audio files
Decoded = tuple[Entry, NDArray]


class ClipCache:
    """Excerpts of a data set's tracks as a front end keeps them, in one memory-mapped file [rows, width].

    `available` bool [N]: tracks with a clip. `unreadable`: track id -> what is wrong with its audio file.
    `fingerprint`: of all tracks' audio, by content.
    """

    def __init__(
        self, dataset: DataSet, entries: Mapping[str, Entry], data: NDArray, front_end: FrontEnd = LOG_MEL
    ) -> None:
        self._data = data
        self.front_end = front_end
        count = len(dataset.tracks)
        self._start = np.zeros(count, np.int64)
        self._rows = np.zeros(count, np.int64)
        self.unreadable: dict[str, str] = {}
        for row, audio in enumerate(dataset.audio):
            if audio is None:
                continue
            entry = entries[audio]
            self._start[row], self._rows[row] = entry.start, entry.rows
            if entry.problem:
                self.unreadable[dataset.tracks[row].track_id] = entry.problem
        self.available: NDArray[np.bool_] = self._rows > 0
        hashes = [entries[audio].sha256 if audio is not None else "" for audio in dataset.audio]
        kept = [] if front_end == LOG_MEL else [f"{front_end.kind} {front_end.rate}"]
        self.fingerprint = hashlib.sha256("\n".join(hashes + kept).encode()).hexdigest()

    @classmethod
    def build(
        cls,
        dataset: DataSet,
        directory: Path,
        progress: Progress,
        *,
        front_end: FrontEnd = LOG_MEL,
        workers: int | None = None,
    ) -> "ClipCache":
        """Decode what `directory` does not hold yet and open it. A build that was broken off goes on where it was.

        A file whose size and modification time are as before is not touched; one that changed in time alone
        is hashed; one with new content is decoded again. What was decoded of files that are gone stays until it is over
        half of the cache. Raises ClipError when over 1 % of the files cannot be read, or another process is building.
        """
        paths = {audio: dataset.root / audio for audio in dataset.audio if audio is not None}
        opened = _complete(directory, front_end, paths)
        if opened is None:
            opened = _filled(directory, front_end, paths, progress, workers or _cores())
        excerpts, data = opened
        entries = {audio: excerpts.entries[audio] for audio in paths}
        _judge(entries, progress)
        return cls(dataset, entries, data, front_end)

    def crops(self, rows: NDArray[np.int64], at: NDArray[np.float64] | None) -> NDArray[np.float32]:
        """10 s of each track: log-mel in dB, f32 [B, 1, 1001, 64], or samples f32 [B, 10 * rate]; as far into what
        there is as `at` f64 [B] in [0, 1) says, else from the middle.

        A log-mel crop's first and last frames see the samples around it, where `log_mel` of those 10 s alone would
        reflect. Raises ClipError for a track without a clip.
        """
        rows = np.asarray(rows, np.int64)
        if not self.available[rows].all():
            row = int(rows[~self.available[rows]][0])
            raise ClipError(f"the track in row {row} has no clip", code="clip_missing")
        length = self.front_end.clip_rows
        spare = self._rows[rows] - length
        offset = spare // 2 if at is None else np.floor(at * (spare + 1)).astype(np.int64)
        cut = np.empty((len(rows), length, self._data.shape[1]), self._data.dtype)
        for clip, first in zip(cut, self._start[rows] + offset, strict=True):
            clip[:] = self._data[first : first + length]
        return self.front_end.clips(cut)


def _complete(directory: Path, front_end: FrontEnd, paths: Mapping[str, Path]) -> tuple[Excerpts, NDArray] | None:
    """The cache when there is nothing to do about it, which takes no lock: many processes may read."""
    excerpts = Excerpts.load(directory, front_end)
    if excerpts is None or _wasteful(excerpts, paths):
        return None
    for audio, path in paths.items():
        entry = excerpts.entries.get(audio)
        if entry is None or _unchanged(entry, path) != entry:
            return None
    try:
        return excerpts, excerpts.data()
    except OSError:  # replaced by another process since
        return None


def _filled(
    directory: Path, front_end: FrontEnd, paths: Mapping[str, Path], progress: Progress, workers: int
) -> tuple[Excerpts, NDArray]:
    """Bring the cache up to date, alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory):
            excerpts = Excerpts.load(directory, front_end) or Excerpts.create(directory, front_end)
            _append(excerpts, paths, progress, workers)
            if _wasteful(excerpts, paths):
                excerpts = excerpts.compact({audio: excerpts.entries[audio] for audio in paths})
            return excerpts, excerpts.data()
    except OSError as error:
        raise ClipError(
            f"the clip cache {directory} cannot be written ({error.strerror or error}); what is decoded is kept: mend "
            "that and start again",
            code="clips_unwritable",
        ) from error


def _append(excerpts: Excerpts, paths: Mapping[str, Path], progress: Progress, workers: int) -> None:
    kept = {audio: entry for audio, path in paths.items() if (entry := _unchanged(excerpts.entries.get(audio), path))}
    fresh = {audio: path for audio, path in paths.items() if audio not in kept}
    with excerpts.writer() as writer:
        for audio, entry in kept.items():
            if entry != excerpts.entries[audio]:
                writer.note(audio, entry)
        if fresh:
            _decode_all(fresh, excerpts.front_end, writer, progress, workers)


def _decode_all(
    paths: Mapping[str, Path], front_end: FrontEnd, writer: Writer, progress: Progress, workers: int
) -> None:
    bad = 0
    # The workers are enough threads; and how many BLAS takes would show in the last bits, and so in what is learnt.
    with progress.stage("decode audio", len(paths)) as stage, threadpool_limits(1, "blas"):
        for audio, (entry, rows) in _decoded(paths, front_end, workers):
            writer.add(audio, entry, rows)
            bad += bool(entry.problem)
            stage.advance(1, unreadable=bad)


def _decoded(paths: Mapping[str, Path], front_end: FrontEnd, workers: int) -> Iterator[tuple[str, Decoded]]:
    """The excerpt of every file in order, decoded a few ahead on `workers` threads (FFmpeg and NumPy let them run)."""
    ahead: deque[tuple[str, Future[Decoded]]] = deque()
    upcoming = iter(paths.items())
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while len(ahead) < 4 * workers and (following := next(upcoming, None)) is not None:
                ahead.append((following[0], pool.submit(_excerpt, following[1], front_end)))
            if not ahead:
                return
            audio, future = ahead.popleft()
            yield audio, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _excerpt(path: Path, front_end: FrontEnd) -> Decoded:
    entry, samples = _decode(path)
    if not len(samples):
        return entry, np.empty((0, front_end.width), front_end.dtype)
    return entry, front_end.excerpt(samples)


def _decode(path: Path) -> tuple[Entry, NDArray[np.float32]]:
    """Decode the middle of a file, at least 10 s of it, mono 48 kHz; a problem becomes part of the entry."""
    nothing = np.empty(0, np.float32)
    try:
        status = path.stat()
        source = path.read_bytes()
    except OSError as error:
        return Entry(0, 0, "", problem=f"cannot be read: {error.strerror}"), nothing
    entry = Entry(status.st_size, status.st_mtime_ns, hashlib.sha256(source).hexdigest())
    try:
        samples = decode_span(source, None, EXCERPT_S)
    except AudioError as error:
        return replace(entry, problem=error.detail), nothing
    return entry, samples if len(samples) >= CLIP_SAMPLES else repeat_pad(samples)


def _unchanged(entry: Entry | None, path: Path) -> Entry | None:
    """The entry when the file is still what was decoded, with its new modification time; else None."""
    if entry is None:
        return None
    if not entry.sha256:
        return None if path.is_file() and os.access(path, os.R_OK) else entry
    try:
        status = path.stat()
        if status.st_size != entry.size:
            return None
        if status.st_mtime_ns == entry.mtime_ns:
            return entry
        with open(path, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return None
    return replace(entry, mtime_ns=status.st_mtime_ns) if same else None


def _wasteful(excerpts: Excerpts, paths: Mapping[str, Path]) -> bool:
    """Whether over half of the data file belongs to files that have changed or gone."""
    live = sum(excerpts.entries[audio].rows for audio in paths if audio in excerpts.entries)
    return 2 * live < excerpts.rows


def _judge(entries: Mapping[str, Entry], progress: Progress) -> None:
    bad = {audio: entry.problem for audio, entry in entries.items() if entry.problem}
    for audio, problem in list(bad.items())[:20]:
        progress.say(f"unreadable audio: {audio}: {problem}")
    if len(bad) > MOST_BAD * len(entries):
        first, problem = next(iter(bad.items()))
        raise ClipError(
            f"{len(bad)} of {len(entries)} audio files cannot be read (over 1 %), the first: {first}: "
            f"{problem}. Mend these files, or set their audio to null in tracks.parquet"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
