"""The ledger's Redis: refused when it may forget, an error while it is away, whole after it was killed."""

import threading
import time

import pytest
import redis
from service_redis import RedisServer
from test_service_ledger import NOW, added

from service.ledger.ledger import LedgerError, Overtaken, TrackRemoved
from service.ledger.redis_streams import EVENTS, FORMAT, STATE, RedisLedger
from service.settings import Settings, SettingsError, load_settings


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared):
    """An empty Redis, set as it was at its start."""
    shared.client.flushall()
    yield shared
    for name, value in {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}.items():
        shared.client.config_set(name, value)
    shared.client.config_set("maxmemory", 0)


@pytest.fixture
def ledger(server):
    ledger = RedisLedger(server.url)
    yield ledger
    ledger.close()


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("appendonly", "no", "`CONFIG SET appendonly yes`"),
        ("appendfsync", "everysec", "`CONFIG SET appendfsync always`"),
        ("maxmemory-policy", "allkeys-lru", "`CONFIG SET maxmemory-policy noeviction`"),
    ],
)
def test_a_redis_that_may_forget_is_refused_with_what_to_set(server, name, value, mend):
    server.client.config_set(name, value)
    with pytest.raises(LedgerError, match=f"{name} is {value}") as refused:
        RedisLedger(server.url)
    assert refused.value.code == "ledger_unsafe"
    assert mend in refused.value.detail
    assert "DEBUT_REDIS_UNCHECKED=true" in refused.value.detail
    ledger = RedisLedger(server.url, unchecked=True)
    assert ledger.append(added("t", 1)) == 1
    ledger.check()
    ledger.close()


def test_a_redis_that_does_not_tell_is_refused_unless_it_is_trusted(tmp_path):
    with RedisServer(tmp_path / "managed", rename_command='CONFIG ""') as managed:
        with pytest.raises(LedgerError, match="does not tell whether it keeps") as refused:
            RedisLedger(managed.url)
        assert refused.value.code == "ledger_unsafe"
        for words in ("appendfsync always", "maxmemory-policy noeviction", "DEBUT_REDIS_UNCHECKED=true"):
            assert words in refused.value.detail
        ledger = RedisLedger(managed.url, unchecked=True)
        ledger.append(added("t", 1))
        ledger.append(added("t", 2))
        assert ledger.trim() == 1
        ledger.close()


def test_the_password_comes_from_a_file(tmp_path):
    secret = tmp_path / "password"
    with RedisServer(tmp_path / "locked", requirepass="geheim") as locked:
        for given, words in ((None, "DEBUT_REDIS_PASSWORD_FILE"), (secret, "DEBUT_REDIS_PASSWORD_FILE")):
            secret.write_text("guessed\n")
            with pytest.raises(LedgerError, match="does not let the service in") as refused:
                RedisLedger(locked.url, given)
            assert words in refused.value.detail
            assert "guessed" not in refused.value.detail
        secret.write_text("geheim\n")
        ledger = RedisLedger(locked.url, secret)
        ledger.check()
        ledger.close()
    with pytest.raises(LedgerError, match="cannot be read"):
        RedisLedger(locked.url, tmp_path / "none")


def test_a_password_in_the_url_is_refused_and_not_repeated(monkeypatch, tmp_path):
    for url in ("redis://:geheim@host/0", "rediss://me:geheim@host", "redis://host/0?password=geheim"):
        monkeypatch.setenv("DEBUT_LEDGER", url)
        with pytest.raises(SettingsError, match="DEBUT_REDIS_PASSWORD_FILE") as refused:
            load_settings()
        assert "geheim" not in refused.value.detail
    monkeypatch.setenv("DEBUT_LEDGER", "redis://me@host:6379/0")
    assert load_settings().ledger == "redis://me@host:6379/0"
    monkeypatch.setenv("DEBUT_LEDGER", "http://host")
    with pytest.raises(SettingsError, match="DEBUT_LEDGER=http://host cannot be used"):
        load_settings()
    assert Settings(ledger=tmp_path).ledger == tmp_path


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://127.0.0.1:99999/0", "redis://host:port/0"])
def test_a_redis_that_is_not_there_is_a_sentence(url):
    with pytest.raises(LedgerError, match="DEBUT_LEDGER"):
        RedisLedger(url)


