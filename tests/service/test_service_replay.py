"""What the ledger keeps survives a new release: same tracks, new vectors, no upload."""

import dataclasses
import sqlite3

import numpy as np
import pytest
from service_uploads import ogg, seeded, tone, upload

from index.collection import PARTS
from index.release.release import Release
from service.app import create_app
from service.ledger.ledger import LedgerError
from service.ledger.sqlite import SqliteLedger

TWO_TONES = np.concatenate((tone(7, 500, seed=4), tone(5, 900, seed=5)))
"""12 s that change, so that they have a sketch."""


def vectors(client, track_id):
    view = client.app.state.service.serving.collection.view()
    row = view.catalogue.row_of(track_id)
    return (
        view.continuation.vectors([row])[0],
        view.matching.vectors([row])[0],
        *(view.space(part).vectors([row])[0] for part in PARTS),
    )


def close(client) -> None:
    client.app.state.service.close()


def test_the_same_release_replays_bit_by_bit(client, serve, settings):
    upload(client, ogg(TWO_TONES), track_id="t", title="A", lyrics="la la", genres=["x", "y"])
    document, before = client.get("/tracks/t").json(), vectors(client, "t")
    continued = seeded(client, "t", k=40)
    close(client)
    again = serve(settings)
    assert again.get("/tracks/t").json() == document
    for one, other in zip(before, vectors(again, "t"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert seeded(again, "t", k=40) == continued


def test_a_retrained_release_embeds_ledger_tracks_anew_from_their_features(client, serve, settings, retrained):
    audio = ogg(TWO_TONES)
    upload(client, audio, track_id="kept", title="Sehnsucht", artist="A")
    upload(client, audio, track_id="dropped")
    client.delete("/tracks/dropped")
    old = vectors(client, "kept")
    close(client)

    moved = serve(settings.model_copy(update={"releases": retrained}))
    assert moved.get("/tracks/dropped").status_code == 404
    assert moved.get("/tracks/kept").json()["title"] == "Sehnsucht"
    new = vectors(moved, "kept")
    assert abs(float(old[0] @ new[0])) < 0.9  # another space altogether
    # As if it had been uploaded to the new release, up to the 8 bits in which features are kept.
    upload(moved, audio, track_id="fresh", title="Sehnsucht", artist="A")
    fresh = vectors(moved, "fresh")
    for one, other in zip(new, fresh, strict=True):
        assert float(one @ other) > 0.999
    assert seeded(moved, "kept", k=1) == ["fresh"]
    assert upload(moved, audio, track_id="kept", title="Sehnsucht", artist="A").status_code == 200
    events = len(moved.app.state.service.ledger)
    close(moved)

    # The result is kept: the next start embeds nothing, and finds the same vectors.
    again = serve(settings.model_copy(update={"releases": retrained}))
    assert len(again.app.state.service.ledger) == events == 4
    for one, other in zip(new, vectors(again, "kept"), strict=True):
        np.testing.assert_array_equal(one, other)
    ids = {
        event.embedding.encoder_id for _, event in again.app.state.service.ledger.replay() if hasattr(event, "track")
    }
    assert ids == {again.app.state.service.serving.encoder_id}


def test_another_matcher_alone_renews_matching_and_leaves_the_rest(client, settings, clip):
    upload(client, clip, track_id="t", title="A")
    service = client.app.state.service
    [(_, before)] = service.ledger.replay()
    dataclasses.replace(service.serving, matcher_id="another").replay(service.ledger)
    [(_, after)] = service.ledger.replay()
    assert after.embedding.matcher_id == "another"
    np.testing.assert_array_equal(after.embedding.vectors.continuation, before.embedding.vectors.continuation)
    np.testing.assert_allclose(after.embedding.matching, before.embedding.matching, atol=1e-5)


def test_the_ids_of_models_differ_between_the_releases(client, retrained, settings):
    from service.serving.serving import Serving

    one, other = (
        client.app.state.service.serving,
        Serving.open(settings.model_copy(update={"releases": retrained})),
    )
    assert one.encoder_id != other.encoder_id
    assert one.matcher_id != other.matcher_id
    assert one.release.id == Release.open(settings.releases).id
    assert other.warm_up_s > 0


def test_a_track_of_the_new_release_that_is_in_the_ledger_too_stays_as_it_was_uploaded(
    client, serve, settings, retrained, clip
):
    some = client.get("/tracks?q=e&limit=1").json()["tracks"][0]["track_id"]
    upload(client, clip, track_id=some, title="Mine now", replace="true")
    close(client)
    moved = serve(settings.model_copy(update={"releases": retrained}))
    assert moved.get(f"/tracks/{some}").json()["title"] == "Mine now"
    assert moved.get("/").json()["tracks"] == 40


def test_damaged_features_stop_the_start_only_where_they_are_needed(client, serve, settings, retrained, clip):
    upload(client, clip, track_id="t")
    close(client)
    with sqlite3.connect(settings.ledger) as damaged:
        damaged.execute("UPDATE events SET features = x'789c'")
    damaged.close()
    same = serve(settings)
    assert same.get("/tracks/t").status_code == 200
    close(same)
    with pytest.raises(LedgerError, match="features of 't' cannot be read"):
        create_app(settings.model_copy(update={"releases": retrained}))
    SqliteLedger(settings.ledger).close()  # the failed start has let go of it
