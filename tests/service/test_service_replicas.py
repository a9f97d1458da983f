"""Two services that share one ledger on Redis: what one takes in the other recommends, and nobody takes it in twice."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from service_process import RunningService, run_to_exit
from service_redis import RedisServer
from service_uploads import ogg, seeded, tone, upload

SOON_S = 1.0
"""Within which every replica serves what one of them acknowledged."""


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def root(releases, tmp_path_factory):
    """A releases folder of their own, to publish into."""
    return shutil.copytree(releases, tmp_path_factory.mktemp("shared") / "releases", symlinks=True)


@pytest.fixture(scope="module")
def replicas(root, redis_server):
    """Two real processes; every test uses tracks of its own."""
    with ThreadPoolExecutor(2) as pool:
        told = {"decode_workers": 1, "release_poll_s": 0.2}
        starting = [pool.submit(RunningService, root, redis_server.url, **told) for _ in range(2)]
        started = [start.result() for start in starting]
    yield started
    for one in started:
        one.kill()


@pytest.fixture
def clients(replicas) -> list[httpx.Client]:
    return [replica.client for replica in replicas]


def soon(condition: Callable[[], bool], within: float = SOON_S) -> float:
    """Return after how many seconds it was so."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within
        time.sleep(0.005)
    return time.monotonic() - started


def found(client: httpx.Client, track_id: str) -> bool:
    return client.get(f"/tracks/{track_id}").status_code == 200


def vectors_served(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("debut_index_vectors "))


def test_what_one_replica_acknowledges_the_other_recommends_within_a_second(clients, clip):
    one, other = clients
    waits = []
    for number in range(10):
        track_id = f"soon-{number}"
        assert upload(one, clip, track_id=track_id, title=f"Soon {number}").status_code == 201
        waits.append(soon(lambda client=other, track_id=track_id: found(client, track_id)))
        assert other.get(f"/tracks/{track_id}").json()["title"] == f"Soon {number}"
        one, other = other, one
    print(f"seen by the other after {sorted(waits)[5] * 1e3:.0f} ms (median), {max(waits) * 1e3:.0f} ms (longest)")
    for client in clients:
        ids = [f"soon-{number}" for number in range(10)]
        assert set(ids[1:]) <= set(seeded(client, ids[0], k=500))
    assert clients[0].get("/tracks?q=Soon&limit=50").json() == clients[1].get("/tracks?q=Soon&limit=50").json()
    assert seeded(clients[0], "soon-1", k=40) == seeded(clients[1], "soon-1", k=40)


def test_what_one_replica_did_the_other_knows_when_it_writes(clients, clip):
    """Replaced, taken down and taken in again, by turns and without a pause."""
    one, other = clients
    upload(one, clip, track_id="down", title="Before")
    assert upload(other, clip, track_id="down", title="After", replace="true").status_code in (200, 201)
    assert one.delete("/tracks/down").status_code == 200
    assert other.delete("/tracks/down").status_code == 404
    assert upload(other, clip, track_id="down", title="Again").status_code == 201
    soon(lambda: one.get("/tracks/down").json().get("title") == "Again")


def at_once(clients, *calls: Callable[[httpx.Client], httpx.Response]) -> list[httpx.Response]:
    barrier = threading.Barrier(len(calls))

    def send(client, call):
        barrier.wait(10)
        return call(client)

    with ThreadPoolExecutor(len(calls)) as pool:
        pairs = [pool.submit(send, clients[number % 2], call) for number, call in enumerate(calls)]
        return [pair.result(30) for pair in pairs]


def test_the_same_upload_to_both_at_once_is_one_track(clients, clip, redis_server):
    before = vectors_served(clients[0])
    for number in range(5):
        track_id = f"same-{number}"
        answers = at_once(clients, *[lambda client, t=track_id: upload(client, clip, track_id=t, title="Same")] * 4)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    entries = redis_server.client.xrange("debut:ledger:events")
    ids = [fields[b"track_id"].decode() for _, fields in entries]
    assert [ids.count(f"same-{number}") for number in range(5)] == [1] * 5
    for client in clients:
        soon(lambda client=client: vectors_served(client) == before + 5)


def test_of_other_content_at_once_one_is_taken_and_one_is_a_conflict(clients, clip):
    others = ogg(tone(1.5, 500, seed=9))
    for number in range(3):
        answers = at_once(
            clients,
            lambda client, n=number: upload(client, clip, track_id=f"other-{n}"),
            lambda client, n=number: upload(client, others, track_id=f"other-{n}"),
        )
        assert sorted(answer.status_code for answer in answers) == [201, 409]
        [refused] = [answer for answer in answers if answer.status_code == 409]
        assert refused.json()["code"] == "track_exists"


def test_many_tracks_into_both_at_once_are_in_both(clients, clip):
    def send(number: int) -> int:
        return upload(clients[number % 2], clip, track_id=f"many-{number:02}", title="Many").status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(send, range(24))) == {201}
    for client in clients:
        soon(lambda client=client: len(client.get("/tracks?q=Many&limit=50").json()["tracks"]) == 24)


