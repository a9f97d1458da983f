"""The disk is full, fails or is read-only: uploads are told so, reads go on, and nothing acknowledged is lost."""

import resource
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from service_disk import BreakableDisk, SmallDisk, repaired
from service_process import RunningService, run_to_exit
from service_uploads import seeded, upload
from test_service_problems import assert_problem
from test_service_process import assert_refused

SOON_S = 5.0
MIB = 2**20


def whole(ledger: Path, copy: Path) -> set[str]:
    """Check a ledger that nobody has open; return the tracks that it says are there.

    In a copy: SQLite would follow the link under /proc that leads to a SmallDisk, out of it.
    """
    copy.mkdir()
    for file in ledger.parent.glob(f"{ledger.name}*"):
        shutil.copy(file, copy)
    with closing(sqlite3.connect(copy / ledger.name)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        newest = "SELECT track_id, kind FROM events e WHERE sequence = (SELECT max(sequence) FROM events n "
        rows = db.execute(f"{newest} WHERE n.track_id = e.track_id)").fetchall()
    return {track_id for track_id, kind in rows if kind == "added"}


def takes_in_again(client: httpx.Client, clip: bytes, track_id: str) -> float:
    """Return after how many seconds an upload is taken."""
    started = time.monotonic()
    while (answer := upload(client, clip, track_id=track_id)).status_code != 201:
        assert time.monotonic() - started < SOON_S, answer.text
        time.sleep(0.02)
    return time.monotonic() - started


def reads(client: httpx.Client, known: str) -> None:
    assert seeded(client, known, k=5)
    assert client.get(f"/audience/{known}", params={"limit": 5}).status_code == 200
    assert client.get(f"/tracks/{known}").status_code == 200
    assert client.get("/tracks", params={"q": "a"}).status_code == 200


def upload_until(client: httpx.Client, clip: bytes, prefix: str, status: int, code: str) -> set[str]:
    """Upload one track after another until one is refused so; return those that were acknowledged."""
    acknowledged = set()
    for number in range(100):
        answer = upload(client, clip, track_id=f"{prefix}-{number}")
        if answer.status_code != 201:
            assert_problem(answer, status, code)
            return acknowledged
        acknowledged.add(f"{prefix}-{number}")
    pytest.fail(f"{prefix}: nothing was refused")


def until_ready(client: httpx.Client, status: int = 200) -> httpx.Response:
    """Wait for what /readyz says; an answer serves for a second."""
    started = time.monotonic()
    while (answer := client.get("/readyz")).status_code != status:
        assert time.monotonic() - started < SOON_S, answer.text
        time.sleep(0.05)
    return answer


def test_a_full_disk_is_a_507_reads_go_on_and_all_is_there_after_a_kill(releases, tmp_path, clip):
    with SmallDisk(tmp_path / "disk", 4 * MIB) as disk:
        ledger = disk.folder / "ledger.sqlite"
        settings = {"decode_workers": 1, "log_level": "error", "inside": disk.inside}
        with RunningService(releases, ledger, **settings) as running:
            client = running.client
            acknowledged = {f"before-{number}" for number in range(3)}
            assert [upload(client, clip, track_id=one).status_code for one in sorted(acknowledged)] == [201] * 3
            disk.fill(leave=300_000)
            acknowledged |= upload_until(client, clip, "filling", 507, "ledger_full")
            disk.fill()
            answers = [upload(client, clip, track_id=f"late-{number}") for number in range(5)]
            answers.append(client.delete("/tracks/before-0"))
            for answer in answers:
                assert "room" in assert_problem(answer, 507, "ledger_full").detail
                reads(client, "before-1")
            assert "room" in assert_problem(until_ready(client, 503), 503, "not_ready").detail
            disk.empty()
            back_s = takes_in_again(client, clip, "after")
            acknowledged.add("after")
            until_ready(client)
            disk.fill(leave=100_000)
            acknowledged |= upload_until(client, clip, "again", 507, "ledger_full")
            disk.fill()
            running.kill()
        with RunningService(releases, ledger, **settings) as running:  # while the disk is full
            for track_id in acknowledged:
                assert running.client.get(f"/tracks/{track_id}").status_code == 200
            reads(running.client, "after")
            assert_problem(upload(running.client, clip, track_id="last"), 507, "ledger_full")
            disk.empty()
            acknowledged.add("last")
            print(f"507 when full; well again {back_s:.2f} s after there was room, ", end="")
            print(
                f"{takes_in_again(running.client, clip, 'last'):.2f} s when it had been killed and started while full"
            )
            assert running.stop() == 0
        found = whole(disk.path / "ledger.sqlite", tmp_path / "copy")
        print(f"{len(acknowledged)} acknowledged, {len(found)} there, integrity_check ok")
        assert acknowledged == found


@pytest.mark.long
def test_many_writers_on_a_disk_that_fills_and_empties_lose_nothing(releases, tmp_path, clip):
    """Uploads, replacements and take-downs from four clients while the disk is filled and emptied, five times."""
    with SmallDisk(tmp_path / "disk", 12 * MIB) as disk:
        ledger = disk.folder / "ledger.sqlite"
        with RunningService(releases, ledger, decode_workers=1, log_level="error", inside=disk.inside) as running:
            stop_at = time.monotonic() + 5

            def write(worker: int) -> tuple[set[str], int]:
                there, refused, number = set(), 0, 0
                while time.monotonic() < stop_at:
                    track_id = f"{worker}-{number % 6}"
                    down = number % 3 == 2 and track_id in there
                    if down:
                        answer = running.client.delete(f"/tracks/{track_id}")
                    else:
                        answer = upload(running.client, clip, track_id=track_id, title=f"{number}", replace="true")
                    if answer.status_code < 300:
                        (there.discard if down else there.add)(track_id)
                    else:
                        assert_problem(answer, 507, "ledger_full")
                        refused += 1
                    number += 1
                return there, refused

            with ThreadPoolExecutor(4) as pool:
                writing = [pool.submit(write, worker) for worker in range(4)]
                while not all(one.done() for one in writing):
                    disk.fill(leave=50_000)
                    time.sleep(0.5)
                    disk.empty()
                    time.sleep(0.5)
                outcomes = [one.result() for one in writing]
            running.kill()
        there = set().union(*(there for there, _ in outcomes))
        print(f"{len(there)} there, {sum(refused for _, refused in outcomes)} refused")
        assert all(refused for _, refused in outcomes)
        assert whole(disk.path / "ledger.sqlite", tmp_path / "copy") == there


def test_a_disk_that_fails_is_a_503_and_forgotten_when_it_works_again(releases, tmp_path, clip):
    """Every byte beyond the ledger's present size is an error that is not ENOSPC (RLIMIT_FSIZE: EFBIG)."""
    ledger = tmp_path / "ledger.sqlite"
    with RunningService(releases, ledger, decode_workers=1, log_level="error") as running:
        client, pid = running.client, running.process.pid
        assert upload(client, clip, track_id="before").status_code == 201
        size = Path(f"{ledger}-wal").stat().st_size
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
        for number in range(3):
            problem = assert_problem(upload(client, clip, track_id=f"late-{number}"), 503, "ledger_unwritable")
            assert "cannot be written" in problem.detail
            reads(client, "before")
        assert_problem(client.delete("/tracks/before"), 503, "ledger_unwritable")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        print(f"well again after {takes_in_again(client, clip, 'after'):.2f} s")
        running.kill()
    assert whole(ledger, tmp_path / "copy") == {"before", "after"}


def test_a_disk_that_is_read_only_is_a_sentence_at_start_and_the_ledger_is_whole(releases, tmp_path, clip):
    with SmallDisk(tmp_path / "disk", 4 * MIB) as disk:
        ledger = disk.folder / "ledger.sqlite"
        with RunningService(releases, ledger, decode_workers=1, inside=disk.inside) as running:
            assert upload(running.client, clip, track_id="before").status_code == 201
            running.kill()
        disk.remount("ro")
        assert_refused(
            run_to_exit(releases=releases, ledger=ledger, port=0, inside=disk.inside), str(ledger), "cannot be written"
        )
        disk.remount("rw")
        with RunningService(releases, ledger, decode_workers=1, inside=disk.inside) as running:
            reads(running.client, "before")
            assert running.stop() == 0
        assert whole(disk.path / "ledger.sqlite", tmp_path / "copy") == {"before"}


@pytest.mark.long
def test_a_disk_that_breaks_and_is_made_read_only_is_a_503_and_all_is_there_when_it_is_mended(releases, tmp_path, clip):
    """What the kernel does with ext4 and an error on it. It stays read-only until it is mounted anew."""
    image, told = tmp_path / "image", {"decode_workers": 1, "log_level": "error"}
    acknowledged = {f"before-{number}" for number in range(5)}
    with (
        BreakableDisk(tmp_path / "disk", image) as disk,
        RunningService(releases, disk.folder / "ledger.sqlite", inside=disk.inside, **told) as running,
    ):
        client = running.client
        assert [upload(client, clip, track_id=one).status_code for one in sorted(acknowledged)] == [201] * 5
        disk.fail()
        for number in range(3):
            answer = upload(client, clip, track_id=f"late-{number}")
            assert "cannot be written" in assert_problem(answer, 503, "ledger_unwritable").detail
            reads(client, "before-0")
        assert_problem(client.delete("/tracks/before-0"), 503, "ledger_unwritable")
        until_ready(client, 503)
        running.kill()
    repaired(image)
    with BreakableDisk(tmp_path / "disk", image) as disk:
        with RunningService(releases, disk.folder / "ledger.sqlite", inside=disk.inside, **told) as running:
            assert upload(running.client, clip, track_id="after").status_code == 201
            assert running.stop() == 0
        assert whole(disk.path / "ledger.sqlite", tmp_path / "copy") == acknowledged | {"after"}
