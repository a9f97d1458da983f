"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a request sent again has the answer it had before."""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import orjson
from fastapi import Request
from starlette.responses import Response

from service.http.problems import Problem
from service.http.upload import Upload

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
KEPT = 1000
"""Answers kept, in memory: the oldest goes first, and all of them with a restart."""

_KEY = re.compile(r"[\x21\x23-\x7e]{1,200}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be given again."""

    body: bytes
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, *, replayed: bool = False) -> Response:
        """Return it as an HTTP answer."""
        headers = {**self.headers, **({REPLAYED: "true"} if replayed else {})}
        return Response(self.body, self.status, headers=headers, media_type="application/json")


@dataclass(slots=True)
class Turn:
    """One request's turn with its key: `known` is the answer that the key had already, `answer` what it has now."""

    known: Answer | None = None
    answer: Answer | None = None


class Answers:
    """The answers of the last KEPT keys. One event loop may use it.

    Only answers of success are kept: a request that failed may be put right and sent again under its key. What a
    track_id and its content are holds for ever (the ledger knows it), whatever becomes of these.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[str, tuple[bytes, Answer]] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, key: str | None, request: bytes) -> AsyncIterator[Turn]:
        """Wait until no other request of this key is being worked on; keep the answer that the turn is left with.

        `request` is what the key stands for (`fingerprint`). Raises Problem `idempotency_mismatch` when it stood for
        another. Without a key nothing is known or kept.
        """
        if key is None:
            yield Turn()
            return
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            before, known = self._answers.get(key, (request, None))
            if before != request:
                raise Problem(
                    "idempotency_mismatch",
                    f"The {HEADER} {key[:80]!r} was sent with another upload: send this one with a key of its own.",
                )
            turn = Turn(known)
            yield turn
            if turn.answer is not None:
                self._answers[key] = (request, turn.answer)
                while len(self._answers) > KEPT:
                    self._answers.popitem(last=False)


def key_of(request: Request) -> str | None:
    """Return the request's key, None without one. Raises Problem `invalid_request`.

    The draft has it in quotation marks (a string of RFC 8941); without them it is taken as well.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    text = given[0].strip()
    key = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if len(given) > 1 or not _KEY.fullmatch(key):
        message = "is not one key of 1 to 200 printable ASCII characters without spaces"
        where = f"header.{HEADER}"
        raise Problem("invalid_request", f"{where}: {message}.", errors=[{"field": where, "message": message}])
    return key


def fingerprint(upload: Upload, *, later: bool) -> bytes:
    """Return what an upload says, as 16 bytes: content, metadata, whether it replaces, and how it is answered."""
    said = [upload.content_sha256, upload.track, upload.replace, later]
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
