"""An upload as it arrives, in either of its two forms: raw audio with a query, or a multipart form."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from index.tracks.track import Track
from service.http.bodies import content_type, counted, load_json, parse, validated
from service.http.limits import check_metadata
from service.http.problems import Problem
from service.http.schemas import TrackMetadata
from service.metrics import Stopwatch
from service.settings import Settings

RAW_TYPES = ("application/octet-stream", "application/ogg")
_CHUNK = 2**18
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT)  # the last: tempfile found no folder to write to


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete upload: `audio` is at its start; `track` is its metadata, the id derived if need be."""

    audio: IO[bytes]
    content_sha256: str
    size: int
    track: Track
    replace: bool


@asynccontextmanager
async def receive(request: Request, settings: Settings, watch: Stopwatch) -> AsyncIterator[Upload]:
    """Read the whole upload (stage "receive"); what it holds of memory and disk is given back on leaving.

    Raises Problem: unsupported_media_type, too_large, upload_timeout, bad_json, bad_multipart, missing_part,
    invalid_request, audio_empty, spool_full.
    """
    read = _form(request)
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            with watch.stage("receive"), room_for_upload():
                upload = await read(request, settings)
    except TimeoutError:
        raise Problem(
            "upload_timeout",
            f"The upload did not arrive within {settings.upload_timeout_s:g} s.",
            setting="upload_timeout_s",
            headers={"Connection": "close"},
        ) from None
    try:
        yield upload
    finally:
        with suppress(OSError):  # what a full disk did not take is of no use any more
            upload.audio.close()


