"""A small real release, and the service on it, in process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from fastapi import FastAPI
from service_uploads import ogg, tone
from starlette.testclient import TestClient

from service.app import create_app
from service.logs import TRACEBACKS
from service.settings import Settings

HERE = Path(__file__).resolve().parent
BUILD_S = 240


class Builds:
    """One run of service_release.py, in a process of its own: torch stays out of this one."""

    def __init__(self, root: Path, *seeds: int) -> None:
        self._root = root
        command = [sys.executable, str(HERE / "service_release.py"), str(root), *map(str, seeds)]
        env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
        with self._log.open("w") as log:  # no pipe: torch's exporter is chatty, and a full one would stop it
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

    @property
    def _log(self) -> Path:
        return self._root / "build.log"

    def releases(self, seed: int) -> Path:
        """Wait for the release of `seed` to be published."""
        releases = self._root / str(seed) / "releases"
        deadline = time.monotonic() + BUILD_S
        while not (releases / "current").exists():
            assert self._process.poll() in (None, 0), self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)
        return releases

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Log lines as JSON; structlog's own default draws every traceback in colours, which takes seconds."""
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, TRACEBACKS, structlog.processors.JSONRenderer()]
    )


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Two releases of the same songs with different weights, one made after the other."""
    builds = Builds(tmp_path_factory.mktemp("releases"), 1, 2)
    yield builds
    builds.stop()


@pytest.fixture(scope="session")
def releases(builds: Builds) -> Path:
    """The releases folder that most tests serve."""
    return builds.releases(1)


@pytest.fixture(scope="session")
def retrained(builds: Builds) -> Path:
    """A releases folder whose encoder and matcher are others."""
    return builds.releases(2)


@pytest.fixture(scope="session")
def clip() -> bytes:
    """1.5 s of Ogg Opus."""
    return ogg(tone(1.5))


@pytest.fixture
def settings(releases: Path, tmp_path: Path) -> Settings:
    return Settings(releases=releases, ledger=tmp_path / "ledger.sqlite", encoder_threads=1, decode_workers=1)


Serve = Callable[[Settings], TestClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start applications in this process; they are closed at the end of the test."""
    running: list[TestClient] = []

    def start(settings: Settings) -> TestClient:
        client = TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False)
        client.__enter__()
        running.append(client)
        return client

    yield start
    for client in reversed(running):
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Serve, settings: Settings) -> TestClient:
    """The service on an empty ledger."""
    return serve(settings)


@pytest.fixture
def app(client: TestClient) -> FastAPI:
    return client.app
