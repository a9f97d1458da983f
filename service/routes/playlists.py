"""POST /continue-playlist."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.http.bodies import read_json
from service.http.limits import check_continue
from service.http.openapi import failures, reference
from service.http.schemas import ContinueRequest, ContinueResponse
from service.recommend.recommend import continue_playlist
from service.routes.answers import json_answer, searching, service_of

router = APIRouter(tags=["playlists"])


@router.post(
    "/continue-playlist",
    summary="Continue a playlist",
    response_model=None,
    responses={
        200: {"model": ContinueResponse, "description": "Ranked tracks, best first."},
        **failures(
            "bad_json",
            "body_timeout",
            "too_large",
            "unsupported_media_type",
            "invalid_request",
            "unknown_seeds",
            "busy",
            "cursor_outdated",
            "index_unavailable",
        ),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": reference(ContinueRequest)}},
        }
    },
)
async def continue_a_playlist(request: Request) -> Response:
    """Rank all tracks by their mean similarity to the seeds; seeds are never returned."""
    service = service_of(request)
    asked = await read_json(request, ContinueRequest, service.settings)
    check_continue(asked, service.settings)
    serving = service.serving
    view, share = serving.collection.view(), serving.encoder.config.audio_share
    return json_answer(await searching(service, lambda: continue_playlist(view, asked, share)))
