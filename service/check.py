"""python -m service check: can the service start here, and will it last? A line each, and what to do about it."""

import os
import resource
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from index.errors import DebutError
from service import logs
from service.ledger.ledger import LedgerError, TrackAdded
from service.ledger.opening import open_ledger
from service.ledger.sqlite import SqliteLedger
from service.serving.serving import Serving
from service.settings import Settings, load_settings

LITTLE_ROOM = 1 << 30
NO_ROOM = 64 << 20
FEW_FILES = 1024
WORKER_MB = 60
"""What a decoding process takes when it has nothing to decode (docs/settings.md)."""


class Finding(NamedTuple):
    """One line: what was looked at, how it is, and what to do unless it is ok."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.state:4}  {self.subject:8}  {self.sentence}"


def run() -> int:
    """Look at everything and say so on stdout; return 1 if something fails, else 0."""
    failed = False
    logs.configure("error")
    for finding in findings():
        failed = failed or finding.state == "fail"
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
    return int(failed)


def findings() -> Iterator[Finding]:
    """Look at settings, port, ledger, disk, machine and release, what takes longest last. Changes nothing."""
    try:
        settings = load_settings()
    except DebutError as error:
        yield Finding("fail", "settings", error.detail)
        return
    given = sorted(settings.model_fields_set)
    yield Finding("ok", "settings", f"set here: {', '.join(given)}" if given else "all are as they come")
    serving_now, finding = _ledger(settings)
    yield finding
    yield _port(settings, serving_now)
    yield from _disk(settings)
    yield from _machine(settings)
    yield _release(settings)


def _ledger(settings: Settings) -> tuple[bool, Finding]:
    """Return whether a service has the ledger open, and how it is."""
    path, busy = settings.ledger, False
    if not isinstance(path, Path):
        return False, _shared(settings)
    if not path.exists():
        return False, _absent(path)
    try:
        try:
            ledger = SqliteLedger(path)
        except LedgerError as error:
            if error.code != "ledger_busy":
                raise
            busy, ledger = True, SqliteLedger(path, read_only=True)
        try:
            if not busy:
                ledger.check()
            _whole(path)
            kinds = [isinstance(event, TrackAdded) for _, event in ledger.replay()]
        finally:
            ledger.close()
    except LedgerError as error:
        return busy, Finding("fail", "ledger", error.detail)
    state = "in use by a running service" if busy else "writable"
    added = sum(kinds)
    return busy, Finding("ok", "ledger", f"{path}: whole, {state}; {added} tracks, {len(kinds) - added} taken down")


def _shared(settings: Settings) -> Finding:
    """The ledger that several services share: whether it answers, and can be read to its end."""
    try:
        ledger = open_ledger(settings)
        try:
            ledger.check()
            kinds = [isinstance(event, TrackAdded) for _, event in ledger.replay()]
        finally:
            ledger.close()
    except LedgerError as error:
        return Finding("fail", "ledger", error.detail)
    added = sum(kinds)
    line = f"{settings.ledger}: it answers; {added} tracks, {len(kinds) - added} taken down"
    return Finding("ok", "ledger", line)


def _absent(path: Path) -> Finding:
    """A first start makes the file and its folder."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Finding("ok", "ledger", f"{path} is not there yet; the first start makes it")
    return Finding("fail", "ledger", f"{path} cannot be made: let this user write to {folder}, or set DEBUT_LEDGER.")


def _whole(path: Path) -> None:
    """Let SQLite look for damage. Raises LedgerError."""
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            database.close()
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        raise LedgerError(f"{path} is damaged ({said}): restore it from a backup.", code="ledger_damaged")


def _port(settings: Settings, serving_now: bool) -> Finding:
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if serving_now:
            return Finding("ok", "port", f"{where} is taken, most likely by the service that has the ledger open")
        return Finding("fail", "port", f"{where} cannot be taken ({error.strerror}): set DEBUT_PORT or DEBUT_HOST.")
    return Finding("ok", "port", f"{where} is free")


def _disk(settings: Settings) -> Iterator[Finding]:
    spool = settings.queue_size * settings.max_upload_bytes
    wanted = {
        "releases": (settings.releases, LITTLE_ROOM),
        "uploads": (Path(tempfile.gettempdir()), spool),
    }
    if isinstance(settings.ledger, Path):
        wanted["ledger"] = (settings.ledger, LITTLE_ROOM)
    for name, (path, enough) in wanted.items():
        folder = next(at for at in (path.absolute(), *path.absolute().parents) if at.is_dir())
        free = shutil.disk_usage(folder).free
        line = f"{_size(free)} free for {name} ({folder})"
        if free < NO_ROOM:
            yield Finding("fail", "disk", f"{line}: make room.")
        elif free < enough:
            yield Finding("warn", "disk", f"{line}, {_size(enough)} may be needed: make room{_or_less(name)}.")
        else:
            yield Finding("ok", "disk", line)


def _or_less(name: str) -> str:
    return ", or lower DEBUT_QUEUE_SIZE or DEBUT_MAX_UPLOAD_BYTES" if name == "uploads" else ""


def _machine(settings: Settings) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = max(settings.ingest_threads, settings.decode_workers, settings.encoder_threads)
    if busy > 2 * cores:
        yield Finding(
            "warn",
            "threads",
            f"{cores} cores, and up to {busy} threads or processes that want one at once: lower DEBUT_INGEST_THREADS, "
            "DEBUT_DECODE_WORKERS or DEBUT_ENCODER_THREADS.",
        )
    else:
        yield Finding("ok", "threads", f"{cores} cores")
    needed, there = settings.decode_workers * (settings.decode_memory_mb + WORKER_MB) << 20, _memory()
    if there is not None and there < needed:
        yield Finding(
            "warn",
            "memory",
            f"{_size(there)} free, decoding may take {_size(needed)}: lower DEBUT_DECODE_WORKERS or "
            "DEBUT_DECODE_MEMORY_MB.",
        )
    elif there is not None:
        yield Finding("ok", "memory", f"{_size(there)} free; decoding may take {_size(needed)} of it")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        yield Finding("warn", "files", f"only {files} may be open at once: raise the limit (ulimit -n {FEW_FILES}).")


def _memory() -> int | None:
    """Bytes that can be had without swapping; None where the kernel does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), None)


def _release(settings: Settings) -> Finding:
    """Open it as the service does: every file's checksum, every part, one inference by each model."""
    try:
        serving = Serving.open(settings)
    except DebutError as error:
        return Finding("fail", "release", error.detail)
    about = f"{serving.release.id}: verified, {len(serving.collection)} tracks"
    return Finding("ok", "release", f"{about}; both models answer, the first time in {serving.warm_up_s:.2f} s")


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
