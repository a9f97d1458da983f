"""The decoding processes: what is heard comes back whole; time, memory, a crash or the service's end take one down."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pytest
from service_bombs import mp4_of_samples
from service_process import RunningService
from service_uploads import mp3, ogg, tone, upload, wav

from index.sound.audio import AudioError, AudioLimits, decode
from index.sound.features import FRAMES, MELS, log_mel
from service.decode import pool
from service.decode.pool import Decoding
from service.decode.wire import NonsenseError, listen, receive_heard, say
from service.http.problems import Problem
from service.metrics import Metrics
from service.settings import Settings

LIMITS = AudioLimits()


@pytest.fixture
def start():
    """Make pools; they are closed at the end of the test."""
    pools = []

    def make(**settings) -> Decoding:
        pools.append(Decoding(Settings(**{"decode_workers": 1} | settings), Metrics()))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


def hear(decoding: Decoding, audio: bytes):
    with SpooledTemporaryFile(2**20) as file:
        file.write(audio)
        return decoding.hear(file, LIMITS)


def replaced(decoding: Decoding, reason: str) -> float:
    return decoding._metrics.decode_replaced.labels(reason)._value.get()


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie counts: whose child it was may be gone too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestHearing:
    @pytest.mark.parametrize("encode", [wav, mp3, ogg])
    def test_it_is_what_the_trainer_hears(self, start, encode):
        audio = encode(tone(12))
        recording = decode(io.BytesIO(audio))
        heard = hear(start(), audio)
        assert heard.log_mel.shape == (1, FRAMES, MELS)
        np.testing.assert_allclose(heard.log_mel, log_mel(recording.clips), atol=1e-3)  # dB
        assert heard.duration_s == recording.duration_s
        assert (heard.container, heard.codec) == (recording.container, recording.codec)
        assert (heard.peak, heard.clipped) == (recording.peak, recording.clipped)
        assert heard.sample_rate == recording.sample_rate

    def test_a_refusal_keeps_its_code_and_its_process(self, start):
        decoding = start()
        before = decoding.pids
        for audio, code in ((b"words " * 500, "not_audio"), (wav(tone(0.5)), "audio_too_short")):
            with pytest.raises(AudioError) as caught:
                hear(decoding, audio)
            assert caught.value.code == code
            assert len(caught.value.detail) > 20
        assert decoding.pids == before
        assert hear(decoding, ogg(tone(2))).codec == "opus"

    def test_a_process_is_retired_after_its_share(self, start, monkeypatch):
        monkeypatch.setattr(pool, "JOBS", 2)
        decoding = start()
        seen = set()
        for _ in range(4):
            seen |= decoding.pids
            hear(decoding, ogg(tone(1.2)))
        assert len(seen) == 2
        assert replaced(decoding, "retired") == 2

    def test_several_at_once_on_several_processes(self, start):
        decoding = start(decode_workers=2)
        audio = ogg(tone(2))
        with ThreadPoolExecutor(6) as threads:
            heard = list(threads.map(lambda _: hear(decoding, audio), range(12)))
        assert all(np.array_equal(one.log_mel, heard[0].log_mel) for one in heard)
        assert len(decoding.pids) == 2
        assert decoding.waiting == 0


class TestLimits:
    def given_up(self, decoding, audio, setting) -> Problem:
        with pytest.raises(Problem) as caught:
            hear(decoding, audio)
        assert (caught.value.code, caught.value.kind.status, caught.value.setting) == ("decode_failed", 422, setting)
        return caught.value

    def test_memory(self, start):
        decoding = start(decode_memory_mb=2)
        assert "2 MiB" in self.given_up(decoding, wav(tone(40)), "decode_memory_mb").detail
        assert replaced(decoding, "memory") == 1

    def test_a_file_cannot_take_more_memory_than_is_allowed(self, start):
        """Five million samples of one byte, in an index that costs FFmpeg 24 bytes for each."""
        decoding = start(decode_memory_mb=48)
        hear(decoding, ogg(tone(2)))
        [pid] = decoding.pids
        before = peak_bytes(pid)
        with pytest.raises((AudioError, Problem)) as caught:
            hear(decoding, mp4_of_samples(5_000_000, padding=5_000_000))
        assert caught.value.code in ("decode_failed", "audio_undecodable", "audio_truncated")
        if not gone(pid):
            assert peak_bytes(pid) < before + (48 << 20)
        assert hear(decoding, ogg(tone(2))).codec == "opus"

    def test_wall_clock(self, start):
        decoding = start(decode_seconds=0.5)
        hear(decoding, ogg(tone(2)))
        [pid] = decoding.pids
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert "0.5 s" in self.given_up(decoding, ogg(tone(2)), "decode_seconds").detail
        assert time.monotonic() - started < 5
        assert gone(pid)
        assert replaced(decoding, "time") == 1

    def test_the_kernel_ends_what_computes_too_long(self, start, monkeypatch):
        """The service's own clock comes first, unless the process was starved of it."""
        monkeypatch.setattr(subprocess, "Popen", instead_of_decode("while True: pass"))
        decoding = start(decode_seconds=1)
        original = pool._Worker._answer
        monkeypatch.setattr(pool._Worker, "_answer", lambda self, deadline: original(self, deadline + 30))
        self.given_up(decoding, ogg(tone(2)), "decode_seconds")
        assert replaced(decoding, "cpu") == 1

    def test_nothing_is_written_and_nothing_started(self, start, monkeypatch):
        code = (
            "import resource as r; names = 'CORE FSIZE NPROC NOFILE'.split();"
            "raise TypeError([r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in names])"
        )
        monkeypatch.setattr(subprocess, "Popen", instead_of_decode(code))
        lost = []
        monkeypatch.setattr(pool.log, "warning", lambda _, **fields: lost.append(fields))
        self.given_up(start(), ogg(tone(2)), None)
        assert lost == [{"reason": "crash", "how": "TypeError: [(0, 0), (0, 0), (0, 0), (32, 32)]"}]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_a_crash_costs_one_request(self, start, number):
        decoding = start()
        hear(decoding, ogg(tone(2)))
        [pid] = decoding.pids
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(hear, decoding, ogg(tone(2)))
            wait_for(lambda: not decoding._idle)
            time.sleep(0.2)  # the file is in its hands
            for each in (number, signal.SIGCONT):
                os.kill(pid, each)
            with pytest.raises(Problem, match="The codec gave up") as caught:
                asked.result(20)
        assert (caught.value.code, caught.value.setting) == ("decode_failed", None)
        assert replaced(decoding, "crash") == 1
        assert hear(decoding, ogg(tone(2))).codec == "opus"

    def test_a_process_lost_between_files_costs_nothing(self, start):
        decoding = start()
        hear(decoding, ogg(tone(2)))
        [worker] = decoding._workers
        worker.process.kill()
        worker.process.wait()
        assert hear(decoding, ogg(tone(2))).codec == "opus"
        assert replaced(decoding, "unheard") == 1

    def test_processes_that_end_before_they_hear_anything_are_not_tried_for_ever(self, start, monkeypatch):
        """One that is there and deaf, and its successors; then the system is well again."""
        popen, started = subprocess.Popen, []

        def deaf(command, **more):
            started.append(command)
            script = (
                "import socket, sys; from service.decode.wire import say\n"
                "line = socket.socket(fileno=int(sys.argv[1]))\n"
                "line.shutdown(socket.SHUT_RD)\n"
                "say(line, {'outcome': 'ready'})\n"
            )
            return popen([sys.executable, "-c", script, *command[3:]], **more)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", deaf)
            decoding = start(decode_workers=2)
            with pytest.raises(Problem, match=r"The last 4 processes .* ended before") as caught:
                hear(decoding, ogg(tone(2)))
            assert (caught.value.code, caught.value.kind.status) == ("not_ready", 503)
            assert replaced(decoding, "unheard") == 4
            assert len(started) == 2 + 4
        assert hear(decoding, ogg(tone(2))).codec == "opus"


