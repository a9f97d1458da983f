"""POST /ingest-track; GET /tracks, GET and DELETE /tracks/{track_id}."""

from contextlib import AsyncExitStack
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.http.idempotency import HEADER, Answer, fingerprint, key_of
from service.http.openapi import failures, parameter, reference
from service.http.problems import Problem
from service.http.schemas import IngestResponse, IngestStatus, Removal, SearchResponse, TrackDocument, TrackMetadata
from service.http.upload import Upload, receive
from service.ingest.ingest import Ingested
from service.ingest.jobs import Job
from service.ingest.quality import quality
from service.metrics import Stopwatch
from service.routes.answers import json_answer, row_of, searching, service_of, track_document
from service.service import Service

router = APIRouter(tags=["tracks"])
log = structlog.get_logger("debut.ingest")

_AUDIO_FAILURES = (
    "not_audio",
    "audio_undecodable",
    "audio_truncated",
    "audio_empty",
    "audio_silent",
    "audio_too_short",
    "audio_too_long",
    "audio_no_stream",
    "decode_failed",
)
_IN_RELEASE = ("release.metadata", "release.vectors", "release.listening")
_IN_LEDGER = ("ledger.metadata", "ledger.vectors", "ledger.features")
_BINARY = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "audio/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["audio", "metadata"],
                "properties": {"audio": _BINARY, "metadata": reference(TrackMetadata)},
                "additionalProperties": False,
            },
            "encoding": {
                "audio": {"contentType": "audio/*, application/octet-stream"},
                "metadata": {"contentType": "application/json"},
            },
        },
    },
}
_QUERY: list[dict[str, Any]] = [
    {
        "name": "replace",
        "in": "query",
        "schema": {"type": "boolean", "default": False},
        "description": "Replace the track that has this id; else a known id with other content is a 409.",
    },
    *(
        {
            "name": name,
            "in": "query",
            **parameter(TrackMetadata, name),
            "description": f"Only with a raw audio body: TrackMetadata's `{name}`"
            + {"genres": ", once for each genre.", "attributes": ", as a JSON object."}.get(name, "."),
        }
        for name in TrackMetadata.model_fields
    ),
    {
        "name": HEADER,
        "in": "header",
        "schema": {"type": "string", "pattern": '^("[!#-~]{1,200}"|[!#-~]{1,200})$'},
        "description": "The same key again has the same answer again (of the last 1000, until a restart); with another "
        "upload it is a 422. What has a track_id, or is the same bytes, is one track without it too.",
    },
    {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string", "examples": ["respond-async"]},
        "description": "respond-async: answer with 202 once the upload has arrived (RFC 7240); /ingests/{ingest_id} "
        "then says what becomes of it. The 202 survives no crash, `done` does.",
    },
]


@router.post(
    "/ingest-track",
    summary="Take a track in",
    response_model=None,
    status_code=201,
    responses={
        201: {"model": IngestResponse, "description": "It can be recommended, now and after any crash."},
        200: {"model": IngestResponse, "description": "The same content and metadata were here already."},
        202: {
            "model": IngestStatus,
            "description": "It has arrived and will be worked on (`Prefer: respond-async`).",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "Where to look it up."}},
        },
        **failures(
            "bad_json",
            "bad_multipart",
            "upload_timeout",
            "track_exists",
            "too_large",
            "unsupported_media_type",
            *_AUDIO_FAILURES,
            "idempotency_mismatch",
            "invalid_request",
            "missing_part",
            "key_queue_full",
            "queue_full",
            "ledger_full",
            "ledger_unwritable",
            "not_ready",
            "spool_full",
        ),
    },
    openapi_extra={"requestBody": _BODY, "parameters": _QUERY},
)
async def ingest_track(request: Request) -> Response:
    """Send raw audio with the metadata in the query (the cheaper way), or a form of `audio` and `metadata`.

    Without a `track_id` the id is `sha256-` and the SHA-256 of the uploaded bytes, so the same file is one
    track.
    """
    service = service_of(request)
    watch, key, later = Stopwatch(), key_of(request), _respond_async(request)
    async with AsyncExitStack() as held:
        held.enter_context(service.ingest.place_in_queue(request.scope["state"].get("key")))
        upload = await held.enter_async_context(receive(request, service.settings, watch))
        async with service.answers.turn(key, fingerprint(upload, later=later)) as turn:
            if turn.known is not None:
                return turn.known.response(replayed=True)
            if later:
                turn.answer = _accept(service, upload, watch, held)
            else:
                ingested = await service.ingest.add(upload, watch)
                turn.answer = _answer(service, ingested, upload, watch)
    return turn.answer.response()


