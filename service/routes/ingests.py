"""GET /ingests/{ingest_id}: what became of an upload that was answered with 202."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.http.openapi import failures
from service.http.problems import RETRY_AFTER_S, Problem
from service.http.schemas import IngestStatus
from service.routes.answers import json_answer, service_of

router = APIRouter(tags=["tracks"])


@router.get(
    "/ingests/{ingest_id:path}",
    summary="Look an ingest up",
    response_model=None,
    responses={
        200: {
            "model": IngestStatus,
            "description": "Where it is.",
            "headers": {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds; until `done` or `failed`."}
            },
        },
        **failures("unknown_ingest"),
    },
)
async def get_ingest(request: Request, ingest_id: str) -> Response:
    """For uploads sent with `Prefer: respond-async`. Kept in memory: the last 1000, until the service restarts.

    After that GET /tracks/{track_id} says whether the track is there.
    """
    job = service_of(request).jobs.find(ingest_id)
    if job is None:
        raise Problem(
            "unknown_ingest",
            f"{ingest_id[:80]!r} is not known, or not any more; GET /tracks/{{track_id}} says whether a track is here.",
        )
    answer = json_answer(job.document)
    if job.ended is None:
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer
