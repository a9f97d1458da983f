"""Recordings for the tests: encoded here, from sound with a known value at every instant."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SONGS = Path(__file__).parents[2] / "demo" / "data" / "audio"

# name -> muxer, codec, whether decoding gives back what was encoded
FORMATS = {
    "wav": ("wav", "pcm_s16le", True),
    "wav24": ("wav", "pcm_s24le", True),
    "wav_float": ("wav", "pcm_f32le", True),
    "wav_u8": ("wav", "pcm_u8", False),
    "aiff": ("aiff", "pcm_s16be", True),
    "flac": ("flac", "flac", True),
    "alac": ("ipod", "alac", True),
    "mp3": ("mp3", "libmp3lame", False),
    "mp2": ("mp2", "mp2", False),
    "opus": ("ogg", "libopus", False),
    "vorbis": ("ogg", "vorbis", False),
    "m4a": ("ipod", "aac", False),
    "adts": ("adts", "aac", False),
}


def encode(
    name: str,
    samples: NDArray[np.floating],
    rate: int,
    bit_rate: int | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode f32 [channels, n] in one of FORMATS."""
    muxer, codec, _ = FORMATS[name]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    file = io.BytesIO()
    with av.open(file, "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if codec == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def glide(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """A tone that rises by 20 Hz a second from 300 Hz: no stretch of it equals another, one sample off shows."""
    return 0.4 * np.sin(2 * np.pi * (300 * times_s + 10 * times_s**2))


def glide_at(rate: int, seconds: float, channels: int = 1) -> NDArray[np.float64]:
    """`glide` sampled at `rate`: [channels, n]."""
    return np.tile(glide(np.arange(round(seconds * rate)) / rate), (channels, 1))


def song_samples(index: int = 0) -> tuple[NDArray[np.float32], int]:
    """A song of the demo data, decoded whole by PyAV: f32 [1, n] and its rate."""
    with av.open(str(sorted(SONGS.glob("*.ogg"))[index])) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(frames, axis=1).astype(np.float32), 48_000
