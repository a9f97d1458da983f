"""python -m service.decode.worker: decodes the files that the service hands over, within limits the kernel keeps."""

import fcntl
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from errno import ENOMEM
from pathlib import Path
from typing import BinaryIO

from index.sound.audio import AudioError, AudioLimits, decode
from index.sound.features import log_mel
from service.decode.wire import Heard, receive_request, say, send_heard

_FILES = 32  # descriptors: the line, standard ones, one recording, and what an import may want
_GRACE_S = 1.0  # CPU time beyond the limit: the service's own clock comes first


def main(line: socket.socket, memory: int, seconds: float, jobs: int) -> None:
    """Serve `jobs` files, one after the other; end when the service is gone, even in the midst of one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the service decides, and may still wait for an answer
    say(line, {"outcome": "ready", "unlimited": _confine(memory, math.ceil(jobs * (seconds + 2 * _GRACE_S)))})
    _silence()
    for _ in range(jobs):
        try:
            file, limits = receive_request(line)
        except EOFError:
            return
        with file:
            _allow_cpu(seconds + _GRACE_S)
            _end_with(line, watched=True)
            answer = _answer(line, file, limits)
            _end_with(line, watched=False)
        answer()


def _answer(line: socket.socket, file: BinaryIO, limits: AudioLimits) -> Callable[[], None]:
    """Decode a recording; return what sends the answer."""
    try:
        recording = decode(file, limits)
        started = time.perf_counter()
        mel = log_mel(recording.clips)
        features_s = time.perf_counter() - started
    except AudioError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == ENOMEM:
            return lambda: say(line, {"outcome": "memory"})
        refused = {"outcome": "refused", "code": error.code, "detail": error.detail}
        return lambda: say(line, refused)
    except MemoryError:
        return lambda: say(line, {"outcome": "memory"})
    except Exception as error:  # a bug of ours: the service logs it
        broken = {"outcome": "broken", "detail": f"{type(error).__name__}: {error}"}
        return lambda: say(line, broken)
    facts = (recording.container, recording.codec, recording.sample_rate, recording.peak, recording.clipped)
    heard = Heard(mel, float(recording.duration_s), *facts, features_s)
    return lambda: send_heard(line, heard)


def _confine(memory: int, cpu_s: int) -> list[str]:
    """Limit this process for good: `memory` bytes beyond what it has, no writing, no children; return what failed."""
    with suppress(OSError):  # a machine out of memory had better end this than the service
        Path("/proc/self/oom_score_adj").write_text("1000")
    has = _address_space()
    limits = {
        "RLIMIT_AS": None if has is None else has + memory,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": _FILES,
        "RLIMIT_CPU": math.ceil(_cpu_s()) + cpu_s,
    }
    failed = []
    for name, limit in limits.items():
        try:
            if limit is None:
                raise OSError
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (AttributeError, OSError, ValueError):
            failed.append(name)
    return failed


def _address_space() -> int | None:
    """Bytes of address space in use, libraries included; None where the kernel does not tell."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _allow_cpu(seconds: float) -> None:
    """Let the kernel end this process (SIGXCPU) when it computes for longer than this from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(_cpu_s() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _end_with(line: socket.socket, *, watched: bool) -> None:
    """While watched, the end of the service ends this process: by SIGIO, which a codec's loop cannot miss."""
    flags = fcntl.fcntl(line, fcntl.F_GETFL)
    fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(line, fcntl.F_SETFL, flags | os.O_ASYNC if watched else flags & ~os.O_ASYNC)
    if watched:
        poll = select.poll()
        poll.register(line, 0)
        if poll.poll(0):  # it hung up before we watched
            sys.exit(0)


def _silence() -> None:
    """Say nothing on the service's log from here on: its lines are JSON."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