def test_a_newer_format_and_keys_of_another_program_are_refused_and_left_alone(server):
    server.client.hset(STATE, "format", FORMAT + 1)
    with pytest.raises(LedgerError, match=f"in format {FORMAT + 1}, this Debut reads format {FORMAT}") as refused:
        RedisLedger(server.url)
    assert refused.value.code == "ledger_format"
    server.client.flushall()
    server.client.set(EVENTS, "mine")
    with pytest.raises(LedgerError, match="WRONGTYPE"):
        RedisLedger(server.url)
    assert server.client.get(EVENTS) == b"mine"


def test_a_full_redis_takes_nothing_and_the_next_event_is_whole(ledger, server):
    ledger.append(added("kept", 1))
    server.client.config_set("maxmemory", 1)
    for write in (lambda: ledger.append(added("t", 2)), ledger.check):
        with pytest.raises(LedgerError, match="maxmemory"):
            write()
    server.client.config_set("maxmemory", 0)
    assert [event.track_id for _, event in ledger.replay()] == ["kept"]
    assert ledger.known("t") is None
    assert ledger.append(added("t", 2)) == 2


def test_what_was_acknowledged_survives_sigkill_and_the_ledger_goes_on(ledger, server):
    """Four writers while Redis is killed and started: every number that was returned is there, none twice."""
    acknowledged: dict[int, str] = {}
    refused: list[LedgerError] = []
    stopping = threading.Event()

    def write(worker: int) -> None:
        number = 0
        while not stopping.is_set():
            track_id = f"{worker}-{number}"
            number += 1
            try:
                acknowledged[ledger.append(added(track_id, number))] = track_id
            except LedgerError as error:
                refused.append(error)
                time.sleep(0.01)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.2)
        server.kill()
        time.sleep(0.05)
        server.start()
    time.sleep(0.1)
    stopping.set()
    for thread in threads:
        thread.join(30)
    assert refused, "Redis was never away"
    assert all(error.code == "ledger_unwritable" for error in refused)
    there = {sequence: event.track_id for sequence, event in ledger.replay()}
    assert len(acknowledged) > 20
    assert acknowledged.items() <= there.items()
    ledger.check()


def test_a_redis_that_lost_events_is_noticed(ledger, server):
    for number in range(3):
        ledger.append(added(f"t{number}", number))
    server.client.flushall()
    for write in (lambda: ledger.append(added("u", 7), after=3), ledger.check):
        with pytest.raises(LedgerError, match=r"has lost events 1 to 3") as lost:
            write()
        assert lost.value.code == "ledger_lost"
    fresh = RedisLedger(server.url)  # restarted: goes on with what is left
    assert fresh.append(added("u", 7), after=0) == 1
    fresh.close()


def test_two_replicas_see_each_other_and_trim_at_once(ledger, server):
    other = RedisLedger(server.url)
    assert not other.wait(0, 0.05)
    woken = threading.Event()
    waiting = threading.Thread(target=lambda: other.wait(0, 4) and woken.set())
    waiting.start()
    for number in range(200):
        ledger.append(added(f"t{number % 20}", number))
    assert woken.wait(4)
    waiting.join()
    with pytest.raises(Overtaken):
        other.append(TrackRemoved("t1", NOW), after=199)
    trimmed: list[int] = []
    threads = [threading.Thread(target=lambda one=one: trimmed.append(one.trim())) for one in (ledger, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(trimmed) == 180
    assert len(ledger) == len(other) == 20
    assert [e.content_sha256 for _, e in other.replay()] == [f"{number:064x}" for number in range(180, 200)]
    assert len(server.client.keys("debut:ledger:event:*")) == 20
    other.renew(1, added("t0", 1).embedding)  # an event that is gone stays away
    assert len(server.client.keys("debut:ledger:event:*")) == 20
    other.close()


def test_a_redis_that_hangs_is_an_error_and_not_for_ever(server, monkeypatch):
    monkeypatch.setattr("service.ledger.redis_connection.ANSWER_S", 0.2)
    ledger = RedisLedger(server.url)
    pausing = redis.Redis(port=server.port)
    pausing.execute_command("CLIENT PAUSE", 600, "ALL")
    with pytest.raises(LedgerError, match="does not answer"):
        ledger.check()
    time.sleep(0.7)
    ledger.check()
    pausing.close()
    ledger.close()
