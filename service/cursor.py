"""Where a playlist's continuation goes on: what was returned already, in a text that the client sends back.

Nothing is kept here, so any replica and any later process can go on, and nothing is signed: who makes a cursor up can
only hide tracks from himself.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from index.collection import CollectionView
from service.problems import Problem
from service.schemas import ContinueRequest

MOST = 10_000
"""Tracks that one continuation may return, page by page; after that it has no cursor."""

_FREE = ("k", "cursor", "explain")  # what may change from page to page


@dataclass(frozen=True, slots=True)
class Shown:
    """The tracks that earlier pages returned, in their order: ids, some of which may be gone since."""

    track_ids: tuple[str, ...] = ()


def read(request: ContinueRequest, view: CollectionView) -> Shown:
    """Return what the request's cursor says was returned.

    Raises Problem `cursor_outdated` for another release's, `invalid_request` for anything but a cursor of this very
    request.
    """
    if request.cursor is None:
        return Shown()
    said = _parsed(request.cursor)
    if said["release"] != view.release_id:
        raise Problem(
            "cursor_outdated",
            f"The cursor is of release {said['release'][:60]}, and {view.release_id} is served now: ask without a cursor, "
            "with what was returned already in `exclude`.",
        )
    if said["request"] != _digest(request):
        raise _refused("is that of another request; only k and explain may change from page to page")
    texts, row, ids = view.catalogue.sealed.texts["track_id"], -1, {}
    for place, step in said["sealed"]:
        row += step
        if not 0 <= row < len(view.catalogue.sealed) or step < 1:
            raise _refused("is damaged")
        ids[place] = str(texts[row])
    ids |= dict(said["fresh"])
    return Shown(tuple(ids[place] for place in sorted(ids)))


def write(request: ContinueRequest, view: CollectionView, shown: Shown, rows: list[int]) -> str | None:
    """Return the cursor that goes on behind `rows` (live ones, just found) and what was `shown` before.

    The release's tracks are named by their rows, which are the release's own; others by their ids, for after a restart
    they may have other rows. None when there were too many to go on.
    """
    track_ids = [*shown.track_ids, *(view.catalogue.track(row).track_id for row in rows)]
    if len(track_ids) > MOST:
        return None
    texts, sealed, fresh = view.catalogue.sealed, [], []
    for place, track_id in enumerate(track_ids):
        row = view.catalogue.newest.get(track_id, -1)
        if 0 <= row < len(texts):
            sealed.append((row, place))
        else:
            fresh.append([place, track_id])
    sealed.sort()
    before = [-1, *(row for row, _ in sealed)]
    steps = [[place, row - last] for (row, place), last in zip(sealed, before, strict=False)]
    said = {"release": view.release_id, "request": _digest(request), "sealed": steps, "fresh": fresh}
    return base64.urlsafe_b64encode(orjson.dumps(said)).decode().rstrip("=")
