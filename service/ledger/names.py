"""A Redis found by its name within a deadline: the system's own look-up takes minutes when the name server is gone."""

import socket
import threading
from concurrent.futures import Future
from typing import Any

import redis

RESOLVE_S = 2.0
"""Longest wait for a name's addresses, in seconds."""

_lock = threading.Lock()
_asked: dict[tuple[str, int], "Future[list[str]]"] = {}  # the look-ups under way, one a name whoever waits for it


def addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a name, each once, in the system's order.

    Nothing can end a look-up: one that takes too long goes on in its thread, and whoever asks meanwhile waits for that
    one. Raises OSError for a name that is not known, redis.TimeoutError after RESOLVE_S.
    """
    with _lock:
        found = _asked.get((host, port))
        if found is None:
            found = Future()
            try:
                threading.Thread(target=_look_up, args=(host, port, found), name="resolve", daemon=True).start()
            except RuntimeError as error:
                raise OSError(f"no thread for the look-up of {host}: {error}") from None
            _asked[host, port] = found
    try:
        return found.result(RESOLVE_S)
    except TimeoutError:
        raise redis.TimeoutError(f"{host} is not resolved within {RESOLVE_S:g} s: the name server is silent") from None


def _look_up(host: str, port: int, found: "Future[list[str]]") -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answer: list[str] | BaseException = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    except BaseException as error:
        answer = error
    with _lock:
        del _asked[host, port]
    if isinstance(answer, BaseException):
        found.set_exception(answer)
    else:
        found.set_result(answer)


class Named(redis.Connection):
    """A connection that looks its host up within RESOLVE_S; `_connect` is where redis-py opens the socket."""

    def _connect(self) -> Any:
        name, failure = self.host, OSError("it has no address")
        for address in addresses(name, self.port):
            try:
                self.host = address
                return super()._connect()  # type: ignore[no-untyped-call]
            except OSError as error:
                failure = error
            finally:
                self.host = name  # TLS asks for the certificate of that
        raise failure


class NamedTls(redis.SSLConnection, Named):
    """The same over TLS: redis-py's wraps the socket that Named opens."""


def bound_names(client: Any) -> None:
    """Have a client's connections look names up within RESOLVE_S. A Unix socket has none."""
    pool = client.connection_pool
    pool.connection_class = {redis.Connection: Named, redis.SSLConnection: NamedTls}.get(
        pool.connection_class, pool.connection_class
    )