def instead_of_decode(code: str):
    """A Popen that starts the worker with `code` run in place of decoding."""
    popen = subprocess.Popen

    def start(command, **more):
        if "service.decode.worker" not in command:
            return popen(command, **more)
        script = (
            "import socket, sys; from service.decode import worker\n"
            f"def decode(*_):\n    exec({code!r}, {{}})\n"
            "worker.decode = decode\n"
            "line, memory, seconds, jobs = sys.argv[1:]\n"
            "worker.main(socket.socket(fileno=int(line)), int(memory), float(seconds), int(jobs))"
        )
        return popen([sys.executable, "-c", script, *command[3:]], **more)

    return start


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


class TestQueue:
    def test_who_cannot_be_served_soon_is_told_to_come_back(self, start):
        decoding = start(decode_seconds=0.6, queue_size=1)
        hear(decoding, ogg(tone(2)))
        [worker] = decoding._workers
        with decoding._changed:
            decoding._idle.clear()  # as when it is busy for longer than a file may take
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(hear, decoding, ogg(tone(2)))
            wait_for(lambda: decoding.waiting == 1)
            with pytest.raises(Problem) as full:  # the queue is as long as it may be: at once
                hear(decoding, ogg(tone(2)))
            with pytest.raises(Problem) as late:
                waits.result(20)
        for caught in (full, late):
            assert (caught.value.code, caught.value.kind.status) == ("queue_full", 503)
            assert caught.value.setting == "decode_workers"
            assert int(caught.value.headers["Retry-After"]) >= 1
        decoding._give_back(worker)
        assert hear(decoding, ogg(tone(2))).codec == "opus"

    def test_a_system_without_room_for_a_process_is_asked_again(self, start, monkeypatch):
        def full(*_, **__):
            raise OSError("no more processes")

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", full)
            decoding = start(decode_seconds=0.2)
            with pytest.raises(Problem) as caught:
                hear(decoding, ogg(tone(2)))
            assert caught.value.code == "queue_full"
        assert hear(decoding, ogg(tone(2))).codec == "opus"

    def test_a_process_that_does_not_start_is_a_503(self, start, monkeypatch):
        popen = subprocess.Popen

        def broken(command, **more):
            return popen([sys.executable, "-c", "raise SystemExit(3)"], **more)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", broken)
            decoding = start()
            with pytest.raises(Problem, match="does not start") as caught:
                hear(decoding, ogg(tone(2)))
            assert (caught.value.code, caught.value.kind.status) == ("not_ready", 503)
            assert len(decoding.pids) == 1
        with pytest.raises(Problem, match="does not start"):  # the one that was started meanwhile
            hear(decoding, ogg(tone(2)))
        assert hear(decoding, ogg(tone(2))).codec == "opus"


