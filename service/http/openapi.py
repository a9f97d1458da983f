"""The OpenAPI document: bodies that are read by hand, and the problems of every route."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.http import security
from service.http.problems import KINDS, MEDIA_TYPE, TYPE_PREFIX
from service.http.schemas import ContinueRequest, ProblemDocument, TrackMetadata

DESCRIPTION = (
    "Brings a new track to its audience on day one: ingest it, continue playlists with it, and ask which "
    "listeners to show it to. Every error is a problem document (RFC 9457) with a stable `code`."
)

_REFERENCE = "#/components/schemas/{model}"
_EVERYWHERE = ("too_many_connections", "internal")
_BEHIND_THE_GATE = ("unauthorized", "forbidden", "cross_site", "unknown_host")
_READ_BY_HAND = (ContinueRequest, TrackMetadata, ProblemDocument)


def reference(model: type) -> dict[str, str]:
    """Return a JSON reference to the schema of `model`."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def failures(*codes: str, to_anybody: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may fail with these codes, or as all may; `to_anybody`: without a key."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in (*codes, *(() if to_anybody else _BEHIND_THE_GATE), *_EVERYWHERE):
        kind = KINDS[code]
        answer = by_status.setdefault(
            kind.status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": reference(ProblemDocument), "examples": {}}},
            },
        )
        answer["description"] += f"{'; ' if answer['description'] else ''}{kind.title} (`{code}`)"
        answer["content"][MEDIA_TYPE]["examples"][code] = {
            "value": {
                "type": TYPE_PREFIX + code,
                "title": kind.title,
                "status": kind.status,
                "detail": f"{kind.title}: this sentence says what was wrong and what to do.",
                "code": code,
                "instance": "urn:debut:request:4f6c1a",
            }
        }
    return by_status


def install(app: FastAPI) -> None:
    """Let the document include the schemas of bodies that routes read by hand, and no other error than problems."""
    generated = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generated()
            _, extra = models_json_schema([(model, "validation") for model in _READ_BY_HAND], ref_template=_REFERENCE)
            schema["components"]["schemas"].update(extra["$defs"])
            _drop_foreign_errors(schema)
            security.describe(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _drop_foreign_errors(schema: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI says every route with a parameter may answer with."""
    for item in schema["paths"].values():
        for operation in item.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
