"""Playlist continuation in strict cold start (LARP, section 4): half of a test playlist finds the other half.

Seeds of a test playlist: the first round(n/2) of its test tracks in random order, or q of them; the rest is
the truth. Candidates: all test tracks but the seeds. Recall@K = hits/|truth|; NDCG@K binary; mean over
playlists.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.evaluation.metrics import blocks, ceiling, chance, ranking
from training.evaluation.results import Evaluation, EvaluationError, summarise
from training.evaluation.vectors import Vectors, filled, similarity

Scorer = Callable[[Sequence[NDArray[np.int64]], NDArray[np.int64]], NDArray[np.floating]]
"""(seed rows of each of Q queries, candidate rows [C]) -> scores [Q, C], greater is better."""

Transform = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""Rows of vectors [n, d] -> [n, k]; a row with NaN (missing) stays one."""


class PlaylistLists(Protocol):
    """What is read of a data set's playlists: their ids and their track rows in CSR form."""

    ids: Sequence[str]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class ContinuationProtocol:
    """How the test is set.

    seeds: number of seed tracks; None is the paper's round(n/2).
    cuts: the K of Recall@K and NDCG@K.
    min_tracks: playlists with fewer test tracks are left out.
    repeats: draws of seeds a playlist, averaged before the bootstrap (the paper: 1; few test playlists want
    more). tie_draws: orders of equal scores that are averaged. seed: of the generator that draws the seeds.
    """

    seeds: int | None = None
    cuts: tuple[int, ...] = (10, 20, 40)
    min_tracks: int = 2
    repeats: int = 1
    tie_draws: int = 1
    seed: int = 45

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if min(self.repeats, self.tie_draws, *self.cuts) < 1 or self.min_tracks < 2:
            raise ValueError("repeats, tie_draws and cuts must be at least 1, min_tracks at least 2")


@dataclass(frozen=True)
class ContinuationQuery:
    """One draw from one playlist: rows of seeds, of truth, and of other tracks that are no candidates."""

    playlist: str
    seeds: NDArray[np.int64]
    truth: NDArray[np.int64]
    barred: NDArray[np.int64]


def draw_queries(
    playlists: PlaylistLists,
    chosen: NDArray[np.bool_],
    track_ids: Sequence[str],
    candidates: NDArray[np.bool_],
    protocol: ContinuationProtocol,
) -> list[ContinuationQuery]:
    """Draw seeds and truth for the `chosen` playlists [P] from their tracks among `candidates` [N].

    One generator serves all playlists in order of their id, each playlist's tracks in order of theirs, so the
    draw does not depend on the order of the files. Raises EvaluationError when no playlist has enough tracks.
    """
    rng = np.random.default_rng(protocol.seed)
    order = sorted(np.flatnonzero(chosen), key=lambda p: playlists.ids[p])
    least = max(protocol.min_tracks, (protocol.seeds or 0) + 1)
    queries = []
    for _ in range(protocol.repeats):
        for p in order:
            rows = np.unique(playlists.rows[playlists.indptr[p] : playlists.indptr[p + 1]])
            rows = np.array(sorted(rows[candidates[rows]], key=lambda row: track_ids[row]), np.int64)
            if len(rows) >= least:
                rows = rows[rng.permutation(len(rows))]
                n = protocol.seeds or round(len(rows) / 2)
                queries.append(ContinuationQuery(playlists.ids[p], rows[:n], rows[n:], np.empty(0, np.int64)))
    if not queries:
        raise EvaluationError(
            f"none of the {len(order)} test playlists has {least} or more test tracks: nothing to continue",
            code="no_test_playlists",
        )
    return queries


def other_labels(queries: Sequence[ContinuationQuery], labels: sparse.csr_array) -> list[ContinuationQuery]:
    """Bar all tracks that share a label with a seed, as candidates and as truth; queries left without truth
    go.

    `labels` [N, L], non-zero where a track has the label. With artists as labels this asks what is known
    beyond the artist's name.
    """
    out = []
    for query in queries:
        used = np.asarray(labels[query.seeds].sum(0)).ravel() > 0
        shares = np.asarray(labels @ used.astype(np.float64)).ravel() > 0
        truth = query.truth[~shares[query.truth]]
        if len(truth):
            barred = np.union1d(query.barred, np.flatnonzero(shares)).astype(np.int64)
            out.append(replace(query, truth=truth, barred=barred))
    return out


