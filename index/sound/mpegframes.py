"""Bare MP3 and ADTS (AAC) streams: where each frame lies, how long the sound is, whether the end was cut off."""

import math
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

Kind = Literal["mp3", "aac"]

_CHUNK = 1 << 20  # bytes read at once
_SEARCH = 1 << 16  # bytes searched for the first frame before a file is called something else
_CHAIN = 3  # frames in a row that make a find more than chance
_TAGS = 100  # ID3 tags passed at the start of a file
_TRIES = 20_000  # places looked into for the next frame before a file counts as hopeless: 0.1 s
_JUNK = 1 << 24  # bytes searched for the next frame before it does: a picture behind the sound is smaller
_DECODER_DELAY = 529  # samples an MP3 decoder adds: 528 of the filter bank and 1


class Frame(NamedTuple):
    """One frame header: bytes and samples of the frame, and what may not change within a stream."""

    size: int
    samples: int
    stream: tuple[str, int]  # codec, sample rate


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Frame i is the bytes offsets[i] to offsets[i] + sizes[i] and holds `frame_samples` samples.

    `skip` and `padding` are the samples at start and end that the encoder added (LAME's tag and the
    decoder's delay); `missing` says in words what was cut off, and is None when nothing was.
    """

    codec: str
    sample_rate: int
    frame_samples: int
    offsets: "array[int]"
    sizes: "array[int]"
    skip: int
    padding: int
    missing: str | None

    @property
    def duration_s(self) -> float:
        """Seconds of sound, without what the encoder added."""
        return max(0, len(self.offsets) * self.frame_samples - self.skip - self.padding) / self.sample_rate


Parser = Callable[[bytes, int], Frame | None]  # the frame whose header stands at this place of these bytes


class _Header(NamedTuple):
    """What an Xing, Info or VBRI header says of the frames behind it."""

    frames: int | None
    skip: int
    padding: int


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Up to `count` bytes from `offset`."""
    file.seek(offset)
    return file.read(count)


def file_size(file: BinaryIO) -> int:
    """Bytes in the file."""
    return file.seek(0, os.SEEK_END)


def after_id3(file: BinaryIO) -> int:
    """The offset behind the (up to 100) ID3v2 tags that a file begins with; beyond the file's end when one was cut."""
    offset = 0
    for _ in range(_TAGS):
        head = read_at(file, offset, 10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        footer = 10 if head[5] & 0x10 else 0
        offset += 10 + footer + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    return offset


def first_frame(file: BinaryIO, kind: Kind) -> int | None:
    """The offset of the first frame that two more (or the end of the file) follow, or None within 64 KiB."""
    start = after_id3(file)
    headers = _Headers(file, kind)
    headers.load(start, _SEARCH)
    for at in headers.candidates(start):
        if headers.is_chain(at, _CHAIN, at_start=at == start):
            return at
    return None


def frame_table(file: BinaryIO, kind: Kind, limit_s: float) -> FrameTable | None:
    """Find every frame by its header (about 1 ms a MB), or those of a little over `limit_s`; None when there is none.

    Cut is a file whose last frame is not whole, or whose Xing, Info or VBRI header counts over two frames
    more than there are (encoders disagree on whether it counts itself). What cannot be seen: an ADTS
    stream, or an MP3 without such a header, that was cut exactly between two frames.
    """
    start = first_frame(file, kind)
    if start is None:
        return None
    frame = _PARSERS[kind](read_at(file, start, 8), 0)
    assert frame is not None
    header = _info(read_at(file, start, frame.size)) if kind == "mp3" else None
    if header is not None:
        start += frame.size
    known = header or _Header(None, 0, 0)
    codec, rate = frame.stream
    limit = 4 + math.ceil((limit_s * rate + known.skip + known.padding) / frame.samples)
    offsets, sizes, missing = _Scanner(file, kind, frame).scan(start, limit)
    if missing is None and len(offsets) < limit and known.frames is not None and len(offsets) + 2 < known.frames:
        missing = f"its header counts {known.frames} frames and {len(offsets)} are there"
    return FrameTable(codec, rate, frame.samples, offsets, sizes, known.skip, known.padding, missing)


class _Headers:
    """The frame headers of a file: those in the bytes at hand (`chunk`, from `base` on) cost no read."""

    def __init__(self, file: BinaryIO, kind: Kind) -> None:
        self.end = file_size(file)
        self.chunk, self.base = b"", 0
        self._file, self._parse, self._pattern = file, _PARSERS[kind], _HEADERS[kind]

    def load(self, at: int, count: int = _CHUNK) -> None:
        """Take the bytes from `at` on in hand."""
        self.chunk, self.base = read_at(self._file, at, count), at

    def candidates(self, at: int) -> Iterator[int]:
        """Where, from `at` to the end of the bytes at hand, a header may stand."""
        base = self.base
        return (base + match.start() for match in self._pattern.finditer(self.chunk, at - base))

    def frame(self, at: int) -> Frame | None:
        """The frame whose header stands at `at`."""
        place = at - self.base
        if 0 <= place <= len(self.chunk) - 8:
            return self._parse(self.chunk, place)
        return self._parse(read_at(self._file, at, 8), 0)

    def is_chain(self, at: int, links: int, *, at_start: bool = False) -> bool:
        """Whether `links` like frames follow each other from `at`; at the start of a file its end may come sooner."""
        first: Frame | None = None
        for link in range(links):
            frame = self.frame(at)
            if frame is None or (first is not None and frame.stream != first.stream):
                return False
            first = first or frame
            at += frame.size
            if at >= self.end:
                return at_start or link > 0
        return True


class _Scanner:
    """One pass over the frames of a stream, from header to header."""

    def __init__(self, file: BinaryIO, kind: Kind, like: Frame) -> None:
        self._headers, self._like, self._parse = _Headers(file, kind), like, _PARSERS[kind]
        self._shortest = 4 if kind == "mp3" else 7  # bytes of a header
        self._tries, self._junk = _TRIES, _JUNK

    def scan(self, at: int, limit: int) -> "tuple[array[int], array[int], str | None]":
        """Offsets and sizes of up to `limit` frames from `at` on, and what is missing at the end."""
        offsets, sizes = array("q"), array("i")
        headers, end = self._headers, self._headers.end
        headers.load(at)
        chunk, base = headers.chunk, headers.base
        while at < end and len(offsets) < limit:
            if at - base + 8 > len(chunk) and base + len(chunk) < end:
                headers.load(at)
                chunk, base = headers.chunk, headers.base
            frame = self._parse(chunk, at - base)
            if frame is None or frame.stream != self._like.stream or frame.samples != self._like.samples:
                stub = end - at < self._shortest and chunk[at - base : at - base + 1] == b"\xff"
                found = self._resume(at + 1)
                if found is None:
                    return offsets, sizes, "the last frame is cut" if stub else None
                at, chunk, base = found, headers.chunk, headers.base
                continue
            if at + frame.size > end:
                lacking = at + frame.size - end
                return offsets, sizes, f"the last frame lacks {lacking} of {frame.size} bytes"
            offsets.append(at)
            sizes.append(frame.size)
            at += frame.size
        return offsets, sizes, None

    def _resume(self, at: int) -> int | None:
        """Where the stream goes on behind damage, tags or padding (two of its frames in a row), or None.

        Raises ValueError when a file holds so much that is no frame, or looks like one and is none, that it
        was made for it.
        """
        headers, start = self._headers, at
        while at < headers.end:
            if not headers.base <= at < headers.base + len(headers.chunk) - 8:
                headers.load(at)
            for place in headers.candidates(at):
                self._tries -= 1
                if self._tries < 0 or self._junk < place - start:
                    raise ValueError("more damage than sound")
                frame = headers.frame(place)
                if frame is not None and frame.stream == self._like.stream and headers.is_chain(place, 2):
                    self._junk -= place - start
                    return place
            behind = headers.base + len(headers.chunk)
            at = behind - 8 if behind < headers.end else behind
            if self._junk < at - start:
                raise ValueError("more damage than sound")
        return None


def _info(data: bytes) -> _Header | None:
    """Read the frame count and LAME's delays from an Xing, Info or VBRI header, if the first frame is one."""
    if data[36:40] == b"VBRI":
        return _Header(int.from_bytes(data[50:54], "big"), 0, 0)
    place = max(data.find(b"Xing", 4, 64), data.find(b"Info", 4, 64))
    if place < 0:
        return None
    flags = int.from_bytes(data[place + 4 : place + 8], "big")
    frames = int.from_bytes(data[place + 8 : place + 12], "big") if flags & 1 else None
    lame = place + 8 + 4 * bool(flags & 1) + 4 * bool(flags & 2) + 100 * bool(flags & 4) + 4 * bool(flags & 8)
    delays = int.from_bytes(data[lame + 21 : lame + 24], "big")
    if not delays or not data[lame : lame + 4].strip(b"\0 "):
        return _Header(frames, 0, 0)
    return _Header(frames, (delays >> 12) + _DECODER_DELAY, max(0, (delays & 0xFFF) - _DECODER_DELAY))


def _mp3_headers() -> dict[int, Frame]:
    """Second and third header byte -> the frame they head (ISO 11172-3 and 13818-3, without free format)."""
    v1 = {
        1: (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
        2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
        3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    }
    low = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    v2 = {1: (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256), 2: low, 3: low}
    headers = {}
    for key in range(0xE000, 0x10000):
        version, layer = key >> 11 & 3, 4 - (key >> 9 & 3)
        bitrate, rate, pad = key >> 4 & 15, key >> 2 & 3, key >> 1 & 1
        if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
            continue
        hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        samples = {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]
        bits = (v1 if version == 3 else v2)[layer][bitrate] * 1000
        slot = 4 if layer == 1 else 1
        size = (samples // 8 // slot * bits // hertz + pad) * slot
        headers[key] = Frame(size, samples, (f"mp{layer}", hertz))
    return headers


def _mp3_frame(data: bytes, at: int) -> Frame | None:
    if at + 4 > len(data) or data[at] != 0xFF:
        return None
    return _MP3_HEADERS.get(data[at + 1] << 8 | data[at + 2])


def _adts_frame(data: bytes, at: int) -> Frame | None:
    """ISO 13818-7: syncword, layer 0, 13 bits of frame length, 1024 samples a raw data block."""
    if at + 7 > len(data) or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return None
    rate = data[at + 2] >> 2 & 15
    size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    if rate >= len(_AAC_RATES) or size <= 7:
        return None
    return Frame(size, 1024 * (1 + (data[at + 6] & 3)), ("aac", _AAC_RATES[rate]))


_AAC_RATES = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)
_MP3_HEADERS = _mp3_headers()
_HEADERS: dict[Kind, re.Pattern[bytes]] = {  # what a header can begin with
    "mp3": re.compile(rb"\xff(?=[\xe2-\xff][\x10-\xef])"),
    "aac": re.compile(rb"\xff(?=[\xf0\xf1\xf8\xf9])"),
}
_PARSERS: dict[Kind, Parser] = {"mp3": _mp3_frame, "aac": _adts_frame}
