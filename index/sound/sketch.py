"""Log-mel -> a sketch of the sound that nothing was learnt for: near for copies of a recording, loud or quiet."""

import numpy as np
from numpy.typing import NDArray

from index.sound.features import dequantise, quantise

RANGE_DB = 60.0
"""What is further below a clip's mean power is as good as silence: codecs leave it out."""
FADE_DB = 20.0
"""A frame counts for nothing at that depth, and in full from this much above it."""
LEAST_DB = 0.5
"""A sound whose seconds differ by less than this (root mean square) cannot be told from others like it."""

_TIMES, _BANDS = 10, 16  # of a second, of four mel filters
WIDTH = _TIMES * _BANDS

_DB = dequantise(np.arange(256, dtype=np.uint8))
_POWER = 10 ** (_DB.astype(np.float64) / 10)


def sketch(log_mel: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Sketch a recording's clips: log-mel in dB f32 [n, 1001, 64], n >= 1 -> f32 [160] of length 1.

    Each clip relative to its mean power (a gain is gone), cut off `RANGE_DB` below, averaged over seconds and bands of
    four filters, less the mean over time (so what is left is how each band comes and goes, not how a codec or an
    equaliser coloured it); then the mean over the clips. Silence counts for nothing: a recording under 10 s ends in
    zeros, and where they begin is no likeness. It is made of the 8 bits that the ledger keeps, so that an upload and
    its replay have the same, bit by bit. None for what hardly changes from second to second: silence, a steady tone, a
    loop of one second. How far copies and others lie apart: docs/reliability.md.
    """
    clips = quantise(log_mel[:, : log_mel.shape[1] // _TIMES * _TIMES])
    drawn = np.mean([_drawn(clip) for clip in clips], axis=0).ravel()
    length = np.linalg.norm(drawn)
    if length < LEAST_DB * np.sqrt(WIDTH):
        return None
    unit: NDArray[np.float32] = (drawn / length).astype(np.float32)
    return unit


def _drawn(clip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One clip, 8-bit [1000, 64] -> dB [10, 16] above each band's mean over time."""
    power = 10 * np.log10(np.bincount(clip.ravel(), minlength=256) @ _POWER / clip.size)
    bands = np.maximum(_DB - power, -RANGE_DB)[clip].reshape(len(clip), _BANDS, -1).mean(axis=2)
    heard = np.clip((bands.max(axis=1, keepdims=True) + RANGE_DB) / FADE_DB, 0, 1)
    sums = (bands * heard).reshape(_TIMES, -1, _BANDS).sum(axis=1)
    frames = heard.reshape(_TIMES, -1, 1).sum(axis=1)
    above: NDArray[np.float64] = (sums - frames * (sums.sum(axis=0) / frames.sum())) * (_TIMES / len(clip))
    return above
