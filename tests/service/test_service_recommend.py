"""POST /continue-playlist against brute force: scores, filters, caps, diversity, and the reasons given."""

import base64
import json
from collections import Counter

import numpy as np
import orjson
import pytest
from service_uploads import seeded, upload

from index.search import scan
from index.search.scan import ScannedView
from service.http.schemas import ContinueRequest, ContinueResponse
from service.recommend.recommend import continue_playlist


@pytest.fixture
def view(app):
    return app.state.service.serving.collection.view()


@pytest.fixture
def ids(view):
    return [view.catalogue.track(row).track_id for row in range(view.catalogue.size)]


def ask(client, seeds, **more):
    answer = client.post("/continue-playlist", json={"seeds": seeds, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


SPACES = {
    "larp": lambda view, rows: view.continuation.vectors(rows),
    "bcl": lambda view, rows: view.matching.vectors(rows),
    "audio": lambda view, rows: view.parts(rows)[0],
    "text": lambda view, rows: view.parts(rows)[1],
}
"""Recommender -> the vectors that it goes by."""


def brute_force(view, seeds, negatives=(), hidden=(), recommender="larp") -> list[tuple[float, int]]:
    """(score, row) of all other tracks, best first: the mean of the seeds' inner products, in float64."""
    vectors = SPACES[recommender](view, np.arange(view.catalogue.size)).astype(np.float64)
    query = vectors[seeds].mean(0)
    if len(negatives):
        query = query - 0.5 * vectors[negatives].mean(0)
    scores = vectors @ query
    rest = set(np.flatnonzero(~np.isnan(scores)).tolist()) - {*seeds, *negatives, *hidden}
    return sorted(((float(scores[row]), row) for row in rest), key=lambda pair: (-pair[0], pair[1]))


def test_scores_and_order_are_those_of_brute_force(client, view, ids):
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for recommender in sorted(SPACES) * 10:
        rows = rng.permutation(len(ids))[: rng.integers(4, 12)].tolist()
        seeds, negatives, hidden = rows[: len(rows) - 3], rows[-3:-2], rows[-2:]
        answer = ask(
            client,
            [ids[row] for row in seeds],
            negatives=[ids[row] for row in negatives],
            exclude=[ids[row] for row in hidden],
            k=int(rng.integers(1, 45)),
            recommender=recommender,
        )
        expected = brute_force(view, seeds, negatives, hidden, recommender)[: len(answer["tracks"])]
        scores = [track["score"] for track in answer["tracks"]]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, [score for score, _ in expected], atol=2e-6)
        assert {track["track_id"] for track in answer["tracks"]}.isdisjoint(ids[row] for row in rows)
        assert len(ask(client, ids[:1], k=500, recommender=recommender)["tracks"]) == len(ids) - 1


def test_the_same_request_has_the_same_bytes_as_answer_and_seed_order_does_not_matter(client, ids):
    body = {"seeds": ids[:5], "k": 20, "diversity": 0.5, "max_per_artist": 2, "explain": True}
    first, second = (client.post("/continue-playlist", json=body).content for _ in range(2))
    assert first == second
    turned = ask(client, ids[4::-1] + ids[:2], k=20)  # another order, and two of them twice
    straight = ask(client, ids[:5], k=20)
    assert [t["track_id"] for t in turned["tracks"]] == [t["track_id"] for t in straight["tracks"]]


def test_real_answers_fit_the_documented_model(client, ids):
    for more in ({}, {"explain": True, "diversity": 0.3}):
        answer = client.post("/continue-playlist", json={"seeds": [ids[0], "nobody"], **more})
        model = ContinueResponse.model_validate_json(answer.text, strict=True)
        assert model.unknown_seeds == ["nobody"]
        assert all((track.because is not None) == bool(more) for track in model.tracks)
        fields = {name for track in orjson.loads(answer.content)["tracks"] for name in track}
        assert fields - {"because"} == set(ContinueResponse.model_json_schema()["$defs"]["Recommended"]["required"])


def test_unknown_seeds_and_negatives_are_named_and_the_rest_is_used(client, ids):
    answer = ask(client, [ids[0], "x", "y"], negatives=["z", ids[3]])
    assert answer["unknown_seeds"] == ["x", "y", "z"]
    known = ask(client, ids[:1], negatives=[ids[3]])
    assert answer["tracks"] == known["tracks"]


def test_filters_let_through_what_fits_and_nothing_else(client, view, ids):
    languages = {ids[row]: view.catalogue.track(row).language for row in range(len(ids))}
    wanted = Counter(languages[i] for i in ids[1:]).most_common(1)[0][0]
    found = seeded(client, ids[0], k=500, filters={"languages": [wanted.upper()]})
    assert set(found) == {i for i in ids[1:] if languages[i] == wanted}
    cold = seeded(client, ids[0], k=500, filters={"only_cold": True})
    assert set(cold) == {i for row, i in enumerate(ids) if view.catalogue.is_cold(row)}
    assert len(cold) >= 8
    artist = view.catalogue.track(5).artist
    by_artist = seeded(client, ids[0], k=500, filters={"artists": [artist], "languages": [languages[ids[5]]]})
    assert set(by_artist) == {
        i
        for row, i in enumerate(ids[1:], 1)
        if view.catalogue.track(row).artist == artist and languages[i] == languages[ids[5]]
    }
    assert seeded(client, ids[0], filters={"released_from": "1900"}) == []  # no date is known: nothing passes


def test_uploaded_metadata_can_be_filtered_on(client, ids, clip):
    upload(client, clip, track_id="old", genres="folk", release_date="1999-05-01", explicit="true")
    upload(client, clip, track_id="new", genres=["jazz", "folk"], release_date="2026", explicit="false")
    for filters, expected in [
        ({"genres": ["Folk"]}, {"old", "new"}),
        ({"genres": ["jazz"]}, {"new"}),
        ({"released_to": "1999"}, {"old"}),
        ({"released_from": "2000-01"}, {"new"}),
        ({"explicit": True}, {"old"}),
    ]:
        assert set(seeded(client, ids[0], k=500, filters=filters)) == expected, filters
    assert "old" not in seeded(client, ids[0], k=500, filters={"explicit": False})


@pytest.mark.parametrize("diversity", [0.0, 0.4])
def test_caps_hold_and_the_answer_is_full_when_it_can_be(client, view, ids, diversity):
    found = ask(client, ids[:2], k=12, max_per_artist=2, max_per_album=1, diversity=diversity)["tracks"]
    artists = Counter(track["artist"] for track in found)
    albums = Counter((track["artist"], track["album"]) for track in found if track["album"])
    assert max(artists.values()) <= 2
    assert max(albums.values(), default=0) <= 1
    # As many as a greedy choice from all candidates finds.
    taken: Counter[object] = Counter()
    room = 0
    for _, row in brute_force(view, [0, 1]):
        track = view.catalogue.track(row)
        album = (track.artist, track.album) if track.album else None
        if taken[track.artist] < 2 and (album is None or taken[album] < 1):
            taken.update([track.artist, *([album] if album else [])])
            room += 1
    if diversity == 0:
        assert len(found) == min(12, room)
    assert len(found) > 3


@pytest.mark.parametrize("recommender", ["audio", "text"])
def test_a_request_reads_the_catalogue_once_however_often_it_looks_further(view, ids, monkeypatch, recommender):
    body = {"seeds": ids[:2], "k": 35, "max_per_artist": 1, "diversity": 0.4, "recommender": recommender}
    relax = ["only_cold", "released_from", "max_per_artist"]
    request = ContinueRequest.model_validate(
        {**body, "filters": {"only_cold": True, "released_from": "2010"}, "relax": relax}
    )
    read, searches, blocks, search = [], [], scan._blocks, ScannedView.search

    def alone(space, *asked):
        """Search as if nothing had been asked before."""
        return search(ScannedView(space.parts, space.live), *asked)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "_blocks", lambda parts, rows: read.extend(rows) or blocks(parts, rows))
        patch.setattr(ScannedView, "search", lambda *asked: searches.append(asked) or search(*asked))
        answer = continue_playlist(view, request, 0.5)
    assert answer["relaxed"] == relax
    assert len(searches) > 3
    assert np.bincount(read).max() == 2  # once for all, and once for the score of what may be returned
    with monkeypatch.context() as patch:
        patch.setattr(ScannedView, "search", alone)
        assert continue_playlist(view, request, 0.5) == answer


