"""Samples -> log-mel: one front end for trainer and service, and its 8-bit form for the ledger."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SAMPLE_RATE = 48_000  # Hz
WINDOW = 1024  # samples: Hann window and FFT
HOP = 480  # samples: 10 ms, so 100 frames a second
MELS = 64
CLIP_SAMPLES = 10 * SAMPLE_RATE
FRAMES = 1 + CLIP_SAMPLES // HOP  # 1001: the last frame is centred on the end of the clip
MIN_HZ, MAX_HZ = 50.0, 14_000.0
FLOOR = 1e-10  # power; -100 dB
MIN_DB = -100.0
# No clip within [-1, 1] exceeds this. By Parseval the bins of a frame hold at most 1024 * sum(hann^2) / 2 =
# 196,608 in power, and no mel filter weighs a bin by more than 0.0182: 10 log10(196,608 * 0.0182) = 35.5
# dB.
MAX_DB = 36.0
_STEP_DB = (MAX_DB - MIN_DB) / 255
_BLOCK = 64  # frames transformed at once: what a block touches (1.6 MB) stays in the second-level cache


def log_mel(clips: NDArray[np.floating]) -> NDArray[np.float32]:
    """Log-mel spectrograms in dB: f32 [n, samples] at 48 kHz -> f32 [n, 1 + samples // 480, 64]; 10 s give 1001 frames.

    Hann window and FFT of 1024, hop 480, centred with reflection, power; 64 Slaney mel filters
    (area-normalised) from 50 to 14,000 Hz; 10 log10(max(x, 1e-10)): what transformers' ClapFeatureExtractor
    computes for laion/clap-htsat-unfused ("rand_trunc"), to 1e-3 dB. The FFT runs in float64, which NumPy
    does as fast as float32.

    Raises ValueError when `clips` is not [n, samples] with more than 512 samples.
    """
    if clips.ndim != 2 or clips.shape[1] <= WINDOW // 2:
        raise ValueError(f"clips must be [n, samples] with over {WINDOW // 2} samples, not {list(clips.shape)}")
    frames = 1 + clips.shape[1] // HOP
    mel = np.empty((len(clips), frames, MELS), dtype=np.float32)
    for clip, out in zip(clips, mel, strict=True):
        padded = np.pad(clip, WINDOW // 2, mode="reflect")
        windows = sliding_window_view(padded, WINDOW)[::HOP]
        for start in range(0, frames, _BLOCK):
            _mel_power(windows[start : start + _BLOCK], out[start : start + _BLOCK])
    np.maximum(mel, FLOOR, out=mel)
    np.log10(mel, out=mel)
    mel *= 10
    return mel


def quantise(mel: NDArray[np.float32]) -> NDArray[np.uint8]:
    """dB -> uint8 of the same shape (64 kB a clip): 255 even steps of 0.53 dB from -100 to 36 dB."""
    steps = np.rint((mel - np.float32(MIN_DB)) / np.float32(_STEP_DB))
    quantised: NDArray[np.uint8] = np.clip(steps, 0, 255).astype(np.uint8)
    return quantised


def dequantise(steps: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 -> dB: what `quantise` took, to 0.27 dB."""
    return steps * np.float32(_STEP_DB) + np.float32(MIN_DB)


def _mel_power(windows: NDArray[np.floating], out: NDArray[np.float32]) -> None:
    """Mel power of up to a block of frames [n, 1024] -> `out` [n, 64]."""
    spectrum = np.fft.rfft(windows * _HANN)[:, _BINS]
    power = np.square(spectrum.real, dtype=np.float64) + np.square(spectrum.imag)
    np.matmul(power.astype(np.float32), _FILTERS, out=out)


def _mel_filters() -> NDArray[np.float64]:
    """Slaney's triangular filters, each of unit area in Hz: [513 FFT bins, 64]."""
    edges = _hertz(np.linspace(_mel(MIN_HZ), _mel(MAX_HZ), MELS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))


def _mel(hertz: float) -> float:
    """Slaney's mel scale: linear (15 mel = 1 kHz) up to 1 kHz, 27 mel a factor of 6.4 above."""
    return hertz * 0.015 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel / 0.015, 1000 * 6.4 ** ((mel - 15) / 27))


_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic
_ALL_FILTERS = _mel_filters()
_USED = np.flatnonzero(_ALL_FILTERS.any(axis=1))
_BINS = slice(int(_USED[0]), int(_USED[-1]) + 1)  # the 297 of 513 bins that any filter reads
_FILTERS = np.ascontiguousarray(_ALL_FILTERS[_BINS], dtype=np.float32)
