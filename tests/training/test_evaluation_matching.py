"""Matching and audience protocols, and the baselines, on small worlds worked by hand or by loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score
from test_not_music import FIELDS, write_recipes

from index.tracks.track import Track
from training.bcl.similarity import item_cf, listen_matrix
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.embed import PARTS, Embeddings
from training.evaluate import MATCHED, TFIDF, TRAINED, Protocols, evaluate
from training.evaluation import baselines
from training.evaluation.audience import AudienceProtocol, evaluate_audience
from training.evaluation.matching import (
    MatchingProtocol,
    MatchingTasks,
    evaluate_matching,
    inner_product,
    matching_task,
    prior_weight,
)
from training.evaluation.popularity import deciles
from training.evaluation.results import EvaluationError
from training.evaluation.vectors import unit
from training.matched import Matched


def listens(seed: int, listeners: int = 120, tracks: int = 50) -> sparse.csr_array:
    """Two kinds of listeners: each hears mostly one half of the tracks."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, listeners)
    half = np.arange(tracks) % 2
    heard = rng.random((listeners, tracks)) < np.where(kind[:, None] == half[None, :], 0.3, 0.03)
    listener, row = np.nonzero(heard)
    return listen_matrix(listener, row, heard.shape)


COLD, WARM = np.arange(0, 10), np.arange(10, 50)


def warm_only(matrix: sparse.csr_array) -> sparse.csr_array:
    dense = matrix.toarray()
    dense[:, COLD] = 0
    return sparse.csr_array(dense)


def test_matching_agrees_with_a_loop():
    matrix = listens(1)
    task = matching_task(matrix, COLD, WARM, MatchingProtocol(cuts=(5,)))
    vectors = np.random.default_rng(0).standard_normal((50, 4))
    found = evaluate_matching({"m": inner_product(vectors)}, task).method("m").per_query
    for q, i in enumerate(task.queries):
        truth = set(item_cf(matrix, np.array([i]), WARM).of(0))
        best = sorted(WARM, key=lambda j: -(vectors[i] @ vectors[j]))[:5]
        hits = [j in truth for j in best]
        gain = [1 / np.log2(r + 2) for r in range(5)]
        assert found["R@5"][q] == pytest.approx(sum(hits) / len(truth))
        expected = sum(g for g, h in zip(gain, hits, strict=True) if h) / sum(gain[: min(5, len(truth))])
        assert found["N@5"][q] == pytest.approx(expected)


def test_knowing_the_kind_beats_popularity_beats_nothing():
    matrix = listens(2)
    kind = np.eye(2)[np.arange(50) % 2]
    task = matching_task(matrix, COLD, WARM, MatchingProtocol(cuts=(10,)))
    methods = {
        "random": baselines.random_matching(),
        "popularity": baselines.popularity(warm_only(matrix)),
        "kind": inner_product(kind),
        "kind x popularity": baselines.times_popularity(inner_product(kind), warm_only(matrix)),
    }
    found = evaluate_matching(methods, task)
    assert found.method("random").figures["R@10"].value == pytest.approx(found.chance["R@10"], abs=0.1)
    assert found.difference("kind", "popularity", "R@10").low > 0


def test_the_prior_adds_log_listeners_and_its_weight_is_the_best_of_those_tried():
    matrix = listens(4)
    warm = warm_only(matrix)
    task = matching_task(matrix, COLD, WARM, MatchingProtocol(cuts=(5, 10)))
    scorer = inner_product(np.random.default_rng(5).standard_normal((50, 3)))
    expected = scorer(COLD, WARM) + 0.7 * np.log(1 + warm.toarray().sum(0)[WARM])
    assert baselines.plus_popularity(scorer, warm, 0.7)(COLD, WARM) == pytest.approx(expected)
    weights = (0.0, 0.5, 5.0)
    methods = {f"{weight}": baselines.plus_popularity(scorer, warm, weight) for weight in weights}
    found = evaluate_matching(methods, task)
    recalls = [found.method(f"{weight}").figures["R@10"].value for weight in weights]
    assert prior_weight(scorer, warm, task, weights) == weights[int(np.argmax(recalls))]


