"""What every recommender is: a map of playlists and a map of tracks into one space of inner products."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from index.errors import DebutError
from training.evaluation.continuation import Scorer, mean_of_seeds
from training.progress import Progress

Content = NDArray[np.float32]


class RecommenderError(DebutError):
    """Playlists and vectors that a recommender cannot be fitted on."""

    code = "recommender_failed"


class Recommender(Protocol):
    """A fitted recommender. Its tracks can stand in the index that serves plain vectors, its playlists query it."""

    def transform_tracks(self, vectors: Content) -> Content:
        """Content vectors f32 [n, d] (NaN rows where missing) -> f32 [n, k], NaN rows where missing."""
        ...

    def transform_playlists(self, means: Content) -> Content:
        """Means of the known tracks' content (Eq. 12) f32 [q, d] -> f32 [q, k]."""
        ...


Validate = Callable[[Recommender], float]
"""Score of a recommender after an epoch, higher is better: the best epoch is kept."""


class Fit(Protocol):
    """How any of them is fitted, its settings aside."""

    def __call__(
        self, playlists: sparse.csr_array, vectors: Content, progress: Progress, *, validate: Validate | None = None
    ) -> Recommender:
        """Fit on TRAINING entries `playlists` [P, N] and the content `vectors` f32 [N, d] of the same tracks."""
        ...


def scorer(recommender: Recommender, vectors: Content) -> Scorer:
    """Return the scorer of the continuation protocol: transform the seeds' mean and the candidates, inner product.

    `vectors` f32 [N, d] are the content of all tracks, NaN rows where missing, in the space of the fit.
    """
    return mean_of_seeds(vectors, playlists=recommender.transform_playlists, tracks=recommender.transform_tracks)
