"""Reading request bodies: every byte is counted, and JSON is checked before it is believed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.http.problems import Problem, invalid
from service.settings import Settings

Model = TypeVar("Model", bound=BaseModel)

GRACE_S = 10.0
"""A body may come as slowly as it likes for so long, in seconds; then its mean rate counts."""

MOST_MEMBERS = 1000
"""Members of one JSON object: more than any request has, few enough to name what is wrong with each."""


def content_type(request: Request) -> str:
    """Return the media type of the body, lower case, without parameters; "" when the client did not say."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def counted(request: Request, limit: int, setting: str, rate: int = 0) -> AsyncGenerator[bytes, None]:
    """Yield the body's chunks; raise Problem `too_large` as soon as it is known to exceed `limit` bytes.

    A declared length is believed only when it is too large already: what arrives is counted. With a `rate` (bytes a
    second), raise Problem `upload_timeout` as soon as the mean rate is less, after GRACE_S: who sends a byte now and
    then does not keep a place for the whole time that an upload may take.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit, setting)
    started, size = asyncio.get_running_loop().time(), 0
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(started + max(GRACE_S, size / rate) if rate else None):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow(size, rate) from None
        size += len(chunk)
        if size > limit:
            raise _too_large(limit, setting)
        yield chunk


def _too_large(limit: int, setting: str) -> Problem:
    # uvicorn reads on and drops the rest, so that clients which send everything first do see this answer.
    return Problem("too_large", f"The body is larger than {limit} bytes.", setting=setting)


def _too_slow(size: int, rate: int) -> Problem:
    return Problem(
        "upload_timeout",
        f"{size} bytes arrived, fewer than {rate} a second: the upload was given up. Send it over a faster line.",
        setting="min_upload_rate",
        headers={"Connection": "close"},
    )


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    """Return all chunks as one."""
    return b"".join([chunk async for chunk in chunks])


async def read_json(request: Request, model: type[Model], settings: Settings) -> Model:
    """Return the JSON body as a `model`.

    Raises Problem: unsupported_media_type, too_large, body_timeout, bad_json, invalid_request.
    """
    if content_type(request) != "application/json":
        given = content_type(request)[:80] or "a body without a type"
        raise Problem("unsupported_media_type", f"{request.url.path} takes application/json, not {given}.")
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            text = await collect(counted(request, settings.max_json_bytes, "max_json_bytes"))
    except TimeoutError:
        raise Problem(
            "body_timeout",
            f"The body did not arrive within {settings.body_timeout_s:g} s.",
            setting="body_timeout_s",
            headers={"Connection": "close"},
        ) from None
    return parse(text, model)


def parse(text: bytes | str, model: type[Model], where: str = "") -> Model:
    """Return JSON text as a `model`; `where` prefixes names. Raises Problem: bad_json, invalid_request."""
    document = load_json(text, where or "the body")
    if not isinstance(document, dict):
        message = f"is {_KINDS.get(type(document), 'a number')}, not an object"
        raise Problem("invalid_request", f"{where or 'The body'} {message}.", errors=[_whole(where, message)])
    _refuse_crowded(document, where)
    return validated(document, model, where)


def _refuse_crowded(document: Any, where: str) -> None:
    """Refuse objects of many members before pydantic lists, at length, what is wrong with every one of them."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if len(value) > MOST_MEMBERS:
                message = f"holds an object of {len(value)} members, more than the {MOST_MEMBERS} that are allowed"
                raise Problem("invalid_request", f"{where or 'The body'} {message}.", errors=[_whole(where, message)])
            waiting.extend(child for child in value.values() if isinstance(child, (dict, list)))
        elif isinstance(value, list):
            waiting.extend(child for child in value if isinstance(child, (dict, list)))


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
