"""Compressed streams -> mono samples at their own rate, any span of them (PyAV). Only `index.sound.audio` uses it."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Protocol

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame

from index.sound.containers import AudioError, Container
from index.sound.mpegframes import FrameTable, read_at
from index.sound.samples import Span

if TYPE_CHECKING:  # generic in PyAV's stubs only
    AnyPacket = av.Packet[Any]

_WIDTHS = [f"{kind}{order}" for kind in ("s16", "s24", "s32", "f32", "f64") for order in ("le", "be")]
_PCM = [f"pcm_{name}" for name in ("u8", "s8", "alaw", "mulaw", *_WIDTHS)]
_LOSSLESS = frozenset(["flac", "alac", *_PCM])
_LOSSY = frozenset(["mp1float", "mp2", "mp2float", "mp3", "mp3float", "aac", "vorbis", "opus"])
CODECS = _LOSSLESS | _LOSSY
RATES = range(1_000, 768_001)  # Hz
CHANNELS = 64

_PREROLL_S = 0.5  # decoded before a span of a lossy stream: MP3's reservoir and Opus's state reach back under 0.25 s
_JITTER_S = 0.003  # a time stamp this near to the end of the last frame continues it: many time bases are coarse
_EXTRA_S = 20.0  # sound decoded for a span beyond its length, before its time stamps count as broken
_BEHIND_S = 1.0  # packets this far behind a span are not its own, however few of its own there were
_PACKETS = 1_000_000  # packets read at once, a second or two; 4 h of FLAC in small blocks are half of it


class Stream(Protocol):
    """One audio stream that can be read from any place. Times count from the start of its sound."""

    codec: str
    rate: int  # Hz as declared; AAC with SBR decodes to twice that
    base: Fraction  # seconds in a unit of its time stamps

    @property
    def duration_s(self) -> float | None:
        """What the file says of itself; None when it says nothing."""

    def decoder(self) -> AudioCodecContext:
        """A decoder without a past."""

    def packets(self, start_s: float) -> "Iterator[AnyPacket]":
        """The packets from `start_s` on; an empty one ends them and flushes the decoder."""


class BareStream:
    """MP3 and ADTS: packets are cut by our own frame table, so positions are exact and no demuxer is involved."""

    def __init__(self, file: BinaryIO, table: FrameTable) -> None:
        self.codec, self.rate, self.base = table.codec, table.sample_rate, Fraction(1, table.sample_rate)
        self._file, self._table = file, table

    @property
    def duration_s(self) -> float:
        """Exact: the frames are counted."""
        return self._table.duration_s

    def decoder(self) -> AudioCodecContext:
        """A new decoder."""
        context = av.CodecContext.create("aac" if self.codec == "aac" else f"{self.codec}float", "r")
        assert isinstance(context, AudioCodecContext)
        context.thread_count = 1
        return context

    def packets(self, start_s: float) -> "Iterator[AnyPacket]":
        """The frames from the one that holds `start_s` on."""
        table = self._table
        start = max(0, math.floor(start_s * self.rate) + table.skip) // table.frame_samples
        for index in range(start, len(table.offsets)):
            packet: AnyPacket = av.Packet(read_at(self._file, table.offsets[index], table.sizes[index]))
            packet.pts = index * table.frame_samples - table.skip
            packet.time_base = self.base
            yield packet
        yield av.Packet()


class DemuxedStream:
    """The first audio stream of a container that FFmpeg demuxes; FFmpeg may open nothing but the file object given.

    Raises AudioError (audio_no_stream, audio_undecodable) and av.FFmpegError.
    """

    def __init__(self, file: BinaryIO, container: Container) -> None:
        file.seek(0)
        self._container = av.open(
            file,
            "r",
            format="mov" if container == "mp4" else container,
            options={"codec_whitelist": ",".join(sorted(CODECS))},
            metadata_errors="ignore",
            buffer_size=1 << 16,
            io_open=_refuse,
        )
        try:
            self._choose(container)
        except BaseException:
            self.close()
            raise

    def _choose(self, container: Container) -> None:
        streams = self._container.streams.audio
        if not streams:
            others = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            raise AudioError(
                f"the {container} file holds {others} and no audio stream; send the sound itself",
                code="audio_no_stream",
            )
        self._stream = streams[0]
        context: AudioCodecContext | None = self._stream.codec_context
        self.codec = context.name if context is not None else "unknown"
        if context is None or self.codec not in CODECS:
            raise AudioError(f"the codec of the recording ({self.codec}) is not accepted; convert it to FLAC or Opus")
        context.thread_count = 1
        self.rate = context.sample_rate
        self.base = self._stream.time_base or Fraction(1, 1_000_000)
        self._origin = self._stream.start_time or 0

    def close(self) -> None:
        """Free what FFmpeg holds (container and streams refer to each other)."""
        self._container.close()

    @property
    def duration_s(self) -> float | None:
        """The stream's, else the container's."""
        if self._stream.duration is not None:
            return float(self._stream.duration * self.base)
        return self._container.duration / 1e6 if self._container.duration is not None else None

    def decoder(self) -> AudioCodecContext:
        """The stream's own; the seek that `packets` starts with makes it forget."""
        return self._stream.codec_context

    def packets(self, start_s: float) -> "Iterator[AnyPacket]":
        """Seek, and skip what a coarse seek brings up before `start_s`."""
        start = math.floor(start_s / self.base)
        try:
            # Forward from before the start: what an encoder put in front has time stamps under 0 there.
            self._container.seek(start + self._origin, stream=self._stream, backward=start > 0)
        except av.FFmpegError:  # no index, no way to bisect: read on from the start
            self._container.seek(0)
        for number, packet in enumerate(self._container.demux(self._stream)):
            if number > _PACKETS:
                raise AudioError("the recording consists of too many packets; export it again")
            if packet.pts is not None:
                packet.pts -= self._origin
                if packet.pts + (packet.duration or 0) < start:
                    continue
            yield packet


