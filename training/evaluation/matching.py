"""Matching: does a cold track find the warm tracks that share its audience? (BCL's offline task)

Query: a cold track, content only. Candidates: warm tracks. Truth: the query's top ItemCF neighbours on all
listens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.bcl.similarity import Neighbours, item_cf, listen_matrix
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.evaluation.metrics import blocks, ceiling, chance, ranking
from training.evaluation.results import Evaluation, EvaluationError, summarise
from training.evaluation.vectors import Vectors, filled, similarity

Scorer = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.floating]]
"""(query track rows [Q], candidate track rows [C]) -> scores [Q, C], greater is better."""

PRIOR_WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.3)


@dataclass(frozen=True)
class MatchingProtocol:
    """cuts: the K of the figures; truth: neighbours a query at most; min_common: listeners a pair must share;
    tie_draws: orders of equal scores that are averaged; seed: of those orders.
    """

    cuts: tuple[int, ...] = (10, 20, 50)
    truth: int = 20
    min_common: int = 2
    tie_draws: int = 1
    seed: int = 45


@dataclass(frozen=True)
class MatchingTask:
    """Queries [Q] (rows of cold tracks with a truth), candidates [C] (rows of warm ones), truth by query."""

    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    truth: Neighbours
    protocol: MatchingProtocol


def matching_task(
    listens: sparse.csr_array, cold: NDArray[np.int64], warm: NDArray[np.int64], protocol: MatchingProtocol
) -> MatchingTask:
    """Set the task from ALL listens (0/1 [listeners, tracks]); cold tracks without any neighbour are left
    out.

    Raises EvaluationError when no cold track has one.
    """
    cold = np.asarray(cold, np.int64)
    found = item_cf(listens, cold, warm, top=protocol.truth, min_common=protocol.min_common)
    counts = np.diff(found.indptr)
    if not found.indptr[-1]:
        raise EvaluationError(
            f"none of {len(cold)} cold tracks shares {protocol.min_common} listeners with a warm one",
            code="no_matching_truth",
        )
    indptr = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    truth = Neighbours(indptr, found.rows, found.scores)
    return MatchingTask(cold[counts > 0], np.sort(np.asarray(warm, np.int64)), truth, protocol)


def inner_product(vectors: Vectors) -> Scorer:
    """Return the scorer query . candidate for unit `vectors` [N, d], dense (NaN where missing) or sparse."""
    return lambda queries, candidates: similarity(filled(vectors[queries]), vectors, candidates)


def evaluate_matching(methods: Mapping[str, Scorer], task: MatchingTask) -> Evaluation:
    """Rank the candidates of every query by every method. Raises EvaluationError on a wrong shape or NaN."""
    results = []
    sizes = np.diff(task.truth.indptr)
    for name, scorer in methods.items():
        rng, parts = np.random.default_rng(task.protocol.seed), []
        for block in blocks(len(task.queries), len(task.candidates)):
            scores = np.asarray(scorer(task.queries[block], task.candidates))
            truth = _truth(task, block)
            if scores.shape != truth.shape or np.isnan(scores).any():
                raise EvaluationError(f"{name!r} must score {truth.shape} without NaN; it gave {scores.shape}")
            parts.append(ranking(scores, truth, task.protocol.cuts, rng, task.protocol.tie_draws))
        results.append(summarise(name, {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}))
    return Evaluation(
        "matching",
        {"cuts": task.protocol.cuts, "truth": task.protocol.truth, "candidates": len(task.candidates)},
        len(task.queries),
        chance(sizes, np.full(len(sizes), len(task.candidates)), task.protocol.cuts),
        ceiling(sizes, task.protocol.cuts),
        results,
    )


def prior_weight(
    scorer: Scorer, warm: sparse.csr_array, task: MatchingTask, weights: Sequence[float] = PRIOR_WEIGHTS
) -> float:
    """Return the weight of ln(1 + listeners in `warm`) that, added to `scorer`, does best on `task`: Recall at
    its largest cut, ties to the smaller weight.

    Choose it on validation tracks: their truth on listens without those of test tracks.
    """
    prior, cut = np.log1p(np.asarray(warm.sum(0)).ravel())[task.candidates], max(task.protocol.cuts)
    orders = [np.random.default_rng(task.protocol.seed) for _ in weights]
    found = np.zeros(len(weights))
    for block in blocks(len(task.queries), len(task.candidates)):
        scores, truth = np.asarray(scorer(task.queries[block], task.candidates)), _truth(task, block)
        for n, (weight, rng) in enumerate(zip(weights, orders, strict=True)):
            figures = ranking(scores + weight * prior, truth, (cut,), rng, task.protocol.tie_draws)
            found[n] += figures[f"R@{cut}"].sum()
    return weights[int(np.argmax(found))]


@dataclass(frozen=True)
class MatchingTasks:
    """A data set's cold tracks as tasks, and what a method may know of popularity.

    test: test queries, truth on all listens. valid: validation queries, truth on listens without those of test tracks;
    None where they have none. warm: the listens of training tracks, 0/1 [listeners, tracks]. listeners: of each test
    query on all listens, f64 [Q].
    """

    test: MatchingTask
    valid: MatchingTask | None
    warm: sparse.csr_array
    listeners: NDArray[np.float64]

    @classmethod
    def of(cls, dataset: DataSet, protocol: MatchingProtocol) -> "MatchingTasks":
        """Set both tasks. Raises EvaluationError without listens, or when no test track has a truth."""
        listens, split = dataset.listens, dataset.track_split
        if listens is None:
            raise EvaluationError("the data set has no listens.parquet: matching is not measured", code="no_listens")
        shape = (len(listens.listener_ids), len(dataset.tracks))

        def heard(*parts: int) -> sparse.csr_array:
            return listen_matrix(listens.listener, listens.row, shape, np.isin(split, parts))

        cold, held_back, warm = (np.flatnonzero(split == part) for part in (TEST, VALID, TRAIN))
        full = heard(TRAIN, VALID, TEST)
        test = matching_task(full, cold, warm, protocol)
        try:
            valid = matching_task(heard(TRAIN, VALID), held_back, warm, protocol)
        except EvaluationError:
            valid = None
        return cls(test, valid, heard(TRAIN), np.asarray(full.sum(0)).ravel()[test.queries])

    def prior_weight(self, scorer: Scorer) -> float | None:
        """Return the weight that validation tracks choose; None where none has a truth."""
        return prior_weight(scorer, self.warm, self.valid) if self.valid else None


def _truth(task: MatchingTask, block: slice) -> NDArray[np.bool_]:
    truth = np.zeros((block.stop - block.start, len(task.candidates)), bool)
    for row, query in enumerate(range(block.start, block.stop)):
        truth[row, np.searchsorted(task.candidates, task.truth.of(query))] = True
    return truth
