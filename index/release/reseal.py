"""A release with other kinds of index: the same tracks, vectors and models, published beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

from index.release.prune import hold
from index.release.release import Release, current_id, publish, share
from index.search.segmentfile import Kind
from index.search.segments import SealedSegment, write_sealed


def reseal(release: Release, kind: Kind, spaces: Sequence[str], *, threads: int | None = None) -> Release:
    """Publish `release` once more, the indexes of `spaces` rewritten as `kind`, and make that the current one.

    All other files are shared with the old release by hard links, where the disk has them, so that they take no room
    twice; either release can be removed without the other, once this is done: until then nobody prunes the old one. The
    facts stay, with `sealed_from`, the old id, beside them. Raises what publish raises, release_moved if another
    release is current or becomes it meanwhile, release_missing if the old one was pruned since it was opened, and
    SegmentError for an index that cannot be read.
    """
    rewritten = {f"{space}.faiss" for space in spaces}

    def fill(folder: Path) -> None:
        for name in release.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name in rewritten:
                segment = SealedSegment(release.file(name))  # held: its vectors lie in the file that it has mapped
                write_sealed(folder / name, segment.stored, kind=kind, threads=threads)
            else:
                share(release.file(name), folder / name)

    facts = {**release.manifest.facts, "sealed_from": release.id}
    root = release.path.parent
    held = hold(release.path)
    try:
        return publish(root, fill, facts=facts, replacing=release.path.name if current_id(root) else None)
    finally:
        os.close(held)
