"""What the routes share: the service of a request, answers as JSON, and work done off the event loop."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from fastapi import Request
from starlette.responses import Response

from index.collection import CollectionView
from index.tracks.track import Track
from service.http.problems import Problem
from service.service import Service

Result = TypeVar("Result")


def service_of(request: Request) -> Service:
    """Return the service that answers `request`."""
    service: Service = request.app.state.service
    return service


def json_answer(content: Any, status: int = 200) -> Response:
    """Return plain data as JSON; it is not validated (a test holds real answers against their models)."""
    return Response(orjson.dumps(content), status, media_type="application/json")


async def searching(service: Service, work: Callable[[], Result]) -> Result:
    """Run a search in the threads meant for it, so that a long one does not hold up the other requests.

    Raises Problem `busy` when as many as DEBUT_SEARCH_QUEUE are in hand.
    """
    with service.search_queue.place():
        return await asyncio.get_running_loop().run_in_executor(service.searches, work)


def track_document(track: Track, cold: bool) -> dict[str, Any]:
    """Return schemas.TrackDocument as plain data. Lyrics stay inside: they are somebody's property."""
    return {
        "track_id": track.track_id,
        "title": track.title,
        "artist": track.artist,
        "album": track.album,
        "duration_s": track.duration_s,
        "release_date": track.release_date,
        "explicit": track.explicit,
        "language": track.language,
        "genres": list(track.genres),
        "isrc": track.isrc,
        "attributes": dict(track.attributes),
        "cold": cold,
    }


def row_of(view: CollectionView, track_id: str) -> int:
    """Return the row of a track. Raises Problem `unknown_track`."""
    row = view.catalogue.row_of(track_id)
    if row is None:
        raise Problem("unknown_track", f"{track_id[:80]!r} is not a track here; GET /tracks?q= finds ids by title.")
    return row
