"""Renders a track in NumPy: melody, beat, two bands of noise and breath, each property in a place of its own.

Sound is made at 48 kHz from controls at 1 kHz: frequencies and loudness hold for blocks of 48 samples. The melody
reads its cycles from a table by a 32-bit phase that wraps by itself; noise is a loop of 0.7 s shaped in the frequency
domain. From low to high lie the beat (80 Hz), the melody (165 to 660 Hz), its formant, hiss and shimmer.
"""

import io
from collections.abc import Mapping
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from index.sound.features import SAMPLE_RATE

PROPERTIES = ("hiss", "formant", "shimmer", "beat", "register", "tempo", "breath", "pulse")
"""What can be set. hiss: centre of a band of noise, 3,600 to 6,400 Hz; formant: where the melody's harmonics are
strongest, 900 to 3,400 Hz; shimmer: centre of a second band of noise, 7,000 to 13,000 Hz; beat: thumps a second;
register: height of the melody; tempo: notes a second; breath: level of broadband noise; pulse: how often a second the
hiss swells."""

Samples = NDArray[np.float32]

_BLOCK = 48  # samples that share their controls
_RATE = SAMPLE_RATE // _BLOCK
_TABLE_BITS = 12
_HARMONICS = 20
_LOOP = 1 << 15  # samples
_SCALE = np.array([0, 1, 2, 3.5, 4.5, 6])  # semitones: narrow, so that a melody keeps to its register
_MIDDLE = 0.5


def render(positions: Mapping[str, float], seconds: float, rng: np.random.Generator) -> Samples:
    """Sound f32 [samples] in [-1, 1] with the given properties, each at a position in [0, 1] (0.5 where none is given).

    Melody, key, rests, articulation, phases, the layers' levels and the loudness (peak -30 to -18 dBFS) are drawn
    from `rng`.
    """
    at = {name: positions.get(name, _MIDDLE) for name in PROPERTIES}
    time = np.arange(round(seconds * _RATE)) / _RATE
    swell = 2 * np.pi * (_geometric(0.7, 9.0, at["pulse"]) * time + rng.random())
    layers = [
        (_melody(at, time, rng), 0.0),
        (_beat(at, time, rng), 0.0),
        (_shaped(_band(_geometric(3600, 6400, at["hiss"]), rng), 0.6 + 0.4 * np.sin(swell)), -14.0),
        (_band(_geometric(7000, 13_000, at["shimmer"]), rng), -14.0),
        (_breath(rng), _between(-46, -22, at["breath"])),
    ]
    sound = np.zeros((len(time), _BLOCK), np.float32)
    for layer, level in layers:
        layer *= _amplitude(level + rng.uniform(-2, 2))
        sound += _fitted(layer, sound.shape)
    sound *= _amplitude(rng.uniform(-30, -18)) / max(sound.max(), -sound.min())
    return sound.ravel()


