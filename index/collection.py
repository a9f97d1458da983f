"""A release's tracks in every form, catalogue, vector spaces, audio and text parts, sketches, as one growing whole."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.errors import DebutError
from index.growing import GrowingArray
from index.search.scan import Parts, ScannedView
from index.search.segmented import SegmentedIndex
from index.search.segments import write_sealed
from index.search.vectors import VectorIndex, Vectors, VectorView, checked_rows, checked_vectors
from index.tracks.catalogue import Catalogue, CatalogueView, ReleaseFiles
from index.tracks.catalogue_file import write_catalogue
from index.tracks.track import Track

if TYPE_CHECKING:
    from index.models.encoder import TrackVectors

PARTS = ("audio", "text", "sketch")
"""What is kept of a track beside the spaces, read row by row or wholly: `CollectionView` says what each is."""
SPACES = ("continuation", "matching")

OpenSpace = Callable[[str, Path], SegmentedIndex]


class CollectionError(DebutError):
    """The files of a release do not belong together: code collection_mismatch."""

    code = "collection_mismatch"


@dataclass(frozen=True, slots=True)
class CollectionView:
    """A Collection at one instant: every row is in all of its parts or in none. It never changes."""

    release_id: str
    catalogue: CatalogueView
    continuation: VectorView
    """LARP space, 256-d: playlists."""
    matching: VectorView
    """matching space, BCL's vectors and content: audiences."""
    audio: Parts
    """The audio tower's vectors, a part of the LARP vectors."""
    text: Parts
    """The text tower's, the other part."""
    sketch: Parts
    """What copies of a recording are found by (`index.sound.sketch`)."""

    def __len__(self) -> int:
        return len(self.catalogue)

    def parts(self, rows: ArrayLike) -> tuple[Vectors, Vectors]:
        """Return the audio and text vectors f32 [n, 256] of `rows`; NaN where there is none."""
        wanted = checked_rows(rows)
        gone = ~self._live(wanted)
        audio, text = self.audio.vectors(wanted), self.text.vectors(wanted)
        audio[gone], text[gone] = np.nan, np.nan
        return audio, text

    def space(self, name: str) -> VectorView:
        """Return a space of SPACES, searched by its index, or one of PARTS, searched by reading all of it."""
        if name in SPACES:
            indexed: VectorView = getattr(self, name)
            return indexed
        part: Parts = getattr(self, name)
        return ScannedView(part, self.catalogue.live)

    def _live(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        live = np.zeros(len(rows), dtype=bool)
        inside = np.flatnonzero(rows < self.catalogue.size)
        live[inside] = self.catalogue.live[rows[inside]]
        return live


def _open_space(_name: str, path: Path) -> SegmentedIndex:
    return SegmentedIndex.open(path)


class Collection:
    """The tracks of a release while it is served.

    A writer changes catalogue, spaces and parts and then publishes the new state of them all by one
    assignment: whoever takes a `view` sees a track everywhere or nowhere, and keeps seeing what it saw.
    Answer one request from one view. Rows are never used again; a track that is replaced gets a new row.
    """

    def __init__(
        self,
        release_id: str,
        catalogue: Catalogue,
        continuation: VectorIndex,
        matching: VectorIndex,
        parts: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self._writing = threading.Lock()
        self._unsettled: tuple[int | None, int | None] | None = None
        """Rows that an add or remove without enough memory left in the spaces, and may have taken out of them."""
        self._catalogue, self._continuation, self._matching = catalogue, continuation, matching
        self._parts = {name: GrowingArray(np.float32, parts[name].shape[1:]) for name in PARTS}
        self._view = CollectionView(
            release_id,
            catalogue.view(),
            continuation.view(),
            matching.view(),
            **{name: Parts(parts[name], fresh.view()) for name, fresh in self._parts.items()},
        )

    @classmethod
    def open(cls, release: ReleaseFiles, open_space: OpenSpace = _open_space) -> "Collection":
        """Open the collection in `release`, vectors memory-mapped, each space by `open_space`(its name, its file).

        Raises CatalogueError, SegmentError, or CollectionError when files are of different sizes, and what
        `open_space` raises.
        """
        catalogue = Catalogue.open(release)
        continuation, matching = (open_space(name, release.file(f"{name}.faiss")) for name in SPACES)
        parts = {name: _mapped(release.file(f"vectors/{name}.npy")) for name in PARTS}
        sizes = {
            "tracks.parquet": catalogue.view().size,
            "continuation.faiss": len(continuation.view().sealed),
            "matching.faiss": len(matching.view().sealed),
            **{f"vectors/{name}.npy": len(part) for name, part in parts.items()},
        }
        if len(set(sizes.values())) > 1:
            raise CollectionError(f"release {release.id}: files differ in their number of tracks: {sizes}")
        return cls(release.id, catalogue, continuation, matching, parts)

    def view(self) -> CollectionView:
        """Return the collection as it is now: take one for each request."""
        return self._view

    def __len__(self) -> int:
        return len(self._view)

    @property
    def release_id(self) -> str:
        """Identity of the release underneath."""
        return self._view.release_id

    @property
    def catalogue(self) -> CatalogueView:
        """The catalogue now."""
        return self._view.catalogue

    @property
    def continuation(self) -> VectorView:
        """The LARP space now."""
        return self._view.continuation

    @property
    def matching(self) -> VectorView:
        """The BCL space now."""
        return self._view.matching

    def parts(self, rows: ArrayLike) -> tuple[Vectors, Vectors]:
        """See CollectionView.parts."""
        return self._view.parts(rows)

    def add(self, track: Track, vectors: "TrackVectors", matching: ArrayLike, interactions: int | None = None) -> int:
        """Add a track, visible everywhere at once, and return its row; one of the same id is replaced.

        `matching` is f32 [d]. Without `interactions`, those of the replaced track stay, else it is cold.
        Raises ValueError, and changes nothing, for an empty track id and for vectors that are not finite unit
        vectors; so it does where memory runs out (MemoryError).
        """
        view = self._view
        continuation = checked_vectors(_one(vectors.continuation), view.continuation.dims)
        match = checked_vectors(_one(matching), view.matching.dims)
        parts = {name: self._part(name, getattr(vectors, name)) for name in PARTS}
        with self._writing:
            self._settle()
            old = self._view.catalogue.row_of(track.track_id)
            row = self._catalogue.add(track, interactions)
            with self._whole(row, old):
                if old is not None:
                    self._continuation.remove([old])
                    self._matching.remove([old])
                self._continuation.add([row], continuation)
                self._matching.add([row], match)
                for name, part in parts.items():
                    self._parts[name].append(part)
                self._publish()
            return row

    def remove(self, track_id: str) -> bool:
        """Remove a track from everything at once; return whether it was there. MemoryError: nothing was changed."""
        with self._writing:
            self._settle()
            row = self._catalogue.remove(track_id)
            if row is None:
                return False
            with self._whole(None, row):
                self._continuation.remove([row])
                self._matching.remove([row])
                self._publish()
            return True

    @contextmanager
    def _whole(self, added: int | None, removed: int | None) -> Iterator[None]:
        """Run what follows a change of the catalogue; should memory run out, take all of it back."""
        try:
            yield
        except MemoryError:
            self._unsettled = added, removed
            self._catalogue.undo()
            for name, fresh in self._parts.items():
                published: Parts = getattr(self._view, name)
                fresh.cut(len(published.fresh))
            with suppress(MemoryError):  # what nobody sees as long as nothing is published; the next writer tries again
                self._settle()
            raise

    def _settle(self) -> None:
        """Let the spaces be again what was published last, if an earlier change could not be taken back wholly."""
        if self._unsettled is None:
            return
        added, removed = self._unsettled
        for space, published in ((self._continuation, self._view.continuation), (self._matching, self._view.matching)):
            if added is not None:
                space.remove([added])
            if removed is not None and not np.isnan(vector := published.vectors([removed])).any():
                space.add([removed], vector)  # again, if it is still there: a space may not know what it holds
        self._unsettled = None

    def _part(self, name: str, part: ArrayLike | None) -> Vectors:
        sealed: Parts = getattr(self._view, name)
        dims = sealed.sealed.shape[1]
        if part is None:
            return np.full((1, dims), np.nan, dtype=np.float32)
        return checked_vectors(_one(part), dims)

    def _publish(self) -> None:
        view = self._view
        self._view = replace(
            view,
            catalogue=self._catalogue.view(),
            continuation=self._continuation.view(),
            matching=self._matching.view(),
            **{name: replace(getattr(view, name), fresh=fresh.view()) for name, fresh in self._parts.items()},
        )


def _one(vector: ArrayLike) -> NDArray[Any]:
    return np.asarray(vector, dtype=np.float32)[None]


def _mapped(path: Path) -> NDArray[np.float32]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CollectionError(f"{path} cannot be read ({error}): publish again") from error
    if array.dtype != np.float32 or array.ndim != 2:
        raise CollectionError(f"{path} holds {array.dtype} {list(array.shape)}, not float32 [n, d]: publish again")
    found: NDArray[np.float32] = np.asarray(array)  # still mapped, but no longer of numpy's slower memmap class
    return found


def write_collection(
    directory: Path,
    tracks: Sequence[Track],
    interactions: ArrayLike,
    vectors: Mapping[str, NDArray[np.float32]],
    matching: NDArray[np.float32],
) -> None:
    """Write tracks.parquet, continuation.faiss, matching.faiss and vectors/{audio,text,sketch}.npy into
    `directory`.

    `vectors` holds "audio", "text" and "continuation", f32 [N, 256], and "sketch", f32 [N, 160]; `matching` is
    f32 [N, d]: unit vectors, or NaN rows where a track has none. Raises ValueError for anything else and
    CatalogueError for tracks that cannot be written, before anything is.
    """
    wanted = (*PARTS, "continuation")
    if missing := [name for name in wanted if name not in vectors]:
        raise ValueError(f"vectors: {' and '.join(missing)} is missing; {list(wanted)} are needed")
    whole = {name: _unit_or_missing(name, vectors[name], len(tracks)) for name in wanted}
    whole["matching"] = _unit_or_missing("matching", matching, len(tracks))
    write_catalogue(directory / "tracks.parquet", tracks, interactions)
    for name in SPACES:
        write_sealed(directory / f"{name}.faiss", np.nan_to_num(whole[name]))
    (directory / "vectors").mkdir(exist_ok=True)
    for name in PARTS:
        _save(directory / "vectors" / f"{name}.npy", whole[name])


def _unit_or_missing(name: str, vectors: NDArray[np.float32], count: int) -> Vectors:
    """Return `vectors` [count, d] as float32; ValueError unless each row is a unit vector or all NaN."""
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or len(array) != count:
        raise ValueError(f"{name} must be of shape [{count}, d], not {list(array.shape)}")
    try:
        checked_vectors(array[~np.isnan(array).all(axis=1)], array.shape[1])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return array


def _save(path: Path, array: NDArray[Any]) -> None:
    staged = path.with_name(f".{path.name}.part")
    with staged.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
