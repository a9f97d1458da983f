"""The clip cache: log-mel of the middle 30 s of each track, decoded once, cut to 10 s clips in training."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.audio import AudioError, decode_span, repeat_pad
from index.errors import DebutError
from index.features import CLIP_SAMPLES, FRAMES, MELS, log_mel
from training.data.dataset import DataSet
from training.progress import Progress

FORMAT = 1
EXCERPT_S = 30.0
MOST_BAD = 0.01  # share of the audio files
_FRAME_BYTES = 2 * MELS


class ClipError(DebutError):
    """Too much audio that cannot be read, or a clip that is not there."""

    code = "clips_unreadable"


@dataclass(frozen=True)
class _Entry:
    """An audio file as it was decoded: size and time to see a change, content hash to judge it."""

    size: int
    mtime_ns: int
    sha256: str
    start: int
    """First frame in the data file."""
    frames: int
    """0 when the file could not be read."""
    problem: str = ""


class ClipCache:
    """Log-mel excerpts of a data set's tracks, float16 in one memory-mapped file [frames, 64].

    `available` bool [N]: tracks with a clip. `unreadable`: track id -> what is wrong with its audio file.
    """

    def __init__(self, dataset: DataSet, entries: Mapping[str, _Entry], data: NDArray[np.float16]) -> None:
        self._data = data
        count = len(dataset.tracks)
        self._start = np.zeros(count, np.int64)
        self._frames = np.zeros(count, np.int64)
        self.unreadable: dict[str, str] = {}
        for row, audio in enumerate(dataset.audio):
            if audio is None:
                continue
            entry = entries[audio]
            self._start[row], self._frames[row] = entry.start, entry.frames
            if entry.problem:
                self.unreadable[dataset.tracks[row].track_id] = entry.problem
        self.available: NDArray[np.bool_] = self._frames > 0

    @classmethod
    def build(cls, dataset: DataSet, directory: Path, progress: Progress, *, workers: int | None = None) -> "ClipCache":
        """Decode what `directory` does not hold yet and open it.

        A file whose size and modification time are as before is not touched; one that changed in time alone
        is hashed; one with new content is decoded again. Raises ClipError when over 1 % of the files cannot
        be read.
        """
        directory.mkdir(parents=True, exist_ok=True)
        paths = {audio: dataset.root / audio for audio in dataset.audio if audio is not None}
        known, old = _open(directory)
        kept = {audio: entry for audio in paths if (entry := _unchanged(known.get(audio), paths[audio]))}
        if len(kept) < len(paths) or len(known) > len(paths):
            entries = _rebuild(directory, paths, kept, old, progress, workers or _cores())
        elif kept != known:
            entries = kept
            _write_index(directory, entries, _data_name(directory))
        else:
            entries = kept
        _judge(entries, progress)
        return cls(dataset, entries, _open(directory)[1])

    def crops(self, rows: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.float32]:
        """10 s of each track, dB, f32 [B, 1, 1001, 64]: from a random frame on with `rng`, else from the
        middle.

        A crop's first and last frames see the samples around it, where `log_mel` of those 10 s alone would
        reflect. Raises ClipError for a track without a clip.
        """
        rows = np.asarray(rows, np.int64)
        if not self.available[rows].all():
            row = int(rows[~self.available[rows]][0])
            raise ClipError(f"the track in row {row} has no clip", code="clip_missing")
        spare = self._frames[rows] - FRAMES
        offset = spare // 2 if rng is None else np.floor(rng.random(len(rows)) * (spare + 1)).astype(np.int64)
        clips = np.empty((len(rows), 1, FRAMES, MELS), np.float32)
        for clip, first in zip(clips, self._start[rows] + offset, strict=True):
            clip[0] = self._data[first : first + FRAMES]
        return clips


def _rebuild(
    directory: Path,
    paths: Mapping[str, Path],
    kept: Mapping[str, _Entry],
    old: NDArray[np.float16],
    progress: Progress,
    workers: int,
) -> dict[str, _Entry]:
    """Write a data file of kept and fresh excerpts, then the index that names it, then drop the old one."""
    entries: dict[str, _Entry] = {}
    part = directory / "clips.part"
    digest = hashlib.sha256()
    with open(part, "wb") as file, progress.stage("decode audio", len(paths)) as stage:
        for audio, excerpt in _excerpts(paths, kept, old, workers):
            start = file.tell() // _FRAME_BYTES
            entries[audio] = _Entry(**{**asdict(excerpt[0]), "start": start})
            file.write(excerpt[1].tobytes())
            digest.update(excerpt[0].sha256.encode())
            stage.advance(1, unreadable=sum(bool(entry.problem) for entry in entries.values()))
        _sync(file)
    name = f"clips-{digest.hexdigest()[:16]}.f16"
    os.replace(part, directory / name)
    _write_index(directory, entries, name)
    for stale in directory.glob("clips-*.f16"):
        if stale.name != name:
            stale.unlink()
    return entries


def _excerpts(
    paths: Mapping[str, Path], kept: Mapping[str, _Entry], old: NDArray[np.float16], workers: int
) -> Iterator[tuple[str, tuple[_Entry, NDArray[np.float16]]]]:
    """The excerpt of every file in order, fresh ones decoded a few ahead on `workers` threads."""
    names = list(paths)
    ahead: dict[str, Future[tuple[_Entry, NDArray[np.float16]]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        upcoming = iter([name for name in names if name not in kept])
        for name in names:
            while len(ahead) < 4 * workers and (following := next(upcoming, None)) is not None:
                ahead[following] = pool.submit(_decode, paths[following])
            if name in kept:
                entry = kept[name]
                yield name, (entry, old[entry.start : entry.start + entry.frames])
            else:
                yield name, ahead.pop(name).result()


def _decode(path: Path) -> tuple[_Entry, NDArray[np.float16]]:
    """Decode one excerpt; a problem becomes part of the entry."""
    nothing = np.empty((0, MELS), np.float16)
    try:
        status = path.stat()
        source = path.read_bytes()
    except OSError as error:
        return _Entry(0, 0, "", 0, 0, f"cannot be read: {error.strerror}"), nothing
    entry = _Entry(status.st_size, status.st_mtime_ns, hashlib.sha256(source).hexdigest(), 0, 0)
    try:
        samples = decode_span(source, None, EXCERPT_S)
    except AudioError as error:
        return _Entry(**{**asdict(entry), "problem": error.detail}), nothing
    if len(samples) < CLIP_SAMPLES:
        samples = repeat_pad(samples)
    mel = log_mel(samples[None])[0].astype(np.float16)
    return _Entry(**{**asdict(entry), "frames": len(mel)}), mel


def _unchanged(entry: _Entry | None, path: Path) -> _Entry | None:
    """The entry when the file is still what was decoded, with its new modification time; else None."""
    if entry is None or not entry.sha256 or not path.is_file():
        return None
    status = path.stat()
    if status.st_size != entry.size:
        return None
    if status.st_mtime_ns == entry.mtime_ns:
        return entry
    with open(path, "rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    return _Entry(**{**asdict(entry), "mtime_ns": status.st_mtime_ns}) if same else None


def _judge(entries: Mapping[str, _Entry], progress: Progress) -> None:
    bad = {audio: entry.problem for audio, entry in entries.items() if entry.problem}
    for audio, problem in list(bad.items())[:20]:
        progress.say(f"unreadable audio: {audio}: {problem}")
    if len(bad) > MOST_BAD * len(entries):
        first, problem = next(iter(bad.items()))
        raise ClipError(
            f"{len(bad)} of {len(entries)} audio files cannot be read (over 1 %), the first: {first}: "
            f"{problem}. Mend these files, or set their audio to null in tracks.parquet"
        )


def _open(directory: Path) -> tuple[dict[str, _Entry], NDArray[np.float16]]:
    """Entries and data; nothing of both when there is no cache, another format's, or a damaged one."""
    nothing: tuple[dict[str, _Entry], NDArray[np.float16]] = ({}, np.empty((0, MELS), np.float16))
    try:
        index = json.loads((directory / "index.json").read_text("utf-8"))
        if index["format"] != FORMAT or index["excerpt_s"] != EXCERPT_S:
            return nothing
        entries = {audio: _Entry(**entry) for audio, entry in index["entries"].items()}
        frames = sum(entry.frames for entry in entries.values())
        path = directory / Path(index["data"]).name
        if path.stat().st_size != frames * _FRAME_BYTES:
            return nothing
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
    if not frames:
        return entries, nothing[1]
    return entries, np.memmap(path, np.float16, "r", shape=(frames, MELS))


def _data_name(directory: Path) -> str:
    name: str = json.loads((directory / "index.json").read_text("utf-8"))["data"]
    return name


def _write_index(directory: Path, entries: Mapping[str, _Entry], data: str) -> None:
    index: dict[str, Any] = {"format": FORMAT, "excerpt_s": EXCERPT_S, "data": data}
    index["entries"] = {audio: asdict(entry) for audio, entry in entries.items()}
    part = directory / "index.json.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(index, file)
        _sync(file)
    os.replace(part, directory / "index.json")


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _cores() -> int:
    return len(os.sched_getaffinity(0))
