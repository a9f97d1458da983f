"""Containers of audio: which of the accepted ones a file is, and whether all of it is there. Decodes nothing."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Literal

from index.errors import DebutError
from index.sound.mpegframes import after_id3, file_size, first_frame, read_at

Container = Literal["wav", "flac", "mp3", "ogg", "mp4", "aiff", "aac"]
ACCEPTED = "WAV, FLAC, MP3, Ogg (Opus, Vorbis), M4A/MP4, AIFF or AAC"

_UNKNOWN_SIZE = (0, 0xFFFFFFFF)  # what a writer that could not seek back leaves as a RIFF size
_CHUNKS = 4096  # chunks of a WAV or AIFF file; honest ones have a dozen
_BOXES = 1 << 16  # outer boxes of an MP4 file: one in fragments has two a second
_INDEX_BOXES = 1 << 14  # boxes of its index; tags are two to four each, and FFmpeg compares each with all before it
_NESTED = frozenset([b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"meta", b"ilst", b"----", b"mvex"])
_DEPTH = 8  # boxes within boxes
_LAST_PAGES = 2 * 65_307  # bytes: twice the largest Ogg page, so that a tag behind the last one is forgiven


class AudioError(DebutError):
    """A recording that cannot be used; `code` is one of these.

    audio_missing (no such file), not_audio (no accepted container), audio_no_stream (a container without
    sound), audio_empty, audio_truncated, audio_undecodable, audio_too_short, audio_too_long, audio_silent.
    """

    code = "audio_undecodable"


def truncated(what: str) -> AudioError:
    """The error for a file whose end is missing."""
    return AudioError(f"the recording was cut off: {what}; send the whole file again", code="audio_truncated")


def sniff(file: BinaryIO) -> Container:
    """Name the container by its first bytes, so that FFmpeg never guesses: some formats it knows open other files.

    Raises AudioError: audio_empty, not_audio, or audio_truncated when the file ends inside an ID3 tag at
    its start.
    """
    size = file_size(file)
    if size == 0:
        raise AudioError("the file is empty (0 bytes); send the recording itself", code="audio_empty")
    start = after_id3(file)
    if start >= size:
        raise truncated(f"its ID3 tag takes {start:,} bytes and there are {size:,}")
    named = _by_magic(read_at(file, start, 12), tagged=start > 0)
    if named is not None:
        return named
    if first_frame(file, "mp3") is not None:
        return "mp3"
    if first_frame(file, "aac") is not None:
        return "aac"
    begin = read_at(file, 0, 8)
    raise AudioError(f"the file begins with {begin!r} and is not {ACCEPTED}; convert it", code="not_audio")


def check_whole(file: BinaryIO, container: Container) -> None:
    """Raise AudioError audio_truncated when the structure of the file claims bytes that are not there.

    wav, aiff and mp4: by the sizes of their chunks and boxes. ogg: the last page must be whole and end its
    stream. flac has no such structure (`index.sound.audio` decodes its end instead); mp3 and aac are judged by
    their frame table.
    """
    if container == "wav":
        _check_chunks(file, "little")
    elif container == "aiff":
        _check_chunks(file, "big")
    elif container == "mp4":
        _check_boxes(file)
    elif container == "ogg":
        _check_last_page(file)


def _by_magic(head: bytes, *, tagged: bool) -> Container | None:
    if head[:4] == b"fLaC":
        return "flac"
    if tagged:
        return None
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"OggS":
        return "ogg"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mp4"
    return None


def chunks(file: BinaryIO, order: Literal["little", "big"]) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a RIFF or AIFF file: name, where its bytes are and how many it claims; -1: to the end of the file.

    Raises AudioError for a file of too many.
    """
    at, real_size, found = 12, 0, False
    for _ in range(_CHUNKS):
        head = read_at(file, at, 8)
        if len(head) < 8:
            return
        name, length = head[:4], int.from_bytes(head[4:], order)
        if name == b"ds64":  # RF64: sizes over 4 GiB stand here
            real_size = int.from_bytes(read_at(file, at + 16, 8), "little")
        if name == b"data" and length in _UNKNOWN_SIZE and not found:
            length = real_size or -1
        found |= name == b"data"
        yield name, at + 8, length
        if length < 0:
            return
        at += 8 + length + length % 2
    raise AudioError(f"the file consists of over {_CHUNKS:,} chunks; export the recording again")


