"""Recall, NDCG, AUC and lift of rankings, one value a query."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Scores = NDArray[np.floating]
_BLOCK = 1 << 23  # scores held at once


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of `rows` queries whose score matrices with `columns` candidates fit in memory."""
    step = max(1, _BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def comparable(scores: Scores) -> NDArray[np.float32]:
    """Round to float32: equal sums taken in another order are ties, not an accident of the processor."""
    return np.asarray(scores, np.float32)


def top_k(scores: Scores, k: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the columns of the k best scores of each row, best first: [rows, min(k, columns)].

    Ties fall in random order (the columns are shuffled first): neither the order of the catalogue nor that of
    the truth can lift a method that knows nothing.
    """
    order = rng.permutation(scores.shape[1])
    shuffled = -comparable(scores)[:, order]
    columns = scores.shape[1]
    k = min(k, columns)
    whole = np.broadcast_to(np.arange(columns), scores.shape)
    best = np.argpartition(shuffled, k, axis=1)[:, :k] if k < columns else whole
    within = np.argsort(np.take_along_axis(shuffled, best, 1), axis=1)
    return order[np.take_along_axis(best, within, 1)]


def gains(k: int) -> NDArray[np.float64]:
    """Return 1/log2(rank+1) of ranks 1..k."""
    return 1 / np.log2(np.arange(2, k + 2))


def recall(hits: NDArray[np.bool_], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return hits/|truth| of each row: `hits` bool [rows, K], `truth` sizes [rows]; not min(K, |truth|)."""
    return np.asarray(hits.sum(1) / truth, np.float64)


def ndcg(hits: NDArray[np.bool_], truth: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return binary NDCG@k of each row: the ideal list has min(k, |truth|) hits."""
    ideal = np.cumsum(gains(k))[np.minimum(k, truth) - 1]
    return np.asarray(hits @ gains(k)[: hits.shape[1]] / ideal, np.float64)


def ranking(
    scores: Scores,
    truth: NDArray[np.bool_],
    cuts: Sequence[int],
    rng: np.random.Generator,
    tie_draws: int = 1,
) -> dict[str, NDArray[np.float64]]:
    """Return {"R@K": [rows], "N@K": [rows]} for each K in `cuts`, averaged over `tie_draws` orders of the
    ties.

    `scores` [rows, columns] with -inf for what is no candidate; `truth` bool of the same shape, no row empty.
    """
    sizes = truth.sum(1)
    out = {f"{letter}@{k}": np.zeros(len(scores)) for k in cuts for letter in "RN"}
    for _ in range(tie_draws):
        hits = np.take_along_axis(truth, top_k(scores, max(cuts), rng), 1)
        for k in cuts:
            out[f"R@{k}"] += recall(hits[:, :k], sizes) / tie_draws
            out[f"N@{k}"] += ndcg(hits[:, :k], sizes, k) / tie_draws
    return out


def chance(sizes: NDArray[np.int64], candidates: NDArray[np.int64], cuts: Sequence[int]) -> dict[str, float]:
    """Return the expected figures of a random order, from truth sizes and candidate numbers [queries]."""
    out = {}
    for k in cuts:
        hit = sizes / candidates
        shown = np.minimum(k, candidates)
        gained = np.cumsum(gains(k))
        out[f"R@{k}"] = float(np.mean(shown / candidates))
        out[f"N@{k}"] = float(np.mean(hit * gained[shown - 1] / gained[np.minimum(k, sizes) - 1]))
    return out


def ceiling(sizes: NDArray[np.int64], cuts: Sequence[int]) -> dict[str, float]:
    """Return the best figures that any order can reach: K places cannot hold more than K hits."""
    best = {f"R@{k}": float(np.mean(np.minimum(k, sizes) / sizes)) for k in cuts}
    return best | {f"N@{k}": 1.0 for k in cuts}


def auc(scores: Scores, truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each row's chance that a true column scores above a false one, ties counting half
    (Mann-Whitney).

    NaN where a row has no true or no false column.
    """
    ranks = rankdata(comparable(scores), axis=1)
    true = truth.sum(1).astype(np.float64)
    false = truth.shape[1] - true
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((ranks * truth).sum(1) - true * (true + 1) / 2) / (true * false), np.float64)
