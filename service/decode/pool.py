"""The decoding processes, seen from the service: handed files, watched, ended when late, replaced."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import structlog

from index.sound.audio import AudioError, AudioLimits
from service.decode.wire import Heard, NonsenseError, listen, receive_heard, send_request, text
from service.http.problems import KINDS, Problem
from service.http.upload import room_for_upload
from service.metrics import Metrics
from service.settings import Settings

JOBS = 500  # files that one process decodes before a fresh one takes its place
START_S = 60.0  # seconds that a process may take to start
FRESH = 2  # processes started for one file that may end before they see it; the warm ones may all have ended long ago
_ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "SYSTEMROOT")

log = structlog.get_logger("debut.decode")


class LostError(Exception):
    """A process is gone or has to go. `reason`: time, cpu, memory, crash, start, unheard (it never saw the file)."""

    def __init__(self, reason: str, how: str = "") -> None:
        super().__init__(f"{reason}: {how}")
        self.reason, self.how = reason, how


class Decoding:
    """`settings.decode_workers` warm processes, each with limits that the kernel keeps.

    Whatever a file does to its process, it costs that one request: the process is ended and replaced. Threads
    may share this.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._changed = threading.Condition()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waiting, self._closed, self._warned = 0, False, False
        with self._changed:
            self._fill()

    @property
    def waiting(self) -> int:
        """How many files wait for a process."""
        return self._waiting

    @property
    def pids(self) -> set[int]:
        """The processes that there are."""
        with self._changed:
            return {worker.process.pid for worker in self._workers}

    def hear(self, audio: IO[bytes], limits: AudioLimits) -> Heard:
        """Decode an upload's file, read from its start, and return its log-mel.

        Raises AudioError for what cannot be used, Problem `decode_failed` when a limit was hit or the codec gave
        up, `queue_full` when no process became free in time, `spool_full`, `not_ready`.
        """
        with room_for_upload():
            file = audio.fileno()  # of a file without a name: what was held in memory goes there now
            audio.flush()
        left = self._settings.decode_workers + FRESH
        while True:
            worker = self._take()
            try:
                heard = worker.hear(file, limits, self._settings.decode_seconds)
            except AudioError:
                self._give_back(worker)
                raise
            except LostError as lost:
                self._replace(worker, lost.reason)
                left -= lost.reason == "unheard"
                if lost.reason == "unheard" and left and not self._closed:
                    continue
                log.warning("a decoding process was lost", reason=lost.reason, how=lost.how)
                raise self._problem(lost) from None
            except BaseException:
                self._replace(worker, "crash")
                raise
            self._give_back(worker)
            return heard

    def _take(self) -> "_Worker":
        with self._changed:
            self._fill()
            if not self._idle and self._waiting >= self._settings.queue_size:
                raise self._busy()
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._idle or self._closed, self._settings.decode_seconds)
            finally:
                self._waiting -= 1
            if self._closed:
                raise Problem("not_ready", "The service is being stopped.")
            if not self._idle:
                raise self._busy()
            return self._idle.pop()

    def _busy(self) -> Problem:
        self._metrics.refused.inc()
        count = self._settings.decode_workers
        detail = f"All decoding processes ({count}) are busy with other uploads; try again shortly."
        return Problem("queue_full", detail, setting="decode_workers")

    def _give_back(self, worker: "_Worker") -> None:
        if worker.unlimited and not self._warned:
            self._warned = True
            log.warning("this system does not limit decoding processes in all we ask for", missing=worker.unlimited)
        if worker.jobs >= JOBS:
            self._replace(worker, "retired")
            return
        with self._changed:
            if worker in self._workers:
                self._idle.append(worker)  # the one used last is used first: it is the warmest
                self._changed.notify()

    def _replace(self, worker: "_Worker", reason: str) -> None:
        with self._changed:
            if worker in self._workers:  # else it was ended on closing
                self._workers.remove(worker)
                self._metrics.decode_replaced.labels(reason).inc()
        worker.end()
        with self._changed:
            self._fill()

    def _fill(self) -> None:
        """Start what is missing; a system that has no room for it now is asked again by the next file."""
        while not self._closed and len(self._workers) < self._settings.decode_workers:
            try:
                worker = _Worker(self._settings)
            except OSError as error:
                log.error("a decoding process cannot be started", error=str(error))
                return
            self._workers.add(worker)
            self._idle.insert(0, worker)  # used last, so that it warms up meanwhile
            self._changed.notify()

    def _problem(self, lost: LostError) -> Problem:
        settings = self._settings
        if self._closed:
            return Problem("not_ready", "The service is being stopped.")
        if lost.reason == "start":
            return Problem("not_ready", "The process that decodes audio does not start; the service's log says why.")
        if lost.reason == "unheard":
            count = settings.decode_workers + FRESH
            detail = (
                f"The last {count} processes that decode audio ended before they were handed the recording; see what "
                "ends them: often it is the system, short of memory."
            )
            return Problem("not_ready", detail)
        if lost.reason in ("time", "cpu"):
            detail = (
                f"Decoding takes over {settings.decode_seconds:g} s, which is the limit; export the recording again."
            )
            return Problem("decode_failed", detail, setting="decode_seconds")
        if lost.reason == "memory":
            detail = (
                f"Decoding takes over {settings.decode_memory_mb} MiB, which is the limit; export the recording again."
            )
            return Problem("decode_failed", detail, setting="decode_memory_mb")
        return Problem("decode_failed", "The codec gave up on the recording; export it again.")

    def close(self) -> None:
        """End all processes, at once; who waits for one gets `not_ready`."""
        with self._changed:
            self._closed = True
            workers, self._workers = self._workers, set()
            self._idle.clear()
            self._changed.notify_all()
        for worker in workers:
            worker.end()


