"""Reading request bodies: every byte is counted, and JSON is checked before it is believed."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.problems import Problem, invalid

Model = TypeVar("Model", bound=BaseModel)


def content_type(request: Request) -> str:
    """Return the media type of the body, lower case, without parameters; "" when the client did not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def counted(request: Request, limit: int, setting: str) -> AsyncGenerator[bytes, None]:
    """Yield the body's chunks; raise Problem `too_large` as soon as it is known to exceed `limit` bytes.

    A declared length is believed only when it is too large already: what arrives is counted.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit, setting)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit, setting)
        yield chunk


def _too_large(limit: int, setting: str) -> Problem:
    # uvicorn reads on and drops the rest, so that clients which send everything first do see this answer.
    return Problem("too_large", f"The body is larger than {limit} bytes.", setting=setting)


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    """Return all chunks as one."""
    return b"".join([chunk async for chunk in chunks])


async def read_json(request: Request, model: type[Model], limit: int) -> Model:
    """Return the JSON body as a `model`.

    Raises Problem: unsupported_media_type, too_large, bad_json, invalid_request.
    """
    if content_type(request) != "application/json":
        given = content_type(request)[:80] or "a body without a type"
        raise Problem("unsupported_media_type", f"{request.url.path} takes application/json, not {given}.")
    return parse(await collect(counted(request, limit, "max_json_bytes")), model)


def parse(text: bytes | str, model: type[Model], where: str = "") -> Model:
    """Return JSON text as a `model`; `where` prefixes names. Raises Problem: bad_json, invalid_request."""
    document = load_json(text, where or "the body")
    if not isinstance(document, dict):
        message = f"is {_KINDS.get(type(document), 'a number')}, not an object"
        raise Problem("invalid_request", f"{where or 'The body'} {message}.", errors=[_whole(where, message)])
    return validated(document, model, where)


def load_json(text: bytes | str, name: str) -> Any:
    """Return the JSON value of `text`. Raises Problem `bad_json` saying where it stops being JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Problem("bad_json", f"{name[:1].upper()}{name[1:]} is not JSON: {error}.") from None


def validated(fields: dict[str, Any], model: type[Model], where: str = "") -> Model:
    """Return `fields` as a `model`. Raises Problem `invalid_request` naming each field that does not fit."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False), where) from None


_KINDS: dict[type, str] = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def _whole(where: str, message: str) -> dict[str, str]:
    return {"field": where or "body", "message": message}
