"""The OpenAPI document: bodies that are read by hand, and the problems of every route."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http import security
from service.http.problems import KINDS, MEDIA_TYPE, TYPE_PREFIX
from service.http.schemas import ContinueRequest, FilterRequest, ProblemDocument, TrackMetadata
from service.settings import Settings

DESCRIPTION = (
    "Brings a new track to its audience on day one: ingest it, continue playlists with it, and ask which "
    "listeners to show it to. Every error is a problem document (RFC 9457) with a stable `code`."
)

_REFERENCE = "#/components/schemas/{model}"
_EVERYWHERE = ("too_many_connections", "out_of_memory", "internal")
_BEHIND_THE_GATE = ("unauthorized", "forbidden", "cross_site", "unknown_host")
_READ_BY_HAND = (ContinueRequest, TrackMetadata, ProblemDocument)

# What `service.http.limits` holds requests against: model -> field -> setting.
_LIMITS: dict[type[BaseModel], dict[str, str]] = {
    ContinueRequest: {"seeds": "max_seeds", "negatives": "max_seeds", "exclude": "max_exclude", "k": "max_k"},
    FilterRequest: dict.fromkeys(("languages", "genres", "artists"), "max_filter_values"),
    TrackMetadata: {
        "track_id": "max_id_chars",
        **dict.fromkeys(("title", "artist", "album"), "max_text_chars"),
        "lyrics": "max_lyrics_chars",
        "genres": "max_genres",
        "attributes": "max_attributes",
    },
}
_MOST = {"string": "maxLength", "integer": "maximum", "array": "maxItems", "object": "maxProperties"}


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
                "content": {MEDIA_TYPE: {"schema": _problem(kind.status), "examples": {}}},
            },
        )
        answer["description"] += f"{'; ' if answer['description'] else ''}{kind.title} (`{code}`)"
        answer["content"][MEDIA_TYPE]["schema"]["allOf"][1]["properties"]["code"]["enum"].append(code)
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


def _problem(status: int) -> dict[str, Any]:
    """Return the schema of a route's problems with this status; its list of codes is still empty."""
    return {"allOf": [reference(ProblemDocument), {"properties": {"status": {"const": status}, "code": {"enum": []}}}]}


def parameter(model: type[BaseModel], field: str) -> dict[str, Any]:
    """Return how a query says what a JSON body says in `field` of `model`: by its schema, objects as JSON text."""
    found = model.model_json_schema()["properties"][field]
    schema = {name: value for name, value in _sole(found).items() if name not in ("title", "description")}
    return {"content": {"application/json": {"schema": schema}}} if schema["type"] == "object" else {"schema": schema}


def install(app: FastAPI, settings: Settings) -> None:
    """Let the document include the schemas of bodies that routes read by hand, and no other error than problems.

    It names the limits of `settings`, so that a client can keep them, and says whether a key is needed.
    """
    generated = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generated()
            _, extra = models_json_schema([(model, "validation") for model in _READ_BY_HAND], ref_template=_REFERENCE)
            schema["components"]["schemas"].update(extra["$defs"])
            _drop_foreign_errors(schema)
            _name_limits(schema, settings)
            security.describe(schema, keys=settings.keys_file is not None)
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


def _name_limits(schema: dict[str, Any], settings: Settings) -> None:
    models = schema["components"]["schemas"]
    for model, limits in _LIMITS.items():
        for field, setting in limits.items():
            _limit(models[model.__name__]["properties"][field], getattr(settings, setting))
    for one in schema["paths"]["/ingest-track"]["post"]["parameters"]:
        if one["name"] in _LIMITS[TrackMetadata]:
            place = one.get("content", {}).get("application/json", one)
            _limit(place["schema"], getattr(settings, _LIMITS[TrackMetadata][one["name"]]))
    for one in schema["paths"]["/audience/{track_id}"]["get"]["parameters"]:
        if one["name"] == "limit":
            _limit(one["schema"], settings.max_listeners)


def _limit(schema: dict[str, Any], most: int) -> None:
    bounded = _sole(schema)
    bounded[_MOST[bounded["type"]]] = most


def _sole(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema allows besides null."""
    found: dict[str, Any] = schema["anyOf"][0] if "anyOf" in schema else schema
    return found
