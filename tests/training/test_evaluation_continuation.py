"""The continuation protocol against a loop that reads like the paper, and its edges."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import sparse

from training.evaluation.baselines import random_continuation
from training.evaluation.continuation import (
    ContinuationProtocol,
    draw_queries,
    evaluate_continuation,
    mean_of_seeds,
    other_labels,
)
from training.evaluation.results import EvaluationError


@dataclass
class Lists:
    ids: list[str]
    indptr: np.ndarray
    rows: np.ndarray


def lists(*members: list[int]) -> Lists:
    sizes = [len(m) for m in members]
    return Lists(
        [f"p{n}" for n in range(len(members))],
        np.cumsum([0, *sizes]),
        np.concatenate(members).astype(np.int64),
    )


def world(seed: int, tracks: int = 120, playlists: int = 12):
    """Random playlists, unit vectors, and the first 80 tracks as test tracks."""
    rng = np.random.default_rng(seed)
    members = [list(rng.choice(tracks, rng.integers(5, 30), replace=False)) for _ in range(playlists)]
    vectors = rng.standard_normal((tracks, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (
        lists(*members),
        vectors,
        np.arange(tracks) < 80,
        [f"t{(i * 37) % tracks:03d}" for i in range(tracks)],
    )


def reference(vectors, query, candidates, k):
    """LARP's protocol for one playlist, candidate by candidate."""
    mean = np.mean([vectors[s].astype(np.float64) for s in query.seeds], axis=0)
    left = [c for c in candidates if c not in set(query.seeds)]
    best = sorted(left, key=lambda c: -float(mean @ vectors[c]))[:k]
    hits = [c in set(query.truth) for c in best]
    gain = [1 / np.log2(rank + 2) for rank in range(k)]
    ideal = sum(gain[: min(k, len(query.truth))])
    return sum(hits) / len(query.truth), sum(g for g, hit in zip(gain, hits, strict=True) if hit) / ideal


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("seeds", [None, 1, 3])
def test_it_agrees_with_the_loop(seed, seeds):
    playlists, vectors, test, ids = world(seed)
    protocol = ContinuationProtocol(seeds=seeds, cuts=(5, 10))
    queries = draw_queries(playlists, np.ones(12, bool), ids, test, protocol)
    candidates = np.flatnonzero(test)
    found = evaluate_continuation({"mean": mean_of_seeds(vectors)}, queries, candidates, protocol).method("mean")
    for k in (5, 10):
        expected = np.array([reference(vectors, q, candidates, k) for q in queries])
        assert found.per_query[f"R@{k}"] == pytest.approx(expected[:, 0]), f"seed {seed}"
        assert found.per_query[f"N@{k}"] == pytest.approx(expected[:, 1]), f"seed {seed}"


@pytest.mark.parametrize("n", range(2, 9))
def test_seeds_are_the_first_half_and_the_rest_is_the_truth(n):
    protocol = ContinuationProtocol()
    (query,) = draw_queries(
        lists(list(range(n))), np.ones(1, bool), [str(i) for i in range(n)], np.ones(n, bool), protocol
    )
    assert len(query.seeds) == round(n / 2)
    assert sorted([*query.seeds, *query.truth]) == list(range(n))


def test_tracks_outside_the_test_split_are_neither_seed_nor_truth():
    playlists, _, test, ids = world(1)
    for query in draw_queries(playlists, np.ones(12, bool), ids, test, ContinuationProtocol()):
        assert test[query.seeds].all()
        assert test[query.truth].all()


def test_the_draw_does_not_depend_on_the_order_of_the_files():
    playlists, _, test, ids = world(2)
    order = np.random.default_rng(0).permutation(12)
    parts = [playlists.rows[playlists.indptr[p] : playlists.indptr[p + 1]][::-1] for p in order]
    shuffled = Lists([playlists.ids[p] for p in order], np.cumsum([0, *map(len, parts)]), np.concatenate(parts))
    first, second = (
        draw_queries(x, np.ones(12, bool), ids, test, ContinuationProtocol()) for x in (playlists, shuffled)
    )
    assert [q.playlist for q in first] == [q.playlist for q in second]
    assert all(np.array_equal(a.seeds, b.seeds) for a, b in zip(first, second, strict=True))


def test_the_first_repeat_is_the_paper_draw_and_a_playlist_counts_once():
    playlists, vectors, test, ids = world(3)
    once, often = (ContinuationProtocol(repeats=n, cuts=(10,)) for n in (1, 8))
    single = draw_queries(playlists, np.ones(12, bool), ids, test, once)
    many = draw_queries(playlists, np.ones(12, bool), ids, test, often)
    assert all(np.array_equal(a.seeds, b.seeds) for a, b in zip(single, many, strict=False))
    found = evaluate_continuation({"mean": mean_of_seeds(vectors)}, many, np.flatnonzero(test), often)
    assert found.queries == len(single)
    values = [reference(vectors, q, np.flatnonzero(test), 10)[0] for q in many if q.playlist == "p4"]
    assert found.method("mean").per_query["R@10"][[q.playlist for q in single].index("p4")] == pytest.approx(
        np.mean(values)
    )