def test_redis_killed_and_started_again_loses_nothing_acknowledged(clients, clip, redis_server):
    """Uploads to both while Redis is killed: 503 with Retry-After, reads go on, and what was 201 is in both."""
    acknowledged: set[str] = set()
    refusals: list[httpx.Response] = []
    stopping = threading.Event()

    def send(worker: int) -> None:
        number = 0
        while not stopping.is_set():
            track_id = f"kill-{worker}-{number}"
            answer = upload(clients[worker], clip, track_id=track_id, title="Kill")
            if answer.status_code in (200, 201):
                acknowledged.add(track_id)
                number += 1
            else:
                refusals.append(answer)
                time.sleep(0.05)

    with ThreadPoolExecutor(2) as pool:
        sending = [pool.submit(send, worker) for worker in range(2)]
        for _ in range(2):
            time.sleep(0.7)
            redis_server.kill()
            time.sleep(0.5)
            for client in clients:
                assert seeded(client, "soon-1", k=5)
                assert client.get("/readyz").status_code == 503
                assert client.get("/metrics").status_code == 200
            redis_server.start()
        time.sleep(0.7)
        stopping.set()
        for one in sending:
            one.result(30)
    assert refusals
    for answer in refusals:
        assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unwritable"), answer.text
        assert int(answer.headers["retry-after"]) >= 1
    print(f"{len(acknowledged)} acknowledged, {len(refusals)} refused")
    assert len(acknowledged) > 4
    for client in clients:
        soon(lambda client=client: all(found(client, track_id) for track_id in acknowledged), within=5)
        soon(lambda client=client: client.get("/readyz").status_code == 200, within=3)  # what it said serves for 1 s
    one, other = clients
    assert upload(one, clip, track_id="kill-after").status_code == 201
    soon(lambda: found(other, "kill-after"))


def test_a_replica_that_starts_later_has_all(clients, root, redis_server):
    with RunningService(root, redis_server.url, decode_workers=1) as late:
        assert vectors_served(late.client) == vectors_served(clients[0])
        assert seeded(late.client, "soon-1", k=40) == seeded(clients[0], "soon-1", k=40)
        assert late.stop() == 0


def test_a_fold_is_served_by_both_and_the_ledger_is_trimmed_for_both(clients, clip, root, redis_server):
    for number in range(3):  # something to trim
        assert upload(clients[0], clip, track_id="often", title=f"Take {number}", replace="true").status_code < 300
    last = {fields[b"track_id"] for _, fields in redis_server.client.xrange("debut:ledger:events")}
    before = clients[0].get("/").json()
    done = run_to_exit("fold", releases=root, ledger=redis_server.url)
    assert done.returncode == 0, done.stderr
    for client in clients:
        soon(lambda client=client: client.get("/").json()["release"] != before["release"], within=30)
        assert client.get("/").json()["tracks"] == before["tracks"]
        assert client.get("/tracks/often").json()["title"] == "Take 2"
    soon(lambda: redis_server.client.xlen("debut:ledger:events") == len(last), within=30)
    one, other = clients
    assert upload(one, clip, track_id="folded-after").status_code == 201
    soon(lambda: found(other, "folded-after"))


def test_replicas_on_other_releases_embed_each_others_tracks_themselves(serve, settings, retrained, clip, redis_server):
    """While a new release is rolled out: one has it, one does not yet."""
    shared = settings.model_copy(update={"ledger": redis_server.url.removesuffix("0") + "1"})
    old, new = serve(shared), serve(shared.model_copy(update={"releases": retrained}))
    assert upload(old, clip, track_id="rolling", title="Rolling").status_code == 201
    soon(lambda: found(new, "rolling"))
    assert upload(new, clip, track_id="back", title="Rolling").status_code == 201
    soon(lambda: found(old, "back"))
    for client in (old, new):
        assert "back" in seeded(client, "rolling", k=3)  # the same recording, in either one's space
    assert len(old.app.state.service.ledger) == len(new.app.state.service.ledger) == 2


def test_a_take_down_just_before_the_ledger_is_asked_is_no_conflict(serve, settings, clip, redis_server, monkeypatch):
    """The track is still in this replica's collection, and no more in the ledger that it is compared with."""
    shared = settings.model_copy(update={"ledger": redis_server.url.removesuffix("0") + "2"})
    one, other = serve(shared), serve(shared)
    assert upload(one, clip, track_id="gone", title="Gone").status_code == 201
    soon(lambda: found(other, "gone"))
    ledger = other.app.state.service.ledger
    ask, asked = ledger.known, []

    def known(track_id: str) -> object:
        if not asked:
            assert one.delete(f"/tracks/{track_id}").status_code == 200
        asked.append(track_id)
        return ask(track_id)

    monkeypatch.setattr(ledger, "known", known)
    again = upload(other, clip, track_id="gone", title="Gone")
    assert (again.status_code, again.json()["outcome"], asked) == (201, "created", ["gone"])
