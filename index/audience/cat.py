"""CAT, clustering-based audience targeting: whom to show a track to, and what tastes they fall into."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.audience.clustering import Clustering, cluster
from index.audience.listening import AudienceError, Listening
from index.audience.listening_file import write_audience
from index.audience.ranking import ranked, survey
from index.audience.reach import Affinity
from index.audience.result import AudienceResult, Cluster, Neighbour, Overlap, Target
from index.collection import Collection, CollectionView
from index.search.prior import popularity, search_with_prior
from index.search.vectors import Mask, Rows, Vectors, checked_vectors, inner_products

__all__ = [
    "Audience",
    "AudienceError",
    "AudienceResult",
    "Cluster",
    "Neighbour",
    "Overlap",
    "Target",
    "write_audience",
]

NEIGHBOURS = 50
"""K: tracks whose audiences are taken."""
TEMPERATURE = 0.1
"""Of the softmax that weighs the neighbours by similarity."""
CORE = 1.5
"""Power of a listener's weight in the scores: those who heard several of the neighbours say more than in proportion."""
CAP = 5_000
"""Listeners that are clustered, heaviest first."""
LEAST_MASS = 0.05
"""Clusters with less of the listeners' weight are dropped."""
EXEMPLARS = 5
BETWEEN = 0.05
"""Cosine by which a listener's second nearest centroid may be farther for them to count as between the two."""


class ReleaseFolder(Protocol):
    """What an audience needs of index.release.release.Release."""

    @property
    def path(self) -> Path:
        """Folder of the release."""


class Audience:
    """The listeners of a release; immutable."""

    def __init__(self, listening: Listening | None) -> None:
        self._listening = listening
        self._heard: Rows = np.empty(0, dtype=np.int64)  # by how many listeners, each of the release's tracks
        if listening is not None:
            self._heard = np.diff(listening.track_offsets)

    @classmethod
    def open(cls, release: ReleaseFolder) -> "Audience":
        """Open the audience of `release`, empty when it has no listening data. Raises AudienceError."""
        return cls(Listening.open(release.path / "audience"))

    def __len__(self) -> int:
        return len(self._listening) if self._listening is not None else 0

    def target(
        self,
        query: ArrayLike,
        collection: Collection | CollectionView,
        *,
        row: int | None = None,
        clusters: int | None = None,
        limit: int = 100,
        exclude_known: bool = True,
        min_score: float | None = None,
        prior: float = 0.0,
    ) -> AudienceResult:
        """Return whom to show a track with matching vector `query` f32 [d], unit (bcl.md, CAT).

        R: the NEIGHBOURS nearest tracks with listeners (by similarity + `prior` x ln(1 + listeners), see
        index.search.prior), weights softmax(similarity / TEMPERATURE). U0: their
        listeners, weight = sum of track weight x play strength / sqrt(|I_u|), the CAP heaviest. Centroids:
        weighted spherical k-means of U0 into `clusters` (None: 3 to 8, by silhouette), those under LEAST_MASS
        dropped. Scores: index.audience.reach.Affinity, with a = weights^CORE.
        `limit` listeners, quotas by mass, then filled by score.

        Up to EVERYBODY listeners, and with `min_score` (which leaves out all below), all are scored; else those whom
        Affinity.spans expects to score high. Of a million listeners (benchmarks.audience, 100 tracks) that named
        the same 100 as if all had been scored; of 1,000 the same 999.6 on average, and 997.6 where vectors hardly
        tell who hears what. Scores are the same either way. `row` is the track's own, if it has one: it is
        then no neighbour of itself, and with `exclude_known` nobody who played it is named. Raises AudienceError:
        audience_missing without listening data, audience_no_neighbours when no track of the collection has
        listeners; ValueError for limit or clusters < 1, prior < 0, and a query that is no finite unit vector.
        """
        if limit < 1 or (clusters is not None and clusters < 1):
            raise ValueError(f"limit and clusters must be at least 1, not {limit} and {clusters}")
        view = collection.view() if isinstance(collection, Collection) else collection
        wanted = checked_vectors(np.asarray(query)[None], view.matching.dims)
        listening = self._listening
        if listening is None or not listening.placed:
            raise AudienceError(
                "this release has no listeners: train it on a data set with listens.parquet",
                code="audience_missing",
            )
        rows, similarities = self._neighbours(wanted, view, row, prior)
        members, weights = self._members(listening, view.catalogue.origins[rows], similarities)
        points = listening.points(members)
        centroids, labels, mass = _kept(cluster(points, weights, clusters), weights)
        own = int(view.catalogue.origins[row]) if row is not None and 0 <= row < view.catalogue.size else None
        affinity = Affinity.of(listening, wanted[0], members, weights**CORE, own)
        spans = affinity.spans(members, limit, everybody=min_score is not None)
        known = self._known(listening, own) if exclude_known else np.empty(0, dtype=np.int32)
        seen = survey(affinity, spans, min_score)
        if len(known):
            eligible = np.ones(listening.placed, dtype=bool)
            eligible[known] = False
            seen = seen.where(eligible[seen.listeners])
        shares = mass / mass.sum()
        listeners, scores, nearest, passing = ranked(affinity, centroids, seen, shares, limit, min_score)
        reach = passing if min_score is not None else listening.placed - len(known)
        ids, near = listening.ids, [view.catalogue.track(near).track_id for near in rows.tolist()]
        neighbours = view.matching.vectors(rows)
        return AudienceResult(
            clusters=tuple(
                Cluster(
                    mass=float(mass[number]),
                    share=float(shares[number]),
                    size=int((labels == number).sum()),
                    tracks=tuple(near[place] for place in _nearest(neighbours, centroid)),
                    listeners=tuple(str(ids[u]) for u in members[_nearest(points, centroid, labels == number)]),
                    centroid=centroid,
                )
                for number, centroid in enumerate(centroids)
            ),
            listeners=tuple(
                Target(str(ids[u]), score, number)
                for u, score, number in zip(listeners.tolist(), scores.tolist(), nearest.tolist(), strict=True)
            ),
            neighbours=tuple(map(Neighbour, near, rows.tolist(), similarities.tolist())),
            overlaps=_overlaps(points, weights, centroids),
            reach=reach,
        )

    def _known(self, listening: Listening, own: int | None) -> NDArray[np.int32]:
        """Return the placed listeners of the release's track `own`."""
        known = listening.listeners_of(own if own is not None else -1)[0]
        return known[known < listening.placed]

    def _neighbours(self, query: Vectors, view: CollectionView, row: int | None, weight: float) -> tuple[Rows, Vectors]:
        """R: rows i64 and similarities f32 of the nearest warm tracks that have listeners, but not `row`."""
        origins = view.catalogue.origins
        warm = (view.catalogue.interactions > 0) & (origins >= 0) & (origins < len(self._heard))
        warm[warm] = self._heard[origins[warm]] > 0
        if row is not None and 0 <= row < len(warm):
            warm[row] = False
        if weight:
            prior = np.zeros(len(warm))
            prior[warm] = popularity(self._heard[origins[warm]])
            _, similarities, rows = search_with_prior(view.matching, query, NEIGHBOURS, prior, weight, warm)
            order = np.lexsort((rows, -similarities))
            similarities, rows = similarities[order], rows[order]
        else:
            similarities, rows = (answer[0] for answer in view.matching.search(query, NEIGHBOURS, warm))
        found = rows >= 0
        if not found.any():
            raise AudienceError(
                "no track here has listeners, so none can lend its audience: train on a data set whose "
                "listens.parquet names tracks of tracks.parquet",
                code="audience_no_neighbours",
            )
        return rows[found], similarities[found]

    def _members(self, listening: Listening, origins: Rows, similarities: Vectors) -> tuple[Rows, NDArray[np.float64]]:
        """U0: listeners i64 of the neighbours, the CAP heaviest of them by place, and their weights."""
        total = np.zeros(len(self))
        for origin, weight in zip(origins.tolist(), _softmax(similarities / TEMPERATURE), strict=True):
            listeners, strengths = listening.listeners_of(origin)
            total[listeners] += weight * strengths  # a track names a listener once
        total[listening.placed :] = 0.0
        members = np.flatnonzero(total)
        if not len(members):
            raise AudienceError(
                "the listeners of the nearest tracks have no vectors, so they cannot be grouped",
                code="audience_no_neighbours",
            )
        members = _heaviest(members, total[members], CAP)
        return members, total[members]


