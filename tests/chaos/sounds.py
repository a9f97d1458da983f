"""Recordings to upload: each with a sound and a length of its own, cut from the demo's songs by its number."""

import hashlib
import io
import threading
import wave
from functools import cache
from pathlib import Path

import numpy as np

from index.sound.audio import decode, decode_span

AUDIO = Path(__file__).parents[2] / "demo" / "data" / "audio"
SONGS = 48
"""Songs that are cut; each is held in memory, 15 s at RATE."""
RATE = 16_000
WHOLE, LONG = 40, 8
"""One recording in WHOLE is a whole song as it lies there (Ogg Opus), one in LONG is longer than one window (10 s)."""

_DECODING = threading.Lock()


@cache
def _paths() -> list[Path]:
    return sorted(AUDIO.glob("*.ogg"))


@cache
def _song(place: int) -> np.ndarray:
    """i16 [n] at RATE: every third sample of 48 kHz. What folds over is of no matter here."""
    samples = decode_span(_paths()[place], 0.0, 60.0)[::3]
    return np.round(samples * 30_000).astype("<i2")


def _is_whole(number: int) -> bool:
    return number % WHOLE == 0 and number // WHOLE < len(_paths())


def _frames(number: int) -> int:
    """Samples of a cut: no two have as many, so that a track's duration tells which upload it is."""
    return (165_000 if number % LONG == 1 else 18_000) + number


def recording(number: int) -> bytes:
    """The file that is uploaded: the same bytes for the same number, other ones for any other."""
    if _is_whole(number):
        return _paths()[number // WHOLE].read_bytes()
    with _DECODING:
        song = _song(number * 31 % SONGS)
    rng = np.random.default_rng(number)
    frames = _frames(number)
    start = int(rng.integers(0, max(1, len(song) - frames)))
    cut = song[start : start + frames]
    noise = rng.integers(-40, 41, frames, dtype=np.int16)  # a song's silence would be refused
    noise[: len(cut)] += cut
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(noise.astype("<i2").tobytes())
    return file.getvalue()


@cache
def sha256(number: int) -> str:
    """SHA-256 of the recording, as hex digits."""
    return hashlib.sha256(recording(number)).hexdigest()


@cache
def seconds(number: int) -> float:
    """How long it is."""
    return decode(recording(number)).duration_s if _is_whole(number) else _frames(number) / RATE


def kind(number: int) -> str:
    """Its media type."""
    return "audio/ogg" if _is_whole(number) else "audio/wav"
