"""The ledger, in SQLite and in Redis: what goes in comes out, the last event counts, what is broken is refused."""

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from service_redis import RedisServer

from index.models.encoder import TrackVectors
from index.tracks.track import Track
from service.ledger.ledger import Embedding, Head, Ledger, LedgerError, Overtaken, TrackAdded, TrackRemoved
from service.ledger.records import PackedFeatures, pack_track, pack_vector, unpack_track, unpack_vector
from service.ledger.redis_streams import EVENT, RedisLedger
from service.ledger.sqlite import FORMAT, SqliteLedger

NOW = "2026-05-31T12:00:00.000+00:00"


def added(track_id: str, seed: int = 0, *, clips: int = 1, parts: bool = True, encoder: str = "e1") -> TrackAdded:
    rng = np.random.default_rng(seed)

    def vector(dims: int = 256) -> np.ndarray:
        return rng.normal(size=dims).astype(np.float32)

    vectors = TrackVectors(vector(), vector() if parts else None, vector() if parts else None, vector(), vector(160))
    embedding = Embedding(vectors, vector(128), encoder, "m1")
    track = Track(track_id, title=f"Song {seed}", genres=("a", "b"), attributes={"mood": ["x"], "bpm": 120.5})
    features = PackedFeatures.pack(rng.integers(0, 256, (clips, 1001, 64), dtype=np.uint8))
    return TrackAdded(track, f"{seed:064x}", features, embedding, NOW)


def assert_same(one: TrackAdded, other: TrackAdded) -> None:
    assert (one.track, one.content_sha256, one.created) == (other.track, other.content_sha256, other.created)
    assert one.features == other.features
    a, b = one.embedding, other.embedding
    assert (a.encoder_id, a.matcher_id) == (b.encoder_id, b.matcher_id)
    np.testing.assert_array_equal(a.matching, b.matching)
    for name in ("audio", "text", "lyrics", "continuation", "sketch"):
        x, y = getattr(a.vectors, name), getattr(b.vectors, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype == np.float32


class SqliteStore:
    """An empty file, and what a test does to it behind the ledger's back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> Ledger:
        return SqliteLedger(self.path)

    def files(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.path.parent.glob(f"{self.path.name}*"))

    def damage(self, sequence: int) -> None:
        with sqlite3.connect(self.path) as damaged:
            damaged.execute("UPDATE events SET track = '{}' WHERE sequence = ?", (sequence,))
        damaged.close()


class RedisStore:
    """The same in an empty Redis."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        server.client.flushall()

    def open(self) -> Ledger:
        return RedisLedger(self.server.url)

    def files(self) -> bytes:
        return self.server.files()

    def damage(self, sequence: int) -> None:
        self.server.client.hset(f"{EVENT}{sequence}", "track", "{}")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture(params=["sqlite", "redis"])
def store(request, path):
    return SqliteStore(path) if request.param == "sqlite" else RedisStore(request.getfixturevalue("redis_server"))


@pytest.fixture
def ledger(store):
    ledger = store.open()
    yield ledger
    ledger.close()


@pytest.fixture
def file_ledger(path):
    ledger = SqliteLedger(path)
    yield ledger
    ledger.close()


@pytest.mark.parametrize(("clips", "parts"), [(1, True), (3, False)])
def test_an_added_track_comes_back_bit_by_bit_after_reopening(store, clips, parts):
    event = added("t", 7, clips=clips, parts=parts)
    ledger = store.open()
    sequence = ledger.append(event)
    ledger.close()
    ledger = store.open()
    assert len(ledger) == 1
    [(replayed_sequence, replayed)] = ledger.replay()
    ledger.close()
    assert replayed_sequence == sequence
    assert_same(replayed, event)


def test_replay_yields_the_last_event_of_every_track_in_order(ledger):
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    last: dict[str, tuple[int, TrackAdded | TrackRemoved]] = {}
    for number in range(90):  # more than one page of 64
        track_id = f"t{rng.integers(70)}"
        event = TrackRemoved(track_id, NOW) if rng.random() < 0.3 else added(track_id, number)
        last[track_id] = (ledger.append(event), event)
    replayed = list(ledger.replay())
    assert [sequence for sequence, _ in replayed] == sorted(sequence for sequence, _ in last.values())
    for sequence, event in replayed:
        assert last[event.track_id][0] == sequence
        expected = last[event.track_id][1]
        if isinstance(expected, TrackAdded):
            assert_same(event, expected)
        else:
            assert event == expected
    assert len(ledger) == 90


def test_trimming_leaves_the_last_event_of_every_track_and_nothing_of_the_others(ledger, store):
    """Replays before and after are the same; no byte of features or metadata that was overtaken is in any file."""
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for number in range(150):  # overtaken ones are more than one transaction of 64
        track_id = f"t{rng.integers(40)}"
        ledger.append(TrackRemoved(track_id, NOW) if rng.random() < 0.3 else added(track_id, number))
    ledger.append(added("secret", 1001))
    ledger.append(TrackRemoved("secret", NOW))
    before = list(ledger.replay())
    secret, kept = added("secret", 1001).features.data, next(e for _, e in before if isinstance(e, TrackAdded))
    assert secret[500:600] in store.files()
    assert ledger.trim() == 152 - len(before)
    assert len(ledger) == len(before)
    assert ledger.trim() == 0
    for (one, event), (other, again) in zip(before, ledger.replay(), strict=True):
        assert one == other
        if isinstance(event, TrackAdded):
            assert_same(again, event)
        else:
            assert again == event
    assert secret[500:600] not in store.files()
    assert b"Song 1001" not in store.files()
    assert kept.features.data[500:600] in store.files()
    assert ledger.append(added("next", 1)) > before[-1][0]  # a number is never given twice


def test_a_replay_goes_on_where_another_ended_and_passes_over_what_is_held(ledger):
    sequences = [ledger.append(added(name, number)) for number, name in enumerate("abcb")]
    ledger.append(TrackRemoved("c", NOW))
    assert [event.track_id for _, event in ledger.replay(after=sequences[0])] == ["b", "c"]
    marks = [Head.of(sequence, event).mark for sequence, event in ledger.replay() if isinstance(event, TrackAdded)]
    assert len({*marks, 0}) == 3
    held = [event.track_id for _, event in ledger.replay(held=lambda head: head.mark == marks[0])]
    assert held == ["b", "c"]
    assert [e.track_id for _, e in ledger.replay(held=lambda _: True)] == ["c"]  # a removal is never held


def test_an_event_is_added_after_the_one_that_was_named_or_not_at_all(ledger):
    assert ledger.newest() == 0
    first = ledger.append(added("a", 1), after=0)
    assert ledger.newest() == first
    with pytest.raises(Overtaken) as refused:
        ledger.append(added("a", 2), after=0)
    assert refused.value.last == first
    assert ledger.known("a").content_sha256 == f"{1:064x}"
    second = ledger.append(TrackRemoved("a", NOW), after=first)
    assert second > first
    with pytest.raises(Overtaken):
        ledger.append(added("a", 2), after=first)
    assert len(ledger) == 2
    ledger.trim()
    assert ledger.append(added("a", 3), after=second) > second


def test_of_writers_that_know_the_same_one_is_first(ledger):
    outcomes = []

    def write(number: int) -> None:
        try:
            outcomes.append(ledger.append(added("t", number), after=0))
        except Overtaken:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes, key=str) == [1, None, None, None]
    assert len(list(ledger.replay())) == 1