def test_a_cap_of_one_still_fills_the_answer_from_far_down_the_list(client, ids, clip):
    for number in range(30):  # thirty songs of one artist, all nearer to the seed than anything else
        upload(client, clip, track_id=f"same-{number:02}", title="Same", artist="One")
    found = ask(client, ["same-00"], k=5, max_per_artist=1)["tracks"]
    assert len(found) == 5
    assert sum(track["artist"] == "One" for track in found) == 1


def reference_mmr(vectors, scores, k, diversity):
    """Maximal marginal relevance, stated plainly."""
    taken: list[int] = []
    while len(taken) < k:
        rest = [i for i in range(len(scores)) if i not in taken]
        taken.append(
            max(
                rest,
                key=lambda i: (
                    (1 - diversity) * scores[i]
                    - diversity * max((float(vectors[i] @ vectors[j]) for j in taken), default=0.0)
                ),
            )
        )
    return taken


@pytest.mark.parametrize(("recommender", "diversity"), [("larp", 0.1), ("larp", 0.5), ("larp", 1.0), ("bcl", 0.5)])
def test_diversity_is_maximal_marginal_relevance(client, view, ids, recommender, diversity):
    k = 8
    pool = brute_force(view, [0, 1, 2], recommender=recommender)[: 4 * k]
    vectors = SPACES[recommender](view, np.array([row for _, row in pool])).astype(np.float64)
    expected = [ids[pool[i][1]] for i in reference_mmr(vectors, [score for score, _ in pool], k, diversity)]
    assert seeded(client, *ids[:3], k=k, diversity=diversity, recommender=recommender) == expected