def _check_chunks(file: BinaryIO, order: Literal["little", "big"]) -> None:
    """The first chunk of samples must lie within the file."""
    size, found = file_size(file), False
    for name, at, length in chunks(file, order):
        if name in (b"data", b"SSND") and not found:
            found = True
            if at + length > size:
                raise truncated(f"its header claims {length:,} bytes of sound and {size - at:,} are there")
    if not found:
        raise truncated("its header names no chunk of samples before the file ends")


def _check_boxes(file: BinaryIO) -> None:
    """Walk the outer boxes of an MP4; each must lie within the file, and the index (moov) must be among them."""
    size, at, names = file_size(file), 0, set()
    for _ in range(_BOXES):
        name, body, length = _box(file, at, size)
        if length < 8:
            break  # not a box: what is behind the last one is no business of ours
        if at + length > size:
            raise truncated(f"its {name.decode('latin-1')} box claims {length:,} bytes and {size - at:,} are there")
        if name == b"moov" and name not in names:
            _check_index(file, at + body, at + length, _INDEX_BOXES)
        names.add(name)
        at += length
    else:
        raise _too_many_boxes(_BOXES)
    if b"moov" not in names:
        raise truncated("its index (the moov box) is missing")


def _check_index(file: BinaryIO, at: int, end: int, left: int, depth: int = 1) -> int:
    """Refuse an index on which FFmpeg would spend minutes or gigabytes; of `left` boxes return how many are left."""
    while at < end:
        name, body, length = _box(file, at, end)
        if length < 8:
            break
        left -= 1
        if left < 0:
            raise _too_many_boxes(_INDEX_BOXES)
        if name == b"cmov":
            raise AudioError("the mp4 file's index is compressed, as nothing writes it any more; export it again")
        if name == b"stsz":  # FFmpeg makes room for as many samples as are claimed
            each, count = struct.unpack(">II", read_at(file, at + body + 4, 8).ljust(8, b"\0"))
            if count * (each or 4) > file_size(file):
                raise truncated(f"its index claims {count:,} pieces of sound, more than the file can hold")
        if name == b"meta" and read_at(file, at + body, 4) == bytes(4):  # its version; QuickTime's has none
            body += 4
        if name in _NESTED and depth < _DEPTH:
            left = _check_index(file, at + body, min(end, at + length), left, depth + 1)
        at += length
    return left


def _box(file: BinaryIO, at: int, end: int) -> tuple[bytes, int, int]:
    """Name, bytes of header and of all of the box at `at`; 0 of them where there is none."""
    head = read_at(file, at, 16)
    if len(head) < 8:
        return b"", 0, 0
    length, body = int.from_bytes(head[:4], "big"), 8
    if length == 1:
        length, body = int.from_bytes(head[8:16], "big"), 16
    elif length == 0:  # to the end
        length = end - at
    return head[4:8], body, length


def _too_many_boxes(most: int) -> AudioError:
    return AudioError(f"the mp4 file, or its index, consists of over {most:,} boxes; export the recording again")


def _check_last_page(file: BinaryIO) -> None:
    """Find the last Ogg page; it must be whole and carry the end-of-stream flag (RFC 3533, section 6)."""
    size = file_size(file)
    begin = max(0, size - _LAST_PAGES)
    tail = read_at(file, begin, _LAST_PAGES)
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27 or len(tail) < at + 27 + tail[at + 26]:
        raise truncated("its last Ogg page is not whole")
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    if at + 27 + len(segments) + sum(segments) > len(tail):
        raise truncated("its last Ogg page is not whole")
    if not tail[at + 5] & 4:
        raise truncated("its last Ogg page does not end the stream")
