"""Another release while serving: taken up whole, with every acknowledged track, or refused with a reason."""

import ast
import gc
import json
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from service_release import songs
from service_two import altered, one_folder, point
from service_uploads import ogg, seeded, tone, upload

import service as service_package
from index.release.release import CURRENT, FORMAT, activate
from service.metrics import Metrics
from service.serving.serving import Serving
from service.serving.swap import Swapper
from service.settings import Settings

SEED = songs()[0][0].track_id


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "both"


@pytest.fixture
def ids(root, releases, retrained) -> list[str]:
    return one_folder(root, releases, retrained)


@pytest.fixture
def client(serve, settings, root, ids):
    """The service on the first of two releases; it does not look for another by itself."""
    return serve(settings.model_copy(update={"releases": root, "release_poll_s": 3600.0}))


@pytest.fixture
def service(client):
    return client.app.state.service


def release(client) -> str:
    return client.get("/readyz").json()["release"]


def move(service, root: Path, release_id: str) -> None:
    activate(root, release_id)
    assert service.swapper.look()


def playlist(client) -> dict:
    return client.post("/continue-playlist", json={"seeds": [SEED], "k": 30, "explain": True}).json()


def test_another_release_is_taken_up_with_the_ledgers_tracks_and_given_up_again(client, service, root, ids):
    audio = ogg(tone(3, 500, seed=4))
    before = playlist(client)
    upload(client, audio, track_id="kept", title="Sehnsucht", artist="A")
    upload(client, audio, track_id="dropped")
    client.delete("/tracks/dropped")
    client.delete(f"/tracks/{songs()[-1][0].track_id}")
    old = vectors(service, "kept")
    assert not service.swapper.look()  # nothing has changed

    move(service, root, ids[1])
    assert (release(client), playlist(client)["release"]) == (ids[1], ids[1])
    assert client.get("/tracks/dropped").status_code == 404
    assert client.get(f"/tracks/{songs()[-1][0].track_id}").status_code == 404
    assert client.get("/").json()["tracks"] == 40
    new = vectors(service, "kept")
    assert abs(float(old[0] @ new[0])) < 0.9  # another space
    upload(client, audio, track_id="fresh", title="Sehnsucht", artist="A")
    for one, other in zip(new, vectors(service, "fresh"), strict=True):
        assert float(one @ other) > 0.999
    assert seeded(client, "kept", k=1) == ["fresh"]
    figures = client.get("/metrics").text
    assert 'debut_release_swaps_total{outcome="swapped"} 1.0' in figures
    assert f'release="{ids[1]}"' in figures
    assert f'release="{ids[0]}"' not in figures
    assert "debut_index_vectors 41.0" in figures

    client.delete("/tracks/fresh")
    move(service, root, ids[0])
    for one, other in zip(old, vectors(service, "kept"), strict=True):
        assert float(one @ other) > 0.999  # as it was, up to the 8 bits of its features
    client.delete("/tracks/kept")
    assert playlist(client)["tracks"][:5] == before["tracks"][:5]


def vectors(service, track_id: str):
    view = service.serving.collection.view()
    row = view.catalogue.row_of(track_id)
    return view.continuation.vectors([row])[0], view.matching.vectors([row])[0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it is a hard link
    path.write_bytes(content)


def newer(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_text('{"format": 99}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda path: flip(path / "encoder" / "audio.onnx"), "audio.onnx is damaged", id="a bit"),
        pytest.param(
            lambda path: (path / "matching.faiss").unlink(), "lacks ['matching.faiss']", id="a file is missing"
        ),
        pytest.param(
            newer, f"has release format 99 and this Debut reads {FORMAT}: upgrade Debut", id="a format to come"
        ),
        pytest.param(lambda path: path.rename(path.with_name("elsewhere")), "which is no release", id="a lost folder"),
    ],
)
def test_a_broken_release_is_refused_and_the_old_one_goes_on(client, service, root, ids, damage, reason):
    damage(root / ids[1])
    before = playlist(client)
    point(root, ids[1])
    check_refused(client, service, ids, reason)
    assert playlist(client) == before
    assert not service.swapper.look()  # it is not tried over and over
    assert 'debut_release_swaps_total{outcome="refused"} 1.0' in client.get("/metrics").text
    activate(root, ids[0])
    assert not service.swapper.look()
    assert client.get("/readyz").json()["releases"] == f"serving {ids[0]}"


def check_refused(client, service, ids: list[str], reason: str) -> None:
    assert not service.swapper.look()
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["release"]) == (200, ids[0])
    said = ready.json()["releases"]
    assert said.startswith(f"serving {ids[0]}; ")
    assert " refused: " in said
    assert reason in said


