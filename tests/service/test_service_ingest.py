"""POST /ingest-track and what follows from it: at once recommendable, once only, replaceable, removable."""

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from service_release import songs
from service_uploads import mp3, ogg, seeded, tone, upload, wav

from service.http.schemas import IngestResponse, Removal, SearchResponse, TrackDocument

SONG = songs()[0][1]  # the audio of a track of the release


def form(client, audio: bytes, metadata: object, **query):
    files = {
        "audio": ("song.ogg", audio, "audio/ogg"),
        "metadata": (None, json.dumps(metadata), "application/json"),
    }
    return client.post("/ingest-track", files=files, params=query)


def test_a_song_of_the_demo_is_recommended_by_the_next_request(client):
    """The same recording as a track of the release, under another id: each leads to the other."""
    original = client.get(f"/tracks/{SONG.stem}").json()
    names = {name: original[name] for name in ("title", "artist")}
    answer = upload(client, SONG.read_bytes(), track_id="brand-new", **names)
    assert answer.status_code == 201, answer.text
    assert seeded(client, "brand-new", k=1) == [SONG.stem]
    assert seeded(client, SONG.stem, k=1) == ["brand-new"]
    [first] = client.post("/continue-playlist", json={"seeds": [SONG.stem], "k": 1}).json()["tracks"]
    assert first["score"] == pytest.approx(1, abs=1e-4)
    assert first["cold"] is True
    document = IngestResponse.model_validate_json(answer.text, strict=True)
    assert document.outcome == "created"
    assert document.quality.windows == 1
    assert document.quality.duration_s == pytest.approx(15, abs=0.1)
    assert document.track.duration_s == document.quality.duration_s
    assert list(document.timings_ms) == ["receive", "decode", "features", "encode", "ledger", "index"]
    assert sum(document.timings_ms.values()) <= document.freshness_ms


def test_both_forms_of_upload_make_the_same_track(client, clip):
    metadata = {
        "title": "Nuit d’étoiles",
        "artist": "Marta Ruiz",
        "album": "Harbour",
        "language": "FR",
        "genres": ["folk", "indie"],
        "release_date": "2026-05",
        "explicit": False,
        "isrc": "NL-B63-26-00001",
        "lyrics": "one line\nanother line",
        "attributes": {"bpm": 120.5, "mood": ["calm", "blue"]},
    }
    query = metadata | {"explicit": "false", "attributes": json.dumps(metadata["attributes"])}
    raw = upload(client, clip, track_id="raw", **query)
    multipart = form(client, clip, metadata | {"track_id": "form"})
    assert (raw.status_code, multipart.status_code) == (201, 201), (raw.text, multipart.text)
    one, other = (client.get(f"/tracks/{i}").json() for i in ("raw", "form"))
    assert one | {"track_id": "form"} == other
    assert one["language"] == "fr"
    assert one["isrc"] == "NLB632600001"
    assert one["attributes"] == metadata["attributes"]
    assert "lyrics" not in one
    view = client.app.state.service.serving.collection.view()
    vectors = view.continuation.vectors([view.catalogue.row_of("raw"), view.catalogue.row_of("form")])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_metadata_may_be_a_file_part_and_replace_a_query(client, clip):
    files = {
        "audio": clip,
        "metadata": ("track.json", b'{"track_id": "t", "title": "A"}', "application/json"),
    }
    assert client.post("/ingest-track", files=files).status_code == 201
    files["metadata"] = ("track.json", b'{"track_id": "t", "title": "B"}', "application/json")
    assert client.post("/ingest-track", files=files).status_code == 409
    answer = client.post("/ingest-track?replace=true", files=files)
    assert (answer.status_code, answer.json()["outcome"]) == (201, "replaced")


def test_blank_metadata_is_unknown(client, clip):
    assert upload(client, clip, track_id="t", title="", artist="").status_code == 201
    assert client.get("/tracks/t").json()["title"] is None


@pytest.mark.parametrize(
    ("encode", "kind"),
    [(wav, "audio/wav"), (mp3, "audio/mpeg"), (ogg, "application/ogg"), (ogg, "audio/x-anything")],
)
def test_containers_are_found_by_content(client, encode, kind):
    assert upload(client, encode(tone(2)), kind=kind, track_id="t").status_code == 201


