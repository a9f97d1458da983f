"""The ledger's Redis stops, hangs or takes no writes: reads go on, writes are told to come back, then all is well."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest
from service_process import RunningService
from service_redis import RedisServer
from service_uploads import seeded, upload
from test_service_problems import assert_problem

from service.ledger.ledger import TrackAdded
from service.ledger.redis_connection import ANSWER_S
from service.ledger.redis_streams import RedisLedger

BOUND_S = ANSWER_S + 3
"""Within which a write is refused whatever Redis does, and however many others are refused at the same time."""

SOON_S = 5.0
"""Within which everything is well again once Redis is."""

LASTS_S = 0.4


@dataclass(frozen=True)
class Fault:
    """What becomes of Redis, how it ends, for how long, and a word of what the service has to say of it."""

    begin: Callable[[RedisServer], object]
    end: Callable[[RedisServer], object]
    word: str
    lasts_s: float = LASTS_S


def _setting(name: str, value: object, after: object) -> tuple[Callable[[RedisServer], object], ...]:
    return (lambda redis: redis.client.config_set(name, value), lambda redis: redis.client.config_set(name, after))


FAULTS = {
    "killed": Fault(RedisServer.kill, RedisServer.start, "does not answer"),
    "stopped": Fault(lambda redis: redis.stop(), RedisServer.start, "does not answer"),
    "hanging": Fault(
        lambda redis: redis.process.send_signal(signal.SIGSTOP),
        lambda redis: redis.process.send_signal(signal.SIGCONT),
        "does not answer",
        lasts_s=ANSWER_S + 0.8,
    ),
    "full": Fault(*_setting("maxmemory", 1, 0), "maxmemory"),
    "without its copies": Fault(*_setting("min-replicas-to-write", 1, 0), "min-replicas-to-write"),
    "a copy itself": Fault(
        lambda redis: redis.client.replicaof("127.0.0.1", "1"),
        lambda redis: redis.client.replicaof("no", "one"),
        "read-only copy",
    ),
}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def running(releases, redis_server):
    with RunningService(releases, redis_server.url, decode_workers=1, log_level="error") as running:
        yield running


@dataclass
class Load:
    """Uploads and take-downs from several threads: what was acknowledged, what was refused, and after how long."""

    client: httpx.Client
    clip: bytes
    added: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    refused: list[tuple[httpx.Response, float]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def upload(self, name: str) -> None:
        number = 0
        while not self.stopping.is_set():
            track_id = f"{name}-{number}"
            number += self._send(lambda track_id=track_id: upload(self.client, self.clip, track_id=track_id), track_id)

    def take_down(self, track_id: str) -> None:
        while not self.stopping.is_set() and track_id not in self.removed:
            if self._send(lambda: self.client.delete(f"/tracks/{track_id}"), None):
                self.removed.add(track_id)

    def _send(self, call: Callable[[], httpx.Response], track_id: str | None) -> bool:
        started = time.monotonic()
        answer = call()
        if answer.status_code in (200, 201):
            self.added |= {track_id} - {None}
            return True
        self.refused.append((answer, time.monotonic() - started))
        self.stopping.wait(0.02)
        return False


def reads(client: httpx.Client, known: str) -> float:
    """Ask for everything that only reads; return the longest answer's seconds."""
    longest = 0.0
    for call in (
        lambda: seeded(client, known, k=5),
        lambda: client.get(f"/audience/{known}", params={"limit": 5}),
        lambda: client.get(f"/tracks/{known}"),
        lambda: client.get("/tracks", params={"q": "a"}),
    ):
        started = time.monotonic()
        answer = call()
        longest = max(longest, time.monotonic() - started)
        assert isinstance(answer, list) or answer.status_code == 200, answer.text
    return longest


