"""What can go wrong with a request, as RFC 9457 problem documents: one shape on every route."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from index.errors import DebutError
from service.settings import variable

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:debut:problem:"
RETRY_AFTER_S = 1
MOST_ERRORS = 20
"""Fields that one answer names, so that no answer is much larger than the request."""

MOST_CHARS = 200
"""Characters of a field's name, or of what is wrong with it, in an answer."""

log = structlog.get_logger("debut.request")


class Kind(NamedTuple):
    """What every problem of one code has in common: HTTP status and title."""

    status: int
    title: str


KINDS: dict[str, Kind] = {
    "bad_http": Kind(400, "The request is not HTTP"),
    "bad_json": Kind(400, "The body is not JSON"),
    "bad_multipart": Kind(400, "The multipart body cannot be read"),
    "unauthorized": Kind(401, "An API key is needed"),
    "forbidden": Kind(403, "The API key does not reach this far"),
    "cross_site": Kind(403, "The request comes from another web site's page"),
    "not_found": Kind(404, "There is nothing at this path"),
    "unknown_track": Kind(404, "No such track"),
    "unknown_ingest": Kind(404, "No such ingest"),
    "method_not_allowed": Kind(405, "This path does not take this method"),
    "header_timeout": Kind(408, "The request took too long"),
    "body_timeout": Kind(408, "The body took too long"),
    "upload_timeout": Kind(408, "The upload took too long"),
    "track_exists": Kind(409, "Another track has this id"),
    "cursor_outdated": Kind(409, "The cursor is of another release"),
    "audience_missing": Kind(409, "This release knows no listeners"),
    "audience_no_neighbours": Kind(409, "No similar track has listeners"),
    "audience_unplaced": Kind(409, "The track has no place among audiences"),
    "too_large": Kind(413, "The body is too large"),
    "unsupported_media_type": Kind(415, "This kind of body is not taken"),
    "not_audio": Kind(415, "The upload is not audio"),
    "unknown_host": Kind(421, "This service has another name"),
    "audio_undecodable": Kind(422, "The audio cannot be decoded"),
    "audio_truncated": Kind(422, "The audio ends early"),
    "audio_empty": Kind(422, "The upload is empty"),
    "audio_silent": Kind(422, "The audio is silent"),
    "audio_too_short": Kind(422, "The audio is too short"),
    "audio_too_long": Kind(422, "The audio is too long"),
    "audio_no_stream": Kind(422, "The file holds no audio"),
    "decode_failed": Kind(422, "Decoding the audio was given up"),
    "idempotency_mismatch": Kind(422, "The key was sent with another upload"),
    "invalid_request": Kind(422, "The request does not fit"),
    "missing_part": Kind(422, "A part of the upload is missing"),
    "unknown_seeds": Kind(422, "No seed is known"),
    "key_queue_full": Kind(429, "Too many uploads of one key at once"),
    "headers_too_large": Kind(431, "The headers are too large"),
    "internal": Kind(500, "Something broke on our side"),
    "too_many_connections": Kind(503, "Too many connections at once"),
    "busy": Kind(503, "Too many searches at once"),
    "queue_full": Kind(503, "Too many uploads at once"),
    "index_unavailable": Kind(503, "The vector index does not answer"),
    "ledger_unwritable": Kind(503, "The ledger cannot be written"),
    "out_of_memory": Kind(503, "There is no memory for this now"),
    "not_ready": Kind(503, "The service is not ready"),
    "ledger_full": Kind(507, "There is no room in the ledger"),
    "spool_full": Kind(507, "There is no room for the upload"),
}

# The setting that moves the limit, for errors that index raises without knowing of settings.
_SETTING_OF = {"audio_too_short": "min_audio_s", "audio_too_long": "max_audio_s"}


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """A request that cannot be answered as asked.

    `code` is a key of KINDS; `setting` names the setting (field of Settings) whose limit was hit; `errors`
    lists what is wrong field by field; `headers` are sent with the answer.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        setting: str | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.setting, self.errors = code, detail, setting, errors
        self.kind = KINDS[code]
        self.headers = dict(headers or {})
        if self.kind.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))


def problem_of(error: DebutError) -> Problem:
    """Return the problem that an error of the layers below amounts to; raise it when it is not the client's."""
    code = error.code
    if code not in KINDS and code.startswith("ledger_"):
        code = "ledger_unwritable"
    if code not in KINDS:
        raise error
    return Problem(code, error.detail, setting=_SETTING_OF.get(code))


def out_of_memory() -> Problem:
    """Return the problem that a MemoryError amounts to."""
    return Problem(
        "out_of_memory", "The service ran short of memory; nothing was changed that you can see: try again soon."
    )


def invalid(errors: Sequence[Mapping[str, Any]], where: str = "") -> Problem:
    """Return an `invalid_request` problem from pydantic's list of errors, naming each field.

    `where` says what was looked at ("metadata", "body"); it is put before each field's name.
    """
    fields = [{"field": _field(e["loc"], where), "message": _message(e)} for e in errors[:MOST_ERRORS]]
    detail = "; ".join(f"{f['field']}: {f['message']}" for f in fields[:5])
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return Problem("invalid_request", f"{detail}{more}.", errors=fields)


def _field(loc: Sequence[int | str], where: str) -> str:
    return ".".join(str(part) for part in ([where] if where else []) + list(loc))[:MOST_CHARS] or "body"


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a known field"
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:MOST_CHARS]


def document(problem: Problem, request_id: str) -> dict[str, Any]:
    """Return the problem document (RFC 9457 section 3.1) with our members `code`, `setting` and `errors`."""
    fields: dict[str, Any] = {
        "type": TYPE_PREFIX + problem.code,
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        "code": problem.code,
        "instance": f"urn:debut:request:{request_id}",
    }
    if problem.setting:
        fields["setting"] = variable(problem.setting)
    if problem.errors:
        fields["errors"] = list(problem.errors)
    return fields


def response(problem: Problem, request_id: str) -> Response:
    """Return the problem as an HTTP answer."""
    body = orjson.dumps(document(problem, request_id))
    return Response(body, problem.kind.status, headers=problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every failure of `app` a problem document (unforeseen ones: service.http.requests.RequestScope)."""

    async def answer(request: Request, error: Exception) -> Response:
        return response(_as_problem(request, error), request.state.request_id)

    for kind in (Problem, DebutError, MemoryError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _as_problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, DebutError):
        return problem_of(error)
    if isinstance(error, MemoryError):
        log.error("out of memory", path=request.url.path)
        return out_of_memory()
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    assert isinstance(error, HTTPException)
    return _of_http(request, error)


def route_of(scope: Scope) -> str | None:
    """Return the path template that a request matched, as the OpenAPI document has it; None when none did."""
    path: str | None = getattr(scope.get("route"), "path", None)
    return path and path.replace(":path}", "}")


def _methods(request: Request) -> list[str]:
    """Return all methods of the matched path (the router names only those of the first route that has it)."""
    documented = request.app.openapi()["paths"].get(route_of(request.scope) or request.url.path, {"get": None})
    return sorted(method.upper() for method in documented)


def _of_http(request: Request, error: HTTPException) -> Problem:
    path = request.url.path
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        detail = f"{path} takes {allowed}, not {request.method}."
        return Problem("method_not_allowed", detail, headers={"Allow": allowed})
    if error.status_code == HTTPStatus.NOT_FOUND:
        return Problem("not_found", f"There is nothing at {path}; GET / lists the paths.")
    return Problem("internal", "The request could not be answered.")
