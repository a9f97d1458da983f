"""What is changed at random in training: stripes of the log-mel blanked, clauses of captions left out."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.models.caption import caption
from index.tracks.track import Track
from training.larp.config import AugmentConfig


def spec_augment(clips: NDArray[np.float32], config: AugmentConfig, rngs: Sequence[np.random.Generator]) -> None:
    """Blank stripes of frames and of mel bins in place (SpecAugment), f32 [B, 1, frames, 64], a generator a clip.

    Blank is the clip's own mean of each bin, which the input normalisation turns into about zero. A stripe's
    width is uniform from 0 to the config's, its place uniform.
    """
    frames, bins = clips.shape[2:]
    for clip, rng in zip(clips[:, 0], rngs, strict=True):
        mean = clip.mean(0)
        for first, last in _stripes(frames, config.time_stripes, config.time_width, rng):
            clip[first:last] = mean
        for first, last in _stripes(bins, config.frequency_stripes, config.frequency_width, rng):
            clip[:, first:last] = mean[first:last]


def thinned(track: Track, clauses: Sequence[str], drop: Mapping[str, float], rng: np.random.Generator) -> list[str]:
    """Return the clauses that stay in the track's caption, each left out with its probability in `drop`; of those that
    it has, one always stays.
    """
    there = [name for name in clauses if caption(track, (name,))]
    kept = rng.random(len(there)) >= np.array([drop.get(name, 0.0) for name in there])
    if there and not kept.any():
        kept[rng.integers(len(there))] = True
    return [name for name, keep in zip(there, kept, strict=True) if keep]


def _stripes(size: int, count: int, widest: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        width = int(rng.integers(min(widest, size) + 1))
        first = int(rng.integers(size - width + 1))
        yield first, first + width
