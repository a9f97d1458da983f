"""CAT: the files, the equations against a plain statement of them, planted tastes, quotas, and the edges."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_examples import Folder, embedded, unit, write_folder

from index.audience import cat, listening_file, ranking, reach
from index.audience.cat import Audience, AudienceError, write_audience
from index.audience.listening import ARRAYS, Listening
from index.audience.ranking import labelled, quotas, ranked, select, survey
from index.audience.reach import Affinity
from index.collection import Collection
from index.tracks.track import Track


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def near(rng: np.random.Generator, centres: np.ndarray, spread: float) -> np.ndarray:
    points = centres + spread / np.sqrt(centres.shape[1]) * rng.normal(size=centres.shape)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


class World:
    """Tracks of three tastes, and listeners of one taste each, 60 / 30 / 10 in a hundred."""

    def __init__(self, directory: Path, rng: np.random.Generator, listeners: int = 300, lists: bool = False) -> None:
        self.centres = np.linalg.qr(rng.normal(size=(32, 3)))[0].T
        self.taste = np.repeat(np.arange(3), 40)
        self.matching = near(rng, self.centres[self.taste], 0.5)
        self.listener_taste = rng.choice(3, listeners, p=[0.6, 0.3, 0.1])
        pairs = [
            (u, row, plays)
            for u, taste in enumerate(self.listener_taste)
            for row, plays in zip(
                rng.choice(np.flatnonzero(self.taste == taste), 5 + u % 7, replace=False),
                rng.integers(1, 30, 5 + u % 7),
                strict=True,
            )
        ]
        self.listener, self.row, self.plays = (np.array(column) for column in zip(*pairs, strict=True))
        self.ids = [f"u{u:04}" for u in range(listeners)]
        heard = np.bincount(self.row, minlength=120)
        folder = write_folder(
            directory, [Track(f"t{r}") for r in range(120)], heard.astype(int), rng, matching=self.matching
        )
        write_audience(
            directory / "audience",
            self.ids,
            self.listener,
            self.row,
            self.plays.astype(np.float32),
            self.matching,
            lists_from=1 if lists else 10**6,
        )
        self.folder: Folder = folder
        self.collection = Collection.open(folder)
        self.audience = Audience.open(folder)

    def query(self) -> np.ndarray:
        """Equally near to all three tastes."""
        return (self.centres.sum(axis=0) / np.sqrt(3)).astype(np.float32)


@pytest.fixture
def world(tmp_path, rng) -> World:
    return World(tmp_path, rng)


# The folder


def test_vectors_and_strengths_are_those_of_the_equations(world):
    listening = Listening.open(world.folder.path / "audience")
    for u in (0, 17, 299):
        mine = np.flatnonzero(world.listener == u)
        weight = np.log1p(world.plays[mine].astype(np.float64))
        rep = (weight[:, None] * world.matching[world.row[mine]]).sum(axis=0)
        np.testing.assert_allclose(listening.points(np.array([u]))[0], rep / np.linalg.norm(rep), atol=2e-5)
        span = slice(listening.offsets[u], listening.offsets[u + 1])
        order = np.argsort(world.row[mine])
        np.testing.assert_array_equal(listening.rows[span], world.row[mine][order])
        np.testing.assert_array_equal(listening.plays[span], world.plays[mine][order])
        assert listening.activity[u] == pytest.approx(len(mine) ** 0.25)
        for row, strength in zip(world.row[mine], weight / weight.max() / np.sqrt(len(mine)), strict=True):
            listeners, strengths = listening.listeners_of(int(row))
            np.testing.assert_allclose(strengths[listeners == u], strength, rtol=1e-6)
    for row in range(120):
        np.testing.assert_array_equal(listening.listeners_of(row)[0], np.sort(world.listener[world.row == row]))
    assert listening.listeners_of(-1)[0].size == listening.listeners_of(120)[0].size == 0
    assert listening.power == 0.25


def test_repeated_pairs_add_up_and_silent_ones_do_not_count(tmp_path, rng):
    matching = unit(rng, 4, 8)
    matching[3] = np.nan
    write_audience(
        tmp_path / "a",
        ["ann", "bob", "cyd", "dee"],
        np.array([1, 0, 1, 0, 2, 3]),
        np.array([2, 1, 2, 0, 1, 3]),
        np.array([2, 1, 3, 4, 0, 5], np.float32),
        matching,
    )
    listening = Listening.open(tmp_path / "a")
    assert listening.offsets.tolist() == [0, 2, 3, 3, 4]
    assert listening.rows.tolist() == [0, 1, 2, 3]
    assert not listening.vectors[2:].any()  # cyd played nothing, dee something without a vector
    assert (listening.placed, listening.lists.tolist()) == (2, [0, 2])
    assert pq.read_table(tmp_path / "a" / "listeners.parquet").to_pydict() == {
        "listener_id": ["ann", "bob", "cyd", "dee"],
        "plays": [5, 5, 0, 5],
        "tracks": [2, 1, 0, 1],
    }


def test_vectors_do_not_depend_on_the_blocks_they_are_made_in(world, tmp_path, monkeypatch):
    monkeypatch.setattr("index.audience.listening_file._ENTRIES_AT_ONCE", 11)
    plays = world.plays.astype(np.float32)
    write_audience(tmp_path / "b", world.ids, world.listener, world.row, plays, world.matching)
    again = Listening.open(tmp_path / "b")
    np.testing.assert_array_equal(again.vectors, world.audience._listening.vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"listener": np.array([0, 2])}, "listener must be integers from 0 to 1"),
        ({"listener": np.array([0.0, 1.0])}, "listener must be integers"),
        ({"row": np.array([0, -1])}, "row must be integers from 0 to 2"),
        ({"row": np.array([0])}, "differ in shape"),
        ({"plays": np.array([1, -1.0])}, "not negative"),
        ({"plays": np.array([1, np.nan])}, "finite"),
        ({"listener_ids": ["a", "a"]}, "listener id 'a' stands twice"),
        ({"listener_ids": ["a", ""]}, "listener ids must not be empty"),
    ],
)
def test_does_not_write_pairs_that_do_not_fit(tmp_path, rng, change, message):
    good = {
        "listener_ids": ["a", "b"],
        "listener": np.array([0, 1]),
        "row": np.array([0, 2]),
        "plays": np.array([1, 2.0]),
    }
    with pytest.raises(ValueError, match=message):
        write_audience(tmp_path / "a", matching=unit(rng, 3, 4), **(good | change))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_damaged_files_are_refused(world, name):
    path = world.folder.path / "audience" / f"{name}.npy"
    array = np.load(path)
    for broken in (array[:-1], array.astype(np.float16), np.array([{"a": 1}])):
        np.save(path, broken, allow_pickle=broken.dtype == object)
        with pytest.raises(AudienceError, match="publish again") as caught:
            Audience.open(world.folder)
        assert caught.value.code == "audience_damaged"
    path.unlink()
    with pytest.raises(AudienceError, match="publish again"):
        Audience.open(world.folder)


# The equations


def reference_members(world: World, query: np.ndarray) -> tuple[list[int], dict[int, float]]:
    """R and U0 in float64, loop by loop (bcl.md, CAT)."""
    similarity = world.matching.astype(np.float64) @ query
    heard = set(world.row.tolist())
    nearest = sorted(heard, key=lambda row: (-similarity[row], row))[:50]
    powers = {row: np.exp(similarity[row] / 0.1) for row in nearest}
    log_plays = {(u, r): np.log1p(p) for u, r, p in zip(world.listener, world.row, world.plays, strict=True)}
    weights: dict[int, float] = {}
    for u in range(len(world.ids)):
        mine = [r for (v, r) in log_plays if v == u]
        top = max(log_plays[u, r] for r in mine)
        weight = sum(powers[r] / sum(powers.values()) * log_plays[u, r] / top for r in mine if r in powers)
        if weight > 0:
            weights[u] = weight / np.sqrt(len(mine))
    return nearest, weights


def test_neighbours_and_their_listeners_are_those_of_the_equations(tmp_path, rng):
    world = World(tmp_path, rng, listeners=40)
    result = world.audience.target(world.query(), world.collection, clusters=3)
    nearest, weights = reference_members(world, world.query())
    assert [n.row for n in result.neighbours] == nearest
    assert [n.track_id for n in result.neighbours] == [f"t{row}" for row in nearest]
    np.testing.assert_allclose(
        [n.similarity for n in result.neighbours], world.matching[nearest] @ world.query(), atol=1e-6
    )
    members, found = world.audience._members(
        world.audience._listening,
        np.array(nearest),
        np.array([n.similarity for n in result.neighbours], np.float32),
    )
    assert members.tolist() == sorted(weights)
    np.testing.assert_allclose(found, [weights[u] for u in members.tolist()], rtol=1e-4)
    taste_weight = np.zeros(3)
    for u, weight in weights.items():
        taste_weight[world.listener_taste[u]] += weight / sum(weights.values())
    np.testing.assert_allclose([c.mass for c in result.clusters], np.sort(taste_weight)[::-1], atol=1e-3)


def test_with_a_prior_popular_tracks_are_neighbours_sooner(tmp_path, rng):
    world = World(tmp_path, rng)
    listeners = np.array([len(set(world.listener[world.row == row])) for row in range(120)])
    similarity = world.matching @ world.query()
    scores = np.where(listeners > 0, similarity + 0.3 * np.log1p(listeners), -np.inf)
    expected = np.argsort(-scores, kind="stable")[:50]
    found = world.audience.target(world.query(), world.collection, prior=0.3).neighbours
    assert {near.row for near in found} == set(expected.tolist())
    assert [near.similarity for near in found] == sorted((near.similarity for near in found), reverse=True)
    assert {near.row for near in found} != {
        near.row for near in world.audience.target(world.query(), world.collection).neighbours
    }
    with pytest.raises(ValueError, match="prior"):
        world.audience.target(world.query(), world.collection, prior=-1.0)


def reference_scores(world: World, query: np.ndarray, weights: dict[int, float], own: int | None = None) -> np.ndarray:
    """score(u) in float64, loop by loop (index.audience.reach.Affinity); `weights` are a, not yet of sum 1."""
    heard = [set(world.row[world.listener == u].tolist()) for u in range(len(world.ids))]
    share = {u: weight / sum(weights.values()) for u, weight in weights.items()}
    by_track = {t: [u for u in range(len(heard)) if t in heard[u]] for t in set(world.row.tolist())}
    liked = {t: sum(share.get(v, 0.0) for v in listeners) / len(listeners) for t, listeners in by_track.items()}
    if own is not None:
        liked[own] = 0.0
    mean = [np.mean([liked[t] for t in mine]) for mine in heard]
    usual = sum(a * mean[v] for v, a in share.items())
    vectors = world.audience._listening.vectors / 32767.0
    eager = np.array([len(mine) for mine in heard]) ** 0.25
    eager = eager / sum(a * eager[v] for v, a in share.items())
    return np.exp(5 * (vectors @ query - 1)) * eager * (0.05 + np.array(mean) / usual) / 1.05


@pytest.mark.parametrize("own", [None, 3])
def test_scores_are_those_of_the_equations(tmp_path, rng, own):
    world = World(tmp_path, rng, listeners=60)
    members = rng.choice(60, 25, replace=False)
    weights = rng.random(25) + 0.1
    affinity = Affinity.of(world.audience._listening, world.query(), np.sort(members), weights, own)
    expected = reference_scores(world, world.query(), dict(zip(np.sort(members).tolist(), weights, strict=True)), own)
    np.testing.assert_allclose(affinity.scores(np.arange(60)), expected, rtol=1e-5)
    np.testing.assert_array_equal(affinity.scores(np.array([7, 3])), affinity.scores(np.arange(60))[[7, 3]])


def test_the_whole_answer_is_that_of_the_equations(tmp_path, rng):
    world = World(tmp_path, rng, listeners=60)
    _, weights = reference_members(world, world.query())
    expected = reference_scores(world, world.query(), {u: weight**1.5 for u, weight in weights.items()})
    result = world.audience.target(world.query(), world.collection, limit=60)
    found = {int(target.listener_id[1:]): target.score for target in result.listeners}
    np.testing.assert_allclose([found[u] for u in range(60)], expected, rtol=1e-4)
    assert result.reach == 60


def test_an_audience_that_heard_only_the_song_itself_ranks_by_cosine_and_activity(tmp_path, rng):
    world = World(tmp_path, rng, listeners=40)
    knowing = np.unique(world.listener[world.row == 3])
    listening = world.audience._listening
    nothing = Affinity(listening, world.query(), np.zeros(120), 1.0)
    likely = np.exp(5 * (listening.points(np.arange(40)) @ world.query())) * np.diff(listening.offsets) ** 0.25
    assert np.argsort(-nothing.scores(np.arange(40))).tolist() == np.argsort(-likely).tolist()
    assert Affinity.of(listening, world.query(), knowing, np.ones(len(knowing)), 3).liked[3] == 0


def test_listeners_of_a_list_stand_together_with_all_they_heard(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(listening_file, "LIST_SIZE", 20)
    world = World(tmp_path, rng, lists=True)
    listening = world.audience._listening
    assert (len(listening.centroids), listening.placed) == (15, 300)
    similarity = listening.points(slice(0, 300)).astype(np.float64) @ listening.centroids.T
    mine = np.searchsorted(listening.lists, np.arange(300), side="right") - 1
    np.testing.assert_allclose(similarity[np.arange(300), mine], similarity.max(axis=1), atol=1e-6)
    assert sorted(listening.ids.to_list()) == world.ids
    for u in rng.choice(300, 20, replace=False).tolist():
        original = world.ids.index(listening.ids[u])
        heard = listening.rows[listening.offsets[u] : listening.offsets[u + 1]].tolist()
        assert heard == sorted(world.row[world.listener == original])
        assert all(u in listening.listeners_of(row)[0] for row in heard)
    for row in range(120):
        assert (np.diff(listening.listeners_of(row)[0]) > 0).all()


def test_of_many_listeners_the_neighbours_own_their_like_and_the_nearest_are_scored(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(listening_file, "LIST_SIZE", 20)
    monkeypatch.setattr(reach, "EVERYBODY", 20)
    monkeypatch.setattr(reach, "SOUGHT", 20)
    world = World(tmp_path, rng, lists=True)
    listening, members = world.audience._listening, np.sort(rng.choice(300, 40, replace=False))
    affinity = Affinity.of(listening, world.query(), members, np.ones(40), None)
    order = np.argsort(-(listening.centroids.astype(np.float64) @ world.query()))
    for limit in (1, 30, 1000):
        found = np.concatenate([listeners for _, listeners in reach.blocks(affinity.spans(members, limit, False))])
        assert len(np.unique(found)) == len(found)
        expected, needed = set(), max(20, 4 * limit)
        for number in order.tolist():
            if len(expected) < needed:
                expected |= set(range(listening.lists[number], listening.lists[number + 1]))
        listens = 0
        for row in np.lexsort((np.arange(120), -affinity.liked)).tolist():
            if listens < needed and affinity.liked[row] > 0:
                fans = listening.listeners_of(row)[0].tolist()
                expected, listens = expected | set(fans), listens + len(fans)
        assert set(found.tolist()) == expected | set(members.tolist())
    assert affinity.spans(members, 1, True) == [slice(0, 300)]
    some = world.audience.target(world.query(), world.collection, limit=5)
    monkeypatch.setattr(reach, "EVERYBODY", 1000)
    scores = {
        t.listener_id: t.score for t in world.audience.target(world.query(), world.collection, limit=300).listeners
    }
    assert [t.score for t in some.listeners] == [scores[t.listener_id] for t in some.listeners]


@pytest.mark.parametrize("min_score", [None, 0.0, 0.2, 0.6, 5.0])
@pytest.mark.parametrize("limit", [1, 17, 150, 1000])
def test_who_is_named_is_as_if_all_had_been_scored_exactly(world, rng, monkeypatch, limit, min_score):
    listening, shares = world.audience._listening, np.array([0.5, 0.3, 0.2])
    members = np.sort(rng.choice(300, 40, replace=False))
    affinity = Affinity.of(listening, world.query(), members, rng.random(40) + 0.1, None)
    centroids = world.centres.astype(np.float32)
    scores, all_of_them = affinity.scores(np.arange(300)), np.arange(300)
    labels = (listening.points(all_of_them).astype(np.float64) @ centroids.T).argmax(axis=1)
    if min_score is not None:
        bar = float(np.quantile(scores, 0.5)) if min_score == 0.6 else min_score
        kept = scores >= bar
    else:
        bar, kept = None, np.ones(300, bool)
    chosen = all_of_them[kept][select(all_of_them[kept], scores[kept], labels[kept], shares, limit)]
    seen = survey(affinity, [slice(0, 100), np.arange(100, 300)])
    np.testing.assert_array_equal(labelled(listening, centroids, all_of_them), labels)
    assert (np.abs(seen.rough / scores - 1) <= seen.doubt).all()
    monkeypatch.setattr(ranking, "FRONT", 1)
    monkeypatch.setattr(ranking, "STEP", 2)
    found = ranked(affinity, centroids, survey(affinity, [slice(0, 300)], bar), shares, limit, bar)
    np.testing.assert_array_equal(found[0], chosen)
    np.testing.assert_array_equal(found[1], scores[chosen])
    np.testing.assert_array_equal(found[2], labels[chosen])
    assert found[3] == kept.sum()


def test_a_score_does_not_depend_on_the_block_it_is_computed_in(world, monkeypatch):
    before = world.audience.target(world.query(), world.collection, limit=300)
    monkeypatch.setattr(reach, "LISTENERS_AT_ONCE", 7)
    monkeypatch.setattr(ranking, "LISTENERS_AT_ONCE", 7)
    assert world.audience.target(world.query(), world.collection, limit=300) == before


def reference_selection(candidates, scores, labels, shares, limit):
    """Quotas and choice in plain Python."""
    order = sorted(range(len(candidates)), key=lambda n: (-scores[n], candidates[n]))
    limit = min(limit, len(order))
    whole = [int(np.floor(share * limit + 1e-9)) for share in shares]
    for place in sorted(range(len(shares)), key=lambda m: (-(shares[m] * limit - whole[m]), m))[: limit - sum(whole)]:
        whole[place] += 1
    taken = [n for m in range(len(shares)) for n in [o for o in order if labels[o] == m][: whole[m]]]
    taken += [n for n in order if n not in taken][: limit - len(taken)]
    return sorted(taken, key=order.index)


@pytest.mark.parametrize("limit", [1, 7, 60, 199, 1000])
def test_the_choice_is_that_of_the_equations(rng, limit):
    for clusters, skew in ((1, 1), (3, 1), (4, 5)):
        candidates = rng.choice(1000, 200, replace=False)
        scores = rng.integers(0, 40, 200).astype(np.float32)  # many ties
        labels = rng.integers(0, clusters, 200)
        shares = rng.dirichlet(np.ones(clusters) / skew)
        found = select(candidates, scores, labels, shares, limit)
        assert found.tolist() == reference_selection(candidates, scores, labels, shares, limit)


def test_listeners_between_two_centroids_belong_to_the_first(tmp_path, rng):
    """Palindromes are exactly as near to a centroid as to its mirror image: rounding must not decide."""
    half = unit(rng, 40, 64)
    points = np.concatenate((np.concatenate([half, half[:, ::-1]], axis=1) / np.sqrt(2), unit(rng, 100, 128)))
    write_audience(
        tmp_path / "a", [str(u) for u in range(140)], np.arange(140), np.arange(140), np.ones(140, np.float32), points
    )
    listening = Listening.open(tmp_path / "a")
    first = unit(rng, 128)
    centroids = np.stack([first, first[::-1]])
    assert (labelled(listening, centroids, np.arange(40)) == 0).all()
    exact = listening.points(slice(40, 140)).astype(np.float64) @ centroids.T
    np.testing.assert_array_equal(labelled(listening, centroids, np.arange(40, 140)), exact.argmax(axis=1))


@settings(max_examples=100, deadline=None)
@given(masses=st.lists(st.integers(1, 100), min_size=1, max_size=8), limit=st.integers(0, 500))
def test_quotas_follow_mass(masses, limit):
    shares = np.array(masses) / sum(masses)
    places = quotas(shares, limit)
    assert places.sum() == limit
    assert (np.abs(places - shares * limit) < 1).all()
    for one, other in zip(range(len(masses)), range(1, len(masses)), strict=False):
        if masses[one] > masses[other]:
            assert places[one] >= places[other]


# Whole answers


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("clusters", [None, 3])
def test_planted_tastes_are_found(tmp_path, rng, monkeypatch, lists, clusters):
    monkeypatch.setattr(listening_file, "LIST_SIZE", 20)
    world = World(tmp_path, rng, lists=lists)
    result = world.audience.target(world.query(), world.collection, clusters=clusters, limit=100)
    assert len(result.clusters) == 3
    taste_of = [int(np.argmax(world.centres @ cluster.centroid)) for cluster in result.clusters]
    assert taste_of == [0, 1, 2]  # by falling mass
    lent = np.unique(world.listener[np.isin(world.row, [n.row for n in result.neighbours])])
    for number, cluster in enumerate(result.clusters):
        assert world.centres[taste_of[number]] @ cluster.centroid > 0.95
        assert cluster.size == (world.listener_taste[lent] == taste_of[number]).sum()
        assert len(cluster.tracks) == len(cluster.listeners) == cat.EXEMPLARS
        assert {world.taste[int(track[1:])] for track in cluster.tracks} == {taste_of[number]}
        assert {world.listener_taste[int(listener[1:])] for listener in cluster.listeners} == {taste_of[number]}
    for target in result.listeners:
        assert world.listener_taste[int(target.listener_id[1:])] == taste_of[target.cluster]
    counted = np.bincount([target.cluster for target in result.listeners])
    assert (np.abs(counted - 100 * np.array([c.share for c in result.clusters])) <= 1).all()
    scores = [target.score for target in result.listeners]
    assert scores == sorted(scores, reverse=True)
    assert len({target.listener_id for target in result.listeners}) == 100
    assert sum(c.mass for c in result.clusters) == pytest.approx(1)
    assert sum(c.share for c in result.clusters) == pytest.approx(1)
    assert result == world.audience.target(world.query(), world.collection, clusters=clusters, limit=100)


def test_clusters_of_little_mass_are_dropped(tmp_path, rng, monkeypatch):
    world = World(tmp_path, rng)
    monkeypatch.setattr(cat, "LEAST_MASS", 0.2)
    result = world.audience.target(world.query(), world.collection, clusters=3)
    assert len(result.clusters) == 2
    assert sum(c.mass for c in result.clusters) < 0.95
    assert sum(c.share for c in result.clusters) == pytest.approx(1)
    assert {t.cluster for t in result.listeners} == {0, 1}
    monkeypatch.setattr(cat, "LEAST_MASS", 2.0)  # all would go: the heaviest stays
    assert len(world.audience.target(world.query(), world.collection, clusters=3).clusters) == 1


def test_only_the_heaviest_listeners_are_clustered(world, monkeypatch):
    _, weights = reference_members(world, world.query())
    monkeypatch.setattr(cat, "CAP", 50)
    result = world.audience.target(world.query(), world.collection, clusters=1)
    assert result.clusters[0].size == 50
    heaviest = set(sorted(weights, key=lambda u: (-weights[u], u))[:50])
    assert {int(listener[1:]) for listener in result.clusters[0].listeners} <= heaviest


def test_who_knows_the_track_is_left_out_unless_wanted(world):
    row = 3
    knowing = {f"u{u:04}" for u in world.listener[world.row == row]}
    query = world.matching[row]

    def named(**wishes) -> set[str]:
        result = world.audience.target(query, world.collection, row=row, limit=300, **wishes)
        assert row not in [n.row for n in result.neighbours]
        return {target.listener_id for target in result.listeners}

    assert named() == set(world.ids) - knowing
    assert named(exclude_known=False) == set(world.ids)
    anonymous = world.audience.target(query, world.collection, limit=300)
    assert anonymous.neighbours[0].row == row
    assert len(anonymous.listeners) == 300


@pytest.mark.parametrize("lists", [False, True])
def test_when_everybody_knows_the_track_nobody_is_named(tmp_path, rng, monkeypatch, lists):
    monkeypatch.setattr(listening_file, "LIST_SIZE", 20)
    matching = unit(rng, 3, 8)
    world = tiny(tmp_path, rng, matching, [(u, row) for u in range(9) for row in (0, 1 + u % 2)], lists=lists)
    result = world.audience.target(matching[0], world.collection, row=0)
    assert result.listeners == ()
    assert len(result.clusters) >= 1
    assert len(world.audience.target(matching[0], world.collection, row=0, exclude_known=False).listeners) == 9


def test_a_replaced_track_keeps_its_listeners_and_a_removed_one_lends_none(world, rng):
    vectors = embedded(rng)
    nearest = world.audience.target(world.query(), world.collection, clusters=3).neighbours[0]
    row = world.collection.add(Track(nearest.track_id, title="Remastered"), vectors, world.matching[nearest.row])
    again = world.audience.target(world.query(), world.collection, clusters=3)
    assert again.neighbours[0].row == row
    assert again.neighbours[0].track_id == nearest.track_id
    knowing = {f"u{u:04}" for u in world.listener[world.row == nearest.row]}
    result = world.audience.target(world.query(), world.collection, row=row, limit=300)
    assert {target.listener_id for target in result.listeners} == set(world.ids) - knowing
    world.collection.remove(nearest.track_id)
    after = world.audience.target(world.query(), world.collection, clusters=3)
    assert nearest.track_id not in [n.track_id for n in after.neighbours]
    assert len(after.neighbours) == 50


def test_cold_tracks_lend_no_audience(world, rng):
    for number in range(5):
        world.collection.add(Track(f"cold{number}"), embedded(rng), world.query())
    result = world.audience.target(world.query(), world.collection.view(), clusters=3)
    assert not [n for n in result.neighbours if n.track_id.startswith("cold")]


def test_limits(world):
    assert len(world.audience.target(world.query(), world.collection, limit=5000).listeners) == 300
    assert len(world.audience.target(world.query(), world.collection, limit=1).listeners) == 1
    for wrong in ({"limit": 0}, {"clusters": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            world.audience.target(world.query(), world.collection, **wrong)
    with pytest.raises(ValueError, match="finite"):
        world.audience.target(np.full(32, np.nan), world.collection)
    with pytest.raises(ValueError, match="norm 1"):
        world.audience.target(2 * world.query(), world.collection)
    with pytest.raises(ValueError, match="shape"):
        world.audience.target(np.ones(31), world.collection)


def tiny(tmp_path: Path, rng: np.random.Generator, matching, pairs, interactions=None, lists=False) -> World:
    tracks = [Track(f"t{r}") for r in range(len(matching))]
    folder = write_folder(tmp_path, tracks, interactions or [1] * len(matching), rng, matching=matching)
    listener, row = np.array(pairs, dtype=int).reshape(-1, 2).T
    ids = [f"u{u}" for u in range(int(listener.max(initial=0)) + 1)]
    lists_from = 1 if lists else 10**6
    write_audience(tmp_path / "audience", ids, listener, row, np.ones(len(row)), matching, lists_from=lists_from)
    made = World.__new__(World)
    made.folder, made.matching = folder, matching
    made.collection, made.audience = Collection.open(folder), Audience.open(folder)
    return made


def test_one_listener_is_one_cluster_and_whom_to_show_it_to(tmp_path, rng):
    world = tiny(tmp_path, rng, unit(rng, 3, 8), [(0, 0)])
    for clusters in (None, 1, 8):
        result = world.audience.target(world.matching[2], world.collection, clusters=clusters)
        assert [(c.size, c.mass, c.share, c.listeners) for c in result.clusters] == [(1, 1.0, 1.0, ("u0",))]
        assert [(t.listener_id, t.cluster) for t in result.listeners] == [("u0", 0)]
        assert (result.reach, result.overlaps) == (1, ())
    knows = world.audience.target(world.matching[0], world.collection, row=1, exclude_known=True)
    assert [t.listener_id for t in knows.listeners] == ["u0"]


@pytest.mark.parametrize("clusters", [None, 4])
@pytest.mark.parametrize("lists", [False, True])
def test_listeners_who_all_are_the_same_are_one_cluster(tmp_path, rng, monkeypatch, lists, clusters):
    monkeypatch.setattr(listening_file, "LIST_SIZE", 20)
    world = tiny(tmp_path, rng, np.tile(unit(rng, 16), (5, 1)), [(u, u % 4) for u in range(600)], lists=lists)
    result = world.audience.target(world.matching[4], world.collection, row=4, clusters=clusters, limit=600)
    assert [(c.size, c.mass) for c in result.clusters] == [(600, 1.0)]
    assert sorted(t.listener_id for t in result.listeners) == sorted(f"u{u}" for u in range(600))
    assert len({t.score for t in result.listeners}) == 1
    assert (result.reach, result.overlaps) == (600, ())


@pytest.mark.parametrize("ids", [[], ["ann", "bob"]])
def test_a_release_whose_listeners_heard_nothing_has_no_audience(tmp_path, rng, ids):
    folder = write_folder(tmp_path, [Track("a")], [1], rng)
    none = np.empty(0, int)
    write_audience(tmp_path / "audience", ids, none, none, np.empty(0, np.float32), unit(rng, 1, 8))
    audience = Audience.open(folder)
    assert len(audience) == len(ids)
    with pytest.raises(AudienceError, match=r"listens\.parquet") as caught:
        audience.target(unit(rng, 8), Collection.open(folder))
    assert caught.value.code == "audience_missing"


def test_neighbours_whose_listeners_have_no_vectors_lend_no_audience(tmp_path, rng):
    matching = unit(rng, 4, 8)
    matching[1] = -matching[0]
    world = tiny(tmp_path, rng, matching, [(0, 0), (0, 1), (1, 2)], interactions=[1, 1, 0, 0])  # u1's track is cold
    with pytest.raises(AudienceError, match="have no vectors") as caught:
        world.audience.target(matching[3], world.collection)
    assert caught.value.code == "audience_no_neighbours"


def test_fewer_listeners_than_clusters(tmp_path, rng):
    world = tiny(tmp_path, rng, unit(rng, 3, 8), [(0, 0), (1, 1)])
    for clusters in (None, 8):
        result = world.audience.target(world.matching[2], world.collection, clusters=clusters, limit=10)
        assert len(result.clusters) == 2
        assert sorted(t.listener_id for t in result.listeners) == ["u0", "u1"]
        assert [t.score for t in result.listeners] == sorted([t.score for t in result.listeners], reverse=True)
        assert result.overlaps == ()


def test_identical_tracks_and_listeners(tmp_path, rng):
    world = tiny(tmp_path, rng, np.tile(unit(rng, 8), (4, 1)), [(u, u % 4) for u in range(20)])
    result = world.audience.target(world.matching[0], world.collection, row=0, limit=4)
    assert len(result.clusters) == 1
    assert [t.listener_id for t in result.listeners] == ["u1", "u2", "u3", "u5"]
    assert [n.row for n in result.neighbours] == [1, 2, 3]


def test_a_release_without_listening_says_so(tmp_path, rng):
    folder = write_folder(tmp_path, [Track("a")], [1], rng)
    empty = Audience.open(folder)
    assert len(empty) == 0
    with pytest.raises(AudienceError, match=r"listens\.parquet") as caught:
        empty.target(unit(rng, 8), Collection.open(folder))
    assert caught.value.code == "audience_missing"


@pytest.mark.parametrize("interactions", [[0, 0, 0], [0, 0, 5]])
def test_without_warm_tracks_that_have_listeners_there_is_no_audience(tmp_path, rng, interactions):
    world = tiny(tmp_path, rng, unit(rng, 3, 8), [(0, 0), (1, 1)], interactions)
    with pytest.raises(AudienceError, match="no track here has listeners") as caught:
        world.audience.target(world.matching[0], world.collection)
    assert caught.value.code == "audience_no_neighbours"


def test_listeners_without_a_vector_are_nobody(tmp_path, rng):
    matching = unit(rng, 3, 8)
    matching[1] = -matching[0]
    world = tiny(tmp_path, rng, matching, [(0, 0), (0, 1), (1, 2)])  # u0 heard opposites: no direction
    result = world.audience.target(matching[2], world.collection, limit=10)
    assert [t.listener_id for t in result.listeners] == ["u1"]
    assert [(c.size, c.mass, c.listeners) for c in result.clusters] == [(1, 1.0, ("u1",))]
    assert len(world.audience) == 2


def test_a_threshold_leaves_out_those_below_and_counts_those_above(world, monkeypatch):
    whole = world.audience.target(world.query(), world.collection, limit=300)
    scores = [target.score for target in whole.listeners]
    assert whole.reach == 300
    for bar in (0.0, scores[40], float(np.nextafter(np.float32(scores[40]), np.float32(9))), 99.0):
        found = world.audience.target(world.query(), world.collection, limit=10, min_score=bar)
        assert found.reach == sum(score >= bar for score in scores)
        assert len(found.listeners) == min(10, found.reach)
        assert all(target.score >= bar for target in found.listeners)
    monkeypatch.setattr(reach, "EVERYBODY", 10)
    assert world.audience.target(world.query(), world.collection, limit=10, min_score=scores[200]).reach == 201


def test_overlap_is_the_weight_between_two_centroids():
    middles = np.eye(3, dtype=np.float32)
    points = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0.99], [0, 0, 1]], np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = cat._overlaps(points, np.array([1.0, 2, 3, 4, 10]), middles)
    assert [(one.clusters, one.share) for one in found] == [((0, 1), 3 / 20), ((1, 2), 4 / 20)]
    assert cat._overlaps(points, np.ones(5), middles[:1]) == ()


def test_tastes_far_apart_do_not_overlap(world):
    result = world.audience.target(world.query(), world.collection, clusters=3)
    assert sum(one.share for one in result.overlaps) < 0.01
