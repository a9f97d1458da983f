"""Near-duplicates: copies of real songs are named, whatever was done to them and wherever the first one lies."""

import numpy as np
import pytest
from service_release import DEMO, songs
from service_two import one_folder
from service_uploads import RATE, mp3, ogg, tone, upload, wav

from index.sound.audio import decode_span
from service.http.schemas import IngestResponse, NearDuplicate
from service.ingest.duplicates import nearest_sound
from service.serving.folding import fold_ledger

IN_RELEASE = [path for _, path in songs()]
OTHERS = sorted(set((DEMO / "audio").glob("*.ogg")) - set(IN_RELEASE))
COPIES = {
    "mp3": mp3,
    "quieter": lambda samples: wav(samples / 2),
    "later": lambda samples: wav(samples[RATE // 10 :]),
}


def heard(path) -> np.ndarray:
    return np.clip(decode_span(path, 0.0, 60.0), -1, 1)


def near(client, audio: bytes, track_id: str, **query: object) -> NearDuplicate | None:
    answer = upload(client, audio, track_id=track_id, **query)
    assert answer.status_code in (200, 201), answer.text
    return IngestResponse.model_validate_json(answer.text, strict=True).quality.near_duplicate


def check_copies(client, path, track_id: str, when: str) -> None:
    """Every copy of the song at `path` is named as one of `track_id`; it goes again."""
    for kind, make in COPIES.items():
        found = near(client, make(heard(path)), f"{kind} {when}")
        assert found is not None, (kind, when)
        assert found.track_id == track_id, (kind, when)
        assert 0.97 <= found.similarity <= 1.0001, (kind, when)
        client.delete(f"/tracks/{kind} {when}")


def test_copies_of_a_track_of_the_release_are_named(client):
    for track, path in songs()[:2]:
        check_copies(client, path, track.track_id, "now")


def test_copies_of_an_upload_are_named_now_after_a_restart_and_after_a_fold(
    serve, settings, tmp_path, releases, retrained
):
    root, path = tmp_path / "both", OTHERS[0]
    one_folder(root, releases, retrained)
    settings = settings.model_copy(update={"releases": root, "release_poll_s": 3600.0})
    client = serve(settings)
    assert near(client, path.read_bytes(), "first") is None
    check_copies(client, path, "first", "uploaded")
    client.app.state.service.close()

    client = serve(settings)
    service = client.app.state.service
    before = sketch_of(client, "first")
    check_copies(client, path, "first", "restarted")
    fold_ledger(settings)
    assert service.swapper.look()
    assert service.serving.collection.catalogue.row_of("first") < len(service.serving.collection.view().sketch.sealed)
    np.testing.assert_array_equal(sketch_of(client, "first"), before)
    check_copies(client, path, "first", "folded")


def test_copies_of_an_upload_are_named_after_another_encoder_came(serve, settings, retrained):
    client = serve(settings)
    assert near(client, OTHERS[1].read_bytes(), "first") is None
    before = sketch_of(client, "first")
    client.app.state.service.close()
    client = serve(settings.model_copy(update={"releases": retrained}))
    np.testing.assert_array_equal(sketch_of(client, "first"), before)  # from the ledger's 8 bits
    assert near(client, mp3(heard(OTHERS[1])), "second").track_id == "first"


def sketch_of(client, track_id: str) -> np.ndarray:
    view = client.app.state.service.serving.collection.view()
    return view.space("sketch").vectors([view.catalogue.row_of(track_id)])[0]


def test_other_songs_are_not(client):
    for path in OTHERS[::8]:
        assert near(client, path.read_bytes(), path.stem) is None, path
    assert len(OTHERS[::8]) > 20


def test_itself_and_what_is_gone_do_not_count(client):
    song = OTHERS[2].read_bytes()
    assert near(client, song, "first", title="A") is None
    assert near(client, song, "second", title="B").track_id == "first"
    assert near(client, song, "first", title="C", replace="true").track_id == "second"
    client.delete("/tracks/second")
    assert near(client, song, "first", title="D", replace="true") is None


def test_a_steady_sound_is_like_nothing(client):
    steady = tone(12, 440)
    assert near(client, wav(steady), "one") is None
    assert near(client, ogg(steady), "two") is None
    assert np.isnan(sketch_of(client, "one")).all()


def test_it_can_be_left_out(serve, settings):
    client = serve(settings.model_copy(update={"duplicate_similarity": 1.0}))
    assert near(client, IN_RELEASE[0].read_bytes(), "copy") is None


def test_the_nearest_is_that_of_brute_force(client):
    for place in (3, 4):
        near(client, OTHERS[place].read_bytes(), f"new {place}")
    view = client.app.state.service.serving.collection.view()
    sketches = view.sketch.vectors(np.arange(view.catalogue.size))
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(20):
        query = rng.normal(size=sketches.shape[1]).astype(np.float32) * 0.02 + sketches[rng.integers(len(sketches))]
        query /= np.linalg.norm(query)
        but = view.catalogue.track(int(rng.integers(len(sketches)))).track_id
        cosines = np.nan_to_num(sketches.astype(np.float64) @ query, nan=-2)
        cosines[view.catalogue.row_of(but)] = -2
        found = nearest_sound(view, query, but, -1.0)
        assert found.similarity == pytest.approx(cosines.max(), abs=1e-4)
        assert found.track_id != but
        assert nearest_sound(view, query, but, float(cosines.max()) + 1e-3) is None


def test_nothing_is_recommended_by_it(client):
    asked = {"seeds": [songs()[0][0].track_id], "recommender": "sketch"}
    assert client.post("/continue-playlist", json=asked).status_code == 422
