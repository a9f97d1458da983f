"""Nothing is taken down: whatever is slow, endless, crowded or crooked is refused, and others are served meanwhile."""

import asyncio
import os
import selectors
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from service_process import RunningService
from service_wire import Dripping, Wire, head, problem_in
from starlette.requests import Request
from test_service_problems import assert_problem

from service.http import bodies
from service.http.problems import Problem

LIMIT, SLACK = 256 * 2**10, 64 * 2**10
PIECE = 8 * 2**10


@pytest.fixture(scope="module")
def spool(tmp_path_factory) -> Path:
    """Where the running service spools uploads."""
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="module")
def running(releases, tmp_path_factory, spool):
    """One real process with short patience and small limits."""
    ledger = tmp_path_factory.mktemp("running") / "ledger.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(spool))
        service = RunningService(
            releases,
            ledger,
            decode_workers=1,
            max_upload_bytes=LIMIT,
            max_json_bytes=LIMIT,
            spool_bytes=2**14,
            header_timeout_s=1,
            body_timeout_s=1,
            upload_timeout_s=2,
            answer_timeout_s=2,
            max_connections=60,
        )
    with service:
        yield service


def files_left(running: RunningService, spool: Path) -> list[str]:
    """Temporary files on disk, and unnamed ones that the service still holds."""
    held = []
    for link in Path(f"/proc/{running.process.pid}/fd").iterdir():
        try:
            held.append(os.readlink(link))
        except FileNotFoundError:
            continue
    return [*map(str, spool.iterdir()), *(name for name in held if str(spool) in name)]


FORM_HEAD = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
KINDS = {
    "raw": ("/ingest-track", "audio/ogg", b"x"),
    "form": ("/ingest-track", "multipart/form-data; boundary=b", FORM_HEAD),
    "json": ("/continue-playlist", "application/json", b'{"seeds": ["'),
}


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_too_large_is_refused_at_once_and_leaves_nothing(running, spool, kind, declared):
    path, media, start = KINDS[kind]
    length = f"Content-Length: {10 * LIMIT}" if declared else "Transfer-Encoding: chunked"
    with Wire(running) as wire:
        wire.send(head("POST", path, f"Content-Type: {media}", length))
        if declared:
            time.sleep(0.2)
        sent = 0
        piece = start
        while sent < 2 * LIMIT and not wire.answered():
            wire.send(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
            piece = b"x" * PIECE
            time.sleep(0.003)
        assert sent <= (0 if declared else LIMIT + SLACK)
        assert wire.socket.recv(2**16).startswith(b"HTTP/1.1 413")
    assert files_left(running, spool) == []


def test_a_declared_length_beyond_all_numbers_is_refused(running):
    for length in ("9" * 30, "9" * 5000, "-1", "1e3", "0x10", ""):
        with Wire(running) as wire:
            wire.send(head("POST", "/ingest-track", "Content-Type: audio/ogg", f"Content-Length: {length}"))
            assert wire.socket.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 422")), length


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(head("GET", "/tracks?q=" + "a" * 70_000), id="long path"),
        pytest.param(head("GET", "/", *(f"X-{number}: {'a' * 100}" for number in range(800))), id="many headers"),
        pytest.param(head("GET", "/", "X: " + "a" * 70_000), id="long header"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, id="header without end"),
        pytest.param(b"GET /" + b"a" * 200_000, id="path without end"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"a" * 200_000, id="name without end"),
    ],
)
def test_headers_too_large_are_a_problem(running, request_):
    with Wire(running) as wire:
        wire.send(request_)
        document = problem_in(wire.rest())
    assert (document.status, document.code) == (431, "headers_too_large")
    assert document.setting == "DEBUT_MAX_HEADER_BYTES"


