"""Old releases are deleted, but never one that is current, or that a service is serving."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from index.release.release import MANIFEST, PRUNED, ReleaseError, current_id, is_id, locked, sync_folder


class Pruned(NamedTuple):
    """What became of one release that was not among those to keep."""

    id: str
    bytes: int
    """What its files take, those that it shares with other releases left out."""
    held: bool
    """A service serves it: it stays."""


def hold(path: Path) -> int:
    """Keep the release in the folder `path` from being pruned until the descriptor that is returned is closed.

    Raises ReleaseError (release_missing) when it is not there any more.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        raise _gone(path) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise _gone(path)
    except OSError:  # it is locked for deletion, or was renamed
        os.close(descriptor)
        raise _gone(path) from None
    except ReleaseError:
        os.close(descriptor)
        raise
    return descriptor


def prune(root: Path, keep: int, *, delete: bool) -> list[Pruned]:
    """Delete all releases under `root` but the current one and the `keep` newest others; return which.

    Without `delete`, only return which they would be. A release is renamed before its files go, under the lock that
    publishers take, so that none is ever seen in part: what a kill leaves behind, the next publisher or the next call
    removes. Raises ReleaseError where there is no current release, ValueError for `keep` < 0.
    """
    if keep < 0:
        raise ValueError(f"keep must not be negative, but {keep} is")
    found: list[Pruned] = []
    with locked(root):
        current = current_id(root)
        if current is None or not (root / current / MANIFEST).is_file():
            raise ReleaseError(f"{root} has no current release: nothing can be pruned", code="release_missing")
        others = sorted(
            (path.name for path in root.iterdir() if is_id(path.name) and path.name != current), reverse=True
        )
        for name in others[keep:]:
            with _unused(root / name) as unused:
                found.append(Pruned(name, _size(root / name), not unused))
                if delete and unused:
                    (root / name).rename(root / f"{PRUNED}{name}")
    if delete:
        sync_folder(root)  # a release that lost files must not have its name again after a power cut
        for path in root.glob(f"{PRUNED}*"):
            shutil.rmtree(path, ignore_errors=True)
    return found


@contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Lock a release against `hold`; yield whether nobody held it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    size = 0
    for parent, _, files in os.walk(path):
        for name in files:
            with suppress(FileNotFoundError):
                about = os.stat(os.path.join(parent, name))
                size += about.st_size if about.st_nlink == 1 else 0
    return size


def _gone(path: Path) -> ReleaseError:
    return ReleaseError(f"{path} is not there any more: it was pruned", code="release_missing")
