"""Tags without number: refused before FFmpeg compares each with all the others; honest ones are no hindrance."""

import itertools
import struct
import time
from collections.abc import Iterator

import pytest
from recordings import encode, glide_at

from index.sound.audio import AudioError, decode
from index.sound.tags import TAGS

SECONDS = 2
MANY = 100_000  # tags for which FFmpeg takes a minute


def keys(count: int) -> Iterator[bytes]:
    """Four letters, no two alike."""
    return (bytes(key) for key in itertools.islice(itertools.product(range(65, 91), repeat=4), count))


def info(count: int) -> bytes:
    """A RIFF chunk of texts."""
    texts = b"INFO" + b"".join(key + b"\2\0\0\0a\0" for key in keys(count))
    return b"LIST" + struct.pack("<I", len(texts)) + texts


def syncsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def id3(count: int, version: int = 4, long: bytes = b"", flags: int = 0) -> bytes:
    """An ID3v2 tag of texts under names of their own, and one long one."""
    size = syncsafe if version == 4 else lambda number: struct.pack(">I", number)
    texts = [b"\0" + key + b"\0a\0" for key in keys(count)]
    if version == 2:
        frames = b"".join(b"TXX" + len(text).to_bytes(3, "big") + text for text in texts)
    else:
        frames = b"".join(b"TXXX" + size(len(text)) + b"\0\0" + text for text in [b"\0long\0" + long, *texts])
    if flags & 0x40:
        frames = (syncsafe(6) + b"\1\0" if version == 4 else struct.pack(">IHI", 6, 0, 0)) + frames
    footer = b"3DI\4\0" + bytes([flags]) + syncsafe(len(frames)) if flags & 0x10 else b""
    return b"ID3" + bytes([version, 0, flags]) + syncsafe(len(frames)) + frames + footer


def comments(count: int, writer: bytes = b"us") -> bytes:
    """Vorbis comments."""
    texts = b"".join(struct.pack("<I", 6) + key + b"=a" for key in keys(count))
    return struct.pack("<I", len(writer)) + writer + struct.pack("<I", count) + texts


def in_wav(chunk: bytes) -> bytes:
    return recording("wav") + chunk


def id3_in_wav(tag: bytes) -> bytes:
    return in_wav(b"id3 " + struct.pack("<I", len(tag)) + tag + b"\0" * (len(tag) % 2))


def id3_in_aiff(tag: bytes) -> bytes:
    tag += b"\0" * (len(tag) % 2)
    return recording("aiff") + b"ID3 " + struct.pack(">I", len(tag)) + tag


def in_flac(block: bytes) -> bytes:
    """With a block of comments behind the first, which says what the stream is."""
    data = recording("flac")
    return data[:42] + b"\4" + len(block).to_bytes(3, "big") + block + data[42:]


