"""BCL's supervision: which tracks are anchors, their neighbours as positives, and how pairs are drawn from them."""

from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.bcl.similarity import Neighbours, Similarity, item_cf, swing


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
        which = np.searchsorted(self._ends, rng.random(n), side="right")
        first, last = self.neighbours.indptr[which], self.neighbours.indptr[which + 1]
        positive = self.neighbours.rows[first + rng.integers(0, last - first)]
        negative = self.negatives[rng.integers(0, len(self.negatives), (n, negatives))]
        for _ in range(3):
            wrong = self._related(which, negative)
            negative[wrong] = self.negatives[rng.integers(0, len(self.negatives), int(wrong.sum()))]
        return self.anchors[which], positive, negative

    @cached_property
    def _ends(self) -> NDArray[np.float64]:
        """The shares summed up, so that a draw does not sum a million of them anew."""
        ends = self.share.cumsum()
        return ends / ends[-1]

    @cached_property
    def _width(self) -> int:
        """1 + the largest row: keeps the keys of two anchors apart."""
        return 1 + max(int(self.negatives.max()), int(self.neighbours.rows.max()), int(self.anchors.max()))

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        """One key a (anchor, neighbour) pair, and one for the anchor with itself, sorted."""
        of = np.repeat(np.arange(len(self.anchors)), np.diff(self.neighbours.indptr))
        own = np.arange(len(self.anchors)) * self._width + self.anchors
        return np.sort(np.concatenate([of * self._width + self.neighbours.rows, own]))

    def _related(self, which: NDArray[np.int64], negative: NDArray[np.int64]) -> NDArray[np.bool_]:
        asked = which[:, None] * self._width + negative
        place = np.minimum(np.searchsorted(self._keys, asked), len(self._keys) - 1)
        return self._keys[place] == asked


def item_pairs(
    listens: sparse.csr_array,
    train: NDArray[np.int64],
    *,
    top: int = 20,
    min_common: int = 2,
    power: float = 0.5,
    pairs: Similarity = "itemcf",
    alpha: float = 1.0,
    least: float = 0.0,
) -> ItemPairs:
    """Return the supervision from `listens` (0/1, train tracks' listens only) over the rows `train`.

    `pairs` says by which similarity tracks are neighbours; `alpha` is that of Swing. Anchors are drawn with
    probability ~ |U_i|^power: between the catalogue's view (0) and the audience's (1). Raises ValueError for
    another name of `pairs`.
    """
    if pairs not in get_args(Similarity):
        raise ValueError(f"no similarity {pairs!r}; there are {', '.join(get_args(Similarity))}")
    if pairs == "swing":
        neighbours = swing(listens, train, train, top=top, min_common=min_common, least=least, alpha=alpha)
    else:
        neighbours = item_cf(listens, train, train, top=top, min_common=min_common, least=least)
    some = np.diff(neighbours.indptr) > 0
    anchors = np.asarray(train, np.int64)[some]
    mass = np.bincount(listens.indices, minlength=listens.shape[1])[anchors].astype(np.float64) ** power
    indptr = np.concatenate([[0], np.cumsum(np.diff(neighbours.indptr)[some])]).astype(np.int64)
    kept = Neighbours(indptr, neighbours.rows, neighbours.scores)
    return ItemPairs(anchors, mass / mass.sum() if len(mass) else mass, kept, np.asarray(train, np.int64))
