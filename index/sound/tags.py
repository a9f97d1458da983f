"""Tags of a recording, counted before FFmpeg reads them: it compares each with all before it, hours for a few MB."""

from collections.abc import Iterator
from typing import BinaryIO

from index.sound.containers import AudioError, Container, chunks
from index.sound.mpegframes import after_id3, file_size, read_at

TAGS = 4096
"""Texts, pictures and chapters that a file may have: FFmpeg takes under 0.3 s for them."""

_HEADER_PAGES = 1024  # Ogg pages in front of the sound: a picture among the comments takes one for every 64 kB
_HELD = 4096  # bytes of comments looked at: in front of their count is the name of who wrote them, a few dozen


def check_tags(file: BinaryIO, container: Container) -> None:
    """Raise AudioError when a file has over `TAGS` tags. Those of MP3 and AAC are never shown to FFmpeg, those of MP4
    are boxes, which `check_whole` counts.
    """
    left = TAGS
    for count in _counts(file, container):
        left -= count
        if left < 0:
            raise AudioError(f"the recording has over {TAGS:,} tags; export it again without them")


def _counts(file: BinaryIO, container: Container) -> Iterator[int]:
    if container == "wav":
        yield from _riff(file)
    elif container == "aiff":
        yield from (count for name, at, _ in chunks(file, "big") if name == b"ID3 " for count in _id3(file, at))
    elif container == "flac":
        yield from _id3(file, 0)
        yield from _flac(file, after_id3(file) + 4)
    elif container == "ogg":
        yield from _ogg(file)


def _riff(file: BinaryIO) -> Iterator[int]:
    """INFO lists, and ID3 tags in chunks of their own."""
    for name, at, length in chunks(file, "little"):
        if name in (b"id3 ", b"ID3 "):
            yield from _id3(file, at)
        elif name == b"LIST" and read_at(file, at, 4) == b"INFO":
            end, at = min(at + length, file_size(file)), at + 4
            while at < end:
                yield 1
                size = int.from_bytes(read_at(file, at + 4, 4), "little")
                at += 8 + size + size % 2


def _id3(file: BinaryIO, at: int) -> Iterator[int]:
    """The frames of the ID3v2 tags that follow each other from `at` on (id3.org: 2.2, 2.3 and 2.4)."""
    while len(head := read_at(file, at, 10)) == 10 and head[:3] == b"ID3":
        yield 1
        version, end = head[3], at + 10 + _syncsafe(head[6:10])
        at += 10
        if head[5] & 0x40 and version > 2:  # an extended header; in 2.4 its length counts itself
            length = read_at(file, at, 4)
            at += _syncsafe(length) if version == 4 else 4 + int.from_bytes(length, "big")
        wide = 10 if version > 2 else 6  # bytes of a frame's header
        while at + wide <= end and (frame := read_at(file, at, wide)).strip(b"\0"):
            yield 1
            at += wide + _frame_size(file, frame, at + wide, version)
        at = end + (10 if head[5] & 0x10 else 0)


def _frame_size(file: BinaryIO, frame: bytes, behind: int, version: int) -> int:
    """Bytes of a frame. Some writers of 2.4 use the sizes of 2.3: they are when a frame, or nothing, follows there."""
    if version < 3:
        return int.from_bytes(frame[3:6], "big")
    plain, safe = int.from_bytes(frame[4:8], "big"), _syncsafe(frame[4:8])
    if version == 3 or not _names_a_frame(read_at(file, behind + safe, 4)):
        return plain
    return safe


def _names_a_frame(name: bytes) -> bool:
    return not name.strip(b"\0") or (name.isalnum() and name.isupper()) or name.isdigit()


def _syncsafe(data: bytes) -> int:
    """Seven bits of each byte."""
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
    return value


def _flac(file: BinaryIO, at: int) -> Iterator[int]:
    """Metadata blocks, and the comments in them (RFC 9639, section 8)."""
    last = False
    while not last and len(head := read_at(file, at, 4)) == 4:
        yield 1
        last = bool(head[0] & 0x80)
        if head[0] & 0x7F == 4:
            yield _comments(read_at(file, at + 4, _HELD))
        at += 4 + int.from_bytes(head[1:], "big")


def _ogg(file: BinaryIO) -> Iterator[int]:
    """The comments of every stream, in the pages in front of the sound (RFC 3533); each packet there is one more."""
    at, streams = 0, dict[bytes, list[bytes]]()  # of each stream the starts of its packets
    for _ in range(_HEADER_PAGES):
        head = read_at(file, at, 27 + 255)
        if len(head) < 27 or head[:4] != b"OggS" or int.from_bytes(head[6:14], "little", signed=True) > 0:
            break
        lacing, packets = head[27 : 27 + head[26]], streams.setdefault(head[14:18], [])
        at += 27 + head[26]
        page, at = read_at(file, at, sum(lacing)), at + sum(lacing)
        for number, part in enumerate(_parts(lacing, page)):
            if number == 0 and head[5] & 1 and packets:  # the page goes on with the last one's packet
                packets[-1] = (packets[-1] + part)[:_HELD]
            else:
                packets.append(part[:_HELD])
                yield 1
    else:
        yield TAGS + 1
    for packets in streams.values():
        yield from (_comments(packet[skipped:]) for packet, skipped in _with_comments(*packets))


def _parts(lacing: bytes, page: bytes) -> Iterator[bytes]:
    """The packets on an Ogg page; the last may go on on the next."""
    start = end = 0
    for segment in lacing:
        end += segment
        if segment < 255:
            yield page[start:end]
            start = end
    if start < end:
        yield page[start:end]


def _with_comments(first: bytes = b"", *others: bytes) -> Iterator[tuple[bytes, int]]:
    """The packets of an Ogg stream that hold comments, and how many bytes stand in front of those."""
    for packet in others:
        if first.startswith(b"\x7fFLAC") and packet[:1] in (b"\x04", b"\x84"):
            yield packet, 4
        elif first.startswith(b"Speex   "):
            yield packet, 0
        for name in (b"OpusTags", b"\x03vorbis", b"\x81theora"):
            if packet.startswith(name):
                yield packet, len(name)


def _comments(data: bytes) -> int:
    """How many comments there are, by the count behind the writer's name (Vorbis I, section 5)."""
    at = 4 + int.from_bytes(data[:4], "little")
    return TAGS + 1 if at + 4 > _HELD - 8 else int.from_bytes(data[at : at + 4], "little")
