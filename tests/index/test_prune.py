"""Old releases deleted: which ones, never one in use, and a kill at any step leaves whole releases or none."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from index.__main__ import main
from index.release import prune as module
from index.release import release
from index.release.prune import hold, prune
from index.release.release import Release, ReleaseError, activate, current_id, publish, share


def made(root: Path, count: int) -> list[str]:
    """Publish so many releases, an hour apart; return their ids, the oldest first."""
    first = datetime(2026, 1, 1, tzinfo=UTC)

    def fill(number: int):
        return lambda folder: (folder / "data").write_bytes(bytes([number]) * 1000)

    return [publish(root, fill(n), facts={"n": n}, now=first + timedelta(hours=n)).id for n in range(count)]


def there(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/manifest.json") if path.parent.name != "current")


@pytest.mark.parametrize(("keep", "left"), [(0, [4]), (1, [3, 4]), (2, [2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_the_current_release_and_the_newest_others_stay(tmp_path, keep, left):
    ids = made(tmp_path, 5)
    gone = [ids[n] for n in range(5) if n not in left]
    would = prune(tmp_path, keep, delete=False)
    assert there(tmp_path) == ids
    assert sorted(one.id for one in would) == gone
    assert all(one.bytes > 1000 and not one.held for one in would)
    assert prune(tmp_path, keep, delete=True) == would
    assert there(tmp_path) == [ids[n] for n in left]
    assert Release.open(tmp_path).id == ids[4]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".pruned")]


def test_an_old_release_that_is_current_again_stays(tmp_path):
    ids = made(tmp_path, 4)
    activate(tmp_path, ids[0])
    prune(tmp_path, 1, delete=True)
    assert there(tmp_path) == [ids[0], ids[3]]


def test_what_a_service_serves_stays_until_it_lets_go(tmp_path):
    ids = made(tmp_path, 3)
    held = [hold(tmp_path / ids[0]) for _ in range(2)]
    for descriptor in held:
        assert [(one.id, one.held) for one in prune(tmp_path, 0, delete=True)][-1] == (ids[0], True)
        assert there(tmp_path) == [ids[0], ids[2]]
        os.close(descriptor)
    prune(tmp_path, 0, delete=True)
    assert there(tmp_path) == [ids[2]]
    with pytest.raises(ReleaseError, match="is not there any more") as caught:
        hold(tmp_path / ids[0])
    assert caught.value.code == "release_missing"


def test_what_is_being_deleted_cannot_be_held(tmp_path):
    ids = made(tmp_path, 2)
    with module._unused(tmp_path / ids[0]) as unused:
        assert unused
        with pytest.raises(ReleaseError, match="is not there any more"):
            hold(tmp_path / ids[0])


def test_what_is_pruned_while_it_is_verified_does_not_become_current(tmp_path, monkeypatch):
    ids, real = made(tmp_path, 2), release._verify

    def slowly(path, manifest):
        real(path, manifest)
        prune(tmp_path, 0, delete=True)

    monkeypatch.setattr(release, "_verify", slowly)
    with pytest.raises(ReleaseError, match="it was pruned") as caught:
        activate(tmp_path, ids[0])
    assert caught.value.code == "release_missing"
    assert current_id(tmp_path) == ids[1]


def test_new_names_are_on_disk_before_any_file_goes(tmp_path, monkeypatch):
    made(tmp_path, 3)
    steps, sync, remove = [], module.sync_folder, module.shutil.rmtree
    monkeypatch.setattr(module, "sync_folder", lambda path: steps.append("sync") or sync(path))
    monkeypatch.setattr(module.shutil, "rmtree", lambda *given, **more: steps.append("files") or remove(*given, **more))
    prune(tmp_path, 0, delete=True)
    assert steps == ["sync", "files", "files"]


def test_a_release_can_be_held_from_the_instant_that_it_is_current(tmp_path, monkeypatch):
    real, held = release.sync_folder, []

    def at_that_instant(folder):
        if folder == tmp_path:  # `current` names it, and its publisher is not done yet
            held.append(hold((tmp_path / "current").resolve()))
        real(folder)

    monkeypatch.setattr(release, "sync_folder", at_that_instant)
    made(tmp_path, 1)
    os.close(*held)


def test_a_kill_in_the_midst_leaves_no_release_in_part(tmp_path, monkeypatch):
    ids = made(tmp_path, 3)
    real, steps = module.shutil.rmtree, []

    def killed(path, **named):
        steps.append(path)
        (path / "data").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 0, delete=True)
    monkeypatch.setattr(module.shutil, "rmtree", real)
    assert len(steps) == 1
    for path in tmp_path.glob("2026*"):
        Release.open(path)
    assert Release.open(tmp_path).id == ids[2]
    publish(tmp_path, lambda folder: (folder / "data").write_bytes(b"new"), facts={})
    assert not list(tmp_path.glob(".pruned-*"))


def test_a_file_of_several_releases_is_freed_with_the_last_of_them(tmp_path):
    [first, *_] = made(tmp_path, 1)
    start = datetime(2026, 2, 1, tzinfo=UTC)

    def fill(folder):
        share(tmp_path / first / "data", folder / "data")
        (folder / "own").write_bytes(b"x" * 50)

    for day in range(3):
        publish(tmp_path, fill, facts={"day": day}, now=start + timedelta(days=day))
    assert sum(one.bytes for one in prune(tmp_path, 0, delete=False)) < 3000  # the current one shares it
    publish(tmp_path, lambda folder: (folder / "data").write_bytes(b""), facts={})
    assert sum(one.bytes for one in prune(tmp_path, 1, delete=False)) < 3000  # one that is kept shares it
    held = hold(tmp_path / first)
    assert sum(one.bytes for one in prune(tmp_path, 0, delete=False)) < 3000  # one in use shares it
    os.close(held)
    would = prune(tmp_path, 0, delete=False)
    assert sum(one.bytes for one in would) == sum(
        {path.stat().st_ino: path.stat().st_size for one in would for path in (tmp_path / one.id).iterdir()}.values()
    )
    assert prune(tmp_path, 0, delete=True) == would


def test_what_a_kill_left_behind_is_listed_and_deleted(tmp_path, capsys):
    ids = made(tmp_path, 2)
    (tmp_path / ids[0]).rename(tmp_path / f".pruned-{ids[0]}")
    asked = ["prune", "--releases", str(tmp_path), "--keep", "5"]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith(f"{ids[0]} would be deleted: 1.")
    assert (tmp_path / f".pruned-{ids[0]}").is_dir()
    assert main([*asked, "--yes"]) == 0
    assert capsys.readouterr().out.startswith(f"{ids[0]} is deleted: 1.")
    assert not (tmp_path / f".pruned-{ids[0]}").exists()


@pytest.mark.parametrize("keep", ["-1", "0"])
def test_without_a_current_release_or_with_less_than_nothing_nothing_is_deleted(tmp_path, capsys, keep):
    ids = made(tmp_path, 2)
    if keep == "0":
        (tmp_path / "current").unlink()
    assert main(["prune", "--releases", str(tmp_path), "--keep", keep, "--yes"]) == 1
    assert "debut: " in capsys.readouterr().err
    assert there(tmp_path) == ids


def test_the_verb_lists_and_deletes_when_told_to(tmp_path, capsys):
    ids = made(tmp_path, 3)
    asked = ["prune", "--releases", str(tmp_path), "--keep", "1"]
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{ids[0]} would be deleted: 1.")
    assert there(tmp_path) == ids
    held = hold(tmp_path / ids[0])
    assert main([*asked, "--yes"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{ids[0]} stays: a service is serving it, or it is being sealed anew.",
        "0 B freed",
    ]
    os.close(held)
    assert main([*asked, "--yes"]) == 0
    assert capsys.readouterr().out.startswith(f"{ids[0]} is deleted: 1.")
    assert there(tmp_path) == ids[1:]
    assert current_id(tmp_path) == ids[2]
