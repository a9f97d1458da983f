"""From the neighbours' audience to listeners' scores: whom to look at, and what each of them scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.audience.listening import Listening
from index.search.vectors import Rows, Vectors, inner_products

SHARPNESS = 5.0
"""beta: how much a listener's cosine to the song counts."""
FLOOR = 0.05
"""Listening affinity granted to everybody: nobody is lost for having heard only songs that the audience has not."""
EVERYBODY = 1 << 16
"""Listeners up to which all are scored, in about 10 ms. Beyond, those of the neighbours are, those of the tracks that
these like most, and the lists nearest to the song."""
SOUGHT, FOLD = 1 << 14, 4
"""Listens of such tracks, and listeners of such lists, at least, and FOLD times the listeners asked for."""

LISTENERS_AT_ONCE = 4096
"""Their vectors, decoded, stay in the processor's cache."""

Span = slice | Rows
"""Listeners from .start to .stop, or these."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """How near every listener is to a song, by content and by the audience of its neighbours.

    With a(v) the weight of listener v of the neighbours (sum 1), I_u the tracks u heard and U_t the listeners
    of track t:

        l(t) = sum_{v in U_t} a(v) / |U_t|               what the listeners of t weigh, on average
        h(u) = mean_{t in I_u} l(t)                      the same over what u heard
        r(u) = h(u) / sum_v a(v) h(v)                    1: as the neighbours' own listeners
        e(u) = |I_u|^activity / sum_v a(v) |I_v|^activity
        score(u) = exp(SHARPNESS (cos(q, rep(u)) - 1)) e(u) (FLOOR + r(u)) / (FLOOR + 1)

    The first factor is the cosine baseline. The last walks song -> neighbours -> listeners -> what they hear -> who
    else hears it, and tells apart the many listeners that content alone finds equally near. Between them stands how
    much somebody listens at all: who hears more hears this song sooner. A score of 1 is a listener whose vector is
    the song's and who hears what the neighbours' audience hears, and as much.
    """

    listening: Listening
    query: Vectors
    """f32 [d], unit: q."""
    liked: NDArray[np.float64]
    """[N]: l(t) / sum_v a(v) h(v)."""
    usual: float
    """sum_v a(v) |I_v|^activity"""

    @classmethod
    def of(
        cls, listening: Listening, query: Vectors, members: Rows, weights: NDArray[np.float64], own: int | None
    ) -> "Affinity":
        """Spread `weights` > 0 [n] of `members` i64 [n] over what they heard, but the song itself (row `own`)."""
        share = weights / weights.sum()
        ends, rows = listening.histories(members)
        counts = np.diff(ends, prepend=0)
        heard_by = np.diff(listening.track_offsets)
        liked = np.bincount(rows, weights=np.repeat(share, counts), minlength=len(heard_by)) / np.maximum(heard_by, 1)
        if own is not None and 0 <= own < len(liked):
            liked[own] = 0.0
        usual = float(share @ (np.add.reduceat(liked[rows], ends - counts) / counts))
        activity = float(share @ listening.activity[members].astype(np.float64))
        return cls(listening, query, liked / usual if usual > 0 else liked, activity)

    def scores(self, listeners: Rows) -> Vectors:
        """Return score(u) f32 of placed `listeners` i64 [n], each a function of the listener alone."""
        found = np.empty(len(listeners), dtype=np.float32)
        for start in range(0, len(listeners), LISTENERS_AT_ONCE):
            block = listeners[start : start + LISTENERS_AT_ONCE]
            everyone = np.arange(len(block))[None]
            cosine = inner_products(self.query[None], self.listening.points(block), everyone)[0].astype(np.float64)
            found[start : start + len(block)] = np.exp(SHARPNESS * (cosine - 1)) * self.heard(block)
        return found

    def heard(self, listeners: Span) -> NDArray[np.float64]:
        """Return e(u) (FLOOR + r(u)) / (FLOOR + 1) of placed `listeners`: all heard something."""
        ends, rows = self.listening.histories(listeners)
        if not len(ends):
            return np.empty(0)
        starts = np.concatenate(([0], ends[:-1]))
        means = np.add.reduceat(self.liked.take(rows), starts) / (ends - starts)
        eager = self.listening.activity[listeners].astype(np.float64) / self.usual
        found: NDArray[np.float64] = eager * (FLOOR + means) / (FLOOR + 1)
        return found

    def least_cosine(self, bar: float) -> float:
        """Return the cosine below which nobody scores `bar`, whatever they heard: h(u) is at most the largest l(t)."""
        if bar <= 0:
            return -np.inf
        eager = float(self.listening.activity.max()) / self.usual
        most = eager * (FLOOR + float(self.liked.max(initial=0.0)) * (1 + 1e-9)) / (FLOOR + 1)
        return 1 + float(np.log(bar / most)) / SHARPNESS

    def spans(self, members: Rows, limit: int, everybody: bool) -> list[Span]:
        """Return whom to look at, no one twice: all placed listeners, or `members` and who else may score high."""
        listening = self.listening
        if everybody or listening.placed <= EVERYBODY:
            return [slice(0, listening.placed)]
        many = max(SOUGHT, FOLD * limit)
        lists = self._nearest_lists(many)
        inside = np.zeros(len(listening.centroids), dtype=bool)
        inside[lists] = True
        others = np.union1d(members, listening.fans(self._most_liked(many)))
        others = others[: np.searchsorted(others, listening.placed)]
        others = others[~inside[np.searchsorted(listening.lists, others, side="right") - 1]]
        return [*(slice(int(listening.lists[n]), int(listening.lists[n + 1])) for n in lists.tolist()), others]

    def _nearest_lists(self, many: int) -> Rows:
        """Return the lists i64 ascending that are nearest to the song and hold `many` listeners."""
        nearest = np.argsort(-(self.listening.centroids @ self.query), kind="stable")
        sizes = np.diff(self.listening.lists)[nearest]
        return np.sort(nearest[: int(np.searchsorted(np.cumsum(sizes), many)) + 1])

    def _most_liked(self, many: int) -> Rows:
        """Return the rows i64 ascending of the largest l(t) > 0 that were listened to by `many`, all told."""
        liked = np.flatnonzero(self.liked)
        if len(liked) > many:  # each was heard by one at least
            liked = liked[np.argpartition(-self.liked[liked], many)[:many]]
        liked = liked[np.lexsort((liked, -self.liked[liked]))]
        heard_by = np.diff(self.listening.track_offsets)[liked]
        return np.sort(liked[: int(np.searchsorted(np.cumsum(heard_by), many)) + 1])


def blocks(spans: Sequence[Span]) -> Iterator[tuple[Span, Rows]]:
    """Cut `spans` into blocks that are worked on at once; with each, its listeners i64."""
    for span in spans:
        start, stop = (span.start, span.stop) if isinstance(span, slice) else (0, len(span))
        for first in range(start, stop, LISTENERS_AT_ONCE):
            part = slice(first, min(first + LISTENERS_AT_ONCE, stop))
            if isinstance(span, slice):
                yield part, np.arange(part.start, part.stop)
            else:
                yield span[part], span[part]