class TestTheEnd:
    def test_closing_ends_all_at_once_and_twice_is_harmless(self, start):
        decoding = start(decode_workers=2)
        hear(decoding, ogg(tone(2)))
        pids = decoding.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(3) as threads:
            asked = [threads.submit(hear, decoding, ogg(tone(2))) for _ in range(3)]
            wait_for(lambda: decoding.waiting == 1)
            decoding.close()
            for each in asked:
                with pytest.raises(Problem, match="being stopped"):
                    each.result(20)
        assert all(gone(pid) for pid in pids)
        assert decoding.pids == set()
        decoding.close()
        with pytest.raises(Problem, match="being stopped"):
            hear(decoding, ogg(tone(2)))

    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_a_service_that_ends_leaves_no_process(self, releases, tmp_path, clip, how):
        with RunningService(releases, tmp_path / "ledger.sqlite") as running:
            assert upload(running.client, clip, track_id="a").status_code == 201
            pids = children(running.process.pid)
            assert len(pids) == 2
            getattr(running, how)()
        wait_for(lambda: all(gone(pid) for pid in pids))

    def test_a_busy_process_notices_that_its_service_was_killed(self, tmp_path):
        """It computes and reads nothing; a signal tells it."""
        script = tmp_path / "parent.py"
        script.write_text(
            "import subprocess, sys, tempfile, threading, time\n"
            f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}\n"
            "from test_service_decoding import *\n"
            "subprocess.Popen = instead_of_decode('while True: pass')\n"
            "decoding = Decoding(Settings(decode_workers=1, decode_seconds=600), Metrics())\n"
            "threading.Thread(target=hear, args=(decoding, b'x'), daemon=True).start()\n"
            "wait_for(lambda: next(iter(decoding._workers)).unlimited is not None)\n"
            "print(*decoding.pids, flush=True)\n"
            "time.sleep(600)\n"
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("DEBUT_")}
        parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env)
        with parent:
            try:
                pid = int(parent.stdout.readline())
                wait_for(lambda: cpu_ticks(pid) + 2 <= cpu_ticks(pid, after_s=0.5))
                assert not gone(pid)
            finally:
                parent.kill()
        wait_for(lambda: gone(pid))


