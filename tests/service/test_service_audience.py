"""GET /audience/{track_id}: whom to show a track to."""

import numpy as np
import pytest
from service_uploads import upload

from index.audience import Audience
from service.schemas import AudienceResponse


def ask(client, track_id, **query):
    answer = client.get(f"/audience/{track_id}", params=query)
    assert answer.status_code == 200, answer.text
    return AudienceResponse.model_validate_json(answer.text, strict=True)


@pytest.fixture
def warm(app):
    """A track that has listeners."""
    catalogue = app.state.service.serving.collection.catalogue
    return catalogue.track(int(np.argmax(catalogue.interactions))).track_id


def test_a_new_track_has_an_audience_at_once(client, clip):
    upload(client, clip, track_id="new", title="Abendlied")
    found = ask(client, "new", limit=10)
    assert len(found.listeners) == 10
    assert len({listener.listener_id for listener in found.listeners}) == 10
    scores = [listener.score for listener in found.listeners]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= listener.cluster < len(found.clusters) for listener in found.listeners)
    assert sum(cluster.share for cluster in found.clusters) == pytest.approx(1, abs=1e-4)
    masses = [cluster.mass for cluster in found.clusters]
    assert masses == sorted(masses, reverse=True)
    assert all(client.get(f"/tracks/{near.track_id}").status_code == 200 for near in found.neighbours)


def test_those_who_know_the_track_are_left_out_unless_asked_for(client, warm):
    everybody = ask(client, warm, limit=1000, exclude_known=False)
    others = ask(client, warm, limit=1000)
    assert len(everybody.listeners) > len(others.listeners) > 0
    assert {one.listener_id for one in others.listeners} < {one.listener_id for one in everybody.listeners}


def test_the_number_of_clusters_can_be_given(client, warm):
    assert len(ask(client, warm, clusters=1).clusters) == 1
    assert len(ask(client, warm, clusters=2).clusters) <= 2


def test_the_same_question_has_the_same_answer(client, warm):
    assert ask(client, warm) == ask(client, warm)


def test_a_release_without_listeners_says_so(client, warm, monkeypatch):
    service = client.app.state.service
    object.__setattr__(service.serving, "audience", Audience(None))
    answer = client.get(f"/audience/{warm}")
    assert (answer.status_code, answer.json()["code"]) == (409, "audience_missing")
    assert "listens.parquet" in answer.json()["detail"]