def test_headers_just_small_enough_are_taken(running):
    with Wire(running) as wire:
        wire.send(head("GET", "/livez", "Connection: close", "X: " + "a" * 65_000))
        assert wire.rest().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        head("GET", "/", "Content-Length: 5", "Transfer-Encoding: chunked"),
        head("GET", "/", "Bad Name: x"),
        head("GET", "/", "X: a\0b"),
        head("CONNECT", "evil.example:80"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda request_: repr(request_[:20]),
)
def test_what_is_not_http_is_a_problem(running, request_):
    with Wire(running) as wire:
        wire.send(request_)
        document = problem_in(wire.rest())
    assert (document.status, document.code) == (400, "bad_http")


def test_a_body_that_stops_being_http_midway_is_a_problem_and_leaves_nothing(running, spool):
    with Wire(running) as wire:
        wire.send(head("POST", "/ingest-track", "Content-Type: audio/ogg", "Transfer-Encoding: chunked"))
        wire.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        time.sleep(0.1)
        wire.send(b"not a length\r\n")
        assert problem_in(wire.rest()).code == "bad_http"
    wait_until(lambda: files_left(running, spool) == [])


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_requests_that_wait_in_line_are_answered_in_order_and_not_too_many(running):
    with Wire(running) as wire:
        last = head("GET", "/livez", "Connection: close")
        wire.send(b"".join(head("GET", "/nothing") for _ in range(8)) + last)
        answer = wire.rest()
    assert (answer.count(b"HTTP/1.1 404"), answer.count(b"HTTP/1.1 200")) == (8, 1)
    assert answer.rindex(b"HTTP/1.1 404") < answer.index(b"HTTP/1.1 200")
    with Wire(running) as wire:
        wire.send(head("GET", "/livez") * 400)
        try:
            answered = wire.rest().count(b"HTTP/1.1 200")
        except ConnectionResetError:
            answered = 0
    assert answered < 400
    assert running.client.get("/livez").status_code == 200


def p99(client: httpx.Client, count: int) -> float:
    """The 99th percentile of the seconds that `count` requests take."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        assert client.get("/livez").status_code == 200
        seconds.append(time.perf_counter() - started)
    return statistics.quantiles(seconds, n=100)[98]


def test_who_drips_is_cut_off(running):
    """48 connections of all kinds; every timeout is short here."""
    with Dripping(running, 48) as dripping:
        assert running.client.get("/livez").status_code == 200
        dripping.wait(12)
    assert running.client.get("/readyz").status_code == 200


@pytest.mark.long
def test_300_who_drip_are_cut_off_within_30_seconds_and_nobody_notices(releases, tmp_path):
    """With the settings as they are, but for the queue: 32 uploads that drip would else be all that it holds."""
    with RunningService(releases, tmp_path / "ledger.sqlite", queue_size=200, log_level="warning") as running:
        p99(running.client, 200)
        idle = statistics.median(p99(running.client, 400) for _ in range(5))
        with Dripping(running, 300) as dripping:
            busy = []
            while len(dripping.closed) < 200 and time.monotonic() - dripping.started < 25:
                busy.append(p99(running.client, 400))
            dripping.wait(30)
        print(
            f"p99 idle {idle * 1e3:.2f} ms, while 300 drip {statistics.median(busy) * 1e3:.2f} ms ({len(busy)} x 400)"
        )
        print(f"the last was cut off after {max(dripping.closed.values()):.1f} s")
        assert statistics.median(busy) < 2 * idle + 0.002
        assert running.client.get("/readyz").status_code == 200


def test_who_does_not_read_answers_is_cut_off(running):
    """Answers of 60 kB that pile up until neither side's buffers take any more."""
    before = open_sockets(running)
    with Wire(running) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.socket.settimeout(0.5)
        watch = selectors.DefaultSelector()
        watch.register(wire.socket, selectors.EVENT_WRITE)
        until = time.monotonic() + 1.5
        try:
            while time.monotonic() < until and watch.select(0.2):
                wire.send(head("GET", "/openapi.json") * 8)
                time.sleep(0.02)
        except OSError:
            pass
        watch.close()
        wait_until(lambda: open_sockets(running) <= before)
    assert running.client.get("/livez").status_code == 200


