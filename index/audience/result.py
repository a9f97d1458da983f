"""What CAT answers: clusters, listeners, neighbours, and how tastes overlap."""

from dataclasses import dataclass, field

from index.search.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A warm track near the query, in matching space."""

    track_id: str
    row: int
    similarity: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """One taste among the listeners of the neighbours."""

    mass: float
    """Part of the weight of all clustered listeners, from 0 to 1."""
    share: float
    """Part of the audience to fill from here: mass over the mass of the clusters that were kept."""
    size: int
    """Clustered listeners in it."""
    tracks: tuple[str, ...]
    """Ids of the neighbours nearest to the centroid."""
    listeners: tuple[str, ...]
    """Ids of its listeners nearest to the centroid."""
    centroid: Vectors = field(repr=False, compare=False)
    """f32 [d], unit."""


@dataclass(frozen=True, slots=True)
class Target:
    """A listener to show the track to: score (index.audience.reach.Affinity), and the number of the nearest cluster."""

    listener_id: str
    score: float
    cluster: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two clusters, the heavier first, and the part of the clustered listeners' weight that lies between them."""

    clusters: tuple[int, int]
    share: float


@dataclass(frozen=True, slots=True)
class AudienceResult:
    """Clusters by falling mass, listeners by falling score, neighbours by falling similarity."""

    clusters: tuple[Cluster, ...]
    listeners: tuple[Target, ...]
    neighbours: tuple[Neighbour, ...]
    overlaps: tuple[Overlap, ...]
    """Every pair of clusters that somebody lies between."""
    reach: int
    """Listeners who may be named and score at least `min_score`, beyond `limit` as well."""