def encode_flac(samples: Samples) -> bytes:
    """Mono 48 kHz FLAC of f32 [samples] in [-1, 1], rounded to 16 bits."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        whole = np.rint(samples * np.float32(32767)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def _melody(at: Mapping[str, float], time: NDArray[np.float64], rng: np.random.Generator) -> Samples:
    """Notes of a random walk over a scale in a random key, each ringing off; peak near 1."""
    beats = time * (tempo := _geometric(1.0, 10.0, at["tempo"])) + rng.random()
    note = beats.astype(np.int64)
    notes = int(note[-1]) + 1
    steps = np.abs(rng.integers(-2, 3, notes).cumsum() + rng.integers(len(_SCALE))) % len(_SCALE)
    scale = _geometric(165.0, 660.0, at["register"]) * 2 ** ((_SCALE + rng.uniform(-2, 2) - 3) / 12)
    rings = _geometric(0.15, 0.5, rng.random())
    since = (beats - note) / tempo
    loudness = np.minimum(since / 0.006, 1) * np.exp(-since / rings) * (rng.random(notes) > 0.1)[note]
    wave = _tone(scale, steps[note], _geometric(900.0, 3400.0, at["formant"]), rng)
    wave *= loudness.astype(np.float32)[:, None]
    return wave


def _tone(scale: NDArray[np.float64], step: NDArray[np.int64], formant: float, rng: np.random.Generator) -> Samples:
    """A continuous tone that has the frequency scale[step] in each block, with its formant in place: [blocks, 48]."""
    tables = _cycles(scale, formant, rng)
    place = _phases(scale[step], rng)
    place += (step << _TABLE_BITS).astype(np.uint32)[:, None]
    return tables.ravel()[place]


def _cycles(hertz: NDArray[np.float64], formant: float, rng: np.random.Generator) -> Samples:
    """One cycle of a tone of each of `hertz` [n], peak 1: harmonic h has amplitude h^-1.5, and up to as much as the
    first at the formant. [n, 4096].
    """
    harmonic = np.arange(1, _HARMONICS + 1)
    octaves = np.log2(hertz[:, None] * harmonic / formant)
    amplitude = harmonic**-1.5 + np.exp(-0.5 * (octaves / 0.2) ** 2)
    spectrum = np.zeros((len(hertz), (1 << _TABLE_BITS) // 2 + 1), complex)
    spectrum[:, harmonic] = amplitude * np.exp(2j * np.pi * rng.random(_HARMONICS))
    cycles = np.fft.irfft(spectrum)
    return (cycles / np.abs(cycles).max(axis=1, keepdims=True)).astype(np.float32)


def _phases(hertz: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint32]:
    """Places in the table for blocks of `hertz`: i.e. [blocks, 48], continuous across blocks."""
    step = np.rint(hertz * (2**32 / SAMPLE_RATE)).astype(np.uint64)
    start = np.concatenate([[rng.integers(2**32, dtype=np.uint64)], _BLOCK * step[:-1]]).cumsum()
    inside = step.astype(np.uint32)[:, None] * np.arange(_BLOCK, dtype=np.uint32)
    inside += start.astype(np.uint32)[:, None]
    return inside >> np.uint32(32 - _TABLE_BITS)


def _breath(rng: np.random.Generator) -> Samples:
    """Pink noise from 100 Hz to 12 kHz."""
    inside = (_FREQUENCIES > 100) & (_FREQUENCIES < 12_000)
    return _noise(np.where(inside, 1 / np.sqrt(np.maximum(_FREQUENCIES, 1.0)), 0.0), rng)


def _beat(at: Mapping[str, float], time: NDArray[np.float64], rng: np.random.Generator) -> Samples:
    """Thumps of 80 Hz that die away in 30 ms, at an even pace; peak near 1."""
    pace = _geometric(0.8, 8.0, at["beat"])
    since = ((time * pace + rng.random()) % 1.0) / pace
    thump = np.exp(-since / 0.03) * np.minimum(since / 0.004, 1)
    wave = np.sin(2 * np.pi * 80 / SAMPLE_RATE * np.arange(time.size * _BLOCK, dtype=np.float32))
    return _shaped(wave, thump)


def _band(centre: float, rng: np.random.Generator) -> Samples:
    """A loop of noise around `centre` in Hz, a sixteenth of an octave in deviation."""
    octaves = np.log2(np.maximum(_FREQUENCIES, 1.0) / centre)
    return _noise(np.exp(-0.5 * (octaves * 16) ** 2), rng)


def _noise(shape: NDArray[np.float64], rng: np.random.Generator) -> Samples:
    """A loop of noise with magnitudes `shape` [_LOOP / 2 + 1] (in the mean), a third of its peak in deviation."""
    parts = rng.standard_normal((2, len(shape)), np.float32)
    spectrum = (parts[0] + 1j * parts[1]) * shape.astype(np.float32)
    loop = np.fft.irfft(spectrum, _LOOP)
    return (loop / (3 * loop.std())).astype(np.float32)


def _shaped(loop: Samples, loudness: NDArray[np.float64]) -> Samples:
    """A loop repeated for as many blocks as `loudness` has, each times its loudness: [blocks, 48]."""
    layer = np.resize(loop, (len(loudness), _BLOCK))
    layer *= loudness.astype(np.float32)[:, None]
    return layer


def _fitted(layer: Samples, shape: tuple[int, int]) -> Samples:
    """A layer as it is, or a loop repeated to `shape`."""
    return layer if layer.shape == shape else np.resize(layer, shape)


def _between(low: float, high: float, position: float) -> float:
    return low + (high - low) * position


def _geometric(low: float, high: float, position: float) -> float:
    return float(low * (high / low) ** position)


def _amplitude(decibel: float) -> np.float32:
    return np.float32(10 ** (decibel / 20))


_FREQUENCIES = np.fft.rfftfreq(_LOOP, 1 / SAMPLE_RATE)
