"""What a sampled softmax compares: the step's positives and a uniform pool, each with the chance of being there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.bcl.supervision import ItemPairs


@dataclass(frozen=True)
class Candidates:
    """One step's candidates: track rows [C], each once; the positives' columns [B]; what is no negative, bool
    [B, C]; and log q of each candidate, f32 [C].
    """

    rows: NDArray[np.int64]
    target: NDArray[np.int64]
    left_out: NDArray[np.bool_]
    log_share: NDArray[np.float32]


class CandidatePool:
    """Makes the candidates of a step from `pairs`, `batch` pairs and `pool` uniform tracks a step.

    In-batch positives are the hard negatives, what is heard often; the uniform pool reaches the whole catalogue.
    """

    def __init__(self, pairs: ItemPairs, batch: int, pool: int) -> None:
        near = pairs.neighbours
        degree = np.diff(near.indptr)
        size = 1 + max(int(near.rows.max()), int(pairs.anchors.max()), int(pairs.negatives.max()))
        expected = batch * np.bincount(near.rows, np.repeat(pairs.share / degree, degree), size)
        expected[pairs.negatives] += pool / len(pairs.negatives)
        self.log_share = np.log(-np.expm1(-np.maximum(expected, 1e-12))).astype(np.float32)
        self.place = np.full(size, -1)
        self.place[pairs.anchors] = np.arange(len(pairs.anchors))
        # The neighbours of each anchor and the anchor itself, short rows filled with the anchor.
        self.related = np.repeat(pairs.anchors[:, None], 1 + int(degree.max()), 1)
        column = np.arange(len(near.rows)) - np.repeat(near.indptr[:-1], degree)
        self.related[np.repeat(np.arange(len(degree)), degree), column] = near.rows

    def of(self, anchor: NDArray[np.int64], positive: NDArray[np.int64], pool: NDArray[np.int64]) -> Candidates:
        """Return the candidates of the pairs (`anchor`, `positive`) [B], rows `pool` [P] among them.

        An anchor and its other neighbours are not its negatives.
        """
        rows = np.unique(np.concatenate([positive, pool]))
        related = self.related[self.place[anchor]]
        column = np.minimum(np.searchsorted(rows, related), len(rows) - 1)
        b, k = np.nonzero(rows[column] == related)
        left_out = np.zeros((len(anchor), len(rows)), bool)
        left_out[b, column[b, k]] = True
        return Candidates(rows, np.searchsorted(rows, positive), left_out, self.log_share[rows])