def test_both_tasks_of_a_data_set_know_no_more_than_they_may(tmp_path: Path) -> None:
    write_recipes(tmp_path)
    recipes = DataSet.open(tmp_path)
    tasks = MatchingTasks.of(recipes, MatchingProtocol(cuts=(10,)))
    split, listens = recipes.track_split, recipes.listens
    shape = (len(listens.listener_ids), len(split))
    heard = sparse.csr_array((np.ones(len(listens.row)), (listens.listener, listens.row)), shape=shape).toarray() > 0
    assert tasks.warm.toarray().tolist() == (heard & (split == TRAIN)).tolist()
    assert tasks.listeners.tolist() == heard.sum(0)[tasks.test.queries].tolist()
    assert set(tasks.test.queries) <= set(np.flatnonzero(split == TEST))
    assert set(tasks.valid.queries) <= set(np.flatnonzero(split == VALID))
    known = item_cf(sparse.csr_array(heard * (split != TEST) * 1.0), tasks.valid.queries, tasks.valid.candidates)
    assert tasks.valid.truth.rows.tolist() == known.rows.tolist()
    vectors = np.random.default_rng(1).standard_normal((len(split), 4))
    expected = prior_weight(inner_product(vectors), tasks.warm, tasks.valid)
    assert tasks.prior_weight(inner_product(vectors)) == expected
    bare = MatchingTasks.of(replace(recipes, track_split=np.where(split == VALID, TRAIN, split)), MatchingProtocol())
    assert bare.valid is None
    assert bare.prior_weight(inner_product(vectors)) is None


def test_evaluate_tells_matching_with_the_prior_and_by_popularity(tmp_path: Path) -> None:
    write_recipes(tmp_path)
    recipes = DataSet.open(tmp_path, attributes=FIELDS)
    rng = np.random.default_rng(8)
    matched = unit(rng.standard_normal((len(recipes.tracks), 6))).astype(np.float32)
    content = Embeddings(**dict.fromkeys(PARTS, matched[:, :3]))
    tables, left_out = evaluate(recipes, content, Matched(matched, 4), Protocols(), ("title",))
    found = {table.task: table for table in tables}["matching"]
    names = [method.method for method in found.methods]
    both = [f"{name}{prior}" for name in (MATCHED, TRAINED, TFIDF) for prior in ("", ", popularity prior")]
    assert names == [*both, "content kNN (LARP vectors, raw)", "popularity", "random"]
    tasks = MatchingTasks.of(recipes, MatchingProtocol())
    weight = tasks.prior_weight(inner_product(matched))
    assert f"prior of {MATCHED} {weight}" in found.heading()
    expected = evaluate_matching(
        {"m": baselines.plus_popularity(inner_product(matched), tasks.warm, weight)}, tasks.test
    )
    half = evaluate_matching({"m": inner_product(unit(matched[:, :4]))}, tasks.test).method("m").per_query["R@50"]
    assert found.method(TRAINED).per_query["R@50"] == pytest.approx(half)
    ours = found.method(f"{MATCHED}, popularity prior")
    assert ours.per_query["N@20"].tolist() == expected.method("m").per_query["N@20"].tolist()
    assert len(deciles(tasks.listeners)) + 2 == len(found.parts.masks)
    assert "R@50 by listeners" in found.table()
    assert any("playlist" in reason for reason in left_out)
    audience = {table.task: table for table in tables}["audience"]
    assert {"lift@1%", "lift@5%", "lift@10%"} <= audience.methods[0].figures.keys()


def test_queries_without_truth_are_left_out_and_none_at_all_is_an_error():
    matrix = sparse.csr_array(np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0]], float))
    task = matching_task(matrix, np.array([0, 1]), np.array([2]), MatchingProtocol())
    assert task.queries.tolist() == [0]
    with pytest.raises(EvaluationError) as caught:
        matching_task(matrix, np.array([1]), np.array([2]), MatchingProtocol())
    assert caught.value.code == "no_matching_truth"