def _accept(service: Service, upload: Upload, watch: Stopwatch, held: AsyncExitStack) -> Answer:
    """Take the upload, and what it holds, over from the request."""

    async def work() -> dict[str, Any]:
        ingested = await service.ingest.add(upload, watch)
        return _response(service, ingested, upload, watch)

    job = Job(upload.track.track_id, watch)
    service.jobs.start(job, work, held)
    headers = {"Location": f"/ingests/{job.id}", "Preference-Applied": "respond-async"}
    return Answer(orjson.dumps(job.document), 202, headers)


def _answer(service: Service, ingested: Ingested, upload: Upload, watch: Stopwatch) -> Answer:
    body = _response(service, ingested, upload, watch)
    return Answer(orjson.dumps(body), 200 if ingested.outcome == "unchanged" else 201)


def _response(service: Service, ingested: Ingested, upload: Upload, watch: Stopwatch) -> dict[str, Any]:
    """Note a track that was taken in; return schemas.IngestResponse as plain data."""
    freshness = watch.elapsed
    if ingested.outcome != "unchanged":
        watch.note(service.metrics)
        service.metrics.freshness_seconds.observe(freshness)
    log.info("ingested", track_id=ingested.track.track_id, outcome=ingested.outcome, bytes=upload.size)
    return {
        "track": track_document(ingested.track, ingested.cold),
        "cold": ingested.cold,
        "outcome": ingested.outcome,
        "release": ingested.release_id,
        "content_sha256": upload.content_sha256,
        "quality": ingested.recording and quality(ingested.recording, ingested.near),
        "timings_ms": {stage: _ms(seconds) for stage, seconds in watch.seconds.items()},
        "freshness_ms": _ms(freshness),
    }


def _respond_async(request: Request) -> bool:
    """Whether the client prefers not to wait (RFC 7240); what else it prefers is not known, so it does not count."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


class SearchQuery(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid")

    q: str = Field(min_length=1, max_length=500, description="Beginnings of words of the title or artist.")
    limit: int = Field(default=20, ge=1, le=200, description="How many tracks to return at most.")


@router.get(
    "/tracks",
    summary="Find tracks by title or artist",
    response_model=None,
    responses={
        200: {"model": SearchResponse, "description": "Matching tracks, best first."},
        **failures("invalid_request", "busy"),
    },
)
async def find_tracks(request: Request, query: Annotated[SearchQuery, Query()]) -> Response:
    """Case, accents and punctuation do not count."""
    service = service_of(request)
    view = service.serving.collection.view()

    def search() -> list[dict[str, Any]]:
        rows = view.catalogue.search(query.q, query.limit)
        return [track_document(view.catalogue.track(row), view.catalogue.is_cold(row)) for row in rows]

    return json_answer({"tracks": await searching(service, search), "release": view.release_id})


@router.get(
    "/tracks/{track_id:path}",
    summary="Look a track up",
    response_model=None,
    responses={
        200: {"model": TrackDocument, "description": "The track."},
        **failures("unknown_track"),
    },
)
async def get_track(request: Request, track_id: str) -> Response:
    """Return what the catalogue knows of a track."""
    catalogue = (view := service_of(request).serving.collection.view()).catalogue
    row = row_of(view, track_id)
    return json_answer(track_document(catalogue.track(row), catalogue.is_cold(row)))


@router.delete(
    "/tracks/{track_id:path}",
    summary="Take a track down",
    response_model=None,
    responses={
        200: {"model": Removal, "description": "A receipt: from what it was removed."},
        **failures("unknown_track", "ledger_full", "ledger_unwritable"),
    },
)
async def remove_track(request: Request, track_id: str) -> Response:
    """It is gone from all answers at once, and stays gone after a restart and with every later release.

    The receipt also names what the files of release and ledger still hold of it until the ledger is folded into a new
    release (`python -m service fold`). Releases that were replaced hold it as long as their folders are there.
    """
    service = service_of(request)
    removed = await service.ingest.remove(track_id)
    if removed is None:
        raise Problem("unknown_track", f"{track_id[:80]!r} is not a track here; GET /tracks?q= finds ids by title.")
    log.info("removed", track_id=track_id)
    receipt = {
        "track_id": track_id,
        "removed_from": ["catalogue", "continuation", "matching"],
        "was_in_release": removed.in_release,
        "purged_by_next_fold": [*_IN_RELEASE * removed.in_release, *_IN_LEDGER * removed.in_ledger],
        "release": removed.release_id,
    }
    return json_answer(receipt)
