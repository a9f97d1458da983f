"""Embeds the catalogue with the exported towers, on the path an upload takes: stored and fresh vectors agree."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from index.errors import DebutError
from index.models.encoder import Encoder, EncoderError, TrackVectors
from index.sound.audio import AudioError, decode
from index.sound.features import log_mel
from index.sound.sketch import WIDTH
from index.tracks.track import Track
from training.data.dataset import DataSet
from training.progress import Progress

PARTS = ("audio", "text", "lyrics", "continuation", "sketch")


class EmbeddingError(DebutError):
    """More audio than tolerable could not be read, or what was embedded is not whole."""

    code = "embedding_failed"


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of every track by part, f32 [N, 256], `sketch` [N, 160]; NaN where a track has no such part."""

    audio: npt.NDArray[np.float32]
    text: npt.NDArray[np.float32]
    lyrics: npt.NDArray[np.float32]
    continuation: npt.NDArray[np.float32]
    sketch: npt.NDArray[np.float32]

    def part(self, name: str) -> npt.NDArray[np.float32]:
        """The array of one of PARTS."""
        return np.asarray(getattr(self, name))

    def as_dict(self, names: Sequence[str] = PARTS) -> dict[str, npt.NDArray[np.float32]]:
        """The named parts, by name."""
        return {name: self.part(name) for name in names}

    def save(self, directory: Path) -> None:
        """Write one .npy a part."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in PARTS:
            np.save(directory / f"{name}.npy", self.part(name), allow_pickle=False)

    @classmethod
    def load(cls, directory: Path) -> "Embeddings":
        """Read what `save` wrote. Raises EmbeddingError when a part is not there."""
        for name in PARTS:
            if not (directory / f"{name}.npy").is_file():
                raise EmbeddingError(f"{directory} has no {name}.npy: run `python -m training larp` again.")
        return cls(**{name: np.load(directory / f"{name}.npy", allow_pickle=False) for name in PARTS})


def embed_catalogue(dataset: DataSet, encoder: Encoder, progress: Progress, *, threads: int = 2) -> Embeddings:
    """Embed every track of `dataset`.

    A track whose audio is missing or unreadable keeps its text vector; the unreadable ones are named. Raises
    EmbeddingError when more than 1 % of the audio files are unreadable.
    """
    count = len(dataset.tracks)
    widths = dict.fromkeys(PARTS, encoder.dims) | {"sketch": WIDTH}
    parts = {name: np.full((count, width), np.nan, dtype=np.float32) for name, width in widths.items()}
    unreadable: list[str] = []

    def one(row: int) -> TrackVectors | None:
        track, path = dataset.tracks[row], dataset.audio_path(row)
        try:
            return _embed(encoder, track, path)
        except AudioError as error:
            unreadable.append(f"{path}: {error.detail}")
            return _embed(encoder, track, None)

    with (
        progress.stage("embed the catalogue", count) as bar,
        ThreadPoolExecutor(threads) as pool,
        threadpool_limits(1, "blas"),  # as in `training.data.clips`
    ):
        for row, vectors in enumerate(pool.map(one, range(count))):
            for name in PARTS:
                vector = getattr(vectors, name) if vectors else None
                if vector is not None:
                    parts[name][row] = vector
            bar.advance(1)
    files = sum(dataset.audio_path(row) is not None for row in range(count))
    _report(sorted(unreadable), files, progress)
    return Embeddings(**parts)


def _embed(encoder: Encoder, track: Track, path: Path | None) -> TrackVectors | None:
    text = encoder.caption(track)
    mel = log_mel(decode(path).clips) if path else None
    if mel is None and not text:
        return None
    try:
        return encoder.track(mel, text, track.lyrics)
    except EncoderError:  # a caption without a word piece
        return None


def _report(unreadable: list[str], files: int, progress: Progress) -> None:
    for line in unreadable[:20]:
        progress.say(f"unreadable audio: {line}")
    if len(unreadable) > 0.01 * files:
        raise EmbeddingError(
            f"{len(unreadable)} of {files} audio files cannot be read (more than 1 %). The first: {unreadable[0]}. "
            "Repair or remove these files, then run this again."
        )
