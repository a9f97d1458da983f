"""Recordings -> mono 48 kHz samples: the one place where audio is decoded, with its limits and the window rule."""

import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

import av
import numpy as np
from numpy.typing import NDArray

from index.sound.containers import ACCEPTED, AudioError, Container, check_whole, sniff, truncated
from index.sound.features import CLIP_SAMPLES, SAMPLE_RATE
from index.sound.mpegframes import frame_table
from index.sound.samples import LevelMeter
from index.sound.streams import RATES, BareStream, DemuxedStream, Stream, count_seconds, read_span
from index.sound.tags import check_tags

__all__ = [
    "ACCEPTED",
    "AudioError",
    "AudioLimits",
    "Recording",
    "decode",
    "decode_span",
    "repeat_pad",
    "window_starts",
]

CLIP_S = 10.0
EDGE_S = 20.0  # left out at start and end of a track of at least LONG_S
LONG_S = 50.0
MAX_CLIPS = 3
_MARGIN = 1024  # samples decoded around a span, so that the resampler's filter never meets its edge
_PUSHED = 1 << 16  # samples resampled at once: larger buffers are fresh pages each time, which costs 5 times as much
_MISSING = 0.1  # the part of a window that may fail to decode
_TAIL_S = 1.0  # decoded at the end of a file to see that the end is there
_TAIL_TOLERANCE_S = 0.25  # an encoder's own padding; FLAC counts samples exactly and gets none


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What `decode` accepts. Seconds of sound, dB below full scale."""

    min_s: float = 1.0  # shorter is audio_too_short
    max_s: float = 4 * 3600.0  # longer is audio_too_long
    silence_dbfs: float = -70.0  # all windows quieter than this (RMS) is audio_silent


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The windows of one recording: clips f32 [n, 480000], mono 48 kHz in [-1, 1], and what the file is.

    `peak` (1 is full scale, lossy formats go beyond) and `clipped` (0 to 1) are `LevelMeter`'s, over the windows and a
    little around them.
    """

    clips: NDArray[np.float32]
    duration_s: float
    container: Container
    codec: str
    sample_rate: int
    starts_s: tuple[float, ...]
    peak: float
    clipped: float


