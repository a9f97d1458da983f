"""The further questions of the continuation against plain loops over sets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.tracks.track import Track
from training.data.dataset import TEST, TRAIN, DataSet
from training.data.writing import write_dataset
from training.evaluate import test_queries as draw_test_queries
from training.evaluation import baselines
from training.evaluation.continuation import ContinuationProtocol, mean_of_seeds
from training.evaluation.questions import (
    artist_labels,
    by_homogeneity,
    by_seeds,
    homogeneity,
    of_new_artists,
    of_other_artists,
)
from training.evaluation.results import EvaluationError

PROTOCOL = ContinuationProtocol(cuts=(5,), tie_draws=2)
SEED = 11


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """300 tracks by 40 artists, half of them test; 60 playlists of test tracks of a few artists each."""
    root, rng = tmp_path_factory.mktemp("questions"), np.random.default_rng(SEED)
    print("seed", SEED)
    tracks = [Track(f"t{k:03}", title=f"Song {k}", artist=f"Artist {rng.integers(40)}") for k in range(300)]
    split = {("track", t.track_id): "test" if k % 2 else "train" for k, t in enumerate(tracks)}
    lists = {f"p{k}": [f"t{2 * n + 1:03}" for n in rng.choice(150, 12, replace=False)] for k in range(60)}
    split |= {("playlist", name): "test" for name in lists}
    write_dataset(root, tracks, playlists=lists, splits=split)
    return DataSet.open(root)


def scorers(dataset: DataSet) -> dict:
    return {
        "same artist": mean_of_seeds(baselines.same_artist(dataset.tracks)),
        "random": baselines.random_continuation(),
    }


def test_other_artists_bars_every_artist_of_the_seeds(dataset: DataSet) -> None:
    queries = draw_test_queries(dataset, PROTOCOL)
    found = of_other_artists(dataset, scorers(dataset), queries, PROTOCOL)
    left = 0
    for query in queries:
        used = {dataset.tracks[row].artist for row in query.seeds}
        left += any(dataset.tracks[row].artist not in used for row in query.truth)
    assert found.task == "continuation, other artists"
    assert found.queries == left
    # The artist's name says nothing about other artists: no better than chance.
    same, random = (found.method(name).figures["R@5"] for name in ("same artist", "random"))
    assert same.low <= random.high


def test_new_artists_are_those_without_training_tracks(dataset: DataSet) -> None:
    known = {f"Artist {k}" for k in range(20)}
    split = dataset.track_split.copy()
    for row, track in enumerate(dataset.tracks):
        if split[row] == TRAIN and track.artist not in known:
            split[row] = 1
    fewer = replace(dataset, track_split=split)
    met = {t.artist for row, t in enumerate(fewer.tracks) if split[row] == TRAIN}
    fresh = [row for row, t in enumerate(fewer.tracks) if split[row] == TEST and t.artist not in met]
    found = of_new_artists(fewer, scorers(fewer), PROTOCOL)
    assert found.protocol["candidates"] == len(fresh)
    inside = set(fresh)
    members = [set(fewer.playlists.tracks(p)) & inside for p in range(60)]
    assert found.queries == sum(len(rows) >= 2 for rows in members)


@pytest.mark.parametrize("count", [1, 4, 10])
def test_as_many_seeds_as_asked_for(dataset: DataSet, count: int) -> None:
    found = by_seeds(dataset, scorers(dataset), count, PROTOCOL)
    assert found.task == f"continuation from {count} seed{'' if count == 1 else 's'}"
    assert found.protocol["seeds"] == count
    assert found.queries == 60
    assert found.ceiling["R@5"] == pytest.approx(min(1.0, 5 / (12 - count)))


def test_too_many_seeds_are_an_error(dataset: DataSet) -> None:
    with pytest.raises(EvaluationError, match="13 or more"):
        by_seeds(dataset, scorers(dataset), 12, PROTOCOL)


def test_homogeneity_is_the_mean_cosine_of_pairs(dataset: DataSet) -> None:
    vectors = np.random.default_rng(3).normal(size=(300, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[::7] = np.nan
    queries = draw_test_queries(dataset, PROTOCOL)[:5]
    for query, found in zip(queries, homogeneity(vectors, queries), strict=True):
        rows = [row for row in [*query.seeds, *query.truth] if not np.isnan(vectors[row]).any()]
        cosines = [float(vectors[a] @ vectors[b]) for k, a in enumerate(rows) for b in rows[k + 1 :]]
        assert found == pytest.approx(np.mean(cosines), abs=1e-6)
    thirds = by_homogeneity(dataset, scorers(dataset), vectors, draw_test_queries(dataset, PROTOCOL), PROTOCOL)
    assert [table.queries for table in thirds] == [20, 20, 20]


def test_artists_come_from_their_own_table_where_there_is_one(dataset: DataSet, tmp_path: Path) -> None:
    whole = artist_labels(dataset)
    assert (whole.sum(1) == 1).all()
    rows = {"track_id": ["t000", "t000", "t001", "gone"], "artist_id": ["a", "b", "b", "a"]}
    pq.write_table(pa.table(rows), tmp_path / "track_artists.parquet")
    labels = artist_labels(replace(dataset, root=tmp_path)).toarray()
    assert labels.shape == (300, 2)
    assert labels[0].tolist() == [1, 1]
    assert labels[1].tolist() == [0, 1]
    assert labels[2:].sum() == 0
    pq.write_table(pa.table({"track": ["t000"]}), tmp_path / "track_artists.parquet")
    with pytest.raises(EvaluationError, match="track_id and artist_id"):
        artist_labels(replace(dataset, root=tmp_path))
