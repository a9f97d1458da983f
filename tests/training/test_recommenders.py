"""ItemKNN, DropoutNet and CLCRec: their losses against NumPy, and what they find in a world of known factors."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from training.evaluation.continuation import ContinuationQuery
from training.progress import Silent
from training.recommenders.clcrec import ClcRecConfig, fit_clcrec, info_nce
from training.recommenders.dropoutnet import DropoutNetConfig, block_loss, fit_dropoutnet
from training.recommenders.interactions import Interactions, Scale
from training.recommenders.itemknn import fit_itemknn
from training.recommenders.recommender import RecommenderError, scorer
from training.recommenders.wmf import factorise

SEED = 5
FITS = {
    "ItemKNN": fit_itemknn,
    "DropoutNet": lambda *a, **k: fit_dropoutnet(
        *a, DropoutNetConfig(threads=1, epochs=12, hidden=(64,), dims=32), **k
    ),
    "CLCRec": lambda *a, **k: fit_clcrec(*a, ClcRecConfig(threads=1, epochs=30, hidden=(64,), dims=32), **k),
}


def world(nuisance: float = 3.0) -> tuple[np.ndarray, sparse.csr_array, list[np.ndarray], np.ndarray]:
    """Content of 600 tracks in 12 themes (4 useful dimensions, 12 loud useless ones), training playlists of the first
    400, test playlists of the others, and the themes.
    """
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    themes, of_track = rng.normal(size=(12, 4)), rng.integers(12, size=600)
    useful = themes[of_track] + 0.3 * rng.normal(size=(600, 4))
    content = np.concatenate([useful, nuisance * rng.normal(size=(600, 12))], 1)
    content = (content / np.linalg.norm(content, axis=1, keepdims=True)).astype(np.float32)
    members = [
        [np.flatnonzero(of_track[a:b] == k % 12) + a for k in range(n)] for a, b, n in ((0, 400, 240), (400, 600, 12))
    ]
    train = [rng.choice(rows, 12) for rows in members[0]]
    indptr = np.concatenate([[0], np.cumsum([len(np.unique(rows)) for rows in train])])
    rows = np.concatenate([np.unique(rows) for rows in train])
    playlists = sparse.csr_array((np.ones(len(rows)), rows, indptr), shape=(240, 400))
    return content, playlists, members[1], of_track


def recall(score: Any, tests: list[np.ndarray], k: int = 10) -> float:
    """Mean share of the first k that are of the seeds' theme, candidates 400..599 without the seeds."""
    candidates = np.arange(400, 600)
    queries = [ContinuationQuery(str(n), rows[:4], rows[4:], np.empty(0, int)) for n, rows in enumerate(tests)]
    scores = score([query.seeds for query in queries], candidates)
    hits = []
    for row, query in zip(scores, queries, strict=True):
        order = [c for c in candidates[np.argsort(-row)] if c not in set(query.seeds)][:k]
        hits.append(np.isin(order, query.truth).mean())
    return float(np.mean(hits))


@pytest.mark.parametrize("name", ["DropoutNet", "CLCRec"])
def test_a_trained_recommender_looks_past_what_playlists_do_not_ask_for(name: str) -> None:
    content, playlists, tests, _ = world()
    plain = recall(scorer(fit_itemknn(playlists, content[:400], Silent()), content), tests)
    fitted = recall(scorer(FITS[name](playlists, content[:400], Silent()), content), tests)
    print(name, "plain", plain, "fitted", fitted, "chance about", 1 / 12)
    assert fitted > 2 / 12
    assert fitted > plain + 0.05


@pytest.mark.parametrize("name", FITS)
def test_a_scorer_is_an_inner_product_of_transforms(name: str) -> None:
    content, playlists, tests, _ = world()
    content[450] = np.nan
    found = FITS[name](playlists, content[:400], Silent())
    seeds, candidates = [tests[0][:3], np.array([450]), tests[1][:2]], np.arange(440, 460)
    scores = scorer(found, content)(seeds, candidates)
    tracks = found.transform_tracks(content[candidates]).astype(np.float64)
    for row, rows in zip(scores[[0, 2]], (seeds[0], seeds[2]), strict=True):
        known = rows[~np.isnan(content[rows]).any(1)]
        mean = content[known].astype(np.float64).mean(0, keepdims=True).astype(np.float32)
        expected = tracks @ found.transform_playlists(mean)[0].astype(np.float64)
        usable = candidates != 450
        assert np.allclose(row[usable], expected[usable], atol=1e-4)
        assert row[~usable] < row[usable].min()
    assert len(set(np.round(scores[1][candidates != 450], 6))) == 1  # nothing is known of its only seed


