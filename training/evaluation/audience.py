"""Audience: who should hear a cold track? All its listeners are hidden, then all listeners are ranked.

Recall@K = hits/|U_i|; AUC; lift over random push at a reach r (share of all listeners): Recall@(rU) / r.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.evaluation.metrics import Scores, auc, blocks, recall, top_k
from training.evaluation.results import Evaluation, EvaluationError, summarise

Scorer = Callable[[NDArray[np.int64]], NDArray[np.floating]]
"""(cold track rows [Q]) -> scores over all listeners [Q, U], greater is better."""


@dataclass(frozen=True)
class AudienceProtocol:
    """cuts: the K of Recall@K; reaches: shares of the listeners to push to; seed: of the order among ties."""

    cuts: tuple[int, ...] = (100,)
    reaches: tuple[float, ...] = (0.01, 0.05, 0.10)
    seed: int = 45


def evaluate_audience(
    methods: Mapping[str, Scorer],
    listens: sparse.csr_array,
    cold: NDArray[np.int64],
    protocol: AudienceProtocol,
) -> Evaluation:
    """Rank all listeners for every cold track that some of them heard.

    `listens` 0/1 [listeners, tracks] holds ALL listens and is the truth; the scorers must have seen only
    those of warm tracks. Raises EvaluationError when no cold track was heard, or on a scorer's wrong shape or
    NaN.
    """
    heard = sparse.csr_array(listens.T)[np.asarray(cold, np.int64)]
    sizes = np.diff(heard.indptr)
    told = (sizes > 0) & (sizes < listens.shape[0])  # where all or none listen there is nothing to rank
    queries, heard, sizes = np.asarray(cold, np.int64)[told], heard[told], sizes[told]
    if not len(queries):
        raise EvaluationError(
            f"none of {len(cold)} cold tracks was heard by some listeners and not by others: no truth",
            code="no_audience_truth",
        )
    listeners = listens.shape[0]
    results = []
    for name, scorer in methods.items():
        rng, parts = np.random.default_rng(protocol.seed), []
        for block in blocks(len(queries), listeners):
            scores, truth = np.asarray(scorer(queries[block])), heard[block].toarray() > 0
            if scores.shape != truth.shape or np.isnan(scores).any():
                raise EvaluationError(f"{name!r} must score {truth.shape} without NaN; it gave {scores.shape}")
            parts.append(_figures(scores, truth, protocol, rng))
        results.append(summarise(name, {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}))
    expected = {f"R@{k}": min(k, listeners) / listeners for k in protocol.cuts} | {"AUC": 0.5}
    best = {f"R@{k}": float(np.mean(np.minimum(k, sizes) / sizes)) for k in protocol.cuts} | {"AUC": 1.0}
    for reach in protocol.reaches:
        pushed = _pushed(reach, listeners)
        expected[_lift(reach)] = 1.0
        best[_lift(reach)] = float(np.mean(np.minimum(pushed, sizes) / sizes) * listeners / pushed)
    facts = {"cuts": protocol.cuts, "reaches": protocol.reaches, "listeners": listeners}
    return Evaluation("audience", facts, len(queries), expected, best, results)


def _figures(
    scores: Scores, truth: NDArray[np.bool_], protocol: AudienceProtocol, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    listeners = truth.shape[1]
    places = [*protocol.cuts, *(_pushed(reach, listeners) for reach in protocol.reaches)]
    hits = np.take_along_axis(truth, top_k(scores, max(places), rng), 1)
    sizes = truth.sum(1)
    out = {f"R@{k}": recall(hits[:, :k], sizes) for k in protocol.cuts}
    out["AUC"] = auc(scores, truth)
    for reach in protocol.reaches:
        pushed = _pushed(reach, listeners)
        out[_lift(reach)] = recall(hits[:, :pushed], sizes) * listeners / pushed
    return out


def _pushed(reach: float, listeners: int) -> int:
    return max(1, round(reach * listeners))


def _lift(reach: float) -> str:
    return f"lift@{100 * reach:g}%"
