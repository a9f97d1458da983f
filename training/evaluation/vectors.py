"""Unit vectors of tracks, dense or sparse, with missing rows: means and similarities for the scorers."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Vectors = NDArray[np.floating] | sparse.csr_array
LAST = np.finfo(np.float32).min  # the score of a candidate of which nothing is known


def known(vectors: Vectors) -> NDArray[np.bool_]:
    """Return bool [N]: rows that hold a vector (a dense row with NaN is missing; sparse rows are known)."""
    if sparse.issparse(vectors):
        return np.ones(vectors.shape[0], bool)
    return ~np.isnan(np.asarray(vectors)).any(1)


def filled(vectors: Vectors) -> Vectors:
    """Return float64 vectors with missing rows as zeros."""
    if sparse.issparse(vectors):
        return sparse.csr_array(vectors, dtype=np.float64)
    return np.where(known(vectors)[:, None], vectors, 0.0).astype(np.float64)


def similarity(queries: Vectors, vectors: Vectors, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return inner products [Q, C] of query vectors and candidate rows; a missing candidate scores LAST."""
    products = queries @ filled(vectors[candidates]).T
    scores = products.toarray() if sparse.issparse(products) else np.array(products, np.float64)
    scores[:, ~known(vectors[candidates])] = LAST
    return scores


def unit(vectors: Vectors) -> Vectors:
    """Return rows divided by their Euclidean length; a zero row stays zero."""
    squared = vectors.power(2).sum(1) if sparse.issparse(vectors) else (vectors**2).sum(1)
    length = np.sqrt(np.asarray(squared).ravel())
    inverse = np.divide(1.0, length, out=np.zeros_like(length, dtype=np.float64), where=length > 0)
    if sparse.issparse(vectors):
        return sparse.csr_array(sparse.diags_array(inverse) @ vectors)
    return vectors * inverse[:, None]
