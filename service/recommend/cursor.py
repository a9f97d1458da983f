"""Where a playlist's continuation goes on: what was returned already, in a text that the client sends back.

Nothing is kept here, so any replica and any later process can go on, and nothing is signed: who makes a cursor up can
only hide tracks from himself.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.collection import CollectionView
from service.http.problems import Problem
from service.http.schemas import ContinueRequest

MOST = 10_000
"""Tracks that one continuation may return, page by page; after that there is no cursor."""

_FREE = {"k", "cursor", "explain"}
"""What may change from page to page."""


class _Cursor(BaseModel):
    """What a cursor says. `sealed`: rows of the release, ascending, each as its distance to the one before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    release: str
    request: str
    sealed: Annotated[list[Annotated[int, Field(ge=1, le=2**31)]], Field(max_length=MOST)]
    fresh: Annotated[list[str], Field(max_length=MOST)]


def read(request: ContinueRequest, view: CollectionView) -> list[str]:
    """Return the ids that earlier pages returned, as the request's cursor has them; some may be gone since.

    Raises Problem `cursor_outdated` for another release's, `invalid_request` for anything but a cursor of this very
    request.
    """
    if request.cursor is None:
        return []
    said = _parsed(request.cursor)
    if said.release != view.release_id:
        raise Problem(
            "cursor_outdated",
            f"The cursor is of release {said.release[:60]!r} and {view.release_id} is served now: ask without a "
            "cursor, and put what was returned already into `exclude`.",
        )
    if said.request != _digest(request):
        raise _refused("is that of another request: only k and explain may change from page to page")
    texts, row, ids = view.catalogue.sealed.texts["track_id"], -1, list(said.fresh)
    for step in said.sealed:
        row += step
        if row >= len(view.catalogue.sealed):
            raise _refused("is damaged")
        ids.append(str(texts[row]))
    return ids


def write(request: ContinueRequest, view: CollectionView, shown: Iterable[str]) -> str | None:
    """Return the cursor that goes on behind the tracks `shown`, None when they are too many.

    The release's tracks are named by their rows, which are the release's own; others by their ids, for after a restart
    they may have other rows.
    """
    ids = sorted(set(shown))
    if len(ids) > MOST:
        return None
    newest, size = view.catalogue.newest, len(view.catalogue.sealed)
    rows = sorted(row for track_id in ids if 0 <= (row := newest.get(track_id, -1)) < size)
    steps = [row - before for before, row in zip([-1, *rows], rows, strict=False)]
    fresh = [track_id for track_id in ids if not 0 <= newest.get(track_id, -1) < size]
    said = _Cursor(release=view.release_id, request=_digest(request), sealed=steps, fresh=fresh)
    return base64.urlsafe_b64encode(orjson.dumps(said.model_dump())).decode().rstrip("=")


def _parsed(text: str) -> _Cursor:
    try:
        said = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        return _Cursor.model_validate(orjson.loads(said))
    except (binascii.Error, ValueError, ValidationError):
        raise _refused("is none: send back what the last answer had, as it was") from None


def _digest(request: ContinueRequest) -> str:
    fields = orjson.dumps(request.model_dump(exclude=_FREE), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(fields, digest_size=12).hexdigest()


def _refused(message: str) -> Problem:
    return Problem("invalid_request", f"cursor: {message}.", errors=[{"field": "cursor", "message": message}])