def test_more_diversity_gives_less_alike_tracks(client, view, ids):
    def likeness(diversity: float) -> float:
        rows = [view.catalogue.row_of(i) for i in seeded(client, *ids[:3], k=8, diversity=diversity)]
        vectors = view.continuation.vectors(rows)
        return float((vectors @ vectors.T)[np.triu_indices(len(rows), 1)].mean())

    assert likeness(0.9) < likeness(0.0)


def test_reasons_name_the_nearest_seed_and_add_up(client, view, ids):
    seeds = ids[3:9]
    vectors = view.continuation.vectors([view.catalogue.row_of(i) for i in seeds])
    for track in ask(client, seeds, k=30, explain=True)["tracks"]:
        because = track["because"]
        similarities = vectors @ view.continuation.vectors([view.catalogue.row_of(track["track_id"])])[0]
        assert because["similarity"] == pytest.approx(similarities.max(), abs=2e-6)
        assert similarities[seeds.index(because["seed"])] == pytest.approx(similarities.max(), abs=1e-6)
        assert because["audio"] + because["text"] + because["cross"] == pytest.approx(because["similarity"], abs=3e-6)


def test_every_recommender_says_why_in_its_own_terms(client, view, ids):
    seeds = ids[3:9]
    answers = {name: ask(client, seeds, k=30, explain=True, recommender=name)["tracks"] for name in SPACES}
    for recommender, track in ((name, track) for name in ("bcl", "audio", "text") for track in answers[name]):
        vectors = SPACES[recommender](view, np.array([view.catalogue.row_of(i) for i in seeds]))
        similarities = vectors @ SPACES[recommender](view, np.array([view.catalogue.row_of(track["track_id"])]))[0]
        because = track["because"]
        assert because["similarity"] == pytest.approx(similarities.max(), abs=2e-6)
        assert similarities[seeds.index(because["seed"])] == pytest.approx(similarities.max(), abs=1e-6)
        shares = {"audio": 0.0, "text": 0.0, "cross": 0.0, recommender: because["similarity"]}
        if recommender == "bcl":
            shares = dict.fromkeys(("audio", "text", "cross"))
        assert because == {"seed": because["seed"], "similarity": because["similarity"], **shares}


def test_a_cold_track_continues_a_playlist_by_every_recommender(client, clip, ids):
    for track_id in ("cold", "cold-too"):
        upload(client, clip, track_id=track_id, title="Song of the Sea", artist="Ann")
    for recommender in SPACES:
        assert "cold-too" in seeded(client, "cold", k=500, recommender=recommender)
    client.delete("/tracks/cold-too")
    for recommender in SPACES:
        assert "cold-too" not in seeded(client, "cold", k=500, recommender=recommender)


