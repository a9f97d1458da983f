"""The service as a child process of the demo: started, awaited, and ended with it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

START_S = 60.0
STOP_S = 20.0


class ServiceError(Exception):
    """The service did not start."""


class Service:
    """A running service on loopback. Use as a context manager; `url` is its address."""

    def __init__(self, releases: Path, ledger: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        settings = {
            "DEBUT_RELEASES": str(releases),
            "DEBUT_LEDGER": str(ledger),
            "DEBUT_HOST": "127.0.0.1",
            "DEBUT_PORT": str(port),
            "DEBUT_LOG_LEVEL": "warning",
        }
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("DEBUT_")}
        self._environment = kept | settings
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Service":
        self.refuse_busy_port()
        # A session of its own: Ctrl-C reaches the demo alone, which then ends the service in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._await_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """The running service's process."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        """Wait until the service ends by itself."""
        assert self._process is not None
        self._process.wait()
        raise ServiceError(f"the service ended with exit code {self._process.returncode}")

    def refuse_busy_port(self) -> None:
        """Raise ServiceError when the port cannot be had."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
            except OSError as error:
                raise ServiceError(
                    f"port {self._port} cannot be used ({error.strerror}). Choose another: make demo PORT=8001"
                ) from None

    def _await_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServiceError(f"the service did not start (exit code {self._process.returncode}); see above")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise ServiceError(f"the service was not ready within {START_S:.0f} s")

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
