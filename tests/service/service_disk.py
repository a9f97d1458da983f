"""A small disk of its own for a service: a tmpfs in a mount namespace, to be filled, emptied and made read-only."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

import pytest
from service_process import ROOT

_MOUNT = 'mount -t tmpfs -o "size=$1" debut "$2" && echo mounted && exec cat'


class SmallDisk:
    """`size` bytes at `folder`, seen by what runs `inside` alone. It outlives processes there that are killed."""

    def __init__(self, folder: Path, size: int) -> None:
        if not shutil.which("unshare") or not shutil.which("nsenter"):
            pytest.skip("unshare and nsenter are not here (util-linux)")
        folder.mkdir()
        # `cat` holds the namespace until its input ends, which it does with this process, however that ends.
        self._holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(size), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._holder.stdout.readline() != "mounted\n":
            said = self._holder.communicate()[1].strip()
            pytest.skip(f"this system gives tests no disk of their own: {said}")
        self.folder = folder
        self.path = Path(f"/proc/{self._holder.pid}/root{folder}")
        """The folder as it is seen from here."""

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to see the disk."""
        enter = ["nsenter", "--user", "--preserve-credentials", "--mount", f"--target={self._holder.pid}"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT)]

    @property
    def free(self) -> int:
        """Bytes left."""
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Write until only `leave` bytes are left."""
        with (self.path / "filler").open("ab") as filler:
            os.posix_fallocate(filler.fileno(), filler.tell(), max(1, self.free - leave))

    def empty(self) -> None:
        """Give the room back."""
        (self.path / "filler").unlink(missing_ok=True)

    def remount(self, how: str) -> None:
        """`ro` or `rw`. Refused (busy) while a file is open for writing."""
        command = [*self.inside, "mount", "-o", f"remount,{how}", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    def __enter__(self) -> "SmallDisk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()
