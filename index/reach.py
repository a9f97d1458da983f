"""From the neighbours' audience to everybody's score, and from scores to the listeners that are named, by quota."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.listening import Listening
from index.vectors import Mask, Rows, Vectors, inner_products, near_best, slack

SHARPNESS = 5.0
"""beta: how much a listener's cosine to the song counts."""
FLOOR = 0.05
"""Listening affinity granted to everybody: nobody is lost for having heard only songs that the audience has not."""
EVERYBODY = 1 << 14
"""Listeners up to which all are scored; beyond, the neighbours' listeners and the nearest to the song."""
NEAREST = 2_000
"""Listeners nearest to the song that are scored at least (and at least twice those asked for)."""

_LISTENERS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Affinity:
    """How near every listener is to a song, by content and by the audience of its neighbours.

    With a(v) the weight of listener v of the neighbours (sum 1), I_u the tracks u heard and U_t the listeners
    of track t:

        l(t) = sum_{v in U_t} a(v) / |U_t|               what the listeners of t weigh, on average
        h(u) = mean_{t in I_u} l(t)                      the same over what u heard
        r(u) = h(u) / sum_v a(v) h(v)                    1: as the neighbours' own listeners
        score(u) = exp(SHARPNESS (cos(q, rep(u)) - 1)) (FLOOR + r(u)) / (FLOOR + 1)

    The first factor is the cosine baseline; the second walks song -> neighbours -> listeners -> what they hear
    -> who else hears it, and tells apart the many listeners that content alone finds equally near. A score of 1
    is a listener whose vector is the song's and who hears what the neighbours' audience hears.
    """

    listening: Listening
    query: Vectors
    """f32 [d], unit: q."""
    liked: NDArray[np.float64]
    """[N]: l(t) / sum_v a(v) h(v)."""

    @classmethod
    def of(
        cls, listening: Listening, query: Vectors, members: Rows, weights: NDArray[np.float64], own: int | None
    ) -> "Affinity":
        """Spread `weights` > 0 [n] of `members` i64 [n] over what they heard, but the song itself (row `own`)."""
        share = weights / weights.sum()
        place, rows = _histories(listening, members)
        heard_by = np.diff(listening.track_offsets)
        liked = np.bincount(rows, weights=share[place], minlength=len(heard_by)) / np.maximum(heard_by, 1)
        if own is not None and 0 <= own < len(liked):
            liked[own] = 0.0
        usual = float(share @ _means(listening, members, liked))
        return cls(listening, query, liked / usual if usual > 0 else liked)

    def scores(self, listeners: Rows) -> Vectors:
        """Return score(u) f32 of `listeners` i64 [n], each a function of the listener alone."""
        found = np.empty(len(listeners), dtype=np.float32)
        for start in range(0, len(listeners), _LISTENERS_AT_ONCE):
            block = listeners[start : start + _LISTENERS_AT_ONCE]
            cosine = inner_products(self.query[None], self.listening.vectors, block[None])[0].astype(np.float64)
            heard = (FLOOR + _means(self.listening, block, self.liked)) / (FLOOR + 1)
            found[start : start + len(block)] = np.exp(SHARPNESS * (cosine - 1)) * heard
        return found

    def candidates(self, members: Rows, eligible: Mask, limit: int, everybody: bool) -> Rows:
        """Return who is scored, i64 ascending: all `eligible` bool [U], or `members` and the nearest of them."""
        if everybody or len(self.listening) <= EVERYBODY:
            return np.flatnonzero(eligible)
        count = int(eligible.sum())
        wanted = min(count, max(NEAREST, 2 * limit))
        if self.listening.segment is not None:
            near = self.listening.segment.candidates(self.query[None], wanted, eligible, count)[0]
        elif wanted:
            rough = np.where(eligible, self.listening.vectors @ self.query, -np.inf)
            near = near_best(rough, wanted, self.query)
        else:
            near = np.empty(0, dtype=np.int64)
        return np.union1d(members[eligible[members]], near[near >= 0])


def _histories(listening: Listening, listeners: Rows) -> tuple[Rows, Rows]:
    """Return what `listeners` heard as (place in `listeners`, row) i64 [n], listener by listener."""
    starts = listening.offsets[listeners]
    counts = listening.offsets[listeners + 1] - starts
    skipped = starts - (np.cumsum(counts) - counts)
    return np.repeat(np.arange(len(listeners)), counts), listening.rows[
        np.arange(int(counts.sum())) + np.repeat(skipped, counts)
    ]


def _means(listening: Listening, listeners: Rows, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of `values` [N] over what each of `listeners` heard; 0 for nothing."""
    place, rows = _histories(listening, listeners)
    counts = np.maximum(np.bincount(place, minlength=len(listeners)), 1)
    return np.asarray(np.bincount(place, weights=values[rows], minlength=len(listeners)) / counts)


def labelled(vectors: Vectors, centroids: Vectors, listeners: Rows) -> Rows:
    """Return the number of the nearest centroid of `listeners`, i64 [n]; the smaller of equals."""
    labels = np.empty(len(listeners), dtype=np.int64)
    doubt = 2 * slack(centroids, centroids.shape[1]).max()
    for start in range(0, len(listeners), _LISTENERS_AT_ONCE):
        block = listeners[start : start + _LISTENERS_AT_ONCE]
        similarity = vectors[block] @ centroids.T
        nearest = similarity.argmax(axis=1)
        close = (similarity >= similarity.max(axis=1, keepdims=True) - doubt).sum(axis=1) > 1
        if close.any():  # rounding could decide
            exact = np.stack([inner_products(one[None], vectors, block[close][None])[0] for one in centroids])
            nearest[close] = exact.argmax(axis=0)
        labels[start : start + len(block)] = nearest
    return labels


def quotas(shares: NDArray[np.float64], limit: int) -> Rows:
    """Share out `limit` places i64 [m] by `shares` [m] (sum 1): largest remainders, the earlier of equals."""
    exact = shares * limit
    whole = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: limit - int(whole.sum())]] += 1
    return whole


def select(candidates: Rows, scores: Vectors, labels: Rows, shares: NDArray[np.float64], limit: int) -> Rows:
    """Return the places i64 of at most `limit` of `candidates` i64, best score first, then the smaller candidate.

    Each cluster gives the best of its quota by `shares` [m]; where one has too few, the best of all the others
    fill up.
    """
    limit = min(limit, len(candidates))
    order = np.lexsort((candidates, -scores))
    taken = np.zeros(len(order), dtype=bool)
    for number, quota in enumerate(quotas(shares, limit).tolist()):
        taken[np.flatnonzero(labels[order] == number)[:quota]] = True
    taken[np.flatnonzero(~taken)[: limit - int(taken.sum())]] = True
    return np.asarray(order[taken])
