"""Folding: a release and what was added and removed since, written as the next release, without training anew."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.audience.listening import Listening
from index.audience.listening_file import write_audience
from index.collection import PARTS, CollectionView, write_collection
from index.errors import DebutError
from index.release.release import Release, publish, share

MARKS = "marks.npy"
"""u64 [N] by row: an opaque name of the event that a row was folded from; 0 where the trainer published it."""

_MODELS = ("encoder", "matcher")

Rows = NDArray[np.int64]


class FoldError(DebutError):
    """Nothing can be folded: codes fold_empty, fold_mismatch, marks_damaged."""

    code = "fold_mismatch"


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between a release and the collection that grew on it, in tracks."""

    added: int
    replaced: int
    removed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.replaced or self.removed)

    @classmethod
    def of(cls, view: CollectionView) -> "Changes":
        """Count them."""
        catalogue, sealed = view.catalogue, len(view.catalogue.sealed)
        known = set(catalogue.sealed.texts["track_id"].to_list())
        fresh = np.flatnonzero(catalogue.live[sealed:]) + sealed
        replaced = sum(catalogue.track(row).track_id in known for row in fresh.tolist())
        return cls(len(fresh) - replaced, replaced, sealed - int(catalogue.live[:sealed].sum()) - replaced)


def read_marks(release: Release) -> NDArray[np.uint64]:
    """Return the marks u64 [N] of a release's rows; [0] of one that nothing was folded into. Raises FoldError."""
    if MARKS not in release.manifest.files:
        return np.zeros(0, dtype=np.uint64)
    try:
        marks = np.load(release.file(MARKS), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FoldError(
            f"{release.path / MARKS} cannot be read ({error}): publish again", code="marks_damaged"
        ) from error
    if marks.dtype != np.uint64 or marks.ndim != 1:
        raise FoldError(
            f"{release.path / MARKS} holds {marks.dtype} {list(marks.shape)}, not uint64 [N]: publish again",
            code="marks_damaged",
        )
    return np.asarray(marks)


def fold(root: Path, release: Release, view: CollectionView, marks: Mapping[str, int]) -> Release:
    """Publish under `root` the tracks of `view`, which grew on `release`, with the models of `release`.

    Tracks that were added come behind the release's own; those removed or replaced are gone, with their vectors, and
    with the listening of those removed (that of a replaced track is its successor's, as it is while serving). Vectors
    of listeners are computed anew from what is left. `marks` names the event that each added track came from. The
    manifest keeps the release's facts and says under "folded" what this one was made of.

    Holds all vectors in memory, 5 KB a track. Raises FoldError (fold_empty, fold_mismatch) and ReleaseError;
    release_moved when another release became current meanwhile.
    """
    if view.release_id != release.id:
        raise FoldError(f"a collection of release {view.release_id} cannot be folded into release {release.id}")
    rows = np.flatnonzero(view.catalogue.live)
    if not len(rows):
        raise FoldError(
            f"every track of release {release.id} was removed: nothing is left to publish", code="fold_empty"
        )

    listening = Listening.open(release.path / "audience")
    matching = view.matching.vectors(rows)

    def fill(folder: Path) -> None:
        for name in _MODELS:
            shutil.copytree(release.path / name, folder / name, copy_function=share)
        write_collection(
            folder,
            [view.catalogue.track(row) for row in rows.tolist()],
            view.catalogue.interactions[rows],
            {name: view.space(name).vectors(rows) for name in (*PARTS, "continuation")},
            matching,
        )
        if listening is not None:
            ids = [str(listener_id) for listener_id in listening.ids.to_list()]
            heard = _heard(listening, view, rows)
            write_audience(folder / "audience", ids, *heard, matching, activity=listening.power)
        with (folder / MARKS).open("wb") as file:
            np.save(file, _marks(release, view, rows, marks), allow_pickle=False)

    facts = _facts(release, view, rows, len(listening) if listening is not None else 0)
    return publish(root, fill, facts=facts, replacing=release.path.name)


def _heard(listening: Listening, view: CollectionView, rows: Rows) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Return (listener, new row, plays) of every play that is left."""
    place = np.full(len(listening.track_offsets) - 1, -1, dtype=np.int64)
    origins = view.catalogue.origins[rows]
    place[origins[origins >= 0]] = np.flatnonzero(origins >= 0)
    heard = place[np.asarray(listening.rows, dtype=np.int64)]
    listener = np.repeat(np.arange(len(listening)), np.diff(listening.offsets))
    plays = np.asarray(listening.plays, dtype=np.float32)
    return listener[heard >= 0], heard[heard >= 0], plays[heard >= 0]


def _marks(release: Release, view: CollectionView, rows: Rows, marks: Mapping[str, int]) -> NDArray[np.uint64]:
    sealed = len(view.catalogue.sealed)
    found = np.zeros(len(rows), dtype=np.uint64)
    before = read_marks(release)
    if len(before):
        found[rows < sealed] = before[rows[rows < sealed]]
    for place in np.flatnonzero(rows >= sealed).tolist():
        found[place] = marks.get(view.catalogue.track(int(rows[place])).track_id, 0)
    return found


def _facts(release: Release, view: CollectionView, rows: Rows, listeners: int) -> dict[str, Any]:
    changes = Changes.of(view)
    facts = dict(release.manifest.facts)
    before = facts.get("folded", {})
    facts["counts"] = release.manifest.counts | {
        "tracks": len(rows),
        "cold_tracks": int((view.catalogue.interactions[rows] == 0).sum()),
        "listeners": listeners,
    }
    facts["folded"] = {
        "from": release.id,
        "trained": before.get("trained", release.id),
        "added": changes.added,
        "replaced": changes.replaced,
        "removed": changes.removed,
    }
    return facts
