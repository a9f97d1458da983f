"""Old releases are deleted, but never one that is current, or that a service is serving."""

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from index.release.release import MANIFEST, PRUNED, ReleaseError, current_id, is_id, locked, sync_folder


class Pruned(NamedTuple):
    """What became of one release that was not among those to keep."""

    id: str
    bytes: int
    """What its deletion frees: a file that releases share counts with one of them, if none that stays has it."""
    held: bool
    """A service serves it, or it is being sealed anew: it stays."""


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
    publishers take, so that none is ever seen in part: what a kill leaves behind, the next publisher removes, or the
    next call, which returns it like the rest. Raises ReleaseError where there is no current release, ValueError for
    `keep` < 0.
    """
    if keep < 0:
        raise ValueError(f"keep must not be negative, but {keep} is")
    with locked(root):
        current = current_id(root)
        if current is None or not (root / current / MANIFEST).is_file():
            raise ReleaseError(f"{root} has no current release: nothing can be pruned", code="release_missing")
        others = sorted(
            (path.name for path in root.iterdir() if is_id(path.name) and path.name != current), reverse=True
        )
        going, held = {path.name.removeprefix(PRUNED): path for path in root.glob(f"{PRUNED}*")}, []
        for name in others[keep:]:
            with _unused(root / name) as unused:
                if not unused:
                    held.append(Pruned(name, 0, True))
                elif delete:
                    going[name] = (root / name).rename(root / f"{PRUNED}{name}")
                else:
                    going[name] = root / name
    found = [*held, *(Pruned(name, size, False) for name, size in zip(going, _sizes(going.values()), strict=True))]
    if delete:
        sync_folder(root)  # a release that lost files must not have its name again after a power cut
        for path in going.values():
            shutil.rmtree(path, ignore_errors=True)
    return sorted(found, key=lambda one: one.id, reverse=True)


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


def _sizes(folders: Iterable[Path]) -> list[int]:
    """Return what the deletion of all `folders` frees, in bytes, by folder: a file of several is the last one's."""
    links: Counter[tuple[int, int]] = Counter()
    sizes = []
    for folder in folders:
        size = 0
        for parent, _, files in os.walk(folder):
            for name in files:
                with suppress(FileNotFoundError):
                    about = os.stat(os.path.join(parent, name))
                    links[about.st_dev, about.st_ino] += 1
                    size += about.st_size if links[about.st_dev, about.st_ino] == about.st_nlink else 0
        sizes.append(size)
    return sizes


def _gone(path: Path) -> ReleaseError:
    return ReleaseError(f"{path} is not there any more: it was pruned", code="release_missing")
