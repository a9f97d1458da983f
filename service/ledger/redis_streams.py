"""The ledger on Redis Streams: one for all replicas that share a catalogue, each of which follows what the others do.

A stream has what happened, in order; a hash for each added track has what the event carries. In Redis:

    debut:ledger:events   stream: <sequence>-0 -> track_id, created, content_sha256 (empty for a removal)
    debut:ledger:event:N  hash of one addition: metadata, features, embedding (as in service.ledger.schema)
    debut:ledger:last     hash: track_id -> its newest event's sequence number
    debut:ledger:state    hash: format, last (the newest sequence number), checked
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from index.models.encoder import TrackVectors
from service.ledger.ledger import Embedding, Event, Head, Known, LedgerError, Overtaken, TrackAdded, TrackRemoved
from service.ledger.records import PackedFeatures, pack_track, pack_vector, unpack_track, unpack_vector
from service.ledger.redis_connection import Connection

FORMAT = 2

EVENTS, EVENT = "debut:ledger:events", "debut:ledger:event:"
LAST, STATE = "debut:ledger:last", "debut:ledger:state"

_HEADS_AT_ONCE, _EVENTS_AT_ONCE, _TRIMMED_AT_ONCE = 1024, 16, 64
_BLOBS = ("audio", "text", "lyrics", "continuation", "sketch", "matching")

# Scripts run one at a time, whole, and nothing else runs meanwhile. XADD is the first that writes: when there is no
# memory it fails, and nothing was written.
_APPEND = f"""
local after, track_id = ARGV[1], ARGV[2]
local last = tonumber(redis.call('HGET', '{STATE}', 'last') or '0')
if after ~= '' and tonumber(after) ~= last then return {{0, last, 0}} end
local sequence = string.format('%d', last + 1)
redis.call('XADD', '{EVENTS}', sequence .. '-0',
    'track_id', track_id, 'created', ARGV[3], 'content_sha256', ARGV[4])
