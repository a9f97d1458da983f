"""The ledger in one SQLite file: WAL, synchronous=FULL, one process at a time."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.encoder import TrackVectors
from service.ledger import Embedding, Event, Known, LedgerError, TrackAdded, TrackRemoved
from service.ledger_records import (
    PackedFeatures,
    pack_track,
    pack_vector,
    unpack_track,
    unpack_vector,
)

APPLICATION_ID = 0x44454255  # "DEBU", in the file's header: tells a ledger from any other SQLite file
FORMAT = 1
_HEADER = b"SQLite format 3\0"

# Events are facts and never change. Embeddings follow from them and a model: they are replaced when the model
# is.
SCHEMA = """
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('added', 'removed')),
    track_id TEXT NOT NULL,
    created TEXT NOT NULL,
    content_sha256 TEXT,
    track TEXT,
    clips INTEGER, frames INTEGER, mels INTEGER,
    features BLOB,
    CHECK (kind = 'removed' OR (content_sha256 IS NOT NULL AND track IS NOT NULL AND features IS NOT NULL))
) STRICT;
CREATE INDEX events_by_track ON events (track_id, sequence);
CREATE TABLE embeddings (
    sequence INTEGER PRIMARY KEY REFERENCES events (sequence),
    encoder_id TEXT NOT NULL,
    matcher_id TEXT NOT NULL,
    audio BLOB, text BLOB, lyrics BLOB,
    continuation BLOB NOT NULL,
    matching BLOB NOT NULL
) STRICT;
CREATE TABLE heartbeat (id INTEGER PRIMARY KEY CHECK (id = 1), written TEXT NOT NULL) STRICT;
"""

_LAST = """
SELECT e.sequence, kind, track_id, created, content_sha256, track, clips, frames, mels, features,
       encoder_id, matcher_id, audio, text, lyrics, continuation, matching
FROM events e LEFT JOIN embeddings m ON m.sequence = e.sequence
WHERE e.sequence > ?
  AND NOT EXISTS (SELECT 1 FROM events n WHERE n.track_id = e.track_id AND n.sequence > e.sequence)
