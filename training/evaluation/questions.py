"""What else is asked of a continuation: other artists, new artists, other counts of seeds, kinds of playlists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from training.data.dataset import TEST, TRAIN, DataSet
from training.evaluation import baselines
from training.evaluation.continuation import (
    ContinuationProtocol,
    ContinuationQuery,
    Scorer,
    draw_queries,
    evaluate_continuation,
    other_labels,
)
from training.evaluation.results import Evaluation, EvaluationError

ARTISTS = "track_artists.parquet"


@dataclass(frozen=True)
class Questions:
    """Which of them are asked, each a table of its own.

    other_artists: tracks that share an artist with a seed are no candidates and no truth. new_artists: candidates and
    playlists are the test tracks whose artists have no training track. seeds: given tracks of each playlist, for each
    count a table. homogeneity: thirds of the playlists by how alike their tracks are.
    """

    other_artists: bool = True
    new_artists: bool = True
    seeds: tuple[int, ...] = ()
    homogeneity: bool = False


def artist_labels(dataset: DataSet) -> sparse.csr_array:
    """Return the tracks' artists, [N, A], 1 where a track has an artist.

    From the optional track_artists.parquet (track_id, artist_id) of the data set directory, since several names in one
    string cannot be told apart; without it, the whole string is the artist.
    """
    path = dataset.root / ARTISTS
    return _read(path, dataset) if path.is_file() else baselines.same_artist(dataset.tracks)


def _read(path: Path, dataset: DataSet) -> sparse.csr_array:
    try:
        table = pq.read_table(path, columns=["track_id", "artist_id"]).to_pydict()
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{path} needs the columns track_id and artist_id: {error}") from error
    pairs = [
        (row, artist)
        for track, artist in zip(table["track_id"], table["artist_id"], strict=True)
        if artist is not None and (row := dataset.row_of.get(track)) is not None
    ]
    column = {artist: k for k, artist in enumerate(dict.fromkeys(artist for _, artist in pairs))}
    rows, columns = [row for row, _ in pairs], [column[artist] for _, artist in pairs]
    shape = (len(dataset.tracks), max(1, len(column)))
    found = sparse.csr_array((np.ones(len(pairs)), (rows, columns)), shape=shape)
    found.data[:] = 1.0
    return found


def of_other_artists(
    dataset: DataSet,
    methods: Mapping[str, Scorer],
    queries: Sequence[ContinuationQuery],
    protocol: ContinuationProtocol,
) -> Evaluation:
    """What is known beyond the artist's name. Raises EvaluationError where nothing is left to find."""
    left = other_labels(queries, artist_labels(dataset))
    if not left:
        raise EvaluationError("other artists: every test playlist's truth shares its seeds' artists")
    candidates = np.flatnonzero(dataset.track_split == TEST)
    return _named("continuation, other artists", evaluate_continuation(methods, left, candidates, protocol))


def of_new_artists(dataset: DataSet, methods: Mapping[str, Scorer], protocol: ContinuationProtocol) -> Evaluation:
    """The artist-disjoint split: no test artist is known from training. Raises EvaluationError without playlists."""
    labels = artist_labels(dataset)
    known = np.asarray(labels[dataset.track_split == TRAIN].sum(0)).ravel() > 0
    met = np.asarray(labels @ known.astype(np.float64)).ravel() > 0
    candidates = (dataset.track_split == TEST) & ~met
    found = evaluate_continuation(
        methods, _queries(dataset, candidates, protocol), np.flatnonzero(candidates), protocol
    )
    return _named("continuation, artists without training tracks", found)


def by_seeds(dataset: DataSet, methods: Mapping[str, Scorer], count: int, protocol: ContinuationProtocol) -> Evaluation:
    """Continuation from `count` given tracks. Raises EvaluationError where no playlist is longer."""
    given = replace(protocol, seeds=count)
    candidates = dataset.track_split == TEST
    found = evaluate_continuation(methods, _queries(dataset, candidates, given), np.flatnonzero(candidates), given)
    return _named(f"continuation from {count} {'seed' if count == 1 else 'seeds'}", found)


def by_homogeneity(
    dataset: DataSet,
    methods: Mapping[str, Scorer],
    vectors: NDArray[np.float32],
    queries: Sequence[ContinuationQuery],
    protocol: ContinuationProtocol,
) -> list[Evaluation]:
    """Thirds of the queries by the mean cosine of their playlist's tracks, the least alike first."""
    alike = homogeneity(vectors, queries)
    third = np.digitize(alike, np.quantile(alike, [1 / 3, 2 / 3]))
    candidates = np.flatnonzero(dataset.track_split == TEST)
    out = []
    for number, name in enumerate(("least alike", "middle", "most alike")):
        chosen = [query for query, its in zip(queries, third, strict=True) if its == number]
        if chosen:
            found = evaluate_continuation(methods, chosen, candidates, protocol)
            out.append(_named(f"continuation, playlists whose tracks are {name}", found))
    return out


def homogeneity(vectors: NDArray[np.float32], queries: Sequence[ContinuationQuery]) -> NDArray[np.float64]:
    """Return the mean cosine of all pairs of a playlist's tracks, f64 [Q] (Homo. of the paper's Table 1)."""
    out = np.zeros(len(queries))
    for k, query in enumerate(queries):
        inside = vectors[np.concatenate([query.seeds, query.truth])].astype(np.float64)
        inside = inside[~np.isnan(inside).any(1)]
        count = len(inside)
        if count > 1:
            out[k] = ((inside.sum(0) ** 2).sum() - (inside**2).sum()) / (count * (count - 1))
    return out


def _queries(
    dataset: DataSet, candidates: NDArray[np.bool_], protocol: ContinuationProtocol
) -> list[ContinuationQuery]:
    ids = [track.track_id for track in dataset.tracks]
    return draw_queries(dataset.playlists, dataset.playlist_split == TEST, ids, candidates, protocol)


def _named(task: str, found: Evaluation) -> Evaluation:
    return replace(found, task=task)
