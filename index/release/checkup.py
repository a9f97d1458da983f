"""Every check of a release that needs no service: checksums, files against each other, models, vectors."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.audience.cat import Audience
from index.collection import PARTS, SPACES, Collection, CollectionError
from index.errors import DebutError
from index.models.encoder import Encoder
from index.models.matcher import Matcher
from index.release.release import MANIFEST, FileEntry, Release
from index.search.segments import SealedSegment
from index.search.vectors import checked_vectors

_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    """The file or folder that was looked at."""
    good: bool
    text: str
    """What is there, or what is wrong with it."""


def checkup(release: Release) -> Iterator[Finding]:
    """Check all of a release that was opened without verifying, in turn; what is wrong ends nothing but its own check.

    First every file against the manifest, then what the files hold. A file that is read as it was published and is
    wrong all the same was published so.
    """
    yield from _files(release)
    for name, look in _LOOKS.items():
        try:
            yield Finding(name, True, look(release))
        except (DebutError, ValueError, EOFError, OSError) as error:
            yield Finding(name, False, error.detail if isinstance(error, DebutError) else str(error))


def _files(release: Release) -> Iterator[Finding]:
    expected = release.manifest.files
    there = {path.relative_to(release.path).as_posix() for path in release.path.rglob("*") if not path.is_dir()}
    for name, entry in expected.items():
        problem = _difference(release, name, entry) if name in there else "is missing"
        yield Finding(name, not problem, problem or f"{entry.bytes:,} bytes, SHA-256 {entry.sha256[:12]}")
    for name in sorted(there - set(expected) - {MANIFEST}):
        yield Finding(name, False, "is not in the manifest")


def _difference(release: Release, name: str, entry: FileEntry) -> str:
    try:
        with (release.path / name).open("rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if (sha256, size) == (entry.sha256, entry.bytes):
        return ""
    return f"is damaged: {size:,} bytes, SHA-256 {sha256[:12]}, instead of {entry.bytes:,}, {entry.sha256[:12]}"


def _collection(release: Release) -> str:
    collection = Collection.open(release)
    catalogue = collection.catalogue
    counted = {"tracks": len(catalogue), "cold_tracks": int((catalogue.interactions == 0).sum())}
    _same(release, counted, release.manifest.counts, "counts")
    return f"{len(collection):,} tracks in every file"


def _encoder(release: Release) -> str:
    encoder = Encoder.open(release.path / "encoder", 1)
    stated = release.manifest.encoder_id
    if stated is not None and stated != encoder.id:
        raise CollectionError(f"the encoder is {encoder.id[:12]}, the manifest says {stated[:12]}: publish again")
    _same(release, {"continuation": encoder.dims}, _stored_dims(release), "the dims of the stored vectors")
    return f"{encoder.dims}-d, {' and '.join(encoder.config.towers)}"


def _matcher(release: Release) -> str:
    matcher = Matcher.open(release.path / "matcher", 1)
    _same(release, {"matching": matcher.dims}, _stored_dims(release), "the dims of the stored vectors")
    return f"{matcher.dims}-d"


def _audience(release: Release) -> str:
    audience = Audience.open(release)
    _same(release, {"listeners": len(audience)}, release.manifest.counts, "counts")
    return f"{len(audience):,} listeners"


def _space(name: str) -> Callable[[Release], str]:
    def look(release: Release) -> str:
        segment = SealedSegment(release.file(f"{name}.faiss"))
        _same(release, {name: segment.dims}, release.manifest.dims, "dims")
        found = _unit_vectors(segment.stored, segment.present)
        return f"{found:,} unit vectors, {segment.dims}-d, {segment.kind}"

    return look


def _part(name: str) -> Callable[[Release], str]:
    def look(release: Release) -> str:
        vectors = np.load(release.file(f"vectors/{name}.npy"), mmap_mode="r", allow_pickle=False)
        found = _unit_vectors(vectors, ~np.isnan(vectors).all(axis=1))
        return f"{found:,} unit vectors, {vectors.shape[1]}-d"

    return look


_LOOKS: dict[str, Callable[[Release], str]] = {
    "tracks.parquet": _collection,
    **{f"{name}.faiss": _space(name) for name in SPACES},
    **{f"vectors/{name}.npy": _part(name) for name in PARTS},
    "encoder": _encoder,
    "matcher": _matcher,
    "audience": _audience,
}


def _stored_dims(release: Release) -> dict[str, int]:
    return {name: SealedSegment(release.file(f"{name}.faiss")).dims for name in SPACES}


def _same(release: Release, found: dict[str, int], stated: dict[str, int], name: str) -> None:
    """Raise CollectionError where `stated` says anything else; what it does not say may be anything."""
    for key, number in found.items():
        if stated.get(key, number) != number:
            raise CollectionError(
                f"release {release.id}: {key} is {number:,}, but {name} have {stated[key]:,}: publish again"
            )


def _unit_vectors(stored: NDArray[np.float32], present: NDArray[np.bool_]) -> int:
    """Return how many rows f32 [n, d] are `present`; ValueError unless they all are unit vectors."""
    rows = np.flatnonzero(present)
    for start in range(0, len(rows), _AT_ONCE):
        block = rows[start : start + _AT_ONCE]
        try:
            checked_vectors(stored[block], stored.shape[1])
        except ValueError as error:
            raise ValueError(f"among rows {block[0]:,} to {block[-1]:,}: {error}") from error
    return len(rows)
