"""Every failure on every route is a problem document (RFC 9457): a stable code, a sentence that helps."""

import json

import pytest
from service_uploads import mp3, ogg, tone, upload, wav

from service.http.problems import KINDS, MEDIA_TYPE
from service.http.schemas import ProblemDocument

JSON = {"content-type": "application/json"}
OGG = {"content-type": "audio/ogg"}
INVALID = (422, "invalid_request")
METHOD = (405, "method_not_allowed")
MEDIA = (415, "unsupported_media_type")
UNKNOWN = (404, "unknown_track")
EMPTY = (422, "audio_empty")


def asking(body: object, outcome: tuple[int, str], words: str):
    """A bad body (JSON value, or text as it is) for /continue-playlist."""
    arguments = {"content": body, "headers": JSON} if isinstance(body, (str, bytes)) else {"json": body}
    return ("POST", "/continue-playlist", arguments, *outcome, words)


def raw(query: str, words: str, outcome: tuple[int, str] = INVALID):
    """A bad query of a raw upload."""
    return ("POST", f"/ingest-track?{query}", {"content": b"x", "headers": OGG}, *outcome, words)


def form(parts: object, outcome: tuple[int, str], words: str):
    """A bad form."""
    return ("POST", "/ingest-track", {"files": parts}, *outcome, words)


def about(metadata: str, words: str, outcome: tuple[int, str] = INVALID):
    """A form with bad metadata."""
    return form({"audio": b"x", "metadata": (None, metadata)}, outcome, words)


def body(content: bytes, kind: str, outcome: tuple[int, str], words: str):
    """A raw upload of something else."""
    return ("POST", "/ingest-track", {"content": content, "headers": {"content-type": kind}}, *outcome, words)


