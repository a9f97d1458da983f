"""A file's bytes in blocks of whole lines, plain or bzip2; a bzip2 file that is cut off gives what comes before."""

import bz2
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 21  # bytes read at a time, before unpacking
_PACKED_AT_ONCE = 900_000  # bytes, bzip2's largest block


class LineBlocks:
    """Iterate for blocks that end with a line's end (the file's last one may not).

    `cut`: whether a bzip2 file ended early or is damaged; the line that it breaks off in is dropped. `consumed`:
    bytes of the file read so far, packed as they are.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cut = False
        self.consumed = 0

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        with open(self._path, "rb") as file:
            is_packed = file.peek(3)[:3] == b"BZh"
            for piece in self._unpacked(file) if is_packed else self._plain(file):
                whole, newline, end = piece.rpartition(b"\n")
                if newline:
                    yield rest + whole + newline
                    rest = end
                else:
                    rest += end
        if rest and not self.cut:
            yield rest

    def _plain(self, file: BinaryIO) -> Iterator[bytes]:
        while piece := self._read(file, PIECE):
            yield piece

    def _unpacked(self, file: BinaryIO) -> Iterator[bytes]:
        """Unpack one bzip2 stream, or several that follow one another, as parallel packers write them.

        A block that fails its checksum has let part of itself through by then: so much is always held back.
        """
        stream, packed, held = bz2.BZ2Decompressor(), self._read(file, PIECE // 4), b""
        self.cut = True  # until the end is seen
        while packed or not stream.needs_input:
            try:
                held += stream.decompress(packed, PIECE)
            except OSError:
                return
            yield held[:-_PACKED_AT_ONCE]
            held = held[-_PACKED_AT_ONCE:]
            if not stream.eof:
                packed = self._read(file, PIECE // 4) if stream.needs_input else b""
            elif packed := stream.unused_data or self._read(file, PIECE // 4):
                stream = bz2.BZ2Decompressor()
            else:
                self.cut = False
                break
        yield held

    def _read(self, file: BinaryIO, size: int) -> bytes:
        piece = file.read(size)
        self.consumed += len(piece)
        return piece