if #ARGV > 4 then redis.call('HSET', '{EVENT}' .. sequence, unpack(ARGV, 5)) end
redis.call('HSET', '{LAST}', track_id, sequence)
redis.call('HSET', '{STATE}', 'last', sequence, 'format', '{FORMAT}')
return {{1, last + 1, redis.call('XLEN', '{EVENTS}')}}
"""

_RENEW = f"""
local event = '{EVENT}' .. ARGV[1]
if redis.call('EXISTS', event) == 0 then return 0 end
redis.call('HDEL', event, 'audio', 'text', 'lyrics')
redis.call('HSET', event, unpack(ARGV, 2))
return 1
"""

_KNOWN = f"""
local sequence = redis.call('HGET', '{LAST}', ARGV[1])
if not sequence then return {{}} end
return redis.call('HMGET', '{EVENT}' .. sequence, 'content_sha256', 'track')
"""

_CHECK = f"""
redis.call('HSET', '{STATE}', 'checked', ARGV[1])
return redis.call('HGET', '{STATE}', 'last') or '0'
"""


class RedisLedger:
    """service.ledger.ledger.SharedLedger in Redis (6.2 or newer) or Valkey."""

    def __init__(self, url: str, password_file: Path | None = None, *, unchecked: bool = False) -> None:
        """Connect; nothing is written.

        Raises LedgerError: ledger_unwritable (away, wrong password), ledger_unsafe (it may forget what it acknowledged,
        or does not tell; not with `unchecked`), ledger_format (a newer Debut's).
        """
        self._redis = Connection(url, password_file)
        self.name = self._redis.name
        self._newest = 0
        try:
            self._redis.open(unchecked)
            with self._redis.translated():
                pipe = self._redis.commands.pipeline(transaction=False)
                found, self._count = pipe.hget(STATE, "format").xlen(EVENTS).execute()
            if found is not None and found != str(FORMAT).encode():
                raise LedgerError(
                    f"{self.name} has a ledger in format {found.decode()}, this Debut reads format {FORMAT}: run the "
                    "version that wrote it, or a newer one.",
                    code="ledger_format",
                )
        except BaseException:
            self.close()
            raise

    def append(self, event: Event, after: int | None = None) -> int:
        """See Ledger."""
        sha256, fields = (event.content_sha256, _fields(event)) if isinstance(event, TrackAdded) else ("", {})
        known = max(self._newest, after or 0)
        written, last, count = self._redis.write(
            _APPEND,
            "" if after is None else after,
            event.track_id,
            event.created,
            sha256,
            *chain.from_iterable(fields.items()),
        )
        self._see(last, known)
        if not written:
            raise Overtaken(last)
        self._count = count
        return int(last)

    def _see(self, last: int, known: int) -> None:
        """Note the newest event. Raises LedgerError if `known`, which was there before, is not any more."""
        if last < known:
            raise LedgerError(
                f"{self.name} has lost events {last + 1} to {known}: bring its append-only file back, or restart every "
                "replica to go on with what is left, and upload what is missing again.",
                code="ledger_lost",
            )
        self._newest = max(self._newest, last)

    def renew(self, sequence: int, embedding: Embedding) -> None:
        """See Ledger. An event that was trimmed meanwhile stays away."""
        self._redis.write(_RENEW, sequence, *chain.from_iterable(_embedding_fields(embedding).items()))

    def replay(self, after: int = 0, held: Callable[[Head], bool] | None = None) -> Iterator[tuple[int, Event]]:
        """See Ledger. Asks for a few events at once: every question travels, and all of them may not fit in memory."""
        while page := self._page(after):
            wanted = (
                head
                for head, overtaken in page
                if not overtaken and not (held is not None and head.content_sha256 is not None and held(head))
            )
            while heads := list(islice(wanted, _EVENTS_AT_ONCE)):
                yield from self._events(heads)
            after = page[-1][0].sequence

    def _page(self, after: int) -> list[tuple[Head, bool]]:
        """Return the next heads, and whether a later event of the same track has overtaken each."""
        with self._redis.translated():
            pipe = self._redis.commands.pipeline(transaction=False).xlen(EVENTS)
            self._count, entries = pipe.xrange(EVENTS, f"{after + 1}-0", "+", _HEADS_AT_ONCE).execute()
            heads = [_head(entry_id, fields) for entry_id, fields in entries]
            newest: Any = self._redis.commands.hmget(LAST, [head.track_id for head in heads]) if heads else []
        return [(head, int(last or 0) > head.sequence) for head, last in zip(heads, newest, strict=True)]

    def _events(self, heads: list[Head]) -> Iterator[tuple[int, Event]]:
        with self._redis.translated():
            pipe = self._redis.commands.pipeline(transaction=False)
            for head in heads:
                pipe.hgetall(f"{EVENT}{head.sequence}")
            rows = pipe.execute()
        for head, row in zip(heads, rows, strict=True):
            if head.content_sha256 is None:
                yield head.sequence, TrackRemoved(head.track_id, head.created)
            elif row:  # else overtaken since, and trimmed
                yield head.sequence, self._added(head, row)

    def _added(self, head: Head, row: dict[bytes, bytes]) -> TrackAdded:
        try:
            return _unpack(head, row)
        except (KeyError, ValueError) as error:
            raise LedgerError(
                f"{self.name}: event {head.sequence} ({head.track_id}) cannot be read: {error}. Restore its data from "
                "a backup.",
                code="ledger_damaged",
            ) from None

    def wait(self, after: int, seconds: float) -> bool:
        """See SharedLedger. `seconds` must be less than Redis is given to answer."""
        block = 1 if self._redis.silent else int(seconds * 1000)  # so that it is known at once when Redis is back
        with self._redis.translated(patient=True):
            return bool(self._redis.commands.xread({EVENTS: f"{after}-0"}, count=1, block=block))

    def newest(self) -> int:
        """See Ledger."""
        known = self._newest
        with self._redis.translated():
            last = int(self._redis.commands.hget(STATE, "last") or 0)
        self._see(last, known)
        return last

    def known(self, track_id: str) -> Known | None:
        """See Ledger."""
        with self._redis.translated():
            found: Any = self._redis.commands.execute_command("EVAL", _KNOWN, 0, track_id)
        sha256, track = (*found, None, None)[:2]
        return None if track is None else Known(sha256.decode(), unpack_track(track.decode()))

    def trim(self) -> int:
        """See Ledger. Redis then writes its file anew, where what was trimmed would else still stand.

        Of what was overtaken, at most its head (id, time and hash, no metadata) stays in the stream's memory until its
        neighbours go as well.
        """
        trimmed, after = 0, 0
        while page := self._page(after):
            overtaken = (head.sequence for head, is_overtaken in page if is_overtaken)
            while batch := list(islice(overtaken, _TRIMMED_AT_ONCE)):
                with self._redis.translated():
                    pipe = self._redis.commands.pipeline()
                    pipe.xdel(EVENTS, *(f"{sequence}-0" for sequence in batch))
                    pipe.unlink(*(f"{EVENT}{sequence}" for sequence in batch))
                    trimmed += pipe.execute()[0]
            after = page[-1][0].sequence
        if trimmed:
            self._rewrite()
        return trimmed

    def _rewrite(self) -> None:
        # An error of Redis's own: one is under way, or a managed Redis does that by itself.
        with self._redis.translated(), suppress(ResponseError):
            self._redis.commands.bgrewriteaof()

    def check(self) -> None:
        """See Ledger."""
        known = self._newest
        self._see(int(self._redis.write(_CHECK, datetime.now(UTC).isoformat())), known)

    def __len__(self) -> int:
        """See Ledger."""
        return int(self._count)  # as last heard: metrics do not wait for Redis

    def close(self) -> None:
        """See Ledger."""
        self._redis.close()


def _fields(event: TrackAdded) -> dict[str, Any]:
    clips, frames, mels = event.features.shape
    facts = {"content_sha256": event.content_sha256, "track": pack_track(event.track)}
    features = {"clips": clips, "frames": frames, "mels": mels, "features": event.features.data}
    return facts | features | _embedding_fields(event.embedding)


def _embedding_fields(embedding: Embedding) -> dict[str, Any]:
    v = embedding.vectors
    blobs = map(pack_vector, (v.audio, v.text, v.lyrics, v.continuation, v.sketch, embedding.matching))
    present = {name: blob for name, blob in zip(_BLOBS, blobs, strict=True) if blob is not None}
    return {"encoder_id": embedding.encoder_id, "matcher_id": embedding.matcher_id} | present


def _head(entry_id: bytes, fields: dict[bytes, bytes]) -> Head:
    sha256 = fields[b"content_sha256"].decode() or None
    return Head(int(entry_id.partition(b"-")[0]), fields[b"track_id"].decode(), fields[b"created"].decode(), sha256)


def _unpack(head: Head, row: dict[bytes, bytes]) -> TrackAdded:
    """Return the addition. Raises KeyError or ValueError when it is damaged."""
    audio, text, lyrics, continuation, sketch, matching = (unpack_vector(row.get(name.encode())) for name in _BLOBS)
    if continuation is None or matching is None:
        raise ValueError("it has no embedding")
    shape = (int(row[b"clips"]), int(row[b"frames"]), int(row[b"mels"]))
    vectors = TrackVectors(audio, text, lyrics, continuation, sketch)
    embedding = Embedding(vectors, matching, row[b"encoder_id"].decode(), row[b"matcher_id"].decode())
    features = PackedFeatures(row[b"features"], shape)
    track = unpack_track(row[b"track"].decode())
    return TrackAdded(track, row[b"content_sha256"].decode(), features, embedding, head.created)