def test_what_comes_in_while_it_is_replayed_is_replayed(ledger):
    """Of what is trimmed meanwhile, a few may have been read already: then what overtook them follows."""
    for number in range(40):
        ledger.append(added(f"t{number}", number))
    seen = []
    for _, event in ledger.replay():
        if not seen:
            ledger.append(added("t39", 7))
            ledger.append(TrackRemoved("t38", NOW))
            assert ledger.trim() == 2
        seen.append((event.track_id, type(event).__name__))
    rest = [("t39", "TrackAdded"), ("t38", "TrackRemoved")]
    assert seen == [*((f"t{number}", "TrackAdded") for number in range(38)), *rest]


def test_another_process_can_read_while_one_writes(file_ledger, path):
    file_ledger.append(added("a", 1))
    reader = SqliteLedger(path, read_only=True)
    file_ledger.append(added("b", 2))
    assert [event.track_id for _, event in reader.replay()] == ["a", "b"]
    with pytest.raises(LedgerError, match="cannot be written"):
        reader.append(added("c", 3))
    reader.close()
    file_ledger.check()


def test_a_ledger_that_no_one_has_open_can_be_read(path):
    ledger = SqliteLedger(path)
    ledger.append(added("a", 1))
    ledger.close()
    reader = SqliteLedger(path, read_only=True)
    assert [event.track_id for _, event in reader.replay()] == ["a"]
    reader.close()


def test_known_is_the_last_addition_and_nothing_after_a_removal(ledger):
    assert ledger.known("t") is None
    ledger.append(added("t", 1))
    ledger.append(added("t", 2))
    assert ledger.known("t") == (f"{2:064x}", added("t", 2).track)
    ledger.append(TrackRemoved("t", NOW))
    assert ledger.known("t") is None


