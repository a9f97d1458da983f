"""What a run leaves behind: a journal of what the service has, for the next run, and a report of what went wrong."""

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from service.bulk.source import Item, SourceError


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one recording. `outcome`: created, replaced, unchanged, skipped, failed."""

    key: str
    track_id: str
    outcome: str
    status: int | None = None
    code: str = ""
    detail: str = ""
    duplicate_of: str = ""


def fingerprint(item: Item) -> str:
    """Return what tells a recording that was sent from one that has changed since: name, size, time, metadata.

    Raises OSError when the file is not there.
    """
    about = item.file.stat()
    known = [item.key, about.st_size, about.st_mtime_ns, dict(item.metadata)]
    return hashlib.blake2b(orjson.dumps(known, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


class Journal:
    """A line of JSON for each recording that the service at `url` has acknowledged.

    It is only a hint that saves sending: whoever reads it asks the service as well. A line that a crash cut short is
    passed over.
    """

    def __init__(self, path: Path, url: str) -> None:
        """Read the journal at `path`, if there is one, and write on. Raises SourceError when it cannot be written."""
        self._url = url
        self._done: dict[str, str] = {}
        try:
            if path.exists():
                for line in path.read_bytes().splitlines():
                    self._note(line)
            self._file = path.open("ab")
            if self._file.tell():
                self._file.write(b"\n")  # ends a line that a crash cut short
        except OSError as error:
            raise SourceError(f"The journal {path} cannot be written ({error.strerror}): see --journal.") from None

    def _note(self, line: bytes) -> None:
        try:
            entry: Any = orjson.loads(line)
            if entry["url"] == self._url:
                self._done[entry["fingerprint"]] = str(entry["track_id"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass

    def track_id(self, fingerprint: str) -> str | None:
        """Return under which id the service took this recording in; None when it did not."""
        return self._done.get(fingerprint)

    def add(self, fingerprint: str, track_id: str) -> None:
        """Note that the service has acknowledged a recording. One caller at a time."""
        entry = {"url": self._url, "fingerprint": fingerprint, "track_id": track_id}
        self._file.write(orjson.dumps(entry) + b"\n")
        self._file.flush()
        self._done[fingerprint] = track_id

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def write_report(path: Path, fates: Sequence[Fate]) -> None:
    """Write what failed, and what sounds like another track, as CSV; whole or not at all."""
    staged = path.with_name(f".{path.name}.part")
    try:
        with staged.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Fate)])
            for fate in sorted(fates, key=lambda fate: fate.key):
                writer.writerow([getattr(fate, field.name) for field in fields(Fate)])
        os.replace(staged, path)
    except OSError as error:
        raise SourceError(f"The report {path} cannot be written ({error.strerror}): see --report.") from None
