"""Uploads that nobody waits for, keys that make a request one request, and what an answer says of the sound."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from service_process import RunningService
from service_uploads import mp3, ogg, tone, upload, wav

from index.sound.features import log_mel
from service.decode.wire import Heard
from service.http.schemas import IngestResponse, IngestStatus
from service.ingest.quality import silence

ASYNC = {"prefer": "respond-async"}


def send(client, audio: bytes, headers: dict[str, str], **query: object):
    headers = {"content-type": "audio/ogg"} | headers
    return client.post("/ingest-track", content=audio, headers=headers, params=query)


def over(client, location: str) -> IngestStatus:
    """Wait for an ingest to end."""
    deadline = time.monotonic() + 30
    while True:
        answer = client.get(location)
        status = IngestStatus.model_validate_json(answer.text, strict=True)
        if status.state in ("done", "failed"):
            assert "retry-after" not in answer.headers
            return status
        assert answer.headers["retry-after"] == "1"
        assert time.monotonic() < deadline, status
        time.sleep(0.02)


@pytest.fixture
def other():
    return ogg(tone(1.5, 880, seed=1))


class TestRespondAsync:
    def test_it_is_accepted_looked_up_and_done_as_a_201_would_have_said(self, client, clip):
        answer = send(client, clip, {"prefer": "wait=1, Respond-Async"}, track_id="later", title="A")
        assert answer.status_code == 202, answer.text
        assert answer.headers["preference-applied"] == "respond-async"
        assert IngestStatus.model_validate_json(answer.text, strict=True).state in ("queued", "running")
        status = over(client, answer.headers["location"])
        assert (status.state, status.stage, status.problem, status.track_id) == ("done", None, None, "later")
        assert status.result.outcome == "created"
        assert status.created <= status.ended
        assert client.get("/tracks/later").json()["title"] == "A"
        figures = client.get("/metrics").text
        assert "debut_freshness_seconds_count 1.0" in figures
        assert "debut_ingest_jobs 0.0" in figures
        assert "debut_uploads_in_hand 0.0" in figures
        again = send(client, clip, ASYNC, track_id="later", title="A")
        assert over(client, again.headers["location"]).result.outcome == "unchanged"

    def test_a_failure_is_a_problem_in_the_status(self, client, clip, other):
        upload(client, clip, track_id="t")
        conflict = over(client, send(client, other, ASYNC, track_id="t").headers["location"])
        assert (conflict.state, conflict.problem.code, conflict.result) == ("failed", "track_exists", None)
        silent = over(client, send(client, wav(tone(2) * 0), ASYNC).headers["location"])
        assert silent.problem.code == "audio_silent"
        assert "debut_uploads_in_hand 0.0" in client.get("/metrics").text

    def test_a_bug_is_an_internal_problem(self, client, clip, monkeypatch):
        def broken(*_):
            raise RuntimeError("secret")

        monkeypatch.setattr("service.ingest.ingest.Ingest._add", broken)
        status = over(client, send(client, clip, ASYNC).headers["location"])
        assert status.problem.code == "internal"
        assert "secret" not in status.problem.detail

    def test_memory_that_runs_out_is_told_as_in_an_answer(self, client, clip, monkeypatch):
        def short(*_):
            raise MemoryError

        monkeypatch.setattr("service.ingest.ingest.Ingest._add", short)
        status = over(client, send(client, clip, ASYNC).headers["location"])
        assert (status.problem.code, status.problem.status) == ("out_of_memory", 503)

    def test_the_queue_is_bounded_and_states_are_told(self, serve, settings, clip, monkeypatch):
        from service.decode.pool import Decoding

        leave, real = threading.Event(), Decoding.hear

        def slow(*arguments):
            assert leave.wait(30)
            return real(*arguments)

        monkeypatch.setattr(Decoding, "hear", slow)
        client = serve(settings.model_copy(update={"queue_size": 2, "ingest_threads": 1}))
        try:
            places = [send(client, clip, ASYNC, track_id=f"t{i}").headers["location"] for i in range(2)]
            while (first := client.get(places[0]).json())["state"] != "running":
                time.sleep(0.01)
            assert first["stage"] == "decode"
            assert client.get(places[1]).json()["state"] == "queued"
            refused = send(client, clip, ASYNC, track_id="t2")
            assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
            assert "debut_ingest_jobs 2.0" in client.get("/metrics").text
        finally:
            leave.set()
        assert [over(client, place).state for place in places] == ["done", "done"]

    def test_only_so_many_are_remembered(self, client, clip, monkeypatch):
        monkeypatch.setattr("service.ingest.jobs.KEPT", 2)
        places = []
        for number in range(5):
            places.append(send(client, clip, ASYNC, track_id=f"t{number}").headers["location"])
            over(client, places[-1])
        codes = [client.get(place).status_code for place in places]
        assert codes == [404, 404, 200, 200, 200]  # the last began when two were over


class TestIdempotencyKey:
    def test_the_same_request_has_the_same_answer_though_the_world_went_on(self, client, clip):
        key = {"idempotency-key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
        first = send(client, clip, key, track_id="t")
        again = send(client, clip, key, track_id="t")
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.content == again.content
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        client.delete("/tracks/t")
        late = send(client, clip, {"idempotency-key": key["idempotency-key"].strip('"')}, track_id="t")
        assert late.content == first.content
        assert client.get("/tracks/t").status_code == 404  # a retry that was under way brings nothing back

    @pytest.mark.parametrize("change", ["audio", "title", "replace", "later"])
    def test_another_upload_under_a_key_is_a_422(self, client, clip, other, change):
        key = {"idempotency-key": "k"}
        assert send(client, clip, key, track_id="t", title="A").status_code == 201
        answer = send(
            client,
            other if change == "audio" else clip,
            key | (ASYNC if change == "later" else {}),
            track_id="t",
            title="B" if change == "title" else "A",
            replace="true" if change == "replace" else "false",
        )
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
        assert len(client.app.state.service.ledger) == 1

    def test_a_failed_request_can_be_put_right_under_its_key(self, client, clip):
        key = {"idempotency-key": "k"}
        assert send(client, wav(tone(0.5)), key, track_id="t").status_code == 422
        assert send(client, clip, key, track_id="t").status_code == 201

    @pytest.mark.parametrize("key", ["", "two words", '"', "x" * 201, "naïve"])
    def test_a_key_that_is_none(self, client, clip, key):
        answer = send(client, clip, {"idempotency-key": key.encode()})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")

    def test_many_at_once_are_one(self, client, clip):
        start = threading.Barrier(8)

        def one(_: int):
            start.wait(30)
            return send(client, clip, {"idempotency-key": "k"})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(one, range(8)))
        assert [a.status_code for a in answers] == [201] * 8
        assert len({a.content for a in answers}) == 1
        assert sum("idempotent-replayed" in a.headers for a in answers) == 7

    def test_an_accepted_upload_is_accepted_once(self, client, clip):
        places = [send(client, clip, ASYNC | {"idempotency-key": "k"}, track_id="t").headers["location"] for _ in "ab"]
        assert places[0] == places[1]
        assert over(client, places[0]).state == "done"

    def test_only_so_many_are_remembered(self, client, clip, monkeypatch):
        monkeypatch.setattr("service.http.idempotency.KEPT", 1)
        for key in "ab":
            assert send(client, clip, {"idempotency-key": key}, track_id=key).status_code == 201
        assert send(client, clip, {"idempotency-key": "a"}, track_id="a").json()["outcome"] == "unchanged"


class TestQuality:
    def test_clipping_is_measured_on_the_file(self, client):
        loud = quality(upload(client, wav(np.clip(6 * tone(2), -1, 1)), track_id="loud"))
        assert loud.peak_dbfs == 0
        assert 0.1 < loud.clipped < 1
        decoded = quality(upload(client, mp3(np.clip(6 * tone(2), -1, 1)), track_id="lossy"))
        assert 0 < decoded.peak_dbfs < 12
        assert 0 < decoded.clipped < 1
        full = quality(upload(client, wav(tone(2) / np.abs(tone(2)).max()), track_id="full"))
        assert (full.peak_dbfs, full.clipped) == (0, 0)
        quiet = quality(upload(client, wav(tone(2) / 300), track_id="quiet"))
        assert -65 < quiet.peak_dbfs < -45

    def test_silence_is_counted_in_frames_and_padding_does_not_count(self):
        sound = tone(10)
        sound[5 * 48_000 :] = 0
        assert silence(heard(sound, 10.0)) == pytest.approx(0.5, abs=0.01)
        assert silence(heard(tone(10), 10.0)) == 0
        assert silence(heard(np.concatenate([tone(6), np.zeros(4 * 48_000)]), 6.0)) == 0
        hiss = np.random.default_rng(0).normal(0, 10 ** (-80 / 20), 480_000)  # -80 dBFS: nobody hears that
        assert silence(heard(hiss, 10.0)) == 1


def heard(samples: np.ndarray, duration_s: float) -> Heard:
    clip = np.zeros(480_000, np.float32)
    clip[: len(samples)] = samples[:480_000]
    return Heard(log_mel(clip[None]), duration_s, "wav", "pcm", 48_000, 1.0, 0.0, 0.0)


def quality(answer):
    return IngestResponse.model_validate_json(answer.text, strict=True).quality


def test_the_metrics_tell_what_is_fresh_and_what_is_gone(client, clip):
    upload(client, clip, track_id="a")
    upload(client, clip, track_id="a", title="A", replace="true")
    upload(client, clip, track_id="b")
    client.delete("/tracks/b")
    figures = client.get("/metrics").text
    for line in ("debut_index_vectors 41.0", "debut_index_fresh_vectors 3.0", "debut_index_tombstones 2.0"):
        assert line in figures


def test_what_was_accepted_is_done_at_a_polite_stop(releases, tmp_path, clip):
    ledger = tmp_path / "ledger.sqlite"
    with RunningService(releases, ledger, ingest_threads=1) as running:
        codes = [send(running.client, clip, ASYNC, track_id=f"t{n}").status_code for n in range(6)]
        assert codes == [202] * 6
        assert running.stop() == 0
    with RunningService(releases, ledger) as running:
        assert [running.client.get(f"/tracks/t{n}").status_code for n in range(6)] == [200] * 6
