"""The verb `ingest`: threads that send, a line that says how far, and an exit code that says how it went."""

import argparse
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from service.bulk.journal import Fate, Journal, fingerprint, write_report
from service.bulk.sending import Sender, ServiceError, StoppedError
from service.bulk.source import PATH, Folder, Item, Listing, SourceError, source_of

DONE, FAILED, INTERRUPTED = 0, 1, 130
MOST_JOBS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m service ingest`."""
    parser.add_argument("source", type=Path, help="a folder of recordings, or a CSV file with a column `path`")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is (%(default)s)")
    parser.add_argument("--key-file", type=Path, help="a file with the API key")
    parser.add_argument("--jobs", type=int, default=4, help="uploads at once (%(default)s)")
    parser.add_argument(
        "--id-from", default=PATH, help="a folder's track ids: path (from the folder on), content, or a tag's name"
    )
    parser.add_argument("--replace", action="store_true", help="replace tracks that are there with other content")
    parser.add_argument(
        "--patience", type=float, default=300.0, help="seconds to wait for a busy service (%(default)s)"
    )
    parser.add_argument("--journal", type=Path, help="what was sent already (NAME.ingest.jsonl)")
    parser.add_argument("--report", type=Path, help="what went wrong (NAME.ingest.csv)")


def run(arguments: argparse.Namespace) -> int:
    """Send everything; return 0, 1 when something failed, 130 when it was interrupted.

    Raises SourceError, and ServiceError when nobody answers at the start.
    """
    source = source_of(arguments.source, arguments.id_from)
    name = arguments.source.resolve().stem or "debut"
    stopping = threading.Event()
    with _interruptible(stopping):
        sender = Sender(
            arguments.url,
            _key(arguments.key_file),
            _jobs(arguments.jobs),
            patience_s=arguments.patience,
            replace=arguments.replace,
            stopping=stopping,
        )
        total = len(source)
        sender.check()
        journal = Journal(arguments.journal or Path(f"{name}.ingest.jsonl"), arguments.url.rstrip("/"))
        try:
            bulk = Bulk(source, total, sender, journal, stopping)
            bulk.run(arguments.jobs)
        finally:
            journal.close()
            sender.close()
        return _conclude(bulk, arguments.report or Path(f"{name}.ingest.csv"), stopping.is_set())


def _conclude(bulk: "Bulk", report: Path, interrupted: bool) -> int:
    write_report(report, bulk.remarkable)
    counts = bulk.counts
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts)) or "nothing was sent"
    _say(f"{said}; {report} lists what failed or sounds like another track.")
    if bulk.broken is not None:
        _say(bulk.broken)
        return FAILED
    if interrupted:
        _say("Interrupted: the same command goes on from here.")
        return INTERRUPTED
    return FAILED if counts["failed"] else DONE


class Bulk:
    """One run: threads that each take the next recording, so that no more than `jobs` are ever in memory."""

    def __init__(
        self, source: Folder | Listing, total: int, sender: Sender, journal: Journal, stopping: threading.Event
    ) -> None:
        self._items, self._total = source.items(), total
        self._sender, self._journal, self._stopping = sender, journal, stopping
        self._taking, self._noting = threading.Lock(), threading.Lock()
        self._progress = Progress(total)
        self.counts: Counter[str] = Counter()
        self.remarkable: list[Fate] = []
        """What failed, and what sounds like another track."""
        self.broken: str | None = None
        """Why the run cannot go on, as a sentence."""

    def run(self, jobs: int) -> None:
        """Send everything, or until told to stop."""
        with ThreadPoolExecutor(jobs, thread_name_prefix="send") as pool:
            for worker in [pool.submit(self._work) for _ in range(jobs)]:
                worker.result()
        self._progress.end()

    def _work(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._note(self._send(item))
        except StoppedError:
            pass
        except (ServiceError, SourceError) as error:
            self.broken = self.broken or error.detail
            self._stopping.set()
        except BaseException:
            self._stopping.set()
            raise

    def _next(self) -> Item | None:
        with self._taking:
            return None if self._stopping.is_set() else next(self._items, None)

    def _send(self, item: Item) -> Fate:
        try:
            mark = fingerprint(item)
        except OSError as error:
            detail = f"{item.file} cannot be read ({error.strerror})."
            return Fate(item.key, str(item.metadata.get("track_id", "")), "failed", None, "unreadable", detail)
        except TypeError:  # orjson's word for text that is none
            return Fate(item.key, "", "failed", None, "bad_name", "Its name is no UTF-8: rename it.")
        known = self._journal.track_id(mark)
        if known is not None and self._sender.has(known):
            return Fate(item.key, known, "skipped")
        fate = self._sender.send(item)
        if fate.outcome != "failed":
            with self._noting:
                self._journal.add(mark, fate.track_id)
        return fate

    def _note(self, fate: Fate) -> None:
        with self._noting:
            self.counts[fate.outcome] += 1
            if fate.outcome == "failed" or fate.duplicate_of:
                self.remarkable.append(fate)
            self._progress.show(self.counts)


class Progress:
    """A line on stderr: each second in a terminal, each half minute in a log."""

    def __init__(self, total: int) -> None:
        self._total, self._started, self._shown = total, time.monotonic(), 0.0
        self._terminal = sys.stderr.isatty()

    def show(self, counts: Counter[str]) -> None:
        """Say how far it is, unless that was said a moment ago."""
        now, done = time.monotonic(), counts.total()
        if now - self._shown < (1 if self._terminal else 30) and done < self._total:
            return
        self._shown = now
        sent = done - counts["skipped"]
        rate = sent / max(now - self._started, 1e-3)
        left = f"{_duration((self._total - done) / rate)} left" if rate else "nothing sent yet"
        line = f"{done} of {self._total}, {counts['failed']} failed, {rate:.1f} a second, {left}"
        sys.stderr.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            sys.stderr.write("\n")


class _interruptible:  # noqa: N801 - read as a word of the statement
    """Ctrl-C (or SIGTERM) lets what is being sent come to its end; the second one does not."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._stopping.set()


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        key = file.read_text("ascii").strip()
    except (OSError, UnicodeError):
        raise SourceError(f"{file} cannot be read: --key-file names a file with an API key.") from None
    if not key or not key.isprintable() or " " in key:
        raise SourceError(f"{file} holds no API key: it has to be one word.")
    return key


def _jobs(jobs: int) -> int:
    if not 1 <= jobs <= MOST_JOBS:
        raise SourceError(f"--jobs {jobs} cannot be: 1 to {MOST_JOBS} uploads can be sent at once.")
    return jobs


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()