@contextmanager
def room_for_upload() -> Iterator[None]:
    """Raise Problem `spool_full` for a disk that does not take an upload."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise Problem(
            "spool_full",
            "The disk that takes uploads in is full; nothing of this one was kept. Make room there and send it again.",
        ) from None


def _form(request: Request) -> Any:
    kind = content_type(request)
    if kind == "multipart/form-data":
        return _read_multipart
    if kind.startswith("audio/") or kind in RAW_TYPES:
        return _read_raw
    raise Problem(
        "unsupported_media_type",
        f"/ingest-track takes a body of audio/* (or application/octet-stream) or multipart/form-data, not "
        f"{kind[:80] or 'a body without a type'}.",
    )


async def _read_raw(request: Request, settings: Settings) -> Upload:
    metadata, replace = _from_query(request)
    check_metadata(metadata, settings)  # before the bytes are taken in
    digest, size = hashlib.sha256(), 0
    audio: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(settings.spool_bytes)  # noqa: SIM115 - outlives this function
    try:
        async for chunk in _chunks(request, settings):
            digest.update(chunk)
            audio.write(chunk)
            size += len(chunk)
        return _upload(audio, digest.hexdigest(), size, metadata, replace)
    except BaseException:
        with suppress(OSError):
            audio.close()
        raise


def _chunks(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    return counted(request, settings.max_upload_bytes, "max_upload_bytes", settings.min_upload_rate)


async def _read_multipart(request: Request, settings: Settings) -> Upload:
    query = _query(request, ("replace",))
    form = await _parse_form(request, settings)
    try:
        metadata = await _metadata_part(form, settings)
        check_metadata(metadata, settings)
        part = form.get("audio")
        if not isinstance(part, UploadFile):
            raise Problem(
                "missing_part",
                "The form has no file part `audio`: send it as `-F audio=@song.mp3` does in curl.",
            )
        sha256, size = await asyncio.to_thread(_digest, part.file)
        return _upload(part.file, sha256, size, metadata, _flag(query, "replace"))
    except BaseException:
        with suppress(OSError):
            await form.close()
        raise


async def _parse_form(request: Request, settings: Settings) -> FormData:
    chunks = _chunks(request, settings)
    parser = MultiPartParser(request.headers, chunks, max_files=2, max_fields=2, max_part_size=settings.max_json_bytes)
    parser.spool_max_size = settings.spool_bytes
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("bad_multipart", f"The form cannot be read: {error.message}") from None
    except OSError:  # Starlette closes them as well, up to the first that a full disk does not let go
        _close(parser)
        raise
    except (UnicodeError, LookupError):
        raise Problem("bad_multipart", "The form names a charset that cannot be used: send it as UTF-8.") from None
    if len(parser._files_to_close_on_error) > sum(isinstance(part, UploadFile) for _, part in form.multi_items()):
        _close(parser)
        raise Problem("bad_multipart", "The form ends in the midst of a file: send it again, whole.")
    unknown = sorted(set(form) - {"audio", "metadata"})
    if unknown or len(form.multi_items()) != len(set(form)):
        await form.close()
        wrong = f"a part {unknown[0][:40]!r} is not known" if unknown else "a part is there twice"
        raise Problem("bad_multipart", f"The form takes the parts `audio` and `metadata`, once each: {wrong}.")
    return form


def _close(parser: MultiPartParser) -> None:
    for file in parser._files_to_close_on_error:
        with suppress(OSError):
            file.close()


async def _metadata_part(form: FormData, settings: Settings) -> TrackMetadata:
    part = form.get("metadata")
    if part is None:
        raise Problem("missing_part", "The form has no part `metadata`: send a JSON object, {} when nothing is known.")
    text: str | bytes
    if isinstance(part, UploadFile):  # sent with a file name, as `-F metadata=@track.json` does
        text = await part.read(settings.max_json_bytes + 1)
        if len(text) > settings.max_json_bytes:
            limit = settings.max_json_bytes
            raise Problem("too_large", f"The part `metadata` is larger than {limit} bytes.", setting="max_json_bytes")
        await part.close()
    else:
        text = part
    return parse(text, TrackMetadata, "metadata")


def _digest(file: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _upload(audio: IO[bytes], sha256: str, size: int, metadata: TrackMetadata, replace: bool) -> Upload:
    if size == 0:
        raise Problem("audio_empty", "The upload holds no bytes of audio.")
    audio.seek(0)
    return Upload(audio, sha256, size, _track(metadata, sha256), replace)


def _track(metadata: TrackMetadata, sha256: str) -> Track:
    fields = metadata.model_dump(exclude={"track_id", "genres"})
    fields = {name: value for name, value in fields.items() if value not in ("", None)}  # blank is unknown
    return Track(track_id=metadata.track_id or f"sha256-{sha256}", genres=tuple(metadata.genres), **fields)


def _from_query(request: Request) -> tuple[TrackMetadata, bool]:
    """Return metadata and `replace` from the query; what JSON would say with types is read from text here."""
    query = _query(request, ("replace", *TrackMetadata.model_fields))
    fields: dict[str, Any] = {name: values[0] for name, values in query.items() if name != "replace"}
    if "genres" in query:
        fields["genres"] = query["genres"]
    if "explicit" in query:
        fields["explicit"] = _flag(query, "explicit")
    if "attributes" in query:
        fields["attributes"] = load_json(query["attributes"][0], "attributes")
    return validated(fields, TrackMetadata, "query"), _flag(query, "replace")


def _query(request: Request, known: tuple[str, ...]) -> dict[str, list[str]]:
    query: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        query.setdefault(name, []).append(value)
    for name, values in query.items():
        if name not in known:
            raise _refused(name, f"is not known; known are {', '.join(known)}")
        if len(values) > 1 and name != "genres":
            raise _refused(name, "is given twice")
    return query


def _flag(query: dict[str, list[str]], name: str) -> bool:
    value = query.get(name, ["false"])[0]
    if value not in ("true", "false"):
        raise _refused(name, f"is {value[:40]!r}, not true or false")
    return value == "true"


def _refused(name: str, message: str) -> Problem:
    field = f"query.{name[:40]}"
    return Problem("invalid_request", f"{field}: {message}.", errors=[{"field": field, "message": message}])
