"""Bodies that are crowded, deep or crooked are refused soon, with a 4xx, and in few words."""

import json
import time
import unicodedata

import pytest
from service_uploads import upload
from starlette.testclient import TestClient
from test_service_problems import JSON, OGG, assert_problem

from service.app import create_app
from service.http.values import _MARKS_IN_DISGUISE
from service.settings import Settings


@pytest.fixture(scope="module")
def shared(releases, tmp_path_factory):
    """One service in this process for all requests that change nothing."""
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    settings = Settings(releases=releases, ledger=ledger, encoder_threads=1, decode_workers=1)
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        yield client


def in_filters(artist: str) -> str:
    return json.dumps({"seeds": ["a"], "filters": {"artists": [artist]}}, ensure_ascii=False)


CROWDS = {
    "many wrong seeds": json.dumps({"seeds": [1] * 300_000}),
    "many wrong members": json.dumps({f"a{number}": 1 for number in range(90_000)}),
    "many wrong filters": json.dumps({"seeds": ["a"], "filters": {f"a{number}": 1 for number in range(90_000)}}),
    "many genres": json.dumps({"seeds": ["a"], "filters": {"genres": ["a"] * 1001}}),
    "many artists": json.dumps({"seeds": ["a"], "filters": {"artists": ["a"] * 200_000}}),
    "many languages": json.dumps({"seeds": ["a"], "filters": {"languages": ["en"] * 1001}}),
    "a long artist": json.dumps({"seeds": ["a"], "filters": {"artists": ["a" * 501]}}),
    "a long name": json.dumps({"seeds": ["a"], "x" * 900_000: 1}),
    "many accents": json.dumps(
        {"seeds": ["a"], "filters": {"artists": ["a" + "\u0301\u0323" * 250_000]}}, ensure_ascii=False
    ),
    "marks in disguise": in_filters("\u0f73" * 300_000),
    "deep lists": "[" * 500_000,
    "deep objects": '{"seeds":' * 100_000,
    "deep and closed": '{"seeds":' + "[" * 900 + "]" * 900 + "}",
    "deep filters": '{"seeds":["a"],"filters":' + '{"a":' * 900 + "1" + "}" * 901,
    "a number beyond numbers": '{"seeds":["a"],"k":' + "9" * 500_000 + "}",
    "a long exponent": '{"seeds":["a"],"diversity":1e' + "9" * 500_000 + "}",
    "not a number": '{"seeds":["a"],"diversity":NaN}',
}


@pytest.mark.parametrize("body", CROWDS.values(), ids=CROWDS)
def test_crowded_and_deep_json_is_refused_soon_and_in_few_words(shared, body):
    started = time.perf_counter()
    answer = shared.post("/continue-playlist", content=body.encode(), headers=JSON)
    assert time.perf_counter() - started < 2
    assert answer.status_code in (400, 413, 422), answer.text[:300]
    document = assert_problem(answer, answer.status_code, answer.json()["code"])
    assert document.code in ("bad_json", "too_large", "invalid_request")
    assert len(answer.content) < 20_000


def test_crowded_metadata_is_refused_soon_and_in_few_words(shared):
    crowds = [
        {"genres": [1] * 300_000},
        {"attributes": {f"a{number}": {} for number in range(90_000)}},
        {"attributes": {f"a{number}": [1] for number in range(900)}},
        {"attributes": {"a": [{}] * 300_000}},
        {"title": "a" + "\u0301\u0323" * 240_000},
        {"lyrics": "a" + "\u0301" * 450_000},
    ]
    for metadata in crowds:
        started = time.perf_counter()
        text = json.dumps(metadata, ensure_ascii=False)[: 2**20]
        answer = shared.post("/ingest-track", files={"audio": b"x", "metadata": (None, text)})
        assert time.perf_counter() - started < 3
        assert 400 <= answer.status_code < 500
        assert len(answer.content) < 20_000


def test_every_character_that_can_make_a_run_of_marks_is_counted():
    for number in (*range(0xD800), *range(0xE000, 0x110000)):
        character = chr(number)
        if unicodedata.combining(unicodedata.normalize("NFD", character)[0]):
            assert unicodedata.combining(character) or character in _MARKS_IN_DISGUISE, hex(number)


def test_accents_as_languages_write_them_are_taken(shared, clip):
    title = "Zo\u0308e \u1ea5\u0323 \u05e9\u05c1\u05bc \u0e19\u0e49\u0e33 \u0915\u094d\u0937\u093f"
    answer = upload(shared, clip, track_id="accents", title=title)
    assert answer.status_code == 201
    assert answer.json()["track"]["title"] == unicodedata.normalize("NFC", title)


def part(headers: bytes, body: bytes = b"x") -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + body + b"\r\n"


