"""The ledger in one SQLite file: WAL, synchronous=FULL, one process at a time."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.models.encoder import TrackVectors
from service.ledger.ledger import Embedding, Event, Head, Known, LedgerError, Overtaken, TrackAdded, TrackRemoved
from service.ledger.records import (
    PackedFeatures,
    pack_track,
    pack_vector,
    unpack_track,
    unpack_vector,
)
from service.ledger.schema import APPLICATION_ID, EVENT, FORMAT, HEADS, NEWEST, OVERTAKEN, SCHEMA

_HEADER = b"SQLite format 3\0"
EMPTIED_S = 5.0
"""How long a trim tries to empty the log while somebody reads in it, in seconds."""

_TRIMMED_AT_ONCE = 64  # events a transaction: whoever appends meanwhile waits for one of these


class SqliteLedger:
    """service.ledger.ledger.Ledger in a SQLite file."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the ledger at `path`, or make an empty one (and the folder it lies in).

        With `read_only` it must be there, may be in use by a service, and only what reads works. Raises LedgerError:
        ledger_busy (another process has it open), ledger_format (a newer Debut's, or another program's file),
        ledger_damaged (not SQLite, or broken), ledger_unwritable (permissions, space), ledger_missing (read only).
        """
        self.path = path
        self._lock = threading.Lock()
        self._guard: int | None = None
        if read_only and not path.is_file():
            raise LedgerError(f"{path} is not there: set DEBUT_LEDGER to the service's ledger.", code="ledger_missing")
        if not read_only:
            self._guard = _exclusive(path)
        try:
            with self._translated():
                _check_header(path)
                where = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
                self._db = sqlite3.connect(where, 5.0, isolation_level=None, check_same_thread=False, uri=True)
                self._prepare(read_only)
        except BaseException:
            self.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        tables = self._value("SELECT count(*) FROM sqlite_schema")
        application, version = self._value("PRAGMA application_id"), self._value("PRAGMA user_version")
        empty = tables == 0 and application == 0
        if empty and read_only:
            raise LedgerError(f"{self.path} is empty: set DEBUT_LEDGER to the service's ledger.", code="ledger_missing")
        if not empty:
            self._recognise(application, version)
        if read_only:
            self._db.execute("PRAGMA query_only = ON")
        else:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA secure_delete = ON")  # what is trimmed is overwritten, not only forgotten
        if empty:
            header = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {header} COMMIT;")
        self._count = int(self._value("SELECT count(*) FROM events"))

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

    def append(self, event: Event, after: int | None = None) -> int:
        """See Ledger."""
        with self._transaction(more=1):
            if after is not None and (last := self._value(NEWEST)) != after:
                raise Overtaken(last)
            if isinstance(event, TrackAdded):
                sequence = self._add(event)
            else:
                sequence = self._insert(kind="removed", track_id=event.track_id, created=event.created)
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
        blobs = map(pack_vector, (v.audio, v.text, v.lyrics, v.continuation, v.sketch, embedding.matching))
        row = (sequence, embedding.encoder_id, embedding.matcher_id, *blobs)
        self._db.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def renew(self, sequence: int, embedding: Embedding) -> None:
        """See Ledger."""
        with self._transaction():
            self._embed(sequence, embedding)

    def replay(self, after: int = 0, held: Callable[[Head], bool] | None = None) -> Iterator[tuple[int, Event]]:
        """See Ledger. Reads event by event, so that a long ledger does not have to fit into memory."""
        while heads := self._rows(HEADS, after):
            for head in map(Head._make, heads):
                if held is not None and head.content_sha256 is not None and held(head):
                    continue
                for row in self._rows(EVENT, head.sequence):  # none: overtaken since, and trimmed
                    yield head.sequence, self._event(row)
            after = heads[-1][0]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._db.execute(query, values).fetchall()

    def _event(self, row: tuple[Any, ...]) -> Event:
        sequence, kind, track_id, created, sha256, track, *shape, data = row[:10]
        if kind == "removed":
            return TrackRemoved(track_id, created)
        encoder_id, matcher_id, *blobs = row[10:]
        try:
            audio, text, lyrics, continuation, sketch, matching = map(unpack_vector, blobs)
            if continuation is None or matching is None:
                raise ValueError("it has no embedding")
            features = PackedFeatures(data, (shape[0], shape[1], shape[2]))
            vectors = TrackVectors(audio, text, lyrics, continuation, sketch)
            embedding = Embedding(vectors, matching, encoder_id, matcher_id)
            return TrackAdded(unpack_track(track), sha256, features, embedding, created)
        except ValueError as error:
            raise LedgerError(
                f"{self.path}: event {sequence} ({track_id}) cannot be read: {error}. Restore the file from a backup.",
                code="ledger_damaged",
            ) from None

    def newest(self) -> int:
        """See Ledger."""
        [(last,)] = self._rows(NEWEST)
        return int(last)

    def known(self, track_id: str) -> Known | None:
        """See Ledger."""
        with self._lock, self._translated():
            row = self._db.execute(
                "SELECT kind, content_sha256, track FROM events WHERE track_id = ? ORDER BY sequence DESC LIMIT 1",
                (track_id,),
            ).fetchone()
        return None if row is None or row[0] == "removed" else Known(row[1], unpack_track(row[2]))

    def trim(self) -> int:
        """See Ledger. The file keeps its size: what comes next fills the room."""
        overtaken = [row[0] for row in self._rows(f"SELECT e.sequence FROM events e WHERE {OVERTAKEN}")]
        for start in range(0, len(overtaken), _TRIMMED_AT_ONCE):
            batch = [(sequence,) for sequence in overtaken[start : start + _TRIMMED_AT_ONCE]]
            with self._transaction(more=-len(batch)):
                self._db.executemany("DELETE FROM embeddings WHERE sequence = ?", batch)
                self._db.executemany("DELETE FROM events WHERE sequence = ?", batch)
        if overtaken:
            self._empty_log()  # it has them too
        return len(overtaken)

    def _empty_log(self) -> None:
        """Empty the log beside the file, unless another process reads in it for longer than EMPTIED_S.

        On a connection of its own, which waits for nobody while it holds what writers need: they append meanwhile.
        """
        until = time.monotonic() + EMPTIED_S
        with self._translated(), closing(sqlite3.connect(self.path, 0.0, isolation_level=None)) as other:
            busy = 1
            while busy and time.monotonic() < until:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)")  # writes most of it down without any lock of theirs
                busy = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                time.sleep(0.05 * busy)

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
    def _transaction(self, more: int = 0) -> Iterator[None]:
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
                self._count += more
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
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise LedgerError(
                    f"There is no room left for {self.path}: make some on its disk, and the service goes on by itself.",
                    code="ledger_full",
                    readable=True,
                ) from error
            raise LedgerError(
                f"{self.path} cannot be written ({error}): check its disk, permissions and the space left."
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
