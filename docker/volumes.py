"""python /opt/volumes.py {save, load}: ledger and releases to one tar on stdout, or from one on stdin.

`save` may run while the service serves: of a SQLite ledger it takes a snapshot, and releases are never changed once
they have their name. `load` wants both volumes empty, so that it cannot overwrite anything, and the service stopped.
A ledger on Redis is Redis's to save (docs/deploy.md); then the tar holds the releases alone.
"""

import os
import shutil
import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

RELEASES = Path(os.environ["DEBUT_RELEASES"])
LEDGER = Path(os.environ.get("LEDGER_FOLDER", "/ledger"), "ledger.sqlite")


def main() -> int:
    """Do what the argument says; return 0, or 2 with a sentence on stderr."""
    verbs = {"save": save, "load": load}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs or (sys.argv[1] == "save" and sys.stdout.isatty()):
        sys.stderr.write("volumes.py save > FILE, or volumes.py load < FILE\n")
        return 2
    try:
        verbs[sys.argv[1]]()
    except (OSError, ValueError, tarfile.TarError, sqlite3.Error) as error:
        sys.stderr.write(f"volumes.py: {error}\n")
        return 2
    return 0


def save() -> None:
    """Write the tar: releases/..., then ledger.sqlite if there is one."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for path in sorted(RELEASES.iterdir()):
            if not path.name.startswith("."):  # a lock, or a release that is being written
                tar.add(path, f"releases/{path.name}")
        if LEDGER.exists():
            with _snapshot() as snapshot:
                tar.add(snapshot, "ledger.sqlite")


@contextmanager
def _snapshot() -> Iterator[Path]:
    """A copy of the ledger as it is at one instant, on its own volume, gone afterwards."""
    copy = LEDGER.with_name(".snapshot.sqlite")
    copy.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(LEDGER)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target, pages=1000)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def load() -> None:
    """Fill the empty volumes; the ledger comes last, under its name only when it is whole and on disk."""
    held = [path for folder in (RELEASES, LEDGER.parent) for path in folder.iterdir() if not path.name.startswith(".")]
    if held:
        raise ValueError(f"{held[0]} is there already: load into empty volumes")
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for member in tar:
            top, *rest = Path(member.name).parts
            known = [top, *rest] == ["ledger.sqlite"] or (top == "releases" and rest)
            if not known or ".." in rest:
                raise ValueError(f"{member.name} is not of a backup")
            if top == "releases":
                _write(tar, member, RELEASES.joinpath(*rest))
            else:
                loading = LEDGER.with_name(".loading.sqlite")
                _write(tar, member, loading)
                loading.rename(LEDGER)
    os.sync()


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write one file, folder or link, and see a file to the disk."""
    if member.isdir():
        path.mkdir()
    elif member.issym() and "/" not in member.linkname:  # releases/current
        path.symlink_to(member.linkname)
    elif member.isfile() and (content := tar.extractfile(member)):
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())
    else:
        raise ValueError(f"{member.name} is neither file nor folder")


if __name__ == "__main__":
    sys.exit(main())
