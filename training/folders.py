"""Folders and files that appear whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_folder(directory: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder filled by `fill` in the place of `directory`, which is never seen half-written."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _beside(directory)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        fill(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if directory.exists():
        os.rename(directory, old)
    os.rename(fresh, directory)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> Path:
    """Put a file in the place of `path`, which is never seen half-written; return `path`."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
    return path


def recover_folder(directory: Path) -> None:
    """Undo a `replace_folder` that was killed between its two renames: put the old folder back."""
    _, old = _beside(directory)
    if old.exists() and not directory.exists():
        os.rename(old, directory)


def remove_folder(directory: Path) -> None:
    """Remove a folder and what a killed `replace_folder` left beside it, so that nothing of it is recovered."""
    for leftover in (*_beside(directory), directory):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(directory: Path) -> tuple[Path, Path]:
    """Where `replace_folder` fills the new folder, and where it puts the old one aside."""
    return directory.with_name(f"{directory.name}.unfinished"), directory.with_name(f"{directory.name}.replaced")