def mean_of_seeds(vectors: Vectors, *, playlists: Transform | None = None, tracks: Transform | None = None) -> Scorer:
    """Return the scorer of Eq. 26: mean of the seeds' vectors . the candidate's vector.

    `vectors` [N, d], unit rows, dense (NaN where missing) or sparse. Missing seeds are left out of the mean
    (with none left all candidates tie), missing candidates come last. A recommender gives `playlists`, which maps
    the means f32 [q, d] -> [q, k] (Eq. 28, 30), and `tracks`, which maps vectors f32 [n, d] -> [n, k] of `vectors`
    that are dense.
    """

    def score(seeds: Sequence[NDArray[np.int64]], candidates: NDArray[np.int64]) -> NDArray[np.floating]:
        means, some = seed_means(vectors, seeds)
        offered = vectors[candidates]
        if tracks is not None:
            offered = np.asarray(tracks(np.asarray(offered, np.float32)))
        if playlists is not None:
            means = np.where(some[:, None], playlists(np.asarray(means, np.float32)), 0.0).astype(np.float64)
        return similarity(means, offered, np.arange(len(candidates)))

    return score


def seed_means(vectors: Vectors, seeds: Sequence[NDArray[np.int64]]) -> tuple[Vectors, NDArray[np.bool_]]:
    """Return the mean of each query's known seed vectors (Eq. 12), float64 [Q, d], and whether it had any, bool [Q].

    Where it had none the mean is zero.
    """
    rows, sizes = np.concatenate(seeds), np.array([len(s) for s in seeds])
    usable = filled(vectors[rows])
    query = np.repeat(np.arange(len(seeds)), sizes)
    some = np.ones(len(rows)) if sparse.issparse(usable) else np.any(usable != 0, axis=1).astype(np.float64)
    count = np.bincount(query, some, len(seeds))
    weight = some / np.maximum(count, 1)[query]
    mean = sparse.csr_array((weight, (query, np.arange(len(rows)))), shape=(len(seeds), len(rows)))
    return mean @ usable, count > 0


def evaluate_continuation(
    methods: Mapping[str, Scorer],
    queries: Sequence[ContinuationQuery],
    candidates: NDArray[np.int64],
    protocol: ContinuationProtocol,
    *,
    groups: Mapping[str, str] | None = None,
) -> Evaluation:
    """Rank `candidates` (rows [C]: all test tracks) for every query by every method.

    `groups` maps a playlist id to what the bootstrap draws as one (the parent of a playlist's several
    states). Raises EvaluationError when a scorer answers with the wrong shape or NaN.
    """
    candidates = np.asarray(candidates, np.int64)
    column = np.full(1 + max(int(candidates.max()), *(int(q.truth.max()) for q in queries)), -1)
    column[candidates] = np.arange(len(candidates))
    sizes = np.array([len(q.truth) for q in queries])
    barred = [_columns(column, np.union1d(q.seeds, q.barred)) for q in queries]
    if any((column[q.truth] < 0).any() for q in queries):
        raise EvaluationError(
            "a query's truth holds tracks that are no candidates: draw the queries from the candidates"
        )
    playlists = list(dict.fromkeys(q.playlist for q in queries))
    units = [groups[p] for p in playlists] if groups is not None else None
    results = []
    for name, scorer in methods.items():
        rng, parts = np.random.default_rng(0), []
        for block in blocks(len(queries), len(candidates)):
            scores = _checked(
                name, scorer([q.seeds for q in queries[block]], candidates), len(queries[block]), candidates
            )
            truth = np.zeros(scores.shape, bool)
            for row, query in enumerate(queries[block]):
                scores[row, barred[block][row]] = -np.inf
                truth[row, column[query.truth]] = True
            parts.append(ranking(scores, truth, protocol.cuts, rng, protocol.tie_draws))
        figures = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        results.append(summarise(name, _by_playlist(figures, queries, playlists), units))
    left = len(candidates) - np.array([len(b) for b in barred])
    return Evaluation(
        "continuation",
        asdict(protocol) | {"candidates": len(candidates)},
        len(playlists),
        chance(sizes, left, protocol.cuts),
        ceiling(sizes, protocol.cuts),
        results,
        units,
    )


def _columns(column: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    inside = column[rows[rows < len(column)]]
    return inside[inside >= 0]


def _checked(name: str, scores: NDArray[np.floating], rows: int, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    if scores.shape != (rows, len(candidates)) or np.isnan(scores).any():
        raise EvaluationError(f"{name!r} must score [{rows}, {len(candidates)}] without NaN; it gave {scores.shape}")
    return np.array(scores, np.float64)


def _by_playlist(
    figures: Mapping[str, NDArray[np.float64]], queries: Sequence[ContinuationQuery], playlists: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    place = {playlist: i for i, playlist in enumerate(playlists)}
    of = np.array([place[q.playlist] for q in queries])
    count = np.bincount(of, minlength=len(playlists))
    return {key: np.bincount(of, values, len(playlists)) / count for key, values in figures.items()}