def cpu_ticks(pid: int, after_s: float = 0) -> int:
    time.sleep(after_s)
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class TestWire:
    """A process that a file took over may answer anything."""

    @pytest.mark.parametrize(
        "head",
        [
            {"windows": 4}, {"windows": 0}, {"windows": "1"}, {"windows": None}, {"duration_s": float("nan")},
            {"duration_s": -1.0}, {"duration_s": "1"}, {"codec": 5}, {"container": None}, {"sample_rate": "8000"},
            {"peak": None}, {"peak": float("inf")}, {"peak": -0.5}, {"clipped": 1.5}, {"clipped": float("nan")},
        ],
    )  # fmt: skip
    def test_a_head_that_cannot_be(self, head):
        good = {"windows": 1, "duration_s": 10.0, "container": "wav", "codec": "flac", "sample_rate": 8000}
        good |= {"peak": 0.5, "clipped": 0.0}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            say(theirs, good | {"features_s": 0.1} | head)
            received = listen(ours, time.monotonic() + 10)
            with pytest.raises(NonsenseError):
                receive_heard(ours, received, time.monotonic() + 10)

    @pytest.mark.parametrize(
        ("sent", "error"),
        [
            (b"\xff\xff\xff\xff", NonsenseError), (b"\0\0\0\2[]", NonsenseError), (b"\0\0\0\2{]", NonsenseError),
            (b"\0\0\0\3\xff\xff\xff", NonsenseError), (b"\0\0", EOFError), (b"", EOFError), (b"\0\0\0\5{", EOFError),
        ],
    )  # fmt: skip
    def test_bytes_that_are_no_answer(self, sent, error):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                theirs.sendall(sent)
            with pytest.raises(error):
                listen(ours, time.monotonic() + 10)

    def test_silence_and_trickling(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"\0\0")
            with pytest.raises(TimeoutError):
                listen(ours, time.monotonic() + 0.1)

    def test_features_that_are_not_numbers(self):
        ours, theirs = socket.socketpair()
        data = np.full(FRAMES * MELS, np.nan, "<f4").tobytes()
        sent = threading.Thread(target=theirs.sendall, args=(data,))
        facts = {"windows": 1, "duration_s": 10.0, "container": "wav", "codec": "flac", "sample_rate": 8000}
        facts |= {"peak": 0.5, "clipped": 0.0}
        with ours, theirs:
            sent.start()
            with pytest.raises(NonsenseError, match="not numbers"):
                receive_heard(ours, facts | {"features_s": 0.1}, time.monotonic() + 10)
            sent.join()


class TestNoRoom:
    """/dev/full in place of the spool file: every write to it is ENOSPC."""

    @pytest.fixture
    def full_disk(self, monkeypatch):
        opened = []

        def full(*_, **__):
            opened.append(open("/dev/full", "r+b"))  # noqa: SIM115 - whoever asked closes it
            return opened[-1]

        monkeypatch.setattr("tempfile.TemporaryFile", full)
        return opened

    @pytest.mark.parametrize("spool_bytes", [1, 2**20], ids=["while it arrives", "when it is handed on"])
    @pytest.mark.parametrize("form", [False, True])
    def test_a_full_disk_is_a_507(self, serve, settings, clip, full_disk, form, spool_bytes):
        client = serve(settings.model_copy(update={"spool_bytes": spool_bytes}))
        if form:
            answer = client.post("/ingest-track", files={"audio": clip, "metadata": (None, '{"track_id": "t"}')})
        else:
            answer = upload(client, clip, track_id="t")
        assert (answer.status_code, answer.json()["code"]) == (507, "spool_full"), answer.text
        assert full_disk
        assert all(file.closed for file in full_disk)
        assert client.get("/tracks/t").status_code == 404
        assert "debut_uploads_in_hand 0.0" in client.get("/metrics").text


def test_the_metrics_count_what_was_lost(client, clip):
    assert upload(client, clip, track_id="a").status_code == 201
    for pid in client.app.state.service.ingest.decoding.pids:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: gone(pid))
    assert upload(client, clip, track_id="b").status_code == 201
    figures = client.get("/metrics").text
    assert 'debut_decode_workers_replaced_total{reason="unheard"} 1.0' in figures
    assert "debut_decode_queue 0.0" in figures
