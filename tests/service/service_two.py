"""A folder of two releases, as an operator has it: the same songs, other models."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from index.release.release import CURRENT, MANIFEST, Release, activate, publish


def one_folder(root: Path, *folders: Path) -> list[str]:
    """Put the current releases of `folders` into `root`, the first one current; return their ids."""
    root.mkdir()
    releases = [Release.open(folder, verify=False) for folder in folders]
    for release in releases:
        shutil.copytree(release.path, root / release.id, copy_function=os.link)
    activate(root, releases[0].id)
    return [release.id for release in releases]


def altered(root: Path, release_id: str, change: Callable[[Path], None] = lambda _: None, **facts: object) -> str:
    """Publish a copy of a release with some files or facts changed, checksums and all, without making it current."""
    release, current = Release.open(root / release_id, verify=False), os.readlink(root / CURRENT)

    def fill(folder: Path) -> None:
        shutil.copytree(release.path, folder, dirs_exist_ok=True)
        (folder / MANIFEST).unlink()
        change(folder)

    made = publish(root, fill, facts={**release.manifest.facts, **facts})
    point(root, current)
    return made.id


def point(root: Path, target: str) -> None:
    """Set `current` without looking where it leads, as a hand on the command line can."""
    link = root / ".by-hand"
    link.symlink_to(target)
    os.replace(link, root / CURRENT)
