"""GET /livez, /readyz and /metrics: for those who look after the service."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from index.errors import DebutError
from service.http.openapi import failures
from service.http.problems import Problem
from service.metrics import CONTENT_TYPE
from service.routes.answers import json_answer, service_of

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Is the process alive?", responses=failures(to_anybody=True))
async def livez() -> Response:
    """Answer as long as the event loop turns."""
    return json_answer({"alive": True})


@router.get("/readyz", summary="Can it do its work?", responses=failures("not_ready", to_anybody=True))
async def readyz(request: Request) -> Response:
    """Try what requests need: the ledger by a real transaction, the models by the inference when they were loaded.

    A transaction serves all who ask within a second of it; a ledger that does not answer within two is not ready.

    `releases` says what is served, and what is refused and why: a release that cannot be served leaves the old one in
    place, so the service stays ready.
    """
    service = service_of(request)
    serving = service.serving
    checks: dict[str, Any] = {
        "release": serving.release.id,
        "releases": service.swapper.status,
        "encoder_warm_up_ms": round(serving.warm_up_s * 1e3, 1),
        "tracks": len(serving.collection),
    }
    try:
        await service.probe.check()
    except DebutError as error:
        raise Problem("not_ready", f"The ledger cannot be written: {error.detail}") from error
    return json_answer({"ready": True, "ledger": "writable", **checks})


@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse, responses=failures())
async def metrics(request: Request) -> Response:
    """All figures, in Prometheus' text format."""
    return Response(service_of(request).metrics.exposition(), media_type=CONTENT_TYPE)