def test_without_an_id_the_content_is_the_id(client, clip):
    answer = upload(client, clip, title="Nameless")
    expected = f"sha256-{hashlib.sha256(clip).hexdigest()}"
    assert answer.status_code == 201
    assert answer.json()["track"]["track_id"] == expected
    assert answer.json()["content_sha256"] == expected.removeprefix("sha256-")
    assert upload(client, clip, title="Nameless").status_code == 200
    assert client.get(f"/tracks/{expected}").status_code == 200


@pytest.mark.parametrize("track_id", ["a/b/c", "spotify:track:1", "ünï — 雪", "a?b#c%d"])
def test_ids_may_hold_what_they_like(client, clip, track_id):
    from urllib.parse import quote

    assert upload(client, clip, track_id=track_id).status_code == 201
    path = f"/tracks/{quote(track_id, safe='')}"
    assert client.get(path).json()["track_id"] == track_id
    assert client.get(f"/audience/{quote(track_id, safe='')}?limit=1").json()["track_id"] == track_id
    assert client.delete(path).json()["track_id"] == track_id
    assert client.get(path).status_code == 404


def test_the_same_again_is_200_and_anything_else_409_unless_replaced(client, clip):
    other = ogg(tone(1.5, 880, seed=1))
    assert upload(client, clip, track_id="t", title="A").status_code == 201
    again = upload(client, clip, track_id="t", title="A")
    assert (again.status_code, again.json()["outcome"], again.json()["quality"]) == (200, "unchanged", None)
    IngestResponse.model_validate_json(again.text, strict=True)
    events = len(client.app.state.service.ledger)
    content = upload(client, other, track_id="t", title="A")
    metadata = upload(client, clip, track_id="t", title="B")
    assert (content.status_code, metadata.status_code) == (409, 409)
    assert "with other content" in content.json()["detail"]
    assert "with other metadata" in metadata.json()["detail"]
    assert "replace=true" in metadata.json()["detail"]
    assert len(client.app.state.service.ledger) == events
    replaced = upload(client, other, track_id="t", title="B", replace="true")
    assert (replaced.status_code, replaced.json()["outcome"]) == (201, "replaced")
    assert client.get("/tracks/t").json()["title"] == "B"
    assert upload(client, other, track_id="t", title="B").status_code == 200
    assert [t["track_id"] for t in client.get("/tracks?q=B").json()["tracks"]].count("t") == 1


def test_a_track_of_the_release_is_known_and_can_be_replaced(client, clip, serve, settings):
    refused = upload(client, clip, track_id=SONG.stem, title="Mine")
    assert refused.status_code == 409
    assert "came with the release" in refused.json()["detail"]
    was_cold = client.get(f"/tracks/{SONG.stem}").json()["cold"]
    replaced = upload(client, clip, track_id=SONG.stem, title="Mine", replace="true")
    assert (replaced.status_code, replaced.json()["outcome"]) == (201, "replaced")
    assert replaced.json()["cold"] == was_cold  # its listeners are still its listeners
    assert client.get(f"/tracks/{SONG.stem}").json()["title"] == "Mine"
    assert client.get("/").json()["tracks"] == 40
    client.app.state.service.close()
    after = serve(settings)
    assert after.get(f"/tracks/{SONG.stem}").json()["title"] == "Mine"
    assert after.get("/").json()["tracks"] == 40
    assert after.delete(f"/tracks/{SONG.stem}").json()["was_in_release"] is True


def test_a_removed_track_is_gone_at_once_and_after_a_restart(client, clip, serve, settings):
    upload(client, clip, track_id="mine", title="Zzyzx")
    neighbour = seeded(client, "mine", k=1)[0]
    receipts = [client.delete(f"/tracks/{i}").json() for i in ("mine", neighbour)]
    assert [Removal.model_validate(r).was_in_release for r in receipts] == [False, True]
    for now in (client, None):
        if now is None:
            client.app.state.service.close()
            now = serve(settings)
        for track_id in ("mine", neighbour):
            assert now.get(f"/tracks/{track_id}").status_code == 404
            assert now.get(f"/audience/{track_id}").status_code == 404
            assert now.delete(f"/tracks/{track_id}").status_code == 404
        assert now.get("/tracks?q=zzyzx").json()["tracks"] == []
        some = now.get("/tracks?q=e").json()["tracks"][0]["track_id"]
        assert {"mine", neighbour}.isdisjoint(seeded(now, some, k=500))
    answer = upload(now, clip, track_id="mine", title="Zzyzx")
    assert (answer.status_code, answer.json()["outcome"]) == (201, "created")


