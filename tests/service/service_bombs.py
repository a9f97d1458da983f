"""Files made to cost much: each must cost its sender a refusal and us next to nothing."""

import io
import itertools
import struct
import zlib

from index.sound.mpegframes import frame_table


def _box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def mp4_of_samples(count: int, padding: int = 0) -> bytes:
    """An M4A whose index claims `count` samples of one byte; `padding` bytes of sound are there."""
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    entry = _box(
        b"sowt", bytes(6), struct.pack(">H", 1), bytes(8), struct.pack(">HHHHI", 1, 8, 0, 0, 8000 << 16)
    )  # fmt: skip
    table = _box(
        b"stbl",
        _box(b"stsd", bytes(4), struct.pack(">I", 1), entry),
        _box(b"stts", bytes(4), struct.pack(">III", 1, count, 2)),
        _box(b"stsc", bytes(4), struct.pack(">IIII", 1, 1, count, 1)),
        _box(b"stsz", bytes(4), struct.pack(">II", 1, count)),
        _box(b"stco", bytes(4), struct.pack(">II", 1, 32)),
    )
    header = _box(b"mdhd", bytes(4), struct.pack(">IIIIHH", 0, 0, 8000, count, 0x55C4, 0))
    handler = _box(b"hdlr", bytes(8), b"soun", bytes(13))
    media = _box(b"mdia", header, handler, _box(b"minf", _box(b"smhd", bytes(8)), table))
    track = _box(b"tkhd", bytes(3), b"\7", struct.pack(">IIIII", 0, 0, 1, 0, count), bytes(16), matrix, bytes(8))
    movie = _box(b"mvhd", bytes(4), struct.pack(">IIII", 0, 0, 8000, count), bytes(10 + 6 + 60 + 4))
    return (
        _box(b"ftyp", b"M4A \0\0\0\0M4A mp42")
        + _box(b"mdat", bytes(padding))
        + _box(b"moov", movie, _box(b"trak", track, media))
    )


def mp4_with_packed_index(unpacked: int) -> bytes:
    """An M4A whose index is compressed (`cmov`) and claims to be `unpacked` bytes long."""
    data = zlib.compress(bytes(1 << 20))
    packed = _box(b"cmvd", struct.pack(">I", unpacked), data)
    return _box(b"ftyp", b"M4A \0\0\0\0M4A mp42") + _box(b"moov", _box(b"cmov", _box(b"dcom", b"zlib"), packed))


def bombs(mp3: bytes, wav: bytes, aiff: bytes, m4a: bytes, flac: bytes, size: int) -> dict[str, bytes]:
    """Crafted files of about `size` bytes (or few), from whole recordings."""
    false_header = b"\xff\xfb\x90\x64"
    return {
        "samples that are not there": mp4_of_samples(60_000_000),
        "an index unpacked": mp4_with_packed_index(2_000_000_000),
        "samples of a byte": mp4_of_samples(size, padding=size),
        "id3 tags": b"ID3\4\0\0\0\0\0\0" * (size // 10) + mp3,
        "riff chunks before": wav[:12] + b"JUNK\0\0\0\0" * (size // 8) + wav[12:],
        "riff chunks behind": wav + b"JUNK\0\0\0\0" * (size // 8),
        "riff texts": wav + b"LIST\x0e\0\0\0INFOISFT\2\0\0\0ab" * (size // 22),
        "riff keys": wav + riff_texts(size // 200),
        "aiff chunks": aiff[:12] + b"JUNK\0\0\0\0" * (size // 8) + aiff[12:],
        "mp4 boxes": m4a + b"\0\0\0\x08free" * (size // 8),
        "mp4 boxes within": _box(b"ftyp", b"M4A ") + _box(b"moov", b"\0\0\0\x08free" * (size // 8)),
        "flac texts": flac[:42] + flac_texts(size // 12) + flac[42:],
        "flac blocks": flac[:42] + b"\1\0\0\0" * (size // 4) + flac[42:],
        "false mp3 headers": mp3 + false_header * (size // 4),
        "mp3 of ff": mp3 + b"\xff" * size,
        "mp3 with junk": junk_between(mp3, 2, b"x" + false_header * 30, size),
    }


def riff_texts(count: int) -> bytes:
    """A chunk of `count` texts, each under a key of its own: FFmpeg looks through all keys for each."""
    keys = itertools.islice(itertools.product(range(65, 91), repeat=4), count)
    texts = b"INFO" + b"".join(bytes(key) + b"\2\0\0\0a\0" for key in keys)
    return b"LIST" + struct.pack("<I", len(texts)) + texts


def flac_texts(count: int) -> bytes:
    """A block of as many comments as it may hold, up to `count`, each under a key of its own."""
    keys = itertools.islice(itertools.product(range(65, 91), repeat=4), min(count, 1_000_000))
    texts = b"".join(b"\6\0\0\0" + bytes(key) + b"=a" for key in keys)
    block = bytes(4) + struct.pack("<I", len(texts) // 10) + texts
    return b"\4" + len(block).to_bytes(3, "big") + block


def junk_between(mp3: bytes, every: int, junk: bytes, size: int) -> bytes:
    """Frames of an MP3 (constant bit rate, no padding) with `junk` behind every so many."""
    table = frame_table(io.BytesIO(mp3), "mp3", 1e5)
    assert table is not None
    frames = [mp3[at : at + length] for at, length in zip(table.offsets, table.sizes, strict=True)]
    start = b"".join(frames[:10])
    part = b"".join(frame + (junk if number % every == 0 else b"") for number, frame in enumerate(frames[10:]))
    return start + part * (size // len(part))
