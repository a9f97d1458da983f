"""The ledger's tables in SQLite, and the longer of the questions that are put to them."""

APPLICATION_ID = 0x44454255  # "DEBU", in the file's header: tells a ledger from any other SQLite file
FORMAT = 2

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
    sketch BLOB,
    matching BLOB NOT NULL
) STRICT;
CREATE TABLE heartbeat (id INTEGER PRIMARY KEY CHECK (id = 1), written TEXT NOT NULL) STRICT;
"""

NEWEST = "SELECT coalesce(max(sequence), 0) FROM events"

OVERTAKEN = "EXISTS (SELECT 1 FROM events n WHERE n.track_id = e.track_id AND n.sequence > e.sequence)"

HEADS = f"""
SELECT e.sequence, track_id, created, content_sha256 FROM events e
WHERE e.sequence > ? AND NOT {OVERTAKEN} ORDER BY e.sequence LIMIT 1024
"""

EVENT = """
SELECT e.sequence, kind, track_id, created, content_sha256, track, clips, frames, mels, features,
       encoder_id, matcher_id, audio, text, lyrics, continuation, sketch, matching
FROM events e LEFT JOIN embeddings m ON m.sequence = e.sequence
WHERE e.sequence = ?
"""