def recovers(client: httpx.Client, clip: bytes, track_id: str) -> float:
    """Return after how many seconds a track is taken in again."""
    started = time.monotonic()
    while (answer := upload(client, clip, track_id=track_id)).status_code != 201:
        assert time.monotonic() - started < SOON_S, answer.text
        time.sleep(0.02)
    return time.monotonic() - started


def until_status(client: httpx.Client, status: int) -> float:
    """Return after how many seconds /readyz says so: what it said last serves for a second."""
    started = time.monotonic()
    while client.get("/readyz").status_code != status:
        assert time.monotonic() - started < SOON_S
        time.sleep(0.02)
    return time.monotonic() - started


LONG = ("stopped", "without its copies")  # much as others are
NAMES = [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in FAULTS]


@pytest.mark.parametrize("name", NAMES)
def test_reads_go_on_writes_are_told_to_come_back_and_nothing_is_lost(running, redis_server, clip, name):
    client, fault = running.client, FAULTS[name]
    known = client.get("/tracks", params={"q": "a"}).json()["tracks"][0]["track_id"]
    doomed = [f"doomed-{number} {name}" for number in range(3)]
    for track_id in doomed:
        assert upload(client, clip, track_id=track_id).status_code == 201
    load, longest, count = Load(client, clip), 0.0, 0
    with ThreadPoolExecutor(7) as pool:
        sending = [pool.submit(load.upload, f"{name} {number}") for number in range(3)]
        time.sleep(0.2)
        fault.begin(redis_server)
        try:
            sending += [pool.submit(load.take_down, track_id) for track_id in doomed]
            until = time.monotonic() + fault.lasts_s
            while time.monotonic() < until:
                longest, count = max(longest, reads(client, known)), count + 4
                time.sleep(0.01)
            ready_s = until_status(client, 503)
        finally:
            fault.end(redis_server)
            try:
                back_s = recovers(client, clip, f"after {name}")
            finally:
                load.stopping.set()
        for one in sending:
            one.result(30)
    assert load.refused
    for answer, seconds in load.refused:
        problem = assert_problem(answer, 503, "ledger_unwritable")
        assert int(answer.headers["retry-after"]) >= 1
        assert fault.word in problem.detail
        assert seconds < BOUND_S
    seconds = [after for _, after in load.refused]
    print(
        f"{name}: {count} reads, the longest {longest * 1e3:.0f} ms; {len(seconds)} writes refused, the last after "
        f"{max(seconds):.2f} s, {sum(s > 1 for s in seconds)} after more than 1 s; /readyz refused after {ready_s:.2f} "
        f"s; well again after {back_s:.2f} s; {len(load.added)} acknowledged are there"
    )
    assert sum(s < 1 for s in seconds) >= 3, "each waits as long as the one before"
    assert longest < BOUND_S / 4
    until_status(client, 200)
    ledger = RedisLedger(redis_server.url)
    there = {event.track_id for _, event in ledger.replay() if isinstance(event, TrackAdded)}
    ledger.close()
    assert load.added <= there
    assert not load.removed & there
    assert all(client.get(f"/tracks/{track_id}").status_code == 200 for track_id in load.added)
    assert all(client.get(f"/tracks/{track_id}").status_code == 404 for track_id in load.removed)


@pytest.mark.parametrize("name", ["full", "without its copies"])
def test_a_service_starts_and_recommends_while_redis_takes_no_writes(releases, redis_server, clip, name):
    fault = FAULTS[name]
    fault.begin(redis_server)
    try:
        with RunningService(releases, redis_server.url, decode_workers=1, log_level="error") as started:
            known = started.client.get("/tracks", params={"q": "a"}).json()["tracks"][0]["track_id"]
            reads(started.client, known)
            assert fault.word in assert_problem(started.client.get("/readyz"), 503, "not_ready").detail
            refused = upload(started.client, clip, track_id=f"started {name}")
            assert fault.word in assert_problem(refused, 503, "ledger_unwritable").detail
            fault.end(redis_server)
            recovers(started.client, clip, f"started {name}")
    finally:
        fault.end(redis_server)
