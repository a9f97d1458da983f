"""/readyz: one transaction a second whoever asks, an answer though the ledger or a name server gives none."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from service_redis import RedisServer
from service_uploads import seeded, upload
from test_service_problems import assert_problem

from service.ledger import names, probe, sqlite
from service.ledger.ledger import LedgerError
from service.ledger.redis_streams import RedisLedger
from service.ledger.sqlite import SqliteLedger


@pytest.fixture
def checks(monkeypatch):
    """When each transaction was made."""
    made: list[float] = []
    real = SqliteLedger.check

    def check(ledger):
        made.append(time.monotonic())
        real(ledger)

    monkeypatch.setattr(SqliteLedger, "check", check)
    return made


def test_many_probes_are_one_transaction_a_second(client, checks):
    until = time.monotonic() + 2.5
    asked = 0
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < until:
            assert {answer.status_code for answer in pool.map(client.get, ["/readyz"] * 8)} == {200}
            asked += 8
    print(f"{asked} probes, {len(checks)} transactions")
    assert asked > 50
    assert 2 <= len(checks) <= 3
    assert all(later - one >= probe.FRESH_S for one, later in pairwise(checks))


def test_what_failed_is_told_for_a_second_and_then_asked_anew(client, monkeypatch):
    def full(_):
        raise LedgerError("there is no room: make some.", code="ledger_full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteLedger, "check", full)
        assert "there is no room" in assert_problem(client.get("/readyz"), 503, "not_ready").detail
    assert client.get("/readyz").status_code == 503
    time.sleep(probe.FRESH_S)
    assert client.get("/readyz").json()["ledger"] == "writable"


def test_a_ledger_that_hangs_is_not_ready_soon_and_holds_up_nobody(client, clip, monkeypatch):
    go_on, begun = threading.Event(), []
    real = SqliteLedger.check

    def hang(ledger):
        begun.append(1)
        go_on.wait(20)
        real(ledger)

    monkeypatch.setattr(SqliteLedger, "check", hang)
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(client.get, "/readyz") for _ in range(4)]
            assert upload(client, clip, track_id="t").status_code == 201
            for answer in answers:
                assert "has not answered" in assert_problem(answer.result(10), 503, "not_ready").detail
        assert time.monotonic() - started < probe.PATIENCE_S + 2
        started = time.monotonic()
        assert client.get("/readyz").status_code == 503  # nobody waits for the same silence twice
        assert time.monotonic() - started < 1
        assert len(begun) == 1
    finally:
        go_on.set()
    time.sleep(0.1)
    assert client.get("/readyz").status_code == 200


def test_a_ledger_that_hangs_for_ever_gathers_no_waiters_and_does_not_hold_up_the_end(tmp_path, monkeypatch):
    go_on, ledger = threading.Event(), SqliteLedger(tmp_path / "ledger.sqlite")
    threads = threading.active_count()

    def hang():
        with ledger._lock:  # as a transaction does
            go_on.wait(60)

    async def ask() -> set[int]:
        """How many wait for the answer after each question."""
        waiting = set()
        for _ in range(20):
            with pytest.raises(LedgerError, match="has not answered"):
                await asking.check()
            waiting.add(len(asking._asked._done_callbacks) + len(asking._awaited._callbacks or ()))
        return waiting

    monkeypatch.setattr(ledger, "check", hang)
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    monkeypatch.setattr(sqlite, "CLOSED_S", 0.2)
    asking = probe.Probe(ledger)
    try:
        assert len(asyncio.run(ask())) == 1
        assert threading.active_count() == threads + 1
        assert next(thread for thread in threading.enumerate() if thread.name == "probe").daemon  # no exit waits for it
        closing = threading.Thread(target=lambda: (asking.close(), ledger.close()), daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
    finally:
        go_on.set()
    asking.close()
    ledger.close()


def test_a_probe_that_finds_no_thread_says_so_and_asks_again(tmp_path, monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    async def ask():
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            with pytest.raises(LedgerError, match="there is no thread to ask it"):
                await asking.check()
        await asking.check()

    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    asking = probe.Probe(ledger)
    asyncio.run(ask())
    asking.close()
    ledger.close()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def silent_names(monkeypatch):
    """A name server that does not answer, once `set`; and how often it was asked."""
    silent, over, asked = threading.Event(), threading.Event(), []
    real = socket.getaddrinfo

    def look_up(*arguments, **more):
        if silent.is_set():
            asked.append(arguments[0])
            over.wait(30)
        return real(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    silent.over, silent.asked = over, asked
    yield silent
    over.set()


def named(server: RedisServer) -> str:
    return server.url.replace("127.0.0.1", "localhost")


def test_a_name_server_that_is_silent_holds_up_neither_probes_nor_writes_nor_reads(
    serve, settings, clip, redis_server, silent_names, monkeypatch
):
    """As in a container whose name server is gone, when the connections to Redis break."""
    client = serve(settings.model_copy(update={"ledger": named(redis_server)}))
    assert upload(client, clip, track_id="a").status_code == 201
    silent_names.set()
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    longest = 0.0
    for call in (lambda: client.get("/readyz"), lambda: client.delete("/tracks/a"), lambda: client.get("/readyz")):
        started = time.monotonic()
        answer = call()
        assert answer.status_code == 503, answer.text
        longest = max(longest, time.monotonic() - started)
        assert seeded(client, "a", k=3)
    assert "localhost is not resolved within 2 s" in client.delete("/tracks/a").json()["detail"]
    assert longest < 2 * names.RESOLVE_S + 1
    assert len(silent_names.asked) == 1, "a thread for every attempt"
    silent_names.clear()
    silent_names.over.set()
    started = time.monotonic()
    while client.delete("/tracks/a").status_code != 200:
        assert time.monotonic() - started < 5
        time.sleep(0.02)
    print(f"refused after {longest:.1f} s at most, well again after {time.monotonic() - started:.2f} s")


def test_a_silent_redis_is_waited_for_by_one_caller_at_a_time(redis_server, silent_names):
    ledger = RedisLedger(named(redis_server))
    ledger._redis.commands.connection_pool.disconnect()
    silent_names.set()
    seconds = []

    def ask(_):
        started = time.monotonic()
        with pytest.raises(LedgerError, match="is not resolved"):
            ledger.newest()
        seconds.append(time.monotonic() - started)

    ask(0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert seconds[0] > 1
    assert max(seconds[1:]) < 0.5
    silent_names.clear()
    silent_names.over.set()
    assert not ledger.wait(10, 0.01)  # patient: the first to hear it
    assert ledger.newest() == ledger.newest()
    ledger.close()


def test_a_name_that_is_not_known_is_a_sentence():
    with pytest.raises(LedgerError, match=r"does not answer .*check DEBUT_LEDGER"):
        RedisLedger("redis://debut.invalid:6379/0")


def test_a_look_up_that_found_no_thread_is_tried_again(monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(OSError, match="no thread for the look-up of localhost"):
            names.addresses("localhost", 1)
    assert "127.0.0.1" in names.addresses("localhost", 1)


def test_tls_asks_for_the_certificate_of_the_name(monkeypatch):
    ledger_names = []

    def connect(connection):
        ledger_names.append(connection.host)
        raise OSError("no further")

    monkeypatch.setattr("redis.Connection._connect", connect)
    connection = names.NamedTls(host="localhost", port=1)
    with pytest.raises(OSError, match="no further"):
        connection._connect()
    assert ledger_names
    assert "localhost" not in ledger_names  # the socket goes to an address
    assert connection.host == "localhost"
