"""The service as a real process: killed, restarted, started where it cannot start, and stopped politely."""

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_process import RunningService, run_to_exit
from service_uploads import seeded, upload

INGESTS, KILLS = 200, 4


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_acknowledged_tracks_survive_kills_at_random_moments(releases, ledger, clip):
    """SIGKILL in the midst of 200 uploads, several times: what was acknowledged is there, once, and whole."""
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    waiting = [f"k{number:03}" for number in range(INGESTS)]
    acknowledged: set[str] = set()
    sent: set[str] = set()
    interrupted = 0
    for _ in range(KILLS):
        with RunningService(releases, ledger) as running:
            check_all_there(running.client, acknowledged, sent)
            moment = threading.Timer(float(rng.uniform(0.05, 1.2)), running.process.kill)
            moment.start()
            done = send_all(running.client, waiting, clip, sent)
            moment.cancel()
        interrupted += len(done) < len(waiting)
        acknowledged |= done
        waiting = [track_id for track_id in waiting if track_id not in acknowledged]
    assert interrupted >= 2, "the kills came too late to interrupt anything"
    with RunningService(releases, ledger) as running:
        check_all_there(running.client, acknowledged, sent)
        assert send_all(running.client, waiting, clip, sent) == set(waiting)
        acknowledged |= set(waiting)
        check_all_there(running.client, acknowledged, sent)
        check_answers(running.client, acknowledged)
    assert len(acknowledged) == INGESTS


def send_all(client: httpx.Client, batch: list[str], clip: bytes, sent: set[str]) -> set[str]:
    """Upload a batch, three at a time; return the ids that were acknowledged before the service died."""

    def send(track_id: str) -> str | None:
        sent.add(track_id)
        try:
            answer = upload(client, clip, track_id=track_id, title=f"Song {track_id}")
        except httpx.TransportError:
            return None
        assert answer.status_code in (200, 201), answer.text
        return track_id

    with ThreadPoolExecutor(3) as pool:
        return {track_id for track_id in pool.map(send, batch) if track_id}


def check_all_there(client: httpx.Client, acknowledged: set[str], sent: set[str]) -> None:
    for track_id in acknowledged:
        found = client.get(f"/tracks/{track_id}")
        assert found.status_code == 200, f"{track_id} was acknowledged and is lost"
        assert found.json()["title"] == f"Song {track_id}"
    listed = [track["track_id"] for track in client.get("/tracks", params={"q": "Song", "limit": 200}).json()["tracks"]]
    assert len(listed) == len(set(listed)), "a track is there twice"
    mine = {track_id for track_id in listed if re.fullmatch(r"k\d{3}", track_id)}
    assert acknowledged <= mine <= sent
    if mine:
        # Nothing is there by half: everything that is listed can be a seed and has an audience.
        some = sorted(mine - acknowledged) or sorted(mine)
        for track_id in some[:5]:
            assert seeded(client, track_id, k=5)
            assert client.get(f"/audience/{track_id}", params={"limit": 1}).status_code == 200


def check_answers(client: httpx.Client, acknowledged: set[str]) -> None:
    """All of them, and each once, are recommended."""
    one, *others = sorted(acknowledged)
    found = seeded(client, one, k=500)
    assert len(found) == len(set(found))
    assert set(others) <= set(found)


def test_it_says_where_it_is_answers_there_and_stops_politely(releases, ledger, clip):
    for number in (signal.SIGTERM, signal.SIGINT):
        running = RunningService(releases, ledger)
        with running:
            assert running.client.base_url.host == "127.0.0.1"
            ready = running.client.get("/readyz")
            assert (ready.status_code, ready.json()["ready"]) == (200, True)
            assert ready.json()["encoder_warm_up_ms"] > 0
            assert upload(running.client, clip, track_id="..%2f").status_code in (200, 201)
            assert running.client.get("/tracks/..%252f").json()["track_id"] == "..%2f"
            assert running.stop(number) == 0
        lines = [json.loads(line) for line in running.log]  # every line of the log is JSON
        assert any(line["event"] == "request" and line["route"] == "/readyz" for line in lines) is False
        [ingested] = [line for line in lines if line["event"] == "ingested"]
        assert ingested["track_id"] == "..%2f"
        assert re.fullmatch("[0-9a-f]{32}", ingested["request_id"])


def test_requests_in_hand_are_finished_at_a_polite_stop(releases, ledger, clip):
    with RunningService(releases, ledger) as running:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(upload, running.client, clip, track_id=f"t{n}") for n in range(4)]
            busy = "debut_uploads_in_hand 0.0"
            wait_for(lambda: busy not in running.client.get("/metrics").text or answers[-1].done())
            running.process.send_signal(signal.SIGTERM)
            codes = [answer.result(30).status_code for answer in answers]
        assert codes == [201] * 4
        assert running.stop() == 0


