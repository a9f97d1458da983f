"""GET /audience/{track_id}: as JSON, or its listeners as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from index.audience.cat import Audience
from index.collection import CollectionView
from service.http.limits import within
from service.http.negotiation import prefers
from service.http.openapi import failures
from service.http.problems import Problem
from service.http.schemas import AudienceResponse
from service.routes.answers import json_answer, row_of, searching, service_of

router = APIRouter(tags=["audience"])

CSV = "text/csv"
VARY = {"Vary": "Accept"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take a text for a formula (OWASP, CSV injection)."""


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
    min_score: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Leave out listeners who score less. All listeners are then scored, to count the `reach`.",
    )
    prior: float = Field(
        default=0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Prefer popular neighbours: their similarity counts plus this times ln(1 + their listeners). 0.1 "
        "finds more of the tracks that will share listeners with this one; 0, the default, the better audience.",
    )


@router.get(
    "/audience/{track_id:path}",
    summary="Whom to show a track to",
    response_model=None,
    responses={
        200: {
            "model": AudienceResponse,
            "description": "Clusters by falling mass, listeners by falling score.",
            "content": {
                CSV: {
                    "schema": {"type": "string"},
                    "example": "listener_id,score,cluster\r\nann,0.431552,0\r\n",
                }
            },
        },
        **failures(
            "unknown_track",
            "audience_missing",
            "audience_no_neighbours",
            "audience_unplaced",
            "invalid_request",
            "busy",
            "index_unavailable",
        ),
    },
)
async def audience(request: Request, track_id: str, query: Annotated[AudienceQuery, Query()]) -> Response:
    """Cluster the listeners of similar tracks, score all by song and audience, and name the best of each taste.

    With `Accept: text/csv` the listeners alone, a line each. An id that a spreadsheet would take for a formula
    is then led by an apostrophe.
    """
    service = service_of(request)
    within(service.settings, "max_listeners", "query.limit", query.limit, "listeners")
    serving = service.serving
    view = serving.collection.view()
    row = row_of(view, track_id)
    found = await searching(service, lambda: target(serving.audience, view, row, query))
    if prefers(request.headers.get("accept", ""), CSV):
        return Response(as_csv(found["listeners"]), headers=VARY, media_type=CSV)
    answer = json_answer({"track_id": track_id, **found, "release": view.release_id})
    answer.headers.update(VARY)
    return answer


def as_csv(listeners: Iterable[Mapping[str, Any]]) -> str:
    """Return `listener_id,score,cluster` (RFC 4180), an id that could be a formula led by an apostrophe."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(("listener_id", "score", "cluster"))
    for one in listeners:
        name = one["listener_id"]
        # led by spaces it would be one as well, once the spreadsheet has trimmed them
        safe = f"'{name}" if name.startswith(_FORMULA) or name.lstrip().startswith(_FORMULA) else name
        lines.writerow((safe, f"{one['score']:.6f}", one["cluster"]))
    return text.getvalue()


def target(audience: Audience, view: CollectionView, row: int, query: AudienceQuery) -> dict[str, Any]:
    """Return schemas.AudienceResponse without track and release, as plain data.

    Raises Problem `audience_unplaced`, and AudienceError (audience_missing, audience_no_neighbours).
    """
    vector = view.matching.vectors([row])[0]
    if np.isnan(vector).any():
        raise Problem("audience_unplaced", "The release has no matching vector of this track: ingest it to get one.")
    result = audience.target(
        vector,
        view,
        row=row,
        clusters=query.clusters,
        limit=query.limit,
        exclude_known=query.exclude_known,
        min_score=query.min_score,
        prior=query.prior,
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
        "reach": result.reach,
        "overlaps": [{"clusters": list(o.clusters), "share": round(o.share, 6)} for o in result.overlaps],
        "neighbours": [{"track_id": n.track_id, "similarity": round(n.similarity, 6)} for n in result.neighbours],
    }
