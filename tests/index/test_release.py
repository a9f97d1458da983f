"""The release folder: published at once and whole or not at all, and every changed bit noticed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from index.release import release as release_module
from index.release.release import CURRENT, MANIFEST, Release, ReleaseError, activate, publish

FACTS = {
    "dims": {"continuation": 256, "matching": 128},
    "counts": {"tracks": 3},
    "encoder_id": "abc",
    "evaluation": {"Recall@10": 0.25, "tiny": 1e-05, "city": "Ås"},
}
CONTENT = {"tracks.parquet": b"rows", "encoder/audio.onnx": bytes(5000), "encoder/config.json": b"{}", "empty": b""}


def fill(folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def refused(path: Path, code: str = "release_damaged", verify: bool = True) -> str:
    with pytest.raises(ReleaseError) as caught:
        Release.open(path, verify)
    assert caught.value.code == code
    return caught.value.detail


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "releases"


class TestPublish:
    def test_what_is_filled_in_is_what_is_opened(self, root):
        published = publish(root, fill, facts=FACTS)
        opened = Release.open(root)
        assert opened.path == published.path.resolve()
        assert opened.manifest == published.manifest
        assert {name: opened.file(name).read_bytes() for name in opened.manifest.files} == CONTENT
        assert opened.manifest.facts == FACTS
        assert (opened.manifest.dims["matching"], opened.manifest.counts, opened.manifest.encoder_id) == (
            128, {"tracks": 3}, "abc",
        )  # fmt: skip

    def test_the_id_is_time_and_hash_and_the_folder_is_named_by_it(self, root):
        moment = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
        published = publish(root, fill, facts=FACTS, now=moment)
        assert re.fullmatch(r"20260102T030405Z-[0-9a-f]{16}", published.id)
        assert published.path == root / published.id
        assert os.readlink(root / CURRENT) == published.id  # relative: the whole folder can be moved
        assert json.loads((published.path / MANIFEST).read_text())["created"] == "2026-01-02T03:04:05+00:00"

    def test_the_next_one_becomes_current_and_the_former_stays(self, root):
        first, second = publish(root, fill, facts={}), publish(root, fill, facts={})
        assert Release.open(root).id == second.id != first.id
        assert Release.open(first.path).id == first.id
        assert activate(root, first.id).id == Release.open(root).id == first.id

    def test_the_same_at_the_same_instant_is_one_release(self, root):
        now = datetime.now(UTC)
        assert publish(root, fill, facts={}, now=now).id == publish(root, fill, facts={}, now=now).id
        assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == sorted(
            [CURRENT, Release.open(root).id]
        )

    def test_what_fill_raises_comes_through_and_leaves_nothing(self, root):
        first = publish(root, fill, facts={})

        def failing(folder: Path) -> None:
            fill(folder)
            raise KeyError("no tracks")

        with pytest.raises(KeyError, match="no tracks"):
            publish(root, failing, facts={})
        assert Release.open(root).id == first.id
        assert not list(root.glob(".staging-*"))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (lambda folder: None, "needs files"),
            (lambda folder: (folder / MANIFEST).write_text("{}"), "none of them named manifest.json"),
            (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "not a plain file"),
            (lambda folder: os.mkfifo(folder / "pipe"), "not a plain file"),
            (lambda folder: (folder / "back\\slash").write_text(""), "cannot be the name"),
        ],
    )
    def test_only_plain_files_make_a_release(self, root, bad, message):
        with pytest.raises(ReleaseError, match=message):
            publish(root, bad, facts={})
        assert not (root / CURRENT).exists()
        assert not list(root.glob("[!.]*"))

    @pytest.mark.parametrize("facts", [{"id": "x"}, {"a": float("nan")}, {"a": object()}, {"a": (1, 2)}, {1: "a"}])
    def test_facts_that_do_not_fit_are_refused_before_the_work(self, root, facts):
        with pytest.raises(ReleaseError):
            publish(root, lambda folder: pytest.fail("filled"), facts=facts)

    def test_a_folder_in_the_place_of_the_link_is_left_alone(self, root):
        (root / CURRENT).mkdir(parents=True)
        with pytest.raises(ReleaseError, match="must be a link"):
            publish(root, fill, facts={})
        assert (root / CURRENT).is_dir()

    def test_no_room_for_the_link_leaves_nothing(self, root, monkeypatch):
        former = publish(root, fill, facts={})

        def no_room(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "symlink_to", no_room)
            with pytest.raises(OSError, match="No space"):
                publish(root, fill, facts={"another": 1})
        assert {path.name for path in root.iterdir()} == {".lock", CURRENT, former.id}
        assert Release.open(root).id == former.id

    def test_what_is_current_stays_whatever_fails_afterwards(self, root, monkeypatch):
        real = release_module.sync_folder

        def failing(folder):
            if folder == root:
                raise OSError(5, "Input/output error")
            real(folder)

        monkeypatch.setattr(release_module, "sync_folder", failing)
        with pytest.raises(OSError, match="Input/output"):
            publish(root, fill, facts={})
        Release.open(root)

    def test_many_at_once(self, root):
        published, errors = [], []

        def one(number: int) -> None:
            try:
                published.append(publish(root, fill, facts={"number": number}).id)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not errors
        assert len(set(published)) == 8
        assert all(Release.open(root / name).id == name for name in published)
        assert Release.open(root).id in published
        assert not list(root.glob(".staging-*"))

    def test_readers_always_find_a_whole_release(self, root):
        publish(root, fill, facts={})
        stop, seen = threading.Event(), set()

        def read() -> None:
            while not stop.is_set():
                seen.add(Release.open(root).id)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            last = [publish(root, fill, facts={}).id for _ in range(20)][-1]
            deadline = time.monotonic() + 10
            while last not in seen and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            stop.set()
            reader.join(10)
        assert last in seen


class TestVerify:
    @pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.long)])
    def test_every_flipped_bit_is_noticed(self, root, bits):
        """One random bit, or all eight, of every byte of the manifest and every small file, and of 200 of the large."""
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        numbers = random.Random(seed)
        path = publish(root, fill, facts=FACTS).path
        for name in [*CONTENT, MANIFEST]:
            content = (path / name).read_bytes()
            places = range(len(content)) if len(content) < 3000 else numbers.sample(range(len(content)), 200)
            for place in places:
                for bit in numbers.sample(range(8), bits):
                    changed = bytearray(content)
                    changed[place] ^= 1 << bit
                    (path / name).write_bytes(changed)
                    with pytest.raises(ReleaseError):
                        Release.open(path)
            (path / name).write_bytes(content)
        assert Release.open(path).manifest.facts == FACTS

    def test_missing_extra_longer_shorter(self, root):
        path = publish(root, fill, facts={}).path
        (path / "extra.txt").write_text("hello")
        assert "holds ['extra.txt']" in refused(path)
        (path / "extra.txt").unlink()
        (path / "encoder" / "config.json").rename(path / "encoder" / "config.txt")
        detail = refused(path)
        assert "lacks ['encoder/config.json']" in detail
        (path / "encoder" / "config.txt").rename(path / "encoder" / "config.json")
        with (path / "tracks.parquet").open("ab") as file:
            file.write(b"!")
        assert "5 bytes" in refused(path)
        assert "instead of 4" in refused(path)

    def test_a_file_replaced_by_a_link(self, root, tmp_path):
        path = publish(root, fill, facts={}).path
        (tmp_path / "elsewhere").write_bytes(CONTENT["tracks.parquet"])
        (path / "tracks.parquet").unlink()
        (path / "tracks.parquet").symlink_to(tmp_path / "elsewhere")
        assert "not a plain file" in refused(path)

    def test_without_verifying_the_manifest_is_still_checked(self, root):
        path = publish(root, fill, facts=FACTS).path
        (path / "tracks.parquet").write_bytes(b"ROWS")
        Release.open(path, verify=False)
        text = (path / MANIFEST).read_text()
        (path / MANIFEST).write_text(text.replace("0.25", "0.99"))
        assert "was changed after publishing" in refused(path, verify=False)

    @pytest.mark.parametrize("change", ["1e-05 1E-05", "Ås \\u00c5s", '"Ås" "Ås"', "0.25 0.250"])
    def test_the_same_values_written_otherwise_are_a_change(self, root, change):
        path = publish(root, fill, facts=FACTS).path
        before, after = change.split(" ")
        text = (path / MANIFEST).read_text()
        replaced = text.replace(before, after) if before != after else text.replace(": ", ":  ", 1)
        assert replaced != text
        (path / MANIFEST).write_text(replaced)
        assert "was changed after publishing" in refused(path)

    @pytest.mark.parametrize(
        "name", ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "", "a\\b", "encoder/.."]
    )
    def test_names_that_leave_the_release(self, root, name):
        """A manifest that fits its own id but names a file elsewhere."""
        path = publish(root, fill, facts={}).path
        manifest = Release.open(path).manifest
        files = {**manifest.files, name: next(iter(manifest.files.values()))}
        forged = release_module.Manifest("", manifest.created, files, {})
        forged = release_module.Manifest(release_module._identify(forged), manifest.created, files, {})
        (path / MANIFEST).write_bytes(release_module._to_json(forged))
        assert "cannot be the name" in refused(path, verify=False)

    def test_a_newer_format(self, root):
        path = publish(root, fill, facts={}).path
        (path / MANIFEST).write_text('{"format": 3, "everything": "else is new"}')
        detail = refused(path, "release_format")
        assert "has release format 3 and this Debut reads 2: upgrade Debut" in detail

    def test_an_older_format(self, root):
        path = publish(root, fill, facts={}).path
        (path / MANIFEST).write_text('{"format": 1, "everything": "was otherwise"}')
        detail = refused(path, "release_format")
        assert "has release format 1 and this Debut reads 2: publish the release again" in detail

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "null",
            "{}",
            '{"format": "1"}',
            '{"format": 2, "files": []}',
            '{"format": 0}',
            "\xff",
            "[" * 200_000,
        ],
    )
    def test_a_manifest_that_is_none(self, root, text):
        path = publish(root, fill, facts={}).path
        (path / MANIFEST).write_bytes(text.encode("latin-1"))
        refused(path)

    def test_an_unknown_file(self, root):
        release = publish(root, fill, facts={})
        for name in ("missing", "../x", MANIFEST):
            with pytest.raises(ReleaseError, match="has no file"):
                release.file(name)


class TestWhereTheReleaseIs:
    def test_no_release(self, tmp_path):
        assert "holds no release" in refused(tmp_path, "release_missing")
        assert "holds no release" in refused(tmp_path / "nowhere", "release_missing")

    def test_current_points_to_nothing(self, root):
        shutil.rmtree(publish(root, fill, facts={}).path)
        assert "which is no release" in refused(root, "release_missing")

    def test_a_moved_folder_of_releases_still_opens(self, root, tmp_path):
        published = publish(root, fill, facts={})
        root.rename(tmp_path / "moved")
        assert Release.open(tmp_path / "moved").id == published.id

    def test_only_a_whole_release_of_this_folder_is_activated(self, root):
        first, second = publish(root, fill, facts={}), publish(root, fill, facts={})
        (first.path / "tracks.parquet").write_bytes(b"ROWS")
        for name in (first.id, "missing", "..", ".", f"../releases/{second.id}", str(second.path), ""):
            with pytest.raises(ReleaseError):
                activate(root, name)
        assert Release.open(root).id == second.id


KILLED = """
import os, signal, sys
from pathlib import Path
from index.release import release

