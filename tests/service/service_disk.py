"""Disks of its own for a service, in a mount namespace: to be filled and emptied, or to fail."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

import pytest
from service_process import ROOT

_HOLD = "&& echo mounted && exec cat"


class Disk:
    """A disk at `folder`, seen by what runs `inside` alone. It outlives processes there that are killed."""

    def __init__(self, folder: Path, namespaces: list[str], mount: str, *arguments: str) -> None:
        """Run the shell command `mount`, which has folder and `arguments` as $0, $1, ..., in new namespaces."""
        if not shutil.which("unshare") or not shutil.which("nsenter"):
            pytest.skip("unshare and nsenter are not here (util-linux)")
        folder.mkdir(exist_ok=True)
        # `cat` holds the namespace until its input ends, which it does with this process, however that ends.
        self._holder = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", f"{mount} {_HOLD}", str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._holder.stdout.readline() != "mounted\n":
            said = self._holder.communicate()[1].strip()
            pytest.skip(f"this system gives tests no disk of their own: {said}")
        self.folder, self._namespaces = folder, namespaces
        self.path = Path(f"/proc/{self._holder.pid}/root{folder}")
        """The folder as it is seen from here."""

    @property
    def inside(self) -> list[str]:
        """What to put before a command that is to see the disk."""
        user = ["--user", "--preserve-credentials"] if "--user" in self._namespaces else []
        return [
            "nsenter",
            *user,
            "--mount",
            f"--target={self._holder.pid}",
            "sh",
            "-c",
            'cd "$0" && exec "$@"',
            str(ROOT),
        ]

    def __enter__(self) -> "Disk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()


class SmallDisk(Disk):
    """`size` bytes of memory."""

    def __init__(self, folder: Path, size: int) -> None:
        mount = 'mount -t tmpfs -o "size=$1" debut "$0"'
        super().__init__(folder, ["--user", "--map-root-user", "--mount"], mount, str(size))

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


class BreakableDisk(Disk):
    """ext4 in a file, which the kernel makes read-only as soon as it finds an error. Needs root."""

    def __init__(self, folder: Path, image: Path) -> None:
        """Make the file system if there is no `image` yet, else mount what is there."""
        if os.getuid() != 0 or not shutil.which("mkfs.ext4"):
            pytest.skip("only root can mount a disk that breaks (and needs mkfs.ext4)")
        if not image.exists():
            image.touch()
            os.truncate(image, 32 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-e", "remount-ro", str(image)], check=True, capture_output=True)
        super().__init__(folder, ["--mount"], 'mount -o loop "$1" "$0"', str(image))

    def fail(self) -> None:
        """Have the kernel find an error."""
        number = os.stat(self.path).st_dev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")


def repaired(image: Path) -> None:
    """Mend the file system of an image that nobody has mounted."""
    assert subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, check=False).returncode in (0, 1)
