"""Decoded frames -> mono samples; and how far the channels went before: their peak, and where they were cut off."""

from dataclasses import dataclass

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

_RUN = 3  # samples at full scale in a row, up to 48 kHz; above as many as last as long

# PyAV's sample formats, planar or not -> NumPy type, full scale, and the highest sample as a part of it (in 16 bits for
# those that have more: files of fewer bits are converted to them)
_FORMATS = {
    "u8": ("u1", 2.0**7, 1 - 2.0**-7),
    "s16": ("i2", 2.0**15, 1 - 2.0**-15),
    "s32": ("i4", 2.0**31, 1 - 2.0**-15),
    "flt": ("f4", 1.0, 1 - 2.0**-15),
    "dbl": ("f8", 1.0, 1 - 2.0**-15),
}


@dataclass(slots=True)
class Span:
    """Mono samples f32 [count * scale]; `known` marks those that were decoded, the others are zero.

    `full` marks where a channel is at full scale or beyond, `peak` is the largest magnitude in any channel (1 is full
    scale). `scale` is decoded rate / declared rate: 2 for AAC with SBR, else 1.
    """

    samples: NDArray[np.float32]
    known: NDArray[np.bool_]
    full: NDArray[np.bool_]
    scale: int
    peak: float = 0.0

    @classmethod
    def silent(cls, count: int, scale: int) -> "Span":
        """Nothing of it is known yet."""
        count *= scale
        return cls(np.zeros(count, np.float32), np.zeros(count, np.bool_), np.zeros(count, np.bool_), scale)

    def place(self, at: int, frame: AudioFrame) -> None:
        """Put the mean of a frame's channels at sample `at`; what does not fit is left out."""
        low, high = max(0, at), min(len(self.samples), at + frame.samples)
        if low >= high:
            return
        full_scale, highest = _FORMATS[_format(frame)][1:]
        channels = _channels(frame, slice(low - at, high - at))
        with np.errstate(all="ignore"):  # a float file may hold anything; who reads a span looks at the result
            outmost = np.abs(channels[0])
            mono = channels[0]
            for channel in channels[1:]:
                np.maximum(outmost, np.abs(channel), out=outmost)
                mono += channel
            np.multiply(mono, np.float32(1 / (full_scale * len(channels))), out=self.samples[low:high])
        self.known[low:high] = True
        self.full[low:high] = outmost >= np.float32(highest * full_scale)
        self.peak = max(self.peak, float(outmost.max()) / full_scale)


class LevelMeter:
    """How far a recording's samples go, over the spans that were read of it.

    `peak`: the largest magnitude, 1 is full scale (a sample's, not a true peak between samples). `clipped`: the part
    of the samples, 0 to 1, that stand in a row of three or more at full scale, which is how meters tell an "over":
    a single one there may be the top of a wave that just fits, three are a wave that was cut off. What is decoded from
    lossy formats, and float files, may go beyond, and counts: it is cut off when it is played. A sample counts when
    any channel does. Full scale is the highest value of the format's integers, of 16 bits where there are more.
    Above 48 kHz the row must last as long. (A clean tone under about 45 Hz at full scale stays there for as long.)
    """

    def __init__(self) -> None:
        self.peak, self._cut, self._read = 0.0, 0, 0

    def add(self, span: Span, rate: int) -> None:
        """Count a span in; `rate` is that of its samples."""
        edges = np.flatnonzero(np.diff(span.full, prepend=False, append=False))
        rows = edges[1::2] - edges[::2]
        self._cut += int(rows[rows >= max(_RUN, round(_RUN * rate / 48_000))].sum())
        self._read += int(np.count_nonzero(span.known))
        self.peak = max(self.peak, span.peak)

    @property
    def clipped(self) -> float:
        """The part of the samples, 0 to 1, that were cut off."""
        return self._cut / max(1, self._read)


def _format(frame: AudioFrame) -> str:
    return frame.format.name.removesuffix("p")


def _channels(frame: AudioFrame, part: slice) -> list[NDArray[np.float32]]:
    """A part of each channel, in the format's own scale but around zero; each a copy."""
    kind, count = _FORMATS[_format(frame)][0], frame.layout.nb_channels
    if frame.format.is_planar:
        found = [np.frombuffer(memoryview(plane), kind, frame.samples) for plane in frame.planes]
    else:
        found = list(np.frombuffer(memoryview(frame.planes[0]), kind, frame.samples * count).reshape(-1, count).T)
    with np.errstate(over="ignore"):
        signed = [channel[part].astype(np.float32) for channel in found]
    if kind == "u1":
        for channel in signed:
            channel -= 128
    return signed
