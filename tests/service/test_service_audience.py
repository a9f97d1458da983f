"""GET /audience/{track_id}: whom to show a track to."""

import csv
import io

import numpy as np
import pytest
from service_uploads import upload

from index.audience.cat import Audience
from service.http.negotiation import prefers
from service.http.schemas import AudienceResponse
from service.routes.audience import CSV, as_csv


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


@pytest.mark.parametrize("kind", ["warm", "new"])
def test_a_threshold_leaves_out_those_below_and_the_reach_counts_the_rest(client, clip, warm, kind):
    track = warm
    if kind == "new":
        track = "new"
        upload(client, clip, track_id=track, title="Abendlied")
    whole = ask(client, track, limit=1000)
    assert whole.reach == len(whole.listeners) > 5
    bar = whole.listeners[4].score - 1e-5  # answers are rounded
    found = ask(client, track, limit=2, min_score=bar)
    assert found.reach == sum(one.score >= bar for one in whole.listeners)
    assert len(found.listeners) == 2
    none = ask(client, track, min_score=1e6)
    assert (none.reach, none.listeners) == (0, [])
    assert none.clusters == whole.clusters


@pytest.mark.parametrize("bar", ["-1", "nan", "inf", "much"])
def test_a_threshold_that_is_no_number_is_refused(client, warm, bar):
    answer = client.get(f"/audience/{warm}", params={"min_score": bar})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "query.min_score" in answer.json()["detail"]


def test_overlaps_name_clusters_of_the_answer(client, warm):
    found = ask(client, warm, clusters=4)
    for overlap in found.overlaps:
        first, second = overlap.clusters
        assert 0 <= first < second < len(found.clusters)
        assert 0 < overlap.share <= 1
    assert sum(overlap.share for overlap in found.overlaps) <= 1 + 1e-4
    assert ask(client, warm, clusters=1).overlaps == []


def test_more_clusters_than_listeners_are_not_made(client, warm):
    found = ask(client, warm, clusters=32)
    assert 1 <= len(found.clusters) <= 32
    assert all(cluster.size > 0 for cluster in found.clusters)


def test_the_listeners_come_as_csv_to_who_wants_it(client, warm):
    whole = ask(client, warm, limit=7)
    answer = client.get(f"/audience/{warm}", params={"limit": 7}, headers={"Accept": "text/csv"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    head, *lines = csv.reader(io.StringIO(answer.text, newline=""))
    assert head == ["listener_id", "score", "cluster"]
    assert [(name, float(score), int(number)) for name, score, number in lines] == [
        (one.listener_id, one.score, one.cluster) for one in whole.listeners
    ]


def test_a_problem_is_a_problem_document_also_to_who_wants_csv(client):
    answer = client.get("/audience/nobody", headers={"Accept": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_track")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/csv", True),
        ("TEXT/CSV; charset=utf-8", True),
        ("text/csv, */*;q=0.1", True),
        ("text/csv, */*", True),
        ("text/csv;q=0.5, application/json", False),
        ("application/json;q=0.5, text/csv", True),
        ("text/csv, application/json", False),
        ("text/csv;q=0", False),
        ("text/csv;q=much", False),
        ("text/*", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
    ],
)
def test_csv_is_for_who_ranks_it_above_json(accept, wanted):
    assert prefers(accept, CSV) == wanted


def test_no_listener_is_a_formula():
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", 'a"b,c', "plain", "a=b", "o'neil"]
    text = as_csv([{"listener_id": name, "score": 0.5, "cluster": 0} for name in names])
    cells = [line[0] for line in csv.reader(io.StringIO(text, newline=""))][1:]
    assert cells == [*(f"'{name}" for name in names[:6]), *names[6:]]
