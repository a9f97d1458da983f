"""Recall, NDCG, AUC, ties and the bootstrap against loops and cases worked by hand."""

import math

import numpy as np
import pytest

from training.evaluation.estimates import bootstrap, paired_difference
from training.evaluation.metrics import auc, ceiling, chance, ranking, top_k
from training.evaluation.results import Evaluation, summarise


def by_hand(order, truth, k):
    """Recall@k and NDCG@k of one ranked list, from the definitions."""
    hits = [item in truth for item in order[:k]]
    dcg = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, start=1) if hit)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(truth)) + 1))
    return sum(hits) / len(truth), dcg / ideal


def test_a_case_worked_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, -np.inf]])
    truth = np.array([[False, True, False, True, False]])
    out = ranking(scores, truth, (1, 2, 10), np.random.default_rng(0))
    assert out["R@1"] == [0.0]
    assert out["N@1"] == [0.0]
    assert out["R@2"] == [0.5]
    assert out["N@2"][0] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert out["R@10"] == [1.0]  # five columns only; the barred one is no hit
    assert out["N@10"][0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))


@pytest.mark.parametrize("seed", range(5))
def test_rankings_agree_with_loops(seed):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((40, 30))
    truth = rng.random((40, 30)) < 0.2
    truth[:, 0] = True
    out = ranking(scores, truth, (1, 5, 20, 50), np.random.default_rng(0))
    for row in range(40):
        order = sorted(range(30), key=lambda c: -scores[row, c])
        for k in (1, 5, 20, 50):
            expected = by_hand(order, set(np.flatnonzero(truth[row])), k)
            assert (out[f"R@{k}"][row], out[f"N@{k}"][row]) == pytest.approx(expected), f"seed {seed}"


def test_recall_divides_by_the_whole_truth_so_that_it_has_a_ceiling():
    truth = np.ones((1, 20), bool)
    out = ranking(np.zeros((1, 20)), truth, (10,), np.random.default_rng(0))
    assert out["R@10"] == [0.5]
    assert out["N@10"] == [1.0]
    assert ceiling(np.array([20, 5]), (10,)) == {"R@10": 0.75, "N@10": 1.0}


def test_ties_fall_in_random_order_and_reach_chance():
    truth = np.zeros((400, 50), bool)
    truth[:, :5] = True  # a stable sort would find all of them
    out = ranking(np.ones((400, 50)), truth, (10,), np.random.default_rng(3), tie_draws=20)
    expected = chance(np.full(400, 5), np.full(400, 50), (10,))
    assert expected["R@10"] == pytest.approx(0.2)
    assert out["R@10"].mean() == pytest.approx(0.2, abs=0.03)
    assert out["N@10"].mean() == pytest.approx(expected["N@10"], abs=0.03)


def test_sums_in_another_order_still_tie():
    scores = np.array([[0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1]])
    assert scores[0, 0] != scores[0, 1]
    first = {int(top_k(scores, 1, np.random.default_rng(seed))[0, 0]) for seed in range(20)}
    assert first == {0, 1}


def test_chance_is_what_random_orders_give():
    rng = np.random.default_rng(7)
    truth = np.arange(30) < 4
    draws = [by_hand(list(rng.permutation(30)), set(np.flatnonzero(truth)), 10) for _ in range(4000)]
    expected = chance(np.array([4]), np.array([30]), (10,))
    assert np.mean(draws, axis=0) == pytest.approx([expected["R@10"], expected["N@10"]], abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_auc_agrees_with_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (10, 40)).astype(float)  # many ties
    truth = rng.random((10, 40)) < 0.3
    for row, value in enumerate(auc(scores, truth)):
        yes, no = scores[row, truth[row]], scores[row, ~truth[row]]
        pairs = (yes[:, None] > no[None, :]) + 0.5 * (yes[:, None] == no[None, :])
        assert value == pytest.approx(pairs.mean()), f"seed {seed}"


def test_auc_without_positives_is_unknown():
    assert np.isnan(auc(np.zeros((1, 3)), np.zeros((1, 3), bool))).all()


def test_bootstrap_is_the_percentile_of_resampled_means_whatever_the_chunk(monkeypatch):
    values = np.random.default_rng(0).random(37)
    draws = np.random.default_rng(1).integers(0, 37, (2000, 37))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    found = bootstrap(values)
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high), abs=1e-12)
    monkeypatch.setattr("training.evaluation.estimates._CHUNK", 100)
    assert bootstrap(values) == found


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    found = [bootstrap(rng.exponential(size=80), draws=400) for _ in range(300)]
    covered = np.mean([e.low <= 1.0 <= e.high for e in found])
    assert 0.88 <= covered <= 0.98


def test_groups_are_drawn_whole():
    values = np.repeat(np.random.default_rng(2).random(20), 10)  # ten copies of twenty values
    labels = np.repeat(np.arange(20).astype(str), 10)
    single, grouped = bootstrap(values), bootstrap(values, groups=list(labels))
    assert grouped.value == pytest.approx(single.value)
    assert grouped.high - grouped.low > 2.5 * (single.high - single.low)
    sizes = np.random.default_rng(6).integers(1, 9, 15)  # groups that differ count by their queries, not once each
    labels, values = np.repeat(np.arange(15), sizes).astype(str), np.repeat(sizes / 9.0, sizes)
    members = [values[labels == label] for label in np.unique(labels)]  # sorted as texts, as np.unique gives them
    drawn = [np.concatenate([members[g] for g in draw]).mean() for draw in
             np.random.default_rng(1).integers(0, 15, (2000, 15))]  # fmt: skip
    found = bootstrap(values, groups=list(labels))
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=1e-12)
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match="labels"):
        bootstrap(values, groups=["a"])
    with pytest.raises(ValueError, match="one value a query"):
        bootstrap(np.array([]))


def test_pairing_sees_what_two_intervals_hide():
    rng = np.random.default_rng(5)
    easy = rng.random(60)
    worse, better = easy, easy + 0.02 + 0.01 * rng.standard_normal(60)
    difference = paired_difference(better, worse)
    assert difference.low > 0
    assert bootstrap(worse).high > bootstrap(better).low  # the plain intervals overlap
    with pytest.raises(ValueError, match="shape"):
        paired_difference(better, worse[:-1])


def test_an_evaluation_becomes_json_and_a_table():
    results = [
        summarise(name, {"R@10": np.full(4, x), "N@10": np.full(4, x / 2)}) for name, x in (("a", 0.5), ("bb", 0.25))
    ]
    evaluation = Evaluation("t", {"cuts": (10,), "repeats": 3}, 4, {"R@10": 0.1}, {"R@10": 1.0}, results)
    assert evaluation.to_json()["methods"]["a"]["R@10"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert evaluation.difference("a", "bb", "R@10").value == 0.25
    assert evaluation.heading() == "t: 4 queries, repeats 3"
    lines = evaluation.table().splitlines()
    assert lines[0].split() == ["method", "R@10", "[95", "%]", "N@10"]
    assert lines[2].split() == ["a", "0.5000", "[0.5000,", "0.5000]", "0.2500"]
    assert [line.split()[0] for line in lines[2:]] == ["a", "bb", "(chance)", "(ceiling)"]
    with pytest.raises(KeyError, match="no method 'c'"):
        evaluation.method("c")