# (method, path, arguments of the request, status, code, words that must be in the detail)
BAD = [
    ("GET", "/nothing-here", {}, 404, "not_found", "/nothing-here"),
    ("GET", "/docs", {}, 404, "not_found", "/docs"),
    ("GET", "/tracks/", {}, *UNKNOWN, "GET /tracks?q="),
    ("DELETE", "/tracks/nobody", {}, *UNKNOWN, "'nobody'"),
    ("GET", "/tracks/a%2Fb", {}, *UNKNOWN, "'a/b'"),
    ("GET", "/audience/nobody", {}, *UNKNOWN, "'nobody'"),
    ("GET", "/ingests/nothing", {}, 404, "unknown_ingest", "GET /tracks/{track_id}"),
    ("PUT", "/tracks/nobody", {}, *METHOD, "takes DELETE, GET, not PUT"),
    ("GET", "/ingest-track", {}, *METHOD, "takes POST, not GET"),
    ("GET", "/continue-playlist", {}, *METHOD, "takes POST"),
    *(("POST", path, {}, *METHOD, "takes GET") for path in ("/audience/x", "/livez", "/readyz", "/metrics")),
    *(("POST", path, {}, *METHOD, "takes GET") for path in ("/", "/openapi.json")),
    ("GET", "/tracks", {}, *INVALID, "query.q"),
    ("GET", "/tracks?q=a&limit=0", {}, *INVALID, "query.limit"),
    ("GET", "/tracks?q=a&page=2", {}, *INVALID, "query.page: is not a known field"),
    ("GET", "/audience/x?limit=none", {}, *INVALID, "query.limit"),
    ("GET", "/audience/x?limit=10001", {}, *INVALID, "more than the 10000"),
    ("POST", "/continue-playlist", {"content": "{}"}, *MEDIA, "application/json"),
    asking("{", (400, "bad_json"), "not JSON"),
    asking("", (400, "bad_json"), "not JSON"),
    asking(b"\xff", (400, "bad_json"), "not JSON"),
    asking(b" " * 2_000_000, (413, "too_large"), "1048576"),
    asking([], INVALID, "is a list, not an object"),
    asking({}, INVALID, "seeds: field required"),
    asking({"seeds": []}, INVALID, "seeds"),
    asking({"seeds": ["a"], "k": 0}, INVALID, "k: "),
    asking({"seeds": ["a"], "k": "5"}, INVALID, "k: "),
    asking({"seeds": ["a"], "k": 501}, INVALID, "the 500 that"),
    asking({"seeds": ["a"] * 501}, INVALID, "seeds: is 501 ids"),
    asking({"seeds": ["a"], "seed": 1}, INVALID, "seed: is not a known field"),
    asking({"seeds": ["a"], "diversity": 2}, INVALID, "diversity"),
    asking({"seeds": ["a"], "filters": {"released_to": "soon"}}, INVALID, "filters.released_to: 'soon' is not a"),
    asking({"seeds": ["no", "none"]}, (422, "unknown_seeds"), "None of the 2 seeds"),
    ("POST", "/ingest-track", {}, *MEDIA, "audio/*"),
    body(b"x", "text/plain", MEDIA, "text/plain"),
    body(b"{}", "application/json", MEDIA, "application/json"),
    body(b"words " * 500, "audio/ogg", (415, "not_audio"), "convert it"),
    body(b"", "audio/ogg", EMPTY, "no bytes"),
    body(b"x", "multipart/form-data", (400, "bad_multipart"), "boundary"),
    raw("track_id=", "track_id: is empty"),
    raw("track_id=%20a", "white space"),
    raw("track_id=a%07", "U+0007"),
    raw("title=a%00b", "query.title"),
    raw("name=x", "query.name: is not known"),
    raw("title=x&title=y", "given twice"),
    raw("explicit=yes", "true or false"),
    raw("replace=1", "true or false"),
    raw("release_date=31.5.2026", "like 2024"),
    raw("release_date=2026-02-30", "not a date"),
    raw("isrc=123", "not an ISRC"),
    raw("language=english", "like en"),
    raw("attributes={", "Attributes is not JSON", (400, "bad_json")),
    raw("attributes=[1]", "attributes"),
    raw(f"title={'x' * 501}", "501 characters"),
    raw(f"track_id={'x' * 201}", "the 200"),
    form({"audio": b"x"}, (422, "missing_part"), "`metadata`"),
    form({"metadata": (None, "{}")}, (422, "missing_part"), "`audio`"),
    form({"audio": (None, "x"), "metadata": (None, "{}")}, (422, "missing_part"), "`audio`"),
    form({"audio": b"", "metadata": (None, "{}")}, EMPTY, "no bytes"),
    form({"audio": b"words " * 500, "metadata": (None, "{}")}, (415, "not_audio"), "convert it"),
    form({"audio": b"x", "metadata": (None, "{}"), "cover": b"y"}, (400, "bad_multipart"), "'cover'"),
    form([("audio", b"x"), ("audio", b"y")], (400, "bad_multipart"), "twice"),
    about("{]", "Metadata is not JSON", (400, "bad_json")),
    about('{"title":"\\ud800"}', "not JSON", (400, "bad_json")),
    about("null", "is null, not an object"),
    about('{"titel":"x"}', "metadata.titel: is not a known field"),
    about('{"title":5}', "metadata.title"),
    about('{"explicit":"no"}', "metadata.explicit"),
    about('{"genres":"rock"}', "metadata.genres"),
    about('{"track_id":""}', "is empty"),
    about(json.dumps({"genres": ["g"] * 33}), "33 genres"),
]