def test_twenty_uploads_of_one_track_at_once_are_one_track(client, clip):
    start = threading.Barrier(20)

    def send(_: int) -> int:
        start.wait(30)
        return upload(client, clip, track_id="popular", title="A").status_code

    with ThreadPoolExecutor(20) as pool:
        codes = sorted(pool.map(send, range(20)))
    assert codes == [200] * 19 + [201]
    assert len(client.app.state.service.ledger) == 1
    assert client.get("/").json()["tracks"] == 41


def test_two_tracks_that_want_one_id_at_once_are_one_track_and_a_409(client, clip):
    other = ogg(tone(1.5, 880, seed=1))
    with ThreadPoolExecutor(2) as pool:
        codes = sorted(pool.map(lambda audio: upload(client, audio, track_id="t").status_code, (clip, other)))
    assert codes == [201, 409]
    assert len(client.app.state.service.ledger) == 1


def test_a_full_queue_is_a_503_that_says_when_to_come_back(serve, settings, clip, monkeypatch):
    from service.decode.pool import Decoding

    entered, leave = threading.Event(), threading.Event()
    real = Decoding.hear

    def slow(*arguments):
        entered.set()
        assert leave.wait(30)
        return real(*arguments)

    monkeypatch.setattr(Decoding, "hear", slow)
    client = serve(settings.model_copy(update={"queue_size": 1}))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(upload, client, clip, track_id="first")
        assert entered.wait(30)
        refused = upload(client, clip, track_id="second")
        leave.set()
        assert first.result(30).status_code == 201
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["setting"] == "DEBUT_QUEUE_SIZE"
    assert upload(client, clip, track_id="second").status_code == 201
    assert "debut_uploads_refused_total 1.0" in client.get("/metrics").text
    assert "debut_uploads_in_hand 0.0" in client.get("/metrics").text


def test_an_upload_that_does_not_arrive_in_time_is_a_408(serve, settings):
    client = serve(settings.model_copy(update={"upload_timeout_s": 0.2}))

    async def trickle(*_):
        import asyncio

        await asyncio.sleep(5)

    from unittest import mock

    with mock.patch("service.http.upload._read_raw", trickle):
        started = time.monotonic()
        answer = upload(client, b"x", track_id="late")
    assert (answer.status_code, answer.json()["setting"]) == (408, "DEBUT_UPLOAD_TIMEOUT_S")
    assert time.monotonic() - started < 4


def test_a_ledger_that_cannot_be_written_refuses_the_track_and_readiness(client, clip, monkeypatch):
    from service.ledger.ledger import LedgerError
    from service.ledger.sqlite import SqliteLedger

    def full(*_):
        raise LedgerError("the disk is full: make room.")

    monkeypatch.setattr(SqliteLedger, "append", full)
    monkeypatch.setattr(SqliteLedger, "check", full)
    answer = upload(client, clip, track_id="t")
    assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unwritable")
    assert client.get("/tracks/t").status_code == 404
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert "the disk is full" in ready.json()["detail"]
    assert client.get("/livez").status_code == 200


def test_a_model_that_breaks_gets_nothing_into_the_ledger(client, clip, monkeypatch):
    from index.models.matcher import Matcher

    monkeypatch.setattr(Matcher, "vectors", lambda *_: np.full((1, 128), np.nan, np.float32))
    answer = upload(client, clip, track_id="t")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert len(client.app.state.service.ledger) == 0
    monkeypatch.undo()
    assert upload(client, clip, track_id="t").status_code == 201


def test_look_up_and_search_fit_their_models(client):
    found = SearchResponse.model_validate_json(client.get("/tracks?q=a&limit=3").text, strict=True)
    assert len(found.tracks) == 3
    one = TrackDocument.model_validate_json(client.get(f"/tracks/{found.tracks[0].track_id}").text, strict=True)
    assert one == found.tracks[0]


def test_metrics_count_what_happened(client, clip):
    upload(client, clip, track_id="t")
    client.delete("/tracks/t")
    figures = client.get("/metrics").text
    for stage in ("receive", "decode", "features", "encode", "ledger", "index"):
        assert f'debut_ingest_seconds_count{{stage="{stage}"}} 1.0' in figures
    assert "debut_freshness_seconds_count 1.0" in figures
    assert "debut_index_vectors 40.0" in figures
    assert "debut_ledger_events 2.0" in figures
    assert 'debut_request_seconds_count{method="DELETE",route="/tracks/{track_id}",status="200"} 1.0' in figures
    release = client.get("/").json()["release"]
    assert f'release="{release}"' in figures
