"""The service as a real process, for tests that kill it or watch it start."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).resolve().parents[2]
START_S, STOP_S = 60, 30


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with only these DEBUT_ settings."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("DEBUT_")}
    return kept | {f"DEBUT_{name.upper()}": str(value) for name, value in settings.items()}


def run_to_exit(*arguments: str, inside: Sequence[str] = (), **settings: object) -> subprocess.CompletedProcess[str]:
    """Start the service where it cannot start, or for another verb than to serve, and return how it ended.

    `inside` is a command that runs the one it is given, in a place of its own (SmallDisk).
    """
    return subprocess.run(
        [*inside, sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=START_S,
    )


class RunningService:
    """`python -m service` on a free loopback port; `client` talks to it."""

    def __init__(self, releases: Path, ledger: Path, *, inside: Sequence[str] = (), **settings: object) -> None:
        env = environment(**{"releases": releases, "ledger": ledger, "port": 0, "encoder_threads": 1} | settings)
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "service"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,  # in a terminal SIGHUP would end it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        overdue = threading.Timer(START_S, self.process.kill)
        overdue.start()
        ready = self.process.stdout.readline()
        overdue.cancel()
        found = re.search(r"http://\S+", ready)
        if not found:
            self.process.wait(STOP_S)
            self._close()
            raise AssertionError(f"the service did not start: {''.join(self.log)}")
        self.client = httpx.Client(base_url=found.group(), timeout=30, trust_env=False)

    def _read_log(self) -> None:
        self.log.extend(self.process.stderr)

    def __enter__(self) -> "RunningService":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it the hard way (SIGKILL)."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)
        self._close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it the polite way; return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(STOP_S)
        self._close()
        return code

    def _close(self) -> None:
        self._reader.join(STOP_S)
        self.process.stdout.close()
        self.process.stderr.close()
        if hasattr(self, "client"):
            self.client.close()
