"""Folding the ledger into a new release: same answers, a short replay, and nothing left of what was taken down."""

import shutil
from pathlib import Path

import faiss
import pytest
from service_process import RunningService, run_to_exit
from service_release import songs
from service_two import one_folder
from service_uploads import ogg, seeded, tone, upload

from index.audience.listening import Listening
from index.errors import DebutError
from index.release.release import CURRENT, activate
from service.http.schemas import Removal
from service.ledger.sqlite import SqliteLedger
from service.serving import folding
from service.serving.folding import fold_ledger

HEARD, OTHER = (songs()[place][0].track_id for place in (0, 1))
IN_RELEASE = ["release.metadata", "release.vectors", "release.listening"]
IN_LEDGER = ["ledger.metadata", "ledger.vectors", "ledger.features"]


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "both"


@pytest.fixture
def ids(root, releases, retrained) -> list[str]:
    return one_folder(root, releases, retrained)


@pytest.fixture
def settings(settings, root, ids):
    return settings.model_copy(update={"releases": root, "release_poll_s": 3600.0})


def features(service, track_id: str) -> bytes:
    """What would be found in the ledger's files if they held the features of a track."""
    return next(e.features.data for _, e in service.ledger.replay() if e.track_id == track_id)[1000:1200]


def on_disk(settings) -> bytes:
    return b"".join(path.read_bytes() for path in settings.ledger.parent.glob(f"{settings.ledger.name}*"))


def states(client) -> dict:
    """What can be asked of the tracks, and a playlist, without the release's id."""
    ids = [track["track_id"] for track in client.get("/tracks?q=e&limit=200").json()["tracks"]]
    answer = client.post("/continue-playlist", json={"seeds": ["new", OTHER], "k": 100, "explain": True}).json()
    return {
        "ids": sorted(ids),
        "tracks": {i: client.get(f"/tracks/{i}").json() for i in (*ids, "new", OTHER)},
        "playlist": {track["track_id"]: track for track in answer["tracks"]},
    }


def test_a_fold_while_the_service_runs(client, serve, settings, root, ids):
    service = client.app.state.service
    sounds = [ogg(tone(2, 300 + 100 * seed, seed=seed)) for seed in range(5)]
    upload(client, sounds[0], track_id="new", title="New e", lyrics="la la")
    upload(client, sounds[1], track_id="gone", title="Gone e", lyrics="secret words")
    upload(client, sounds[2], track_id=OTHER, title="First e", replace="true")
    first = features(service, OTHER)
    upload(client, sounds[3], track_id=OTHER, title="Second e", replace="true")
    kept, second, gone = features(service, "new"), features(service, OTHER), features(service, "gone")
    receipts = [Removal.model_validate(client.delete(f"/tracks/{i}").json()) for i in ("gone", HEARD)]
    assert [receipt.purged_by_next_fold for receipt in receipts] == [IN_LEDGER, IN_RELEASE]
    before = states(client)
    assert len(service.ledger) == 6

    folded, changes = fold_ledger(settings)
    assert (changes.added, changes.replaced, changes.removed) == (1, 1, 1)
    assert service.serving.release.id == ids[0]
    assert all(data in on_disk(settings) for data in (kept, first, second, gone, b"secret words"))
    upload(client, sounds[4], track_id="later", title="Not folded")
    assert service.swapper.look()

    assert service.serving.release.id == folded.id
    client.delete("/tracks/later")
    after = states(client)
    assert after == before
    assert len(service.ledger) == 6  # new, gone, OTHER, HEARD, and later twice
    assert service.ledger.trim() == 1  # the features of later
    assert not any(data in on_disk(settings) for data in (first, gone, b"secret words"))
    assert all(data in on_disk(settings) for data in (kept, second))
    listening = Listening.open(folded.path / "audience")
    tracks = service.serving.collection.catalogue.sealed.texts["track_id"].to_list()
    assert HEARD not in tracks
    assert len(listening.track_offsets) == len(tracks) + 1
    assert listening.listeners_of(tracks.index(OTHER))[0].size  # its listeners are still its listeners
    assert upload(client, sounds[0], track_id="new", title="New e", lyrics="la la").status_code == 200
    receipt = Removal.model_validate(client.delete("/tracks/new").json())
    assert receipt.purged_by_next_fold == IN_RELEASE + IN_LEDGER
    upload(client, sounds[0], track_id="new", title="New e", lyrics="la la")
    assert states(client) == before
    service.close()
    again = serve(settings)
    assert states(again) == before


def test_after_a_fold_a_start_reads_no_features_and_any_release_can_be_served(client, serve, settings, ids, root, clip):
    service = client.app.state.service
    for track_id in ("new", "gone"):
        upload(client, clip, track_id=track_id, title=f"{track_id} e")
    client.delete("/tracks/gone")
    client.delete(f"/tracks/{HEARD}")
    upload(client, clip, track_id="last", title="last e")
    before = states(client)
    folded, _ = fold_ledger(settings)
    service.close()

    again = serve(settings)
    service = again.app.state.service
    assert states(again) == before
    assert len(service.serving.collection.view().continuation.fresh) == 0
    assert service.serving.replay(service.ledger) == 5  # a held event counts as seen
    assert fold_ledger(settings)[0].id == folded.id  # nothing has changed since
    assert not service.swapper.look()
    for release_id in (ids[0], ids[1], folded.id):
        activate(root, release_id)
        assert service.swapper.look()
        assert service.serving.release.id == release_id
        found = states(again)
        assert found["ids"] == before["ids"]
        assert found["tracks"] == before["tracks"]
        assert again.get(f"/tracks/{HEARD}").status_code == 404
    assert found == before