def test_random_stands_at_chance_and_the_ceiling_is_reached_by_the_truth_itself():
    playlists, _, test, ids = world(4)
    protocol = ContinuationProtocol(cuts=(10,), tie_draws=300)
    queries = draw_queries(playlists, np.ones(12, bool), ids, test, protocol)

    def oracle(seeds, candidates):
        known = {tuple(q.seeds): set(q.truth) for q in queries}
        return np.array([[c in known[tuple(s)] for c in candidates] for s in seeds], float)

    found = evaluate_continuation(
        {"random": random_continuation(), "oracle": oracle}, queries, np.flatnonzero(test), protocol
    )
    assert found.method("random").figures["R@10"].value == pytest.approx(found.chance["R@10"], rel=0.1)
    assert found.method("random").figures["N@10"].value == pytest.approx(found.chance["N@10"], rel=0.1)
    assert found.method("oracle").figures["R@10"].value == pytest.approx(found.ceiling["R@10"])
    assert found.method("oracle").figures["N@10"].value == pytest.approx(1.0)


def test_sparse_and_dense_vectors_give_the_same():
    playlists, vectors, test, ids = world(5)
    protocol = ContinuationProtocol(cuts=(10,))
    queries = draw_queries(playlists, np.ones(12, bool), ids, test, protocol)
    methods = {"dense": mean_of_seeds(vectors), "sparse": mean_of_seeds(sparse.csr_array(vectors))}
    found = evaluate_continuation(methods, queries, np.flatnonzero(test), protocol)
    assert found.difference("dense", "sparse", "N@10").high == 0.0


def test_a_missing_vector_comes_last_and_is_left_out_of_the_mean():
    vectors = np.array([[1, 0], [np.nan, np.nan], [-1, 0], [0, 1], [np.nan, np.nan]], np.float32)
    scores = mean_of_seeds(vectors)([np.array([0, 1]), np.array([1])], np.array([2, 3, 4]))
    assert scores[0, :2] == pytest.approx([-1.0, 0.0])  # the mean is the known seed's vector
    assert scores[0, 2] < scores[0, 0]
    assert scores[1, 0] == scores[1, 1] == 0.0


def test_other_labels_takes_out_candidates_and_truth_that_share_one_with_a_seed():
    protocol = ContinuationProtocol(seeds=1, cuts=(3,))
    labels = sparse.csr_array(np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]]))
    queries = draw_queries(lists([0, 1, 2]), np.ones(1, bool), list("abcde"), np.ones(5, bool), protocol)
    (query,) = queries
    (hard,) = other_labels(queries, labels)
    same = {0: {1}, 1: {0}, 2: set()}[int(query.seeds[0])]
    assert set(hard.truth) == set(query.truth) - same
    found = evaluate_continuation({"random": random_continuation()}, [hard], np.arange(5), protocol)
    assert found.ceiling["R@3"] == 1.0
    shared = np.array([[1], [1], [1], [0], [0]])
    assert other_labels(queries, sparse.csr_array(shared)) == []


def test_groups_widen_the_interval_over_states_of_one_playlist():
    playlists, vectors, test, ids = world(6)
    protocol = ContinuationProtocol(cuts=(10,))
    queries = draw_queries(playlists, np.ones(12, bool), ids, test, protocol)
    groups = {p: str(n // 6) for n, p in enumerate(playlists.ids)}
    found = evaluate_continuation({"m": mean_of_seeds(vectors)}, queries, np.flatnonzero(test), protocol, groups=groups)
    assert found.groups == [groups[q.playlist] for q in queries]


def test_clear_errors():
    with pytest.raises(EvaluationError, match="2 or more test tracks") as caught:
        draw_queries(lists([0]), np.ones(1, bool), ["a"], np.ones(1, bool), ContinuationProtocol())
    assert caught.value.code == "no_test_playlists"
    playlists, _, test, ids = world(7)
    queries = draw_queries(playlists, np.ones(12, bool), ids, test, ContinuationProtocol())
    with pytest.raises(EvaluationError, match="without NaN"):
        evaluate_continuation(
            {"bad": lambda s, c: np.full((len(s), len(c)), np.nan)},
            queries,
            np.flatnonzero(test),
            ContinuationProtocol(),
        )
    with pytest.raises(EvaluationError, match="no candidates"):
        evaluate_continuation({"r": random_continuation()}, queries, np.array([0]), ContinuationProtocol())
    with pytest.raises(ValueError, match="seeds"):
        ContinuationProtocol(seeds=0)
