"""Which tracks share an audience: ItemCF or Swing neighbours from co-listening, block by block.

    ItemCF: s_ij = sum_{u in U_i and U_j} 1/log(1+|I_u|) / sqrt(|U_i| |U_j|)
    Swing:  s_ij = sum_{u < v in U_i and U_j} w_u w_v / (alpha + |I_u and I_v|), w_u = 1/sqrt(|I_u|)

U_i: the listeners of track i; I_u: the tracks of listener u. They supervise BCL (`supervision`, on train tracks'
listens), and ItemCF on all listens is the truth of the matching evaluation. No track-by-track matrix is ever whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Similarity = Literal["itemcf", "swing"]
BUDGET = 1 << 22
"""Entries of a product held at once, some 80 bytes each."""
LISTENERS = 200
"""Swing reads so many listeners of a track at most: its cost grows with their square."""


class Listens(Protocol):
    """What is read of a data set's listens: listener numbers and track rows, one entry a pair."""

    listener_ids: Sequence[str]
    listener: NDArray[np.int64]
    row: NDArray[np.int64]


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

    def some(self, queries: NDArray[np.int64]) -> "Neighbours":
        """Return the neighbours of some of the queries [Q] alone, in that order."""
        parts = [slice(self.indptr[q], self.indptr[q + 1]) for q in queries]
        return _neighbours([(self.rows[part], self.scores[part]) for part in parts])


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
    least: float = 0.0,
    budget: int = BUDGET,
) -> Neighbours:
    """Return each query's `top` candidates of highest ItemCF s_ij with at least `min_common` common listeners.

    `listens` 0/1 [listeners, tracks]; `queries` and `candidates` are track rows (all tracks when None). A
    track is never its own neighbour, and none has a similarity under `least`. Equal similarities (to 12
    digits) are ordered by more common listeners, then by smaller row. `budget` bounds the products held at
    once, in entries (a single query may need one a candidate); the result does not depend on it.
    """
    queries, candidates = _sides(listens, queries, candidates)
    by_track, heard = _by_track(listens), np.diff(listens.indptr)
    audience = np.diff(by_track.indptr).astype(np.float64)
    weight = np.divide(1.0, np.log1p(heard), out=np.zeros(len(heard)), where=heard > 0)
    # One product does both: its real part counts the common listeners, its imaginary part weighs them.
    every = len(candidates) == listens.shape[1]
    right = sparse.csr_array(listens if every else listens[:, candidates], dtype=np.complex128)
    lengths = np.diff(right.indptr).astype(np.int64)
    right.data.imag = np.repeat(weight, lengths)
    cost = np.minimum((by_track @ lengths)[queries], len(candidates))
    found = []
    for block in _cuts(cost, budget):
        both = by_track[queries[block]].astype(np.complex128) @ right
        for q, i in enumerate(queries[block]):
            part = slice(both.indptr[q], both.indptr[q + 1])
            near, n, s = candidates[both.indices[part]], both.data[part].real, both.data[part].imag
            s = s / np.sqrt(audience[i] * audience[near])
            usable = (n >= min_common) & (near != i) & (s >= least)
            found.append(_best(near[usable], n[usable], s[usable], top))
    return _neighbours(found)


def swing(
    listens: sparse.csr_array,
    queries: NDArray[np.int64] | None = None,
    candidates: NDArray[np.int64] | None = None,
    *,
    top: int = 20,
    min_common: int = 2,
    least: float = 0.0,
    alpha: float = 1.0,
    listeners: int = LISTENERS,
    seed: int = 0,
    budget: int = BUDGET,
) -> Neighbours:
    """Return each query's `top` candidates of highest Swing s_ij (Yang et al. 2020, arXiv 2010.05525).

    Arguments and order are those of `item_cf`. Pairs of listeners are unordered (u < v), so that two common
    listeners are needed in any case; two who share little else count for more, `alpha` says by how much. Of a
    query with more than `listeners` listeners so many are read, drawn by a hash of `seed`, track and listener;
    sums are scaled up to all pairs, which makes them right on average, but `min_common` then counts listeners
    among those read. Raises ValueError for `listeners` < 2 or `alpha` < 0.
    """
    if listeners < 2 or alpha < 0:
        raise ValueError(f"Swing needs 2 listeners and an alpha from 0 on, not {listeners} and {alpha}")
    queries, candidates = _sides(listens, queries, candidates)
    by_track = _by_track(listens)
    weight = 1 / np.sqrt(np.maximum(np.diff(listens.indptr), 1))
    wanted = np.zeros(listens.shape[1], bool)
    wanted[candidates] = True
    found = []
    for i in queries:
        audience = by_track.indices[by_track.indptr[i] : by_track.indptr[i + 1]]
        read = _drawn(audience, int(i), listeners, seed)
        near, n, s = _swings(listens[read], weight[read], wanted, alpha, budget)
        if len(read) < len(audience):
            s = s * (len(audience) * (len(audience) - 1) / (len(read) * (len(read) - 1)))
        usable = (n >= min_common) & (near != i) & (s >= least)
        found.append(_best(near[usable], n[usable], s[usable], top))
    return _neighbours(found)


