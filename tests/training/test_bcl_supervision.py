"""ItemCF and Swing against loops over listeners, in bounded memory, and the drawing of pairs."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from training.bcl.similarity import _drawn, item_cf, listen_matrix, swing
from training.bcl.supervision import item_pairs


def world(seed: int, listeners: int = 60, tracks: int = 40):
    rng = np.random.default_rng(seed)
    heard = rng.random((listeners, tracks)) < rng.random(tracks) * 0.4
    listener, row = np.nonzero(heard)
    return heard, listener.astype(np.int64), row.astype(np.int64)


def reference(heard, i, candidates, top, min_common):
    """s_ij = sum over common listeners of 1/log(1+|I_u|) / sqrt(|U_i||U_j|), one listener at a time."""
    audience = [set(np.flatnonzero(heard[:, t])) for t in range(heard.shape[1])]
    found = []
    for j in candidates:
        common = audience[i] & audience[j]
        if j != i and len(common) >= min_common:
            s = sum(1 / math.log(1 + heard[u].sum()) for u in common) / math.sqrt(len(audience[i]) * len(audience[j]))
            found.append((round(s, 12), len(common), -j))
    return [-j for _, _, j in sorted(found, reverse=True)[:top]], sorted((s for s, _, _ in found), reverse=True)[:top]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_common", [1, 2, 4])
def test_neighbours_agree_with_the_loop(seed, min_common):
    heard, listener, row = world(seed)
    queries, candidates = np.arange(0, 40, 3), np.arange(5, 40)
    found = item_cf(
        listen_matrix(listener, row, heard.shape), queries, candidates, top=6, min_common=min_common, budget=90
    )
    assert len(found) == len(queries)
    for q, i in enumerate(queries):
        rows, scores = reference(heard, i, candidates, 6, min_common)
        assert list(found.of(q)) == rows, f"seed {seed}, track {i}"
        assert found.scores[found.indptr[q] : found.indptr[q + 1]] == pytest.approx(scores)


def swing_reference(heard, i, candidates, top, min_common, alpha):
    """s_ij = sum over u < v of w_u w_v / (alpha + |I_u and I_v|), one pair of listeners at a time."""
    history = [set(np.flatnonzero(row)) for row in heard]
    found = []
    for j in candidates:
        common = [u for u, mine in enumerate(history) if {i, j} <= mine]
        if j != i and len(common) >= max(2, min_common):
            s = sum(
                1 / math.sqrt(len(history[u]) * len(history[v])) / (alpha + len(history[u] & history[v]))
                for u, v in itertools.combinations(common, 2)
            )
            found.append((round(s, 12), len(common), -j))
    return [-j for _, _, j in sorted(found, reverse=True)[:top]], sorted((s for s, _, _ in found), reverse=True)[:top]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "min_common"), [(0.0, 1), (1.0, 2), (5.0, 4)])
def test_swing_agrees_with_the_loop(seed, alpha, min_common):
    heard, listener, row = world(seed)
    queries, candidates = np.arange(0, 40, 3), np.arange(5, 40)
    given = {"top": 6, "min_common": min_common, "alpha": alpha}
    for budget in (1, 200, 1 << 20):
        found = swing(listen_matrix(listener, row, heard.shape), queries, candidates, budget=budget, **given)
        for q, i in enumerate(queries):
            rows, scores = swing_reference(heard, i, candidates, **given)
            assert list(found.of(q)) == rows, f"seed {seed}, track {i}"
            assert found.scores[found.indptr[q] : found.indptr[q + 1]] == pytest.approx(scores)


def test_listeners_who_share_little_else_count_for_more():
    """Tracks 1 and 2 share two listeners with track 0 each; those of 2 share half a dozen more tracks."""
    strangers, friends = [[0, 1, 10, 11, 12, 13, 14, 15], [0, 1, 20, 21, 22, 23, 24, 25]], [[0, 2, *range(30, 36)]] * 2
    entries = [(u, t) for u, tracks in enumerate(strangers + friends) for t in tracks]
    listens = listen_matrix(*np.array(entries).T, (4, 40))
    assert list(swing(listens, np.array([0])).of(0)[:2]) == [1, 2]
    assert list(item_cf(listens, np.array([0])).of(0)[:2]) == [1, 2]  # a tie, by row
    flat = swing(listens, np.array([0]), alpha=1e9).scores
    assert flat == pytest.approx(flat[0], abs=1e-12)


def test_a_popular_track_is_read_in_part_and_right_on_average():
    rng = np.random.default_rng(11)
    heard = rng.random((400, 12)) < np.linspace(0.9, 0.2, 12)
    listens = listen_matrix(*np.nonzero(heard), heard.shape)
    query = np.array([0])
    whole = dict(zip(*_row(swing(listens, query, top=11, listeners=400)), strict=True))
    draws = [dict(zip(*_row(swing(listens, query, top=11, listeners=80, seed=s)), strict=True)) for s in range(60)]
    for track, expected in whole.items():
        values = np.array([draw[track] for draw in draws])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected) < 5 * error, f"seed 11, track {track}"
        assert error < 0.1 * expected
    assert draws[0] != draws[1]
    assert draws[0] == dict(zip(*_row(swing(listens, query, top=11, listeners=80, seed=0)), strict=True))


def _row(found):
    return found.rows.tolist(), found.scores.tolist()


def test_the_drawn_listeners_stay_when_others_join_or_leave():
    everybody = np.arange(5000, dtype=np.int32)
    drawn = _drawn(everybody, 3, 500, 0)
    assert len(drawn) == 500
    assert abs(drawn.mean() - 2499.5) < 5 * 5000 / math.sqrt(12 * 500)
    left = _drawn(everybody[everybody % 2 == 0], 3, 500, 0)
    assert set(drawn[drawn % 2 == 0]) <= set(left)
    assert set(_drawn(everybody, 4, 500, 0)) != set(drawn)


@pytest.mark.parametrize("similarity", [item_cf, swing])
def test_neighbours_under_the_threshold_are_left_out_and_a_few_are_chosen_as_of_many(similarity):
    heard, listener, row = world(5, listeners=300, tracks=120)
    listens = listen_matrix(listener, row, heard.shape)
    every = similarity(listens, top=120)
    few = similarity(listens, top=4)  # chosen by selection
    least = float(np.median(every.scores))
    high = similarity(listens, top=120, least=least)
    for q in range(120):
        assert list(few.of(q)) == list(every.of(q)[:4])
        mine = every.scores[every.indptr[q] : every.indptr[q + 1]]
        assert list(high.of(q)) == list(every.of(q)[mine >= least])
    assert 0 < len(high.rows) < len(every.rows)


@pytest.mark.parametrize("similarity", [item_cf, swing])
def test_the_budget_bounds_the_memory_and_not_the_result(similarity):
    rng = np.random.default_rng(3)
    listens = listen_matrix(rng.integers(0, 2000, 60_000), rng.integers(0, 3000, 60_000), (2000, 3000))
    peaks, found = [], []
    for budget in (20_000, 1 << 22):
        tracemalloc.start()
        found.append(similarity(listens, np.arange(300), budget=budget))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert np.array_equal(found[0].rows, found[1].rows)
    assert found[0].scores == pytest.approx(found[1].scores)
    listening = 60_000 * 60  # the listens by listener and by track
    assert peaks[0] < listening + 20_000 * 120
    if similarity is item_cf:
        assert peaks[1] > 1.5 * peaks[0]


def test_repeated_listens_count_once_and_kept_out_tracks_leave_no_trace():
    listener, row = np.array([0, 0, 1, 1, 0]), np.array([0, 1, 0, 1, 0])
    matrix = listen_matrix(listener, row, (2, 3))
    assert matrix.toarray().tolist() == [[1, 1, 0], [1, 1, 0]]
    kept = listen_matrix(listener, row, (2, 3), np.array([True, False, True]))
    assert kept.toarray().tolist() == [[1, 0, 0], [1, 0, 0]]


def test_nobody_heard_anything():
    matrix = listen_matrix(np.empty(0, np.int64), np.empty(0, np.int64), (3, 5))
    assert len(item_cf(matrix)) == 5
    assert len(item_cf(matrix).rows) == 0
    assert len(item_pairs(matrix, np.arange(5)).anchors) == 0
    assert len(item_pairs(matrix, np.arange(5), pairs="swing").anchors) == 0
    assert len(swing(matrix, np.empty(0, np.int64))) == len(item_cf(matrix, np.empty(0, np.int64))) == 0


def test_the_similarity_is_chosen_by_name():
    heard, listener, row = world(4)
    listens, train = listen_matrix(listener, row, heard.shape), np.arange(40)
    for name, found in {
        "itemcf": item_cf(listens, train, top=5),
        "swing": swing(listens, train, top=5, alpha=2),
    }.items():
        chosen = item_pairs(listens, train, top=5, pairs=name, alpha=2)
        assert np.array_equal(chosen.neighbours.rows, found.rows)
    with pytest.raises(ValueError, match="there are itemcf, swing"):
        item_pairs(listens, train, pairs="cosine")
    for wrong in ({"listeners": 1}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="Swing needs 2 listeners"):
            swing(listens, **wrong)


def pairs(seed: int, power: float = 0.5):
    heard, listener, row = world(seed, listeners=200, tracks=60)
    train = np.arange(0, 45)
    keep = np.isin(np.arange(60), train)
    return heard, item_pairs(listen_matrix(listener, row, heard.shape, keep), train, top=5, power=power)


def test_only_train_tracks_take_part():
    _, found = pairs(1)
    assert found.anchors.max() < 45
    assert found.neighbours.rows.max() < 45
    anchor, positive, negative = found.draw(500, 3, np.random.default_rng(0))
    assert max(anchor.max(), positive.max(), negative.max()) < 45


def test_positives_are_neighbours_and_negatives_are_not():
    _, found = pairs(2)
    near = {int(a): set(found.neighbours.of(n)) for n, a in enumerate(found.anchors)}
    anchor, positive, negative = found.draw(4000, 4, np.random.default_rng(0))
    assert all(p in near[a] for a, p in zip(anchor, positive, strict=True))
    wrong = np.mean([n == a or n in near[a] for a, row in zip(anchor, negative, strict=True) for n in row])
    assert wrong < 0.001  # 6 of 45 would be wrong without drawing again: .13; three more draws leave .0003
    assert set(negative.ravel()) == set(range(45))


def test_a_draw_is_that_of_the_generator_itself():
    """Kept sums make it faster, not other."""
    _, found = pairs(2)
    expected = np.random.default_rng(9).choice(len(found.anchors), 3000, p=found.share)
    assert np.array_equal(found.draw(3000, 1, np.random.default_rng(9))[0], found.anchors[expected])


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75])
def test_anchors_are_drawn_by_a_power_of_their_audience(power):
    heard, found = pairs(3, power)
    expected = heard.sum(0)[found.anchors] ** power
    expected = expected / expected.sum()
    drawn = np.bincount(found.draw(60_000, 1, np.random.default_rng(0))[0], minlength=60)[found.anchors] / 60_000
    # Multinomial: five standard deviations a track.
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected / 60_000)).all()