def test_audience_agrees_with_scikit_learn_and_a_loop():
    matrix = listens(3)
    protocol = AudienceProtocol(cuts=(20,), reaches=(0.1, 0.07, 0.074))
    scores = np.random.default_rng(0).random((50, 120))
    found = evaluate_audience({"m": lambda rows: scores[rows]}, matrix, COLD, protocol)
    for q, i in enumerate(COLD):
        truth = matrix.toarray()[:, i] > 0
        best = np.argsort(-scores[i])
        assert found.method("m").per_query["R@20"][q] == pytest.approx(truth[best[:20]].sum() / truth.sum())
        assert found.method("m").per_query["AUC"][q] == pytest.approx(roc_auc_score(truth, scores[i]), abs=1e-6)
        assert found.method("m").per_query["lift@10%"][q] == pytest.approx(truth[best[:12]].sum() / truth.sum() / 0.1)
        assert found.method("m").per_query["lift@7%"][q] == pytest.approx(truth[best[:8]].sum() / truth.sum() * 15)
        assert found.method("m").per_query["lift@7.4%"][q] == pytest.approx(
            truth[best[:9]].sum() / truth.sum() * 120 / 9
        )


def test_audience_baselines_find_the_kind():
    matrix = listens(4)
    warm = warm_only(matrix)
    kind = np.eye(2)[np.arange(50) % 2]
    methods = {
        "random": baselines.random_audience(120),
        "activity": baselines.activity(warm),
        "union": baselines.union_of_nearest(inner_product(kind), warm, WARM, neighbours=15),
        "cosine": baselines.profile_cosine(kind, warm),
        "oracle": lambda rows: matrix.toarray()[:, rows].T,
    }
    found = evaluate_audience(methods, matrix, COLD, AudienceProtocol(cuts=(20,)))
    assert found.method("random").figures["AUC"].value == pytest.approx(0.5)
    assert found.method("random").figures["R@20"].value == pytest.approx(found.chance["R@20"], abs=0.08)
    assert found.method("oracle").figures["AUC"].value == 1.0
    assert found.method("oracle").figures["R@20"].value == pytest.approx(found.ceiling["R@20"])
    assert found.method("oracle").figures["lift@10%"].value == pytest.approx(found.ceiling["lift@10%"])
    for name in ("union", "cosine"):
        assert found.difference(name, "activity", "AUC").low > 0.1


def test_union_counts_the_neighbours_each_listener_heard():
    warm = sparse.csr_array(np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]], float))
    near = np.array([[0.0, 0.5, 0.3, -0.2]])
    candidates = np.array([1, 2, 3])
    plain = baselines.union_of_nearest(lambda q, c: near[:, c], warm, candidates, neighbours=2, weighted=False)
    weighted = baselines.union_of_nearest(lambda q, c: near[:, c], warm, candidates, neighbours=3)
    assert plain(np.array([0])).tolist() == [[2, 1, 0]]
    assert weighted(np.array([0]))[0] == pytest.approx([0.8, 0.3, 0.0])


def test_tracks_nobody_heard_are_left_out_and_none_at_all_is_an_error():
    matrix = sparse.csr_array(np.array([[1, 0, 1], [0, 0, 1]], float))
    found = evaluate_audience(
        {"r": baselines.random_audience(2)}, matrix, np.array([0, 1]), AudienceProtocol(cuts=(1,))
    )
    assert found.queries == 1
    with pytest.raises(EvaluationError) as caught:
        evaluate_audience({"r": baselines.random_audience(2)}, matrix, np.array([1]), AudienceProtocol())
    assert caught.value.code == "no_audience_truth"
    with pytest.raises(EvaluationError, match="'bad' must score"):
        evaluate_audience({"bad": lambda rows: np.zeros((1, 1))}, matrix, np.array([0]), AudienceProtocol())


def test_baseline_vectors():
    tracks = [
        Track(
            "a",
            title="Blue",
            artist="X",
            genres=("jazz",),
            language="en",
            attributes={"mood": "calm", "tags": ["u", "v"]},
        ),
        Track("b", title="Blue sky", artist="X", genres=("jazz", "pop")),
        Track("c", title="I", artist="Y", attributes={"tags": ["v"], "born": 1850.0}),
        Track("d"),
    ]
    artist = baselines.same_artist(tracks)
    assert (artist @ artist.T).toarray().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    words = baselines.tfidf_captions(tracks)
    similar = (words @ words.T).toarray()
    assert similar.diagonal() == pytest.approx([1, 1, 1, 0])
    assert similar[0, 1] > similar[0, 2] > 0  # "the", "track" and "by" are words too
    attributes = baselines.tfidf_attributes(tracks, ("mood", "tags", "born"))
    shared = (attributes @ attributes.T).toarray()
    assert shared[0, 1] > 0
    assert shared[0, 2] > 0
    assert shared[1, 2] == 0
