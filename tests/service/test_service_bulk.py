"""python -m service ingest: what it reads, what it sends, how it waits, stops and goes on, and what it reports."""

import argparse
import csv
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import av
import httpx
import numpy as np
import orjson
import pytest
from service_process import ROOT, RunningService
from service_uploads import RATE, ogg, tone

from service.bulk.command import add_arguments, run
from service.bulk.journal import Fate, Journal, fingerprint, write_report
from service.bulk.sending import Sender, ServiceError, StoppedError
from service.bulk.source import Folder, Item, Listing, SourceError, metadata_of, read_tags, source_of


def tagged(path: Path, container: str, codec: str, seconds: float = 1.5, seed: int = 0, **tags: str) -> Path:
    """A recording with tags, as a file."""
    hertz = 200 + 100 * seed
    sound = np.concatenate(
        [tone(seconds / 2, hertz, seed), tone(seconds / 2, 4 * hertz, seed)]
    )  # a steady one is like none
    samples = (sound[None] * 32767).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        output.metadata.update(tags)
        stream = output.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        if container == "ogg":
            stream.metadata.update(tags)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=stream.frame_size or None)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return path


TAGS = {"title": "Nuit d’étoiles", "artist": "Marta Ruiz", "album": "Harbour", "genre": "folk; indie", "date": "2026"}


