"""Small worlds for the tests of the index: unit vectors, tracks, a release folder with a collection in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.collection import write_collection
from index.tracks.track import Track

SKETCH = 12
"""Width of a sketch in these worlds: unlike that of any other vector."""


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random unit vectors f32 [..., d]."""
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def vectors_of(rng: np.random.Generator, n: int, dims: int = 16) -> dict[str, np.ndarray]:
    """Random vectors of n tracks, whole: audio, text and continuation of width `dims`, sketches."""
    return {name: unit(rng, n, dims) for name in ("audio", "text", "continuation")} | {"sketch": unit(rng, n, SKETCH)}


@dataclass(frozen=True)
class Folder:
    """What the index needs of a release."""

    path: Path
    id: str = "20250101T000000-test"

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class Embedded:
    """Stands for index.models.encoder.TrackVectors."""

    continuation: np.ndarray
    audio: np.ndarray | None = None
    text: np.ndarray | None = None
    lyrics: np.ndarray | None = None
    sketch: np.ndarray | None = None


def embedded(rng: np.random.Generator, dims: int = 16) -> Embedded:
    audio, text = unit(rng, dims), unit(rng, dims)
    both = audio + text
    return Embedded(both / np.linalg.norm(both), audio, text, sketch=unit(rng, SKETCH))


def write_folder(
    directory: Path,
    tracks: Sequence[Track],
    interactions: Sequence[int],
    rng: np.random.Generator,
    *,
    matching: np.ndarray | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
) -> Folder:
    """Write a collection of random vectors (16-d and 8-d), except for those given."""
    n = len(tracks)
    made = vectors_of(rng, n) | dict(vectors or {})
    write_collection(directory, tracks, np.array(interactions), made, unit(rng, n, 8) if matching is None else matching)
    return Folder(directory)
