"""A folder of what an index sealed while it served: segments, tombstones and a manifest that makes them one state."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.search.parts import LiveSegment
from index.search.segmentfile import SegmentError, save_index
from index.search.segments import SealedSegment
from index.search.vectors import Rows

_MANIFEST, _FORMAT = "manifest.json", 1
_ENDS = 1 << 20
"""Bytes at the beginning and end of the release's segment that tell it from others: the release checks the rest."""

_OURS = re.compile(r"(\d+)\.(faiss|rows\.npy|live\.npy)|\..+\.part")


class StateFolder:
    """The state of one index; one process at a time writes it.

    Files are never changed: a state is new files and a manifest that names them with their SHA-256, renamed
    into place. Whatever breaks off in between leaves the state before.
    """

    def __init__(self, directory: Path) -> None:
        """Make the folder if it is missing; OSError when it cannot be made."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        numbers = [found[1] for path in directory.iterdir() if (found := _OURS.fullmatch(path.name)) and found[1]]
        self._number = max(map(int, numbers), default=0)
        self._checksums: dict[str, str] = {}
        """Name -> SHA-256 of the files that were written or checked."""

    def read(self, base: SealedSegment) -> tuple[LiveSegment, ...]:
        """Return the state: `base`, the release's segment, and those that were sealed after it.

        Without a manifest that is the base alone. Raises SegmentError for anything that is not as it was
        written, and for the state of another release.
        """
        manifest = self._manifest()
        if manifest is None:
            return (LiveSegment.of(base),)
        if manifest["base"] != _fingerprint(base):
            raise SegmentError(f"{self._directory} goes with another file than {base.path}: {_REMEDY}")
        for name, checksum in manifest["files"].items():
            if _checksum(self._directory / name) != checksum:
                raise SegmentError(f"{self._directory / name} is not as it was written: {_REMEDY}")
        self._checksums = dict(manifest["files"])
        segments = [(base, None), *map(self._segment, manifest["segments"])]
        live = np.unpackbits(self._array(manifest["live"]), count=sum(len(segment) for segment, _ in segments))
        masks = np.split(live.astype(bool), np.cumsum([len(segment) for segment, _ in segments[:-1]]))
        return tuple(LiveSegment.of(*segment, mask) for segment, mask in zip(segments, masks, strict=True))

    def add(self, index: Any, rows: Rows) -> SealedSegment:
        """Write a FAISS index and its `rows`, and return it, memory-mapped. `write` makes it part of the state."""
        path = self._directory / f"{self._next()}.faiss"
        save_index(path, index)
        self._save(path.with_suffix(".rows.npy"), rows)
        self._checksums[path.name] = _checksum(path)
        return SealedSegment(path)

    def write(self, parts: Sequence[LiveSegment]) -> None:
        """Make `parts`, the release's segment first, the state; delete the files of the last one."""
        live = self._directory / f"{self._next()}.live.npy"
        self._save(live, np.packbits(np.concatenate([part.live for part in parts])))
        paths = [part.segment.path for part in parts[1:]]
        names = [path.name for path in paths if path is not None]
        files = [*names, *(Path(name).with_suffix(".rows.npy").name for name in names), live.name]
        checksums = {name: self._checksums[name] for name in files}
        manifest = {
            "format": _FORMAT,
            "base": _fingerprint(parts[0].segment),
            "segments": names,
            "live": live.name,
            "files": checksums,
        }
        _write(self._directory / _MANIFEST, _encoded(manifest))
        self._checksums = checksums
        for path in self._directory.iterdir():
            if path.name not in checksums and _OURS.fullmatch(path.name):
                with suppress(OSError):  # the new state is written: what stays is deleted with the next one
                    path.unlink()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _manifest(self) -> dict[str, Any] | None:
        path = self._directory / _MANIFEST
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            manifest: dict[str, Any] = json.loads(content)
            known = manifest["format"] == _FORMAT
            del manifest["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SegmentError(f"{path} is not as it was written: {_REMEDY}") from error
        if not known:
            raise SegmentError(f"{path} is of format {manifest['format']!r}, not {_FORMAT}: {_REMEDY}")
        if content != _encoded(manifest):
            raise SegmentError(f"{path} is not as it was written: {_REMEDY}")
        return manifest

    def _segment(self, name: str) -> tuple[SealedSegment, Rows]:
        path = self._directory / name
        return SealedSegment(path), self._array(path.with_suffix(".rows.npy").name)

    def _array(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self._directory / name, allow_pickle=False)
        return found

    def _save(self, path: Path, array: NDArray[Any]) -> None:
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        self._checksums[path.name] = _checksum(path)


_REMEDY = "delete the folder, and what was added is sealed again from the ledger"


def _encoded(manifest: dict[str, Any]) -> bytes:
    """Return `manifest` with its own checksum: the same bytes for the same content."""
    text = json.dumps(manifest, indent=1, sort_keys=True)
    return json.dumps(manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode()


def _write(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.part")
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename, and the files it names
    finally:
        os.close(directory)


def _checksum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SegmentError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error


def _fingerprint(base: SealedSegment) -> dict[str, Any]:
    """Return what tells the release's segment from others; its bits are the release's to check."""
    if base.path is None:
        raise ValueError("a state folder goes with a file, not with a segment in memory")
    with base.path.open("rb") as file:
        ends = file.read(_ENDS)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _ENDS))
        ends += file.read()
    return {"vectors": len(base), "dims": base.dims, "bytes": size, "ends": hashlib.sha256(ends).hexdigest()}
