"""python -m service check: a line for everything that a start needs, and an exit code."""

import os
import shutil
import socket
import sqlite3
from collections import namedtuple
from pathlib import Path

import pytest
from service_process import RunningService, run_to_exit
from service_uploads import upload

from service.check import Finding, findings, run


@pytest.fixture
def environment(monkeypatch, releases, tmp_path):
    for name in [name for name in os.environ if name.upper().startswith("DEBUT_")]:
        monkeypatch.delenv(name)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    values = {"RELEASES": releases, "LEDGER": tmp_path / "ledger.sqlite", "PORT": port, "ENCODER_THREADS": 1}
    for name, value in values.items():
        monkeypatch.setenv(f"DEBUT_{name}", str(value))
    return monkeypatch


def found(subject: str, state: str) -> str:
    """The sentences on a subject, of which there is one in that state."""
    about = [finding for finding in findings() if finding.subject == subject]
    assert state in {finding.state for finding in about}, about
    return " ".join(finding.sentence for finding in about if finding.state == state)


def test_all_is_well_before_the_first_start(environment, tmp_path):
    seen = list(findings())
    assert {finding.subject for finding in seen} >= {"settings", "port", "ledger", "disk", "threads", "release"}
    assert not [finding for finding in seen if finding.state == "fail"]
    assert "40 tracks" in seen[-1].sentence
    assert list(tmp_path.iterdir()) == []  # it changes nothing


def test_a_running_service_is_looked_at_beside(releases, tmp_path, clip):
    ledger = tmp_path / "ledger.sqlite"
    with RunningService(releases, ledger) as running:
        upload(running.client, clip, track_id="a")
        upload(running.client, clip, track_id="b")
        running.client.delete("/tracks/b")
        port = running.client.base_url.port
        ended = run_to_exit("check", releases=releases, ledger=ledger, port=port)
        assert upload(running.client, clip, track_id="c").status_code == 201
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert all(line[:4].strip() in ("ok", "warn") for line in lines), lines
    assert "in use by a running service; 1 tracks, 1 taken down" in ended.stdout
    assert "most likely by the service" in ended.stdout
    assert ended.stderr == ""


def test_an_unknown_setting_ends_it(environment, capsys):
    environment.setenv("DEBUT_PROT", "1")
    assert run() == 1
    assert capsys.readouterr().out.startswith("fail  settings  DEBUT_PROT is not a setting")


def test_a_busy_port(environment):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment.setenv("DEBUT_PORT", str(other.getsockname()[1]))
        assert "DEBUT_PORT" in found("port", "fail")


def test_a_damaged_release(environment, releases, tmp_path):
    shutil.copytree(releases, tmp_path / "r", symlinks=True)
    environment.setenv("DEBUT_RELEASES", str(tmp_path / "r"))
    file = (tmp_path / "r" / "current").resolve() / "matching.faiss"
    file.write_bytes(file.read_bytes()[:-1])
    assert "matching.faiss" in found("release", "fail")
    environment.setenv("DEBUT_RELEASES", str(tmp_path / "none"))
    assert "holds no release" in found("release", "fail")


def test_a_ledger_that_cannot_be_used(environment, tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_text("words")
    assert "not a ledger" in found("ledger", "fail")
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (a)")
    database.close()
    assert "another program" in found("ledger", "fail")
    environment.setenv("DEBUT_LEDGER", str(path / "inside"))
    assert "cannot be made" in found("ledger", "fail")


def test_a_ledger_that_is_damaged(environment, client, clip, settings):
    for number in range(8):
        upload(client, clip, track_id=f"t{number}", title="x" * 400)
    client.app.state.service.close()
    path = Path(settings.ledger)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    assert "restore it from a backup" in found("ledger", "fail")


def test_little_room(environment, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 100 << 20))
    assert "100 MiB free for releases" in found("disk", "warn")
    assert "DEBUT_QUEUE_SIZE" in found("disk", "warn")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 1 << 20))
    assert "make room" in found("disk", "fail")


def test_a_small_machine(environment, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("service.check._memory", lambda: 100 << 20)
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    environment.setenv("DEBUT_INGEST_THREADS", "8")
    assert "DEBUT_INGEST_THREADS" in found("threads", "warn")
    assert "DEBUT_DECODE_MEMORY_MB" in found("memory", "warn")
    assert "ulimit -n" in found("files", "warn")


def test_a_line_is_state_subject_sentence():
    assert str(Finding("ok", "port", "is free")) == "ok    port      is free"