def test_a_ledger_restored_from_a_backup_loses_nothing_to_an_earlier_fold(client, serve, settings, tmp_path, clip):
    """Its next events have numbers that the fold knows under other names."""
    service = client.app.state.service
    upload(client, clip, track_id="t1", title="1")
    service.close()
    shutil.copy(settings.ledger, tmp_path / "backup")
    second = serve(settings)
    upload(second, clip, track_id="t2", title="2")
    second.app.state.service.close()
    folded, _ = fold_ledger(settings)
    shutil.copy(tmp_path / "backup", settings.ledger)

    restored = serve(settings)
    assert restored.get("/").json()["release"] == folded.id
    assert upload(restored, clip, track_id="t2", title="Other").status_code == 409
    assert upload(restored, clip, track_id="t2", title="Other", replace="true").status_code == 201
    restored.app.state.service.close()
    again = serve(settings)
    assert again.get("/tracks/t2").json()["title"] == "Other"
    assert again.get("/tracks/t1").json()["title"] == "1"


def test_an_older_encoders_embedding_in_the_ledger_is_folded_anew(client, settings, root, ids, clip):
    """The service still serves the first release; the second is current, and it is what is folded into."""
    upload(client, clip, track_id="t", title="A")
    activate(root, ids[1])
    folded, _ = fold_ledger(settings)
    service = client.app.state.service
    [(_, event)] = service.ledger.replay()
    assert event.embedding.encoder_id == service.serving.encoder_id  # the ledger was only read
    assert folded.manifest.facts["folded"]["from"] == ids[1]
    assert service.swapper.look()
    view = service.serving.collection.view()
    placed = view.continuation.vectors([view.catalogue.row_of("t")])[0]
    assert len(view.continuation.fresh) == 0
    upload(client, clip, track_id="u", title="A")
    view = service.serving.collection.view()
    assert float(placed @ view.continuation.vectors([view.catalogue.row_of("u")])[0]) > 0.999


def test_the_verb_works_while_a_service_runs_and_without(root, ids, settings, clip):
    told = {"releases": root, "ledger": settings.ledger}
    with RunningService(root, settings.ledger, release_poll_s=0.1) as running:
        assert upload(running.client, clip, track_id="a", title="A").status_code == 201
        done = run_to_exit("fold", **told)
        assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
        folded = (root / CURRENT).readlink().name
        assert done.stdout == f"{folded} is current now: 1 tracks were added, 0 replaced and 0 removed\n"
        wait_for_release(running, folded)
        assert seeded(running.client, "a", k=1)
        assert running.client.delete("/tracks/a").json()["was_in_release"] is True
        assert running.stop() == 0
    done = run_to_exit("fold", **told)
    assert done.stdout.endswith("0 tracks were added, 0 replaced and 1 removed\n"), done.stderr


def wait_for_release(running: RunningService, release_id: str) -> None:
    import time

    deadline = time.monotonic() + 60
    while running.client.get("/readyz").json()["release"] != release_id:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_be_folded_is_a_sentence(root, ids, settings):
    with pytest.raises(DebutError, match=r"is not there: set DEBUT_LEDGER") as refused:
        fold_ledger(settings)
    assert refused.value.code == "ledger_missing"
    settings.ledger.touch()
    with pytest.raises(DebutError, match="is empty: set DEBUT_LEDGER"):
        fold_ledger(settings)
    settings.ledger.unlink()
    SqliteLedger(settings.ledger).close()
    assert not fold_ledger(settings)[1]
    with pytest.raises(DebutError, match="set DEBUT_RELEASES to the folder of releases"):
        fold_ledger(settings.model_copy(update={"releases": root / ids[0]}))
    done = run_to_exit("fold", releases=root / "none", ledger=settings.ledger)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"debut: {root / 'none'} holds no release")


@pytest.fixture
def taken_in(settings, clip, serve):
    """A ledger that knows more than the release, and nobody who uses it."""
    client = serve(settings)
    assert upload(client, clip, track_id="a", title="A").status_code == 201
    client.app.state.service.ledger.close()


def refused(settings) -> DebutError:
    with pytest.raises(DebutError, match="does not take the new release") as caught:
        fold_ledger(settings)
    assert caught.value.code == "fold_unwritable"
    return caught.value


def test_only_what_a_disk_refuses_is_told_of_the_disk(root, settings, taken_in, monkeypatch):
    def raising(error):
        def call(*_, **__):
            raise error

        return call

    before = (root / CURRENT).readlink()
    with monkeypatch.context() as patch:
        patch.setattr(folding, "fold", raising(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            fold_ledger(settings)
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "write_index", raising(RuntimeError("Error in write_index: could not open x for writing")))
        assert "MB are free" in refused(settings).detail
        patch.setattr(folding.shutil, "disk_usage", raising(OSError(5, "Input/output error")))
        assert "it does not say how much is free: Input/output error" in refused(settings).detail
    assert (root / CURRENT).readlink() == before
