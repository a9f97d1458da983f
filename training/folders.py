"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_folder(directory: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder filled by `fill` in the place of `directory`, which is never seen half-written."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (directory.with_name(f"{directory.name}.{end}") for end in ("unfinished", "replaced"))
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
