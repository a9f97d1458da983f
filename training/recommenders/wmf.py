"""Weighted matrix factorisation of the playlist-track matrix (Hu, Koren, Volinsky 2008), by `implicit`'s ALS."""

import os

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits


def factorise(
    matrix: sparse.csr_array,
    dims: int,
    *,
    confidence: float = 40.0,
    l2: float = 0.1,
    iterations: int = 15,
    threads: int = 0,
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors of a 0/1 matrix [m, n]: f32 [m, dims], f32 [n, dims] with m . n near 1 where the entry is 1.

    Minimises sum c (r - m . n)^2 + l2 (|m|^2 + |n|^2) over ALL cells, c = `confidence` where r = 1, else 1. Rows are
    solved one by one, so the number of threads changes nothing. BLAS gets one thread: its own beside ALS's are
    slower by far, and `implicit` would warn of them.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=dims,
            regularization=l2,
            alpha=confidence,
            iterations=iterations,
            num_threads=threads or len(os.sched_getaffinity(0)),
            random_state=seed,
        )
        model.fit(sparse.csr_matrix(matrix, dtype=np.float32), show_progress=False)
    return model.user_factors, model.item_factors