def nan(path: Path) -> None:
    """Multiply what the model answers by NaN."""
    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "vector":
                node.output[place] = "well"
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Mul", ["well", "nan"], ["vector"]))
    path.unlink()
    onnx.save(model, path)


@pytest.mark.parametrize("model", ["encoder/audio.onnx", "encoder/text.onnx", "matcher/matcher.onnx"])
def test_models_that_answer_nan_are_refused_though_every_checksum_fits(client, service, root, ids, model):
    broken = altered(root, ids[1], lambda folder: nan(folder / model))
    point(root, broken)
    check_refused(client, service, ids, "cannot place 'warm-up'")


def test_a_refused_release_is_tried_again_when_it_is_pointed_to_again_or_when_told(client, service, root, ids):
    good = (root / ids[1] / "tracks.parquet").read_bytes()
    flip(root / ids[1] / "tracks.parquet")
    point(root, ids[1])
    check_refused(client, service, ids, "tracks.parquet is damaged")
    (root / ids[1] / "tracks.parquet").write_bytes(good)
    assert not service.swapper.look()
    assert service.swapper.look(again=True)
    assert client.get("/readyz").json()["releases"] == f"serving {ids[1]}"
    good = (root / ids[0] / "tracks.parquet").read_bytes()
    flip(root / ids[0] / "tracks.parquet")
    point(root, ids[0])
    assert not service.swapper.look()
    (root / ids[0] / "tracks.parquet").write_bytes(good)
    point(root, ids[0])
    assert service.swapper.look()


