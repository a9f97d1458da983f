"""ItemCF by sparse products against a loop over listeners, and the drawing of pairs."""

import math

import numpy as np
import pytest

from training.bcl.supervision import item_cf, item_pairs, listen_matrix


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
def test_neighbours_agree_with_the_loop(seed, min_common, monkeypatch):
    monkeypatch.setattr("training.bcl.supervision._BLOCK", 7)
    heard, listener, row = world(seed)
    queries, candidates = np.arange(0, 40, 3), np.arange(5, 40)
    found = item_cf(listen_matrix(listener, row, heard.shape), queries, candidates, top=6, min_common=min_common)
    assert len(found) == len(queries)
    for q, i in enumerate(queries):
        rows, scores = reference(heard, i, candidates, 6, min_common)
        assert list(found.of(q)) == rows, f"seed {seed}, track {i}"
        assert found.scores[found.indptr[q] : found.indptr[q + 1]] == pytest.approx(scores)


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


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75])
def test_anchors_are_drawn_by_a_power_of_their_audience(power):
    heard, found = pairs(3, power)
    expected = heard.sum(0)[found.anchors] ** power
    expected = expected / expected.sum()
    drawn = np.bincount(found.draw(60_000, 1, np.random.default_rng(0))[0], minlength=60)[found.anchors] / 60_000
    # Multinomial: five standard deviations a track.
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected / 60_000)).all()
