"""What every request gets: an id, a log line, a place in the metrics, an answer even if the code breaks."""

import re
import time
import uuid
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import Problem, response, route_of
from service.http.security import protect
from service.metrics import Metrics

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = ("/livez", "/readyz", "/metrics")  # asked every few seconds by machines: logged at debug level

log = structlog.get_logger("debut.request")


class RequestScope:
    """ASGI middleware around everything else.

    The request id is the client's X-Request-Id when it is sane (1-64 letters, digits, dot, dash, underscore),
    else a new one; it is in `scope["state"]`, in every log line of the request, and in the answer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request (other scopes, such as the lifespan, pass through)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._answer(scope, receive, send, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        status, started = 0, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*protect(message.get("headers", ())), (HEADER, request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = status or 499  # nginx's number for "the client went away"; nobody is there to read an answer
        except Exception:
            log.exception("request failed")
            if status == 0:
                broke = Problem("internal", "The request could not be answered; the log has it by this request's id.")
                await response(broke, request_id)(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope) or "unmatched"
        self.metrics.request_seconds.labels(route, scope["method"], str(status)).observe(seconds)
        line: dict[str, Any] = {"method": scope["method"], "route": route, "status": status}
        if key := scope["state"].get("key"):
            line["key"] = key
        write = log.debug if scope["path"] in _QUIET and status < 400 else log.info
        write("request", **line, path=scope["path"], ms=round(seconds * 1e3, 2))


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == HEADER), b"")
    return given.decode() if _SANE.fullmatch(given) else uuid.uuid4().hex
