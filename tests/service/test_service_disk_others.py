"""No room where uploads are spooled or releases lie: a sentence, nothing half-written, and the service goes on."""

import shutil
import time

import pytest
from service_disk import SmallDisk
from service_process import RunningService, run_to_exit
from service_redis import RedisServer
from service_uploads import upload
from test_service_disk import MIB, reads, takes_in_again, upload_until, whole
from test_service_problems import assert_problem
from test_service_process import assert_refused


@pytest.mark.parametrize("spool_bytes", [1000, MIB], ids=["while it arrives", "when it is handed on"])
def test_a_full_spool_is_a_507_and_forgotten_when_there_is_room(releases, tmp_path, clip, monkeypatch, spool_bytes):
    with SmallDisk(tmp_path / "disk", MIB) as disk:
        monkeypatch.setenv("TMPDIR", str(disk.folder))
        ledger = tmp_path / "ledger.sqlite"
        told = {"decode_workers": 1, "log_level": "error", "spool_bytes": spool_bytes, "inside": disk.inside}
        with RunningService(releases, ledger, **told) as running:
            client = running.client
            assert upload(client, clip, track_id="before").status_code == 201
            disk.fill()
            form = {"audio": clip, "metadata": (None, '{"track_id": "late"}')}
            for answer in (
                upload(client, clip, track_id="late"),
                client.post("/ingest-track", files=form),
                upload(client, bytes(4 * MIB), track_id="large"),
            ):
                assert_problem(answer, 507, "spool_full")
                reads(client, "before")
            assert client.get("/readyz").status_code == 200
            assert [path.name for path in disk.path.iterdir()] == ["filler"]
            disk.empty()
            print(f"well again after {takes_in_again(client, clip, 'late'):.2f} s")
            assert running.stop() == 0
        assert whole(ledger, tmp_path / "copy") == {"before", "late"}


def test_a_fold_on_a_full_disk_is_a_sentence_and_leaves_nothing(releases, tmp_path, clip):
    with SmallDisk(tmp_path / "disk", 64 * MIB) as disk:
        shutil.copytree(releases, disk.path / "releases", symlinks=True)
        root, ledger = disk.folder / "releases", tmp_path / "ledger.sqlite"
        before = sorted(path.name for path in (disk.path / "releases").iterdir())
        told = {"releases": root, "ledger": ledger, "inside": disk.inside}
        with RunningService(decode_workers=1, release_poll_s=0.2, log_level="error", **told) as running:
            client = running.client
            assert upload(client, clip, track_id="new").status_code == 201
            served = client.get("/").json()["release"]
            for leave in (0, 60_000, 150_000):  # Arrow, FAISS and NumPy each say it in their own words
                disk.fill(leave=leave)
                assert_refused(run_to_exit("fold", **told), "room")
                assert sorted(path.name for path in (disk.path / "releases").iterdir()) == before
                reads(client, "new")
                disk.empty()
            assert upload(client, clip, track_id="newer").status_code == 201
            assert client.get("/").json()["release"] == served
            assert run_to_exit("fold", **told).returncode == 0
            started = time.monotonic()
            while client.get("/").json()["release"] == served:
                assert time.monotonic() - started < 20
                time.sleep(0.1)
            reads(client, "newer")


@pytest.mark.long
def test_redis_on_a_full_disk_ends_itself_and_all_is_there_when_it_is_started_with_room(releases, tmp_path, clip):
    """What it says it does with `appendfsync always`: the last event that it acknowledged is the last in its file."""
    with (
        SmallDisk(tmp_path / "disk", 4 * MIB) as disk,
        RedisServer(tmp_path / "redis", inside=disk.inside, dir=disk.folder) as redis,
        RunningService(releases, redis.url, decode_workers=1, log_level="error") as running,
    ):
        client = running.client
        assert upload(client, clip, track_id="before").status_code == 201
        disk.fill(leave=150_000)
        acknowledged = {"before"} | upload_until(client, clip, "filling", 503, "ledger_unwritable")
        redis.process.wait(10)
        assert_problem(client.delete("/tracks/before"), 503, "ledger_unwritable")
        reads(client, "before")
        disk.empty()
        redis.start()
        print(f"{len(acknowledged)} acknowledged, well again after {takes_in_again(client, clip, 'after'):.2f} s")
        running.kill()
        with RunningService(releases, redis.url, decode_workers=1, log_level="error") as again:
            for track_id in acknowledged | {"after"}:
                assert again.client.get(f"/tracks/{track_id}").status_code == 200
