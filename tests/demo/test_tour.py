"""The tour against a real service process and a real release."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import SmallRun

from demo.process import Service, ServiceError
from demo.tour import TourError, choose, tour

TIMEOUT_S = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_song_to_upload_is_the_first_left_out_and_its_seeds_are_the_rest_of_its_cycle(
    small_run: SmallRun, small_data: Path
) -> None:
    song = choose(small_data, small_run.release)
    dataset = small_run.pipeline.dataset
    left_out = {dataset.tracks[row].track_id for row in small_run.left_out}
    cycles = [
        [dataset.tracks[r].track_id for r in dataset.playlists.tracks(p)] for p in range(len(dataset.playlists.ids))
    ]
    cycle = next(c for c in cycles if song.row["track_id"] in c)
    assert song.row["track_id"] == next(i for i in cycle if i in left_out)
    assert list(song.seeds) == [i for i in cycle if i not in left_out]


def test_the_tour_works_twice_over_one_ledger(
    small_run: SmallRun, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = small_run.release.path.parent
    for status in ("201", "200"):
        with Service(releases, tmp_path / "ledger.sqlite", free_port()) as service:
            tour(service.url, small_data, small_run.release)
        printed = capsys.readouterr().out
        assert f"  {status}: " in printed
        assert printed.count("  curl ") == 3
        assert "The new song comes at rank" in printed
        assert "All three calls worked." in printed


def test_the_curl_lines_of_the_tour_do_the_same(
    small_run: SmallRun, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with Service(small_run.release.path.parent, tmp_path / "ledger.sqlite", port) as service:
        tour(service.url, small_data, small_run.release)
        printed = capsys.readouterr().out.replace("\\\n", " ")
        lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("curl ")]
        assert len(lines) == 3
        for line in lines:
            done = subprocess.run(
                ["bash", "-c", line.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                cwd=Path.cwd(),
                check=False,
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_a_busy_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} cannot be used .*make demo PORT="):
            Service(tmp_path, tmp_path / "ledger.sqlite", port).__enter__()


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_a_port_that_is_none_is_refused_before_anything_is_trained(port: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "--port", port, "--var", str(tmp_path / "var")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert "--port" in done.stderr
    assert not (tmp_path / "var").exists()


def test_a_service_that_cannot_start_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="did not start"):
        Service(tmp_path / "nothing here", tmp_path / "ledger.sqlite", free_port()).__enter__()


def test_the_demo_serves_until_it_is_interrupted(small_run: SmallRun, small_data: Path, tmp_path: Path) -> None:
    var = tmp_path / "var"
    var.mkdir()
    (var / "releases").symlink_to(small_run.release.path.parent)
    program = "import sys, pathlib, demo.__main__ as d; d.DATA = pathlib.Path(sys.argv.pop(1)); sys.exit(d.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(small_data), "--port", str(free_port()), "--var", str(var)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + TIMEOUT_S
        while "until Ctrl-C" not in (line := process.stdout.readline()):
            assert line, "the demo ended before it served"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def test_a_release_that_holds_every_song_leaves_nothing_to_upload(
    small_run: SmallRun, small_data: Path, tmp_path: Path
) -> None:
    whole = small_run.pipeline.publish(tmp_path / "releases")
    with pytest.raises(TourError, match="every song"):
        choose(small_data, whole)