class TestSource:
    @pytest.mark.parametrize(
        ("container", "codec"), [("mp3", "libmp3lame"), ("ogg", "libopus"), ("flac", "flac"), ("ipod", "aac")]
    )
    def test_tags_are_read_from_any_container(self, tmp_path, container, codec):
        file = tagged(tmp_path / "a.bin", container, codec, **TAGS)
        assert metadata_of(read_tags(file)) == {
            "title": TAGS["title"],
            "artist": TAGS["artist"],
            "album": TAGS["album"],
            "genres": ["folk", "indie"],
            "release_date": "2026",
        }

    def test_what_does_not_fit_is_left_out(self):
        tags = {"title": " a\x00b \n", "date": "May 2026", "isrc": "nl-b63-26-00001", "genre": ";", "artist": "\x07"}
        assert metadata_of(tags) == {"title": "a b", "isrc": "NLB632600001"}
        assert metadata_of({"tsrc": "x", "date": "0000-00-00"}) == {}

    def test_a_file_that_is_none_has_no_tags(self, tmp_path):
        for content in (b"", b"words " * 100, b"#EXTM3U\nhttp://127.0.0.1:9/a.mp3\n", b"ID3\x04" + bytes(64)):
            (tmp_path / "a.mp3").write_bytes(content)
            assert read_tags(tmp_path / "a.mp3") == {}
        assert read_tags(tmp_path / "none.mp3") == {}

    def test_a_folder_is_its_recordings_in_order_and_nothing_hidden(self, tmp_path):
        for name in ("b/2.OGG", "a.mp3", "b/1.ogg", "cover.jpg", ".b/3.ogg", "b/._1.ogg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "d.ogg").mkdir()
        items = list(Folder(tmp_path).items())
        assert [item.key for item in items] == ["a.mp3", "b/1.ogg", "b/2.OGG"]
        assert [item.metadata["track_id"] for item in items] == [item.key for item in items]
        assert len(Folder(tmp_path)) == 3

    def test_ids_come_from_where_they_are_asked_from(self, tmp_path):
        tagged(tmp_path / "a.ogg", "ogg", "libopus", isrc="NLB632600001")
        assert [i.metadata.get("track_id") for i in Folder(tmp_path, "ISRC").items()] == ["NLB632600001"]
        assert [i.metadata.get("track_id") for i in Folder(tmp_path, "content").items()] == [None]

    def test_a_listing_is_its_rows(self, tmp_path):
        (tmp_path / "l.csv").write_text(
            "\ufeffpath,track_id,title,genres,explicit,attributes,lyrics\n"
            'x/a.ogg,1,"A, b",folk;indie,TRUE,"{""bpm"": 120.5}",\n'
            "/abs.ogg,,,,,,\n"
        )
        one, two = Listing(tmp_path / "l.csv").items()
        assert (one.key, one.file) == ("x/a.ogg", tmp_path / "x" / "a.ogg")
        assert one.metadata == {
            "track_id": "1",
            "title": "A, b",
            "genres": ["folk", "indie"],
            "explicit": True,
            "attributes": {"bpm": 120.5},
        }
        assert (two.file, two.metadata) == (Path("/abs.ogg"), {})

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("title\nA\n", "no column 'path'"),
            ("path,titel\na,A\n", "column 'titel'"),
            ("path,title\na,A,B\n", "line 2"),
            ("path,title\na\n", "line 2"),
            ("path,title\n,A\n", "line 2"),
            ("path,explicit\na,yes\n", "line 2: explicit is 'yes'"),
            ("path,attributes\nb,{\n", "line 2: attributes is not JSON"),
            ("path,title\n\xff,A\n", "UTF-8"),
            ('path,title\na,"A\n', "CSV"),
            ("", "no column 'path'"),
        ],
    )
    def test_a_listing_that_is_none(self, tmp_path, text, words):
        (tmp_path / "l.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(SourceError, match=words):
            list(source_of(tmp_path / "l.csv", "path").items())

    def test_a_source_that_is_none(self, tmp_path):
        (tmp_path / "a.ogg").write_bytes(b"")
        (tmp_path / "empty").mkdir()
        for path, words in [("none", "There is no"), ("a.ogg", "neither"), ("empty", "holds no recording")]:
            with pytest.raises(SourceError, match=words):
                len(source_of(tmp_path / path, "path"))


class TestJournal:
    def item(self, tmp_path, content: bytes = b"x", **metadata: str) -> Item:
        (tmp_path / "a.ogg").write_bytes(content)
        return Item("a.ogg", tmp_path / "a.ogg", metadata)

    def test_it_knows_what_was_sent_where_and_what_has_changed(self, tmp_path):
        mark = fingerprint(self.item(tmp_path))
        journal = Journal(tmp_path / "j", "http://one")
        journal.add(mark, "t")
        assert journal.track_id(mark) == "t"
        journal.close()
        for url, known in (("http://one", "t"), ("http://other", None)):
            again = Journal(tmp_path / "j", url)
            assert again.track_id(mark) == known
            again.close()
        assert fingerprint(self.item(tmp_path, title="A")) != mark
        assert fingerprint(self.item(tmp_path, b"xy")) != mark

    def test_a_line_that_a_crash_cut_short_costs_that_line_alone(self, tmp_path):
        journal = Journal(tmp_path / "j", "u")
        journal.add("m1", "t1")
        journal.close()
        whole = (tmp_path / "j").read_bytes()
        (tmp_path / "j").write_bytes(whole + b'[1]\n\xff\n{"url":"u","finge')
        journal = Journal(tmp_path / "j", "u")
        journal.add("m2", "t2")
        journal.close()
        journal = Journal(tmp_path / "j", "u")
        assert [journal.track_id(mark) for mark in ("m1", "m2")] == ["t1", "t2"]
        journal.close()

    def test_a_report_that_cannot_be_written_is_a_sentence(self, tmp_path):
        with pytest.raises(SourceError, match="--report"):
            write_report(tmp_path / "none" / "r.csv", [])
        with pytest.raises(SourceError, match="--journal"):
            Journal(tmp_path / "none" / "j", "u")


@pytest.fixture
def item(tmp_path):
    (tmp_path / "a.ogg").write_bytes(b"sound" * 1000)
    return Item("a.ogg", tmp_path / "a.ogg", {"track_id": "ü", "genres": ["x"]})


def sender(answers, *, key=None, patience_s=60.0, stopping=None, replace=False) -> Sender:
    """A Sender to a service that gives these answers, one after the other; an exception is raised."""
    made = Sender(
        "http://debut", key, 1, patience_s=patience_s, replace=replace, stopping=stopping or threading.Event()
    )
    waiting = iter(answers)
    made.seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        made.seen.append(request)
        given = next(waiting)
        if isinstance(given, Exception):
            raise given
        return given

    headers = made._client.headers
    made._client = httpx.Client(base_url="http://debut", headers=headers, transport=httpx.MockTransport(answer))
    return made


def created() -> httpx.Response:
    near = {"near_duplicate": {"track_id": "twin", "similarity": 0.999}}
    return httpx.Response(201, json={"track": {"track_id": "ü"}, "outcome": "created", "quality": near})


def busy(status: int = 503, after: str | None = "0") -> httpx.Response:
    return httpx.Response(status, json={"code": "queue_full"}, headers={} if after is None else {"retry-after": after})


class TestSending:
    def test_a_form_with_key_and_metadata(self, item):
        one = sender([created()], key="secret", replace=True)
        assert one.send(item) == Fate("a.ogg", "ü", "created", 201, duplicate_of="twin")
        [request] = one.seen
        assert request.headers["authorization"] == "Bearer secret"
        assert request.url.params["replace"] == "true"
        assert b"sound" * 1000 in request.content
        assert orjson.dumps(dict(item.metadata)).replace(b":", b": ", 1)[:14] in request.content

    def test_who_is_busy_or_away_for_a_while_is_asked_again_with_all_of_the_file(self, item, monkeypatch):
        pauses = []
        monkeypatch.setattr(threading.Event, "wait", lambda _, seconds=None: pauses.append(seconds))
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
        answers = [busy(429, "7"), busy(503, soon), busy(503, "nonsense"), httpx.ReadError("gone"), busy(503, None)]
        one = sender([*answers, created()])
        assert one.send(item).outcome == "created"
        assert len({request.content.count(b"sound") for request in one.seen}) == 1
        assert 7 <= pauses[0] <= 10.5
        assert 18 <= pauses[1] <= 30
        assert max(pauses) <= 60

    def test_what_stands_is_reported_and_not_asked_again(self, item):
        for status, code in [(409, "track_exists"), (422, "audio_silent"), (507, "spool_full"), (500, "internal")]:
            one = sender([httpx.Response(status, json={"code": code, "detail": "A sentence."})])
            assert one.send(item) == Fate("a.ogg", "ü", "failed", status, code, "A sentence.")
        assert sender([httpx.Response(502, text="<html>")]).send(item).detail == "Bad Gateway"

    def test_a_full_ledger_is_waited_for_and_then_ends_the_run_not_each_recording(self, item, monkeypatch):
        monkeypatch.setattr(threading.Event, "wait", lambda *_: None)
        full = [httpx.Response(507, json={"code": "ledger_full", "detail": "No room."})]
        assert sender([*full * 3, created()]).send(item).outcome == "created"
        with pytest.raises(ServiceError, match=r"stays full.*goes on from here"):
            sender(full * 3, patience_s=-1).send(item)

    def test_a_recording_that_breaks_every_connection_is_its_own_failure(self, item, monkeypatch):
        monkeypatch.setattr(threading.Event, "wait", lambda *_: None)
        away = [httpx.ConnectError("refused")] * 5
        one = sender([*away, *[httpx.WriteError("broken pipe")] * 4])
        assert one.send(item).code == "connection_broke"

    def test_an_address_that_is_none(self):
        with pytest.raises(ServiceError, match="--url"):
            Sender("http://debut:port", None, 1, patience_s=1, replace=False, stopping=threading.Event())

    def test_patience_ends(self, item):
        assert sender([busy()], patience_s=-1).send(item).status == 503
        with pytest.raises(ServiceError, match="goes on from here"):
            sender([httpx.ConnectError("refused")], patience_s=-1).send(item)

    def test_who_does_not_let_us_in_is_not_asked_again(self, item):
        for status in (401, 403):
            with pytest.raises(ServiceError, match="--key-file"):
                sender([httpx.Response(status, json={"detail": "no"})]).send(item)

    def test_told_to_stop_it_waits_no_more(self, item):
        stopping = threading.Event()
        threading.Timer(0.2, stopping.set).start()
        started = time.monotonic()
        with pytest.raises(StoppedError):
            sender([busy(503, "50")], stopping=stopping).send(item)
        assert time.monotonic() - started < 10

    def test_a_file_that_is_gone_is_its_own_failure(self, item):
        item.file.unlink()
        assert sender([]).send(item).code == "unreadable"

    def test_nobody_there_or_somebody_else(self):
        with pytest.raises(ServiceError, match="No service answers"):
            sender([httpx.ConnectError("refused")]).check()
        with pytest.raises(ServiceError, match="no Debut"):
            sender([httpx.Response(404)]).check()


def arguments(folder: Path, running: RunningService, source: object, *more: str) -> list[str]:
    where = ["--journal", str(folder / "journal"), "--report", str(folder / "report.csv")]
    return [str(source), "--url", str(running.client.base_url), *where, *more]


def test_a_folder_goes_up_once_and_what_fails_is_reported(releases, tmp_path, capsys):
    music = tmp_path / "music"
    for number in range(6):
        tagged(music / "a" / f"{number}.ogg", "ogg", "libopus", seed=number, title=f"Song {number}", artist="One")
    (music / "broken.ogg").write_bytes(b"OggS" + bytes(3000))
    (music / "twin.ogg").write_bytes((music / "a" / "0.ogg").read_bytes())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with RunningService(releases, tmp_path / "ledger.sqlite") as running:

        def ingest(*more: str) -> tuple[int, str, list[dict[str, str]]]:
            """Exit code, what was counted, and the report."""
            code = run(parser.parse_args(arguments(tmp_path, running, music, *more)))
            with (tmp_path / "report.csv").open() as report:
                return code, capsys.readouterr().out.partition(";")[0], list(csv.DictReader(report))

        code, said, report = ingest("--jobs", "2")
        assert (code, said) == (1, "7 created, 1 failed")
        [broken] = [row for row in report if row["outcome"] == "failed"]
        assert (broken["key"], broken["status"]) == ("broken.ogg", "422")
        assert broken["code"].startswith("audio_")
        assert broken["detail"]
        assert {"a/0.ogg", "twin.ogg"} & {row["duplicate_of"] for row in report}
        assert running.client.get("/tracks/a%2F3.ogg").json()["title"] == "Song 3"

        (music / "broken.ogg").unlink()
        assert ingest() == (0, "7 skipped", [])
        running.client.delete("/tracks/twin.ogg")  # the journal is a hint: what the service has not is sent again
        tagged(music / "a" / "1.ogg", "ogg", "libopus", seed=9, title="Other")
        code, said, report = ingest()
        assert (code, said) == (1, "1 created, 1 failed, 5 skipped")
        assert [row["code"] for row in report if row["outcome"] == "failed"] == ["track_exists"]
        assert ingest("--replace")[:2] == (0, "1 replaced, 6 skipped")
        (tmp_path / "journal").unlink()
        assert ingest()[:2] == (0, "7 unchanged")


def test_interrupted_it_ends_what_it_sends_and_goes_on_another_time(releases, tmp_path):
    rows = ["path,track_id"]
    (tmp_path / "a.ogg").write_bytes(ogg(tone(1.5)))
    rows += [f"a.ogg,t{number}" for number in range(60)]
    (tmp_path / "l.csv").write_text("\n".join(rows) + "\n")
    with RunningService(releases, tmp_path / "ledger.sqlite") as running:
        command = [sys.executable, "-m", "service", "ingest"]
        command += arguments(tmp_path, running, tmp_path / "l.csv", "--jobs", "2")
        sending = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (tmp_path / "journal").exists() or (tmp_path / "journal").read_bytes().count(b"\n") < 5:
            assert time.monotonic() < deadline
            assert sending.poll() is None
            time.sleep(0.01)
        sending.send_signal(signal.SIGINT)
        said, complaint = sending.communicate(timeout=60)
        assert "Traceback" not in complaint
        assert said.splitlines()[-1] == "Interrupted: the same command goes on from here."
        assert sending.returncode == 130
        done = (tmp_path / "journal").read_text().count("fingerprint")
        assert 5 <= done < 60
        assert running.client.get("/").json()["tracks"] == 40 + done
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout.partition(";")[0]) == (0, f"{60 - done} created, {done} skipped")
        assert running.client.get("/").json()["tracks"] == 100


def test_nobody_at_home_is_a_sentence(tmp_path):
    (tmp_path / "a.ogg").write_bytes(b"x")
    command = [sys.executable, "-m", "service", "ingest", str(tmp_path), "--url", "http://127.0.0.1:9"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("debut: No service answers at http://127.0.0.1:9")
    assert len(ended.stderr.splitlines()) == 1