def in_opus(block: bytes) -> bytes:
    """With another second packet, on as many pages as it takes. Ours do not look at checksums; FFmpeg does."""
    data = recording("opus")
    first, *others = pages(data)
    others = others[1:]
    packet, made, number = b"OpusTags" + block, [first], 1
    for start in range(0, len(packet), 255 * 255):
        part = packet[start : start + 255 * 255]
        lacing = bytes([255] * (len(part) // 255)) + (bytes([len(part) % 255]) if len(part) < 255 * 255 else b"")
        made.append(page(first, bool(start), number, lacing, part))
        number += 1
    for other in others:
        count = other[26]
        made.append(page(other, False, number, other[27 : 27 + count], other[27 + count :], other[:14]))
        number += 1
    return b"".join(made)


def pages(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        end = at + 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        found.append(data[at:end])
        at = end
    return found


def page(like: bytes, continued: bool, number: int, lacing: bytes, body: bytes, head: bytes | None = None) -> bytes:
    head = head or b"OggS\0" + bytes([continued]) + bytes(8)
    made = head + like[14:18] + struct.pack("<I", number) + bytes(4) + bytes([len(lacing)]) + lacing + body
    return made[:22] + struct.pack("<I", checksum(made)) + made[26:]


def checksum(data: bytes) -> int:
    """Ogg's CRC: polynomial 0x04c11db7, neither reflected nor inverted (RFC 3533)."""
    value = 0
    for byte in data:
        value = value << 8 & 0xFFFF_FFFF ^ TABLE[value >> 24 ^ byte]
    return value


def turned(value: int) -> int:
    for _ in range(8):
        value = (value << 1 ^ 0x04C11DB7 if value & 0x8000_0000 else value << 1) & 0xFFFF_FFFF
    return value


TABLE = [turned(byte << 24) for byte in range(256)]


def in_mp4(count: int) -> bytes:
    """Tags of free names, as iTunes writes them, behind the index's other boxes."""

    def box(name: bytes, *parts: bytes) -> bytes:
        return struct.pack(">I4s", 8 + sum(map(len, parts)), name) + b"".join(parts)

    value = box(b"data", b"\0\0\0\1\0\0\0\0a")
    tags = (box(b"----", box(b"mean", bytes(4), b"us"), box(b"name", bytes(4), key), value) for key in keys(count))
    more = box(b"udta", box(b"meta", bytes(4), box(b"hdlr", bytes(8), b"mdir", bytes(13)), box(b"ilst", *tags)))
    data = recording("m4a")
    index = data.index(b"moov") - 4
    size = int.from_bytes(data[index : index + 4], "big")
    assert index + size == len(data)
    return data[:index] + struct.pack(">I", size + len(more)) + data[index + 4 :] + more


RECORDINGS: dict[str, bytes] = {}


def recording(name: str) -> bytes:
    if name not in RECORDINGS:
        RECORDINGS[name] = encode(name, glide_at(48_000, SECONDS), 48_000)
    return RECORDINGS[name]


CRAFTED = {
    "riff texts": lambda count: in_wav(info(count)),
    "id3 in wav": lambda count: id3_in_wav(id3(count, 3)),
    "id3 tags in wav": lambda count: id3_in_wav(id3(count // 2) + id3(count - count // 2)),
    "id3 in aiff": lambda count: id3_in_aiff(id3(count)),
    "id3 before flac": lambda count: id3(count) + recording("flac"),
    "flac": lambda count: in_flac(comments(count)),
    "opus": lambda count: in_opus(comments(count)),
    "mp4": in_mp4,
}


@pytest.mark.parametrize("name", CRAFTED)
def test_tags_without_number_are_refused_at_once(name):
    data = CRAFTED[name](MANY)
    started = time.process_time()
    with pytest.raises(AudioError, match=r"over 4,096 tags|over 16,384 boxes") as caught:
        decode(data)
    assert time.process_time() - started < 0.3
    assert caught.value.code == "audio_undecodable"


@pytest.mark.parametrize("name", CRAFTED)
def test_as_many_as_anybody_has_are_passed_over(name):
    assert decode(CRAFTED[name](500)).duration_s == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("flags", [0, 0x40, 0x10, 0x50])
def test_every_version_of_id3_is_counted(version, flags):
    """With an extended header, with a footer."""
    if (version == 2 and flags) or (version == 3 and flags & 0x10):
        pytest.skip("has none")
    decode(id3(TAGS - 10, version, flags=flags) + recording("flac"))
    with pytest.raises(AudioError, match="over 4,096 tags"):
        decode(id3(TAGS + 1, version, flags=flags) + recording("flac"))


def test_sizes_of_the_older_id3_in_the_newer_are_understood():
    """Of 307 bytes: read as syncsafe they are 179, and no frame follows there."""
    older = bytearray(id3(TAGS + 1, 3, long=b"\xff" * 300))
    older[3] = 4
    with pytest.raises(AudioError, match="over 4,096 tags"):
        decode(bytes(older) + recording("flac"))
    with pytest.raises(AudioError, match="over 4,096 tags"):
        decode(id3(TAGS + 1, 4, long=b"\xff" * 300) + recording("flac"))


def test_a_picture_among_them_is_no_hindrance():
    picture = bytes(3_000_000)
    comment = struct.pack("<I2sII", 2, b"us", 1, 2 + len(picture)) + b"a=" + picture
    for data in (id3(5, long=picture) + recording("flac"), id3_in_wav(id3(5, 3, long=picture)), in_opus(comment)):
        assert decode(data).duration_s == pytest.approx(SECONDS, abs=0.1)


def test_who_wrote_the_file_has_no_name_of_pages():
    """Behind such a name there may be any count, out of sight."""
    with pytest.raises(AudioError, match="over 4,096 tags"):
        decode(in_opus(comments(5, writer=b"x" * 10_000)))
    assert decode(in_opus(comments(5, writer=b"x" * 1000))).duration_s == pytest.approx(SECONDS, abs=0.1)


def test_countless_packets_before_the_sound():
    """Pages whose sound has not begun, of a packet of one byte or of no end."""
    first, tags, *others = pages(recording("opus"))
    small = page(first, False, 1, bytes([1] * 255), b"x" * 255)
    with pytest.raises(AudioError, match="over 4,096 tags"):
        decode(first + small * 20 + tags + b"".join(others))
    empty = page(first, True, 1, bytes([255]), b"x" * 255)
    with pytest.raises(AudioError, match="over 4,096 tags"):
        decode(first + empty * 2000 + tags + b"".join(others))
