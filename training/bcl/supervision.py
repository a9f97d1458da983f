"""Which tracks share an audience: ItemCF neighbours from co-listening, by sparse products.

    s_ij = sum_{u in U_i and U_j} 1/log(1+|I_u|) / sqrt(|U_i| |U_j|)

U_i: the listeners of track i; I_u: the tracks of listener u. They supervise BCL (on train tracks' listens)
and are the truth of the matching evaluation (on all listens).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_BLOCK = 2048  # query tracks whose co-listening counts are held at once


@dataclass(frozen=True)
class Neighbours:
    """The best neighbours of each query track, best first, in CSR form.

    Query q has the track rows `rows[indptr[q]:indptr[q+1]]` with similarities `scores` of the same slice.
    """

    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def of(self, query: int) -> NDArray[np.int64]:
        """Return the neighbours' rows of one query, best first."""
        return self.rows[self.indptr[query] : self.indptr[query + 1]]


def listen_matrix(
    listener: NDArray[np.int64],
    row: NDArray[np.int64],
    shape: tuple[int, int],
    keep: NDArray[np.bool_] | None = None,
) -> sparse.csr_array:
    """Return who heard what, 0/1 [listeners, tracks] of `shape`, from one entry a (listener, track row) pair.

    Repeated pairs count once. With `keep` (bool [tracks]) the listens of all other tracks are dropped first.
    """
    if keep is not None:
        listener, row = listener[keep[row]], row[keep[row]]
    matrix = sparse.csr_array((np.ones(len(row)), (listener, row)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def item_cf(
    listens: sparse.csr_array,
    queries: NDArray[np.int64] | None = None,
    candidates: NDArray[np.int64] | None = None,
    *,
    top: int = 20,
    min_common: int = 2,
) -> Neighbours:
    """Return each query's `top` candidates of highest s_ij with at least `min_common` common listeners.

    `listens` 0/1 [listeners, tracks]; `queries` and `candidates` are track rows (all tracks when None). A
    track is never its own neighbour. Equal similarities (to 12 digits) are ordered by more common listeners,
    then by smaller row.
    """
    tracks = np.arange(listens.shape[1], dtype=np.int64)
    queries = tracks if queries is None else np.asarray(queries, np.int64)
    candidates = tracks if candidates is None else np.sort(np.asarray(candidates, np.int64))
    heard = np.asarray(listens.sum(1)).ravel()
    weight = np.divide(1.0, np.log1p(heard), out=np.zeros_like(heard), where=heard > 0)
    audience = np.asarray(listens.sum(0)).ravel()
    by_track, right = sparse.csr_array(listens.T), sparse.csr_array(listens[:, candidates])
    weighted = sparse.csr_array(sparse.diags_array(weight) @ right)
    counts, rows, scores = [], [], []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        # Two products with the same pattern: all weights are positive, so neither drops an entry.
        common, score = by_track[block] @ right, by_track[block] @ weighted
        common.sort_indices()
        score.sort_indices()
        for q, i in enumerate(block):
            part = slice(common.indptr[q], common.indptr[q + 1])
            near, n = candidates[common.indices[part]], common.data[part]
            s = score.data[part] / np.sqrt(audience[i] * audience[near])
            usable = (n >= min_common) & (near != i)
            near, n, s = near[usable], n[usable], s[usable]
            best = np.lexsort((near, -n, -s.round(12)))[:top]
            counts.append(len(best))
            rows.append(near[best])
            scores.append(s[best])
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    return Neighbours(indptr, _joined(rows, np.int64), _joined(scores, np.float64))


def _joined(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


@dataclass(frozen=True)
class ItemPairs:
    """BCL's supervision: anchors with their neighbours, and how to draw from them.

    `anchors` track rows [A] with at least one neighbour; `share` f64 [A] the probability of drawing each as
    anchor; `neighbours` the positives of each anchor; `negatives` the track rows that may be drawn as
    negatives.
    """

    anchors: NDArray[np.int64]
    share: NDArray[np.float64]
    neighbours: Neighbours
    negatives: NDArray[np.int64]

    def draw(
        self, n: int, negatives: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return anchor [n], positive [n] and negative [n, negatives] track rows.

        Anchors by `share`, a uniform neighbour of each as positive, uniform negatives. A negative that is the
        anchor or one of its neighbours is drawn again, up to three times: in small catalogues they would be
        frequent.
        """
        which = rng.choice(len(self.anchors), n, p=self.share)
        first, last = self.neighbours.indptr[which], self.neighbours.indptr[which + 1]
        positive = self.neighbours.rows[first + rng.integers(0, last - first)]
        negative = self.negatives[rng.integers(0, len(self.negatives), (n, negatives))]
        for _ in range(3):
            wrong = self._related(which, negative)
            negative[wrong] = self.negatives[rng.integers(0, len(self.negatives), int(wrong.sum()))]
        return self.anchors[which], positive, negative

    def _related(self, which: NDArray[np.int64], negative: NDArray[np.int64]) -> NDArray[np.bool_]:
        # One sorted key a (anchor, neighbour) pair; 1 + the largest row keeps the keys of two anchors apart.
        width = 1 + max(int(self.negatives.max()), int(self.neighbours.rows.max()), int(self.anchors.max()))
        of = np.repeat(np.arange(len(self.anchors)), np.diff(self.neighbours.indptr))
        keys = np.sort(
            np.concatenate([of * width + self.neighbours.rows, np.arange(len(self.anchors)) * width + self.anchors])
        )
        asked = which[:, None] * width + negative
        place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        return keys[place] == asked


def item_pairs(
    listens: sparse.csr_array,
    train: NDArray[np.int64],
    *,
    top: int = 20,
    min_common: int = 2,
    power: float = 0.5,
) -> ItemPairs:
    """Return the supervision from `listens` (0/1, train tracks' listens only) over the rows `train`.

    Anchors are drawn with probability ~ |U_i|^power: between the catalogue's view (0) and the audience's (1).
    """
    neighbours = item_cf(listens, train, train, top=top, min_common=min_common)
    some = np.diff(neighbours.indptr) > 0
    anchors = np.asarray(train, np.int64)[some]
    mass = np.asarray(listens.sum(0)).ravel()[anchors] ** power
    indptr = np.concatenate([[0], np.cumsum(np.diff(neighbours.indptr)[some])]).astype(np.int64)
    kept = Neighbours(indptr, neighbours.rows, neighbours.scores)
    return ItemPairs(anchors, mass / mass.sum() if len(mass) else mass, kept, np.asarray(train, np.int64))
