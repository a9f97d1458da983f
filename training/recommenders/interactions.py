"""What the recommenders learn from: training entries of the tracks whose content is known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from training.recommenders.recommender import Content, RecommenderError


@dataclass(frozen=True)
class Interactions:
    """Training playlists [m] x tracks [n], 0/1, without playlists or tracks that hold nothing, and their content.

    matrix: f32 csr [m, n]; tracks: i64 [n] rows in the data set; content: f32 [n, d]; means: f32 [m, d], the mean of
    each playlist's tracks (Eq. 12). playlist and track i64 [entries]: the entries in order of the matrix.
    """

    matrix: sparse.csr_array
    tracks: NDArray[np.int64]
    content: Content
    means: Content
    playlist: NDArray[np.int64]
    track: NDArray[np.int64]

    @classmethod
    def of(cls, playlists: sparse.csr_array, vectors: Content) -> "Interactions":
        """Keep what can be learnt from. Raises RecommenderError when shapes differ or nothing is left."""
        playlists, vectors = sparse.csr_array(playlists), np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or playlists.shape[1] != len(vectors):
            raise RecommenderError(f"playlists {playlists.shape} must have a column for each row of {vectors.shape}")
        known = ~np.isnan(vectors).any(1)
        held = np.asarray((playlists != 0).sum(0)).ravel() > 0
        tracks = np.flatnonzero(known & held)
        matrix = sparse.csr_array((playlists[:, tracks] != 0).astype(np.float32))
        matrix = matrix[np.diff(matrix.indptr) > 0]
        if matrix.shape[0] < 2 or matrix.shape[1] < 2:
            raise RecommenderError(
                f"{matrix.shape[0]} training playlists with {matrix.shape[1]} tracks of known content: a recommender "
                "needs two of each. Give it more playlists, or leave the recommenders out.",
                code="recommender_data",
            )
        matrix.sort_indices()
        lengths = np.diff(matrix.indptr)
        means = (matrix @ vectors[tracks]) / lengths[:, None]
        owner = np.repeat(np.arange(len(lengths)), lengths)
        return cls(matrix, tracks, vectors[tracks], means.astype(np.float32), owner, matrix.indices.astype(np.int64))

    def holds(self, playlist: NDArray[np.int64], track: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each playlist holds each track: i64 [B], i64 [C] -> bool [B, C]."""
        return self.matrix[playlist][:, track].toarray() > 0


@dataclass(frozen=True)
class Scale:
    """An affine map (x - centre) * factor to centred entries of mean square one; distances keep their proportions.

    centre: f32 [d]; factor: scalar. A missing row (NaN) stays missing.
    """

    centre: NDArray[np.float32]
    factor: float

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> "Scale":
        """Fit to rows f32 [n, d]; rows that are all alike are only centred."""
        centre = rows.mean(0, dtype=np.float64)
        spread = float(np.sqrt(np.mean((rows - centre) ** 2)))
        return cls(centre.astype(np.float32), 1 / spread if spread > 1e-12 else 1.0)

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """f32 [n, d] -> f32 [n, d]."""
        return ((rows - self.centre) * np.float32(self.factor)).astype(np.float32)