def test_an_upload_over_the_limit_gets_its_413_though_it_never_stops_sending(releases, ledger):
    """A client that sends everything before it reads still sees the answer, and may go on using the connection."""
    with RunningService(releases, ledger, max_upload_bytes=100_000, log_level="warning") as running:
        for content in (b"\0" * 8_000_000, (b"\0" * 65_536 for _ in range(100))):
            answer = running.client.post("/ingest-track", content=content, headers={"content-type": "audio/wav"})
            assert (answer.status_code, answer.json()["setting"]) == (413, "DEBUT_MAX_UPLOAD_BYTES")
        assert running.client.get("/livez").status_code == 200


def test_a_client_that_goes_away_leaves_nothing_behind(releases, ledger, clip):
    with RunningService(releases, ledger) as running:
        address = (running.client.base_url.host, running.client.base_url.port)
        with socket.create_connection(address, timeout=10) as half:
            head = "POST /ingest-track?track_id=half HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/ogg\r\n"
            half.sendall(f"{head}Content-Length: {len(clip)}\r\n\r\n".encode() + clip[: len(clip) // 2])
            wait_for(lambda: "debut_uploads_in_hand 1.0" in running.client.get("/metrics").text)
        wait_for(lambda: "debut_uploads_in_hand 0.0" in running.client.get("/metrics").text)
        assert running.client.get("/tracks/half").status_code == 404
        assert upload(running.client, clip, track_id="half").status_code == 201
        assert running.stop() == 0
    [left] = [line for line in map(json.loads, running.log) if line.get("status") == 499]
    assert left["route"] == "/ingest-track"
    assert not any("exception" in line for line in running.log)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_large_upload_leaves_memory_alone(releases, ledger):
    with RunningService(releases, ledger, spool_bytes=65_536) as running:
        before = peak_bytes(running)
        answer = running.client.post(
            "/ingest-track",
            content=(b"RIFF" + bytes(65_532) for _ in range(900)),  # 59 MB, not audio
            headers={"content-type": "audio/wav"},
        )
        assert 400 <= answer.status_code < 500
        assert peak_bytes(running) - before < 40e6


def peak_bytes(running: RunningService) -> int:
    with open(f"/proc/{running.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def assert_refused(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ended.returncode == 2, ended.stderr
    said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, ended.stderr
    assert said[0].startswith("debut: ")
    assert all(word in said[0] for word in words), said[0]
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_busy_port_is_a_sentence(releases, ledger):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert_refused(run_to_exit(releases=releases, ledger=ledger, port=port), f"127.0.0.1:{port}", "DEBUT_PORT")


def test_a_missing_release_is_a_sentence(tmp_path, ledger):
    assert_refused(run_to_exit(releases=tmp_path / "none", ledger=ledger, port=0), str(tmp_path / "none"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda release: flip(release / "encoder" / "audio.onnx"), "encoder/audio.onnx", id="a bit"),
        pytest.param(lambda release: (release / "matching.faiss").unlink(), "matching.faiss", id="a missing file"),
        pytest.param(lambda release: (release / "manifest.json").write_text("{"), "manifest.json", id="manifest"),
        pytest.param(shutil.rmtree, "current", id="a link to nowhere"),
    ],
)
def test_a_damaged_release_is_a_sentence(releases, tmp_path, ledger, damage, words):
    copy = tmp_path / "releases"
    shutil.copytree(releases, copy, symlinks=True)
    damage((copy / "current").resolve())
    assert_refused(run_to_exit(releases=copy, ledger=ledger, port=0), words)


def test_a_file_in_place_of_a_release_is_a_sentence(tmp_path, ledger):
    (tmp_path / "file").write_text("no release")
    assert_refused(run_to_exit(releases=tmp_path / "file", ledger=ledger, port=0), str(tmp_path / "file"))


def test_an_unwritable_or_foreign_ledger_is_a_sentence(releases, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_refused(
        run_to_exit(releases=releases, ledger=tmp_path / "file" / "ledger", port=0), str(tmp_path / "file" / "ledger")
    )
    assert_refused(run_to_exit(releases=releases, ledger=tmp_path / "file", port=0), "not a ledger")


def test_a_ledger_in_use_is_a_sentence(releases, ledger):
    with RunningService(releases, ledger) as running:
        assert_refused(run_to_exit(releases=releases, ledger=ledger, port=0), "in use by another process")
        assert running.client.get("/livez").status_code == 200


def test_an_unknown_setting_is_a_sentence(releases, ledger):
    assert_refused(run_to_exit(releases=releases, ledger=ledger, prot=1), "DEBUT_PROT", "did you mean DEBUT_PORT")


def test_a_public_address_needs_keys_or_to_be_allowed(releases, ledger):
    ended = run_to_exit(releases=releases, ledger=ledger, host="0.0.0.0")
    assert_refused(ended, "DEBUT_KEYS_FILE", "DEBUT_ALLOW_ANONYMOUS=true")