root, place = Path(sys.argv[1]), sys.argv[2]

def stop(*_, **__):
    print("there", flush=True)
    signal.pause()

if place == "fill":
    fill = lambda folder: ((folder / "half").write_bytes(b"half"), stop())
else:
    fill = lambda folder: (folder / "whole").write_bytes(b"whole")
    target = {"manifest": "_write_synced", "sync": "sync_folder", "rename": "_point_current"}.get(place)
    if target:
        setattr(release, target, stop)
    else:
        os.replace = stop
release.publish(root, fill, facts={})
"""


@pytest.mark.parametrize("place", ["fill", "manifest", "sync", "rename", "link"])
def test_a_publisher_killed_anywhere_leaves_the_former_release(root, place):
    """SIGKILL while filling, before the manifest, before syncing, before and within the switch of `current`."""
    former = publish(root, fill, facts={})
    command = [sys.executable, "-c", KILLED, str(root), place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as publisher:
        killer = threading.Timer(30, publisher.kill)
        killer.start()
        try:
            assert publisher.stdout.readline() == b"there\n"
            assert Release.open(root).id == former.id
        finally:
            publisher.send_signal(signal.SIGKILL)
            killer.cancel()
            publisher.wait(10)
    assert Release.open(root).id == former.id
    assert bool(leftovers(root)) == (place != "rename")  # there the folder has its name already
    latest = publish(root, fill, facts={})
    assert Release.open(root).id == latest.id
    assert not leftovers(root)
    assert Release.open(former.path).id == former.id


def leftovers(root: Path) -> list[Path]:
    return [*root.glob(".staging-*"), *root.glob(".current-*")]


def test_a_living_publishers_folder_is_left_alone(root):
    """A slow publisher and a quick one: the quick one removes only what the dead left."""
    publish(root, fill, facts={})
    inside, go_on = threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        inside.set()
        assert go_on.wait(20)
        fill(folder)

    slow = threading.Thread(target=lambda: publish(root, slowly, facts={"slow": True}))
    slow.start()
    assert inside.wait(10)
    publish(root, fill, facts={"quick": True})
    go_on.set()
    slow.join(20)
    assert Release.open(root).manifest.facts == {"slow": True}


def test_a_publisher_that_fails_in_this_instant_disturbs_no_other(root, monkeypatch):
    abandoned = root / ".staging-0123456789abcdef"
    abandoned.mkdir(parents=True)
    opening = os.open

    def gone(path, *arguments, **named):
        if Path(path) == abandoned:
            abandoned.rmdir()
        return opening(path, *arguments, **named)

    monkeypatch.setattr(os, "open", gone)
    assert publish(root, lambda folder: (folder / "a").write_text("a") and None, facts={}).id
