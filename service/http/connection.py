"""One client's connection: uvicorn's, with bounds on what it can hold by being slow, silent or endless."""

import asyncio
import uuid
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.http.problems import Problem, response
from service.http.security import protect
from service.settings import Settings

TICK_S = 1.0
"""Time between two looks at a connection."""

LINGER_S = 5.0
"""How long what arrives after the answer is dropped, so that a client which sends everything first sees the answer."""

MOST_PIPELINED = 16
"""Requests of one connection that wait for their turn; each takes many times the memory of its bytes."""

log = structlog.get_logger("debut.connection")


class _RefusedError(Exception):
    """Stops the parser; `Connection._problem` says why."""


class Connection(HttpToolsProtocol):
    """A connection that ends when it should: bodies are timed where they are read (service.http.bodies), all else here.

    A request's line and headers have DEBUT_HEADER_TIMEOUT_S to arrive, from the connection's or the request's first
    byte, and DEBUT_MAX_HEADER_BYTES; a body that nobody wants is dropped for LINGER_S; an answer has to be read within
    DEBUT_ANSWER_TIMEOUT_S; more than DEBUT_MAX_CONNECTIONS are answered 503, more than twice as many are cut off.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings: Settings = config.app.state.service.settings  # type: ignore[union-attr]
        self._service_app = self.app
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None  # when what is waited for must be here; None: the routes' turn
        self._drained = 0.0  # when everything written had last been taken by the client
        self._head_bytes = 0
        self._in_head = True  # the next byte belongs to a request's line and headers
        self._receiving = False  # between a request's first byte and its last
        self._problem: Problem | None = None
        self._refused = False  # answered and done with: what still comes is dropped

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the time; cut off what is far too much."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self._settings.max_connections:
            transport.abort()
            return
        self._drained = self.loop.time()
        self._due = self._drained + self._settings.header_timeout_s
        self._timer = self.loop.call_later(TICK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the client was refused; headers without an end are refused as they grow."""
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._settings.max_header_bytes:
            self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        """Give a further request its time; the first one's began with the connection."""
        super().on_message_begin()
        self._receiving = True
        if self.cycle is not None:
            self._due = self.loop.time() + self._settings.header_timeout_s

    def on_headers_complete(self) -> None:
        """Hold the headers against their limit, then hand the request to the service, or to _crowded."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._settings.max_header_bytes:
            self._problem = self._too_large()
            raise _RefusedError
        if len(self.pipeline) >= MOST_PIPELINED:
            raise _RefusedError
        full = len(self.connections) > self._settings.max_connections
        self.app = _crowded if full else self._service_app
        super().on_headers_complete()
        self._in_head, self._due = False, None

    def on_message_complete(self) -> None:
        """Be ready for the next request; it must begin within the keep-alive time when all were answered."""
        super().on_message_complete()
        self._receiving, self._in_head, self._head_bytes = False, True, 0
        if self.cycle.response_complete:
            self._due = self.loop.time() + self.timeout_keep_alive

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of a body that was answered before it was all here."""
        super().on_response_complete()
        if self.cycle.response_complete and self._due is None:
            self._due = self.loop.time() + (LINGER_S if self._receiving else self.timeout_keep_alive)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed (uvicorn calls this) with a problem document."""
        self._refuse(self._problem or Problem("bad_http", f"{msg.rstrip('.')}: it breaks the rules of RFC 9112."))

    def _look(self) -> None:
        now = self.loop.time()
        if self.transport.get_write_buffer_size() == 0:
            self._drained = now
        if now - self._drained > self._settings.answer_timeout_s:
            log.info("cut off", reason="the answer was not read")
            self.transport.abort()
            return
        if self._due is not None and now >= self._due and not self.flow.read_paused:
            self._overdue()
        self._timer = self.loop.call_later(TICK_S, self._look)

    def _overdue(self) -> None:
        self._due = None
        if self._refused or not self._in_head:
            self.transport.abort()  # it was answered, and sends on
        elif self._receiving:
            seconds = self._settings.header_timeout_s
            detail = f"The request line and headers did not arrive within {seconds:g} s."
            self._refuse(Problem("header_timeout", detail, setting="header_timeout_s"))
        else:
            self.transport.close()

    def _too_large(self) -> Problem:
        limit = self._settings.max_header_bytes
        detail = f"Request line and headers are larger than {limit} bytes: send long metadata as a form."
        return Problem("headers_too_large", detail, setting="max_header_bytes")

    def _refuse(self, problem: Problem) -> None:
        """Answer what never reached the routes, say that it is the last answer, and read nothing any more."""
        self._refused, self._due = True, self.loop.time() + LINGER_S
        if self.transport.is_closing():
            return
        log.info("refused", code=problem.code)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._in_head or self.cycle.response_started or self.pipeline:
                self.transport.abort()  # the client would take it for the answer to an earlier request
                return
            self.cycle.disconnected = True  # the route stops reading, and has nobody to answer
            self.cycle.message_event.set()
        answer = _last_answer(problem)
        lines = [*self.server_state.default_headers, *answer.raw_headers]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(STATUS_LINE[answer.status_code] + head + b"\r\n" + bytes(answer.body))
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _last_answer(problem: Problem) -> Response:
    """Return a problem's answer, with an id of its own, that ends the connection."""
    request_id = uuid.uuid4().hex
    answer = response(problem, request_id)
    answer.raw_headers = [
        *protect(answer.raw_headers),
        (b"x-request-id", request_id.encode()),
        (b"connection", b"close"),
    ]
    return answer


async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for which there is no connection to spare."""
    problem = Problem(
        "too_many_connections",
        "As many connections are open as may be: try again soon.",
        setting="max_connections",
    )
    await _last_answer(problem)(scope, receive, send)
