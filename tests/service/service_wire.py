"""Bare connections to a running service, and clients that hold them for nothing."""

import socket
import threading
import time

from service_process import RunningService

from service.http import security
from service.http.schemas import ProblemDocument


class Wire:
    """A bare connection to the service."""

    def __init__(self, running: RunningService) -> None:
        url = running.client.base_url
        self.socket = socket.create_connection((url.host, url.port), timeout=10)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def rest(self) -> bytes:
        """Everything until the service closes the connection."""
        received = b""
        while piece := self.socket.recv(2**16):
            received += piece
        return received

    def answered(self) -> bool:
        self.socket.setblocking(False)
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(10)


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


def problem_in(answer: bytes) -> ProblemDocument:
    """Read one answer off the wire: a problem document, with our headers, that ends the connection."""
    top, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    document = ProblemDocument.model_validate_json(body)
    assert status.split()[1] == str(document.status)
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/problem+json"
    assert document.instance.endswith(headers["x-request-id"])
    assert all(headers[name.lower()] == value for name, value in security.HEADERS.items())
    assert "server" not in headers
    return document


# What a client sends at first, and then every quarter of a second, to hold a connection for nothing.
DRIPS = {
    "nothing": (b"", b""),
    "blank lines": (b"", b"\r\n"),
    "headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
    "a path": (b"GET /", b"a"),
    "JSON": (head("POST", "/continue-playlist", "Content-Type: application/json", "Content-Length: 99999"), b" "),
    "an upload": (head("POST", "/ingest-track", "Content-Type: audio/ogg", "Content-Length: 99999"), b"x"),
    "chunks": (head("POST", "/ingest-track", "Content-Type: audio/ogg", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    "a form": (
        head("POST", "/ingest-track", "Content-Type: multipart/form-data; boundary=b", "Content-Length: 99999"),
        b"-",
    ),
    "what nobody wants": (head("POST", "/nothing", "Content-Length: 99999"), b"x"),
    "a wrong type": (head("POST", "/ingest-track", "Content-Type: text/plain", "Content-Length: 99999"), b"x"),
    "after a good request": (head("GET", "/livez"), b""),
    "half of the next request": (head("GET", "/livez") + b"GET / HT", b"T"),
}


class Dripping:
    """Clients that hold `count` connections by every kind of DRIPS; `closed` says after how long each was ended."""

    def __init__(self, running: RunningService, count: int) -> None:
        self.kinds = [kind for _, kind in zip(range(count), list(DRIPS) * count, strict=False)]
        self.wires = [Wire(running) for _ in self.kinds]
        self.closed: dict[int, float] = {}
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def __enter__(self) -> "Dripping":
        for kind, wire in zip(self.kinds, self.wires, strict=True):
            wire.send(DRIPS[kind][0])
            wire.socket.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for wire in self.wires:
            wire.socket.close()

    def _drip(self) -> None:
        while not self._stop.wait(0.25) and len(self.closed) < len(self.wires):
            for number, (kind, wire) in enumerate(zip(self.kinds, self.wires, strict=True)):
                if number not in self.closed and not self._drop(wire, DRIPS[kind][1]):
                    self.closed[number] = time.monotonic() - self.started

    def _drop(self, wire: Wire, drop: bytes) -> bool:
        """Send a drop; return whether the connection is still there."""
        try:
            while piece := wire.socket.recv(2**16):
                del piece
            return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        try:
            wire.socket.send(drop)
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def wait(self, seconds: float) -> None:
        deadline = self.started + seconds
        while len(self.closed) < len(self.wires):
            left = [self.kinds[number] for number in range(len(self.wires)) if number not in self.closed]
            assert time.monotonic() < deadline, f"{len(left)} connections are still open: {sorted(set(left))}"
            time.sleep(0.1)
