"""What of a recording the clip cache keeps: log-mel for HTS-AT, or samples at the rate another encoder listens at."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from index.sound.features import CLIP_SAMPLES, FRAMES, MELS, SAMPLE_RATE, log_mel

CLIP_S = CLIP_SAMPLES // SAMPLE_RATE
_KINDS = ("log_mel", "pcm")
_FULL = 32_767  # int16 of a sample of 1.0


@dataclass(frozen=True)
class FrontEnd:
    """ "log_mel": `index.sound.features.log_mel` in float16, a row a frame; "pcm": int16 samples, a row a sample."""

    kind: str = "log_mel"
    rate: int = SAMPLE_RATE
    """Samples a second of what is decoded to; log-mel is always of 48 kHz."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS or (self.kind == "log_mel" and self.rate != SAMPLE_RATE) or self.rate < 1:
            raise ValueError(f"no front end {self.kind!r} at {self.rate} Hz; kinds are {_KINDS}")

    @property
    def dtype(self) -> np.dtype:
        """Of the data file."""
        return np.dtype("<f2" if self.kind == "log_mel" else "<i2")

    @property
    def width(self) -> int:
        """Values in a row."""
        return MELS if self.kind == "log_mel" else 1

    @property
    def clip_rows(self) -> int:
        """Rows of a 10 s clip."""
        return FRAMES if self.kind == "log_mel" else CLIP_S * self.rate

    def folder(self, base: Path) -> Path:
        """Where the cache of this front end lies if that of log-mel lies in `base`: "clips" -> "clips-pcm-16000"."""
        return base if self.kind == "log_mel" else base.with_name(f"{base.name}-{self.kind}-{self.rate}")

    def excerpt(self, samples: NDArray[np.float32]) -> NDArray:
        """What is kept of mono 48 kHz samples f32 [n] in [-1, 1]: rows [m, width] of `dtype`.

        Other rates by a polyphase filter (scipy's `resample_poly`).
        """
        if self.kind == "log_mel":
            return log_mel(samples[None])[0].astype(self.dtype)
        common = math.gcd(self.rate, SAMPLE_RATE)
        if self.rate != SAMPLE_RATE:
            samples = resample_poly(samples, self.rate // common, SAMPLE_RATE // common)
        return np.rint(np.clip(samples, -1, 1) * _FULL).astype(self.dtype)[:, None]

    def clips(self, rows: NDArray) -> NDArray[np.float32]:
        """Clips as towers read them, from rows [B, clip_rows, width]: log-mel in dB f32 [B, 1, 1001, 64], or samples in
        [-1, 1] f32 [B, 10 * rate].
        """
        if self.kind == "log_mel":
            return rows.astype(np.float32)[:, None]
        return rows[..., 0].astype(np.float32) / np.float32(_FULL)


LOG_MEL = FrontEnd()
