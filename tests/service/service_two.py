"""A folder of two releases, as an operator has it: the same songs, other models."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from index.release import MANIFEST, Manifest, Release, _identify, _read_manifest, _seal, _to_json, activate


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
    staging = root / ".altered"
    shutil.copytree(root / release_id, staging)
    change(staging)
    manifest = _read_manifest(root / release_id / MANIFEST)
    files = {name: _seal(staging / name) for name in manifest.files}
    unnamed = Manifest("", manifest.created, files, {**manifest.facts, **facts})
    made = dataclasses.replace(unnamed, id=_identify(unnamed))
    (staging / MANIFEST).write_bytes(_to_json(made))
    staging.rename(root / made.id)
    return made.id


def point(root: Path, target: str) -> None:
    """Set `current` without looking where it leads, as a hand on the command line can."""
    link = root / ".by-hand"
    link.symlink_to(target)
    os.replace(link, root / "current")