AUDIO = b'Content-Disposition: form-data; name="audio"; filename="a.ogg"'
ABOUT = b'Content-Disposition: form-data; name="metadata"'
GOOD_FORM = part(ABOUT, b"{}") + part(AUDIO, b"words " * 400) + b"--b--\r\n"


def malformed() -> list[tuple[str, bytes]]:
    """Content types and bodies of at least 60 forms that are not what they should be."""
    kind = "multipart/form-data; boundary=b"
    boundaries = [
        "",
        "; boundary",
        "; boundary=",
        '; boundary="',
        "; boundary=" + "b" * 257,
        "; boundary=" + "b" * 60_000,
    ]
    boundaries += ["; boundary=c", "; boundary=b c", "; boundary=\t", "; Boundary*=x", "; boundary=b; boundary=c"]
    forms = [(f"multipart/form-data{boundary}", GOOD_FORM) for boundary in boundaries]
    forms += [
        (f"{kind}; charset={name}", GOOD_FORM)
        for name in ("none", "utf-7", "base64", "rot13", "utf-16", "idna", "\x01")
    ]
    forms += [(kind, GOOD_FORM[:cut]) for cut in range(0, len(GOOD_FORM) - 2, max(1, len(GOOD_FORM) // 14))]
    headers = [
        b"",
        b":",
        b"no colon",
        b"Content-Disposition",
        b"Content-Disposition:",
        b"Content-Disposition: attachment",
        b"Content-Disposition: form-data",
        b"Content-Disposition: form-data; name",
        b"Content-Disposition: form-data; name=",
        b'Content-Disposition: form-data; name="',
        b'Content-Disposition: form-data; name="audio',
        b'Content-Disposition: form-data; name="audio"; filename=""',
        b'Content-Disposition: form-data; name="audio"; filename*=x',
        b"Content-Disposition: form-data; name*=utf-8''audio",
        b'Content-Disposition: form-data; name="\xff\xfe"',
        b'Content-Disposition: form-data; name="a\0b"',
        b'Content-Disposition: form-data; name="' + b"n" * 5000 + b'"',
        b"Bad Name: x\r\n" + AUDIO,
        b"X: \0\r\n" + AUDIO,
        b"X: " + b"x" * 100_000 + b"\r\n" + AUDIO,
        b"".join(b"X-%d: y\r\n" % number for number in range(1000)) + AUDIO,
        AUDIO + b"\r\nContent-Transfer-Encoding: base64",
        AUDIO + b"\nX: y",
        AUDIO + b";" * 3000,
    ]
    forms += [(kind, part(ABOUT, b"{}") + part(one) + b"--b--\r\n") for one in headers]
    forms += [(kind, part(ABOUT, b"{}") + part(AUDIO) * count + b"--b--\r\n") for count in (2, 3, 2000)]
    forms += [(kind, part(ABOUT, b"{}") * count + part(AUDIO) + b"--b--\r\n") for count in (2, 3, 2000)]
    forms += [(kind, b"--b\r\n" * 5000), (kind, b"\r\n" * 5000 + GOOD_FORM), (kind, b"--b--\r\n" + GOOD_FORM)]
    forms += [
        (kind, GOOD_FORM.replace(b"\r\n", b"\n")),
        (kind, GOOD_FORM.replace(b"--b", b"-b")),
        (kind, b"\xff" * 9999),
    ]
    forms += [(kind, part(ABOUT, b"{" * 900_000) + part(AUDIO) + b"--b--\r\n"), (kind, part(ABOUT, b"x" * 1_100_000))]
    forms += [(kind, GOOD_FORM + GOOD_FORM), (kind, b"preamble\r\n" + GOOD_FORM), (kind, GOOD_FORM + b"epilogue")]
    return forms


def test_malformed_forms_are_all_refused(shared):
    forms = malformed()
    assert len(forms) >= 60
    for kind, body in forms:
        started = time.perf_counter()
        answer = shared.post("/ingest-track", content=body, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500, (kind[:80], body[:200], answer.text)
        assert_problem(answer, answer.status_code, answer.json()["code"])
        assert time.perf_counter() - started < 2, (kind[:80], body[:200])
    assert shared.get("/tracks?q=words").json()["tracks"] == []


def test_a_long_query_names_the_few_mistakes_that_help(shared):
    answer = shared.get("/tracks?" + "&".join(f"a{number}=1" for number in range(5000)))
    assert len(assert_problem(answer, 422, "invalid_request").errors) == 20
    assert "and 4996 more" in answer.json()["detail"]
    assert shared.post("/ingest-track?" + "&".join(["title=x"] * 5000), content=b"x", headers=OGG).status_code == 422