class _Worker:
    """One process and the line to it."""

    def __init__(self, settings: Settings) -> None:
        self.jobs = 0
        self.unlimited: list[str] | None = None  # what the system would not limit; None until it is ready
        self._line, theirs = socket.socketpair()
        arguments = (theirs.fileno(), settings.decode_memory_mb << 20, settings.decode_seconds, JOBS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.decode.worker", *map(str, arguments)],
                cwd=_ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for the service, which lets it finish
            )
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()

    def hear(self, file: int, limits: AudioLimits, seconds: float) -> Heard:
        """Let it decode an open file, for at most `seconds`. Raises AudioError, LostError."""
        self._ready()
        self.jobs += 1
        self._line.settimeout(seconds)
        try:
            send_request(self._line, file, limits)
        except OSError:
            raise LostError("unheard") from None
        deadline = time.monotonic() + seconds
        try:
            return self._answer(deadline)
        except TimeoutError:
            raise LostError("time") from None
        except (EOFError, OSError):
            raise self._fate() from None
        except NonsenseError as error:
            raise LostError("crash", f"it answered {error}") from None

    def _ready(self) -> None:
        if self.unlimited is None:
            try:
                head = listen(self._line, time.monotonic() + START_S)
            except (OSError, EOFError, NonsenseError) as error:
                raise LostError("start", type(error).__name__) from None
            self.unlimited = list(head.get("unlimited", ()))

    def _answer(self, deadline: float) -> Heard:
        head = listen(self._line, deadline)
        match head.get("outcome"):
            case "heard":
                return receive_heard(self._line, head, deadline)
            case "refused" if head.get("code") in KINDS:
                raise AudioError(text(head, "detail"), code=text(head, "code"))
            case "memory":
                raise LostError("memory")
            case "broken":
                raise LostError("crash", text(head, "detail"))
        raise NonsenseError("an outcome that is none")

    def _fate(self) -> LostError:
        """What became of a process that hung up."""
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return LostError("crash", "it hung up")
        if code == -signal.SIGXCPU:
            return LostError("cpu")
        return LostError("crash", signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def end(self) -> None:
        """Kill it and forget it; harmless when it is gone, or was ended before."""
        self._line.close()
        self.process.kill()
        self.process.wait()


def _environment() -> dict[str, str]:
    """No secret of the service, and one thread."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