def open_sockets(running: RunningService) -> int:
    count = 0
    for link in Path(f"/proc/{running.process.pid}/fd").iterdir():
        try:
            count += os.readlink(link).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def test_connections_beyond_the_limit_are_a_503_and_far_beyond_are_cut_off(releases, tmp_path):
    with RunningService(releases, tmp_path / "ledger.sqlite", max_connections=4, decode_workers=1) as running:
        assert running.client.get("/livez").status_code == 200  # and stays: one
        held = [Wire(running) for _ in range(3)]
        time.sleep(0.2)
        with Wire(running) as fifth:
            fifth.send(head("GET", "/livez"))
            answer = fifth.rest()
            document = problem_in(answer)
            assert (document.status, document.code) == (503, "too_many_connections")
            assert document.setting == "DEBUT_MAX_CONNECTIONS"
            assert b"retry-after: 1\r\n" in answer.lower()
        held += [Wire(running) for _ in range(8)]
        time.sleep(0.2)
        assert running.client.get("/livez").status_code in (200, 503)
        assert open_sockets(running) < 40
        cut = 0
        for wire in held:
            wire.socket.settimeout(0.05)
            try:
                cut += wire.socket.recv(1) == b""
            except ConnectionResetError:
                cut += 1
            except TimeoutError:
                pass
            wire.socket.close()
        assert cut >= 3
        wait_until(lambda: running.client.get("/livez").status_code == 200)


def test_searches_beyond_the_queue_are_a_503(serve, settings, monkeypatch):
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(*_: object):
        begun.release()
        go_on.wait(20)
        return {}

    monkeypatch.setattr("service.routes.playlists.continue_playlist", slow)
    client = serve(settings.model_copy(update={"search_queue": 2, "search_threads": 1}))
    service = client.app.state.service
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(client.post, "/continue-playlist", json={"seeds": ["a"]}) for _ in range(2)]
        try:
            assert begun.acquire(timeout=10)
            wait_until(lambda: service.search_queue.taken == 2)
            for answer in (client.post("/continue-playlist", json={"seeds": ["a"]}), client.get("/tracks?q=a")):
                assert assert_problem(answer, 503, "busy").setting == "DEBUT_SEARCH_QUEUE"
                assert answer.headers["retry-after"] == "1"
            assert client.get("/readyz").status_code == 200
        finally:
            go_on.set()
        assert [one.result().status_code for one in first] == [200, 200]
    assert service.search_queue.taken == 0
    assert client.get("/tracks?q=a").status_code == 200


def arriving(chunks: list[bytes], wait: float) -> Request:
    """A request whose body comes in `chunks`, one every `wait` seconds."""
    waiting = iter(chunks)

    async def receive():
        await asyncio.sleep(wait)
        return {"type": "http.request", "body": next(waiting, b""), "more_body": True}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def take(request: Request, rate: int) -> int:
    return sum([len(chunk) async for chunk in bodies.counted(request, 10**6, "max_upload_bytes", rate)])


def test_an_upload_slower_than_the_least_rate_is_given_up(monkeypatch):
    monkeypatch.setattr(bodies, "GRACE_S", 0.3)
    started = time.perf_counter()
    with pytest.raises(Problem) as refused:
        asyncio.run(take(arriving([b"x"] * 1000, 0.01), rate=10_000))
    assert refused.value.code == "upload_timeout"
    assert refused.value.setting == "min_upload_rate"
    assert 0.25 < time.perf_counter() - started < 2
    with pytest.raises(Problem) as refused:  # fast at first, and then silent
        asyncio.run(take(arriving([b"x" * 5000], 0.01), rate=10_000))
    assert "5000 bytes arrived" in refused.value.detail
