"""The service's processes, started, waited for and killed; and how long each start took."""

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.service.service_process import ROOT, environment

START_S, STARVED_S, STOP_S = 60.0, 600.0, 60.0
"""Longest start and stop, in seconds. A start that gets no processor is given STARVED_S."""
LOOK_S, POLL_S = 10.0, 0.01
"""How long one look waits for its answer, and the pause before the next."""
PORTS = (20_000, 32_000)
TICK = os.sysconf("SC_CLK_TCK")


class Broken(Exception):
    """A process did what it must not: it did not start, or did not end."""


@dataclass(frozen=True, slots=True)
class Start:
    """From exec until /readyz said 200: seconds on the clock and of processor time, and the tracks served then."""

    server: int
    wall_s: float
    cpu_s: float
    tracks: int


class Server:
    """`python -m service` on a loopback port that stays the same, started and killed as often as one likes."""

    def __init__(self, number: int, folder: Path, **settings: object) -> None:
        self.number, self._log = number, folder / f"service-{number}.log"
        self.port = _free_port()
        self.settings = {"port": self.port, "encoder_threads": 1, "log_level": "warning"} | settings
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def start(self) -> None:
        """Begin to start; `ready` waits."""
        with self._log.open("ab") as log:
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service"],
                cwd=ROOT,
                env=environment(**self.settings) | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def ready(self) -> Start:
        """Wait for /readyz to say 200. Raises Broken when it does not, or the service ends."""
        assert self._process is not None
        while True:
            if self._process.poll() is not None:
                raise Broken(f"service {self.number} ended with {self._process.returncode} at its start: {self.log()}")
            try:
                status, told = ask(self.port, "GET", "/readyz", timeout=LOOK_S)
            except OSError:
                status, told = 0, {}
            if status == 200:
                return Start(self.number, time.monotonic() - self._began, self._cpu_s(), told["tracks"])
            waited, cpu_s = time.monotonic() - self._began, self._cpu_s()
            if waited > START_S and (cpu_s > START_S / 6 or waited > STARVED_S):
                used = f"{waited:.0f} s and {cpu_s:.1f} s of processor time"
                self._process.send_signal(signal.SIGABRT)  # it writes where each of its threads is
                self._process.wait(STOP_S)
                raise Broken(f"service {self.number} is not ready after {used} ({told}): {self.log()}")
            time.sleep(POLL_S)

    def _cpu_s(self) -> float:
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / TICK

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)

    def stop(self) -> None:
        """SIGTERM. Raises Broken if it does not end well."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        if (code := self._process.wait(STOP_S)) != 0:
            raise Broken(f"service {self.number} ended with {code} when told to stop: {self.log()}")

    def log(self) -> str:
        """The end of what it wrote to stderr."""
        return self._log.read_text(errors="replace")[-6000:] if self._log.exists() else ""


def _free_port() -> int:
    """A port that is free and stays so while its server is down: not one of those that connections are given."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Fold:
    """`python -m service fold`, under way."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self._log = folder / "fold.log"
        self.may_fail = False
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "service", "fold"]
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment(**settings), stdout=log, stderr=log)

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, if it is not done by now."""
        if self._process.poll() is None:
            self._process.kill()
            self.may_fail = True

    def wait(self) -> str:
        """Wait for its end and return what it said. Raises Broken when it failed and nobody killed it."""
        code = self._process.wait(300)
        said = self._log.read_text(errors="replace")[-3000:]
        if code and not self.may_fail:
            raise Broken(f"the fold ended with {code}: {said}")
        return "killed" if code else said.strip().rpartition("\n")[2]


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 60.0,
) -> tuple[int, Any]:
    """One request on a connection of its own: the status, and the answer's JSON.

    Raises ConnectionRefusedError when nobody listens, and another OSError when whoever did went away.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, _read(answer)
        except ConnectionRefusedError as error:  # not at connecting: somebody heard it
            raise ConnectionResetError(str(error)) from None
        except http.client.HTTPException as error:
            raise ConnectionResetError(str(error)) from None
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse) -> Any:
    import orjson

    told = orjson.loads(answer.read())
    if isinstance(told, dict) and answer.headers.get("Idempotent-Replayed") == "true":
        told["replayed"] = True
    return told
