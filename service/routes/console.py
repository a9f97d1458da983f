"""GET /: the console for a browser, what runs here for everybody else; and the console's files."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.console import FILES, POLICY
from service.http.negotiation import prefers
from service.http.openapi import failures
from service.http.problems import Problem
from service.routes.answers import json_answer, service_of

router = APIRouter(tags=["health"])

HTML = "text/html"


@router.get(
    "/",
    summary="The console, or what this is",
    response_model=None,
    responses={
        200: {"description": "What runs here, or with `Accept: text/html` the console.", "content": {HTML: {}}},
        **failures("cross_site", "unknown_host", to_anybody=True),
    },
)
async def root(request: Request) -> Response:
    """Say what runs here and where everything is; to a browser, show the console."""
    if prefers(request.headers.get("accept", ""), HTML):
        return _file("index.html")
    serving = service_of(request).serving
    paths = sorted({path for path in request.app.openapi()["paths"] if path != "/"})
    answer = json_answer(
        {
            "name": "Debut",
            "version": request.app.version,
            "release": serving.release.id,
            "tracks": len(serving.collection),
            "docs": {
                "openapi": "/openapi.json",
                "note": "No HTML docs: they would load scripts from elsewhere.",
            },
            "paths": paths,
        }
    )
    answer.headers["Vary"] = "Accept"
    return answer


@router.get("/console/{name}", include_in_schema=False)
async def console_file(name: str) -> Response:
    """One of the console's files."""
    if name not in FILES:
        raise Problem("not_found", f"The console has no file {name[:80]!r}; it begins at /.")
    return _file(name)


def _file(name: str) -> Response:
    content, kind = FILES[name]
    return Response(content, media_type=kind, headers={"Content-Security-Policy": POLICY, "Vary": "Accept"})