ORDER BY e.sequence LIMIT 64
"""


class SqliteLedger:
    """service.ledger.Ledger in a SQLite file."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path`, or make an empty one (and the folder it lies in).

        Raises LedgerError: ledger_busy (another process has it open), ledger_format (a newer Debut's, or
        another program's file), ledger_damaged (not SQLite, or broken), ledger_unwritable (permissions,
        space).
        """
        self.path = path
        self._lock = threading.Lock()
        self._guard: int | None = _exclusive(path)
        try:
            with self._translated():
                _check_header(path)
                self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        tables = self._value("SELECT count(*) FROM sqlite_schema")
        application, version = self._value("PRAGMA application_id"), self._value("PRAGMA user_version")
        empty = tables == 0 and application == 0
        if not empty:
            self._recognise(application, version)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if empty:
            header = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {header} COMMIT;")
        self._count = int(self._value("SELECT coalesce(max(sequence), 0) FROM events"))

    def _recognise(self, application: int, version: int) -> None:
        if application != APPLICATION_ID:
            raise LedgerError(
                f"{self.path} is a SQLite file of another program, not a ledger of Debut; set DEBUT_LEDGER "
                "to another path.",
                code="ledger_format",
            )
        if version != FORMAT:
            raise LedgerError(
                f"{self.path} is a ledger in format {version}, this Debut reads format {FORMAT}: run the "
                "version that wrote it, or a newer one.",
                code="ledger_format",
            )

    def append(self, event: Event) -> int:
        """See Ledger."""
        with self._transaction():
            if isinstance(event, TrackAdded):
                sequence = self._add(event)
            else:
                sequence = self._insert(kind="removed", track_id=event.track_id, created=event.created)
        self._count = sequence
        return sequence

    def _add(self, event: TrackAdded) -> int:
        clips, frames, mels = event.features.shape
        sequence = self._insert(
            kind="added",
            track_id=event.track_id,
            created=event.created,
            content_sha256=event.content_sha256,
            track=pack_track(event.track),
            clips=clips,
            frames=frames,
            mels=mels,
            features=event.features.data,
        )
        self._embed(sequence, event.embedding)
        return sequence

    def _insert(self, **columns: Any) -> int:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        cursor = self._db.execute(f"INSERT INTO events ({names}) VALUES ({marks})", tuple(columns.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _embed(self, sequence: int, embedding: Embedding) -> None:
        v = embedding.vectors
        blobs = map(pack_vector, (v.audio, v.text, v.lyrics, v.continuation, embedding.matching))
        row = (sequence, embedding.encoder_id, embedding.matcher_id, *blobs)
        self._db.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def renew(self, sequence: int, embedding: Embedding) -> None:
        """See Ledger."""
        with self._transaction():
            self._embed(sequence, embedding)

    def replay(self) -> Iterator[tuple[int, Event]]:
        """See Ledger. Reads 64 events at a time, so that a long ledger does not have to fit into memory."""
        last = 0
        while True:
            with self._lock, self._translated():
                rows = self._db.execute(_LAST, (last,)).fetchall()
            if not rows:
                return
            for row in rows:
                yield row[0], self._event(row)
            last = rows[-1][0]

    def _event(self, row: tuple[Any, ...]) -> Event:
        sequence, kind, track_id, created, sha256, track, *shape, data = row[:10]
        if kind == "removed":
            return TrackRemoved(track_id, created)
        encoder_id, matcher_id, *blobs = row[10:]
        try:
            audio, text, lyrics, continuation, matching = map(unpack_vector, blobs)
            if continuation is None or matching is None:
                raise ValueError("it has no embedding")
            features = PackedFeatures(data, (shape[0], shape[1], shape[2]))
            vectors = TrackVectors(audio=audio, text=text, lyrics=lyrics, continuation=continuation)
            embedding = Embedding(vectors, matching, encoder_id, matcher_id)
            return TrackAdded(unpack_track(track), sha256, features, embedding, created)
        except ValueError as error:
            raise LedgerError(
                f"{self.path}: event {sequence} ({track_id}) cannot be read: {error}. Restore the file from a backup.",
                code="ledger_damaged",
            ) from None

    def known(self, track_id: str) -> Known | None:
        """See Ledger."""
        with self._lock, self._translated():
            row = self._db.execute(
                "SELECT kind, content_sha256, track FROM events WHERE track_id = ? ORDER BY sequence DESC LIMIT 1",
                (track_id,),
            ).fetchone()
        return None if row is None or row[0] == "removed" else Known(row[1], unpack_track(row[2]))

    def check(self) -> None:
        """See Ledger."""
        with self._transaction():
            now = datetime.now(UTC).isoformat()
            self._db.execute("INSERT OR REPLACE INTO heartbeat VALUES (1, ?)", (now,))

    def __len__(self) -> int:
        """See Ledger."""
        return self._count  # kept beside: whoever asks must not wait for a transaction

    def close(self) -> None:
        """See Ledger."""
        with self._lock:
            if hasattr(self, "_db"):
                self._db.close()
            if self._guard is not None:
                os.close(self._guard)
                self._guard = None

    def _value(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn SQLite's errors into LedgerError with a sentence that helps."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise LedgerError(
                f"{self.path} cannot be written ({error}): check its permissions and the space left."
            ) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # its subclasses speak of our code, not of the file
                raise
            raise LedgerError(
                f"{self.path} is not a ledger, or a damaged one ({error}): restore it from a backup, or set "
                "DEBUT_LEDGER to another path.",
                code="ledger_damaged",
            ) from error


def _check_header(path: Path) -> None:
    """Raise sqlite3.DatabaseError for another kind of file; SQLite itself would overwrite one under 512 bytes."""
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(_HEADER)) not in (b"", _HEADER):
                raise sqlite3.DatabaseError("file is not a database")


def _exclusive(path: Path) -> int:
    """Take the lock beside the ledger, which the kernel lets go of however the process ends.

    Two services on one ledger would each miss what the other takes in.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerError(f"{path} cannot be written ({error.strerror}): check its folder's permissions.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LedgerError(
            f"{path} is in use by another process: stop it, or set DEBUT_LEDGER to another path.",
            code="ledger_busy",
        ) from None
    return descriptor
