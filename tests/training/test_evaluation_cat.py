"""CAT as a scorer: it finds the two kinds of listeners, and sees nothing of cold tracks."""

import numpy as np
import pytest
from scipy import sparse

from index.tracks.track import Track
from training.evaluation import baselines
from training.evaluation.audience import AudienceProtocol, evaluate_audience
from training.evaluation.cat import cat_scorer, centroid_scorer

COLD = np.arange(8)


@pytest.fixture(scope="module")
def world():
    """60 tracks and 150 listeners of two kinds; vectors that show a track's kind with some noise."""
    rng = np.random.default_rng(0)
    kind, taste = np.arange(60) % 2, rng.integers(0, 2, 150)
    heard = rng.random((150, 60)) < np.where(taste[:, None] == kind[None, :], 0.3, 0.03)
    heard[:5, 8:] = False  # five listeners who heard cold tracks at most
    vectors = np.eye(16, dtype=np.float32)[kind] + 0.2 * rng.standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    listens = sparse.csr_array(heard.astype(float))
    warm = heard.copy()
    warm[:, COLD] = False
    return [Track(f"t{i}") for i in range(60)], vectors, listens, sparse.csr_array(warm * rng.integers(1, 9, (150, 60)))


def test_cat_finds_the_kind(world):
    tracks, vectors, listens, warm = world
    with cat_scorer(tracks, vectors, warm) as scorer:
        methods = {"cat": scorer, "activity": baselines.activity(warm)}
        found = evaluate_audience(methods, listens, COLD, AudienceProtocol(cuts=(20,)))
        assert found.difference("cat", "activity", "AUC").low > 0
        scores = scorer(COLD)
    assert scores.shape == (8, 150)
    assert (scores[:, :5] == scores.min()).all()  # nothing warm heard: last
    assert (scores[:, 5:] > 0).all()


def test_a_track_without_vector_ties_all_listeners(world):
    tracks, vectors, _, warm = world
    missing = vectors.copy()
    missing[3] = np.nan
    with cat_scorer(tracks, missing, warm, clusters=1) as scorer:
        scores = scorer(np.array([3, 4]))
    assert np.ptp(scores[0]) == 0
    assert np.ptp(scores[1]) > 0


@pytest.mark.parametrize("clusters", [None, 1])
def test_the_ablation_ranks_by_the_cosine_to_a_centroid(world, clusters):
    tracks, vectors, listens, warm = world
    with centroid_scorer(tracks, vectors, warm, clusters=clusters) as scorer:
        methods = {"centroid": scorer, "activity": baselines.activity(warm)}
        found = evaluate_audience(methods, listens, COLD, AudienceProtocol(cuts=(20,)))
        scores = scorer(COLD)
    assert np.isfinite(found.method("centroid").per_query["AUC"]).all()
    assert (scores[:, :5] == scores.min()).all()
    assert (np.abs(scores[:, 5:]) <= 1 + 1e-5).all()
