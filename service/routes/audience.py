"""GET /audience/{track_id}."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from index.audience import Audience
from index.collection import CollectionView
from service.limits import within
from service.openapi import failures
from service.problems import Problem
from service.routes.answers import json_answer, row_of, searching, service_of
from service.schemas import AudienceResponse

router = APIRouter(tags=["audience"])


class AudienceQuery(BaseModel):
    """How the audience is to be chosen."""

    model_config = ConfigDict(extra="forbid")

    clusters: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="How many tastes to tell apart; left out, 3 to 8 by what fits best (silhouette).",
    )
    limit: int = Field(default=100, ge=1, description="How many listeners to name at most.")
    exclude_known: bool = Field(default=True, description="Leave out listeners who have heard the track.")


@router.get(
    "/audience/{track_id:path}",
    summary="Whom to show a track to",
    response_model=None,
    responses={
        200: {
            "model": AudienceResponse,
            "description": "Clusters by falling mass, listeners by falling score.",
        },
        **failures(
            "unknown_track",
            "audience_missing",
            "audience_no_neighbours",
            "audience_unplaced",
            "invalid_request",
        ),
    },
)
async def audience(request: Request, track_id: str, query: Annotated[AudienceQuery, Query()]) -> Response:
    """Cluster the listeners of similar tracks and name those nearest to a cluster (BCL, section on CAT)."""
    service = service_of(request)
    within(service.settings, "max_listeners", "query.limit", query.limit, "listeners")
    view = service.serving.collection.view()
    row = row_of(view, track_id)
    found = await searching(service, lambda: target(service.serving.audience, view, row, query))
    return json_answer({"track_id": track_id, **found, "release": view.release_id})


def target(audience: Audience, view: CollectionView, row: int, query: AudienceQuery) -> dict[str, Any]:
    """Return schemas.AudienceResponse without track and release, as plain data.

    Raises Problem `audience_unplaced`, and AudienceError (audience_missing, audience_no_neighbours).
    """
    vector = view.matching.vectors([row])[0]
    if np.isnan(vector).any():
        raise Problem("audience_unplaced", "The release has no matching vector of this track: ingest it to get one.")
    result = audience.target(
        vector, view, row=row, clusters=query.clusters, limit=query.limit, exclude_known=query.exclude_known
    )
    return {
        "clusters": [
            {
                "mass": round(c.mass, 6),
                "share": round(c.share, 6),
                "size": c.size,
                "tracks": list(c.tracks),
                "listeners": list(c.listeners),
            }
            for c in result.clusters
        ],
        "listeners": [
            {"listener_id": t.listener_id, "score": round(t.score, 6), "cluster": t.cluster} for t in result.listeners
        ],
        "neighbours": [{"track_id": n.track_id, "similarity": round(n.similarity, 6)} for n in result.neighbours],
    }
