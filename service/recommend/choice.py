"""Which candidates make an answer: at most so many of an artist or album, and not too much alike."""

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from index.collection import CollectionView
from index.search.vectors import VectorView
from index.tracks.titles import fold
from service.http.schemas import ContinueRequest

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Group = tuple[object, ...]


def choose(
    view: CollectionView, space: VectorView, request: ContinueRequest, rows: Rows, scores: Vectors, shown: Rows
) -> Rows:
    """Return places in `rows`, in the order to return them: at most k, within the caps and unlike what was `shown`.

    `scores` are of `space`, and so is likeness.

    Each step takes the candidate with the largest (1 - diversity) score - diversity max(similarity to what
    was taken): maximal marginal relevance (Carbonell and Goldstein, 1998). With diversity 0 that is the order
    of the scores.
    """
    caps = _Caps(view, request, rows, shown)
    if request.diversity == 0:
        return np.array([place for place in range(len(rows)) if caps.take(place)][: request.k], dtype=np.int64)
    vectors = space.vectors(rows)
    worth = (1 - request.diversity) * scores.astype(np.float64)
    # Nothing is taken yet: the first choice is the best score. What earlier pages returned was taken before.
    nearest = (vectors @ space.vectors(shown).T).max(axis=1) if len(shown) else np.zeros(len(rows))
    worth[caps.full()] = -np.inf
    taken: list[int] = []
    while len(taken) < request.k and np.isfinite(worth).any():
        place = int(np.argmax(worth - request.diversity * nearest))
        caps.take(place)
        taken.append(place)
        similarity = vectors @ vectors[place]
        nearest = similarity if len(taken) + len(shown) == 1 else np.maximum(nearest, similarity)
        worth[place] = -np.inf
        worth[caps.filled_by(place)] = -np.inf  # all at once: a turn each would be quadratic in the catalogue
    return np.array(taken, dtype=np.int64)


class _Caps:
    """How many tracks of one artist or album may be taken; those without one are not counted."""

    def __init__(self, view: CollectionView, request: ContinueRequest, rows: Rows, shown: Rows) -> None:
        self._view, self._request = view, request
        self._taken = Counter(group for groups in self._of(shown) for group, _ in groups)
        self._groups = self._of(rows)
        self._members: defaultdict[Group, list[int]] = defaultdict(list)
        for place, groups in enumerate(self._groups):
            for group, _ in groups:
                self._members[group].append(place)

    def _of(self, rows: Rows) -> list[list[tuple[Group, int]]]:
        """Return the groups that each row belongs to, and how many of each may be taken."""
        found: list[list[tuple[Group, int]]] = []
        artists = self._view.catalogue.columns.artists[rows].tolist()
        for row, artist in zip(rows.tolist(), artists, strict=True):
            groups: list[tuple[Group, int]] = []
            if self._request.max_per_artist and artist:
                groups.append((("artist", artist), self._request.max_per_artist))
            if self._request.max_per_album and (album := fold(self._view.catalogue.track(row).album)):
                groups.append((("album", artist, album), self._request.max_per_album))
            found.append(groups)
        return found

    def full(self) -> list[int]:
        """Return all places whose artist or album has no room left."""
        return [place for place in range(len(self._groups)) if not self._has_room(place)]

    def _has_room(self, place: int) -> bool:
        return all(self._taken[group] < most for group, most in self._groups[place])

    def filled_by(self, place: int) -> list[int]:
        """Return the places of the groups of `place` that have no room left."""
        full = [group for group, most in self._groups[place] if self._taken[group] >= most]
        return [member for group in full for member in self._members[group]]

    def take(self, place: int) -> bool:
        """Count the candidate at `place` if its artist and album have room; return whether they have."""
        if not self._has_room(place):
            return False
        self._taken.update(group for group, _ in self._groups[place])
        return True