def test_without_vectors_of_the_recommenders_kind_others_are_named(client, clip, ids):
    upload(client, clip, track_id="mute")
    answer = client.post("/continue-playlist", json={"seeds": ["mute"], "recommender": "text"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_seeds")
    assert "the recommender 'text'; ask larp or bcl or audio." in answer.json()["detail"]
    answer = ask(client, ["mute", ids[0]], recommender="text", k=500)
    assert answer["unknown_seeds"] == ["mute"]
    assert "mute" not in {track["track_id"] for track in answer["tracks"]}
    avoiding = ask(client, ids[:1], recommender="text", negatives=["mute"], k=5)
    assert avoiding["unknown_seeds"] == ["mute"]
    plain = ask(client, ids[:1], recommender="text", k=5)
    assert avoiding["tracks"] == plain["tracks"]


def test_an_unknown_recommender_is_refused_with_the_names_of_those_there_are(client, ids):
    answer = client.post("/continue-playlist", json={"seeds": ids[:1], "recommender": "popular"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert all(f"'{name}'" in answer.json()["detail"] for name in SPACES)


def test_a_track_without_text_is_recommended_for_its_sound_alone(client, clip, ids):
    upload(client, clip, track_id="mute")
    upload(client, clip, track_id="mute-too")
    [track] = ask(client, ["mute"], k=1, explain=True)["tracks"]
    assert track["track_id"] == "mute-too"
    because = track["because"]
    assert because == {"seed": "mute", "similarity": 1.0, "audio": 1.0, "text": 0.0, "cross": 0.0}
    request = ContinueRequest(seeds=["mute"], k=1, explain=True)
    view = client.app.state.service.serving.collection.view()
    for share in (0.0, 1.0):  # an encoder that has learnt to leave one part out
        assert continue_playlist(view, request, share)["tracks"][0]["because"] == because


def test_answers_are_compact_json(client, ids):
    answer = client.post("/continue-playlist", json={"seeds": ids[:1], "k": 1})
    assert answer.headers["content-type"] == "application/json"
    assert json.dumps(answer.json(), separators=(",", ":"), ensure_ascii=False) == answer.text


def pages(client, seeds, k, most=100, **more) -> list[list[str]]:
    """All pages of a continuation, as ids, until there is no cursor."""
    found, cursor = [], None
    while len(found) < most:
        answer = ask(client, seeds, k=k, cursor=cursor, **more)
        found.append([track["track_id"] for track in answer["tracks"]])
        if (cursor := answer["cursor"]) is None:
            break
    return found


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_per_artist": 2, "max_per_album": 1},
        {"filters": {"only_cold": True}},
        {"recommender": "bcl"},
    ],
)
def test_pages_are_the_long_answer_cut_up(client, ids, more):
    whole = seeded(client, *ids[:2], k=500, **more)
    for k in (1, 7, 500):
        cut = pages(client, ids[:2], k, **more)
        assert [i for page in cut for i in page] == whole
        assert all(len(page) == k for page in cut[:-1])


def test_pages_hold_caps_and_never_repeat_while_the_catalogue_changes(client, ids, clip):
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    body = {"k": 4, "diversity": float(rng.choice([0, 0.5])), "max_per_artist": 3}
    seen: list[str] = []
    artists: Counter[str] = Counter()
    cursor, turn = None, 0
    while True:
        answer = ask(client, ids[:1], cursor=cursor, **body)
        seen += [track["track_id"] for track in answer["tracks"]]
        artists.update(track["artist"] for track in answer["tracks"] if track["artist"])
        if (cursor := answer["cursor"]) is None:
            break
        turn += 1
        upload(client, clip, track_id=f"new-{turn}", title="New", artist=f"Band {turn}")
        again = client.get(f"/tracks/{rng.choice(seen)}").json()  # replaced: it has another row from now on
        names = {name: again[name] for name in ("track_id", "artist")}
        assert upload(client, clip, title=f"Again {turn}", replace="true", **names).status_code == 201
        client.delete(f"/tracks/{rng.choice([i for i in ids[1:] if i not in seen] or ['none'])}")
    assert len(seen) == len(set(seen)) > 12
    assert max(artists.values()) <= 3
    assert any(track_id.startswith("new-") for track_id in seen)


def test_a_cursor_holds_over_a_restart_but_not_over_a_release(client, ids, clip, serve, settings, retrained):
    for number in range(3):
        upload(client, clip, track_id=f"t{number}", title="A")
        upload(client, clip, track_id=f"t{number}", title="B", replace="true")  # leaves a row that a restart does not
    first = ask(client, ["t0"], k=2)
    assert {track["track_id"] for track in first["tracks"]} == {"t1", "t2"}
    client.app.state.service.close()
    after = serve(settings)
    rest = ask(after, ["t0"], k=500, cursor=first["cursor"])
    assert {track["track_id"] for track in rest["tracks"]} == set(ids)
    after.app.state.service.close()
    other = serve(settings.model_copy(update={"releases": retrained}))
    answer = other.post("/continue-playlist", json={"seeds": ["t0"], "k": 2, "cursor": first["cursor"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "cursor_outdated")
    assert "ask without a cursor" in answer.json()["detail"]


def test_a_cursor_is_for_its_own_request(client, ids):
    cursor = ask(client, ids[:2], k=2)["cursor"]
    ask(client, ids[:2], k=5, cursor=cursor, explain=True)
    for body in (
        {"seeds": ids[:3], "cursor": cursor},
        {"seeds": ids[:2], "cursor": cursor, "diversity": 0.1},
        {"seeds": ids[:2], "cursor": cursor, "recommender": "bcl"},
        {"seeds": ids[:2], "cursor": cursor, "filters": {"only_cold": True}},
        {"seeds": ids[:2], "cursor": ""},
        {"seeds": ids[:2], "cursor": cursor[:-4]},
        {"seeds": ids[:2], "cursor": "é"},
        {"seeds": ids[:2], "cursor": "eyJ9"},
        {"seeds": ids[:2], "cursor": "W10"},
        {"seeds": ids[:2], "cursor": forged(cursor, sealed=[10**6])},
        {"seeds": ids[:2], "cursor": forged(cursor, sealed=[0])},
        {"seeds": ids[:2], "cursor": forged(cursor, sealed=[1] * 10_001)},
    ):
        answer = client.post("/continue-playlist", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), body
        assert answer.json()["errors"][0]["field"] == "cursor"


def forged(cursor: str, **fields: object) -> str:
    said = json.loads(base64.urlsafe_b64decode(cursor + "=="))
    return base64.urlsafe_b64encode(json.dumps(said | fields).encode()).decode().rstrip("=")


def test_too_long_a_continuation_has_no_cursor(client, ids, monkeypatch):
    monkeypatch.setattr("service.recommend.cursor.MOST", 5)
    first = ask(client, ids[:1], k=3)
    assert ask(client, ids[:1], k=3, cursor=first["cursor"])["cursor"] is None


def test_constraints_give_in_the_order_asked_for_and_only_when_they_must(client, view, ids):
    hard = {"filters": {"only_cold": True}, "max_per_artist": 1}
    short = ask(client, ids[:1], k=30, **hard)
    assert (len(short["tracks"]) < 30, short["relaxed"], short["cursor"]) == (True, [], None)
    caps = ask(client, ids[:1], k=len(short["tracks"]) + 1, relax=["max_per_artist", "only_cold"], **hard)
    every = ask(client, ids[:1], k=30, relax=["max_per_artist", "only_cold", "genres"], **hard)
    kept = len(short["tracks"])
    assert caps["tracks"][:kept] == every["tracks"][:kept] == short["tracks"]
    assert every["relaxed"] == ["max_per_artist", "only_cold"]
    assert caps["relaxed"][0] == "max_per_artist"
    assert len(every["tracks"]) == 30
    assert ask(client, ids[:1], k=kept, relax=["only_cold"], **hard)["relaxed"] == []
    cold = [view.catalogue.is_cold(view.catalogue.row_of(track["track_id"])) for track in every["tracks"]]
    assert sorted(cold, reverse=True) == cold  # all cold ones before any other
    whole = [i for page in pages(client, ids[:1], 10, relax=["max_per_artist", "only_cold"], **hard) for i in page]
    assert sorted(whole) == sorted(ids[1:])