@pytest.mark.parametrize("name", ["DropoutNet", "CLCRec"])
def test_the_same_seed_gives_the_same_answers(name: str) -> None:
    content, playlists, _, _ = world()
    torch.rand(3)
    one, other = (FITS[name](playlists, content[:400], Silent()).transform_tracks(content) for _ in range(2))
    assert np.array_equal(one, other)


def test_the_best_epoch_is_kept() -> None:
    content, playlists, _, _ = world()
    seen: list[np.ndarray] = []
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4])

    def validate(found: Any) -> float:
        seen.append(found.transform_tracks(content))
        return next(scores)

    config = ClcRecConfig(threads=1, epochs=5, patience=0)
    found = fit_clcrec(playlists, content[:400], Silent(), config, validate=validate)
    assert np.array_equal(found.transform_tracks(content), seen[1])
    assert not np.array_equal(seen[1], seen[4])


def test_info_nce_is_its_equation() -> None:
    rng = np.random.default_rng(0)
    anchors, keys = rng.normal(size=(2, 5, 3))
    barred = np.zeros((5, 5), bool)
    barred[1, 3] = barred[4, 0] = True

    def reference(a: np.ndarray, k: np.ndarray) -> float:
        total = 0.0
        for i in range(5):
            exp = {j: np.exp(a[i] @ k[j] / 2.0) for j in range(5) if not barred[i, j]}
            total -= np.log(exp[i] / sum(exp.values()))
        return total / 5

    tensors = [torch.tensor(x, requires_grad=True) for x in (anchors, keys)]
    value = info_nce(*tensors, torch.tensor(barred), 2.0)
    assert value.item() == pytest.approx(reference(anchors, keys))
    for k, gradient in enumerate(torch.autograd.grad(value, tensors)):
        for place in np.ndindex(5, 3):
            moved = [anchors.copy(), keys.copy()]
            moved[k][place] += 1e-6
            above = reference(*moved)
            moved[k][place] -= 2e-6
            assert gradient[place].item() == pytest.approx((above - reference(*moved)) / 2e-6, rel=1e-5, abs=1e-8)


def test_block_loss_is_the_mean_square_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    p, s, target = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(3, 5))
    expected = np.mean([(p[i] @ s[j] - target[i, j]) ** 2 for i in range(3) for j in range(5)])
    assert block_loss(*(torch.tensor(x) for x in (p, s, target))).item() == pytest.approx(expected)


def test_factors_are_near_one_where_there_is_an_entry() -> None:
    _, playlists, _, _ = world()
    of_playlists, of_tracks = factorise(playlists, 16, threads=1)
    assert of_playlists.shape == (240, 16)
    scores = of_playlists @ of_tracks.T
    entry = playlists.toarray() > 0
    assert scores[entry].mean() > 0.8
    assert scores[~entry].mean() < 0.2
    assert all(
        np.array_equal(a, b)
        for a, b in zip(factorise(playlists, 16, threads=1), (of_playlists, of_tracks), strict=True)
    )


def test_interactions_leave_out_what_says_nothing() -> None:
    matrix = sparse.csr_array(np.array([[1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]]))
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    vectors[3] = np.nan
    found = Interactions.of(matrix, vectors)
    assert found.tracks.tolist() == [0, 1, 2]
    assert found.matrix.toarray().tolist() == [[1, 1, 0], [1, 0, 1]]
    assert found.means.tolist() == [[1, 2], [2, 3]]
    assert list(zip(found.playlist.tolist(), found.track.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 2)]
    with pytest.raises(RecommenderError, match="needs two of each"):
        Interactions.of(matrix[:1], vectors)
    with pytest.raises(RecommenderError, match="a column for each row"):
        Interactions.of(matrix, vectors[:2])


def test_scale_centres_and_keeps_proportions() -> None:
    rows = np.random.default_rng(2).normal(3, 0.1, (50, 4)).astype(np.float32)
    scaled = Scale.of(rows)(rows)
    assert np.abs(scaled.mean(0)).max() < 1e-4
    assert (scaled**2).mean() == pytest.approx(1, rel=1e-3)
    assert np.isfinite(Scale.of(np.ones((3, 2), np.float32))(np.ones((3, 2), np.float32))).all()


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"batch": 1}, {"hidden": ()}, {"l2": -1.0}, {"temperature": 0.0}, {"replaced": 2.0}]
)
def test_settings_name_their_mistakes(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClcRecConfig(**wrong)