def assert_problem(answer, status: int, code: str) -> ProblemDocument:
    """Hold an answer against RFC 9457 and our own promises; return its document."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE), answer.text
    document = ProblemDocument.model_validate_json(answer.text)
    assert document.status == status
    assert document.code == code
    assert document.type == f"urn:debut:problem:{code}"
    assert document.title == KINDS[code].title
    assert document.instance == f"urn:debut:request:{answer.headers['x-request-id']}"
    assert len(document.detail) > 15
    assert document.detail[-1] in ".{}}" or document.detail[-1].isalnum()
    assert "Traceback" not in answer.text
    return document


@pytest.fixture(scope="module")
def shared(releases, tmp_path_factory):
    """One service for all requests that change nothing."""
    from starlette.testclient import TestClient

    from service.app import create_app
    from service.settings import Settings

    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    settings = Settings(releases=releases, ledger=ledger, encoder_threads=1)
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status", "code", "words"),
    BAD,
    ids=[f"{method} {path[:40]} {code} {words[:20]}" for method, path, _, _, code, words in BAD],
)
def test_every_failure_is_a_problem_document(shared, method, path, arguments, status, code, words):
    document = assert_problem(shared.request(method, path, **arguments), status, code)
    assert words in document.detail
    if code == "invalid_request":
        assert document.errors
        assert document.errors[0].keys() == {"field", "message"}


@pytest.mark.parametrize(
    ("audio", "code", "setting"),
    [
        pytest.param(lambda: wav(tone(0.5)), "audio_too_short", "DEBUT_MIN_AUDIO_S", id="half a second"),
        pytest.param(lambda: wav(tone(2) * 0), "audio_silent", None, id="silence"),
        pytest.param(lambda: mp3(tone(20))[:-9000], "audio_truncated", None, id="truncated mp3"),
        pytest.param(lambda: ogg(tone(20))[:-9000], "audio_truncated", None, id="truncated ogg"),
        pytest.param(lambda: wav(tone(2))[:1000], "audio_truncated", None, id="truncated wav"),
        pytest.param(lambda: b"OggS" + bytes(3000), None, None, id="a header and zeros"),
    ],
)
def test_audio_that_cannot_be_used_is_refused_and_not_kept(shared, audio, code, setting):
    answer = upload(shared, audio(), kind="application/octet-stream", track_id="bad-audio")
    document = assert_problem(answer, 422, code or answer.json()["code"])
    assert document.code.startswith("audio_")
    assert document.setting == setting
    assert shared.get("/tracks/bad-audio").status_code == 404


def test_a_truncated_mp3_passes_when_it_is_whole(shared):
    assert upload(shared, mp3(tone(20)), kind="audio/mpeg", track_id="whole-mp3").status_code == 201


def test_the_setting_behind_a_limit_is_named(serve, settings, clip):
    small = serve(settings.model_copy(update={"max_upload_bytes": len(clip) - 1, "max_k": 3, "max_seeds": 2}))
    document = assert_problem(upload(small, clip), 413, "too_large")
    assert document.setting == "DEBUT_MAX_UPLOAD_BYTES"
    form = {"audio": clip, "metadata": (None, "{}")}
    assert assert_problem(small.post("/ingest-track", files=form), 413, "too_large").setting == document.setting
    too_many = small.post("/continue-playlist", json={"seeds": ["a"], "k": 4})
    assert assert_problem(too_many, 422, "invalid_request").setting == "DEBUT_MAX_K"
    too_many = small.post("/continue-playlist", json={"seeds": ["a", "b", "c"], "k": 3})
    assert assert_problem(too_many, 422, "invalid_request").setting == "DEBUT_MAX_SEEDS"


def test_bytes_are_counted_when_no_length_is_declared(serve, settings):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(64):
            sent += 1000
            yield b"\0" * 1000

    small = serve(settings.model_copy(update={"max_upload_bytes": 5000}))
    answer = small.post("/ingest-track", content=chunks(), headers=OGG)
    assert_problem(answer, 413, "too_large")


def test_a_bug_is_a_500_without_a_trace_and_a_log_line_with_the_id(client, monkeypatch, caplog):
    def broken(*_: object):
        raise RuntimeError("secret inner state")

    monkeypatch.setattr("service.routes.playlists.continue_playlist", broken)
    answer = client.post("/continue-playlist", json={"seeds": ["a"]}, headers={"x-request-id": "my-id.7"})
    document = assert_problem(answer, 500, "internal")
    assert answer.headers["x-request-id"] == "my-id.7"
    assert "secret" not in answer.text
    assert "RuntimeError" not in document.detail


@pytest.mark.parametrize("given", ["spaces are bad", "x" * 65, "", 'a"b', "naïve"])
def test_a_strange_request_id_is_replaced(client, given):
    answer = client.get("/livez", headers={"x-request-id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 32