def test_an_upload_that_a_swap_overtakes_is_embedded_by_the_new_models(client, service, root, ids, clip, monkeypatch):
    """Embedded by the old release, committed after the swap."""
    embedded, swapped = threading.Event(), threading.Event()
    real, old = Serving.embed, service.serving

    def slow(self, track, mel):
        made = real(self, track, mel)
        if self is old and track.track_id == "late":
            embedded.set()
            assert swapped.wait(60)
        return made

    monkeypatch.setattr(Serving, "embed", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(upload, client, clip, track_id="late", title="A")
        assert embedded.wait(60)
        move(service, root, ids[1])
        swapped.set()
        answer = answer.result(60)
    assert (answer.status_code, answer.json()["release"]) == (201, ids[1])
    [(_, event)] = service.ledger.replay()
    assert event.embedding.encoder_id == service.serving.encoder_id
    np.testing.assert_array_equal(vectors(service, "late")[0], event.embedding.vectors.continuation)
    assert len(service.ledger) == 1


def test_what_is_taken_in_and_down_while_a_release_is_prepared_is_carried_over(
    client, service, root, ids, clip, monkeypatch
):
    """Between every two passes over the ledger something happens; the last of it while uploads are held."""
    upload(client, clip, track_id="t0", title="0")
    real, passes = Serving.replay, []

    def busy(self, ledger, after=0, **more):
        last = real(self, ledger, after, **more)
        passes.append(last)
        number = len(passes)
        if number <= 4:  # the fourth is the last pass before uploads are held
            assert upload(client, clip, track_id=f"t{number}", title=str(number)).status_code == 201
            assert upload(client, clip, track_id="t0", title=f"0 again {number}", replace="true").status_code == 201
            assert client.delete(f"/tracks/t{number - 1 or 1}").status_code == 200 if number > 2 else True
        return last

    monkeypatch.setattr(Serving, "replay", busy)
    move(service, root, ids[1])
    assert len(passes) == 5
    assert release(client) == ids[1]
    found = {i: client.get(f"/tracks/t{i}").status_code for i in range(5)}
    assert found == {0: 200, 1: 200, 2: 404, 3: 404, 4: 200}
    assert client.get("/tracks/t0").json()["title"] == "0 again 4"
    for _, event in service.ledger.replay():
        if hasattr(event, "embedding"):
            assert event.embedding.encoder_id == service.serving.encoder_id


def test_a_track_that_breaks_the_new_models_refuses_the_release(client, service, root, ids, clip, monkeypatch):
    upload(client, clip, track_id="t", title="A")
    real, old = Serving.embed, service.serving

    def breaks(self, track, mel):
        if track.track_id == "t" and self is not old:
            raise RuntimeError("boom")
        return real(self, track, mel)

    monkeypatch.setattr(Serving, "embed", breaks)
    activate(root, ids[1])
    check_refused(client, service, ids, "something broke on our side")
    assert client.get("/tracks/t").status_code == 200
    monkeypatch.undo()
    assert service.swapper.look(again=True)
    assert client.get("/tracks/t").status_code == 200


def test_a_track_that_has_nothing_for_the_new_encoder_refuses_the_release_by_name(client, service, root, ids, clip):
    def deaf(folder: Path) -> None:
        config = json.loads((folder / "encoder" / "config.json").read_text())
        (folder / "encoder" / "config.json").unlink()
        (folder / "encoder" / "config.json").write_text(json.dumps(config | {"towers": ["text"]}))

    upload(client, clip, track_id="wordless")
    activate(root, altered(root, ids[1], deaf))
    check_refused(client, service, ids, "cannot place 'wordless' of the ledger (the track has no title")
    client.delete("/tracks/wordless")
    assert service.swapper.look(again=True)


def test_an_answer_that_a_swap_overtakes_is_the_old_releases_wholly(client, service, root, ids, monkeypatch):
    from service.routes import audience, playlists

    expected = playlist(client), client.get(f"/audience/{SEED}?limit=5").json()
    entered, swapped = threading.Semaphore(0), threading.Event()

    def held(real):
        def wait(*arguments):
            entered.release()
            assert swapped.wait(60)
            return real(*arguments)

        return wait

    monkeypatch.setattr(playlists, "continue_playlist", held(playlists.continue_playlist))
    monkeypatch.setattr(audience, "target", held(audience.target))
    with ThreadPoolExecutor(2) as pool:
        answers = pool.submit(playlist, client), pool.submit(lambda: client.get(f"/audience/{SEED}?limit=5").json())
        for _ in answers:
            assert entered.acquire(timeout=60)
        move(service, root, ids[1])
        swapped.set()
        assert tuple(answer.result(60) for answer in answers) == expected
    monkeypatch.undo()
    again = playlist(client), client.get(f"/audience/{SEED}?limit=5").json()
    assert [answer["release"] for answer in again] == [ids[1]] * 2
    assert again != expected


def test_no_route_asks_twice_what_is_served():
    """Between two such questions a swap could come."""
    for path in (Path(service_package.__file__).parent / "routes").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                asked = [n for n in ast.walk(function) if isinstance(n, ast.Attribute) and n.attr == "serving"]
                assert len(asked) <= 1, f"{path.name}: {function.name}"


def test_the_old_release_is_let_go(client, service, root, ids, clip):
    upload(client, clip, track_id="t", title="A")
    playlist(client), client.get(f"/audience/{SEED}").json(), client.get("/metrics")
    parts = [service.serving, service.serving.encoder, service.serving.collection, service.serving.audience]
    gone = [weakref.ref(part) for part in (*parts, service.serving.collection.continuation.sealed)]
    del parts
    move(service, root, ids[1])
    client.get("/metrics")
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


def test_it_looks_by_itself_and_stops_looking(serve, settings, root, ids):
    client = serve(settings.model_copy(update={"releases": root, "release_poll_s": 0.05}))
    activate(root, ids[1])
    wait_for(lambda: client.get("/readyz").json()["releases"] == f"serving {ids[1]}")
    (root / CURRENT).unlink()  # nobody points anywhere: what is served goes on
    time.sleep(0.2)
    assert client.get("/readyz").json()["releases"] == f"serving {ids[1]}"
    service = client.app.state.service
    service.close()
    assert not service.swapper._thread.is_alive()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_releases_own_folder_is_served_as_it_is(serve, settings, root, ids):
    client = serve(settings.model_copy(update={"releases": root / ids[0], "release_poll_s": 0.05}))
    activate(root, ids[1])
    assert not client.app.state.service.swapper.look(again=True)
    assert release(client) == ids[0]


def test_a_release_with_the_vectors_of_another_encoder_is_refused(client, service, root, ids):
    point(root, altered(root, ids[1], encoder_id=service.serving.encoder_id))
    check_refused(client, service, ids, "vectors of another encoder")


def test_a_hang_up_within_a_hang_up_locks_nothing_up(tmp_path):
    """A second SIGHUP may arrive at any line of what the first one does."""
    served = SimpleNamespace(release=SimpleNamespace(id="a"), encoder_id="b")
    settings = Settings(releases=tmp_path, ledger=tmp_path / "ledger.sqlite", release_poll_s=0.05)
    swapper = Swapper(SimpleNamespace(serving=served), None, settings, Metrics(), None)  # type: ignore[arg-type]
    within = False

    def interrupt(frame, event, _):
        nonlocal within
        if not within:
            within = True
            swapper.look_now()
            within = False
        return interrupt

    def hang_up() -> None:
        sys.settrace(interrupt)
        try:
            swapper.look_now()
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert swapper._wait_to_be_told()
    assert not swapper._wait_to_be_told()  # told many times is told once