def test_renewing_replaces_the_embedding_and_leaves_the_event(ledger):
    sequence = ledger.append(added("t", 1, encoder="old"))
    new = added("t", 2, encoder="new").embedding
    ledger.renew(sequence, new)
    [(_, event)] = ledger.replay()
    old = added("t", 1)
    assert_same(event, TrackAdded(old.track, old.content_sha256, old.features, new, old.created))
    assert len(ledger) == 1
    bare = added("t", 3, parts=False).embedding  # what the new model has no part for goes
    ledger.renew(sequence, bare)
    [(_, event)] = ledger.replay()
    assert_same(event, TrackAdded(old.track, old.content_sha256, old.features, bare, old.created))


def test_events_from_many_threads_all_arrive(ledger):
    def write(worker: int) -> None:
        for number in range(10):
            ledger.append(added(f"{worker}-{number}", number))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {event.track_id for _, event in ledger.replay()} == {f"{w}-{n}" for w in range(4) for n in range(10)}


def test_a_failed_write_leaves_nothing_and_the_next_one_works(ledger):
    class NoShape:
        shape = (1, 2)

    event = added("t")
    object.__setattr__(event, "features", NoShape())
    with pytest.raises(ValueError, match="unpack"):
        ledger.append(event)
    assert len(ledger) == 0
    ledger.append(added("t"))
    assert len(ledger) == 1


def test_a_second_process_cannot_open_it(file_ledger, path):
    with pytest.raises(LedgerError, match="in use by another process") as refused:
        SqliteLedger(path)
    assert refused.value.code == "ledger_busy"
    file_ledger.check()


@pytest.mark.parametrize("content", [b"this is not a database, but it is long enough to be read as one" * 20, b"x"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="not a ledger, or a damaged one") as refused:
        SqliteLedger(path)
    assert refused.value.code == "ledger_damaged"
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="of another program") as refused:
        SqliteLedger(path)
    assert refused.value.code == "ledger_format"
    assert path.read_bytes() == before


def test_a_newer_format_is_refused(path):
    SqliteLedger(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {FORMAT + 1}")
    newer.close()
    with pytest.raises(LedgerError, match=f"in format {FORMAT + 1}, this Debut reads format {FORMAT}"):
        SqliteLedger(path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="cannot be written") as refused:
        SqliteLedger(tmp_path / "file" / "ledger.sqlite")
    assert refused.value.code == "ledger_unwritable"


def test_a_damaged_event_is_an_error_that_names_it(store):
    ledger = store.open()
    sequence = ledger.append(added("broken"))
    ledger.close()
    store.damage(sequence)
    ledger = store.open()
    with pytest.raises(LedgerError, match=f"event {sequence} \\(broken\\) cannot be read") as found:
        list(ledger.replay())
    assert found.value.code == "ledger_damaged"
    ledger.close()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        Track,
        track_id=TEXT.filter(bool),
        title=st.none() | TEXT,
        duration_s=st.none() | st.floats(0, 1e6),
        explicit=st.none() | st.booleans(),
        genres=st.lists(TEXT, max_size=3).map(tuple),
        attributes=st.dictionaries(TEXT, TEXT | st.floats(-1e9, 1e9) | st.lists(TEXT, max_size=2), max_size=3),
    )
)
def test_a_track_survives_packing(track):
    assert unpack_track(pack_track(track)) == track


@pytest.mark.parametrize("text", ["[]", "{}", '{"track_id": "t", "colour": "red"}', "nonsense"])
def test_what_is_no_track_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - orjson's message or ours
        unpack_track(text)


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5))))
def test_features_survive_packing(log_mel):
    unpacked = PackedFeatures.pack(log_mel).unpack()
    np.testing.assert_array_equal(unpacked, log_mel)
    assert unpacked.dtype == np.uint8


def test_damaged_features_are_noticed():
    packed = PackedFeatures.pack(np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    for data in (packed.data[:-1], packed.data[:-1] + bytes([packed.data[-1] ^ 1]), b""):
        with pytest.raises(ValueError, match=r"."):
            PackedFeatures(data, packed.shape).unpack()
    with pytest.raises(ValueError, match="reshape"):
        PackedFeatures(packed.data, (1, 8, 9)).unpack()


def test_vectors_are_little_endian_float32():
    vector = np.array([1.0, -2.5], np.float32)
    assert pack_vector(vector) == b"\x00\x00\x80?\x00\x00 \xc0"
    np.testing.assert_array_equal(unpack_vector(pack_vector(vector)), vector)
    assert pack_vector(None) is None
    assert unpack_vector(None) is None
