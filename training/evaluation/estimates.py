"""How sure a figure is: the percentile bootstrap over queries, alone and paired."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
_CHUNK = 1 << 22  # resampled indexes held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return {"value", "low", "high"} rounded to six decimals."""
        return {name: round(getattr(self, name), 6) for name in ("value", "low", "high")}


def bootstrap(
    values: NDArray[np.float64],
    *,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 1,
) -> Estimate:
    """Return the mean of `values` [n] with its percentile bootstrap interval.

    Whole queries are drawn with replacement, n of them, `draws` times. With `groups` (one label a query, as
    the parent of several states of one playlist) whole groups are drawn, because queries of one group are not
    independent. Raises ValueError when there are no values or the labels do not match them.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"the bootstrap needs one value a query, got shape {values.shape}")
    total, count = values, np.ones(len(values))
    if groups is not None:
        if len(groups) != len(values):
            raise ValueError(f"{len(groups)} group labels for {len(values)} values")
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
        total, count = np.bincount(codes, values), np.bincount(codes).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, _CHUNK // len(total))
    for start in range(0, draws, step):
        sample = rng.integers(0, len(total), (min(step, draws - start), len(total)))
        means[start : start + step] = total[sample].sum(1) / count[sample].sum(1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(float(values.mean()), float(low), float(high))


def paired_difference(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 1,
) -> Estimate:
    """Return the mean of `first` - `second` (both [n], of the same queries) with its interval.

    Two methods differ when zero lies outside. Far sharper than asking whether their two intervals overlap,
    since both find the same queries easy. Raises ValueError when the lengths differ.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(f"paired values differ in shape: {np.shape(first)} and {np.shape(second)}")
    return bootstrap(np.asarray(first, np.float64) - np.asarray(second, np.float64), groups=groups, seed=seed)