def window_starts(duration_s: float) -> tuple[float, ...]:
    """Where the 10 s windows of a track begin, in seconds: the one window rule, for trainer and service.

    The first and last 20 s are left out from 50 s on (LARP, section 4.1). Of what remains, n = 1 to 3 equal
    parts (one for every full 10 s) each give the 10 s around their middle. A track under 10 s has one
    window, from 0.
    """
    edge = EDGE_S if duration_s >= LONG_S else 0.0
    usable = duration_s - 2 * edge
    if usable < CLIP_S:
        return (0.0,)
    count = min(MAX_CLIPS, int(usable // CLIP_S))
    middles = ((part + 0.5) * usable / count for part in range(count))
    return tuple(round((edge + middle - CLIP_S / 2) * SAMPLE_RATE) / SAMPLE_RATE for middle in middles)


def repeat_pad(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """f32 [n] of up to 10 s -> [480000]: repeated as often as it fits whole, then zeros, as CLAP's "repeatpad" does."""
    clip = np.zeros(CLIP_SAMPLES, dtype=np.float32)
    whole = CLIP_SAMPLES // len(samples) * len(samples)
    clip[:whole] = np.tile(samples, CLIP_SAMPLES // len(samples))
    return clip


def decode(source: bytes | Path | BinaryIO, limits: AudioLimits = AudioLimits()) -> Recording:
    """Decode the windows (`window_starts`) of a recording, and nothing else of it but its last second.

    Accepts WAV, FLAC, MP3, Ogg (Opus, Vorbis), M4A/MP4, AIFF and ADTS AAC, found by content and never by
    name. Durations in headers are not believed: structure is checked (`index.sound.containers.check_whole`), the
    end is decoded, frames of MP3 and AAC are counted. A span costs no more than its length and 20 s of
    decoding; only the windows are held. A `source` that is a file object must be seekable; it is read from
    its start and left open.

    Raises AudioError, and nothing else, when the recording cannot be used.
    """
    with _decoding(source, limits) as (stream, container):
        duration_s = _duration(stream, container, limits)
        starts_s, meter = window_starts(duration_s), LevelMeter()
        if duration_s < CLIP_S:
            clips = repeat_pad(_samples(stream, 0, max(1, int(duration_s * SAMPLE_RATE)), duration_s, meter))[None]
        else:
            clips = np.empty((len(starts_s), CLIP_SAMPLES), dtype=np.float32)
            for clip, start_s in zip(clips, starts_s, strict=True):
                clip[:] = _samples(stream, round(start_s * SAMPLE_RATE), CLIP_SAMPLES, duration_s, meter)
        _check_loudness(clips, limits)
        levels = (meter.peak, meter.clipped)
        return Recording(clips, duration_s, container, stream.codec, stream.rate, starts_s, *levels)


def decode_span(
    source: bytes | Path | BinaryIO,
    start_s: float | None,
    seconds: float,
    limits: AudioLimits = AudioLimits(),
) -> NDArray[np.float32]:
    """Decode `seconds` from `start_s` on (None: from the middle of the recording): f32 [n], mono 48 kHz in [-1, 1].

    What lies beyond the end is not there: n is less than asked for in a recording that ends sooner, and 0
    past its end. Raises AudioError as `decode` does, silence excepted.
    """
    with _decoding(source, limits) as (stream, container):
        duration_s = _duration(stream, container, limits)
        if start_s is None:
            start_s = max(0.0, (duration_s - seconds) / 2)
        first = round(start_s * SAMPLE_RATE)
        count = min(round(seconds * SAMPLE_RATE), int(duration_s * SAMPLE_RATE) - first)
        return _samples(stream, first, max(0, count), duration_s, LevelMeter())


@contextmanager
def _decoding(source: bytes | Path | BinaryIO, limits: AudioLimits) -> Iterator[tuple[Stream, Container]]:
    """Open the recording's stream; whatever FFmpeg raises meanwhile becomes an AudioError."""
    with _opened(source) as file, ExitStack() as stack:
        try:
            container = sniff(file)
            check_whole(file, container)
            check_tags(file, container)
            if container == "mp3" or container == "aac":
                stream: Stream = _bare(file, container, limits)
            else:
                stream = stack.enter_context(closing(DemuxedStream(file, container)))
            if stream.rate not in RATES:
                raise AudioError(f"its header claims {stream.rate} samples a second; export it again")
            yield stream, container
        except av.EOFError as error:
            raise truncated("it ends within its header") from error
        except (av.FFmpegError, OSError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AudioError(f"the recording cannot be decoded ({reason}); export it again") from error


@contextmanager
def _opened(source: bytes | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, Path):
        try:
            file = source.open("rb") if source.is_file() else None
        except OSError as error:
            raise AudioError(f"{source} cannot be read ({error.strerror})", code="audio_missing") from error
        if file is None:
            raise AudioError(f"there is no file {source}; name an existing one", code="audio_missing")
        with file:
            yield file
    else:
        yield source


def _bare(file: BinaryIO, container: Literal["mp3", "aac"], limits: AudioLimits) -> BareStream:
    table = frame_table(file, container, limits.max_s)
    if table is not None and table.missing is not None:
        raise truncated(table.missing)
    if table is None or not table.offsets:
        raise AudioError(f"the {container} file holds no whole frame; export it again", code="audio_empty")
    return BareStream(file, table)


def _duration(stream: Stream, container: Container, limits: AudioLimits) -> float:
    """Seconds of sound as measured (frames counted, or the end decoded), within the limits or AudioError."""
    duration_s = stream.duration_s
    if duration_s is None:
        duration_s = count_seconds(stream, limits.max_s)
    if not isinstance(stream, BareStream) and duration_s > 0:
        duration_s = _checked_end(stream, container, duration_s)
    if duration_s <= 0:
        raise AudioError("the file holds no sound at all; export the recording again", code="audio_empty")
    if duration_s < limits.min_s:
        raise AudioError(
            f"the recording lasts {duration_s:.2f} s; at least {limits.min_s:g} s are needed",
            code="audio_too_short",
        )
    if duration_s > limits.max_s:
        raise AudioError(
            f"the recording lasts over {limits.max_s:g} s, which is the limit; send a part of it",
            code="audio_too_long",
        )
    return duration_s


def _checked_end(stream: Stream, container: Container, claimed_s: float) -> float:
    """Decode the last second and return where the sound ends; audio_truncated when that is well before the claim."""
    first = max(0, math.floor((claimed_s - _TAIL_S) * stream.rate))
    try:
        span = read_span(stream, first, math.ceil(claimed_s * stream.rate) - first)
    except av.FFmpegError as error:  # FLAC finds its way by halving: a file cut at certain places leads nowhere
        raise truncated(f"its header claims {claimed_s:.2f} s and its last second cannot be found") from error
    known = np.flatnonzero(span.known)
    end_s = (first + (int(known[-1]) + 1) / span.scale) / stream.rate if len(known) else 0.0
    tolerance_s = 0.5 / stream.rate if container == "flac" else _TAIL_TOLERANCE_S
    if end_s < claimed_s - tolerance_s:
        there = f"its sound ends at {end_s:.2f} s" if len(known) else "nothing of its last second is there"
        raise truncated(f"its header claims {claimed_s:.2f} s and {there}")
    return end_s


def _samples(stream: Stream, start: int, count: int, duration_s: float, meter: LevelMeter) -> NDArray[np.float32]:
    """`count` mono samples at 48 kHz from sample `start` (at 48 kHz) on, exact to the sample."""
    if count == 0:
        return np.zeros(0, dtype=np.float32)
    period = stream.rate // math.gcd(stream.rate, SAMPLE_RATE)  # every so many samples both grids meet
    first = max(0, start * stream.rate // SAMPLE_RATE - _MARGIN) // period * period
    last = -(-(start + count) * stream.rate // SAMPLE_RATE) + _MARGIN
    last = max(first + 1, min(last, round(duration_s * stream.rate)))
    span = read_span(stream, first, last - first)
    if span.known.mean() < 1 - _MISSING:
        where = f"between {first / stream.rate:.1f} and {last / stream.rate:.1f} s"
        raise AudioError(f"only {span.known.mean():.0%} of the sound {where} can be decoded; export it again")
    meter.add(span, stream.rate * span.scale)
    resampled = _resample(np.clip(span.samples, -1, 1, out=span.samples), stream.rate * span.scale)
    skip = start - first * SAMPLE_RATE // stream.rate
    samples = resampled[skip : skip + count]
    if len(samples) < count:
        samples = np.pad(samples, (0, count - len(samples)))
    return np.clip(samples, -1, 1, out=samples)


def _resample(mono: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """f32 [n] at `rate` -> f32 at 48 kHz, both starting at the same instant (FFmpeg's swresample)."""
    if rate == SAMPLE_RATE:
        return mono
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    parts = []
    for start in range(0, len(mono), _PUSHED):
        frame = av.AudioFrame.from_ndarray(mono[None, start : start + _PUSHED], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        parts += resampler.resample(frame)
    parts += resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts], dtype=np.float32)


def _check_loudness(clips: NDArray[np.float32], limits: AudioLimits) -> None:
    power = max(float(np.dot(clip, clip)) / len(clip) for clip in clips)
    loudest = 10 * math.log10(max(power, 1e-20))
    if loudest < limits.silence_dbfs:
        raise AudioError(
            f"the recording is silent: its loudest window has {loudest:.0f} dBFS, at least "
            f"{limits.silence_dbfs:g} are needed; export it again",
            code="audio_silent",
        )