def _swings(
    histories: sparse.csr_array,
    weight: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    alpha: float,
    budget: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the wanted tracks that two of the listeners share, how many share them, and their sums.

    With A [listeners, tracks] and S_uv = w_u w_v / (alpha + (A A')_uv) off the diagonal, the sum of track j is
    a_j' S a_j / 2. Tracks of one listener alone add nothing and are left out of A, which is dense.
    """
    tracks, place, n = np.unique(histories.indices, return_inverse=True, return_counts=True)
    order = np.cumsum(n >= 2) - 1
    several = (n >= 2)[place]
    listener = np.repeat(np.arange(len(weight)), np.diff(histories.indptr))[several]
    tracks, column, n = tracks[n >= 2], order[place[several]], n[n >= 2]
    parts = list(_cuts(np.full(len(tracks), len(weight)), budget))
    common = np.zeros((len(weight), len(weight)))
    for part in parts:
        heard = _dense(listener, column, part, len(weight))
        common += heard @ heard.T
    affinity = np.outer(weight, weight) / (alpha + np.maximum(common, 1.0))  # all share the query itself
    np.fill_diagonal(affinity, 0.0)
    sums = [np.empty(0)]
    for part in parts:
        heard = _dense(listener, column, part, len(weight))
        sums.append(np.einsum("uj,uj->j", heard, affinity @ heard) / 2)
    asked = wanted[tracks]
    return tracks[asked].astype(np.int64), n[asked], np.concatenate(sums)[asked]


def _dense(listener: NDArray[np.int64], column: NDArray[np.int64], part: slice, listeners: int) -> NDArray[np.float64]:
    inside = (column >= part.start) & (column < part.stop)
    heard = np.zeros((listeners, part.stop - part.start))
    heard[listener[inside], column[inside] - part.start] = 1.0
    return heard


def _drawn(audience: NDArray[np.int32], track: int, most: int, seed: int) -> NDArray[np.int64]:
    """Return at most `most` of the listeners, ascending, the same ones whoever else is in the data."""
    audience = audience.astype(np.int64)
    if len(audience) <= most:
        return np.sort(audience)
    key = _mixed(_mixed(np.array([seed], np.uint64)) + np.array([track], np.uint64))
    mark = _mixed(key + audience.astype(np.uint64))
    return np.sort(audience[np.argsort(mark, kind="stable")[:most]])


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64 bits (the finaliser of SplitMix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sides(
    listens: sparse.csr_array, queries: NDArray[np.int64] | None, candidates: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    tracks = np.arange(listens.shape[1], dtype=np.int64)
    queries = tracks if queries is None else np.asarray(queries, np.int64)
    return queries, tracks if candidates is None else np.sort(np.asarray(candidates, np.int64))


def _by_track(listens: sparse.csr_array) -> sparse.csr_array:
    """Return `listens` transposed, [tracks, listeners], a byte an entry."""
    ones = np.ones(len(listens.indices), np.int8)
    return sparse.csr_array((ones, listens.indices, listens.indptr), shape=listens.shape).T.tocsr()


def _cuts(cost: NDArray[np.int64], budget: int) -> Iterator[slice]:
    """Yield consecutive slices that cost no more than `budget`, or are of one entry."""
    ends, first = np.cumsum(cost), 0
    while first < len(cost):
        spent = ends[first] - cost[first]
        last = max(first + 1, int(np.searchsorted(ends, spent + budget, side="right")))
        yield slice(first, last)
        first = last


def _best(
    near: NDArray[np.int64], n: NDArray, s: NDArray[np.float64], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the `top` rows and similarities: by similarity, then common listeners, then row."""
    rounded = s.round(12)
    if len(near) > 4 * top:  # a selection is cheaper than a sort, as long as it keeps all that are equal
        kept = rounded >= np.partition(rounded, len(near) - top)[len(near) - top]
        near, n, s, rounded = near[kept], n[kept], s[kept], rounded[kept]
    best = np.lexsort((near, -n, -rounded))[:top]
    return near[best], s[best]


def _neighbours(found: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> Neighbours:
    counts = [len(rows) for rows, _ in found]
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
    return Neighbours(indptr, rows, np.concatenate([np.empty(0), *(scores for _, scores in found)]))