def read_span(stream: Stream, first: int, count: int) -> Span:
    """Decode samples `first` to `first + count` of the stream (in declared samples), channels averaged.

    Packets that do not decode leave zeros; the caller judges by `known`. Decoding stops after the span's
    length and 20 s more whatever the time stamps say: a forged file costs no more than an honest one.
    Raises AudioError when the sample rate changes within the span, or samples are not numbers.
    """
    span = Span.silent(count, 1)
    end: int | None = None  # of the last frame, in decoded samples
    budget = count + round(_EXTRA_S * stream.rate)
    for frame in _frames(stream, first, first + count):
        if frame.sample_rate != stream.rate * span.scale:
            if span.known.any() or frame.sample_rate not in (stream.rate, stream.rate * 2):
                raise AudioError(f"the sample rate changes to {frame.sample_rate} Hz; export the recording again")
            span, end = Span.silent(count, frame.sample_rate // stream.rate), None
        at = _position(frame, stream.base, end)
        if at is None:
            continue
        span.place(at - first * span.scale, frame)
        end = at + frame.samples
        budget -= frame.samples // span.scale
        if end >= (first + count) * span.scale or budget < 0:
            break
    if not np.isfinite(span.samples).all():
        raise AudioError("the recording holds samples that are not numbers (NaN or infinite); export it again")
    return span


def count_seconds(stream: Stream, limit_s: float) -> float:
    """Seconds of sound by the time stamps of all packets, undecoded; stops once past `limit_s`."""
    end = 0
    for packet in stream.packets(0):
        end = max(end, (packet.pts or 0) + (packet.duration or 0))
        if end * stream.base > limit_s:
            break
    return float(end * stream.base)


def _frames(stream: Stream, first: int, last: int) -> Iterator[AudioFrame]:
    """Decoded frames from a little before sample `first` to sample `last`, or a little further."""
    preroll_s = 0.0 if stream.codec in _LOSSLESS else _PREROLL_S
    decoder = stream.decoder()
    for packet in stream.packets(first / stream.rate - preroll_s):
        if packet.pts is not None and packet.pts * stream.base > last / stream.rate + _BEHIND_S:
            return
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError:
            continue
        for frame in frames:
            if frame.sample_rate not in RATES or frame.layout.nb_channels > CHANNELS:
                raise AudioError(
                    f"{frame.layout.nb_channels} channels at {frame.sample_rate} Hz are not accepted "
                    f"(up to {CHANNELS} channels, {RATES.start} to {RATES[-1]} Hz); convert the recording"
                )
            yield frame


def _position(frame: AudioFrame, base: Fraction, end: int | None) -> int | None:
    """Where a frame starts, in decoded samples: at the end of the last one unless its time stamp contradicts."""
    if frame.pts is None:
        return end
    unit = base.denominator
    at = (2 * frame.pts * base.numerator * frame.sample_rate + unit) // (2 * unit)  # rounded
    return end if end is not None and abs(at - end) <= _JITTER_S * frame.sample_rate else at


def _refuse(url: str, *_: object) -> NoReturn:
    """FFmpeg asks for another file or URL: never."""
    raise PermissionError(f"the recording refers to another file ({url[:80]!r}), which is not opened")