def _heaviest(members: Rows, weights: NDArray[np.float64], most: int) -> Rows:
    """Return the `most` heaviest of `members` i64 [n] ascending, the smaller of equals."""
    if len(members) <= most:
        return members
    least = np.partition(weights, len(members) - most)[len(members) - most]
    chosen = weights > least
    chosen[np.flatnonzero(weights == least)[: most - int(chosen.sum())]] = True
    heaviest: Rows = members[chosen]
    return heaviest


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(values.astype(np.float64) - values.max())
    weights: NDArray[np.float64] = powers / powers.sum()
    return weights


def _kept(found: Clustering, weights: NDArray[np.float64]) -> tuple[Vectors, Rows, NDArray[np.float64]]:
    """Return centroids, labels (-1: dropped) and masses of the clusters that weigh enough, heaviest first."""
    mass = np.bincount(found.labels, weights=weights, minlength=len(found.centroids)) / weights.sum()
    order = np.argsort(-mass, kind="stable")
    order = order[: max(1, int((mass >= LEAST_MASS).sum()))]
    number = np.full(len(mass), -1)
    number[order] = np.arange(len(order))
    return found.centroids[order], number[found.labels], mass[order]


def _nearest(points: Vectors, centroid: Vectors, among: Mask | None = None) -> Rows:
    """Return the places of the EXEMPLARS points nearest to `centroid`, of those `among`."""
    places = np.arange(len(points)) if among is None else np.flatnonzero(among)
    similarity = inner_products(centroid[None], points, places[None])[0]
    nearest: Rows = places[np.lexsort((places, -similarity))[:EXEMPLARS]]
    return nearest


def _overlaps(points: Vectors, weights: NDArray[np.float64], centroids: Vectors) -> tuple[Overlap, ...]:
    """Return, for each two centroids, the share of weight whose two nearest they are, within BETWEEN."""
    if len(centroids) < 2:
        return ()
    similarity = points @ centroids.T
    two = np.argsort(-similarity, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(similarity, two, axis=1).T
    between = first - second <= BETWEEN
    pairs = np.sort(two[between], axis=1)
    share = np.zeros((len(centroids), len(centroids)))
    np.add.at(share, (pairs[:, 0], pairs[:, 1]), weights[between] / weights.sum())
    return tuple(Overlap((int(a), int(b)), float(share[a, b])) for a, b in np.argwhere(share > 0))
